// The live parts of the page: header, viewer, gallery, queue. They show jobs of the API and hold no
// state of their own: a page that is closed loses nothing, and any number of them may be open.

const STAGE_LABELS = {
  fetch: (v) => `Downloading the weights, ${formatGigabytes(v.step)} of ${formatGigabytes(v.steps)} GB`,
  load: () => "Loading the model",
  encode: () => "Encoding the prompt",
  denoise: (v) => `Denoising, step ${v.step} of ${v.steps}`,
  upsample: () => "Upsampling",
  refine: (v) => `Refining, step ${v.step} of ${v.steps}`,
  decode_audio: () => "Decoding the sound",
  decode: (v) => `Decoding frames, ${v.step} of ${v.steps}`,
  mux: () => "Writing the file",
};
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
const SAMPLE_PROMPTS = ["a red star bouncing at sunset", "a panda spinning on green grass", "a rocket rising in a starry night"];
const hasEnded = (v) => v.status === "completed" || v.status === "failed";
const hasSound = (v) => Boolean(v.effective?.audio);
const contentUrl = (v, query = "") => `/v1/videos/${v.id}/content${query}`;

// Prompts are text of other people: escaped before they become HTML.
const escapeHtml = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const formatSeconds = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);
const formatGigabytes = (kilobytes) => (kilobytes / 1e6).toFixed(1);
const formatEta = (eta) => `about ${formatSeconds(eta.seconds)} (${formatSeconds(eta.low)} to ${formatSeconds(eta.high)})`;

// The listener's choice, for every clip and the next visit; a browser without storage forgets it.
const SOUND_KEY = "film:sound";
const SPEAKER = `<path d="M4 9v6h4l5 4V5L8 9z" fill="currentColor"/>`;
const soundIcon = (isMuted) => `<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round">${SPEAKER}
  <path d="${isMuted ? "M17 9.5l5 5m0-5l-5 5" : "M16.5 9a4.5 4.5 0 0 1 0 6M19 6.5a8 8 0 0 1 0 11"}"/></svg>`;

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

class ApiError extends Error {
  constructor(error, status) { super(error.message); Object.assign(this, { code: error.code, status }); }
}

async function fetchJson(path, options = {}) {
  const body = options.json ? { body: JSON.stringify(options.json), headers: { "content-type": "application/json" } } : {};
  let response;
  try {
    response = await fetch(path, { ...options, ...body });
  } catch (error) {
    showConnectionLost(true);
    throw error;
  }
  showConnectionLost(false);
  const result = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(result?.error ?? { message: `The server answered ${response.status}.` }, response.status);
  return result;
}

function showConnectionLost(isLost) {
  let note = document.getElementById("film-offline");
  if (!note) {
    if (!isLost) return;
    note = document.createElement("div");
    note.id = "film-offline";
    note.setAttribute("role", "status");
    note.textContent = "No connection to the server; trying again.";
    document.body.append(note);
  }
  note.hidden = !isLost;
}

// The open clip is part of the URL: a reload or another device shows the same.
const getOpenClipId = () => new URLSearchParams(location.search).get("clip");
function openClip(id) {
  const url = new URL(location.href);
  if (id) url.searchParams.set("clip", id); else url.searchParams.delete("clip");
  history.pushState(null, "", url);
  document.dispatchEvent(new CustomEvent("film:open", { detail: id }));
}
window.addEventListener("popstate", () => document.dispatchEvent(new CustomEvent("film:open", { detail: getOpenClipId() })));
const notifyChanged = () => document.dispatchEvent(new CustomEvent("film:changed"));
// Fills Gradio's form with all settings of a clip, or with some of them.
const fillForm = (settings) => document.dispatchEvent(new CustomEvent("film:fill", { detail: settings }));

