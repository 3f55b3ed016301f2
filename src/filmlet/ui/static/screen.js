// The picture of one clip: a message, a preview while it is denoised, the growing clip, the whole one.

import { contentUrl } from "./api.js";
import { isCancelled } from "./states.js";

// Browsers start sound only after a gesture on the page: without one the clip starts muted.
async function startPlayer(player) {
  try {
    await player.play();
  } catch (error) {
    if (player.muted || error.name !== "NotAllowedError") return;
    player.isMutedByBrowser = true;
    player.muted = true;
    player.play().catch(() => {});
  }
}

export class ClipScreen {
  // messageHtml(text): what is shown where there is no picture. setUpPlayer(player, mode): before a
  // video is added; no player where something else is shown. isPaused(): whether it starts paused.
  constructor(element, { messageHtml, setUpPlayer, isPaused = () => false }) {
    Object.assign(this, { element, messageHtml, setUpPlayer, isPaused });
    this.mode = null;
  }

  update(video) {
    if (video.status === "completed") return this.showVideo(contentUrl(video), "complete");
    if (video.status === "failed") return this.showMessage(isCancelled(video) ? "Stopped" : "Failed");
    if (video.stage === "decode" && video.step > 0) return this.showVideo(contentUrl(video, "?stream=true"), "growing");
    if (video.preview_url) return this.showPreview(`${video.preview_url}?${video.stage}${video.step}`);
    if (this.mode !== "growing") this.showMessage(video.status === "queued" ? "Waiting" : "Starting");
  }

  showMessage(text) {
    this.mode = "message";
    this.setUpPlayer(null);
    this.element.innerHTML = this.messageHtml(text);
  }

  // One at a time: a preview that is loading is not replaced by the next one.
  showPreview(url) {
    if (this.mode === "growing") return;
    this.setUpPlayer(null);
    if (this.mode !== "preview") this.element.innerHTML = `<img class="is-preview" alt="Preview of the clip">`;
    this.mode = "preview";
    const picture = this.element.querySelector("img");
    picture.onload = picture.onerror = (event) => {
      picture.style.opacity = event.type === "load" ? 1 : 0;
      if (picture.getAttribute("src") !== url) picture.src = url;
    };
    if (picture.complete) picture.src = url;
  }

  showVideo(url, mode) {
    if (this.mode === mode) return;
    const before = this.element.querySelector("video");
    const player = document.createElement("video");
    Object.assign(player, { src: url, muted: true, autoplay: !this.isPaused(), playsInline: true, loop: mode === "complete" });
    this.setUpPlayer(player, mode);
    if (mode === "growing") player.addEventListener("error", () => player.remove(), { once: true });
    if (before && this.mode === "growing") player.currentTime = before.currentTime;
    // The previous picture stays until the first frame is loaded.
    player.className = "is-loading";
    player.addEventListener("loadeddata", () => {
      player.className = "";
      if (!this.isPaused()) startPlayer(player); // browsers start only visible videos by themselves
      // Only older ones: the growing clip may load after the complete one was added.
      while (player.previousElementSibling) player.previousElementSibling.remove();
    }, { once: true });
    this.element.append(player);
    this.mode = mode;
  }

  setPaused(isPaused) {
    for (const player of this.element.querySelectorAll("video")) if (isPaused) player.pause(); else startPlayer(player);
  }

  // Ends what still loads.
  clear() {
    this.mode = null;
    for (const player of this.element.querySelectorAll("video")) { player.removeAttribute("src"); player.load(); }
    this.element.replaceChildren();
  }
}
