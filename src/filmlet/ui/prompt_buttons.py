"""The buttons below the prompt: improve it, and go back to what was typed."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from filmlet.api.dependencies import AppState, get_caller
from filmlet.api.prompts import enhance_texts
from filmlet.errors import FilmletError
from filmlet.ui.messages import error_html, paragraph

IMPROVE = "Improve prompt"
PRIVATE_EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "queue": False,
    "show_progress": "hidden",
}


@dataclass(frozen=True)
class PromptButtons:
    """typed_prompt: what was in the box before, hidden; note: what improved it, or why nothing."""

    improve: gr.Button
    undo: gr.Button
    note: gr.HTML
    typed_prompt: gr.Textbox


def add_prompt_buttons() -> PromptButtons:
    with gr.Row(elem_id="prompt-buttons"):
        improve = gr.Button(IMPROVE, elem_id="improve", size="sm", scale=0, min_width=130)
        undo = gr.Button("Undo", elem_id="undo-improve", size="sm", scale=0, visible=False)
    note = gr.HTML(elem_id="improve-note", apply_default_css=False)
    return PromptButtons(improve, undo, note, gr.Textbox(elem_id="typed-prompt"))


def connect_prompt_buttons(
    shared: AppState,
    buttons: PromptButtons,
    inputs: tuple[gr.Textbox, gr.Dropdown, gr.Checkbox],
) -> None:
    """Add the events of the buttons. inputs: prompt, model and sound of the form."""
    prompt, *_ = inputs
    changed = [prompt, buttons.typed_prompt, buttons.undo, buttons.note, buttons.improve]

    async def improve(text: str | None, model: str, audio: bool, request: gr.Request) -> Any:
        return await _improve(shared, text or "", model, audio, request)

    # A language model may take its time: the button says so until there is an answer.
    pressed = buttons.improve.click(
        lambda: gr.Button("Improving...", interactive=False), None, buttons.improve, **PRIVATE_EVENT
    )
    pressed.then(improve, list(inputs), changed, **PRIVATE_EVENT)
    buttons.undo.click(
        lambda typed: (typed, gr.Button(visible=False), ""),
        buttons.typed_prompt, [prompt, buttons.undo, buttons.note], **PRIVATE_EVENT,
    )  # fmt: skip


async def _improve(
    shared: AppState, text: str, model: str, audio: bool, request: gr.Request
) -> tuple[Any, Any, Any, str, gr.Button]:
    """Return the prompt, what was typed, the undo button, a note and the button itself."""
    button = gr.Button(IMPROVE, interactive=True)
    try:
        who = await get_caller(request.request, shared)
        (enhanced,) = await enhance_texts(shared, who, [text], model, audio=audio)
    except FilmletError as error:
        return gr.skip(), gr.skip(), gr.skip(), error_html(error), button
    if enhanced.text == text:
        note = paragraph("The prompt is as the model understands it best.")
        return gr.skip(), gr.skip(), gr.skip(), note, button
    note = paragraph(f"Written by {escape(enhanced.source)}; edit it as you like.")
    return enhanced.text, text, gr.Button(visible=True), note, button
