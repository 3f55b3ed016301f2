// All clips of whoever looks at the page.

import {
  hasEnded, hasSound, contentUrl, escapeHtml, fetchJson, getOpenClipId, openClip, getSession,
  showViewer, soundIcon,
} from "./api.js";
import { isDeleted } from "./deletion.js";
import { downloadMenuHtml } from "./downloads.js";
import { createStar, favouriteIds, updateStar } from "./favourites.js";
import { filterHtml, GalleryFilter } from "./gallery_filter.js";
import { Selection, selectionHtml } from "./selection.js";

// Of today the time, of other days the date.
function formatDate(seconds) {
  const date = new Date(seconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  const isThisYear = date.getFullYear() === new Date().getFullYear();
  if (isToday) return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return date.toLocaleDateString([], { day: "numeric", month: "short", ...(isThisYear ? {} : { year: "numeric" }) });
}

export class Gallery extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Gallery"><div class="head"><h2>Your clips</h2>${selectionHtml}${filterHtml}
      <input type="search" placeholder="Search prompts" aria-label="Search prompts"></div>
      <div class="grid"></div><p class="no-results" hidden></p>
      <button class="film-button show-more" hidden>Show more</button></section>`;
    this.grid = this.querySelector(".grid");
    this.pages = 1;
    this.isPersistent = true;
    getSession().then((session) => this.showStorageWarning(session)).catch(() => {});
    this.cards = new Map();
    this.selection = new Selection(this);
    this.filter = new GalleryFilter(this, () => { this.pages = 1; this.poll(); });
    this.search = this.querySelector("input");
    this.search.addEventListener("input", () => { clearTimeout(this.searchTimer); this.searchTimer = setTimeout(() => this.poll(), 250); });
    this.querySelector(".show-more").addEventListener("click", () => { this.pages += 1; this.poll(); });
    this.onChange = () => this.poll();
    for (const name of ["film:changed", "film:open", "visibilitychange"]) document.addEventListener(name, this.onChange);
    this.poll();
  }

  disconnectedCallback() {
    for (const name of ["film:changed", "film:open", "visibilitychange"]) document.removeEventListener(name, this.onChange);
    clearTimeout(this.pollTimer);
  }

  showStorageWarning(session) {
    this.isPersistent = session.keeps;
    if (!this.isPersistent) this.querySelector(".head").insertAdjacentHTML("afterend", `<p class="small storage-warning">This server keeps clips only until it restarts or goes to sleep: download those that you want to keep.</p>`);
  }

  async poll() {
    clearTimeout(this.pollTimer);
    if (document.hidden) return;
    const run = (this.run = (this.run ?? 0) + 1); // a slower, older poll is dropped
    let isBusy = true;
    try {
      const [videos, more] = await this.fetchPages();
      if (run !== this.run) return;
      this.render(videos, more);
      isBusy = videos.some((v) => !hasEnded(v));
    } catch { /* shown as a lost connection; the next poll may succeed */ }
    if (run === this.run) this.pollTimer = setTimeout(() => this.poll(), isBusy ? 2000 : 15000);
  }

  async fetchPages() {
    const videos = [];
    const filter = this.filter.query();
    let more = false;
    let last = null;
    if (!filter) return [videos, more];
    for (let page = 0; page < this.pages; page += 1) {
      const query = new URLSearchParams([["limit", 24], ["search", this.search.value], ...filter]);
      if (last) query.set("after", last);
      const result = await fetchJson(`/v1/videos?${query}`);
      videos.push(...result.data.filter((v) => !isDeleted(v.id)));
      last = result.last_id;
      more = result.has_more;
      if (!more) break;
    }
    return [videos, more];
  }

  render(videos, more) {
    const now = new Set(videos.map((v) => v.id));
    const favourites = favouriteIds();
    for (const [id, card] of this.cards) if (!now.has(id)) { card.parentElement.remove(); this.cards.delete(id); this.selection.forget(card); }
    for (const [i, video] of videos.entries()) {
      const card = this.cards.get(video.id) ?? this.createCard(video);
      this.updateCard(card, video);
      updateStar(card.star, video.id, favourites);
      const cell = card.parentElement;
      if (this.grid.children[i] !== cell) this.grid.insertBefore(cell, this.grid.children[i] ?? null);
    }
    const noResults = this.querySelector(".no-results");
    noResults.hidden = videos.length > 0;
    noResults.textContent = this.search.value ? "No prompt contains this text." : this.filter.onlyFavourites ? "No favourites: press the star of a clip." : `No clips yet.${this.isPersistent ? " Clips are kept over restarts of the server." : ""}`;
    this.querySelector(".show-more").hidden = !more;
  }

  createCard(video) {
    const card = document.createElement("button");
    card.className = "card";
    card.innerHTML = `<div class="poster"></div><div class="name">${escapeHtml(video.prompt)}</div><div class="small"></div>`;
    card.addEventListener("click", () => this.onClick(card));
    this.selection.updateCard(card);
    card.addEventListener("pointerenter", () => this.previewOnHover(card, true));
    card.addEventListener("pointerleave", () => this.previewOnHover(card, false));
    const cell = document.createElement("div");
    cell.className = "cell";
    card.star = createStar(video);
    cell.append(card, card.star);
    this.cards.set(video.id, card);
    return card;
  }

  onClick(card) {
    if (this.selection.isActive) return this.selection.toggle(card);
    openClip(card.video.id);
    showViewer();
  }

  updateCard(card, video) {
    card.video = video;
    card.setAttribute("aria-current", String(video.id === getOpenClipId()));
    const state = video.status === "in_progress" ? `${video.progress} %` : video.status === "queued" ? `Position ${video.position ?? ""}` : video.status;
    const label = video.status === "completed" ? "poster" : video.error?.code === "cancelled" ? "Stopped" : video.status === "failed" ? "Failed" : state;
    if (card.label !== label) {
      card.label = label;
      const mark = hasSound(video) ? `<span class="sound-mark" role="img" aria-label="With sound">${soundIcon(false)}</span>` : "";
      card.querySelector(".poster").innerHTML = label === "poster" ? `<img loading="lazy" alt="" src="${contentUrl(video, "?variant=thumbnail")}">${mark}` : escapeHtml(label);
      card.parentElement.querySelector(".film-menu")?.remove();
      if (label === "poster") card.star.insertAdjacentHTML("afterend", downloadMenuHtml(video, true));
    }
    card.querySelector(".small").textContent = `${formatDate(video.created_at)}; ${video.size}, ${Number(video.seconds).toFixed(1)} s${video.draft ? ", draft" : ""}`;
  }

  previewOnHover(card, isHovered) {
    const poster = card.querySelector(".poster");
    poster.querySelector("video")?.remove();
    if (!isHovered || card.video.status !== "completed") return;
    const player = Object.assign(document.createElement("video"), { src: contentUrl(card.video), muted: true, loop: true, autoplay: true, playsInline: true });
    poster.append(player);
  }
}
