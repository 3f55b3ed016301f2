// The live parts of the page: header, viewer, gallery, queue. They show jobs of the API and hold no
// state of their own: a page that is closed loses nothing, and any number of them may be open.

import { fetchJson, getSession, openClip } from "./api.js";
import { forgetForm, formEvents, submitForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { IdeasPanel } from "./ideas.js";
import { QueuePanel } from "./queue.js";
import { ClipViewer } from "./viewer.js";

class HeaderBar extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<h1 class="logo"><svg viewBox="0 0 32 32" aria-hidden="true"><rect x="2" y="5" width="28" height="22" rx="5" fill="var(--primary-600)"/><path d="M13 11.5v9l7.5-4.5z" fill="#fff"/><g fill="#fff" opacity=".75"><rect x="5" y="8" width="2.6" height="3" rx="1"/><rect x="5" y="14.5" width="2.6" height="3" rx="1"/><rect x="5" y="21" width="2.6" height="3" rx="1"/><rect x="24.4" y="8" width="2.6" height="3" rx="1"/><rect x="24.4" y="14.5" width="2.6" height="3" rx="1"/><rect x="24.4" y="21" width="2.6" height="3" rx="1"/></g></svg>filmlet</h1>
      <span class="queue-summary" role="status"></span><button class="film-button" hidden>Sign out</button>`;
    this.querySelector("button").addEventListener("click", async () => { forgetForm(); await fetchJson("/session", { method: "DELETE" }); location.reload(); });
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
customElements.define("film-ideas", IdeasPanel);

// Ctrl+Enter in the form submits it, with Shift for several variations.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#form")) submitForm(event.shiftKey);
});
document.documentElement.classList.toggle("is-mac", navigator.platform.startsWith("Mac"));
window.filmlet = { openClip, ...formEvents };
