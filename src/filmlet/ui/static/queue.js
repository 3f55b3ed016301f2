// The queue, for admins and the local user.

import {
  escapeHtml, formatEta, fetchJson, getOpenClipId, getVariationIds, notifyChanged, getSession,
} from "./api.js";

export class QueuePanel extends HTMLElement {
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
    const workers = queue.workers.map((w) => `${escapeHtml(w.id)}${w.model ? ` with ${escapeHtml(w.model)}` : ""}, at most ${(w.peak_bytes / 1e9).toFixed(1)} GB so far`);
    document.dispatchEvent(new CustomEvent("film:queue", { detail: queue }));
    // The viewer shows these itself; the queue is for those besides them.
    const shownIds = [getOpenClipId(), ...getVariationIds()];
    const others = queue.jobs.filter((j) => !shownIds.includes(j.video.id));
    this.hidden = !others.length && queue.workers.length > 0;
    if (this.hidden) return this.replaceChildren();
    this.innerHTML = `<section aria-label="Queue"><div class="head"><h2>Queue</h2>
      <span class="small">${workers.length ? workers.join("; ") : "No worker is running: clips wait until one starts."}</span></div>
      <ul class="jobs">${queue.jobs.map((j) => this.rowHtml(j)).join("")}</ul></section>`;
    for (const select of this.querySelectorAll("select")) select.addEventListener("change", () => this.updateJob(select.dataset.id, "priority", { priority: select.value }));
    for (const button of this.querySelectorAll("button")) button.addEventListener("click", () => this.updateJob(button.dataset.id, "cancel"));
  }

  rowHtml({ owner, video }) {
    const priorities = ["high", "normal", "low"].map((c) => `<option ${c === video.priority ? "selected" : ""}>${c}</option>`).join("");
    const place = video.position ? `Position ${video.position}` : `${video.progress} %`;
    return `<li><span class="place">${place}</span>
      <span class="prompt" title="${escapeHtml(video.prompt)}">${escapeHtml(video.prompt)}</span>
      <span class="small">${escapeHtml(owner)}${video.eta ? `, ${formatEta(video.eta)}` : ""}</span>
      <select data-id="${video.id}" aria-label="Priority" ${video.status === "queued" ? "" : "disabled"}>${priorities}</select>
      <button class="film-button" data-id="${video.id}">Stop</button></li>`;
  }

  async updateJob(id, action, json) {
    document.activeElement?.blur();
    await fetchJson(`/v1/videos/${id}/${action}`, { method: "POST", json }).catch(() => {});
    notifyChanged();
  }
}
