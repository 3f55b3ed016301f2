"""Settings that are put into the form of the page: of a clip, of an idea, of an earlier visit."""

from typing import Any

import gradio as gr
from pydantic import BaseModel

from filmlet.core.lora import Lora
from filmlet.core.model_card import ModelCard
from filmlet.models import REGISTRY
from filmlet.ui.form import (
    ASPECTS,
    CUSTOM,
    STARTS,
    TEXT,
    VIDEO,
    Form,
    Values,
    model_defaults,
    seconds_field,
    size_for_aspect,
    uses_guidance,
)


class FormSettings(BaseModel):
    """What the page's script puts into the form; a browser can send anything instead."""

    start: str | None = None
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
    loras: list[dict[str, Any] | str] = []
    audio: bool | None = None
    extend_id: str | None = None


def form_values(form: Form, settings: FormSettings) -> Values:
    """Return the components that change: all of a clip's settings, or some of them."""
    card = REGISTRY.get(settings.model or "")
    values: Values = _clip_values(form, settings, card) if card else {}
    plain = {
        form.prompt: settings.prompt,
        form.fps: settings.fps,
        form.seed: None if settings.seed is None else str(settings.seed),
        form.clip_id: settings.extend_id,
    }
    values |= {component: value for component, value in plain.items() if value is not None}
    if settings.extend_id:
        values[form.start] = VIDEO
    return values


def empty_form_values(form: Form, card: ModelCard) -> Values:
    """Return the components as they are before anybody has used the form."""
    settings = FormSettings(prompt="", model=card.name, seed="")
    files = dict.fromkeys((form.first_image, form.last_image, form.video))
    return form_values(form, settings) | files | {form.clip_id: ""}


def _clip_values(form: Form, settings: FormSettings, card: ModelCard) -> Values:
    """Return what is set from all settings of a clip, its defaults included."""
    values: Values = model_defaults(form, card) | {
        form.start: settings.start if settings.start in STARTS else TEXT,
        form.model: card.name,
        form.audio: gr.Checkbox(settings.audio is not False, visible=card.makes_audio),
        form.negative_prompt: gr.Textbox(
            settings.negative_prompt or "", visible=uses_guidance(card)
        ),
        form.draft: gr.Checkbox(bool(settings.draft), visible=card.refine_schedule is not None),
        form.extra_prompts: "\n".join(settings.extra_prompts or []),
        form.loras: "\n".join(_hub_loras(settings)),
    }
    seconds = settings.seconds
    if settings.frames:
        seconds = settings.frames / (settings.fps or card.grid.fps)
    if seconds:
        values[form.seconds] = seconds_field(card.grid, seconds)
    if settings.width and settings.height:
        size = settings.width, settings.height
        aspects = [name for name, ratio in ASPECTS.items() if size_for_aspect(card, ratio) == size]
        values[form.aspect] = aspects[0] if aspects else CUSTOM
        values[form.width] = gr.Number(settings.width, visible=not aspects)
        values[form.height] = gr.Number(settings.height, visible=not aspects)
    return values


def _hub_loras(settings: FormSettings) -> list[str]:
    """Return the LoRAs but files, which only who is at this machine may name."""
    loras = (Lora(**lora) for lora in settings.loras if isinstance(lora, dict))
    hub = [f"{lora.source}:{lora.strength:g}" for lora in loras if lora.is_on_hub]
    return hub + [lora for lora in settings.loras if isinstance(lora, str)]
