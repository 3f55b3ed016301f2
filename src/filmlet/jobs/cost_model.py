"""Seconds that a clip takes, fitted to earlier clips, with a conformal error band.

A clip is load + encode + calls x f(tokens) + decode x pixels. Each part is a small model with
non-negative coefficients, fitted by least squares of relative errors to the latest measurements of
one model on one device; the band comes from the errors it makes on measurements left out.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from filmlet.core.events import Stage
from filmlet.engine.placement import core_count
from filmlet.jobs.job import Estimate
from filmlet.pipeline.plan import Plan

Floats = NDArray[np.float64]
LATEST = 64  # measurements that count
HALF_LIFE = 16  # measurements after which one counts half
WINDOW = 24  # latest errors that make the band
RECENT_ERRORS = 5  # latest errors whose median says how fast the machine is now
BAND = 0.85  # of clips should end inside
FEW_ERROR = 0.7  # logarithm; what an error may be, besides those seen
# Before anything was measured: what a machine must compute, in operations, and how wrong that may
# be. The factors were fitted on one machine; the error says so.
GUESS_ERROR = 1.3
OVERHEAD_S = 2.0
PIXEL_OPERATIONS = 60_000.0
ONE_CORE_SIDE = 64  # of matrices whose product no library shares out among threads
AUDIO_OPERATIONS = 3e11  # of a second of sound
CONSTANT_STAGES = (Stage.LOAD, Stage.ENCODE)
CONSTANT_TERM = ((0,),)  # powers of units
POLYNOMIAL_TERMS = (
    (1,),
    (0,),
    (2,),
    (0, 1),
    (1, 2),
    (0, 2),
    (0, 1, 2),
)  # attention: a call has the square


@dataclass(frozen=True)
class Sample:
    """One finished stage. units: see `units`; seconds: of one unit's call, or of the stage."""

    stage: Stage
    units: float
    seconds: float


@dataclass(frozen=True)
class WorkloadSize:
    """What the cost of a clip depends on. parameters: of the transformer; refine_*: stage two.

    audio_seconds: of its sound, 0 without.
    """

    tokens: int
    calls: int
    pixels: int
    parameters: float
    refine_tokens: int = 0
    refine_calls: int = 0
    audio_seconds: float = 0.0

    @classmethod
    def from_plan(cls, plan: Plan, parameters: float) -> "WorkloadSize":
        shape, grid = plan.shape, plan.card.grid
        area = (shape.generated_width // grid.spatial_compression) * (
            shape.generated_height // grid.spatial_compression
        )
        calls = plan.predictions_per_step * len(plan.windows) * len(plan.sigmas)
        refine_steps = len(plan.windows) * len(plan.refine_sigmas)
        refine_calls = plan.predictions_per_refine_step * refine_steps
        pixels = shape.generated_width * shape.generated_height * shape.generated_frames
        tokens = plan.max_latent_frames_per_call * area
        first = tokens // grid.upscale_factor**2 if refine_calls else tokens
        refined = tokens if refine_calls else 0
        audio_seconds = round(shape.frames / shape.fps, 4) if plan.has_audio else 0.0
        return cls(first, calls, pixels, parameters, refined, refine_calls, audio_seconds)

    def units(self, stage: Stage) -> float:
        """Return what a stage's seconds grow with: tokens of a call, pixels, sound, or nothing."""
        match stage:
            case Stage.DENOISE:
                return float(self.tokens)
            case Stage.REFINE:
                return float(self.refine_tokens)
            case Stage.UPSAMPLE | Stage.DECODE | Stage.MUX:
                return float(self.pixels)
            case Stage.DECODE_AUDIO:
                return self.audio_seconds
            case _:
                return 1.0

    def calls_of(self, stage: Stage) -> int:
        """Return the model calls of a stage; 1 without a loop, 0 if the clip lacks it."""
        match stage:
            case Stage.DENOISE:
                return self.calls
            case Stage.REFINE:
                return self.refine_calls
            case Stage.UPSAMPLE:
                return min(1, self.refine_calls)
            case Stage.DECODE_AUDIO:
                return 1 if self.audio_seconds else 0
            case _:
                return 1


@dataclass(frozen=True, eq=False)
class StageEstimate:
    """Seconds of one stage; errors: logarithms of true by predicted of the latest, newest first."""

    seconds: float
    errors: Floats  # (WINDOW,)


@dataclass(frozen=True, eq=False)
class StageCurve:
    """Seconds of one stage's call, by powers 0 to 2 of its units; errors: as StageEstimate's."""

    coefficients: Floats
    errors: Floats

    def estimate_seconds(self, units: float) -> float:
        return max(float(self.coefficients @ (1.0, units, units**2)), 1e-4)


