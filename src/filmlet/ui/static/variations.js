// Variations: the same request with several seeds, side by side in the viewer, to choose one from.

import {
  announce, ApiError, fetchJson, formatEta, getVariationIds, hasEnded, notifyChanged,
  openClip, showRefusal,
} from "./api.js";
import { deleteLater, isDeleted } from "./deletion.js";
import { notifyDone, showInTitle } from "./notify.js";
import { ClipScreen } from "./screen.js";
import { stateText } from "./states.js";

const POLL_RUNNING_MS = 500;
const POLL_QUEUED_MS = 1500;
const keptIds = () => getVariationIds().filter((id) => !isDeleted(id));

// The buttons of a clip that was chosen; "" where there is nothing else to choose.
export function variationButtonsHtml(id) {
  const ids = keptIds();
  if (!ids.includes(id) || ids.length < 2) return "";
  return `<button class="film-button" data-action="variations">All variations</button>
    <button class="film-button" data-action="delete-others">Delete the others</button>`;
}

export const deleteOthers = (id) => deleteLater(keptIds().filter((other) => other !== id), false);

class VariationTile {
  constructor(id, number, isPaused) {
    this.id = id;
    this.element = document.createElement("button");
    Object.assign(this.element, { className: "tile", innerHTML: `<span class="picture"></span><span class="state">Variation ${number}</span>` });
    this.element.dataset.action = "pick";
    this.element.dataset.id = id;
    this.state = this.element.querySelector(".state");
    this.picture = new ClipScreen(this.element.querySelector(".picture"), {
      messageHtml: () => "", // the label says it
      setUpPlayer: (player) => player?.setAttribute("aria-hidden", "true"),
      isPaused,
    });
  }

  update(video) {
    const text = `Seed ${video.seed}: ${stateText(video)}`;
    if (this.state.textContent !== text) this.state.textContent = text;
    this.picture.update(video);
  }
}

export class VariationGrid {
  constructor(screen, info, ids) {
    // Of all that move, for whoever is disturbed by it; by itself where the system asks for that.
    this.isPaused = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.info = info;
    this.waitingIds = new Set();
    this.tiles = ids.map((id, i) => new VariationTile(id, i + 1, () => this.isPaused));
    const grid = Object.assign(document.createElement("div"), { className: "tiles", role: "group", ariaLabel: "Variations: choose one" });
    grid.append(...this.tiles.map((tile) => tile.element));
    screen.replaceChildren(grid);
    info.innerHTML = `<div class="status-line"><span class="status-text"><span class="stage-label"></span> <span class="eta"></span></span>
      <button class="film-button" data-action="stop" aria-keyshortcuts="Escape" hidden>Stop all</button></div>
      <progress max="100" value="0" aria-label="Progress of all"></progress>
      <p class="prompt"></p><p class="small">Choose one to open it; the others stay in the gallery.</p>
      <div class="film-row actions"><button class="film-button" data-action="pause"></button>
        <button class="film-button" data-action="retry" hidden>Continue all</button></div>`;
    this.showPaused();
    this.videos = [];
    this.onChange = () => this.poll();
    this.onKey = (event) => this.stopByKey(event);
    document.addEventListener("film:changed", this.onChange);
    document.addEventListener("keydown", this.onKey);
    this.poll();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    document.removeEventListener("film:changed", this.onChange);
    document.removeEventListener("keydown", this.onKey);
    for (const tile of this.tiles) tile.picture.clear();
  }

  focusTile(id) { this.tiles.find((tile) => tile.id === id)?.element.focus({ preventScroll: true }); }

  // One request for all: a stream for each would take most connections that a browser has.
  async poll() {
    clearTimeout(this.timer);
    const run = (this.run = (this.run ?? 0) + 1); // a slower, older poll is dropped
    let waitMs = POLL_QUEUED_MS;
    try {
      const query = new URLSearchParams(this.tiles.map((tile) => ["ids", tile.id]));
      const { data } = await fetchJson(`/v1/videos?${query}`);
      if (run !== this.run || this.isClosed) return;
      this.render(data);
      if (this.videos.every(hasEnded)) return;
      if (this.videos.some((v) => v.status === "in_progress")) waitMs = POLL_RUNNING_MS;
    } catch (error) {
      if (run === this.run && !this.isClosed && error instanceof ApiError && error.status < 500) return this.setLabel(error.message);
    }
    if (run === this.run && !this.isClosed) this.timer = setTimeout(() => this.poll(), waitMs);
  }

