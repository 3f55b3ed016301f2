"""filmlet on OpenVINO, on torch, and stock diffusers in turns: `python -m bench.fast`, FAST.md."""

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench.__main__ import Figures, cold, processor, warm
from bench.worker import SIDE
from filmlet.events import Frames, Pixels

SIDES = ("fast", "filmlet", "stock")
JUDGED = 25  # frames of a clip that is judged


def row(name: str, unit: str, figures: Figures) -> str:
    """Medians, and the medians of each run's ratios to the first side."""
    cells = [f"{median(figures[side]):.2f} {unit}" for side in SIDES]
    for side in SIDES[1:]:
        pairs = zip(figures[SIDES[0]], figures[side], strict=True)
        cells.append(f"{median(theirs / ours for ours, theirs in pairs):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def pixels(prompt: str, engine: str, dtype: str | None) -> Pixels:
    """The frames of a clip long enough to be judged."""
    from filmlet import stages
    from filmlet.plan import plan
    from filmlet.request import clip_request
    from filmlet.settings import Settings
    from filmlet.work import fold, prepare

    request = clip_request(prompt, seed=1, frames=JUDGED, size=f"{SIDE}x{SIDE}")
    settings = replace(Settings.from_environment(), engine=engine)
    work = fold(prepare(plan(request), settings, dtype))
    return np.concatenate([e.pixels for e in stages.run(work) if isinstance(e, Frames)])


def judged(prompts: int) -> list[str]:
    """The recipe's scores for held-out prompts on both engines, and how far the frames differ."""
    import torch
    from torch import Tensor

    from recipe.corpus import Example
    from recipe.evaluate import evaluate

    made: dict[str, list[Pixels]] = {"openvino": [], "torch": []}

    def maker(engine: str, dtype: str | None) -> Callable[[Example], Tensor]:
        def make(example: Example) -> Tensor:
            made[engine].append(pixels(example.prompt, engine, dtype))
            return torch.tensor(made[engine][-1]).permute(3, 0, 1, 2) / 127.5 - 1

        return make

    fast = evaluate(maker("openvino", None), prompts)
    plain = evaluate(maker("torch", "float32"), prompts)
    pairs = zip(made["openvino"], made["torch"], strict=True)
    psnr = [10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)) for a, b in pairs]
    return [
        f"| {prompts} held-out prompts, right in % | {' | '.join(fast)} |",
        f"|---|{'---|' * len(fast)}",
        f"| OpenVINO | {' | '.join(f'{value:.1f}' for value in fast.values())} |",
        f"| torch, float32 | {' | '.join(f'{value:.1f}' for value in plain.values())} |",
        "",
        f"PSNR of their frames ({JUDGED} each) beside torch in float32: {min(psnr):.1f} dB at",
        f"least, {median(psnr):.1f} dB in the middle.",
    ]


def report(runs: int, frames: int, prompts: int) -> str:
    with TemporaryDirectory() as name:
        cold_figures = cold(Path(name), frames, runs, SIDES)
        warm_figures = warm(Path(name), frames, runs, SIDES)
    versions = ", ".join(f"{n} {version(n)}" for n in ("openvino", "torch", "diffusers", "av"))
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},",
            f"{versions}.",
            "",
            f"`python -m bench.fast --runs {runs} --frames {frames} --prompts {prompts}`:",
            f"pocket, 256x256, {frames} frames, 8 steps, one prompt, seed and x264 setting;",
            "the sides in turns, medians.",
            "Ratios: the other / OpenVINO, run by run, above 1 where OpenVINO is better.",
            "",
            "| | OpenVINO | torch | stock diffusers | ratio to torch | ratio to stock |",
            "|---|---|---|---|---|---|",
            row("cold process to MP4", "s", cold_figures),
            row("warm, prompt to MP4", "s", warm_figures["clip"]),
            row("warm, prompt to first decoded frame", "s", warm_figures["first frame"]),
            row("peak memory of the process", "MB", warm_figures["peak MB"]),
            "",
            *judged(prompts),
            "",
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.fast", description=__doc__)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--frames", type=int, default=49)
    options.add_argument("--prompts", type=int, default=40, help="held-out, to judge")
    chosen = options.parse_args()
    sys.stdout.write(report(chosen.runs, chosen.frames, chosen.prompts))


if __name__ == "__main__":
    main()
