"""What each faster form of a layer gains in OpenVINO: `python -m bench.kernels`.

Graphs of pocket with all forms of `Kernels`, beside graphs with one of them switched off and
beside plain ones, in turns. With `--isa AVX2` the plugin computes as on a CPU without AVX-512.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from filmlet.core import cpu
from filmlet.core.events import drain
from filmlet.engine.openvino import runner
from filmlet.engine.openvino.compile import ComponentBuild
from filmlet.engine.openvino.components import Transformer, VaeDecoder
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import PLAIN_KERNELS, Kernels, choose_kernels
from filmlet.errors import NonFiniteValues
from filmlet.models import get_card, local_files

RUNS = 9
LATENT = (7, 8, 8)  # of pocket's 49 frames of 256x256
WORDS = 11
TRANSFORMER_FIELDS = ("gelu_by_exp", "rope_by_halves", "text_multiple")
Side = Callable[[], object]
Figures = dict[str, list[tuple[float, float]]]


def limit_to_avx2() -> None:
    """Before the plugin is loaded: oneDNN and filmlet then see a CPU without AVX-512 and VNNI."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    flags = frozenset(f for f in cpu.cpu_flags() if not f.startswith(("avx512", "avx_vnni", "amx")))
    cpu.cpu_flags = lambda: flags  # type: ignore[assignment]


def variants(names: tuple[str, ...]) -> Iterator[tuple[str, Kernels]]:
    """All forms, each one switched off, and none."""
    tuned = choose_kernels()
    yield "all", tuned
    for name in names:
        plain = getattr(PLAIN_KERNELS, name)
        if getattr(tuned, name) != plain:
            yield f"without {name}", replace(tuned, **{name: plain})
    yield "plain", PLAIN_KERNELS


def create_build(
    name: str, kernels: Kernels, dtype: str, is_int8: bool, cache: Path
) -> ComponentBuild:
    card = get_card("pocket")
    files = local_files(card)
    assert files
    return ComponentBuild(name, card, files, dtype, cache, is_int8, kernels)


def transformer_sides(dtype: str, cache: Path) -> Iterator[tuple[str, Side]]:
    """One step."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in LATENT), indexing="ij")
    places = np.stack(axes).reshape(1, 3, -1) * np.array([[[0.3], [32], [32]]], np.float32)
    levels = np.array([0.7], np.float32)
    for name, kernels in variants(TRANSFORMER_FIELDS):
        build = create_build("transformer", kernels, dtype, False, cache)
        model = drain(Transformer.load(build))
        latents = TorchNoise(1).randn(1, int(np.prod(LATENT)), model.config.channels)
        text = TorchNoise(2).randn(1, WORDS, model.config.captions)
        yield name, partial(model, latents, text, levels, places)


def decoder_sides(dtype: str, is_int8: bool, cache: Path) -> Iterator[tuple[str, Side]]:
    """One decode."""
    names = (field.name for field in fields(Kernels) if field.name not in TRANSFORMER_FIELDS)
    for name, kernels in variants(tuple(names)):
        model = drain(VaeDecoder.load(create_build("decoder", kernels, dtype, is_int8, cache)))
        yield name, partial(decode_all, model)


def decode_all(model: VaeDecoder) -> int:
    return sum(map(len, model(TorchNoise(1).randn(1, model.graphs.channels, *LATENT))))


def measure(sides: Mapping[str, Side], runs: int) -> Figures:
    """Seconds of each, of the clock and of all cores, in turns; the first call is not counted."""
    figures: Figures = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, side in sides.items():
            started, used = time.perf_counter(), time.process_time()
            side()
            if run:
                figures[name].append((time.perf_counter() - started, time.process_time() - used))
    return figures


def table(title: str, figures: Figures) -> str:
    """Medians; ratios to the graphs with all forms, run by run: above 1, a form is a gain.

    On a machine that does other work the ratio of the cores' time says more.
    """
    lines = [f"| {title} | ms | ratio | ms of cores | ratio |", "|---|---|---|---|---|"]
    for name, times in figures.items():
        cells = []
        for own, all_forms in zip(
            zip(*times, strict=True), zip(*figures["all"], strict=True), strict=True
        ):
            ratio = median(a / b for a, b in zip(own, all_forms, strict=True))
            cells.append(f"{1000 * median(own):.1f} | {ratio:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(runs: int) -> Iterator[str]:
    """The machine, then a table for each dtype and model."""
    flags = sorted(f for f in cpu.cpu_flags() if f.startswith(("avx", "amx")))
    yield (
        f"OpenVINO {version('openvino')}, {runner.cpu_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}, {', '.join(flags)}."
    )
    dtypes = ["float32"]
    if runner.has_bfloat16() and not cpu.is_avx2_only():
        dtypes.append("bfloat16")
    with TemporaryDirectory() as name:
        for dtype in reversed(dtypes):
            sides = dict(transformer_sides(dtype, Path(name)))
            yield table(f"one step, {dtype}", measure(sides, 3 * runs))
            for is_int8 in (True, False):
                kind = f"{dtype}, int8" if is_int8 else dtype
                try:
                    sides = dict(decoder_sides(dtype, is_int8, Path(name)))
                except NonFiniteValues as error:
                    yield str(error)
                    continue
                yield table(f"one decode, {kind}", measure(sides, runs))


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.kernels", description=__doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("--isa", choices=["AVX2"])
    chosen = options.parse_args()
    if chosen.isa:
        limit_to_avx2()
    for text in report(chosen.runs):
        print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
