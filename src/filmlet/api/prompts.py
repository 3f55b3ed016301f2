"""Routes under /v1/prompts, and prompts of other bodies that are enhanced before they are used."""

from collections.abc import Sequence
from typing import TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field

from filmlet.api.dependencies import AppState, AppStateDep, Caller, CallerDep
from filmlet.api.field_types import LONGEST_PROMPT, Name
from filmlet.api.openapi import refusals
from filmlet.api.schemas import RequestModel, VideoCreate, VideoExtend
from filmlet.api.submissions import check_model
from filmlet.core.enhanced_prompt import EnhancedPrompt
from filmlet.enhancers import check_prompts, enhance_prompts

router = APIRouter(
    prefix="/v1/prompts", tags=["prompts"], responses=refusals(400, 401, 413, 429, 500, 502, 503)
)
Body = TypeVar("Body", VideoCreate, VideoExtend)


class PromptEnhance(RequestModel):
    """A prompt, and the model that is to read it."""

    prompt: str = Field(max_length=LONGEST_PROMPT, json_schema_extra={"minLength": 1})
    model: Name = "pocket"


class PromptEnhanced(BaseModel):
    """The prompt in words that the model understands best, and what wrote them."""

    prompt: str
    enhanced_prompt: str
    source: str


@router.post("/enhance")
async def enhance(body: PromptEnhance, shared: AppStateDep, who: CallerDep) -> PromptEnhanced:
    """Enhance a prompt for a model; make no video. Counts as a submission."""
    (enhanced,) = await enhance_texts(shared, who, [body.prompt], body.model)
    return PromptEnhanced(
        prompt=enhanced.requested, enhanced_prompt=enhanced.text, source=enhanced.source
    )


async def enhance_texts(
    shared: AppState, who: Caller, prompts: Sequence[str], model: str, *, audio: bool = True
) -> tuple[EnhancedPrompt, ...]:
    """Return the prompts, enhanced. Raises what `enhance_prompt` raises, and TooManyJobs."""
    check_model(model)
    check_prompts(prompts)
    return await shared.run_enhancer(who, _enhance, shared, who, prompts, model, audio)


def _enhance(
    shared: AppState, who: Caller, prompts: Sequence[str], model: str, audio: bool
) -> tuple[EnhancedPrompt, ...]:
    shared.queue.record_prompts(who.submit_options(), len(prompts))
    return enhance_prompts(prompts, model, shared.settings, audio=audio)


async def enhance_body(shared: AppState, who: Caller, body: Body, model: str) -> Body:
    """Return the body with its prompts enhanced, if it asks for that.

    What is wrong with the rest of it is refused before. Raises what `enhance_texts` raises.
    """
    if not body.enhance_prompt:
        return body
    body.check_fields()
    enhanced = await enhance_texts(shared, who, body.prompts, model, audio=body.audio)
    return body.with_enhanced_prompts(enhanced)
