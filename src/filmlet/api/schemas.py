"""Schemas of the Videos API: requests and responses.

Source: the `openai` package, resources/videos.py and types/video*.py; fields of our own come after
the standard ones, each with None or a value, never left out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from filmlet.api.field_types import (
    LONGEST_PROMPT,
    EnhanceFlag,
    ExtraPrompts,
    Flag,
    Float,
    Name,
    Number,
    WholeNumber,
    list_one,
)
from filmlet.core.enhanced_prompt import EnhancedPrompt
from filmlet.core.guide import Guide
from filmlet.core.request import ClipRequest, build_request
from filmlet.errors import InvalidRequest
from filmlet.jobs import Forecast, Job, Priority, Status
from filmlet.models import MAX_UNKNOWN, PromptCheck

MIN_POLL_MS, MAX_POLL_MS = 250, 5000
VideoStatus = Literal["queued", "in_progress", "completed", "failed"]
STATUSES: dict[Status, VideoStatus] = {
    Status.QUEUED: "queued",
    Status.RUNNING: "in_progress",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "failed",  # typed clients know four; `error.code` tells the two apart
}
MAX_LORAS = 8


class RequestModel(BaseModel):
    """A request body; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, sent: Any) -> Any:
        """null is a field that is not given, where one may be left out."""
        if not isinstance(sent, dict):
            return sent
        fields = cls.model_fields
        return {
            name: value
            for name, value in sent.items()
            if value is not None or name not in fields or fields[name].is_required()
        }


class VideoLora(RequestModel):
    """A LoRA on the Hub, owner/name or owner/name/file.safetensors, and its strength."""

    source: Name
    strength: Float = 1.0


LoraList = Annotated[
    list[VideoLora | Name],
    Field(max_length=MAX_LORAS),
    BeforeValidator(
        list_one,
        json_schema_input_type=Annotated[list[VideoLora | Name], Field(max_length=MAX_LORAS)]
        | Name,
    ),
]


class ClipBody(RequestModel):
    """A body with prompts, which may have been enhanced."""

    prompt: str
    extra_prompts: list[str]
    _enhanced_prompts: tuple[EnhancedPrompt, ...] = PrivateAttr(())

    @property
    def prompts(self) -> list[str]:
        """Return all prompts as they were sent."""
        return [self.prompt, *self.extra_prompts]

    def with_enhanced_prompts(self, prompts: tuple[EnhancedPrompt, ...]) -> Self:
        """Return the body with what the model is to read instead of its prompts."""
        body = self.model_copy()
        body._enhanced_prompts = prompts
        return body

    def check_fields(self) -> None:
        """Raise InvalidRequest for fields that no clip can have, whatever its files."""
        self._build_request()

    def _build_request(self, **given: Any) -> ClipRequest:
        """Return the fields as a ClipRequest; `given` are more of them. Raises InvalidRequest."""
        _check_length(*self.prompts)
        body_only = {"prompt", "priority", "enhance_prompt", "extra_prompts", *given}
        options = self.model_dump(exclude=body_only, exclude_none=True)
        prompt, *extra_prompts = self._enhanced_prompts or self.prompts
        request = build_request(prompt, extra_prompts=extra_prompts, **options, **given)
        return _require_hub_loras(request)


