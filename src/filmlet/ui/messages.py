"""What the page says: of a model, of a sentence that is being written, of what will be done."""

from collections.abc import Sequence
from html import escape

from pydantic import ValidationError

from filmlet.api.error_handlers import public_text
from filmlet.api.schemas import VideoPlan
from filmlet.core.model_card import ModelCard
from filmlet.errors import FilmletError
from filmlet.models import PromptCheck


def model_html(card: ModelCard) -> str:
    """One honest line on a model: what it is, how large, what it was made for."""
    size = f", {card.size_bytes / 1e9:.0f} GB" if card.size_bytes else ""
    grid = card.grid
    best = f"Made for {grid.width}x{grid.height} and {grid.frames} frames."
    return paragraph(f"{escape(card.summary[:1].upper() + card.summary[1:])}{size}. {best}")


def token_count_html(card: ModelCard, prompt_check: PromptCheck | None) -> str:
    """Tokens, and the words the model does not know with the nearest it knows."""
    if prompt_check is None:
        return ""
    text = f"{prompt_check.tokens} of {prompt_check.max_tokens} tokens"
    if prompt_check.is_cut:
        text += '; <span class="unknown">what is beyond is cut off</span>'
    if prompt_check.unknown:
        unknown = ", ".join(
            _unknown_words_html(word, near) for word, near in prompt_check.unknown.items()
        )
        text += f'; <span class="unknown">{escape(card.name)} does not know {unknown}</span>'
    return paragraph(text)


def _unknown_words_html(word: str, near: Sequence[str]) -> str:
    hint = f" (but {escape(' and '.join(near))})" if near else ""
    return f"“{escape(word)}”{hint}"


def plan_html(plan: VideoPlan) -> str:
    """What will really be done, and when it will be there."""
    steps = f"{plan.steps} + {plan.refine_steps}" if plan.refine_steps else f"{plan.steps}"
    if plan.windows > 1:
        steps += f", in {plan.windows} parts that go on from each other"
    eta = plan.eta
    ahead = f"; {plan.ahead} before it" if plan.ahead else ""
    lines = [
        paragraph(
            f"<strong>{plan.size}, {plan.frames} frames at {plan.fps:g} a second</strong>, "
            f"{steps} steps"
        ),
        paragraph(
            f"Ready in about <strong>{time_text(eta.seconds)}</strong> "
            f"({time_text(eta.low)} to {time_text(eta.high)}){ahead}"
        ),
    ]
    if plan.offload and plan.offload != "none":
        offload_note = (
            f"The model has too little room here: it is held in {plan.offload}, which takes longer."
        )
        lines.append(paragraph(offload_note))
    if plan.fetch_bytes:
        fetched = f"{plan.fetch_bytes / 1e9:.1f} GB of weights are fetched first, once."
        lines.append(paragraph(fetched))
    if plan.changes:
        reasons = "".join(f"<li>{escape(change.reason)}</li>" for change in plan.changes)
        lines.append(f"<ul>{reasons}</ul>")
    return "".join(lines)


def time_text(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def error_html(error: FilmletError | ValidationError) -> str:
    """Why it cannot be done, in the error's own sentence."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return paragraph(escape(f"{first['loc'][-1]}: {first['msg']}."), "refused")
    return paragraph(escape(public_text(error)), "refused")


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text}</p>'
