// The clip that is open: its states, its player and its buttons.

import {
  hasEnded, hasSound, contentUrl, escapeHtml, formatEta, ApiError, fetchJson, announce, openVariations,
  showConnectionLost, showRefusal, getOpenClipId, getVariationIds, openClip, notifyChanged, serverUrl, soundIcon,
} from "./api.js";
import { deleteLater } from "./deletion.js";
import { downloadMenuHtml } from "./downloads.js";
import { editForm, makeClip } from "./form.js";
import { samplePrompts, surprisePrompt } from "./ideas.js";
import { askToNotify, notifyButtonHtml, notifyDone, showInTitle } from "./notify.js";
import { ClipScreen } from "./screen.js";
import { isCancelled, stageText } from "./states.js";
import { deleteOthers, VariationGrid, variationButtonsHtml } from "./variations.js";

const ERROR_HINTS = {
  disk_full: "Free some space on the server's disk, then press Continue.",
  hub_unreachable: "When the network is back, press Continue: complete files are kept.",
  hub_refused: "Choose another model, or ask who runs this server.",
  out_of_memory: "Try a smaller size or a shorter clip.",
  checkpoint_missing: "Choose a model whose weights are on this machine, such as pocket.",
  checkpoint_damaged: "Install the model again, or choose another.",
  not_finite: "Try the model's own number of steps, or another size.",
  worker_died: "It may have run out of memory: try a smaller size or a shorter clip.",
  gpu_quota_used: "Sign in to the Space's site for more, try a shorter clip, or press Continue later.",
  gpu_too_long: "Try a shorter clip or a smaller size.",
  gpu_busy: "Press Continue to try once more.",
  gpu_lost: "Press Continue: it starts from the last saved step.",
  internal: "Press Continue to try once more; the server's log says more.",
};
// The listener's choice, for every clip and the next visit; a browser without storage forgets it.
const SOUND_KEY = "film:sound";

function loadSoundChoice() {
  try {
    const { muted, volume } = JSON.parse(localStorage.getItem(SOUND_KEY));
    if (volume >= 0 && volume <= 1) return { muted: Boolean(muted), volume: Number(volume) };
  } catch { /* none, or not ours */ }
  return { muted: true, volume: 1 };
}

function saveSoundChoice({ muted, volume }) {
  try { localStorage.setItem(SOUND_KEY, JSON.stringify({ muted, volume })); } catch { /* no storage */ }
}

