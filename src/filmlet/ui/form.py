"""The form of the page: its components and the requests made from them."""

import secrets
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from filmlet.api.schemas import VideoCreate, VideoExtend
from filmlet.core.guide import Guide
from filmlet.core.model_card import GuideSupport, ModelCard
from filmlet.core.request import MAX_SEED
from filmlet.core.shape import ShapeConstraints
from filmlet.errors import FilmletError, InvalidRequest
from filmlet.models import REGISTRY, local_files
from filmlet.ui.messages import model_html
from filmlet.ui.prompt_buttons import PRIVATE_EVENT, PromptButtons, add_prompt_buttons
from filmlet.ui.variations import VARIATIONS

ASPECTS = {"1:1": 1.0, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}
CUSTOM = "custom"
NO_IMAGE = "Choose an image to start from, or start from text."
TEXT, IMAGE, VIDEO = STARTS = ("text", "image", "video")
EXTENSION_FIELDS = {
    "prompt", "model", "seconds", "seed", "negative_prompt", "extra_prompts", "loras", "audio",
}  # fmt: skip

Values = dict[gr.components.Component, Any]


@dataclass(frozen=True)
class Form:
    """The components that a clip is described with."""

    prompt: gr.Textbox
    start: gr.Radio
    first_image: gr.Image
    last_image: gr.Image
    clip_id: gr.Textbox
    video: gr.Video
    model: gr.Dropdown
    aspect: gr.Radio
    width: gr.Number
    height: gr.Number
    seconds: gr.Number
    fps: gr.Number
    seed: gr.Textbox
    negative_prompt: gr.Textbox
    draft: gr.Checkbox
    extra_prompts: gr.Textbox
    loras: gr.Textbox
    audio: gr.Checkbox

    @property
    def components(self) -> list[gr.components.Component]:
        return [getattr(self, field.name) for field in fields(self)]

    def to_video_create(self, values: Values) -> VideoCreate:
        """Return the form as the body of a request. Raises ValidationError.

        If a clip is extended, this describes the part that is added; see `to_video_extend`.
        """
        width, height = values[self.width], values[self.height]
        card = REGISTRY.get(values[self.model])
        has_guidance = card is not None and uses_guidance(card)
        has_draft = card is not None and card.refine_schedule is not None
        fields: dict[str, Any] = {
            "prompt": values[self.prompt] or "",
            "model": values[self.model],
            "seconds": values[self.seconds],
            "size": f"{width or 0:.0f}x{height or 0:.0f}",
            "fps": values[self.fps] or None,
            "seed": (values[self.seed] or "").strip() or None,
            "negative_prompt": (values[self.negative_prompt] or "") if has_guidance else "",
            "draft": bool(values[self.draft]) and has_draft,
            "extra_prompts": _split_lines(values[self.extra_prompts]),
            "loras": _split_lines(values[self.loras]),
            "audio": bool(values[self.audio]),
        }
        return VideoCreate.model_validate(fields)

    def guides(self, values: Values) -> list[Guide]:
        """Return the first and the last image, which Gradio has saved as files.

        Raises InvalidRequest where a clip is to start from an image and there is none.
        """
        if values[self.start] != IMAGE:
            return []
        card = REGISTRY[values[self.model]]
        images = [(values[self.first_image], 0)]
        if card.guide_support == GuideSupport.ANY_FRAME:
            images.append((values[self.last_image], -1))
        guides = [Guide(path, frame) for path, frame in images if path]
        if not guides:
            raise InvalidRequest(NO_IMAGE, param="image")
        return guides

    def to_video_extend(self, values: Values) -> VideoExtend | None:
        """Return the request to extend a clip, None if none is extended. Raises ValidationError."""
        if values[self.start] != VIDEO:
            return None
        body = self.to_video_create(values)  # size and frame rate are the clip's own
        return VideoExtend.model_validate(body.model_dump(include=EXTENSION_FIELDS))


@dataclass(frozen=True)
class FormOutputs:
    """The parts of the form that show something, and its buttons."""

    prompt_buttons: PromptButtons
    token_count: gr.HTML
    model_note: gr.HTML
    plan: gr.HTML
    make: gr.Button
    variations: gr.Button
    clear: gr.Button


