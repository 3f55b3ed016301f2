// What the page's script does around Gradio's form: fills it, submits it, remembers it, and shows
// refusals beside the field that they are about.

import { alertUser, announce, notifyChanged, openClip, openVariations, showRefusal, showViewer } from "./api.js";

const FORM_KEY = "film:form";
// Parameters of refusals whose field has another name.
const FIELD_IDS = { size: "size", image: "images", guides: "images", video: "videos", extend: "videos" };
const formElement = () => document.getElementById("form");

let submitsWhenFilled = false;
let isRestored = false;
export let formModel = null; // the name of the chosen model

// Fills Gradio's form with all settings of a clip, or with some of them. The server answers each time:
// one after the other, of those that wait the last.
const MAX_FILL_MS = 5000;
let fillTimer = null;
let nextSettings = null;
export function fillForm(settings) {
  if (fillTimer) {
    nextSettings = settings;
    return;
  }
  fillTimer = setTimeout(onFilled, MAX_FILL_MS);
  document.dispatchEvent(new CustomEvent("film:fill", { detail: settings }));
}

// Fills the form and shows it.
export function editForm(settings) {
  fillForm(settings);
  formElement().scrollIntoView({ block: "nearest" });
  document.querySelector("#prompt textarea")?.focus({ preventScroll: true });
}

// Fills the form and makes the clip.
export function makeClip(settings) {
  submitsWhenFilled = true;
  fillForm(settings);
}

function onFilled() {
  clearTimeout(fillTimer);
  fillTimer = null;
  reveal();
  if (nextSettings) {
    const settings = nextSettings;
    nextSettings = null;
    return fillForm(settings);
  }
  if (!submitsWhenFilled) return;
  submitsWhenFilled = false;
  submitForm();
}

// Gradio mounts the form piece by piece: a press before the button exists takes effect when it does.
let isSubmitting = false;
export async function submitForm(hasVariations = false) {
  if (isSubmitting) return;
  isSubmitting = true;
  (await waitForElement(hasVariations ? "#variations" : "#make")).click();
  isSubmitting = false;
}

export function waitForElement(selector) {
  return new Promise((resolve) => {
    const check = () => {
      const element = document.querySelector(selector);
      if (!element) return;
      observer.disconnect();
      resolve(element);
    };
    const observer = new MutationObserver(check);
    observer.observe(document.body, { childList: true, subtree: true });
    check();
  });
}

// After a press: shows the clip or its variations, or says why there is none. created: ids.
function onSubmitted(created) {
  const ids = created ? created.split(" ") : [];
  if (ids.length) {
    if (ids.length > 1) openVariations(ids); else openClip(ids[0]);
    notifyChanged();
    const notice = document.querySelector("#plan .notice");
    if (notice) showRefusal(notice.textContent);
    return showViewer();
  }
  const error = document.querySelector("#plan .error");
  if (!error) return;
  alertUser(error.textContent);
  const input = document.querySelector("#form [aria-invalid=true]");
  (input ?? error).scrollIntoView({ block: "nearest" });
  input?.focus({ preventScroll: true });
}

function showFieldError() {
  document.querySelectorAll(".field-error").forEach((note) => note.remove());
  document.querySelectorAll("#form [aria-invalid]").forEach((input) => {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  });
  const error = document.querySelector("#plan .error[data-param]");
  const param = error?.dataset.param;
  const field = param && document.getElementById(FIELD_IDS[param] ?? param);
  if (!field) return;
  const note = document.createElement("p");
  Object.assign(note, { className: "field-error", id: "field-error", textContent: error.textContent });
  field.append(note);
  const input = field.querySelector("input:not([type=hidden]), textarea");
  input?.setAttribute("aria-invalid", "true");
  input?.setAttribute("aria-describedby", note.id);
}

// Gradio names its upload buttons otherwise than they read (WCAG 2.5.3).
function nameUploads() {
  for (const button of formElement().querySelectorAll("button.upload-container[aria-label]")) button.removeAttribute("aria-label");
}

function loadForm() {
  try { return JSON.parse(localStorage.getItem(FORM_KEY)); } catch { return null; }
}

// values: of the form's fields by name, without files.
function saveForm(values) {
  const isOtherModel = formModel !== values.model;
  formModel = values.model;
  if (isOtherModel) document.dispatchEvent(new CustomEvent("film:model", { detail: formModel }));
  if (!isRestored) return;
  try { localStorage.setItem(FORM_KEY, JSON.stringify(values)); } catch { /* no storage */ }
}

export function forgetForm() {
  try { localStorage.removeItem(FORM_KEY); } catch { /* no storage */ }
}

// The page is shown once its form is complete, so that nothing moves while it loads.
function reveal() {
  isRestored = true;
  if (document.documentElement.classList.contains("film-ready")) return;
  document.documentElement.classList.add("film-ready");
  // On a phone a focus would open the keyboard over the page.
  if (matchMedia("(hover: hover)").matches && document.activeElement === document.body) document.querySelector("#prompt textarea").focus({ preventScroll: true });
}

// What is saved, as `fillForm` takes it.
function savedSettings() {
  const saved = loadForm();
  if (!saved?.model) return null;
  const lines = (text) => String(text ?? "").split("\n").filter((line) => line.trim());
  return { ...saved, extend_id: saved.clip_id || null, extra_prompts: lines(saved.extra_prompts), loras: lines(saved.loras) };
}

async function start() {
  await waitForElement("#make");
  new MutationObserver(showFieldError).observe(await waitForElement("#plan"), { childList: true, subtree: true });
  new MutationObserver(nameUploads).observe(formElement(), { childList: true, subtree: true });
  if (!window.filmletCanFill) await new Promise((resolve) => document.addEventListener("film:can-fill", resolve, { once: true }));
  if (window.filmletValues) saveForm(window.filmletValues);
  const saved = savedSettings();
  if (saved) fillForm(saved); else reveal();
}


// A picture that is pasted or dropped anywhere on the page is the first image of the clip.
async function takePicture(file) {
  document.querySelector("#start input[value=image]")?.click();
  const input = await waitForElement("#images input[type=file]");
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  announce("The picture is the first image of the clip.");
}
const pictureOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
document.addEventListener("paste", (event) => {
  const picture = pictureOf(event.clipboardData);
  if (!picture) return;
  event.preventDefault();
  takePicture(picture);
});
// A field of Gradio that takes the file itself comes first.
const isOnField = (event) => event.target.closest?.("#images, #videos");
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files") && !isOnField(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.types.includes("Files") || isOnField(event)) return;
  event.preventDefault(); // else the browser would leave the page for the file
  const picture = pictureOf(event.dataTransfer);
  if (picture) takePicture(picture);
});

export const formEvents = { onFilled, onSubmitted, saveForm };
start();
