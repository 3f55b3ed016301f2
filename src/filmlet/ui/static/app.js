// The live half of the page: the clip on the screen, the gallery, the queue. Everything here is a
// window on jobs of the API; closing it loses nothing, and any number of windows may look.

const WORDS = {
  fetch: (v) => `Fetching the weights, ${gigabytes(v.step)} of ${gigabytes(v.steps)} GB`,
  load: () => "Loading the model",
  encode: () => "Reading the sentence",
  denoise: (v) => `Drawing, step ${v.step} of ${v.steps}`,
  upsample: () => "Enlarging",
  refine: (v) => `Refining, step ${v.step} of ${v.steps}`,
  decode: (v) => `Developing frames, ${v.step} of ${v.steps}`,
  mux: () => "Finishing the file",
};
const TRY = {
  disk_full: "Free some space on the server's disk, then press Go on.",
  hub_unreachable: "When the network is back, press Go on: what came whole is kept.",
  hub_refused: "Choose another model, or ask who runs this server.",
  out_of_memory: "Try a smaller size or a shorter clip.",
  checkpoint_missing: "Choose a model whose weights are on this machine, such as pocket.",
  checkpoint_damaged: "Install the model again, or choose another.",
  not_finite: "Try the model's own number of steps, or another size.",
  worker_died: "It may have run out of memory: try a smaller size or a shorter clip.",
  gpu_quota_used: "Sign in to the Space's site for more, try a shorter clip, or press Go on later.",
  gpu_too_long: "Try a shorter clip or a smaller size.",
  gpu_busy: "Press Go on to try once more.",
  gpu_lost: "Press Go on: it continues from the last step that was kept.",
  internal: "Press Go on to try once more; the server's log says more.",
};
const SAMPLES = ["a red star bouncing at sunset", "a panda spinning on green grass", "a rocket rising in a starry night"];
const isOver = (v) => v.status === "completed" || v.status === "failed";
const content = (v, query = "") => `/v1/videos/${v.id}/content${query}`;

// Text into HTML: prompts are other people's words.
const safe = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const seconds = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);
const gigabytes = (kilobytes) => (kilobytes / 1e6).toFixed(1);
const band = (eta) => `about ${seconds(eta.seconds)} (${seconds(eta.low)} to ${seconds(eta.high)})`;

class Refused extends Error {
  constructor(error, status) { super(error.message); Object.assign(this, { code: error.code, status }); }
}

async function ask(path, options = {}) {
  const sent = options.json ? { body: JSON.stringify(options.json), headers: { "content-type": "application/json" } } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, ...sent });
  } catch (error) {
    lost(true);
    throw error;
  }
  lost(false);
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(told?.error ?? { message: `The server answered ${answer.status}.` }, answer.status);
  return told;
}

function lost(is) {
  let note = document.getElementById("film-lost");
  if (!note) {
    if (!is) return;
    note = document.createElement("div");
    note.id = "film-lost";
    note.setAttribute("role", "status");
    note.textContent = "The server does not answer; the page goes on when it does.";
    document.body.append(note);
  }
  note.hidden = !is;
}

// Which clip is on the screen is part of the address: a reload or another device shows the same.
const shown = () => new URLSearchParams(location.search).get("clip");
function show(id) {
  const url = new URL(location.href);
  if (id) url.searchParams.set("clip", id); else url.searchParams.delete("clip");
  history.pushState(null, "", url);
  document.dispatchEvent(new CustomEvent("film:show", { detail: id }));
}
window.addEventListener("popstate", () => document.dispatchEvent(new CustomEvent("film:show", { detail: shown() })));
const changed = () => document.dispatchEvent(new CustomEvent("film:changed"));
// To the form, which is Gradio's: fill it with a clip's settings, or with some of them.
const fill = (settings) => document.dispatchEvent(new CustomEvent("film:fill", { detail: settings }));