class CostModel:
    """Predicts the seconds of clips of one model on one device."""

    def __init__(self, samples: Sequence[Sample], speed: float) -> None:
        """samples: latest last; speed: of the device, operations a second."""
        self.speed = speed
        self.curves: dict[Stage, StageCurve] = {}
        for stage in Stage:
            # Nothing can be fitted to a stage that was told to cost nothing.
            known = [s for s in samples if s.stage == stage and s.units > 0]
            if stage_samples := known[-LATEST:]:
                units = np.array([s.units for s in stage_samples])
                seconds = np.array([max(s.seconds, 1e-4) for s in stage_samples])
                self.curves[stage] = _fit_curve(
                    units, seconds, CONSTANT_TERM if stage in CONSTANT_STAGES else POLYNOMIAL_TERMS
                )

    def stage_estimate(self, stage: Stage, size: WorkloadSize) -> StageEstimate:
        """Estimate one stage."""
        calls = size.calls_of(stage)
        if curve := self.curves.get(stage):
            return StageEstimate(calls * curve.estimate_seconds(size.units(stage)), curve.errors)
        return StageEstimate(calls * self._guess_stage(stage, size), np.full(WINDOW, GUESS_ERROR))

    def estimate(self, size: WorkloadSize, stages: Sequence[Stage] = tuple(Stage)) -> Estimate:
        """Estimate the seconds of these stages."""
        return sum_estimates([self.stage_estimate(stage, size) for stage in stages])

    def _guess_stage(self, stage: Stage, size: WorkloadSize) -> float:
        match stage:
            case Stage.LOAD:
                return OVERHEAD_S + size.parameters / 5e8
            case Stage.DENOISE | Stage.REFINE:
                return 4 * size.parameters * size.units(stage) / self.speed
            case Stage.DECODE:
                return PIXEL_OPERATIONS * size.pixels / self.speed
            case Stage.DECODE_AUDIO:
                return AUDIO_OPERATIONS * size.audio_seconds / self.speed
            case _:
                return 0.1


def sum_estimates(parts: Sequence[StageEstimate]) -> Estimate:
    """Sum estimates, with a conformal band: the errors it would have had for the latest clips.

    The errors of one clip's stages stay together: a busy machine makes all of them late.
    """
    seconds = sum(part.seconds for part in parts)
    if seconds <= 0:
        return Estimate(0.0, 0.0, 0.0)
    true = sum(part.seconds * np.exp(part.errors) for part in parts)
    errors = np.sort(np.abs(np.log(true / seconds)))
    factor = math.exp(errors[math.ceil(BAND * (WINDOW + 1)) - 1])
    return Estimate(seconds, seconds / factor, seconds * factor)


def _fit_curve(units: Floats, seconds: Floats, choices: Sequence[Sequence[int]]) -> StageCurve:
    """Fit by weighted least squares of relative errors, with coefficients of at least 0.

    One size seen: the first choice, until another size says otherwise.
    """
    scale = units.max()
    table = (units[:, None] / scale) ** np.arange(3) / seconds[:, None]  # (samples, powers)
    root = np.sqrt(0.5 ** (np.arange(len(units))[::-1] / HALF_LIFE))
    coefficients, errors, least = np.zeros(3), np.zeros(0), math.inf
    for chosen in choices[: 1 if (units == units[0]).all() else None]:
        columns = table[:, chosen] * root[:, None]
        solution, _, rank, _ = np.linalg.lstsq(columns, root, rcond=None)
        error = float(((columns @ solution - root) ** 2).sum()) * (1 + 0.05 * len(chosen))
        if rank == len(chosen) and (solution >= 0).all() and error < least:
            coefficients, least = np.zeros(3), error
            coefficients[list(chosen)] = solution
            errors = _leave_one_out_errors(columns, solution, root)
    pace = float(np.median(errors[:RECENT_ERRORS])) if len(errors) >= RECENT_ERRORS else 0.0
    # Few errors are repeated to fill the window, and a large one with them.
    errors = np.resize([*(errors - pace), FEW_ERROR][:WINDOW], WINDOW)
    return StageCurve(coefficients * math.exp(pace) / scale ** np.arange(3), errors)


def _leave_one_out_errors(columns: Floats, coefficients: Floats, root: Floats) -> Floats:
    """Return leave-one-out errors in closed form, newest first."""
    leverage = (columns * np.linalg.pinv(columns).T).sum(1)
    others = leverage < 0.999  # a sample that nothing else is like says nothing about errors
    wrong = (1 - columns @ coefficients / root)[others] / (1 - leverage[others])
    bound = math.exp(FEW_ERROR)
    errors: Floats = -np.log(np.clip(1 - wrong, 1 / bound, bound))[::-1]
    return errors


@cache
def measure_flops(budget_s: float = 0.05) -> float:
    """Measure the operations a second of matrix products on all cores of this CPU.

    The quickest product of one core counts: beside other work, the mean of larger products, whose
    threads wait for each other, is up to 100 times less, and no clip is slowed as much.
    """
    matrix = np.ones((ONE_CORE_SIDE, ONE_CORE_SIDE), dtype=np.float32)
    product = np.empty_like(matrix)
    quickest, started = math.inf, time.perf_counter()
    while (now := time.perf_counter()) - started < budget_s:
        np.matmul(matrix, matrix, out=product)
        quickest = min(quickest, time.perf_counter() - now)
    return core_count() * 2 * ONE_CORE_SIDE**3 / quickest
