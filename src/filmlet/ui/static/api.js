// What all parts of the page share: requests to the API, texts, the URL and the events between parts.

export const hasEnded = (v) => v.status === "completed" || v.status === "failed";
export const hasSound = (v) => Boolean(v.effective?.audio);
// A proxy may show the server below a path of its own; this file is one folder below that path.
const ROOT = new URL("..", import.meta.url).pathname.replace(/\/$/, "");
export const serverUrl = (path) => ROOT + path;
export const contentUrl = (v, query = "") => serverUrl(`/v1/videos/${v.id}/content${query}`);

// Prompts are text of other people: escaped before they become HTML.
export const escapeHtml = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
export const formatSeconds = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);
export const formatGigabytes = (kilobytes) => (kilobytes / 1e6).toFixed(1);
export const formatEta = (eta) => `about ${formatSeconds(eta.seconds)} (${formatSeconds(eta.low)} to ${formatSeconds(eta.high)})`;

export class ApiError extends Error {
  constructor(error, status) { super(error.message); Object.assign(this, { code: error.code, status }); }
}

// path: as the API writes it, such as /v1/videos.
export async function fetchJson(path, options = {}) {
  const body = options.json ? { body: JSON.stringify(options.json), headers: { "content-type": "application/json" } } : {};
  let response;
  try {
    response = await fetch(serverUrl(path), { ...options, ...body });
  } catch (error) {
    showConnectionLost(true);
    throw error;
  }
  showConnectionLost(false);
  const result = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(result?.error ?? { message: `The server answered ${response.status}.` }, response.status);
  return result;
}

export function showConnectionLost(isLost) {
  let note = document.getElementById("film-offline");
  if (!note) {
    if (!isLost) return;
    note = document.createElement("div");
    note.id = "film-offline";
    note.className = "film-note";
    note.setAttribute("role", "status");
    note.textContent = "No connection to the server; trying again.";
    document.body.append(note);
  }
  note.hidden = !isLost;
}

// Live regions stay in the page: a reader of screens follows only those that it has seen empty.
function speak(role, text) {
  let region = document.querySelector(`body > .film-visually-hidden[role=${role}]`);
  if (!region) {
    region = document.createElement("div");
    region.className = "film-visually-hidden";
    region.setAttribute("role", role);
    document.body.append(region);
  }
  region.textContent = "";
  setTimeout(() => { region.textContent = text; }, 50);
}
export const announce = (text) => speak("status", text);
export const alertUser = (text) => speak("alert", text);

// Shows for some seconds why something was not done.
export function showRefusal(text) {
  document.getElementById("film-refusal")?.remove();
  const note = document.createElement("div");
  note.id = "film-refusal";
  note.className = "film-note";
  note.setAttribute("role", "alert");
  note.textContent = text;
  document.body.append(note);
  setTimeout(() => note.remove(), 8000);
}

// The open clip, and the variations that it is chosen from, are part of the URL: a reload or another
// device shows the same.
const MAX_VARIATIONS = 4;
const query = () => new URLSearchParams(location.search);
const VIDEO_ID = /^clip_[0-9a-f]{24}$/;
export const getOpenClipId = () => query().get("clip");
export const getVariationIds = () => [...new Set(query().getAll("variation").filter((id) => VIDEO_ID.test(id)))].slice(0, MAX_VARIATIONS);
// variationIds: with no clip they are what is shown.
function show(clipId, variationIds) {
  const url = new URL(location.href);
  url.searchParams.delete("variation");
  for (const id of variationIds) url.searchParams.append("variation", id);
  if (clipId) url.searchParams.set("clip", clipId); else url.searchParams.delete("clip");
  if (url.href !== location.href) history.pushState(null, "", url);
  document.dispatchEvent(new CustomEvent("film:open", { detail: clipId }));
}
export function openClip(id) {
  const ids = getVariationIds();
  show(id, ids.includes(id) ? ids : []);
}
export const openVariations = (ids) => show(null, ids);
window.addEventListener("popstate", () => document.dispatchEvent(new CustomEvent("film:open", { detail: getOpenClipId() })));
// Scrolls to the open clip where it is not in sight.
export function showViewer() {
  const viewer = document.querySelector("film-viewer");
  const { top, bottom } = viewer.querySelector(".screen").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) viewer.scrollIntoView({ block: "start" });
}
export const notifyChanged = () => document.dispatchEvent(new CustomEvent("film:changed"));

let sessionRequest = null;
export const getSession = () => (sessionRequest ??= fetchJson("/session").catch((error) => { sessionRequest = null; throw error; }));

const SPEAKER = `<path d="M4 9v6h4l5 4V5L8 9z" fill="currentColor"/>`;
export const soundIcon = (isMuted) => `<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round">${SPEAKER}
  <path d="${isMuted ? "M17 9.5l5 5m0-5l-5 5" : "M16.5 9a4.5 4.5 0 0 1 0 6M19 6.5a8 8 0 0 1 0 11"}"/></svg>`;
