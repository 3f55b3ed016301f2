"""Long clips, by what is between their windows: `python -m bench.long_clips` writes LONG.md."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from bench.worker import SIDE, memory_mb
from filmlet.core.events import Frames, Pixels, StageFinished, drain
from filmlet.core.request import ClipRequest, build_request
from filmlet.core.shape import ShapeConstraints
from filmlet.models.registry import REGISTRY
from filmlet.pipeline import stages
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings

ENGINES = EngineCache()
PROMPTS = (
    "a red circle moving left on a white background",
    "a cat bouncing on green grass",
    "a blue star spinning in a starry night",
    "a yellow triangle moving up at sunset",
)
SECONDS = 12
LENGTHS = (12, 60)  # seconds of clips whose memory is looked at
HELD_OUT, JUDGED = 100, 97  # prompts, and frames of a clip that is judged
SEEN = ("subject", "motion", "scene")
NEAR = 4  # frames on either side of a border
POCKET = REGISTRY["pocket"]
GRIDS = {
    f"windows of {window}, {shared} shared": replace(
        POCKET.grid, max_frames=window, window_frames=window, overlap_frames=shared
    )
    for window, shared in ((49, 8), (49, 16), (49, 24), (97, 8))
}


@dataclass(frozen=True)
class Scores:
    """seam: the largest change near borders of windows by that near other latents; 1 is none.

    motion: mean change between neighbouring frames, of 255. sharpness: mean difference of
    neighbouring pixels in the last second by that in the first; below 1 it blurs.
    """

    seam: float
    motion: float
    sharpness: float


def bench_request(prompt: str, seconds: int) -> ClipRequest:
    return build_request(prompt, seed=1, seconds=seconds, size=f"{SIDE}x{SIDE}")


def prepare_clip(request: ClipRequest, grid: ShapeConstraints = POCKET.grid) -> PreparedClip:
    """A clip of pocket, ready to be made, in windows of its own or other ones."""
    plan = make_plan(request, card=replace(POCKET, grid=grid))
    return drain(prepare(plan, Settings.from_environment(), engines=ENGINES))


def generate_pixels(clip: PreparedClip) -> Pixels:
    events = stages.generate_frames(clip, RunContext(ENGINES))
    return np.concatenate([e.pixels for e in events if isinstance(e, Frames)])


def judge_clip(grid: ShapeConstraints) -> list[str]:
    """What the recipe's judge sees in clips of JUDGED frames with one subject, %."""
    import torch
    from torch import Tensor

    from recipe.evaluate import evaluate
    from recipe.prompts import Example

    def make(example: Example) -> Tensor:
        request = build_request(example.prompt, seed=1, frames=JUDGED, size=f"{SIDE}x{SIDE}")
        return (
            torch.tensor(generate_pixels(prepare_clip(request, grid))).permute(3, 0, 1, 2) / 127.5
            - 1
        )

    right = evaluate(make, HELD_OUT, pairs=0.0)
    return [f"{right[row]:.0f}" for row in SEEN]


def score_windows(prompt: str, grid: ShapeConstraints) -> Scores:
    clip = prepare_clip(bench_request(prompt, SECONDS), grid)
    borders = {w.start_frame + w.overlap_frames for w in clip.effective.windows[1:]}
    return scores(
        generate_pixels(clip), borders, grid.temporal_compression, round(clip.effective.shape.fps)
    )


def scores(frames: Pixels, borders: set[int], time: int, second: int) -> Scores:
    """borders: frames that are the first new ones of a window; time: frames of a latent."""
    changes = np.array([change(*frames[i : i + 2]) for i in range(len(frames) - 1)])

    def largest(border: int) -> float:
        return float(changes[max(0, border - NEAR) : border + NEAR].max())

    at = [largest(border) for border in borders]
    inside = [largest(one) for one in range(1 + time, len(frames), time) if one not in borders]
    return Scores(
        seam=float(np.mean(at) / np.mean(inside)),
        motion=float(changes.mean()),
        sharpness=gradient(frames[-second:]) / gradient(frames[:second]),
    )


def change(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def gradient(frames: Pixels) -> float:
    return float(np.mean([np.abs(np.diff(f.astype(np.int16), axis=1)).mean() for f in frames]))


def measure_clip(seconds: int) -> dict[str, float]:
    """One long clip as the command line makes it: windows, seconds, MB at the peak so far."""
    began, peaks = time.perf_counter(), {}
    clip = prepare_clip(bench_request(PROMPTS[0], seconds))
    for event in stages.generate_clip(clip, RunContext(ENGINES), Path("long.mp4"), force=True):
        if isinstance(event, StageFinished):
            peaks[event.stage.value] = memory_mb("VmHWM")
    Path("long.mp4").unlink()
    took = time.perf_counter() - began
    return {"windows": len(clip.effective.windows), "seconds": took, **peaks}


def measure_in_process(seconds: int) -> dict[str, float]:
    """`measure_clip` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.long_clips", "--film", str(seconds)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def report() -> str:
    from bench.__main__ import processor  # brings torch, whose memory a film has no part in

    rows = []
    for name, grid in GRIDS.items():
        made = [score_windows(prompt, grid) for prompt in PROMPTS]
        columns = ([getattr(one, field) for one in made] for field in Scores.__annotations__)
        cells = (f"{' '.join(f'{v:.2f}' for v in c)} | {median(c):.2f}" for c in columns)
        mark = "**" if grid == POCKET.grid else ""
        rows.append(f"| {mark}{name}{mark} | {' | '.join([*cells, *judge_clip(grid)])} |")
    films = {seconds: measure_in_process(seconds) for seconds in LENGTHS}
    lines = [
        f"| {seconds} s | {f['windows']} | {f['seconds']:.1f} | {f['denoise']:.0f} "
        f"| {f['decode']:.0f} |"
        for seconds, f in films.items()
    ]
    return f"""# Long clips

{datetime.now(UTC):%Y-%m-%d}, {processor()}; `python -m bench.long_clips`: pocket, {SIDE}x{SIDE},
24 frames a second, its four steps, seed 1. {SECONDS} seconds each of:
{"; ".join(PROMPTS)}.
Clips are made in windows, each of which sees the last frames of the one before; pocket's own are
in bold.

**Seam**: the largest change between two frames within {NEAR} of the border of two windows, by
that at the borders of latents inside windows; 1 is no seam. **Motion**: mean change between two
frames, of 255. **Sharpness**: mean difference of neighbouring pixels in the last second by that in
the first; below 1 it blurs. Each by prompt, and in the middle. **Right**: what the recipe's judge
sees in {HELD_OUT} clips of {JUDGED} frames, held-out prompts with one subject, in %.

| made in | seam | | motion | | sharpness | | right: {" | ".join(SEEN)} |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

One clip in a process of its own, to MP4; MB at the peak of the process after each stage:

| clip | windows | seconds | denoising | decoding |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.long_clips", description=__doc__)
    options.add_argument("--film", type=int, metavar="SECONDS", help="one clip alone")
    options.add_argument("--output", type=Path, default=Path(__file__).parent / "LONG.md")
    chosen = options.parse_args()
    if chosen.film:
        print(json.dumps(measure_clip(chosen.film)))
        return
    text = report()
    chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
