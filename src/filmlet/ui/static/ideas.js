// Ideas for prompts: parts that pocket knows, put together, and whole prompts for the other models.

import { escapeHtml } from "./api.js";
import { fillForm, formModel, makeClip } from "./form.js";

const PARTS = {
  Subject: ["a red star", "a panda", "a rocket", "a yellow circle", "a blue heart", "a dog", "a fish", "a butterfly", "a car", "an apple"],
  Motion: ["moving left", "moving right", "rising", "bouncing", "spinning", "growing", "flying in a circle", "standing still"],
  Scene: ["on white", "on black", "at sunset", "in a starry night", "on green grass", "under the sea", "in the snow", "in a city at night"],
};
const POCKET_SAMPLES = ["a red star bouncing at sunset", "a panda spinning on green grass", "a rocket rising in a starry night"];
const LTX_SAMPLES = [
  "A woman with long brown hair walks along a beach at sunset, the camera follows her from behind, waves roll onto the sand, warm light.",
  "A clear mountain stream runs over mossy stones in a forest, sunlight falls through the leaves, the camera moves slowly forward.",
  "A steaming cup of coffee stands on a wooden table beside a window, rain runs down the glass, soft grey light, a still camera.",
];
const isPocket = () => !formModel || formModel.startsWith("pocket");
const choose = (list) => list[Math.floor(Math.random() * list.length)];

export const samplePrompts = () => (isPocket() ? POCKET_SAMPLES : LTX_SAMPLES);
export const surprisePrompt = () => (isPocket() ? Object.values(PARTS).map(choose).join(" ") : choose(LTX_SAMPLES));

export class IdeasPanel extends HTMLElement {
  connectedCallback() {
    this.chosen = {};
    this.onModel = () => this.render();
    document.addEventListener("film:model", this.onModel);
    this.addEventListener("click", (event) => this.runAction(event.target.closest("button")));
    this.render();
  }

  disconnectedCallback() { document.removeEventListener("film:model", this.onModel); }

  render() {
    const isOpen = this.querySelector("details")?.open;
    const groups = isPocket() ? Object.entries(PARTS).map(([name, parts]) => this.groupHtml(name, parts)) : [this.groupHtml("Prompt", LTX_SAMPLES)];
    this.innerHTML = `<details ${isOpen ? "open" : ""}><summary>Ideas</summary>${groups.join("")}
      <button class="film-button" data-surprise>Surprise me</button></details>`;
  }

  groupHtml(name, parts) {
    return `<div role="group" aria-label="${name}"><span class="small">${name}</span>${parts.map((part) => `<button class="film-button chip" data-part="${name}" aria-pressed="${this.chosen[name] === part}">${escapeHtml(part)}</button>`).join("")}</div>`;
  }

  runAction(button) {
    if (!button) return;
    if ("surprise" in button.dataset) return makeClip({ prompt: surprisePrompt() });
    const { part } = button.dataset;
    this.chosen[part] = button.textContent;
    for (const other of this.querySelectorAll(`[data-part="${part}"]`)) other.setAttribute("aria-pressed", String(other === button));
    const names = part === "Prompt" ? ["Prompt"] : Object.keys(PARTS);
    fillForm({ prompt: names.map((name) => this.chosen[name]).filter(Boolean).join(" ") });
  }
}