class Stage extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Your clip"><div class="screen"></div>
      <div class="facts" aria-live="polite"></div></section>`;
    this.screen = this.querySelector(".screen");
    this.facts = this.querySelector(".facts");
    this.onShow = (event) => this.follow(event.detail);
    document.addEventListener("film:show", this.onShow);
    this.addEventListener("click", (event) => this.act(event.target.closest("[data-act]")));
    this.tick = setInterval(() => this.count(), 1000);
    this.follow(shown());
  }

  disconnectedCallback() {
    document.removeEventListener("film:show", this.onShow);
    clearInterval(this.tick);
    this.leave();
  }

  leave() {
    this.source?.close();
    clearTimeout(this.again);
    this.source = null;
  }

  follow(id) {
    this.leave();
    this.video = null;
    this.mode = null;
    this.running = false;
    this.id = id;
    this.rung = false;
    if (!id) return this.empty();
    this.word("");
    this.facts.innerHTML = "";
    const source = new EventSource(`/v1/videos/${id}/events`);
    const hear = (event) => { lost(false); this.paint(JSON.parse(event.data)); };
    for (const kind of ["position", "progress", "preview"]) source.addEventListener(kind, hear);
    source.addEventListener("done", (event) => { source.close(); hear(event); changed(); });
    source.onerror = () => {
      if (source.readyState === EventSource.CONNECTING) lost(true);
      if (source.readyState === EventSource.CLOSED) this.recover(id);
    };
    this.source = source;
  }

  // The browser gives up on a refusal; a server that is starting may have answered one.
  async recover(id) {
    try {
      const video = await ask(`/v1/videos/${id}`);
      this.paint(video);
      if (!isOver(video)) this.again = setTimeout(() => this.id === id && this.follow(id), 1000);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) return this.gone(error);
      this.again = setTimeout(() => this.id === id && this.follow(id), 1500);
    }
  }

  empty() {
    this.screen.innerHTML = `<div class="empty"><h2>Your clip will play here</h2>
      <p>Write a sentence and press Make clip, or start from one of these.</p>
      <div class="film-row" style="justify-content:center">${SAMPLES.map((s) => `<button class="film-button" data-act="sample" data-text="${safe(s)}">${safe(s)}</button>`).join("")}</div></div>`;
    this.facts.innerHTML = "";
  }

  gone(error) {
    this.screen.innerHTML = `<div class="empty"><h2>This clip is not here</h2>
      <p>${error.status === 401 ? "It belongs to a key that this browser has not shown." : "It was deleted, or it belongs to somebody else."}</p>
      <button class="film-button" data-act="close">Make a new one</button></div>`;
    this.facts.innerHTML = "";
  }

  paint(video) {
    if (video.id !== this.id) return;
    this.video = video;
    this.heard = performance.now();
    this.project(video);
    if (isOver(video)) {
      this.facts.innerHTML = this.ended(video);
      this.running = false;
      return;
    }
    // Written once and then changed in place: a button that is replaced under a finger is not pressed.
    if (!this.running) this.facts.innerHTML = this.under(video);
    this.running = true;
    // Where no worker is, the page says that a clip waits: its maker is lent a GPU for this visitor.
    if (video.status === "queued" && !this.rung) document.dispatchEvent(new CustomEvent("film:waiting", { detail: video.id }));
    this.rung = video.status === "queued";
    this.querySelector(".what").textContent = this.where(video);
    this.querySelector(".when").textContent = this.left(video);
    this.querySelector("progress").value = video.stage === "fetch" ? (100 * video.step) / video.steps : video.progress;
    this.querySelector(".small").innerHTML = this.settings(video);
  }

  // What is on the screen: the clip, the clip while it grows, a rough picture, or a word.
  project(video) {
    if (video.status === "completed") return this.play(content(video), "whole");
    if (video.status === "failed") return this.word(video.error.code === "cancelled" ? "Stopped" : "This clip could not be made");
    if (video.stage === "decode" && video.step > 0) return this.play(content(video, "?stream=true"), "growing");
    if (video.preview_url) return this.rough(`${video.preview_url}?${video.stage}${video.step}`);
    if (this.mode !== "growing") this.word(video.status === "queued" ? "Waiting" : "Starting");
  }

  word(text) {
    this.mode = "word";
    this.screen.innerHTML = `<div class="empty"><h2>${text}</h2></div>`;
  }

  // One at a time: a picture that is on its way is let come, however fast the next ones are made.
  rough(url) {
    if (this.mode === "growing") return;
    if (this.mode !== "rough") this.screen.innerHTML = `<img class="is-rough" alt="A rough picture of the clip as it is now">`;
    this.mode = "rough";
    const picture = this.screen.querySelector("img");
    picture.onload = picture.onerror = (event) => {
      picture.style.opacity = event.type === "load" ? 1 : 0;
      if (picture.getAttribute("src") !== url) picture.src = url;
    };
    if (picture.complete) picture.src = url;
  }

  play(url, mode) {
    if (this.mode === mode) return;
    const before = this.screen.querySelector("video");
    const film = document.createElement("video");
    Object.assign(film, { src: url, muted: true, autoplay: true, playsInline: true, loop: mode === "whole", controls: mode === "whole" });
    film.setAttribute("aria-label", this.video.prompt);
    if (mode === "growing") film.addEventListener("error", () => film.remove(), { once: true });
    if (before && this.mode === "growing") film.currentTime = before.currentTime;
    // What was there stays until the first frame can be seen.
    film.className = "is-coming";
    film.addEventListener("loadeddata", () => {
      film.className = "";
      film.play().catch(() => {}); // by itself a browser starts only what it sees
      // Only what is older: the growing clip may come to its first frame after the whole one was asked for.
      while (film.previousElementSibling) film.previousElementSibling.remove();
    }, { once: true });
    this.screen.append(film);
    this.mode = mode;
  }

  under(video) {
    return `<div class="line"><span class="what"></span><span class="when"></span>
      <span class="film-row"><button class="film-button" data-act="stop">Stop</button></span></div>
      <progress max="100" aria-label="Progress"></progress>
      <p class="said">${safe(video.prompt)}</p><p class="small"></p>`;
  }

  where(video) {
    if (video.status !== "queued") return (WORDS[video.stage] ?? (() => "Starting"))(video);
    return video.position > 1 ? `Number ${video.position} in the queue` : "Next in the queue";
  }

  left(video) {
    if (!video.eta) return "";
    const gone = (performance.now() - this.heard) / 1000;
    const still = Object.fromEntries(Object.entries(video.eta).map(([k, s]) => [k, Math.max(0.5, s - gone)]));
    return video.status === "queued" ? `done in ${band(still)}` : `${band(still)} left`;
  }

  count() {
    const when = this.querySelector(".when");
    if (when && this.video && !isOver(this.video)) when.textContent = this.left(this.video);
  }

  settings(video) {
    const made = video.effective;
    const frames = made ? `${made.frames} frames at ${made.fps} a second` : `${video.seconds} s`;
    const steps = made ? `, ${made.steps + (made.refine_sigmas?.length ?? 0)} steps` : "";
    return `${safe(video.model)}, ${safe(video.size)}, ${frames}${steps}, seed ${video.seed}${video.draft ? ", draft" : ""}`;
  }

  ended(video) {
    if (video.status === "failed") return this.failed(video);
    const took = video.stages.filter((s) => !s.reused).reduce((sum, s) => sum + s.seconds, 0);
    return `<div class="line"><div class="film-row" style="margin:0">
        <a class="film-button is-strong" href="${content(video)}" download="${video.id}.mp4">Download</a>
        <button class="film-button" data-act="link">Copy link</button>
        <button class="film-button" data-act="reuse">Use settings</button>
        ${video.draft ? `<button class="film-button" data-act="refine">Refine draft</button>` : ""}
        <button class="film-button" data-act="extend">Extend</button>
        <button class="film-button" data-act="delete">Delete</button></div></div>
      <p class="said">${safe(video.prompt)}</p>
      <p class="small">${this.settings(video)}, made in ${took.toFixed(1)} s</p>${this.differences(video)}`;
  }

  failed(video) {
    const stopped = video.error.code === "cancelled";
    const hint = TRY[video.error.code] ?? "Change the settings, or press Go on to try once more.";
    return `<div class="line"><span class="what">${stopped ? "Stopped; what was done is kept" : "It did not work"}</span>
        <span class="film-row"><button class="film-button is-strong" data-act="retry">Go on</button>
        <button class="film-button" data-act="reuse">Use settings</button>
        <button class="film-button" data-act="delete">Delete</button></span></div>
      ${stopped ? "" : `<p class="trouble">${safe(video.error.message)} ${safe(hint)}</p>`}
      <p class="said">${safe(video.prompt)}</p><p class="small">${this.settings(video)}</p>`;
  }

  differences(video) {
    const changes = video.effective?.changes ?? [];
    if (!changes.length) return "";
    return `<details><summary>Done differently from what was asked: ${changes.length}</summary><ul>${changes.map((c) => `<li>${safe(c.reason)}</li>`).join("")}</ul></details>`;
  }

  async act(button) {
    if (!button) return;
    const video = this.video;
    const doing = button.dataset.act;
    if (doing === "sample") return fill({ prompt: button.dataset.text });
    if (doing === "close") return show(null);
    if (doing === "reuse") return fill(settingsOf(video));
    if (doing === "extend") return fill({ ...settingsOf(video), extend_id: video.id });
    if (doing === "link") {
      await navigator.clipboard.writeText(location.href).catch(() => {});
      button.textContent = "Copied";
      return;
    }
    button.disabled = true;
    try {
      if (doing === "delete") {
        await ask(`/v1/videos/${video.id}`, { method: "DELETE" });
        show(null);
      } else if (doing === "stop") {
        await ask(`/v1/videos/${video.id}/cancel`, { method: "POST" });
        if (!this.source || this.source.readyState === EventSource.CLOSED) this.follow(video.id);
      } else if (doing === "retry") {
        await ask(`/v1/videos/${video.id}/retry`, { method: "POST" });
        this.follow(video.id);
      } else if (doing === "refine") {
        show((await ask(`/v1/videos/${video.id}/refine`, { method: "POST" })).id);
      }
    } catch (error) {
      button.disabled = false;
      this.facts.insertAdjacentHTML("beforeend", `<p class="trouble" role="alert">${safe(error.message)}</p>`);
    }
    changed();
  }
}

function settingsOf(video) {
  return { ...video.requested, prompt: video.prompt, model: video.model, seed: video.seed };
}

class Gallery extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<section aria-label="Gallery"><div class="head"><h2>Your clips</h2>
      <input type="search" placeholder="Search prompts" aria-label="Search prompts"></div>
      <div class="grid"></div><p class="none" hidden></p>
      <button class="film-button more" hidden>Show more</button></section>`;
    this.grid = this.querySelector(".grid");
    this.pages = 1;
    this.keeps = true;
    me().then((session) => this.warn(session)).catch(() => {});
    this.cards = new Map();
    this.search = this.querySelector("input");
    this.search.addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(() => this.look(), 250); });
    this.querySelector(".more").addEventListener("click", () => { this.pages += 1; this.look(); });
    this.onChange = () => this.look();
    for (const name of ["film:changed", "film:show", "visibilitychange"]) document.addEventListener(name, this.onChange);
    this.look();
  }

  disconnectedCallback() {
    for (const name of ["film:changed", "film:show", "visibilitychange"]) document.removeEventListener(name, this.onChange);
    clearTimeout(this.next);
  }

  warn(session) {
    this.keeps = session.keeps;
    if (!this.keeps) this.querySelector(".head").insertAdjacentHTML("afterend", `<p class="small passing">This server keeps clips only until it restarts or goes to sleep: download what you like.</p>`);
  }

  async look() {
    clearTimeout(this.next);
    if (document.hidden) return;
    const run = (this.run = (this.run ?? 0) + 1);
    let busy = true;
    try {
      const [videos, more] = await this.fetch();
      if (run !== this.run) return;
      this.paint(videos, more);
      busy = videos.some((v) => !isOver(v));
    } catch { /* the note at the bottom tells it; the next look may succeed */ }
    if (run === this.run) this.next = setTimeout(() => this.look(), busy ? 2000 : 15000);
  }

  async fetch() {
    const videos = [];
    let more = false;
    for (let page = 0; page < this.pages; page += 1) {
      const query = new URLSearchParams({ limit: 24, search: this.search.value });
      if (videos.length) query.set("after", videos.at(-1).id);
      const told = await ask(`/v1/videos?${query}`);
      videos.push(...told.data);
      more = told.has_more;
      if (!more) break;
    }
    return [videos, more];
  }

  paint(videos, more) {
    const now = new Set(videos.map((v) => v.id));
    for (const [id, card] of this.cards) if (!now.has(id)) { card.remove(); this.cards.delete(id); }
    for (const [i, video] of videos.entries()) {
      const card = this.cards.get(video.id) ?? this.card(video);
      this.refresh(card, video);
      if (this.grid.children[i] !== card) this.grid.insertBefore(card, this.grid.children[i] ?? null);
    }
    const none = this.querySelector(".none");
    none.hidden = videos.length > 0;
    none.textContent = this.search.value ? "No prompt of yours contains this." : `Nothing yet.${this.keeps ? " What you make stays here, also after a restart." : ""}`;
    this.querySelector(".more").hidden = !more;
  }

  card(video) {
    const card = document.createElement("button");
    card.className = "card";
    card.innerHTML = `<div class="picture"></div><div class="name">${safe(video.prompt)}</div><div class="small"></div>`;
    card.addEventListener("click", () => { show(video.id); document.querySelector("film-stage").scrollIntoView({ block: "nearest", behavior: "smooth" }); });
    card.addEventListener("pointerenter", () => this.peek(card, true));
    card.addEventListener("pointerleave", () => this.peek(card, false));
    this.cards.set(video.id, card);
    return card;
  }

  refresh(card, video) {
    card.video = video;
    card.setAttribute("aria-current", String(video.id === shown()));
    const state = video.status === "in_progress" ? `${video.progress} %` : video.status === "queued" ? `Number ${video.position ?? ""}` : video.status;
    const face = video.status === "completed" ? "poster" : video.error?.code === "cancelled" ? "Stopped" : video.status === "failed" ? "Failed" : state;
    if (card.face !== face) {
      card.face = face;
      card.querySelector(".picture").innerHTML = face === "poster" ? `<img loading="lazy" alt="" src="${content(video, "?variant=thumbnail")}">` : safe(face);
    }
    card.querySelector(".small").textContent = `${video.size}, ${video.seconds} s, seed ${video.seed}${video.draft ? ", draft" : ""}`;
  }

  peek(card, is) {
    const picture = card.querySelector(".picture");
    picture.querySelector("video")?.remove();
    if (!is || card.video.status !== "completed") return;
    const film = Object.assign(document.createElement("video"), { src: content(card.video), muted: true, loop: true, autoplay: true, playsInline: true });
    picture.append(film);
  }
}

