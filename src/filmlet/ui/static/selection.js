// Several clips of the gallery at once: downloaded as one file, or deleted.

import { announce, getOpenClipId, serverUrl, showRefusal } from "./api.js";
import { deleteLater } from "./deletion.js";
import { prepareDownload, startDownload } from "./downloads.js";

const MAX_CLIPS = 100; // of one archive

export const selectionHtml = `<button class="film-button select-clips" aria-pressed="false">Select</button>
  <div class="film-row selection" hidden><span class="count" role="status"></span>
    <button class="film-button" data-action="archive">Download ZIP</button>
    <button class="film-button" data-action="delete">Delete</button></div>`;

export class Selection {
  constructor(gallery) {
    this.gallery = gallery;
    this.cards = new Set();
    this.isActive = false;
    this.switch = gallery.querySelector(".select-clips");
    this.bar = gallery.querySelector(".selection");
    this.switch.addEventListener("click", () => this.setActive(!this.isActive));
    this.bar.addEventListener("click", (event) => this.runAction(event.target.closest("[data-action]")?.dataset.action));
    gallery.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.isActive) return;
      this.setActive(false);
      this.switch.focus();
    });
  }

  setActive(isActive) {
    this.isActive = isActive;
    this.cards.clear();
    this.switch.ariaPressed = String(isActive);
    this.bar.hidden = !isActive;
    this.gallery.classList.toggle("is-selecting", isActive);
    for (const card of this.gallery.cards.values()) this.updateCard(card);
    this.updateBar();
  }

  toggle(card) {
    if (this.cards.has(card)) this.cards.delete(card);
    else if (this.cards.size >= MAX_CLIPS) return showRefusal(`At most ${MAX_CLIPS} clips can be selected.`);
    else this.cards.add(card);
    this.updateCard(card);
    this.updateBar();
  }

  // A card that is gone is not selected any more.
  forget(card) {
    if (this.cards.delete(card)) this.updateBar();
  }

  updateCard(card) {
    card.ariaPressed = this.isActive ? String(this.cards.has(card)) : null;
  }

  updateBar() {
    this.bar.querySelector(".count").textContent = this.isActive ? `${this.cards.size} selected` : "";
    this.bar.querySelector("[data-action=delete]").disabled = !this.cards.size;
    this.bar.querySelector("[data-action=archive]").disabled = !this.completedIds().length;
  }

  completedIds() {
    return [...this.cards].map((card) => card.video).filter((v) => v.status === "completed").map((v) => v.id);
  }

  async runAction(action) {
    if (action === "archive") return this.downloadArchive();
    if (action !== "delete") return;
    const ids = [...this.cards].map((card) => card.video.id);
    this.setActive(false);
    deleteLater(ids, ids.includes(getOpenClipId()));
  }

  async downloadArchive() {
    const ids = new URLSearchParams(this.completedIds().map((id) => ["ids", id]));
    const url = serverUrl(`/v1/videos/archive?${ids}`);
    try {
      await prepareDownload(url);
      startDownload(url);
      announce("The download starts.");
      this.setActive(false);
      this.switch.focus();
    } catch (error) {
      showRefusal(`The clips were not downloaded. ${error.message}`);
    }
  }
}
