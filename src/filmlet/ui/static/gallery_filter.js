// What the gallery shows and in which order; this browser keeps the choice for the next visit.

import { favouriteIds } from "./favourites.js";

const KEY = "film:gallery";

export const filterHtml = `<button class="film-button only-favourites" aria-pressed="false">Favourites</button>
  <select class="order" aria-label="Order"><option value="desc">Newest first</option><option value="asc">Oldest first</option></select>`;

function loadChoice() {
  try {
    const { order, onlyFavourites } = JSON.parse(localStorage.getItem(KEY));
    return { order: order === "asc" ? "asc" : "desc", onlyFavourites: onlyFavourites === true };
  } catch { return { order: "desc", onlyFavourites: false }; } // none, or not ours
}

export class GalleryFilter {
  constructor(gallery, onChange) {
    Object.assign(this, loadChoice());
    this.button = gallery.querySelector(".only-favourites");
    this.select = gallery.querySelector(".order");
    this.button.addEventListener("click", () => this.change({ onlyFavourites: !this.onlyFavourites }, onChange));
    this.select.addEventListener("change", () => this.change({ order: this.select.value }, onChange));
    this.show();
  }

  change(choice, onChange) {
    Object.assign(this, choice);
    try { localStorage.setItem(KEY, JSON.stringify({ order: this.order, onlyFavourites: this.onlyFavourites })); } catch { /* no storage */ }
    this.show();
    onChange();
  }

  show() {
    this.button.ariaPressed = String(this.onlyFavourites);
    this.select.value = this.order;
  }

  // Parameters of the API's list; null where there is nothing to ask for.
  query() {
    const ids = this.onlyFavourites ? favouriteIds() : [];
    if (this.onlyFavourites && !ids.length) return null;
    return [["order", this.order], ...ids.map((id) => ["ids", id])];
  }
}
