"""The API names of the LTX distilled Space: programs written for it run unchanged, MCP clients too.

Same parameters, and `audio` after them; same result: the video's path and the seed. What a call
asks for becomes a job of the queue like any other, so a caller that goes away loses nothing.
"""

import math
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.concurrency import run_in_threadpool
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from pydantic import ValidationError, model_validator

from filmlet.api.dependencies import AppState, get_caller
from filmlet.api.error_handlers import public_text
from filmlet.api.schemas import VideoCreate
from filmlet.api.submissions import submit
from filmlet.core.guide import Guide
from filmlet.core.model_card import ModelCard
from filmlet.errors import FilmletError, InvalidRequest
from filmlet.jobs import Job, Status
from filmlet.models import REGISTRY
from filmlet.ui.form import is_downloaded
from filmlet.ui.tool_calls import ToolProgress

Made = tuple[str, int]
Arguments = dict[str, Any]


class GradioVideo(FileData):
    """A video as clients send it: plain, or with subtitles as Gradio 5 does."""

    @model_validator(mode="before")
    @classmethod
    def _unwrap_video(cls, sent: Any) -> Any:
        return sent["video"] if isinstance(sent, dict) and "video" in sent else sent


def add_endpoints(shared: AppState) -> None:
    """Add the three endpoints to the page that is being built, without visible components."""
    for mode in ("text", "image", "video"):
        _add_endpoint(shared, mode)


def _add_endpoint(shared: AppState, mode: str) -> None:
    picture = gr.Image(type="filepath", visible=False) if mode == "image" else _hidden_textbox("")
    video = _hidden_video() if mode == "video" else _hidden_textbox("")
    inputs = [
        _hidden_textbox(""),
        _hidden_textbox("worst quality, inconsistent motion, blurry, jittery, distorted"),
        picture,
        video,
        _hidden_number(512),
        _hidden_number(704),
        _hidden_textbox(f"{mode}-to-video"),
        _hidden_number(2.0),
        _hidden_number(9),
        _hidden_number(42),
        gr.Checkbox(True, visible=False),
        _hidden_number(1.0),
        gr.Checkbox(True, visible=False),
        gr.Checkbox(True, visible=False),
    ]
    outputs = [_clip_output(), _hidden_number(0)]
    gr.Button(visible=False).click(
        _function(shared, mode), inputs, outputs, api_name=f"{mode}_to_video",
        concurrency_limit=None,  # the durable queue says whose turn it is
        api_description=DESCRIPTIONS[mode],
    )  # fmt: skip


DESCRIPTIONS = {
    "text": "Make a short video from a prompt. MCP tools return the URL of the MP4.",
    "image": "Make a short video from an image and a prompt. MCP tools return the URL of the MP4.",
    "video": "Make a short video that begins as another one. MCP tools return the URL of the MP4.",
}


def _hidden_video() -> gr.Video:
    """Return a video input that older clients can fill, too."""
    video = gr.Video(visible=False)
    video.data_model = GradioVideo
    return video


def _clip_output() -> gr.Video:
    """A video output that hands on the file: Gradio would ask ffprobe whether browsers play it."""
    video = gr.Video(visible=False)
    video.postprocess = lambda path: FileData(path=path, orig_name=Path(path).name)
    return video


def _hidden_textbox(value: str) -> gr.Textbox:
    return gr.Textbox(value, visible=False)


def _hidden_number(value: float) -> gr.Number:
    return gr.Number(value, visible=False)


