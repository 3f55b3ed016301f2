"""What a clip costs in seconds, learned from the clips before it, with an error band.

A clip is load + encode + calls x f(tokens) + decode x pixels. Each part is a small model with
non-negative coefficients, fitted by least squares of relative errors to the latest measurements of
one model on one device; the band comes from the errors it makes on measurements left out.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from filmlet.events import Stage
from filmlet.jobs.job import Estimate
from filmlet.plan import Plan

Floats = NDArray[np.float64]
LATEST = 64  # measurements that count
HALF_LIFE = 16  # measurements after which one counts half
BAND_SIGMAS = 1.6
# Before anything was measured: what a machine must compute, in operations, and how wrong that may
# be. The factors were fitted on one machine; the spread says so.
GUESS_SPREAD = 0.8
OVERHEAD_S = 2.0
PIXEL_OPERATIONS = 60_000.0


@dataclass(frozen=True)
class Sample:
    """One finished stage. units: see `units`; seconds: of one unit's call, or of the stage."""

    stage: Stage
    units: float
    seconds: float


@dataclass(frozen=True)
class Size:
    """What a clip's cost depends on. parameters: of the transformer; refine_*: second stage."""

    tokens: int
    calls: int
    pixels: int
    parameters: float
    refine_tokens: int = 0
    refine_calls: int = 0

    @classmethod
    def of(cls, plan: Plan, parameters: float) -> "Size":
        shape, grid = plan.shape, plan.card.grid
        frames = (shape.made_frames - 1) // grid.time + 1 + plan.beside
        area = (shape.made_width // grid.side) * (shape.made_height // grid.side)
        twice = 2 if plan.guidance > 1 else 1
        calls, refine_calls = twice * len(plan.sigmas), twice * len(plan.refine_sigmas)
        pixels = shape.made_width * shape.made_height * shape.made_frames
        tokens = frames * area
        first = tokens // grid.scale**2 if refine_calls else tokens
        refined = tokens if refine_calls else 0
        return cls(first, calls, pixels, parameters, refined, refine_calls)

    def units(self, stage: Stage) -> float:
        """What a stage's seconds grow with: tokens of one call, pixels, or nothing."""
        match stage:
            case Stage.DENOISE:
                return float(self.tokens)
            case Stage.REFINE:
                return float(self.refine_tokens)
            case Stage.UPSAMPLE | Stage.DECODE | Stage.MUX:
                return float(self.pixels)
            case _:
                return 1.0

    def calls_of(self, stage: Stage) -> int:
        """Model calls of a stage; 1 for a stage that is one, 0 for one that this clip has not."""
        match stage:
            case Stage.DENOISE:
                return self.calls
            case Stage.REFINE:
                return self.refine_calls
            case Stage.UPSAMPLE:
                return min(1, self.refine_calls)
            case _:
                return 1


@dataclass(frozen=True)
class Part:
    """Seconds of one stage and the standard deviation of their logarithm."""

    seconds: float
    spread: float


class CostModel:
    """Predicts clips of one model on one device from the samples of earlier ones."""

    def __init__(self, samples: Sequence[Sample], speed: float) -> None:
        """samples: latest last; speed: of the device, operations a second."""
        self.speed = speed
        self._parts: dict[tuple[Stage, Size], Part] = {}
        self._spreads: dict[Stage, float] = {}
        self.samples = {
            stage: [s for s in samples if s.stage == stage][-LATEST:] for stage in Stage
        }

    def part(self, stage: Stage, size: Size) -> Part:
        """What one stage will take."""
        if (stage, size) not in self._parts:
            self._parts[stage, size] = self._part(stage, size)
        return self._parts[stage, size]

    def _part(self, stage: Stage, size: Size) -> Part:
        calls = size.calls_of(stage)
        if not calls:
            return Part(0.0, 0.0)
        known = self.samples[stage]
        if not known:
            return Part(calls * self._guess(stage, size), GUESS_SPREAD)
        units = np.array([s.units for s in known])
        seconds = np.array([max(s.seconds, 1e-4) for s in known])
        is_flat = stage in (Stage.LOAD, Stage.ENCODE)
        predicted = _predict(units, seconds, size.units(stage), is_flat)
        if stage not in self._spreads:
            self._spreads[stage] = _spread(units, seconds, is_flat)
        return Part(calls * predicted, self._spreads[stage])

    def estimate(self, size: Size, stages: Sequence[Stage] = tuple(Stage)) -> Estimate:
        """Seconds for these stages, and the band."""
        return total([self.part(stage, size) for stage in stages])

    def _guess(self, stage: Stage, size: Size) -> float:
        match stage:
            case Stage.LOAD:
                return OVERHEAD_S + size.parameters / 5e8
            case Stage.DENOISE | Stage.REFINE:
                return 4 * size.parameters * size.units(stage) / self.speed
            case Stage.DECODE:
                return PIXEL_OPERATIONS * size.pixels / self.speed
            case _:
                return 0.1


def total(parts: Sequence[Part]) -> Estimate:
    """The sum of parts; a busy machine makes all of them late, so their errors add up."""
    seconds = sum(part.seconds for part in parts)
    if seconds <= 0:
        return Estimate(0.0, 0.0, 0.0)
    spread = sum(part.seconds * part.spread for part in parts) / seconds
    factor = math.exp(BAND_SIGMAS * spread)
    return Estimate(seconds, seconds / factor, seconds * factor)


def _weights(count: int) -> Floats:
    return 0.5 ** (np.arange(count)[::-1] / HALF_LIFE)


def _features(units: Floats, is_flat: bool) -> Floats:
    """A constant, a linear and a square term; attention is why a call has the last."""
    one = np.ones_like(units)
    return np.stack([one] if is_flat else [one, units, units**2], axis=1)


def _predict(units: Floats, seconds: Floats, wanted: float, is_flat: bool) -> float:
    """Weighted least squares of relative errors, coefficients at least 0."""
    if is_flat:
        return float(np.exp(np.average(np.log(seconds), weights=_weights(len(seconds)))))
    scale = units.max()
    features = _features(units / scale, is_flat=False) / seconds[:, None]
    root = np.sqrt(_weights(len(seconds)))
    best: tuple[float, Floats] | None = None
    distinct = len(np.unique(units))
    for count in range(1, min(3, distinct) + 1):
        for chosen in combinations((1, 0, 2), count):
            columns = features[:, chosen] * root[:, None]
            found, *_ = np.linalg.lstsq(columns, root, rcond=None)
            if (found < 0).any():
                continue
            if distinct == 1 and chosen != (1,):
                continue  # one size seen: seconds grow with units until another says otherwise
            error = float(((columns @ found - root) ** 2).sum()) * (1 + 0.05 * count)
            if best is None or error < best[0]:
                full = np.zeros(3)
                full[list(chosen)] = found
                best = error, full
    if best is None:
        return float(np.average(seconds))
    value = float((_features(np.array([wanted / scale]), is_flat=False) @ best[1])[0])
    return max(value, 1e-4)


def _spread(units: Floats, seconds: Floats, is_flat: bool) -> float:
    """Deviation of the logarithm of errors on left-out samples, wary when there are few."""
    count = len(seconds)
    errors = [0.5, 0.3]  # what is believed before there are samples
    for i in range(max(0, count - 16), count):
        rest = np.arange(count) != i
        if rest.any():
            guess = _predict(units[rest], seconds[rest], float(units[i]), is_flat)
            errors.append(float(np.clip(math.log(seconds[i] / guess), -1.5, 1.5)))
    return float(np.sqrt(np.mean(np.square(errors))))


@cache
def probe(budget_s: float = 0.1) -> float:
    """Operations a second of a matrix product on this machine's CPU."""
    matrix = np.ones((384, 384), dtype=np.float32)
    matrix @ matrix
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < budget_s:
        matrix @ matrix
        count += 1
    return 2 * 384**3 * count / (time.perf_counter() - started)
