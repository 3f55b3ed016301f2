"""filmlet beside OpenVINO's own pipelines for LTX: `python -m bench.openvino_baselines --python P`.

P is the interpreter of an environment with openvino-genai, openvino-tokenizers, optimum-intel and
av; optimum-intel 2.2 needs other versions of diffusers and transformers than filmlet. Its part of
this module imports nothing of filmlet:

    P -m bench.openvino_baselines export POCKET FOLDER     pocket as OpenVINO's files
    P -m bench.openvino_baselines SIDE FOLDER FRAMES       as bench.worker
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.worker import (
    FPS,
    PROMPT,
    SEED,
    SIDE,
    STEPS,
    Seconds,
    answer_paths,
    diffusers_side,
    time_clip,
)

SIDES = ("genai", "genai, float32", "optimum", "optimum, float32")
WARMUPS = 2  # clips that are not counted


def export(checkpoint: Path, folder: Path) -> None:
    """By optimum-intel, whose example of frames for the VAE's encoder is too short for pocket's."""
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import input_generators
    from optimum.intel import OVLTXPipeline
    from transformers import AutoTokenizer

    generators = input_generators.LTXVaeDummyInputGenerator
    plain = generators.generate

    def generate(self: object, name: str, *args: object, **options: object) -> object:
        if name == "sample":
            self.num_frames, self.height, self.width = 9, 64, 64  # type: ignore[attr-defined]
        return plain(self, name, *args, **options)

    generators.generate = generate
    OVLTXPipeline.from_pretrained(str(checkpoint), export=True, compile=False).save_pretrained(
        folder
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    save_model(convert_tokenizer(tokenizer), folder / "tokenizer" / "openvino_tokenizer.xml")


def genai_side(folder: Path, frames: int, config: dict[str, str]) -> Callable[[Path], Seconds]:
    import numpy as np
    import openvino_genai

    pipe = openvino_genai.Text2VideoPipeline(str(folder), "CPU", **config)

    def generate() -> np.ndarray:
        video = pipe.generate(
            PROMPT, width=SIDE, height=SIDE, num_frames=frames, frame_rate=FPS,
            num_inference_steps=STEPS, guidance_scale=1.0,
            generator=openvino_genai.TorchGenerator(SEED),
        ).video  # fmt: skip
        return np.array(video.data)[0]

    return partial(time_clip, generate)


def optimum_side(folder: Path, frames: int, config: dict[str, str]) -> Callable[[Path], Seconds]:
    from optimum.intel import OVLTXPipeline

    pipe = OVLTXPipeline.from_pretrained(str(folder), ov_config=config)
    pipe.set_progress_bar_config(disable=True)

    return diffusers_side(pipe, frames)


def serve(side: str, folder: Path, frames: int) -> None:
    library, _, dtype = side.partition(", ")
    config = {"INFERENCE_PRECISION_HINT": "f32"} if dtype else {}
    make = {"genai": genai_side, "optimum": optimum_side}[library](folder, frames, config)
    answer_paths(make)


def report(python: str, folder: Path, runs: int, frames: int) -> str:
    """Medians of clips made in turns, all processes loaded."""
    from bench.__main__ import ask, processor, start, stop

    workers = {"filmlet": start("filmlet", frames)}
    for side in SIDES:
        words = [python, "-m", "bench.openvino_baselines", side, str(folder), str(frames)]
        workers[side] = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    rows = ("clip", "first frame", "peak MB")
    figures: dict[str, dict[str, list[float]]] = {s: {r: [] for r in rows} for s in workers}
    with TemporaryDirectory() as name:
        for run in range(WARMUPS + runs):
            for side, worker in workers.items():
                answer = ask(worker, Path(name) / "clip.mp4")
                for row in rows:
                    if run >= WARMUPS:
                        figures[side][row].append(answer[row])
    for worker in workers.values():
        stop(worker)
    lines = [
        "| | prompt to MP4, s | first frame, s | peak MB | clip / filmlet's |",
        "|---|---|---|---|---|",
    ]
    for side, table in figures.items():
        cells = (f"{median(table[row]):.2f}" for row in rows)
        pairs = zip(table["clip"], figures["filmlet"]["clip"], strict=True)
        ratio = median(a / b for a, b in pairs)
        lines.append(f"| {side} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join([f"{processor()}, {frames} frames, {runs} runs in turns.", "", *lines])


def main() -> None:
    if sys.argv[1:2] == ["export"]:
        export(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        return
    options = argparse.ArgumentParser(prog="bench.openvino_baselines", description=__doc__)
    options.add_argument("--python", required=True, help="interpreter that has their packages")
    options.add_argument("--folder", type=Path, required=True, help="of `export`")
    options.add_argument("--runs", type=int, default=9)
    options.add_argument("--frames", type=int, default=49)
    chosen = options.parse_args()
    print(report(chosen.python, chosen.folder, chosen.runs, chosen.frames))


if __name__ == "__main__":
    main()
