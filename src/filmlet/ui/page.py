"""The page: a form in Gradio that asks the API's own functions, beside windows on the jobs."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError

from filmlet.api.dependencies import AppState, Caller, get_caller
from filmlet.api.schemas import LONGEST_PROMPT, VideoCreate, VideoExtend
from filmlet.api.submissions import (
    check_model,
    extend_file,
    extend_own,
    find_job,
    plan_video,
    submit,
)
from filmlet.core.guide import Guide
from filmlet.core.lora import Lora
from filmlet.core.model_card import GuideSupport, ModelCard
from filmlet.core.request import MAX_SEED
from filmlet.core.shape import ShapeConstraints
from filmlet.errors import FilmletError, InvalidRequest
from filmlet.jobs import Job
from filmlet.models import REGISTRY, check_prompt, local_files
from filmlet.ui.blocks import CheckedBlocks
from filmlet.ui.callers import Callers
from filmlet.ui.messages import error_html, model_html, paragraph, plan_html, token_count_html

ASPECTS = {"1:1": 1.0, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}
FREE = "free"
SENTENCE, PICTURE, CLIP = STARTS = ("a sentence", "a picture", "a clip")
PRIVATE_EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "queue": False,
    "show_progress": "hidden",
}
# gr.HTML hands its `trigger` to this; the windows fill the form through it.
FILL_EVENT_JS = (
    "document.addEventListener('film:fill', (event) => trigger('select', event.detail));"
)

Values = dict[gr.components.Component, Any]


@dataclass(frozen=True)
class Form:
    """What can be set, each a component."""

    prompt: gr.Textbox
    start: gr.Radio
    first: gr.Image
    last: gr.Image
    clip: gr.Textbox
    footage: gr.Video
    model: gr.Dropdown
    aspect: gr.Radio
    width: gr.Number
    height: gr.Number
    seconds: gr.Slider
    fps: gr.Number
    seed: gr.Textbox
    negative_prompt: gr.Textbox
    draft: gr.Checkbox
    extra_prompts: gr.Textbox
    loras: gr.Textbox

    @property
    def components(self) -> list[gr.components.Component]:
        return [getattr(self, field.name) for field in fields(self)]

    def to_video_create(self, values: Values) -> VideoCreate:
        """The same as the body of a request. Raises ValidationError.

        A clip that is extended is asked for by `extension`; this is then the clip that is added.
        """
        width, height = values[self.width], values[self.height]
        card = REGISTRY.get(values[self.model])
        fields: dict[str, Any] = {
            "prompt": values[self.prompt] or "",
            "model": values[self.model],
            "seconds": values[self.seconds],
            "size": f"{width or 0:.0f}x{height or 0:.0f}",
            "fps": values[self.fps] or None,
            "seed": (values[self.seed] or "").strip() or None,
            "negative_prompt": (card and _uses_guidance(card) and values[self.negative_prompt])
            or "",
            "draft": bool(values[self.draft] and card and card.refine_schedule),
            "extra_prompts": _split_lines(values[self.extra_prompts]),
            "loras": _split_lines(values[self.loras]),
        }
        return VideoCreate.model_validate(fields)

    def guides(self, values: Values) -> list[Guide]:
        """The pictures that the clip begins and ends with; Gradio has put them into files."""
        if values[self.start] != PICTURE:
            return []
        card = REGISTRY[values[self.model]]
        places = [(values[self.first], 0)]
        if card.guide_support == GuideSupport.ANY_FRAME:
            places.append((values[self.last], -1))
        return [Guide(path, frame) for path, frame in places if path]

    def extension(self, values: Values) -> VideoExtend | None:
        """What goes on from a clip, if that is wanted; size and frame rate are the clip's."""
        if values[self.start] != CLIP:
            return None
        shared_fields = (
            "prompt",
            "model",
            "seconds",
            "seed",
            "negative_prompt",
            "extra_prompts",
            "loras",
        )
        return VideoExtend.model_validate(
            self.to_video_create(values).model_dump(include=set(shared_fields))
        )


