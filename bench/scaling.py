"""How cost grows: `python -m bench.scaling` writes GROWTH.md and docs/growth.svg.

Time and memory of a clip against its frames and its pixels, each in a process of its own, and of
the queue's answers against the jobs that are in it.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench.__main__ import processor
from bench.worker import PROMPT, SEED, memory_mb

FRAMES = (25, 49, 97, 161, 257)
SIDES = (128, 192, 256, 384, 512)
JOBS = (10, 30, 100, 300, 1000)
PLAIN = {"frames": 25, "side": 256}  # of a clip whose other measure grows
ASKED = 20  # times, of the queue
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Curve:
    """What grows with `along`; unit: of its values."""

    name: str
    along: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def exponent(self) -> float:
        """Of the power of `along` that fits best, by least squares of logarithms."""
        along, values = np.log(np.array(self.points)).T
        return float(np.polyfit(along, values, 1)[0])

    def line(self) -> str:
        first, last = self.points[0], self.points[-1]
        ends = [f"{value:.3g} {self.unit} at {along:g}" for along, value in (first, last)]
        return f"| {self.name} | {self.along} | {ends[0]} | {ends[1]} | {self.exponent:.2f} |"


def clip(frames: int, side: int) -> dict[str, float]:
    """Seconds of each stage of a warm clip, and what making it added to the process, MB."""
    from filmlet.core.events import StageFinished, drain
    from filmlet.core.request import build_request
    from filmlet.pipeline import stages
    from filmlet.pipeline.engine_cache import EngineCache
    from filmlet.pipeline.plan import make_plan
    from filmlet.pipeline.prepare import prepare
    from filmlet.pipeline.run_context import RunContext
    from filmlet.settings import Settings

    engines = EngineCache()

    def make(frames: int, side: int, path: Path) -> dict[str, float]:
        request = build_request(PROMPT, seed=SEED, frames=frames, size=f"{side}x{side}")
        plan, settings = make_plan(request), Settings.from_environment()
        prepared = drain(prepare(plan, settings, engines=engines))
        events = stages.generate_clip(prepared, RunContext(engines), path)
        done = [e for e in events if isinstance(e, StageFinished)]
        return {event.stage.value: event.seconds for event in done}

    with TemporaryDirectory() as folder:
        make(9, 64, Path(folder) / "first.mp4")  # loads the model
        before = memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        seconds = make(frames, side, Path(folder) / "clip.mp4")
    return seconds | {"MB": memory_mb("VmHWM") - before}


def clips(runs: int, along: str, values: Sequence[int]) -> list[Curve]:
    """A row for each stage that takes time, and one of memory."""
    found: dict[str, list[tuple[float, float]]] = {"denoise": [], "decode": [], "MB": []}
    for value in values:
        told = json.dumps(PLAIN | {along: value})
        words = [sys.executable, "-m", "bench.scaling", "--clip", told]
        answers = [
            json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
            for _ in range(runs)
        ]
        for name, points in found.items():
            at = value if along == "frames" else value**2
            points.append((at, median(answer[name] for answer in answers)))
    what = along if along == "frames" else "pixels"
    units = {"denoise": "s", "decode": "s", "MB": "MB"}
    return [
        Curve("memory" if name == "MB" else name, what, units[name], tuple(points))
        for name, points in found.items()
    ]


def queue() -> list[Curve]:
    """Milliseconds of the queue's answers, SQLite, while so many jobs wait."""
    from filmlet.core.request import build_request
    from filmlet.jobs import Limits, Queue, SubmitOptions
    from filmlet.settings import Settings

    names = ("submit", "look", "list of 20")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    asking = SubmitOptions("bench", limits=Limits(10**6, 10**6, 0.0))
    request = build_request("a ball", size="64x64", frames=1, steps=1)
    with TemporaryDirectory() as home:
        queue, there = Queue(Settings(home=Path(home), max_queued=10_000)), count(1)
        for jobs in JOBS:
            while next(there) < jobs:
                last = queue.submit(request, asking)
            asks: dict[str, Callable[[], object]] = {
                "look": lambda job=last.id: queue.get_job(job),  # type: ignore[misc]
                "list of 20": lambda: queue.list_jobs(limit=20),
                "submit": lambda: queue.submit(request, asking),
            }
            for name, ask in asks.items():
                found[name].append((jobs, median(_ms(ask) for _ in range(ASKED))))
        queue.close()
    return [Curve(name, "jobs", "ms", tuple(points)) for name, points in found.items()]


def _ms(ask: Callable[[], object]) -> float:
    """Of one call; what was looked up for the last one is old by then."""
    time.sleep(0.3)
    began = time.perf_counter()
    ask()
    return 1000 * (time.perf_counter() - began)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Panels of logarithmic axes, one for each measure and unit."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    # The same picture, the same bytes; text stays text.
    matplotlib.rcParams |= {"svg.hashsalt": "filmlet", "svg.fonttype": "none"}
    panels = list(dict.fromkeys((curve.along, curve.unit) for curve in curves))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), squeeze=False)
    for (along, unit), axis in zip(panels, axes[0], strict=True):
        places: tuple[float, ...] = ()
        for curve in curves:
            if (curve.along, curve.unit) == (along, unit):
                places, values = zip(*curve.points, strict=True)
                label = f"{curve.name}, exponent {curve.exponent:.2f}"
                axis.loglog(places, values, "o-", label=label)
        low, high = axis.get_ylim()
        axis.set(xlabel=along, ylabel=unit, ylim=(low / 3, high * 3))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(places, [_short(place) for place in places])
        axis.grid(visible=True, alpha=0.2)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _short(count: float) -> str:
    return f"{count / 1024:.0f}k" if count >= 10_000 else f"{count:g}"


def report(curves: Sequence[Curve]) -> str:
    return "\n".join(
        [
            "# How cost grows",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},",
            "pocket, 4 steps: `python -m bench.scaling`. Clips of 25 frames or 256x256 where the",
            "other grows, warm, each in a process of its own; memory is what making the clip added",
            "to the process at its peak. Exponent: of the power that fits best, 1 is proportional.",
            "Jobs: of a queue in SQLite in which so many wait. The picture: docs/growth.svg.",
            "",
            "| | against | least | most | exponent |",
            "|---|---|---|---|---|",
            *(curve.line() for curve in curves),
            "",
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.scaling", description=__doc__)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--clip", type=json.loads, help="one clip, in this process")
    chosen = options.parse_args()
    if chosen.clip:
        print(json.dumps(clip(**chosen.clip)))
        return
    curves = [*clips(chosen.runs, "frames", FRAMES), *clips(chosen.runs, "side", SIDES), *queue()]
    draw(curves, DOCS / "growth.svg")
    text = report(curves)
    (Path(__file__).parent / "GROWTH.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