class VideoCreate(ClipBody):
    """A video to create. Only the prompt is required; other defaults are the model's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "a red star bouncing at sunset", "seconds": "1", "seed": 7}]
        },
    )

    prompt: str = Field(max_length=LONGEST_PROMPT, json_schema_extra={"minLength": 1})
    model: Name = "pocket"
    seconds: Number = Field(None, description="Length of the clip; text or a number.")
    size: str | None = Field(
        None, max_length=40, description="WIDTHxHEIGHT in pixels.", examples=["256x256"]
    )
    seed: WholeNumber = None
    frames: WholeNumber = Field(None, description="Length in frames, instead of seconds.")
    fps: Number = None
    steps: WholeNumber = None
    negative_prompt: str = Field("", max_length=LONGEST_PROMPT)
    guidance: Number = None
    priority: Priority = Priority.NORMAL
    draft: Flag = Field(False, description="First of two stages only; `refine` runs the second.")
    loras: LoraList = Field([], description="LoRAs of the Hub; as text, NAME or NAME:STRENGTH.")
    extra_prompts: ExtraPrompts = []
    audio: Flag = Field(True, description="Sound, of a model that makes it.")
    enhance_prompt: EnhanceFlag = False

    def to_clip_request(self, guides: Sequence[Guide] = ()) -> ClipRequest:
        """Return the body as a ClipRequest. Raises InvalidRequest."""
        return self._build_request(guides=guides)


class VideoExtend(ClipBody):
    """A video to extend; its size and frame rate stay, and its model if it was made here."""

    prompt: str = Field(max_length=LONGEST_PROMPT, json_schema_extra={"minLength": 1})
    model: Name | None = None
    seconds: Number = Field(None, description="Length of the added part; text or a number.")
    seed: WholeNumber = None
    frames: WholeNumber = Field(
        None, description="Length of the added part in frames, instead of seconds."
    )
    steps: WholeNumber = None
    negative_prompt: str = Field("", max_length=LONGEST_PROMPT)
    guidance: Number = None
    priority: Priority = Priority.NORMAL
    loras: LoraList = Field([], description="LoRAs of the Hub; as text, NAME or NAME:STRENGTH.")
    extra_prompts: ExtraPrompts = []
    extend_backward: Flag = Field(False, description="The added part comes before the video.")
    audio: Flag = Field(True, description="Sound, of a model that makes it.")
    enhance_prompt: EnhanceFlag = False

    def to_clip_request(self, model: str, clip: str | None = None) -> ClipRequest:
        """Return the body as a ClipRequest. Raises InvalidRequest."""
        return self._build_request(model=model, extend=clip)


def _check_length(*prompts: str) -> None:
    """Limit the text: tokenizing it takes time. Raises InvalidRequest."""
    total = sum(map(len, prompts))
    if total > LONGEST_PROMPT:
        raise InvalidRequest(
            f"All prompts together may have {LONGEST_PROMPT} characters, got {total}.",
            param="extra_prompts",
        )


def _require_hub_loras(request: ClipRequest) -> ClipRequest:
    """Refuse LoRA files of this machine: clients may not name paths. Raises InvalidRequest."""
    for lora in request.loras:
        if not lora.is_on_hub:
            raise InvalidRequest(
                f"A LoRA is owner/name or owner/name/file.safetensors here, got {lora.source!r}.",
                param="loras",
            )
    return request


class VideoRemix(RequestModel):
    """The same settings with another prompt."""

    prompt: str = Field(max_length=LONGEST_PROMPT, json_schema_extra={"minLength": 1})
    enhance_prompt: EnhanceFlag = False


class VideoPriority(RequestModel):
    """A new priority of a queued video."""

    priority: Priority


class VideoError(BaseModel):
    """Why there is no clip: a stable code and a message."""

    code: str
    message: str


class Eta(BaseModel):
    """Seconds until the clip is done, with a range that holds for four of five."""

    seconds: float
    low: float
    high: float


class StageTime(BaseModel):
    """One stage of one attempt; `reused` if its result was there already."""

    stage: str
    attempt: int
    seconds: float
    reused: bool


class Video(BaseModel):
    """A job in OpenAI's fields, and more."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: VideoStatus
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None
    error: VideoError | None
    seed: int
    priority: Priority
    position: int | None = Field(description="Place in the queue, 1 is next.")
    eta: Eta | None
    stage: str | None
    step: int
    steps: int
    preview_url: str | None
    requested: dict[str, Any]
    effective: dict[str, Any] | None
    draft: bool
    stages: list[StageTime]
    attempt: int
    idle_seconds: float | None = Field(
        description="Seconds from the cancel until the worker was free."
    )

    @classmethod
    def from_job(cls, job: Job, keep_days: float, root_path: str) -> "Video":
        shape, failure = job.shape, job.failure
        error = VideoError(code=failure.code, message=failure.message) if failure else None
        if job.status == Status.CANCELLED:
            error = VideoError(code="cancelled", message="The clip was cancelled.")
        is_done = job.status == Status.COMPLETED and job.finished is not None
        has_preview = job.preview is not None and not job.status.is_final
        return cls(
            id=job.id,
            model=job.model,
            status=STATUSES[job.status],
            progress=math.floor(job.progress * 100),
            created_at=int(job.created),
            completed_at=int(job.finished) if is_done and job.finished else None,
            expires_at=int(job.finished + keep_days * 86400) if job.finished else None,
            prompt=job.requested["prompt"],
            seconds=f"{shape.frames / shape.fps:.4f}".rstrip("0").rstrip(".") if shape else "",
            size=f"{shape.width}x{shape.height}" if shape else "",
            remixed_from_video_id=job.source,
            error=error,
            seed=job.seed,
            priority=job.priority,
            position=job.position,
            eta=Eta(**asdict(job.eta)) if job.eta else None,
            stage=job.stage,
            step=job.done,
            steps=job.total,
            preview_url=f"{root_path}/v1/videos/{job.id}/preview" if has_preview else None,
            requested=job.requested,
            effective=job.effective,
            draft=bool(job.requested.get("draft")),
            stages=[StageTime(**asdict(record)) for record in job.stages],
            attempt=job.attempt,
            idle_seconds=job.cancel_latency_s,
        )


