// How far a clip is while its page is not looked at: in the title of the tab, and by a notification
// for whoever has asked for one.

const TITLE = document.title;

export function showInTitle(text) {
  document.title = text ? `${text} · ${TITLE}` : TITLE;
}

// Browsers show notifications only over HTTPS and on this machine, and ask once.
export const notifyButtonHtml = () => window.isSecureContext && window.Notification?.permission === "default"
  ? `<button class="film-button" data-action="notify">Notify me when it is done</button>` : "";

export async function askToNotify(button) {
  const permission = await Notification.requestPermission();
  if (permission !== "default") button.remove();
}

// title: of the notification.
export function notifyDone(video, title = video.status === "completed" ? "Your clip is ready" : "Your clip failed") {
  if (!document.hidden || window.Notification?.permission !== "granted") return;
  try {
    const note = new Notification(title, { body: video.prompt, tag: video.id });
    note.onclick = () => { window.focus(); note.close(); };
  } catch { /* Android shows them only from a service worker */ }
}