def build_page(
    shared: AppState, callers: Callers, *doors: Callable[[AppState], None]
) -> CheckedBlocks:
    """The page over this server's shared; `doors` add what is not seen."""
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (300, 3600)}
    with CheckedBlocks(callers, title="filmlet", **options) as page:
        page.space_id = None  # what Gradio adds on Spaces fetches fonts from another host
        _web_component("film-bar")
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=5, min_width=320, elem_id="form"):
                form, reading, note, plan, make = _form(
                    REGISTRY[check_model(shared.settings.model)]
                )
            with gr.Column(scale=8, min_width=320):
                _web_component("film-stage")
        _web_component("film-gallery")
        _web_component("film-queue")
        created_id = gr.Textbox(elem_id="made")
        bridge = gr.HTML(elem_id="bridge", js_on_load=FILL_EVENT_JS)

        shape = [form.aspect, form.width, form.height, form.seconds, form.fps]
        fit = [*shape, form.last, form.negative_prompt, form.draft, note]
        form.model.change(update_for_model, form.model, fit, **PRIVATE_EVENT)
        form.aspect.change(
            choose_aspect, [form.aspect, form.model], [form.width, form.height], **PRIVATE_EVENT
        )

        async def look(values: Values, request: gr.Request) -> tuple[str, str]:
            """What will be done, told while the form is filled."""
            return await _preview_plan(shared, form, values, request)

        async def ask(values: Values, request: gr.Request) -> tuple[str, str]:
            """Queue the clip; its id, or why not."""
            return await _submit(shared, form, values, request)

        gr.on(
            [page.load, *(c.change for c in form.components)],
            look,
            set(form.components),
            [reading, plan],
            trigger_mode="always_last",
            **PRIVATE_EVENT,
        )
        asking = make.click(ask, set(form.components), [created_id, plan], **PRIVATE_EVENT)
        asking.success(
            None, created_id, None, js="(id) => window.filmlet.show(id)", **PRIVATE_EVENT
        )

        def fill(event: gr.EventData) -> list[Any]:
            return _form_values(Filled.model_validate(event._data))

        bridge.select(fill, None, form.components, **PRIVATE_EVENT)
        for door in doors:
            door(shared)
    return page


def _web_component(name: str) -> gr.HTML:
    """One of the live parts in static/app.js, which look after themselves."""
    return gr.HTML(f"<{name}></{name}>", apply_default_css=False)


def _form(card: ModelCard) -> tuple[Form, gr.HTML, gr.HTML, gr.HTML, gr.Button]:
    grid = card.grid
    start = gr.Radio(STARTS, value=SENTENCE, label="Start from", elem_id="start")
    with gr.Row(visible=False) as pictures:
        first = gr.Image(type="filepath", label="First picture", sources=["upload"], height=170)
        last = gr.Image(
            type="filepath", label="Last picture, if you like", sources=["upload"], height=170,
            visible=card.guide_support == GuideSupport.ANY_FRAME,
        )  # fmt: skip
    with gr.Column(visible=False) as clips:
        clip = gr.Textbox(
            label="A clip of yours", placeholder="press Extend below a clip, or upload one here",
            max_lines=1,
        )  # fmt: skip
        footage = gr.Video(label="Or a video of your own", sources=["upload"], height=170)
    start.change(
        lambda chosen: [gr.Row(visible=chosen == PICTURE), gr.Column(visible=chosen == CLIP)],
        start, [pictures, clips], **PRIVATE_EVENT,
    )  # fmt: skip
    prompt = gr.Textbox(
        label="What should be seen?", lines=3, max_lines=9, autofocus=True, elem_id="prompt",
        placeholder="a red star bouncing at sunset",
    )  # fmt: skip
    reading = gr.HTML(elem_id="reading", apply_default_css=False)
    model = gr.Dropdown(_model_choices(), value=card.name, label="Model", filterable=False)
    note = gr.HTML(model_html(card), elem_id="model-note", apply_default_css=False)
    shape = _nearest_aspect(grid.width / grid.height)
    aspect = gr.Radio([*ASPECTS, FREE], value=shape, label="Shape", elem_id="aspect")
    with gr.Row():
        width = gr.Number(grid.width, label="Width", precision=0, visible=shape == FREE)
        height = gr.Number(grid.height, label="Height", precision=0, visible=shape == FREE)
    usual = _round_down_to_tenth(grid.frames / grid.fps)
    seconds = gr.Slider(0.2, _max_seconds(grid), usual, step=0.1, label="Seconds")
    with gr.Row(equal_height=True):
        seed = gr.Textbox(
            label="Seed", placeholder="another one each time", max_lines=1, scale=5, min_width=160
        )
        dice = gr.Button("⚄", elem_id="dice", scale=0, min_width=44)
    with gr.Accordion("More", open=False, elem_id="more"):
        extra_prompts = gr.Textbox(
            label="And then, a sentence a line", lines=2, max_lines=6,
            placeholder="a red star still at sunset",
        )  # fmt: skip
        fps = gr.Number(grid.fps, label="Frames a second", minimum=1, maximum=60)
        negative = gr.Textbox(
            label="What should not be seen", lines=2, visible=_uses_guidance(card)
        )
        two_stages = card.refine_schedule is not None
        draft = gr.Checkbox(label="Draft first, refine on demand", visible=two_stages)
        loras = gr.Textbox(
            label="LoRAs of the Hub, one a line", lines=1, max_lines=4,
            placeholder="owner/name, or owner/name:0.8",
        )  # fmt: skip
    plan = gr.HTML(elem_id="plan", apply_default_css=False)
    make = gr.Button("Make clip", variant="primary", elem_id="make")
    dice.click(lambda: str(secrets.randbelow(MAX_SEED + 1)), None, seed, **PRIVATE_EVENT)
    form = Form(
        prompt, start, first, last, clip, footage, model, aspect, width, height, seconds, fps, seed,
        negative, draft, extra_prompts, loras,
    )  # fmt: skip
    return form, reading, note, plan, make


