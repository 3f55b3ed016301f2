// Favourites are kept by this browser, as ids: a job has no place for what a person thinks of it.

import { announce, fetchJson, notifyChanged, showRefusal } from "./api.js";

const KEY = "film:favourites";
const MAX_FAVOURITES = 100; // as many as the server lists by their ids
const VIDEO_ID = /^clip_[0-9a-f]{24}$/;
const STAR = `<svg viewBox="0 0 24 24" aria-hidden="true" stroke="currentColor" stroke-width="2" stroke-linejoin="round"><path d="m12 3.5 2.6 5.4 5.9.8-4.3 4.1 1.1 5.9-5.3-2.9-5.3 2.9 1.1-5.9L3.5 9.7l5.9-.8z"/></svg>`;

export function favouriteIds() {
  try {
    const ids = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(ids) ? [...new Set(ids.filter((id) => VIDEO_ID.test(id)))].slice(0, MAX_FAVOURITES) : [];
  } catch { return []; } // no storage, or not ours
}

function save(ids) {
  try { localStorage.setItem(KEY, JSON.stringify(ids)); } catch { showRefusal("This browser keeps nothing for this page: no favourites."); }
}

export const forgetFavourite = (id) => { if (favouriteIds().includes(id)) save(favouriteIds().filter((other) => other !== id)); };

async function toggleFavourite(video) {
  let ids = favouriteIds();
  const isAdded = !ids.includes(video.id);
  if (isAdded && ids.length >= MAX_FAVOURITES) ids = await dropMissing(ids);
  if (isAdded && ids.length >= MAX_FAVOURITES) return showRefusal(`At most ${MAX_FAVOURITES} clips can be favourites.`);
  save(isAdded ? [...ids, video.id] : ids.filter((id) => id !== video.id));
  announce(isAdded ? "Added to the favourites." : "Removed from the favourites.");
  notifyChanged();
}

// Without the clips that the server has deleted by now.
async function dropMissing(ids) {
  const query = new URLSearchParams([["limit", MAX_FAVOURITES], ...ids.map((id) => ["ids", id])]);
  const { data } = await fetchJson(`/v1/videos?${query}`).catch(() => ({ data: null }));
  return data ? data.map((v) => v.id) : ids;
}

export function createStar(video) {
  const star = document.createElement("button");
  Object.assign(star, { className: "film-button star", innerHTML: STAR, ariaLabel: `Favourite: ${video.prompt}` });
  star.addEventListener("click", () => toggleFavourite(video));
  return star;
}

export const updateStar = (star, id, ids) => { star.ariaPressed = String(ids.includes(id)); };

// Another tab of this browser has changed them.
window.addEventListener("storage", (event) => { if (event.key === KEY) notifyChanged(); });
