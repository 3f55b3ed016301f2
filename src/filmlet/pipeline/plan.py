"""What can be decided about a clip without touching a tensor: quick, fit for a web process."""

from dataclasses import dataclass, replace
from pathlib import Path

from filmlet.core.lora import Adapter
from filmlet.core.memory import Need, needs
from filmlet.core.model_card import Components, Files, ModelCard
from filmlet.core.request import ClipRequest
from filmlet.core.shape import Change, Shape, fit
from filmlet.core.windows import Window, holding, split
from filmlet.errors import InvalidRequest, NotOffered
from filmlet.models import find, locate, look_at_loras, parameters
from filmlet.pipeline.media_inputs import Given, lengthened, read_clip, read_guides, settled


@dataclass(frozen=True)
class Plan:
    """A request that a model can meet, and how. files: the model's, None until fetched.

    shape: of the clip. refine_sigmas: empty where one stage is all there is. guides: with the
    files that are shown; clip: that is extended, its last frames come before the new ones. loras:
    with the files that they are in, None for those that must be fetched. windows: that the model
    makes it in.
    """

    request: ClipRequest
    card: ModelCard
    files: Files | None
    shape: Shape
    sigmas: tuple[float, ...]
    refine_sigmas: tuple[float, ...]
    guidance: float
    changes: tuple[Change, ...]
    guides: tuple[Given, ...] = ()
    clip: Given | None = None
    loras: tuple[Adapter | None, ...] = ()
    windows: tuple[Window, ...] = ()

    @property
    def given(self) -> tuple[Given, ...]:
        """Every file that is needed."""
        return (*self.guides, self.clip) if self.clip else self.guides

    @property
    def parameters(self) -> Components[float]:
        """How many values each component of the model has."""
        if self.card.parameters:
            return self.card.parameters
        assert self.files  # only a catalogue's model can be elsewhere
        return parameters(self.files)

    def needs(self, value_bytes: int) -> tuple[Need, ...]:
        """Memory that each way of holding the model takes, in a dtype of so many bytes."""
        card, time = self.card, self.card.grid.time
        call = replace(self.shape, made_frames=(self.call_latents - 1) * time + 1)
        return needs(self.parameters, call, card.grid, value_bytes, card.stored_bytes)

    @property
    def call_latents(self) -> int:
        """Latent frames of the largest model call; guides add some to their window's."""
        time = self.card.grid.time
        return max(len(w.latents(time)) + self._beside(w) for w in self.windows)

    def _beside(self, window: Window) -> int:
        guides = [g for g in self.guides if g.frame and holding(self.windows, g.frame) is window]
        # Of a video that does not begin the clip, the first two; a picture is one.
        return sum(min(2, self.card.grid.latents(g.frames)) for g in guides)


def plan(request: ClipRequest, folder: Path | None = None) -> Plan:
    """Fit the request to its model; the files that it names lie in `folder`, if it is given.

    Raises InvalidRequest, UnknownModel, CheckpointMissing, CheckpointDamaged.
    """
    asked, card = request, find(request.model)
    changes: list[Change] = []
    clip = read_clip(request, card, folder)
    if request.backward and not clip:
        raise InvalidRequest("backward says how a clip is extended; name one.", param="extend")
    if clip:
        request = settled(request, clip, changes)
    shape, cuts = fit(request, card.grid, clip.frames if clip else 0)
    changes += cuts
    if clip:
        shape, clip = lengthened(request, shape, clip)
    refine_sigmas = card.refine.sigmas if card.refine else ()
    if request.draft:
        shape, refine_sigmas = _draft(card, shape, changes), ()
    windows = _windows(request, card, shape, changes)
    guides = read_guides(request, card, shape, folder, changes)
    sigmas = _sigmas(request, card, changes)
    guidance = _guidance(request, card)
    if request.negative_prompt and guidance <= 1:
        reason = f"{card.name} runs without guidance, which a negative prompt needs"
        changes.append(Change("negative_prompt", request.negative_prompt, "", reason))
    return Plan(
        request=asked,
        card=card,
        files=locate(card),
        shape=shape,
        sigmas=sigmas,
        refine_sigmas=refine_sigmas,
        guidance=guidance,
        changes=tuple(changes),
        guides=guides,
        clip=clip,
        loras=look_at_loras(request.loras, folder),
        windows=windows,
    )


def _draft(card: ModelCard, shape: Shape, changes: list[Change]) -> Shape:
    if card.refine is None:
        raise NotOffered(f"{card.name} has one stage: it makes no drafts.", param="draft")
    half = shape.halved()
    asked, made = f"{shape.width}x{shape.height}", f"{half.width}x{half.height}"
    changes.append(Change("size", asked, made, "a draft is the first stage, at half the size"))
    return half


def _windows(
    request: ClipRequest, card: ModelCard, shape: Shape, changes: list[Change]
) -> tuple[Window, ...]:
    grid = card.grid
    if request.then and not grid.overlap:
        raise NotOffered(f"{card.name} takes one prompt a clip.", param="then")
    windows = split(shape, grid, len(request.prompts))
    if request.backward and len(windows) > 1:
        most = grid.max_frames - shape.context
        raise NotOffered(
            f"What comes before a clip is made at once, for one prompt: at most {most} frames.",
            param="frames" if not request.then else "then",
        )
    if len(windows) > 1:
        why = f"the model makes at most {grid.max_frames} frames at once"
        if shape.made_frames <= grid.max_frames:
            why = "each prompt has its own part of the clip"
        each = f"windows of at most {grid.window} frames that share {grid.overlap}"
        reason = f"{why}; made in {len(windows)} {each}"
        changes.append(Change("windows", 1, len(windows), reason))
    return windows


def _sigmas(request: ClipRequest, card: ModelCard, changes: list[Change]) -> tuple[float, ...]:
    steps = card.schedule.steps if request.steps is None else request.steps
    if steps > card.max_steps:
        raise InvalidRequest(
            f"steps must be between 1 and {card.max_steps}, got {steps}.", param="steps"
        )
    sigmas = card.schedule.at(steps)
    if card.distilled and steps != card.schedule.steps:
        reason = f"{card.name} is distilled for {card.schedule.steps} steps; expect a weaker clip"
        changes.append(Change("sigmas", None, sigmas, reason))
    return sigmas


def _guidance(request: ClipRequest, card: ModelCard) -> float:
    if request.guidance is None:
        return card.guidance
    if request.guidance < 1:
        raise InvalidRequest(
            f"guidance must be 1 (none) or more, got {request.guidance:g}.", param="guidance"
        )
    if card.distilled and request.guidance > 1 and not request.force_guidance:
        raise InvalidRequest(
            f"{card.name} is distilled to run without guidance, and guidance {request.guidance:g} "
            "would spoil its clips; say --force-guidance to do it all the same.",
            param="guidance",
        )
    return request.guidance