def _model_choices() -> list[tuple[str, str]]:
    return [
        (name + ("" if is_downloaded(card) else " (to be fetched)"), name)
        for name, card in REGISTRY.items()
    ]


def is_downloaded(card: ModelCard) -> bool:
    """Whether the model's files are on this machine, whole."""
    try:
        return local_files(card) is not None
    except FilmletError:
        return False


def _uses_guidance(card: ModelCard) -> bool:
    return card.guidance_scale > 1


def _round_down_to_tenth(seconds: float) -> float:
    """Rounded down, so that the longest clip is not longer than the model can make."""
    return int(seconds * 10) / 10


def _max_seconds(grid: ShapeConstraints) -> float:
    return _round_down_to_tenth(grid.max_total_frames(grid.fps) / grid.fps)


def _split_lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def update_for_model(name: str) -> list[Any]:
    """The form's limits and defaults for another model."""
    card = REGISTRY[name]
    grid = card.grid
    usual, longest = _round_down_to_tenth(grid.frames / grid.fps), _max_seconds(grid)
    return [
        gr.Radio(value=_nearest_aspect(grid.width / grid.height)),
        gr.Number(value=grid.width),
        gr.Number(value=grid.height),
        gr.Slider(maximum=longest, value=usual),
        gr.Number(value=grid.fps),
        gr.Image(visible=card.guide_support == GuideSupport.ANY_FRAME),
        gr.Textbox(visible=_uses_guidance(card)),
        gr.Checkbox(visible=card.refine_schedule is not None),
        model_html(card),
    ]


def _nearest_aspect(ratio: float) -> str:
    near = min(ASPECTS, key=lambda name: abs(ASPECTS[name] / ratio - 1))
    return near if abs(ASPECTS[near] / ratio - 1) < 0.05 else FREE


def choose_aspect(aspect: str, model: str) -> list[Any]:
    """Width and height of an aspect at the model's own number of pixels; free leaves them."""
    if aspect == FREE:
        return [gr.Number(visible=True), gr.Number(visible=True)]
    width, height = size_for_aspect(REGISTRY[model], ASPECTS[aspect])
    return [gr.Number(value=width, visible=False), gr.Number(value=height, visible=False)]


def size_for_aspect(card: ModelCard, ratio: float) -> tuple[int, int]:
    """The legal sides nearest to a ratio, with about as many pixels as the model was made for."""
    grid = card.grid
    area, step = grid.width * grid.height, grid.side_multiple
    width = round((area * ratio) ** 0.5 / step) * step
    height = round(width / ratio / step) * step
    return min(width, grid.max_side), min(height, grid.max_side)