  render(videos) {
    const byId = new Map(videos.filter((v) => !isDeleted(v.id)).map((v) => [v.id, v]));
    this.videos = [];
    for (const tile of this.tiles) {
      const video = byId.get(tile.id);
      tile.element.hidden = !video;
      if (!video) continue;
      tile.update(video);
      this.videos.push(video);
      this.startWaiting(video);
    }
    this.updateInfo();
  }

  // On ZeroGPU a queued clip is started by an event of the visitor's page, whose GPU time it uses.
  startWaiting(video) {
    if (video.status !== "queued") return this.waitingIds.delete(video.id);
    if (this.waitingIds.has(video.id)) return;
    this.waitingIds.add(video.id);
    document.dispatchEvent(new CustomEvent("film:waiting", { detail: video.id }));
  }

  updateInfo() {
    const { videos } = this;
    const running = videos.filter((v) => !hasEnded(v));
    const ready = videos.filter((v) => v.status === "completed").length;
    const label = !videos.length ? "These clips are not here: deleted, or another user's." : running.length ? `${ready} of ${videos.length} ready` : ready === videos.length ? `${ready} variations are ready` : `${ready} of ${videos.length} ready, the others stopped or failed`;
    this.setLabel(label);
    const etas = running.map((v) => v.eta).filter(Boolean).sort((a, b) => b.seconds - a.seconds);
    this.info.querySelector(".eta").textContent = etas.length ? `${formatEta(etas[0])} left` : "";
    const percent = videos.reduce((sum, v) => sum + (hasEnded(v) ? 100 : v.progress), 0) / (videos.length || 1);
    this.info.querySelector("progress").value = percent;
    this.info.querySelector(".prompt").textContent = videos[0]?.prompt ?? "";
    this.button("stop").hidden = !running.length;
    this.button("retry").hidden = !videos.some((v) => v.status === "failed");
    showInTitle(running.length ? `${Math.floor(percent)} %` : this.wasRunning ? "Ready" : "");
    if (this.wasRunning && !running.length && videos.length) {
      if (videos.some((v) => v.error?.code !== "cancelled")) notifyDone(videos[0], `Your ${videos.length} variations: ${ready} ready`);
      notifyChanged(); // asks once more, and then there is nothing that runs
    }
    this.wasRunning = running.length > 0;
  }

  // Says each text once.
  setLabel(text) {
    const label = this.info.querySelector(".stage-label");
    if (label.textContent === text) return;
    if (label.textContent || this.videos.some((v) => !hasEnded(v))) announce(text);
    label.textContent = text;
  }

  button(action) { return this.info.querySelector(`[data-action=${action}]`); }

  showPaused() { this.button("pause").textContent = this.isPaused ? "Play all" : "Pause all"; }

  runAction(button) {
    const { action, id } = button.dataset;
    if (action === "pick") return openClip(id);
    if (action === "stop") return this.changeJobs("cancel", (v) => !hasEnded(v));
    if (action === "retry") return this.changeJobs("retry", (v) => v.status === "failed");
    if (action !== "pause") return;
    this.isPaused = !this.isPaused;
    for (const tile of this.tiles) tile.picture.setPaused(this.isPaused);
    this.showPaused();
  }

  // Escape in the viewer, in the prompt or on the buttons below it.
  stopByKey(event) {
    const isHere = event.target === document.body || event.target.closest("film-viewer, #prompt, #make-row");
    if (event.key !== "Escape" || event.isComposing || !isHere || this.button("stop").hidden) return;
    this.changeJobs("cancel", (v) => !hasEnded(v));
  }

  // Those that wait are stopped before the one that runs: none of them begins in between.
  async changeJobs(change, isMeant) {
    const meant = this.videos.filter(isMeant).sort((a, b) => (b.position ?? 0) - (a.position ?? 0));
    const errors = [];
    for (const { id } of meant) await fetchJson(`/v1/videos/${id}/${change}`, { method: "POST" }).catch((error) => errors.push(error));
    if (errors.length) showRefusal(errors[0].message);
    notifyChanged();
  }
}