class Panel extends HTMLElement {
  connectedCallback() { this.look(); this.onChange = () => this.look(); document.addEventListener("film:changed", this.onChange); }
  disconnectedCallback() { document.removeEventListener("film:changed", this.onChange); clearTimeout(this.next); }

  async look() {
    clearTimeout(this.next);
    try {
      const session = await me();
      if (!session.admin) return;
      if (!document.hidden && !this.contains(document.activeElement)) this.paint(await ask("/v1/queue"));
    } catch { /* told at the bottom */ }
    this.next = setTimeout(() => this.look(), 2500);
  }

  paint(queue) {
    const workers = queue.workers.map((w) => `${safe(w.id)}${w.model ? ` holds ${safe(w.model)}` : ""}, ${(w.peak_bytes / 1e9).toFixed(1)} GB at most`);
    document.dispatchEvent(new CustomEvent("film:queue", { detail: queue }));
    this.innerHTML = `<section aria-label="Queue"><div class="head"><h2>Queue</h2>
      <span class="small">${workers.length ? workers.join("; ") : "No worker is alive: clips wait until one is."}</span></div>
      ${queue.jobs.length ? `<div class="scroll"><table><thead><tr><th>Place</th><th>Who</th><th>Prompt</th><th>Done in</th><th>Class</th><th><span class="film-visually-hidden">Stop</span></th></tr></thead>
      <tbody>${queue.jobs.map((j) => this.row(j)).join("")}</tbody></table></div>` : `<p class="small">Nobody waits.</p>`}</section>`;
    for (const choice of this.querySelectorAll("select")) choice.addEventListener("change", () => this.tell(choice.dataset.id, "priority", { priority: choice.value }));
    for (const stop of this.querySelectorAll("button")) stop.addEventListener("click", () => this.tell(stop.dataset.id, "cancel"));
  }