def add_form(card: ModelCard) -> tuple[Form, FormOutputs]:
    """Add prompt, button and plan, and below them what has a default."""
    inputs = _add_inputs(card)
    prompt_buttons = add_prompt_buttons()
    token_count = gr.HTML(elem_id="token-count", apply_default_css=False)
    with gr.Row(elem_id="make-row"):
        make = gr.Button("Make clip", variant="primary", elem_id="make", scale=3, min_width=120)
        variations = gr.Button(
            f"{VARIATIONS} variations", elem_id="variations", scale=1, min_width=120
        )
    plan = gr.HTML(elem_id="plan", apply_default_css=False)
    gr.HTML("<film-ideas></film-ideas>", apply_default_css=False)
    model = gr.Dropdown(
        _model_choices(), value=card.name, label="Model", filterable=False, elem_id="model"
    )
    model_note = gr.HTML(model_html(card), elem_id="model-note", apply_default_css=False)
    shape = _add_shape(card, model)
    audio = gr.Checkbox(True, label="Sound", visible=card.makes_audio, elem_id="audio")
    length = _add_length_and_seed(card)
    advanced = _add_advanced(card)
    clear = gr.Button("Clear the form", elem_id="clear-form", size="sm")
    form = Form(**inputs, **shape, **length, **advanced, model=model, audio=audio)

    def fit_to_model(name: str) -> Values:
        return model_defaults(form, REGISTRY[name]) | {model_note: model_html(REGISTRY[name])}

    changed = [form.aspect, form.width, form.height, form.seconds, form.fps, form.last_image]
    changed += [form.negative_prompt, form.draft, form.audio, model_note]
    model.input(fit_to_model, model, changed, **PRIVATE_EVENT)
    outputs = FormOutputs(prompt_buttons, token_count, model_note, plan, make, variations, clear)
    return form, outputs


def _add_inputs(card: ModelCard) -> dict[str, Any]:
    """Add prompt, images and the clip to extend; return them by the fields of Form."""
    start = gr.Radio(STARTS, value=TEXT, label="Start from", elem_id="start")
    with gr.Row(visible=False, elem_id="images") as images:
        first_image = gr.Image(type="filepath", label="First image", sources=["upload"], height=170)
        last_image = gr.Image(
            type="filepath", label="Last image (optional)", sources=["upload"], height=170,
            visible=card.guide_support == GuideSupport.ANY_FRAME,
        )  # fmt: skip
    with gr.Column(visible=False, elem_id="videos") as videos:
        clip_id = gr.Textbox(
            label="Clip to extend", max_lines=1,
            placeholder="press Extend below a clip, or upload a video",
        )  # fmt: skip
        video = gr.Video(label="Or upload a video", sources=["upload"], height=170)
    start.change(
        lambda chosen: [gr.Row(visible=chosen == IMAGE), gr.Column(visible=chosen == VIDEO)],
        start, [images, videos], **PRIVATE_EVENT,
    )  # fmt: skip
    prompt = gr.Textbox(
        label="Prompt", lines=3, max_lines=9, elem_id="prompt",
        placeholder="a red star bouncing at sunset",
    )  # fmt: skip
    return {
        "start": start, "first_image": first_image, "last_image": last_image, "clip_id": clip_id,
        "video": video, "prompt": prompt,
    }  # fmt: skip


def _add_shape(card: ModelCard, model: gr.Dropdown) -> dict[str, Any]:
    """Add aspect and size; return them by the fields of Form."""
    grid = card.grid
    nearest = _nearest_aspect(grid.width / grid.height)
    is_custom = nearest == CUSTOM
    aspect = gr.Radio([*ASPECTS, CUSTOM], value=nearest, label="Aspect ratio", elem_id="aspect")
    with gr.Row(elem_id="size"):
        width = gr.Number(grid.width, label="Width", precision=0, visible=is_custom)
        height = gr.Number(grid.height, label="Height", precision=0, visible=is_custom)
    aspect.input(choose_aspect, [aspect, model], [width, height], **PRIVATE_EVENT)
    return {"aspect": aspect, "width": width, "height": height}


def _add_length_and_seed(card: ModelCard) -> dict[str, Any]:
    """Add them in one row; return them by the fields of Form."""
    with gr.Row(equal_height=True):
        seconds = seconds_field(card.grid, default_seconds(card.grid))
        seed = gr.Textbox(
            label="Seed", placeholder="random", max_lines=1, scale=4, min_width=120, elem_id="seed"
        )
        button = gr.Button("⚄", elem_id="random-seed", scale=0, min_width=44)
    button.click(lambda: str(secrets.randbelow(MAX_SEED + 1)), None, seed, **PRIVATE_EVENT)
    return {"seconds": seconds, "seed": seed}