async def _get_caller(shared: AppState, request: gr.Request) -> Caller:
    return await get_caller(request.request, shared)


async def _preview_plan(
    shared: AppState, form: Form, values: Values, request: gr.Request
) -> tuple[str, str]:
    prompt = values[form.prompt] or ""
    if not prompt.strip():
        return "", paragraph("Say what should be seen; what will be done is told here.")
    reading = ""
    try:
        who = await _get_caller(shared, request)
        if len(prompt) <= LONGEST_PROMPT:
            card = REGISTRY[check_model(values[form.model])]
            reading = token_count_html(card, await run_in_threadpool(check_prompt, card, prompt))
        body, guides = form.to_video_create(values), form.guides(values)
        return reading, plan_html(await shared.run_expensive(who, plan_video, shared, body, guides))
    except (FilmletError, ValidationError) as error:
        return reading, error_html(error)


async def _submit(
    shared: AppState, form: Form, values: Values, request: gr.Request
) -> tuple[str, str]:
    try:
        who = await _get_caller(shared, request)
        job = await shared.run_expensive(who, _submit_job, shared, form, values, who)
        body, guides = form.to_video_create(values), form.guides(values)
        return job.id, plan_html(await shared.run_expensive(who, plan_video, shared, body, guides))
    except (FilmletError, ValidationError) as error:
        return "", error_html(error)


def _submit_job(shared: AppState, form: Form, values: Values, who: Caller) -> Job:
    further = form.extension(values)
    if further is None:
        return submit(
            shared, form.to_video_create(values), who.submit_options(), form.guides(values)
        )
    if id := (values[form.clip] or "").strip():
        return extend_own(shared, further, who.submit_options(), find_job(id, shared, who))
    if values[form.footage]:
        return extend_file(shared, further, who.submit_options(), Path(values[form.footage]))
    raise InvalidRequest("Say which clip to go on from, or upload one.", param="video")


class Filled(BaseModel):
    """What a window of the page puts into the form; a browser can send anything instead."""

    prompt: str | None = None
    model: str | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    frames: int | None = None
    fps: float | None = None
    seed: int | str | None = None
    negative_prompt: str | None = None
    draft: bool | None = None
    extra_prompts: list[str] | None = None
    loras: list[dict[str, Any]] = []
    extend_id: str | None = None


def _form_values(settings: Filled) -> list[Any]:
    """The form with a clip's settings, or with some of them; what is not said stays."""
    card = REGISTRY.get(settings.model or "")
    width, height = settings.width, settings.height
    size = [gr.skip()] * 3
    if card and width and height:
        aspects = [
            name
            for name, ratio in ASPECTS.items()
            if size_for_aspect(card, ratio) == (width, height)
        ]
        free = not aspects
        size = [aspects[0] if aspects else FREE]
        size += [gr.Number(width, visible=free), gr.Number(height, visible=free)]
    seconds = settings.seconds
    if seconds is None and settings.frames and card:
        seconds = settings.frames / (settings.fps or card.grid.fps)
    clip = settings.extend_id
    return [
        _or_skip(settings.prompt),
        CLIP if clip else SENTENCE if card else gr.skip(),
        *[gr.skip()] * 2,
        clip or gr.skip(),
        gr.skip(),
        settings.model if card else gr.skip(),
        *size,
        _or_skip(seconds),
        _or_skip(settings.fps),
        _or_skip(None if settings.seed is None else str(settings.seed)),
        _or_skip(settings.negative_prompt),
        _or_skip(settings.draft),
        "\n".join(settings.extra_prompts or ())
        if card or settings.extra_prompts is not None
        else gr.skip(),
        "\n".join(_hub_loras(settings)) if card else gr.skip(),
    ]


def _or_skip(value: Any) -> Any:
    return gr.skip() if value is None else value


def _hub_loras(settings: Filled) -> list[str]:
    """Those of a clip's that can be asked for here: no files of whoever made it at the machine."""
    loras = (Lora(**lora) for lora in settings.loras)
    return [f"{lora.source}:{lora.strength:g}" for lora in loras if lora.is_on_hub]