def _function(shared: AppState, mode: str) -> Callable[..., Any]:
    async def make(
        prompt: str,
        negative_prompt: str,
        input_image_filepath: str | None,
        input_video_filepath: str | None,
        height_ui: float,
        width_ui: float,
        mode: str,
        duration_ui: float,
        ui_frames_to_use: float,
        seed_ui: float,
        randomize_seed: bool,
        ui_guidance_scale: float,
        improve_texture_flag: bool,
        audio: bool,
        request: gr.Request,
    ) -> Made:
        """Make a short video.

        Args:
            prompt: What to show.
            negative_prompt: What not to show; used by models with guidance only.
            input_image_filepath: The first frame, for image_to_video.
            input_video_filepath: The video to start from, for video_to_video.
            height_ui: Height in pixels; what is too large for the model is made smaller.
            width_ui: Width in pixels.
            mode: Unused; the name of the endpoint says it.
            duration_ui: Seconds.
            ui_frames_to_use: How many frames of the video to start from, 8k + 1.
            seed_ui: The seed, unless it is random.
            randomize_seed: Take another seed.
            ui_guidance_scale: Guidance; distilled models take 1 only.
            improve_texture_flag: Unused; a model with two stages runs both.
            audio: Sound, of a model that makes it.
        """
        del mode, improve_texture_flag
        card = _largest_local_model()
        media_path = {"image": input_image_filepath, "video": input_video_filepath}.get(name)
        try:
            who = await get_caller(request.request, shared)
            width, height = _fit_to_model(card, width_ui, height_ui)
            fields: dict[str, Any] = {
                "prompt": prompt,
                "model": card.name,
                "seconds": duration_ui,
                "size": f"{width}x{height}",
                "seed": None if randomize_seed else _whole_number(seed_ui, "seed"),
                "guidance": None if ui_guidance_scale == 1 else ui_guidance_scale,
                "audio": audio,
                "negative_prompt": negative_prompt if card.guidance_scale > 1 else "",
            }
            body = VideoCreate.model_validate(fields)
            max_source_frames = _whole_number(ui_frames_to_use, "frames") if name == "video" else 1
            guides = [Guide(media_path, frames=max(1, max_source_frames))] if media_path else []
            arguments = (shared, body, who.submit_options(), guides)
            if guides:  # which are decoded
                job = await shared.run_expensive(who, submit, *arguments)
            else:
                job = await run_in_threadpool(submit, *arguments)
            with shared.run_inline(job):
                job = await _wait_for_job(shared, job)
        except FilmletError as error:
            raise gr.Error(public_text(error), print_exception=False) from error
        except ValidationError as error:
            first = error.errors()[0]
            text = f"{first['loc'][-1]}: {first['msg']}."
            raise gr.Error(text, print_exception=False) from error
        return await run_in_threadpool(_copy_clip, shared, job), job.seed

    name = mode
    make.__name__ = f"{mode}_to_video"  # MCP's tools are called by it
    return make


def _largest_local_model() -> ModelCard:
    """Return the largest model whose weights are here."""
    local_cards = [card for card in REGISTRY.values() if is_downloaded(card)]
    return max(local_cards, key=lambda card: card.size_bytes or 0)


def _whole_number(value: float | None, param: str) -> int:
    """Return a number of a form as an integer. Raises InvalidRequest."""
    if value is None or not math.isfinite(value):
        raise InvalidRequest(f"{param} must be a number, got {value}.", param=param)
    return int(value)


def _fit_to_model(card: ModelCard, width: float, height: float) -> tuple[int, int]:
    """Return the size, scaled down to the model's largest side; the ratio stays.

    Raises InvalidRequest.
    """
    width, height = _whole_number(width, "width"), _whole_number(height, "height")
    scale = min(1.0, card.grid.max_side / max(width, height, 1))
    return round(width * scale), round(height * scale)


async def _wait_for_job(shared: AppState, job: Job) -> Job:
    """Wait until the job has ended. Raises gr.Error if there is no clip."""
    progress = ToolProgress()
    async for now in shared.hub.follow(job):
        job = now
        await progress.send(job)
    if job.status != Status.COMPLETED or job.clip is None:
        reason = job.failure.message if job.failure else f"The clip was {job.status}."
        raise gr.Error(reason, print_exception=False)
    return job


def _copy_clip(shared: AppState, job: Job) -> str:
    """Copy the clip to a file that Gradio may send; return its path."""
    path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{job.id}.mp4"
    path.parent.mkdir(parents=True)
    assert job.clip
    with shared.queue.storage.open(job.id, job.clip) as clip, path.open("wb") as file:
        shutil.copyfileobj(clip, file)
    return str(path)
