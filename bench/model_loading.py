"""Loading a checkpoint: filmlet and stock diffusers in turns: `python -m bench.model_loading`."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench.worker import memory_mb

SIDES = ("filmlet", "stock")
RUNS = 3
PARTS = ("text_encoder", "transformer", "vae")


def make(folder: Path) -> float:
    """A random checkpoint of about a gigabyte in bfloat16; its gigabytes."""
    import torch
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        text = T5EncoderModel(T5Config(vocab_size=1000, d_model=1024, d_ff=2816, num_layers=12))
        transformer = LTXVideoTransformer3DModel(
            num_attention_heads=16, cross_attention_dim=1024, num_layers=16, caption_channels=1024
        )
        vae = AutoencoderKLLTXVideo()
    parts = {"text_encoder": text, "transformer": transformer, "vae": vae}
    for name, module in parts.items():
        module.to(torch.bfloat16).to_empty(device="cpu")
        for weight in module.state_dict().values():
            weight.zero_().add_(0.01)
        module.save_pretrained(folder / name)
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e9


def load(side: str, folder: Path, dtype: str) -> None:
    """Load in this process; prints seconds and the memory that it took at its peak, in MB.

    The side `turns` is filmlet's with one component in memory at a time.
    """
    import torch

    before, start = 0.0, 0.0
    if side == "stock":
        from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
        from transformers import T5EncoderModel

        options = {"torch_dtype": getattr(torch, dtype)}
        before, start = memory_mb("VmRSS"), time.perf_counter()
        for module in (
            LTXVideoTransformer3DModel.from_pretrained(folder / "transformer", **options),
            AutoencoderKLLTXVideo.from_pretrained(folder / "vae", **options),
            T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=options["torch_dtype"]),
        ):
            touch(module)
    else:
        from filmlet.core.memory import OffloadMode
        from filmlet.core.model_card import Components
        from filmlet.engine.placement import Placement
        from filmlet.engine.torch.components import ModelComponents

        files = Components(**{name: folder / name for name in PARTS}, tokenizer=folder)
        hold = OffloadMode.MODEL if side == "turns" else OffloadMode.NONE
        parts = ModelComponents(files, Placement("cpu", dtype, "a benchmark", offload=hold))
        before, start = memory_mb("VmRSS"), time.perf_counter()
        for name in PARTS:
            touch(parts.get(name))
    seconds = time.perf_counter() - start
    print(json.dumps({"s": seconds, "MB": memory_mb("VmHWM") - before}))


def touch(module: Any) -> None:
    """Use every weight: pages of a file are read when they are used."""
    for weight in module.parameters():
        weight.sum()


def ask(side: str, folder: Path, dtype: str) -> dict[str, float]:
    words = [
        sys.executable,
        "-m",
        "bench.model_loading",
        "--side",
        side,
        "--dtype",
        dtype,
        str(folder),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def report(runs: int) -> str:
    """Seconds a gigabyte of files, both sides in turns, the files in the system's cache."""
    lines = ["| | filmlet on torch | stock diffusers | ratio |", "|---|---|---|---|"]
    leanest = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder)
        for dtype in ("bfloat16", "float32"):
            turns = [{side: ask(side, folder, dtype) for side in SIDES} for _ in range(runs)]
            for key, unit in (("s", "s"), ("MB", "MB at the peak")):
                ours, theirs = (median(turn[side][key] / size for turn in turns) for side in SIDES)
                ratio = median(turn["stock"][key] / turn["filmlet"][key] for turn in turns)
                row = f"{ours:.2f} | {theirs:.2f} | {ratio:.2f}"
                lines.append(f"| {dtype}, {unit} a GB of files | {row} |")
            peak = ask("turns", folder, dtype)["MB"] / largest(folder, dtype)
            leanest.append(f"{peak:.2f} in {dtype}")
    return f"""Loading, files in the system's cache, both sides in turns, medians of {runs}
(`python -m bench.model_loading`; a random checkpoint of {size:.1f} GB in bfloat16, everything held,
every weight touched):

{chr(10).join(lines)}

With one component in memory at a time, the peak by the largest of them: {", ".join(leanest)}.
"""


def largest(folder: Path, dtype: str) -> float:
    """MB of the largest component, in memory."""
    files = [sum(f.stat().st_size for f in (folder / p).glob("*.safetensors")) for p in PARTS]
    return max(files) / 2**20 * (2 if dtype == "float32" else 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("--side", choices=(*SIDES, "turns"))
    options.add_argument("--dtype", default="float32")
    options.add_argument("folder", type=Path, nargs="?")
    given = options.parse_args()
    if given.side:
        load(given.side, given.folder, given.dtype)
    else:
        print(report(given.runs))


if __name__ == "__main__":
    main()
