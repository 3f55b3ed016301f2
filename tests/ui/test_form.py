"""The form of the page has what a model takes."""

import asyncio
from dataclasses import replace

import gradio as gr

from filmlet.core.model_card import ModelCard, ModelFamily
from filmlet.models import REGISTRY
from filmlet.ui.form import Form, add_form
from filmlet.ui.form_settings import FormSettings, form_values


async def make_form(card: ModelCard) -> Form:
    """Gradio makes an event loop of its own where none runs, and leaves it open."""
    with gr.Blocks():
        form, _ = add_form(card)
    return form


def test_checkbox_is_shown_only_for_models_that_make_sound() -> None:
    silent = REGISTRY["pocket"]
    for card in (silent, replace(silent, family=ModelFamily.LTX2)):
        form = asyncio.run(make_form(card))
        assert form.audio.visible == card.makes_audio
        values = dict.fromkeys(form.components)
        values |= {form.prompt: "a ball", form.model: "pocket", form.audio: False}
        assert form.to_video_create(values).audio is False
        settings = FormSettings(audio=False, model="pocket")
        assert form_values(form, settings)[form.audio].value is False
        assert form_values(form, FormSettings(model="pocket"))[form.audio].value is True