class ChangeModel(BaseModel):
    """A difference between requested and effective settings, and the reason."""

    field: str
    requested: Any
    effective: Any
    reason: str


class VideoPlan(BaseModel):
    """The plan of a request, which is not queued.

    tokens: of the prompt. unknown_words: of all prompts the first few, each with the nearest known
    ones; both None while the model's tokenizer is not here. windows: that it is made in, one after
    the other, each with so many steps. audio: whether the clip has sound. ahead: unfinished videos
    before it. fetch_bytes: of weights that come first, their time is not in `eta`. device to
    memory_bytes: how a worker would hold the model and what that takes, None while none is alive or
    where it has no room.
    """

    object: Literal["video.plan"] = "video.plan"
    model: str
    size: str
    generated_size: str
    frames: int
    generated_frames: int
    fps: float
    seconds: float
    steps: int
    refine_steps: int
    windows: int
    guidance: float
    audio: bool
    tokens: int | None
    max_tokens: int
    unknown_words: dict[str, list[str]] | None
    changes: list[ChangeModel]
    eta: Eta
    ahead: int
    fetch_bytes: int
    device: str | None
    dtype: str | None
    offload: str | None
    memory_bytes: int | None

    @classmethod
    def from_forecast(cls, forecast: Forecast, read: Sequence[PromptCheck | None]) -> "VideoPlan":
        """read: of each prompt."""
        plan, shape, prompt_check = forecast.plan, forecast.plan.shape, read[0]
        machine, need = forecast.machine, forecast.need
        unknown = {w: list(near) for check in read if check for w, near in check.unknown.items()}
        unknown = dict(islice(unknown.items(), MAX_UNKNOWN))
        return cls(
            model=plan.card.name,
            size=f"{shape.width}x{shape.height}",
            generated_size=f"{shape.generated_width}x{shape.generated_height}",
            frames=shape.frames,
            generated_frames=shape.generated_frames,
            fps=shape.fps,
            seconds=round(shape.frames / shape.fps, 4),
            steps=len(plan.sigmas),
            refine_steps=len(plan.refine_sigmas),
            windows=len(plan.windows),
            guidance=plan.guidance,
            audio=plan.has_audio,
            tokens=prompt_check.tokens if prompt_check else None,
            max_tokens=plan.card.max_prompt_tokens,
            unknown_words=unknown if prompt_check else None,
            changes=[ChangeModel(**asdict(change)) for change in plan.changes],
            eta=Eta(**asdict(forecast.eta)),
            ahead=forecast.ahead,
            fetch_bytes=forecast.fetch,
            device=machine.device if machine else None,
            dtype=machine.dtype if machine else None,
            offload=need.offload if need else None,
            memory_bytes=need.bytes if need else None,
        )


class VideoList(BaseModel):
    """A page of jobs; `last_id` is the next page's `after`."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The result of a delete. worker_idle: no worker computes the clip any more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool
    worker_idle: bool


class Model(BaseModel):
    """A model of the registry; `available` if its files are here, else they are downloaded first.

    bytes: of all its files, 0 for the bundled model.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    summary: str
    licence: str
    available: bool
    bytes: int
    default_size: str
    default_seconds: float
    max_side: int
    max_frames: int
    max_seconds: float = Field(description="Of a clip at the usual frame rate.")
    has_draft: bool
    guides: str = Field(description="Guides: first_frame, or any_frame (and videos).")
    modalities: list[Literal["video", "audio"]] = Field(description="What its clips consist of.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """An error: message, type, parameter, stable code."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    error: ErrorBody


def poll_after_ms(job: Job) -> int:
    """Return when to poll again: after a fifth of the remaining time, within bounds."""
    remaining_s = job.eta.seconds if job.eta else 0.0
    return max(MIN_POLL_MS, min(MAX_POLL_MS, round(remaining_s * 200)))