class ClipViewer extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Clip"><div class="frame"><div class="screen"></div>
      <button class="film-button sound" hidden></button></div>
      <div class="info" aria-live="polite"></div></section>`;
    this.screen = this.querySelector(".screen");
    this.soundButton = this.querySelector(".sound");
    this.soundButton.addEventListener("click", () => this.toggleSound());
    this.info = this.querySelector(".info");
    this.onOpen = (event) => this.follow(event.detail);
    document.addEventListener("film:open", this.onOpen);
    this.addEventListener("click", (event) => this.runAction(event.target.closest("[data-action]")));
    this.countdown = setInterval(() => this.updateCountdown(), 1000);
    this.follow(getOpenClipId());
  }

  disconnectedCallback() {
    document.removeEventListener("film:open", this.onOpen);
    clearInterval(this.countdown);
    this.unsubscribe();
  }

  unsubscribe() {
    this.source?.close();
    clearTimeout(this.retryTimer);
    this.source = null;
  }

  follow(id) {
    this.unsubscribe();
    this.video = null;
    this.mode = null;
    this.isRunning = false;
    this.id = id;
    this.isAnnounced = false;
    if (!id) return this.showPlaceholder();
    this.showMessage("");
    this.info.innerHTML = "";
    const source = new EventSource(`/v1/videos/${id}/events`);
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
      if (!hasEnded(video)) this.retryTimer = setTimeout(() => this.id === id && this.follow(id), 1000);
    } catch (error) {
      if (error instanceof ApiError && error.status < 500) return this.showNotFound(error);
      this.retryTimer = setTimeout(() => this.id === id && this.follow(id), 1500);
    }
  }

  showPlaceholder() {
    this.soundButton.hidden = true;
    this.screen.innerHTML = `<div class="message"><h2>No clip yet</h2>
      <p>Enter a prompt and press Make clip, or start from one of these.</p>
      <div class="film-row" style="justify-content:center">${SAMPLE_PROMPTS.map((s) => `<button class="film-button" data-action="sample" data-text="${escapeHtml(s)}">${escapeHtml(s)}</button>`).join("")}</div></div>`;
    this.info.innerHTML = "";
  }

  showNotFound(error) {
    this.soundButton.hidden = true;
    this.screen.innerHTML = `<div class="message"><h2>Clip not found</h2>
      <p>${error.status === 401 ? "Sign in with the API key that it belongs to." : "It was deleted, or it belongs to another user."}</p>
      <button class="film-button" data-action="close">Make a new clip</button></div>`;
    this.info.innerHTML = "";
  }

  render(video) {
    if (video.id !== this.id) return;
    this.video = video;
    this.updatedAt = performance.now();
    this.updateScreen(video);
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

  // Shows the clip, the growing clip, a preview, or a message.
  updateScreen(video) {
    if (video.status === "completed") return this.showVideo(contentUrl(video), "complete");
    if (video.status === "failed") return this.showMessage(video.error.code === "cancelled" ? "Stopped" : "Failed");
    if (video.stage === "decode" && video.step > 0) return this.showVideo(contentUrl(video, "?stream=true"), "growing");
    if (video.preview_url) return this.showPreview(`${video.preview_url}?${video.stage}${video.step}`);
    if (this.mode !== "growing") this.showMessage(video.status === "queued" ? "Waiting" : "Starting");
  }

  showMessage(text) {
    this.mode = "message";
    this.soundButton.hidden = true;
    this.screen.innerHTML = `<div class="message"><h2>${text}</h2></div>`;
  }

  // One at a time: a preview that is loading is not replaced by the next one.
  showPreview(url) {
    if (this.mode === "growing") return;
    this.soundButton.hidden = true;
    if (this.mode !== "preview") this.screen.innerHTML = `<img class="is-preview" alt="Preview of the clip">`;
    this.mode = "preview";
    const picture = this.screen.querySelector("img");
    picture.onload = picture.onerror = (event) => {
      picture.style.opacity = event.type === "load" ? 1 : 0;
      if (picture.getAttribute("src") !== url) picture.src = url;
    };
    if (picture.complete) picture.src = url;
  }

  showVideo(url, mode) {
    if (this.mode === mode) return;
    const before = this.screen.querySelector("video");
    const player = document.createElement("video");
    const { muted, volume } = hasSound(this.video) ? loadSoundChoice() : { muted: true, volume: 1 };
    Object.assign(player, { src: url, muted, volume, autoplay: true, playsInline: true, loop: mode === "complete", controls: mode === "complete" });
    if (hasSound(this.video)) player.addEventListener("volumechange", () => this.onVolumeChange(player));
    player.setAttribute("aria-label", this.video.prompt);
    if (mode === "growing") player.addEventListener("error", () => player.remove(), { once: true });
    if (before && this.mode === "growing") player.currentTime = before.currentTime;
    // The previous picture stays until the first frame is loaded.
    player.className = "is-loading";
    player.addEventListener("loadeddata", () => {
      player.className = "";
      startPlayer(player); // browsers start only visible videos by themselves
      // Only older ones: the growing clip may load after the complete one was added.
      while (player.previousElementSibling) player.previousElementSibling.remove();
    }, { once: true });
    this.screen.append(player);
    this.mode = mode;
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

  runningHtml(video) {
    return `<div class="status-line"><span class="stage-label"></span><span class="eta"></span>
      <span class="film-row"><button class="film-button" data-action="stop">Stop</button></span></div>
      <progress max="100" aria-label="Progress"></progress>
      <p class="prompt">${escapeHtml(video.prompt)}</p><p class="small"></p>`;
  }

  positionText(video) {
    if (video.status !== "queued") return (STAGE_LABELS[video.stage] ?? (() => "Starting"))(video);
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
    return `<div class="status-line"><div class="film-row" style="margin:0">
        <a class="film-button is-strong" href="${contentUrl(video)}" download="${video.id}.mp4">Download</a>
        <button class="film-button" data-action="link">Copy link</button>
        <button class="film-button" data-action="reuse">Use settings</button>
        ${video.draft ? `<button class="film-button" data-action="refine">Refine draft</button>` : ""}
        <button class="film-button" data-action="extend">Extend</button>
        <button class="film-button" data-action="delete">Delete</button></div></div>
      <p class="prompt">${escapeHtml(video.prompt)}</p>
      <p class="small">${this.settingsHtml(video)}, computed in ${computedSeconds.toFixed(1)} s</p>${this.changesHtml(video)}`;
  }

  failedHtml(video) {
    const isCancelled = video.error.code === "cancelled";
    const hint = ERROR_HINTS[video.error.code] ?? "Change the settings, or press Continue to try again.";
    return `<div class="status-line"><span class="stage-label">${isCancelled ? "Stopped; finished stages are kept" : "Failed"}</span>
        <span class="film-row"><button class="film-button is-strong" data-action="retry">Continue</button>
        <button class="film-button" data-action="reuse">Use settings</button>
        <button class="film-button" data-action="delete">Delete</button></span></div>
      ${isCancelled ? "" : `<p class="error">${escapeHtml(video.error.message)} ${escapeHtml(hint)}</p>`}
      <p class="prompt">${escapeHtml(video.prompt)}</p><p class="small">${this.settingsHtml(video)}</p>`;
  }

  changesHtml(video) {
    const changes = video.effective?.changes ?? [];
    if (!changes.length) return "";
    return `<details><summary>Changes from your settings: ${changes.length}</summary><ul>${changes.map((c) => `<li>${escapeHtml(c.reason)}</li>`).join("")}</ul></details>`;
  }

  async runAction(button) {
    if (!button) return;
    const video = this.video;
    const action = button.dataset.action;
    if (action === "sample") return fillForm({ prompt: button.dataset.text });
    if (action === "close") return openClip(null);
    if (action === "reuse") return fillForm(settingsOf(video));
    if (action === "extend") return fillForm({ ...settingsOf(video), extend_id: video.id });
    if (action === "link") {
      await navigator.clipboard.writeText(location.href).catch(() => {});
      button.textContent = "Copied";
      return;
    }
    button.disabled = true;
    try {
      if (action === "delete") {
        await fetchJson(`/v1/videos/${video.id}`, { method: "DELETE" });
        openClip(null);
      } else if (action === "stop") {
        await fetchJson(`/v1/videos/${video.id}/cancel`, { method: "POST" });
        if (!this.source || this.source.readyState === EventSource.CLOSED) this.follow(video.id);
      } else if (action === "retry") {
        await fetchJson(`/v1/videos/${video.id}/retry`, { method: "POST" });
        this.follow(video.id);
      } else if (action === "refine") {
        openClip((await fetchJson(`/v1/videos/${video.id}/refine`, { method: "POST" })).id);
      }
    } catch (error) {
      button.disabled = false;
      this.info.insertAdjacentHTML("beforeend", `<p class="error" role="alert">${escapeHtml(error.message)}</p>`);
    }
    notifyChanged();
  }
}

function settingsOf(video) {
  return { ...video.requested, prompt: video.prompt, model: video.model, seed: video.seed };
}

class Gallery extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Gallery"><div class="head"><h2>Your clips</h2>
      <input type="search" placeholder="Search prompts" aria-label="Search prompts"></div>
      <div class="grid"></div><p class="no-results" hidden></p>
      <button class="film-button show-more" hidden>Show more</button></section>`;
    this.grid = this.querySelector(".grid");
    this.pages = 1;
    this.isPersistent = true;
    getSession().then((session) => this.showStorageWarning(session)).catch(() => {});
    this.cards = new Map();
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
    let more = false;
    for (let page = 0; page < this.pages; page += 1) {
      const query = new URLSearchParams({ limit: 24, search: this.search.value });
      if (videos.length) query.set("after", videos.at(-1).id);
      const result = await fetchJson(`/v1/videos?${query}`);
      videos.push(...result.data);
      more = result.has_more;
      if (!more) break;
    }
    return [videos, more];
  }

  render(videos, more) {
    const now = new Set(videos.map((v) => v.id));
    for (const [id, card] of this.cards) if (!now.has(id)) { card.remove(); this.cards.delete(id); }
    for (const [i, video] of videos.entries()) {
      const card = this.cards.get(video.id) ?? this.createCard(video);
      this.updateCard(card, video);
      if (this.grid.children[i] !== card) this.grid.insertBefore(card, this.grid.children[i] ?? null);
    }
    const noResults = this.querySelector(".no-results");
    noResults.hidden = videos.length > 0;
    noResults.textContent = this.search.value ? "No prompt contains this text." : `No clips yet.${this.isPersistent ? " Clips are kept over restarts of the server." : ""}`;
    this.querySelector(".show-more").hidden = !more;
  }

  createCard(video) {
    const card = document.createElement("button");
    card.className = "card";
    card.innerHTML = `<div class="poster"></div><div class="name">${escapeHtml(video.prompt)}</div><div class="small"></div>`;
    card.addEventListener("click", () => { openClip(video.id); document.querySelector("film-viewer").scrollIntoView({ block: "nearest", behavior: "smooth" }); });
    card.addEventListener("pointerenter", () => this.previewOnHover(card, true));
    card.addEventListener("pointerleave", () => this.previewOnHover(card, false));
    this.cards.set(video.id, card);
    return card;
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
    }
    card.querySelector(".small").textContent = `${video.size}, ${video.seconds} s, seed ${video.seed}${video.draft ? ", draft" : ""}`;
  }

  previewOnHover(card, isHovered) {
    const poster = card.querySelector(".poster");
    poster.querySelector("video")?.remove();
    if (!isHovered || card.video.status !== "completed") return;
    const player = Object.assign(document.createElement("video"), { src: contentUrl(card.video), muted: true, loop: true, autoplay: true, playsInline: true });
    poster.append(player);
  }
}