export class ClipViewer extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Clip" tabindex="-1"><div class="frame"><div class="screen"></div>
      <button class="film-button sound" hidden></button></div>
      <div class="info"></div></section>`;
    this.screen = this.querySelector(".screen");
    this.soundButton = this.querySelector(".sound");
    this.soundButton.addEventListener("click", () => this.toggleSound());
    this.info = this.querySelector(".info");
    this.picture = new ClipScreen(this.screen, {
      messageHtml: (text) => `<div class="message"><h2>${text}</h2></div>`,
      setUpPlayer: (player, mode) => this.setUpPlayer(player, mode),
    });
    this.onOpen = (event) => this.follow(event.detail);
    document.addEventListener("film:open", this.onOpen);
    this.onModel = () => this.showSamples();
    document.addEventListener("film:model", this.onModel);
    this.onChange = () => this.updateVariationButtons();
    document.addEventListener("film:changed", this.onChange);
    this.addEventListener("click", (event) => this.runAction(event.target.closest("[data-action]")));
    this.countdown = setInterval(() => this.updateCountdown(), 1000);
    this.follow(getOpenClipId());
  }

  disconnectedCallback() {
    document.removeEventListener("film:open", this.onOpen);
    document.removeEventListener("film:model", this.onModel);
    document.removeEventListener("film:changed", this.onChange);
    clearInterval(this.countdown);
    this.unsubscribe();
  }

  unsubscribe() {
    this.source?.close();
    clearTimeout(this.retryTimer);
    this.source = null;
    this.grid?.close();
    this.grid = null;
  }

  follow(id) {
    const hadFocus = this.grid && this.contains(document.activeElement);
    this.unsubscribe();
    this.video = null;
    this.picture.mode = null;
    this.isRunning = false;
    this.clipId = id;
    this.isAnnounced = false;
    this.wasSeenRunning = false;
    this.state = null;
    showInTitle("");
    if (!id && getVariationIds().length) return this.showGrid();
    if (!id) return this.showPlaceholder();
    if (hadFocus) this.firstElementChild.focus({ preventScroll: true }); // the tile is gone
    this.showMessage("");
    this.info.innerHTML = "";
    const source = new EventSource(serverUrl(`/v1/videos/${id}/events`));
    const update = (event) => { showConnectionLost(false); this.render(JSON.parse(event.data)); };
    for (const kind of ["position", "progress", "preview"]) source.addEventListener(kind, update);
    source.addEventListener("done", (event) => { source.close(); update(event); notifyChanged(); });
    source.onerror = () => {
      if (source.readyState === EventSource.CONNECTING) showConnectionLost(true);
      if (source.readyState === EventSource.CLOSED) this.recover(id);
    };
    this.source = source;
  }

  // EventSource gives up after an HTTP error, which a server that is starting may have answered.
  async recover(id) {
    try {
      const video = await fetchJson(`/v1/videos/${id}`);
      this.render(video);
      if (!hasEnded(video)) this.retryTimer = setTimeout(() => this.clipId === id && this.follow(id), 1000);
    } catch (error) {
      if (error instanceof ApiError && error.status < 500) return this.showNotFound(error);
      this.retryTimer = setTimeout(() => this.clipId === id && this.follow(id), 1500);
    }
  }

  showGrid() {
    this.soundButton.hidden = true;
    this.grid = new VariationGrid(this.screen, this.info, getVariationIds());
  }

  showPlaceholder() {
    this.soundButton.hidden = true;
    this.screen.innerHTML = `<div class="message"><h2>No clip yet</h2><p>Enter a prompt and press Make clip.</p></div>`;
    this.showSamples();
  }

  showSamples() {
    if (this.clipId || this.grid) return;
    this.info.innerHTML = `<p class="small">Or make one of these:</p>
      <div class="film-row samples">${samplePrompts().map((s) => `<button class="film-button" data-action="sample" data-text="${escapeHtml(s)}">${escapeHtml(s)}</button>`).join("")}
      <button class="film-button" data-action="surprise">Surprise me</button></div>`;
  }

  showNotFound(error) {
    this.soundButton.hidden = true;
    this.screen.innerHTML = `<div class="message"><h2>Clip not found</h2>
      <p>${error.status === 401 ? "Sign in with the API key that it belongs to." : "It was deleted, or it belongs to another user."}</p>
      <button class="film-button" data-action="close">Make a new clip</button></div>`;
    this.info.innerHTML = "";
  }

  render(video) {
    if (video.id !== this.clipId) return;
    this.video = video;
    this.updatedAt = performance.now();
    this.picture.update(video);
    this.tellState(video);
    if (hasEnded(video)) {
      this.info.innerHTML = this.finishedHtml(video);
      this.isRunning = false;
      return;
    }
    // Created once and then updated: a button that is replaced during a click is not clicked.
    if (!this.isRunning) this.info.innerHTML = this.runningHtml(video);
    this.isRunning = true;
    // On ZeroGPU a queued clip is started by an event of the visitor's page, whose GPU time it uses.
    if (video.status === "queued" && !this.isAnnounced) document.dispatchEvent(new CustomEvent("film:waiting", { detail: video.id }));
    this.isAnnounced = video.status === "queued";
    this.querySelector(".stage-label").textContent = this.positionText(video);
    this.querySelector(".eta").textContent = this.remainingText(video);
    this.querySelector("progress").value = video.stage === "fetch" ? (100 * video.step) / video.steps : video.progress;
    this.querySelector(".small").innerHTML = this.settingsHtml(video);
  }

  // Says each stage once: the time that is left changes every second.
  tellState(video) {
    const state = video.status === "completed" ? "The clip is ready." : isCancelled(video) ? "Stopped." : video.status === "failed" ? `Failed. ${video.error.message}` : video.status === "queued" ? "Waiting in the queue." : stageText(video).split(",")[0];
    const hasRun = this.wasSeenRunning;
    this.wasSeenRunning ||= !hasEnded(video);
    showInTitle(hasEnded(video) ? (hasRun ? (video.status === "completed" ? "Ready" : "Failed") : "") : `${video.progress} %`);
    if (state === this.state) return;
    this.state = state;
    if (hasRun || !hasEnded(video)) announce(state);
    if (hasRun && hasEnded(video) && !isCancelled(video)) notifyDone(video);
  }

  showMessage(text) { this.picture.showMessage(text); }

  // player: null where no video is shown.
  setUpPlayer(player, mode) {
    if (!player) {
      this.soundButton.hidden = true;
      return;
    }
    const { muted, volume } = hasSound(this.video) ? loadSoundChoice() : { muted: true, volume: 1 };
    Object.assign(player, { muted, volume, controls: mode === "complete" });
    player.setAttribute("aria-label", this.video.prompt);
    if (hasSound(this.video)) player.addEventListener("volumechange", () => this.onVolumeChange(player));
    this.showSoundButton(player);
  }

  onVolumeChange(player) {
    if (player !== this.screen.lastElementChild) return;
    if (!player.isMutedByBrowser) saveSoundChoice(player);
    player.isMutedByBrowser = false;
    this.showSoundButton(player);
  }

  showSoundButton(player) {
    const isMuted = player.muted || player.volume === 0;
    this.soundButton.hidden = !hasSound(this.video);
    this.soundButton.innerHTML = `${soundIcon(isMuted)} ${isMuted ? "Unmute" : "Mute"}`;
  }

  toggleSound() {
    const player = this.screen.querySelector("video:last-of-type");
    if (!player) return;
    const isMuted = player.muted || player.volume === 0;
    if (player.volume === 0) player.volume = 1;
    player.muted = !isMuted;
  }

  // Stop stands at the end of the first line, where no button of a clip that has ended ever is: who
  // presses it twice presses nothing else.
  runningHtml(video) {
    return `<div class="status-line"><span class="status-text"><span class="stage-label"></span> <span class="eta"></span></span>
      <button class="film-button" data-action="stop">Stop</button></div>
      <progress max="100" aria-label="Progress"></progress>
      ${this.promptHtml(video)}<p class="small"></p>${this.variationsHtml(video)}${notifyButtonHtml()}`;
  }

  promptHtml(video) {
    const [first] = video.requested.enhanced_prompts ?? [];
    const used = first && first.text !== video.prompt ? `<p class="used-prompt">Used: ${escapeHtml(first.text)}</p>` : "";
    return `<p class="prompt">${escapeHtml(video.prompt)}</p>${used}`;
  }

  positionText(video) {
    if (video.status !== "queued") return stageText(video);
    return video.position > 1 ? `Position ${video.position} in the queue` : "Next in the queue";
  }

  remainingText(video) {
    if (!video.eta) return "";
    const elapsed = (performance.now() - this.updatedAt) / 1000;
    const remaining = Object.fromEntries(Object.entries(video.eta).map(([k, s]) => [k, Math.max(0.5, s - elapsed)]));
    return video.status === "queued" ? `done in ${formatEta(remaining)}` : `${formatEta(remaining)} left`;
  }

  updateCountdown() {
    const eta = this.querySelector(".eta");
    if (eta && this.video && !hasEnded(this.video)) eta.textContent = this.remainingText(this.video);
  }

  settingsHtml(video) {
    const effective = video.effective;
    const frames = effective ? `${effective.frames} frames at ${effective.fps} a second` : `${video.seconds} s`;
    const steps = effective ? `, ${effective.steps + (effective.refine_sigmas?.length ?? 0)} steps` : "";
    return `${escapeHtml(video.model)}, ${escapeHtml(video.size)}, ${frames}${steps}, seed ${video.seed}${video.draft ? ", draft" : ""}${hasSound(video) ? ", with sound" : ""}`;
  }

  finishedHtml(video) {
    if (video.status === "failed") return this.failedHtml(video);
    const computedSeconds = video.stages.filter((s) => !s.reused).reduce((sum, s) => sum + s.seconds, 0);
    return `<div class="status-line"><span class="stage-label">Ready</span></div>
      <div class="film-row actions">
        <a class="film-button is-strong" href="${contentUrl(video)}" download>Download</a>
        ${downloadMenuHtml(video)}
        <button class="film-button" data-action="reuse">Use settings</button>
        <button class="film-button" data-action="extend">Extend</button>
        ${video.draft ? `<button class="film-button" data-action="refine">Refine draft</button>` : ""}
        <button class="film-button" data-action="link">Copy link</button>
        <button class="film-button" data-action="delete">Delete</button></div>
      ${this.variationsHtml(video)}${this.promptHtml(video)}
      <p class="small">${this.settingsHtml(video)}, computed in ${computedSeconds.toFixed(1)} s</p>${this.changesHtml(video)}`;
  }

  failedHtml(video) {
    const hint = ERROR_HINTS[video.error.code] ?? "Change the settings, or press Continue to try again.";
    return `<div class="status-line"><span class="stage-label">${isCancelled(video) ? "Stopped; finished stages are kept" : "Failed"}</span></div>
      <div class="film-row actions"><button class="film-button is-strong" data-action="retry">Continue</button>
        <button class="film-button" data-action="reuse">Use settings</button>
        <button class="film-button" data-action="delete">Delete</button></div>
      ${this.variationsHtml(video)}${isCancelled(video) ? "" : `<p class="error">${escapeHtml(video.error.message)} ${escapeHtml(hint)}</p>`}
      ${this.promptHtml(video)}<p class="small">${this.settingsHtml(video)}</p>`;
  }

  // Of a clip that was chosen from several: the way back to them.
  variationsHtml(video) {
    const buttons = variationButtonsHtml(video.id);
    return `<div class="film-row variations" ${buttons ? "" : "hidden"}>${buttons}</div>`;
  }

  updateVariationButtons() {
    const row = this.querySelector(".variations");
    const buttons = this.video ? variationButtonsHtml(this.video.id) : "";
    if (!row || row.hidden === !buttons) return;
    row.hidden = !buttons;
    row.innerHTML = buttons;
  }

  changesHtml(video) {
    const changes = video.effective?.changes ?? [];
    if (!changes.length) return "";
    return `<details><summary>Changes from your settings: ${changes.length}</summary><ul>${changes.map((c) => `<li>${escapeHtml(c.reason)}</li>`).join("")}</ul></details>`;
  }

  async runAction(button) {
    if (!button || button.tagName === "A") return;
    if (this.grid) return this.grid.runAction(button);
    const video = this.video;
    const action = button.dataset.action;
    if (action === "sample") return makeClip({ prompt: button.dataset.text });
    if (action === "surprise") return makeClip({ prompt: surprisePrompt() });
    if (action === "close") return openClip(null);
    if (action === "reuse") return editForm(settingsOf(video));
    if (action === "extend") return editForm({ ...settingsOf(video), extend_id: video.id });
    if (action === "delete") return deleteLater([video.id], true);
    if (action === "notify") return askToNotify(button);
    if (action === "delete-others") return deleteOthers(video.id);
    if (action === "variations") return this.returnToGrid(video.id);
    if (action === "link") return copyLink(button);
    button.disabled = true;
    try {
      await this.changeJob(action, video.id);
    } catch (error) {
      button.disabled = false;
      showRefusal(error.message);
    }
    notifyChanged();
  }

  returnToGrid(id) {
    openVariations(getVariationIds());
    this.grid?.focusTile(id);
  }

  async changeJob(action, id) {
    if (action === "stop") {
      await fetchJson(`/v1/videos/${id}/cancel`, { method: "POST" });
      if (!this.source || this.source.readyState === EventSource.CLOSED) this.follow(id);
    } else if (action === "retry") {
      await fetchJson(`/v1/videos/${id}/retry`, { method: "POST" });
      this.follow(id);
    } else if (action === "refine") {
      openClip((await fetchJson(`/v1/videos/${id}/refine`, { method: "POST" })).id);
    }
  }
}

// Without HTTPS, on another address than this machine's, a page may not write to the clipboard: the
// link is shown, selected.
async function copyLink(button) {
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
    announce("The link is copied.");
  } catch {
    const field = document.createElement("input");
    Object.assign(field, { className: "film-link", readOnly: true, value: location.href });
    field.setAttribute("aria-label", "Link to this clip");
    button.replaceWith(field);
    field.select();
  }
}

// All settings that a clip was made with, so that the form makes the same again; of an added part
// only what was asked, since its frames count those of the clip before it, too.
function settingsOf(video) {
  const { requested, effective } = video;
  const made = effective && !requested.extend ? { frames: effective.frames, fps: effective.fps, width: effective.width, height: effective.height } : {};
  const settings = { ...requested, ...made, prompt: video.prompt, model: video.model, seed: video.seed };
  // The prompts are those that the model has read: with the same seed they make the same clip.
  const [first, ...others] = (settings.enhanced_prompts ?? []).map((prompt) => prompt.text);
  return first ? { ...settings, prompt: first, extra_prompts: others } : settings;
}
