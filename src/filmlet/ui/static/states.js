// Words for what a job is doing.

import { formatGigabytes } from "./api.js";

const STAGE_LABELS = {
  fetch: (v) => `Downloading the weights, ${formatGigabytes(v.step)} of ${formatGigabytes(v.steps)} GB`,
  load: () => "Loading the model",
  encode: () => "Encoding the prompt",
  denoise: (v) => `Denoising, step ${v.step} of ${v.steps}`,
  upsample: () => "Upsampling",
  refine: (v) => `Refining, step ${v.step} of ${v.steps}`,
  decode_audio: () => "Decoding the sound",
  decode: (v) => `Decoding frames, ${v.step} of ${v.steps}`,
  mux: () => "Writing the file",
};

export const isCancelled = (v) => v.error?.code === "cancelled";
export const stageText = (v) => (STAGE_LABELS[v.stage] ?? (() => "Starting"))(v);

export function stateText(video) {
  if (video.status === "completed") return "Ready";
  if (video.status === "failed") return isCancelled(video) ? "Stopped" : "Failed";
  return video.status === "queued" ? `Position ${video.position ?? ""}` : stageText(video);
}