class QueuePanel extends HTMLElement {
  connectedCallback() { this.poll(); this.onChange = () => this.poll(); document.addEventListener("film:changed", this.onChange); }
  disconnectedCallback() { document.removeEventListener("film:changed", this.onChange); clearTimeout(this.pollTimer); }

  async poll() {
    clearTimeout(this.pollTimer);
    try {
      const session = await getSession();
      if (!session.admin) return;
      if (!document.hidden && !this.contains(document.activeElement)) this.render(await fetchJson("/v1/queue"));
    } catch { /* shown as a lost connection */ }
    this.pollTimer = setTimeout(() => this.poll(), 2500);
  }

  render(queue) {
    const workers = queue.workers.map((w) => `${escapeHtml(w.id)}${w.model ? ` has ${escapeHtml(w.model)}` : ""}, ${(w.peak_bytes / 1e9).toFixed(1)} GB peak`);
    document.dispatchEvent(new CustomEvent("film:queue", { detail: queue }));
    this.innerHTML = `<section aria-label="Queue"><div class="head"><h2>Queue</h2>
      <span class="small">${workers.length ? workers.join("; ") : "No worker is running: clips wait until one starts."}</span></div>
      ${queue.jobs.length ? `<div class="scroll"><table><thead><tr><th>Position</th><th>Owner</th><th>Prompt</th><th>ETA</th><th>Priority</th><th><span class="film-visually-hidden">Stop</span></th></tr></thead>
      <tbody>${queue.jobs.map((j) => this.rowHtml(j)).join("")}</tbody></table></div>` : `<p class="small">The queue is empty.</p>`}</section>`;
    for (const select of this.querySelectorAll("select")) select.addEventListener("change", () => this.updateJob(select.dataset.id, "priority", { priority: select.value }));
    for (const button of this.querySelectorAll("button")) button.addEventListener("click", () => this.updateJob(button.dataset.id, "cancel"));
  }

