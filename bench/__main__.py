"""filmlet and stock diffusers side by side, in turns: `python -m bench` writes RESULTS.md."""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench import accuracy, model_loading, optimizations
from filmlet.engine.openvino.runner import has_bfloat16

# A clip takes stock many minutes where it emulates bfloat16.
STOCK = ("float32", "bfloat16") if has_bfloat16() else ("float32",)
SIDES = ("filmlet", "torch", *STOCK)  # of bench.worker
Figures = dict[str, list[float]]


def start(side: str, frames: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.worker", side, str(frames)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(worker: subprocess.Popen[str], path: Path) -> dict[str, float]:
    """Have one clip made at `path`; the worker's figures for it."""
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(f"{path}\n")
    worker.stdin.flush()
    answer: dict[str, float] = json.loads(worker.stdout.readline())
    path.unlink()
    return answer


def stop(worker: subprocess.Popen[str]) -> None:
    worker.communicate()


def measure_cold(folder: Path, frames: int, runs: int, sides: Sequence[str] = SIDES) -> Figures:
    """Seconds from the start of a process to its finished MP4."""
    figures: Figures = {side: [] for side in sides}
    for _ in range(runs):
        for side in sides:
            began = time.perf_counter()
            worker = start(side, frames)
            ask(worker, folder / "cold.mp4")
            figures[side].append(time.perf_counter() - began)
            stop(worker)
    return figures


def measure_warm(
    folder: Path, frames: int, runs: int, sides: Sequence[str] = SIDES
) -> dict[str, Figures]:
    """All processes loaded, clips made in turns; one clip each is not counted."""
    rows = ("clip", "playable", "first frame", "peak MB")
    figures: dict[str, Figures] = {row: {side: [] for side in sides} for row in rows}
    workers = {side: start(side, frames) for side in sides}
    for run in range(runs + 1):
        for side in sides:
            answer = ask(workers[side], folder / "warm.mp4")
            for row in rows:
                if run:
                    figures[row][side].append(answer[row])
    for worker in workers.values():
        stop(worker)
    return figures


def decode_memory(frames: int) -> float:
    """MB that streaming decode adds at its peak."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.worker", "decode", str(frames)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak: float = json.loads(done.stdout)["peak MB"]
    return peak


def row(name: str, unit: str, figures: Figures) -> str:
    """Medians, and run by run the ratio of the better of stock's sides to filmlet."""
    cells = [f"{median(figures[side]):.2f}" for side in SIDES]
    best = min(STOCK, key=lambda side: median(figures[side]))
    ratio = median(b / a for a, b in zip(figures["filmlet"], figures[best], strict=True))
    return f"| {name}, {unit} | {' | '.join(cells)} | {ratio:.2f} |"


def processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def report(runs: int, frames: int) -> str:
    with TemporaryDirectory() as name:
        folder = Path(name)
        measure_cold(folder, frames, 1, ("filmlet",))  # compiles
        cold_figures, warm_figures = (
            measure_cold(folder, frames, runs),
            measure_warm(folder, frames, runs),
        )
    flat = {n: decode_memory(n) for n in (25, 121, 257)}
    names = ("openvino", "torch", "diffusers", "transformers", "av")
    stock = " | ".join(f"stock, {dtype}" for dtype in STOCK)
    versions = ", ".join(f"{n} {version(n)}" for n in names)
    return "\n".join(
        [
            "# Results",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()},",
            f"{versions}.",
            "",
            f"`python -m bench --runs {runs} --frames {frames}`: pocket, 256x256, {frames} frames,",
            "4 steps, one prompt, seed and x264 setting; all sides in turns, medians. Ratio: the",
            "better of stock's sides / filmlet, run by run, above 1 if filmlet is better. filmlet",
            "has its graphs from an earlier process; the first clip ever compiles them. A frame is",
            "playable when the growing file shows it, and decoded when it is in memory; stock's",
            "file can be played when it is whole.",
            "",
            f"| | filmlet | filmlet on torch | {stock} | ratio |",
            f"|---|{'---|' * len(SIDES)}---|",
            row("cold process to MP4", "s", cold_figures),
            row("warm, prompt to MP4", "s", warm_figures["clip"]),
            row("warm, prompt to first playable frame", "s", warm_figures["playable"]),
            row("warm, prompt to first decoded frame", "s", warm_figures["first frame"]),
            row("peak memory of the process", "MB", warm_figures["peak MB"]),
            "",
            "Memory that decoding adds at its peak, frames handed on as they come:",
            "",
            "| frames | added MB |",
            "|---|---|",
            *(f"| {n} | {peak:.0f} |" for n, peak in flat.items()),
            "",
            accuracy.report(accuracy.PROMPTS),
            model_loading.report(model_loading.RUNS),
            optimizations.report("small", "256x256x49", optimizations.RUNS),
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="bench", description=__doc__)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--frames", type=int, default=49)
    options.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    chosen = options.parse_args()
    text = report(chosen.runs, chosen.frames)
    chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
