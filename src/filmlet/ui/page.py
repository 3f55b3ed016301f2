"""The page: a form in Gradio over the API's functions, beside web components that show jobs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from filmlet.api.dependencies import AppState, Caller, get_caller
from filmlet.api.field_types import LONGEST_PROMPT
from filmlet.api.schemas import VideoPlan
from filmlet.api.submissions import (
    check_model,
    extend_file,
    extend_own,
    find_job,
    plan_extension,
    plan_own_extension,
    plan_video,
    submit,
)
from filmlet.core.model_card import ModelCard
from filmlet.errors import FilmletError, InvalidRequest, InvalidSetting, UnknownModel
from filmlet.jobs import Job
from filmlet.models import REGISTRY, check_prompt
from filmlet.settings import Settings
from filmlet.ui.blocks import CheckedBlocks
from filmlet.ui.callers import Callers
from filmlet.ui.form import Form, FormOutputs, Values, add_form
from filmlet.ui.form_settings import FormSettings, empty_form_values, form_values
from filmlet.ui.gradio_internals import event_payload
from filmlet.ui.messages import (
    error_html,
    model_html,
    paragraph,
    plan_html,
    submission_html,
    token_count_html,
)
from filmlet.ui.prompt_buttons import PRIVATE_EVENT, connect_prompt_buttons
from filmlet.ui.variations import VARIATIONS, Submission, submit_variations

NO_CLIP = "Choose a clip to extend, or upload a video."
# gr.HTML calls this with its `trigger`; the page's script fills the form through it.
FILL_EVENT_JS = """
document.addEventListener('film:fill', (event) => trigger('select', event.detail));
window.filmletCanFill = true;
document.dispatchEvent(new CustomEvent('film:can-fill'));
"""
# Gradio may be ready before the page's script is.
SAVE_JS = """(...values) => {{
  window.filmletValues = Object.fromEntries({names}.map((name, i) => [name, values[i]]));
  window.filmlet?.saveForm(window.filmletValues);
}}"""
FILES = {"first_image", "last_image", "video"}  # fields that a browser does not keep


def build_page(
    shared: AppState, callers: Callers, *extensions: Callable[[AppState], None]
) -> CheckedBlocks:
    """Return the page of this server. extensions: add components that are not visible."""
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (300, 3600)}
    with CheckedBlocks(callers, title="filmlet", **options) as page:
        page.space_id = None  # what Gradio adds on Spaces fetches fonts from another host
        _add_web_component("film-header")
        card = _default_card(shared.settings)
        with gr.Row(elem_id="workspace"):
            with gr.Column(scale=5, min_width=280, elem_id="form"):
                form, outputs = add_form(card)
            with gr.Column(scale=8, min_width=280, elem_id="viewer-column"):
                _add_web_component("film-viewer")
        _add_web_component("film-gallery")
        _add_web_component("film-queue")
        _connect_form(page, shared, form, outputs)
        _connect_settings(page, form, outputs, card)
        for add_extension in extensions:
            add_extension(shared)
    return page


def _default_card(settings: Settings) -> ModelCard:
    """Return the model that the form begins with. Raises InvalidSetting."""
    try:
        return REGISTRY[check_model(settings.model)]
    except UnknownModel as error:
        raise InvalidSetting(f"FILMLET_MODEL cannot be used. {error}") from error


def _add_web_component(name: str) -> None:
    """Add one of the custom elements of static/."""
    gr.HTML(f"<{name}></{name}>", apply_default_css=False)


def _connect_form(page: gr.Blocks, shared: AppState, form: Form, outputs: FormOutputs) -> None:
    """Add the events of the form: preview the plan, submit."""
    created_ids = gr.Textbox(elem_id="created-ids")  # with a space between

    async def preview_plan(values: Values, request: gr.Request) -> tuple[str, str]:
        return await _preview_plan(shared, form, values, request)

    async def submit_one(values: Values, request: gr.Request) -> tuple[str, str]:
        return await _submit(shared, form, values, request)

    async def submit_several(values: Values, request: gr.Request) -> tuple[str, str]:
        return await _submit(shared, form, values, request, VARIATIONS)

    gr.on(
        [page.load, *(component.change for component in form.components)],
        preview_plan, set(form.components), [outputs.token_count, outputs.plan],
        trigger_mode="always_last", **PRIVATE_EVENT,
    )  # fmt: skip
    for button, submit_form in ((outputs.make, submit_one), (outputs.variations, submit_several)):
        submitted = button.click(
            submit_form, set(form.components), [created_ids, outputs.plan], **PRIVATE_EVENT
        )
        submitted.success(
            None, created_ids, None, js="(ids) => window.filmlet.onSubmitted(ids)", **PRIVATE_EVENT
        )
    connect_prompt_buttons(shared, outputs.prompt_buttons, (form.prompt, form.model, form.audio))


def _connect_settings(
    page: gr.Blocks, form: Form, outputs: FormOutputs, default_card: ModelCard
) -> None:
    """Add the events that put settings into the form, and that let the browser keep them."""
    fill_event = gr.HTML(elem_id="fill-event", js_on_load=FILL_EVENT_JS)
    changed = [*form.components, outputs.model_note]

    def fill(event: gr.EventData) -> Values:
        try:
            settings = FormSettings.model_validate(event_payload(event))
        except ValidationError:
            return {}
        values = form_values(form, settings)
        if form.model in values:
            values[outputs.model_note] = model_html(REGISTRY[values[form.model]])
        return values

    def clear() -> Values:
        note = {outputs.model_note: model_html(default_card)}
        return empty_form_values(form, default_card) | note

    filled = fill_event.select(fill, None, changed, **PRIVATE_EVENT)
    filled.then(None, None, None, js="() => window.filmlet.onFilled()", **PRIVATE_EVENT)
    outputs.clear.click(clear, None, changed, **PRIVATE_EVENT)
    names = [field.name for field in fields(form) if field.name not in FILES]
    kept = [getattr(form, name) for name in names]
    gr.on(
        [page.load, *(component.change for component in kept)],
        None, kept, None, js=SAVE_JS.format(names=names), **PRIVATE_EVENT,
    )  # fmt: skip


async def _get_caller(shared: AppState, request: gr.Request) -> Caller:
    return await get_caller(request.request, shared)


async def _preview_plan(
    shared: AppState, form: Form, values: Values, request: gr.Request
) -> tuple[str, str]:
    """Return token count and plan as HTML, while the form is filled."""
    prompt = values[form.prompt] or ""
    if not prompt.strip():
        return "", paragraph("Enter a prompt to see the plan: size, steps and time.")
    token_count = ""
    try:
        who = await _get_caller(shared, request)
        if len(prompt) <= LONGEST_PROMPT:
            card = REGISTRY[check_model(values[form.model])]
            token_count = token_count_html(
                card, await run_in_threadpool(check_prompt, card, prompt)
            )
        return token_count, await _plan_html(shared, form, values, who)
    except (FilmletError, ValidationError) as error:
        return token_count, error_html(error)


async def _submit(
    shared: AppState, form: Form, values: Values, request: gr.Request, count: int = 1
) -> tuple[str, str]:
    """Queue the clip, or `count` variations of it; return their ids, or "" and why not."""

    def submit_all(who: Caller) -> Submission:
        def submit_seed(seed: str) -> Job:
            return _submit_job(shared, form, values | {form.seed: seed}, who)

        return submit_variations(submit_seed, values[form.seed] or "", count)

    try:
        who = await _get_caller(shared, request)
        submission = await shared.run_expensive(who, submit_all, who)
    except (FilmletError, ValidationError) as error:
        return "", error_html(error)
    plan = ""
    with suppress(FilmletError):  # the clips are queued all the same
        plan = await _plan_html(shared, form, values, who)
    return " ".join(job.id for job in submission.jobs), plan + submission_html(submission)


async def _plan_html(shared: AppState, form: Form, values: Values, who: Caller) -> str:
    return plan_html(await shared.run_expensive(who, _plan, shared, form, values, who))


def _plan(shared: AppState, form: Form, values: Values, who: Caller) -> VideoPlan:
    """Plan the clip that the form describes. Raises what `Queue.forecast` raises."""
    extension = form.to_video_extend(values)
    if extension is None:
        return plan_video(shared, form.to_video_create(values), form.guides(values))
    if id := (values[form.clip_id] or "").strip():
        return plan_own_extension(shared, extension, find_job(id, shared, who))
    if values[form.video]:
        return plan_extension(shared, extension, Path(values[form.video]))
    raise InvalidRequest(NO_CLIP, param="video")


def _submit_job(shared: AppState, form: Form, values: Values, who: Caller) -> Job:
    extension = form.to_video_extend(values)
    if extension is None:
        return submit(
            shared, form.to_video_create(values), who.submit_options(), form.guides(values)
        )
    if id := (values[form.clip_id] or "").strip():
        return extend_own(shared, extension, who.submit_options(), find_job(id, shared, who))
    if values[form.video]:
        return extend_file(shared, extension, who.submit_options(), Path(values[form.video]))
    raise InvalidRequest(NO_CLIP, param="video")
