"""filmlet on OpenVINO, on torch, and stock diffusers in turns: `python -m bench.fast`, FAST.md."""

import argparse
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from bench.__main__ import Figures, cold, processor, warm
from bench.worker import SIDE

SIDES = ("fast", "filmlet", "stock")
COLOURS, SHAPES = ("red", "blue", "green"), ("circle", "square", "star", "cat")
PROMPTS = [f"a {colour} {shape} moving left" for colour in COLOURS for shape in SHAPES]


def row(name: str, unit: str, figures: Figures) -> str:
    """Medians, and the medians of each run's ratios to the first side."""
    cells = [f"{median(figures[side]):.2f} {unit}" for side in SIDES]
    for side in SIDES[1:]:
        pairs = zip(figures[SIDES[0]], figures[side], strict=True)
        cells.append(f"{median(theirs / ours for ours, theirs in pairs):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def decibels(frames: int) -> list[float]:
    """PSNR of OpenVINO's frames beside torch's in float32, one a prompt."""
    from filmlet import stages
    from filmlet.events import Frames
    from filmlet.plan import plan
    from filmlet.request import clip_request
    from filmlet.settings import Settings
    from filmlet.work import fold, prepare

    def pixels(prompt: str, engine: str, dtype: str | None) -> NDArray[np.float64]:
        request = clip_request(prompt, seed=1, frames=frames, size=f"{SIDE}x{SIDE}")
        settings = replace(Settings.from_environment(), engine=engine)
        work = fold(prepare(plan(request), settings, dtype))
        made = [e.pixels for e in stages.run(work) if isinstance(e, Frames)]
        return np.concatenate(made).astype(float)

    fast = [pixels(prompt, "openvino", None) for prompt in PROMPTS]
    plain = [pixels(prompt, "torch", "float32") for prompt in PROMPTS]
    errors = (np.mean((a - b) ** 2) for a, b in zip(fast, plain, strict=True))
    return [float(10 * np.log10(255**2 / error)) for error in errors]


def report(runs: int, frames: int) -> str:
    with TemporaryDirectory() as name:
        cold_figures = cold(Path(name), frames, runs, SIDES)
        warm_figures = warm(Path(name), frames, runs, SIDES)
    psnr = decibels(frames)
    versions = ", ".join(f"{n} {version(n)}" for n in ("openvino", "torch", "diffusers", "av"))
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},",
            f"{versions}.",
            "",
            f"`python -m bench.fast --runs {runs} --frames {frames}`: pocket, 256x256, {frames}",
            "frames, 8 steps, one prompt, seed and x264 setting; the sides in turns, medians.",
            "Ratios: the other / OpenVINO, run by run, above 1 where OpenVINO is better.",
            "",
            "| | OpenVINO | torch | stock diffusers | ratio to torch | ratio to stock |",
            "|---|---|---|---|---|---|",
            row("cold process to MP4", "s", cold_figures),
            row("warm, prompt to MP4", "s", warm_figures["clip"]),
            row("warm, prompt to first decoded frame", "s", warm_figures["first frame"]),
            row("peak memory of the process", "MB", warm_figures["peak MB"]),
            "",
            f"PSNR of the frames beside torch in float32, {len(psnr)} prompts: "
            f"{min(psnr):.1f} dB at least, {median(psnr):.1f} dB in the middle.",
            "",
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.fast", description=__doc__)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--frames", type=int, default=49)
    chosen = options.parse_args()
    sys.stdout.write(report(chosen.runs, chosen.frames))


if __name__ == "__main__":
    main()
