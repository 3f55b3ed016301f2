"""Schedules: the noise levels before each model call."""

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class FixedSigmas:
    """A distilled model's own noise levels, one before each call; the end, 0, is not listed."""

    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    def sigmas_for(self, steps: int) -> tuple[float, ...]:
        """Return the levels of other numbers of calls, read off the line through the fixed ones."""
        if steps == self.steps:
            return self.sigmas
        spans = list(pairwise((*self.sigmas, 0.0)))
        places = (i * self.steps / steps for i in range(steps))
        return tuple(
            high + (low - high) * (position - int(position))
            for position in places
            for high, low in [spans[int(position)]]
        )


@dataclass(frozen=True)
class ShiftedSigmas:
    """Evenly spaced noise levels, moved towards noise: s -> shift s / (1 + (shift - 1) s).

    Source: Esser et al., 2024, arXiv 2403.03206, section 5.3.2.
    """

    steps: int
    shift: float = 1.0

    def sigmas_for(self, steps: int) -> tuple[float, ...]:
        """Return the levels before each of `steps` calls."""
        even = ((steps - i) / steps for i in range(steps))
        return tuple(self.shift * s / (1 + (self.shift - 1) * s) for s in even)


@dataclass(frozen=True)
class LinearQuadraticSigmas:
    """Noise levels that fall slowly, in a line, for half of the steps, and then in a parabola.

    Made for full models from 0.9.5 on (`LinearQuadratic`). skip: how many of the levels a second
    stage leaves out, for it begins with a clip.
    """

    steps: int
    skip: int = 0
    threshold_noise: float = 0.025

    def sigmas_for(self, steps: int) -> tuple[float, ...]:
        """Return the levels before each of `steps` calls."""
        total_steps = steps + self.skip
        line = total_steps // 2
        if not line:
            return (1.0,)
        slope, rest = self.threshold_noise / line, total_steps - line
        bend = (1 - self.threshold_noise - slope * rest) / rest**2
        fallen = [slope * i + bend * max(0, i - line) ** 2 for i in range(total_steps)]
        return tuple(1 - f for f in fallen[self.skip :])

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels for the model's own number of calls."""
        return self.sigmas_for(self.steps)


@dataclass(frozen=True)
class StretchedSigmas:
    """Evenly spaced levels, shifted towards noise and stretched so that the last is `terminal`.

    shift: as of ShiftedSigmas. Source: LTX2Scheduler of Lightricks' ltx-core, whose pipelines run
    it at its largest shift, exp(2.05), whatever the clip's size.
    """

    steps: int
    shift: float = math.exp(2.05)
    terminal: float = 0.1

    def sigmas_for(self, steps: int) -> tuple[float, ...]:
        """Return the levels before each of `steps` calls."""
        levels = ShiftedSigmas(steps, self.shift).sigmas_for(steps)
        if steps == 1:  # there is nothing to stretch
            return levels
        scale = (1 - self.terminal) / (1 - levels[-1])
        return tuple(1 - (1 - level) * scale for level in levels)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels for the model's own number of calls."""
        return self.sigmas_for(self.steps)


Schedule = FixedSigmas | ShiftedSigmas | LinearQuadraticSigmas | StretchedSigmas