def seconds_field(grid: ShapeConstraints, value: float) -> gr.Number:
    """Return the field, or what makes it one of another model.

    It has no limits of its own: the request is checked, and the refusal is a sentence.
    """
    longest = _round_down_to_tenth(grid.max_total_frames(grid.fps) / grid.fps)
    label = f"Seconds, up to {longest:g}"
    return gr.Number(value, label=label, step=0.1, scale=4, min_width=120, elem_id="seconds")


def default_seconds(grid: ShapeConstraints) -> float:
    return _round_down_to_tenth(grid.frames / grid.fps)


def _add_advanced(card: ModelCard) -> dict[str, Any]:
    """Add what is folded away at first; return it by the fields of Form."""
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        extra_prompts = gr.Textbox(
            label="Further prompts, one per line", lines=2, max_lines=6, elem_id="extra_prompts",
            placeholder="a red star still at sunset",
        )  # fmt: skip
        fps = gr.Number(card.grid.fps, label="Frames per second", elem_id="fps")
        negative_prompt = gr.Textbox(label="Negative prompt", lines=2, visible=uses_guidance(card))
        draft = gr.Checkbox(
            label="Draft, to refine later", visible=card.refine_schedule is not None
        )
        loras = gr.Textbox(
            label="LoRAs from the Hub, one per line", lines=1, max_lines=4, elem_id="loras",
            placeholder="owner/name, or owner/name:0.8",
        )  # fmt: skip
    return {
        "extra_prompts": extra_prompts, "fps": fps, "negative_prompt": negative_prompt,
        "draft": draft, "loras": loras,
    }  # fmt: skip


def _model_choices() -> list[tuple[str, str]]:
    return [
        (name + ("" if is_downloaded(card) else " (not downloaded)"), name)
        for name, card in REGISTRY.items()
    ]


def is_downloaded(card: ModelCard) -> bool:
    """Return whether all files of the model are on this machine."""
    try:
        return local_files(card) is not None
    except FilmletError:
        return False


def uses_guidance(card: ModelCard) -> bool:
    return card.guidance_scale > 1


def _round_down_to_tenth(seconds: float) -> float:
    """Round down, so that the longest clip is not longer than the model can make."""
    return int(seconds * 10) / 10


def _split_lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def model_defaults(form: Form, card: ModelCard) -> Values:
    """Return the form's limits and defaults for another model."""
    grid = card.grid
    return {
        form.aspect: _nearest_aspect(grid.width / grid.height),
        form.width: grid.width,
        form.height: grid.height,
        form.seconds: seconds_field(grid, default_seconds(grid)),
        form.fps: grid.fps,
        form.last_image: gr.Image(visible=card.guide_support == GuideSupport.ANY_FRAME),
        form.negative_prompt: gr.Textbox(visible=uses_guidance(card)),
        form.draft: gr.Checkbox(visible=card.refine_schedule is not None),
        form.audio: gr.Checkbox(visible=card.makes_audio),
    }


def _nearest_aspect(ratio: float) -> str:
    near = min(ASPECTS, key=lambda name: abs(ASPECTS[name] / ratio - 1))
    return near if abs(ASPECTS[near] / ratio - 1) < 0.05 else CUSTOM


def choose_aspect(aspect: str, model: str) -> list[Any]:
    """Return width and height of an aspect at the model's own number of pixels."""
    if aspect == CUSTOM:
        return [gr.Number(visible=True), gr.Number(visible=True)]
    width, height = size_for_aspect(REGISTRY[model], ASPECTS[aspect])
    return [gr.Number(value=width, visible=False), gr.Number(value=height, visible=False)]


def size_for_aspect(card: ModelCard, ratio: float) -> tuple[int, int]:
    """Return the valid size nearest to a ratio, with about the model's own number of pixels."""
    grid = card.grid
    area, step = grid.width * grid.height, grid.side_multiple
    width = round((area * ratio) ** 0.5 / step) * step
    height = round(width / ratio / step) * step
    return min(width, grid.max_side), min(height, grid.max_side)