  rowHtml({ owner, video }) {
    const priorities = ["high", "normal", "low"].map((c) => `<option ${c === video.priority ? "selected" : ""}>${c}</option>`).join("");
    return `<tr><td>${video.position ?? `${video.progress} %`}</td><td>${escapeHtml(owner)}</td>
      <td class="prompt" title="${escapeHtml(video.prompt)}">${escapeHtml(video.prompt)}</td><td>${video.eta ? formatEta(video.eta) : ""}</td>
      <td><select data-id="${video.id}" aria-label="Priority" ${video.status === "queued" ? "" : "disabled"}>${priorities}</select></td>
      <td><button class="film-button" data-id="${video.id}">Stop</button></td></tr>`;
  }

  async updateJob(id, action, json) {
    document.activeElement?.blur();
    await fetchJson(`/v1/videos/${id}/${action}`, { method: "POST", json }).catch(() => {});
    notifyChanged();
  }
}

let sessionRequest = null;
const getSession = () => (sessionRequest ??= fetchJson("/session").catch((error) => { sessionRequest = null; throw error; }));

class HeaderBar extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<div class="logo"><svg viewBox="0 0 32 32" aria-hidden="true"><rect x="2" y="5" width="28" height="22" rx="5" fill="var(--primary-600)"/><path d="M13 11.5v9l7.5-4.5z" fill="#fff"/><g fill="#fff" opacity=".75"><rect x="5" y="8" width="2.6" height="3" rx="1"/><rect x="5" y="14.5" width="2.6" height="3" rx="1"/><rect x="5" y="21" width="2.6" height="3" rx="1"/><rect x="24.4" y="8" width="2.6" height="3" rx="1"/><rect x="24.4" y="14.5" width="2.6" height="3" rx="1"/><rect x="24.4" y="21" width="2.6" height="3" rx="1"/></g></svg>filmlet</div>
      <span class="queue-summary" role="status"></span><button class="film-button" hidden>Sign out</button>`;
    this.querySelector("button").addEventListener("click", async () => { await fetchJson("/session", { method: "DELETE" }); location.reload(); });
    document.addEventListener("film:queue", ({ detail }) => this.updateQueueSummary(detail));
    this.loadSession();
  }

  updateQueueSummary(queue) {
    const running = queue.jobs.filter((j) => j.video.status === "in_progress").length;
    const waiting = queue.jobs.length - running;
    this.querySelector(".queue-summary").textContent = queue.jobs.length ? `${running} running, ${waiting} queued` : queue.workers.length ? "Ready" : "No worker";
  }

  async loadSession() {
    try {
      const session = await getSession();
      const signOut = this.querySelector("button");
      signOut.hidden = !(session.uses_keys && session.name);
      signOut.title = session.name ?? "";
      if (session.needs_key) this.promptForKey();
    } catch { setTimeout(() => this.loadSession(), 1500); }
  }

  promptForKey() {
    const dialog = document.createElement("dialog");
    dialog.className = "film-sign-in";
    dialog.innerHTML = `<form method="dialog"><h2>Enter your API key</h2><p>This server needs a key. It starts with sk-, and this browser stores it as a cookie.</p>
      <input type="password" name="key" placeholder="sk-..." aria-label="Key" autocomplete="current-password" required>
      <p class="error" role="alert"></p><button class="film-button is-strong">Sign in</button></form>`;
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.querySelector("form").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await fetchJson("/session", { method: "POST", json: { key: dialog.querySelector("input").value } });
        location.reload();
      } catch (error) { dialog.querySelector(".error").textContent = error.message; }
    });
    document.body.append(dialog);
    dialog.showModal();
  }
}

customElements.define("film-header", HeaderBar);
customElements.define("film-viewer", ClipViewer);
customElements.define("film-gallery", Gallery);
customElements.define("film-queue", QueuePanel);

// Ctrl+Enter in the form submits it. Gradio mounts the form piece by piece: a press before the button
// exists takes effect when it does.
let isSubmitting = false;
async function submitForm() {
  if (isSubmitting) return;
  isSubmitting = true;
  (await waitForElement("#make")).click();
  isSubmitting = false;
}
function waitForElement(selector) {
  return new Promise((resolve) => {
    const check = () => {
      const element = document.querySelector(selector);
      if (!element) return;
      observer.disconnect();
      resolve(element);
    };
    const observer = new MutationObserver(check);
    observer.observe(document.body, { childList: true, subtree: true });
    check();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#form")) submitForm();
});
window.filmlet = { openClip: (id) => { if (id) { openClip(id); notifyChanged(); } } };