  row({ owner, video }) {
    const classes = ["high", "normal", "low"].map((c) => `<option ${c === video.priority ? "selected" : ""}>${c}</option>`).join("");
    return `<tr><td>${video.position ?? `${video.progress} %`}</td><td>${safe(owner)}</td>
      <td class="prompt" title="${safe(video.prompt)}">${safe(video.prompt)}</td><td>${video.eta ? band(video.eta) : ""}</td>
      <td><select data-id="${video.id}" aria-label="Class" ${video.status === "queued" ? "" : "disabled"}>${classes}</select></td>
      <td><button class="film-button" data-id="${video.id}">Stop</button></td></tr>`;
  }

  async tell(id, what, json) {
    document.activeElement?.blur();
    await ask(`/v1/videos/${id}/${what}`, { method: "POST", json }).catch(() => {});
    changed();
  }
}

let asked = null;
const me = () => (asked ??= ask("/session").catch((error) => { asked = null; throw error; }));

class Bar extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<div class="mark"><svg viewBox="0 0 32 32" aria-hidden="true"><rect x="2" y="5" width="28" height="22" rx="5" fill="var(--primary-600)"/><path d="M13 11.5v9l7.5-4.5z" fill="#fff"/><g fill="#fff" opacity=".75"><rect x="5" y="8" width="2.6" height="3" rx="1"/><rect x="5" y="14.5" width="2.6" height="3" rx="1"/><rect x="5" y="21" width="2.6" height="3" rx="1"/><rect x="24.4" y="8" width="2.6" height="3" rx="1"/><rect x="24.4" y="14.5" width="2.6" height="3" rx="1"/><rect x="24.4" y="21" width="2.6" height="3" rx="1"/></g></svg>filmlet</div>
      <span class="now" role="status"></span><button class="film-button" hidden>Forget key</button>`;
    this.querySelector("button").addEventListener("click", async () => { await ask("/session", { method: "DELETE" }); location.reload(); });
    document.addEventListener("film:queue", ({ detail }) => this.now(detail));
    this.enter();
  }

  now(queue) {
    const running = queue.jobs.filter((j) => j.video.status === "in_progress").length;
    const waiting = queue.jobs.length - running;
    this.querySelector(".now").textContent = queue.jobs.length ? `${running} being made, ${waiting} waiting` : queue.workers.length ? "Ready" : "No worker";
  }

  async enter() {
    try {
      const session = await me();
      const leave = this.querySelector("button");
      leave.hidden = !(session.uses_keys && session.name);
      leave.title = session.name ?? "";
      if (session.needs_key) this.askKey();
    } catch { setTimeout(() => this.enter(), 1500); }
  }

  askKey() {
    const box = document.createElement("dialog");
    box.className = "film-key";
    box.innerHTML = `<form method="dialog"><h2>Whose clips?</h2><p>This server asks for a key. Yours starts with sk- and stays in this browser.</p>
      <input type="password" name="key" placeholder="sk-..." aria-label="Key" autocomplete="current-password" required>
      <p class="refused" role="alert"></p><button class="film-button is-strong">Come in</button></form>`;
    box.addEventListener("cancel", (event) => event.preventDefault());
    box.querySelector("form").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await ask("/session", { method: "POST", json: { key: box.querySelector("input").value } });
        location.reload();
      } catch (error) { box.querySelector(".refused").textContent = error.message; }
    });
    document.body.append(box);
    box.showModal();
  }
}

customElements.define("film-bar", Bar);
customElements.define("film-stage", Stage);
customElements.define("film-gallery", Gallery);
customElements.define("film-queue", Panel);

// Ctrl+Enter in the prompt makes the clip, as everywhere else. Gradio mounts the form piece by piece:
// a press that comes before the button is kept until the button is there.
let pressing = false;
async function press() {
  if (pressing) return;
  pressing = true;
  (await mounted("#make")).click();
  pressing = false;
}
function mounted(selector) {
  return new Promise((found) => {
    const look = () => {
      const part = document.querySelector(selector);
      if (!part) return;
      watch.disconnect();
      found(part);
    };
    const watch = new MutationObserver(look);
    watch.observe(document.body, { childList: true, subtree: true });
    look();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#form")) press();
});
window.filmlet = { show: (id) => { if (id) { show(id); changed(); } } };
