"""HTML messages of the page: about a model, a prompt, a plan, an error."""

from collections.abc import Sequence
from html import escape

from pydantic import ValidationError

from filmlet.api.error_handlers import public_text
from filmlet.api.schemas import VideoPlan
from filmlet.core.model_card import ModelCard
from filmlet.errors import FilmletError, InvalidRequest
from filmlet.models import PromptCheck
from filmlet.ui.variations import Submission


def model_html(card: ModelCard) -> str:
    """Return what a model is, how large it is and what it was trained for."""
    size = f", {card.size_bytes / 1e9:.0f} GB" if card.size_bytes else ""
    grid = card.grid
    best = f"Best at {grid.width}x{grid.height} and {grid.frames} frames."
    return paragraph(f"{escape(card.summary[:1].upper() + card.summary[1:])}{size}. {best}")


def token_count_html(card: ModelCard, prompt_check: PromptCheck | None) -> str:
    """Return the number of tokens, and unknown words with the nearest known ones."""
    if prompt_check is None:
        return ""
    text = f"{prompt_check.tokens} of {prompt_check.max_tokens} tokens"
    if prompt_check.is_cut:
        text += '; <span class="unknown">the rest is cut off</span>'
    if prompt_check.unknown:
        unknown = ", ".join(
            _unknown_words_html(word, near) for word, near in prompt_check.unknown.items()
        )
        text += f'; <span class="unknown">{escape(card.name)} does not know {unknown}</span>'
    return paragraph(text)


def _unknown_words_html(word: str, near: Sequence[str]) -> str:
    hint = f" (nearest: {escape(', '.join(near))})" if near else ""
    return f"“{escape(word)}”{hint}"


def plan_html(plan: VideoPlan) -> str:
    """Return what will be computed, how long that takes, and what differs from the request."""
    steps = f"{plan.steps} + {plan.refine_steps}" if plan.refine_steps else f"{plan.steps}"
    steps += " step" if steps == "1" else " steps"
    if plan.windows > 1:
        steps += f" for each of {plan.windows} overlapping parts"
    eta = plan.eta
    others = "another clip" if plan.ahead == 1 else f"{plan.ahead} other clips"
    ahead = f", after {others}" if plan.ahead else ""
    lines = [
        paragraph(
            f"<strong>{plan.size}, {plan.frames} frames at {plan.fps:g} a second"
            f"{', with sound' if plan.audio else ''}</strong>, {steps}"
        ),
        paragraph(
            f"Ready in about <strong>{time_text(eta.seconds)}</strong> "
            f"({time_text(eta.low)} to {time_text(eta.high)}){ahead}"
        ),
    ]
    if plan.offload and plan.offload != "none":
        offload_note = (
            "Not enough memory to keep the whole model loaded: "
            f"offload mode {plan.offload} is used (slower)."
        )
        lines.append(paragraph(offload_note))
    if plan.fetch_bytes:
        fetched = f"{plan.fetch_bytes / 1e9:.1f} GB of weights are downloaded first, once."
        lines.append(paragraph(fetched))
    if plan.changes:
        reasons = "".join(f"<li>{escape(change.reason)}</li>" for change in plan.changes)
        lines.append(f"<ul>{reasons}</ul>")
    return "".join(lines)


def submission_html(submission: Submission) -> str:
    """Return why fewer clips were queued than requested, "" if all were."""
    if submission.refusal is None:
        return ""
    count = f"{len(submission.jobs)} of {submission.requested} variations were queued."
    return f'<p class="notice">{count} {escape(public_text(submission.refusal))}</p>'


def time_text(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def error_html(error: FilmletError | ValidationError) -> str:
    """Return the message of an error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return _error_paragraph(f"{param}: {first['msg']}.", param)
    param = error.param if isinstance(error, InvalidRequest) else ""
    return _error_paragraph(public_text(error), param)


def _error_paragraph(text: str, param: str) -> str:
    """param: the page's script shows the text beside this field, too."""
    return f'<p class="error" data-param="{escape(param)}">{escape(text)}</p>'


def paragraph(text: str) -> str:
    return f"<p>{text}</p>"
