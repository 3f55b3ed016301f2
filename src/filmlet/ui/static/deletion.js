// Deleting a clip can be undone: the page hides it, and asks the server to delete it once the time
// to undo is over or the page is left.

import { announce, fetchJson, notifyChanged, openClip, showRefusal } from "./api.js";

const UNDO_MS = 10_000;
const deletedIds = new Set();
let pendingId = null;
let timer = null;

export const isDeleted = (id) => deletedIds.has(id);

export function deleteLater(id) {
  deleteNow();
  deletedIds.add(id);
  pendingId = id;
  timer = setTimeout(deleteNow, UNDO_MS);
  openClip(null);
  notifyChanged();
  showUndo();
}

async function deleteNow() {
  clearTimeout(timer);
  const id = pendingId;
  pendingId = null;
  hideUndo();
  if (!id) return;
  try {
    // keepalive: the request outlives the page.
    await fetchJson(`/v1/videos/${id}`, { method: "DELETE", keepalive: true });
  } catch (error) {
    if (error.status === 404) return;
    deletedIds.delete(id);
    showRefusal(`The clip was not deleted. ${error.message}`);
    notifyChanged();
  }
}

function undo() {
  clearTimeout(timer);
  const id = pendingId;
  pendingId = null;
  hideUndo();
  deletedIds.delete(id);
  openClip(id);
  notifyChanged();
  announce("The clip is kept.");
}

function showUndo() {
  const note = document.createElement("div");
  note.id = "film-undo";
  note.className = "film-note";
  note.setAttribute("role", "region");
  note.setAttribute("aria-label", "Deleted clip");
  note.innerHTML = `<span>Deleted.</span> <button class="film-button">Undo</button>`;
  const button = note.querySelector("button");
  button.addEventListener("click", undo);
  document.body.append(note);
  button.focus({ preventScroll: true }); // the button that was pressed is gone
  announce("Deleted. Undo is possible for ten seconds.");
}

const hideUndo = () => document.getElementById("film-undo")?.remove();

window.addEventListener("pagehide", deleteNow);
