// Downloads of finished clips: as they were made, or in a format that the server converts them to.

import { ApiError, announce, contentUrl, escapeHtml, hasSound, showRefusal } from "./api.js";

const FORMATS = { mp4: "MP4", webm: "WebM", gif: "GIF", webp: "WebP" };
const SILENT_FORMATS = ["gif", "webp"];
const ARROW = `<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"><path d="M12 4v11m-5-5 5 5 5-5M5 20h14"/></svg>`;

function itemHtml(video, format) {
  const note = hasSound(video) && SILENT_FORMATS.includes(format) ? " without sound" : "";
  return `<a href="${contentUrl(video, `?format=${format}`)}" download data-format="${format}">${FORMATS[format]}${note}</a>`;
}

// hasIcon: an icon instead of words, for the gallery.
export function downloadMenuHtml(video, hasIcon = false) {
  const label = hasIcon ? `<summary class="film-button" aria-label="Download as: ${escapeHtml(video.prompt)}">${ARROW}</summary>` : `<summary class="film-button" aria-label="Download as"><span class="words">Download as</span></summary>`;
  return `<details class="film-menu">${label}<div class="items">${Object.keys(FORMATS).map((format) => itemHtml(video, format)).join("")}</div></details>`;
}

export function startDownload(url) {
  const link = Object.assign(document.createElement("a"), { href: url, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

// Asks for the first byte, which comes when all is ready: an error can be shown then.
export async function prepareDownload(url) {
  const response = await fetch(url, { headers: { range: "bytes=0-0" } });
  if (response.ok) return response.body?.cancel();
  const answer = await response.json().catch(() => null);
  throw new ApiError(answer?.error ?? { message: `The server answered ${response.status}.` }, response.status);
}

async function downloadConverted(menu, link) {
  const button = menu.querySelector("summary");
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true";
  announce(`Converting the clip to ${FORMATS[link.dataset.format]}.`);
  try {
    await prepareDownload(link.href);
    startDownload(link.href);
    announce("The download starts.");
  } catch (error) {
    showRefusal(`The clip was not converted. ${error.message}`);
  }
  button.ariaBusy = "false";
}

function closeMenus(except = null) {
  for (const menu of document.querySelectorAll(".film-menu[open]")) if (menu !== except) menu.open = false;
}

document.addEventListener("click", (event) => {
  const menu = event.target.closest(".film-menu");
  closeMenus(menu);
  const link = event.target.closest(".film-menu a");
  if (!link) return;
  menu.open = false;
  menu.querySelector("summary").focus();
  if (link.dataset.format === "mp4") return; // is there already
  event.preventDefault();
  downloadConverted(menu, link);
});
document.addEventListener("focusin", (event) => closeMenus(event.target.closest(".film-menu")));
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector(".film-menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
