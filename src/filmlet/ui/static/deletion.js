// Deleting clips can be undone: the page hides them, and asks the server to delete them once the
// time to undo is over or the page is left.

import { announce, fetchJson, notifyChanged, openClip, showRefusal } from "./api.js";
import { forgetFavourite } from "./favourites.js";

const UNDO_MS = 10_000;
const deletedIds = new Set();
let pendingIds = [];
let wasOpen = false;
let timer = null;

export const isDeleted = (id) => deletedIds.has(id);

// isOpen: one of them is the clip that the viewer shows.
export function deleteLater(ids, isOpen) {
  deleteNow();
  for (const id of ids) deletedIds.add(id);
  pendingIds = ids;
  wasOpen = isOpen;
  timer = setTimeout(deleteNow, UNDO_MS);
  if (isOpen) openClip(null);
  notifyChanged();
  showUndo(ids.length);
}

// All at once: a page that is left sends nothing later.
async function deleteNow() {
  clearTimeout(timer);
  const ids = pendingIds;
  pendingIds = [];
  hideUndo();
  const errors = (await Promise.all(ids.map(deleteClip))).filter(Boolean);
  if (!errors.length) return;
  showRefusal(`${errors.length === 1 ? "The clip was" : `${errors.length} clips were`} not deleted. ${errors[0].message}`);
  notifyChanged();
}

// Returns why the clip is still there, null if it is not.
async function deleteClip(id) {
  try {
    // keepalive: the request outlives the page.
    await fetchJson(`/v1/videos/${id}`, { method: "DELETE", keepalive: true });
    forgetFavourite(id);
  } catch (error) {
    if (error.status === 404) return null;
    deletedIds.delete(id);
    return error;
  }
  return null;
}

function undo() {
  clearTimeout(timer);
  const ids = pendingIds;
  pendingIds = [];
  hideUndo();
  for (const id of ids) deletedIds.delete(id);
  if (wasOpen && ids.length === 1) openClip(ids[0]);
  notifyChanged();
  announce(ids.length === 1 ? "The clip is kept." : `${ids.length} clips are kept.`);
}

function showUndo(count) {
  const note = document.createElement("div");
  note.id = "film-undo";
  note.className = "film-note";
  note.setAttribute("role", "region");
  note.setAttribute("aria-label", count === 1 ? "Deleted clip" : "Deleted clips");
  const text = count === 1 ? "Deleted." : `Deleted ${count} clips.`;
  note.innerHTML = `<span>${text}</span> <button class="film-button">Undo</button>`;
  const button = note.querySelector("button");
  button.addEventListener("click", undo);
  document.body.append(note);
  button.focus({ preventScroll: true }); // the button that was pressed is gone
  announce(`${text} Undo is possible for ten seconds.`);
}

const hideUndo = () => document.getElementById("film-undo")?.remove();

window.addEventListener("pagehide", deleteNow);
