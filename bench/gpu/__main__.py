"""filmlet and stock diffusers on one GPU, at the true sizes: `python -m bench.gpu`.

Random weights; nothing is read, and nothing of gigabytes is written. RESULTS-GPU.md and
RESULTS-GPU.json are written anew after each item, so a run that is cut short has what came first.
"""

import argparse
import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from diffusers.utils import logging

from bench.gpu.items import list_items
from bench.gpu.measure import Figure
from bench.gpu.session import (
    PATIENCE,
    ItemResult,
    ItemStatus,
    Session,
    write_json,
    write_whole,
)
from bench.gpu.sizes import SIZES_AT_FULL, TINY_SIZES
from filmlet.engine.placement import Placement, best_device, device_name
from filmlet.engine.torch.dtype import choose_dtype

NAME = "RESULTS-GPU"
BENCH = Path(__file__).parent.parent
RUNS = 5
TINY_PATIENCE = 100.0  # of a CPU that does other things, too


def describe_machine(placement: Placement, budget_s: float, *, is_tiny: bool) -> dict[str, str]:
    versions = ", ".join(f"{n} {version(n)}" for n in ("torch", "diffusers", "transformers"))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(placement.device),
        "dtype": placement.dtype,
        "python": platform.python_version(),
        "versions": versions,
        "budget": f"{budget_s:.0f} s",
        "sizes": "tiny" if is_tiny else "true",
    }


def report(about: dict[str, str], results: Sequence[ItemResult]) -> str:
    """The page, as far as it has come."""
    warning = ["**Tiny models: no figure of this page says anything.**", ""]
    lines = [
        "# filmlet and stock diffusers on a GPU",
        "",
        *(warning if about["sizes"] == "tiny" else ()),
        f"{about['date']}, {about['device']}, {about['dtype']}, Python {about['python']},",
        f"{about['versions']}. `python -m bench.gpu`, {about['budget']}; random weights of the",
        "models' sizes, so times are those of the models and pictures are not. Sides take turns,",
        "medians; gain: over the first side, run by run. Weights: on the device, of what the side",
        "computes with; added: at the peak of a call. Of the limit: the time that products at the",
        "device's measured rate, or reading the weights, take at least, over the time taken.",
        "",
    ]
    for result in results:
        lines += describe_result(result)
    return "\n".join(lines)


def describe_result(result: ItemResult) -> list[str]:
    head = f"## {result.name[0].upper()}{result.name[1:]}"
    if result.status is not ItemStatus.MEASURED:
        reason = f": {result.reason}" if result.reason else ""
        return [head, "", f"Not measured ({result.status}{reason}).", ""]
    lines = [head, ""]
    if result.found.figures:
        lines += [
            "| | ms | gain | of the limit | weights, GB | added, GB | first call, s |",
            "|---|---|---|---|---|---|---|",
            *map(describe_figure, result.found.figures),
            "",
        ]
    if result.found.text:
        lines += [result.found.text, ""]
    return [*lines, f"This took {result.took_s:.1f} s.", ""]


def describe_figure(figure: Figure) -> str:
    cells = [
        figure.name,
        f"{1000 * figure.seconds:.1f}",
        f"{figure.gain:.2f}",
        "–" if figure.least_s is None else f"{figure.least_s / figure.seconds:.0%}",
        f"{figure.weights_gb:.2f}",
        "–" if figure.added_gb is None else f"{figure.added_gb:.2f}",
        f"{figure.first_s:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    options.add_argument(
        "--budget", type=float, default=540.0, help="seconds since the process began"
    )
    options.add_argument("--out", type=Path, default=BENCH, help="folder of both files")
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("--tiny", action="store_true", help="tiny models on the CPU: a test")
    chosen = options.parse_args(arguments)
    if chosen.tiny:
        placement, sizes = Placement("cpu", "float32", "a test"), TINY_SIZES
    else:
        placement, sizes = choose_dtype(best_device("cuda")), SIZES_AT_FULL
    about = describe_machine(placement, chosen.budget, is_tiny=chosen.tiny)
    patience = TINY_PATIENCE if chosen.tiny else PATIENCE
    session = Session(placement, process_start(), chosen.budget, chosen.runs, patience)
    logging.set_verbosity_error()  # of casts: the weights are random
    if chosen.tiny:
        torch.set_num_threads(1)  # waiting for each other would take most of the time
    # Tiny blocks take a CPU minutes to compile: there they run as they are.
    with torch.compiler.set_stance("force_eager" if chosen.tiny else "default"):
        write_results(session.run(list_items(sizes)), about, chosen.out)


def process_start() -> float:
    """When this process began, of the monotonic clock: imports take a part of the budget."""
    age = time.time() - psutil.Process().create_time()
    return time.monotonic() - age


def write_results(
    progress: Iterable[Sequence[ItemResult]], about: dict[str, str], folder: Path
) -> None:
    """Both files anew after each item."""
    folder.mkdir(parents=True, exist_ok=True)
    for results in progress:
        write_json(folder / f"{NAME}.json", about, results)
        write_whole(folder / f"{NAME}.md", report(about, results))
        print_last(results)


def print_last(results: Sequence[ItemResult]) -> None:
    done = [result for result in results if result.status is not ItemStatus.WAITING]
    last = done[-1]
    print(f"{last.took_s:6.1f} s  {last.status:9}  {last.name}  {last.reason}", flush=True)


if __name__ == "__main__":
    main()
