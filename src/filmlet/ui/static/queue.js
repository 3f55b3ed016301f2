// The queue, for admins and the local user.

import {
  escapeHtml, formatEta, fetchJson, notifyChanged, getSession,
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
