"""A model of 2 billion parameters on this CPU: `python -m bench.real_sizes --folder DIR`.

Random weights of LTX-Video 0.9.6's sizes in bfloat16 (9.5 GB of DIR, kept for the next run): times
and memory are those of the model, pictures are not. Each side runs in a process of its own, one
after the other: stock diffusers in float32, filmlet's torch engine in float32, and filmlet's
OpenVINO engine, block by block in 8 bits.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.worker import memory_mb

SIDES = ("stock", "torch", "openvino")
PARTS = ("transformer", "decoder", "text_encoder")
LEVEL = 0.5  # of noise, in the call that is measured
POCKET_PROMPTS = (
    "a red circle moving left on a white background",
    "a yellow star spinning in the rain",
    "a cat jumping in a forest",
    "a rocket rising at night",
    "a blue square bouncing at sunset",
    "a dog moving right on grass",
    "a pizza growing on a table",
    "a green triangle falling in snow",
)
Call = Callable[[], NDArray]


@dataclass(frozen=True)
class Sizes:
    """What is built and called. text_layers: of T5-XXL's 24, so that the disk holds them."""

    heads: int = 32
    head: int = 64
    layers: int = 28
    channels: int = 128
    captions: int = 4096
    text_layers: int = 6
    words: int = 128
    width: int = 512
    height: int = 320
    frames: int = 49

    @property
    def latent(self) -> tuple[int, int, int]:
        return (self.frames - 1) // 8 + 1, self.height // 32, self.width // 32


TINY = Sizes(2, 24, 2, 16, 32, 1, 5, 64, 64, 9)


def make_files(folder: Path, sizes: Sizes) -> None:
    """Write what is missing of the parts; one part at a time is in memory."""
    import torch

    for name, build in _modules(sizes).items():
        if (folder / name / "config.json").exists():
            continue
        torch.manual_seed(0)
        with torch.device("meta"):
            module = build()
        module.to(torch.bfloat16).to_empty(device="cpu")
        if name == "text_encoder":
            module.tie_weights()
        for key, weight in module.state_dict().items():
            _fill(key, weight)
        module.save_pretrained(folder / name)


def _modules(sizes: Sizes) -> dict[str, Callable[[], Any]]:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    def build_text_encoder() -> Any:
        is_tiny = sizes == TINY
        return T5EncoderModel(
            T5Config(
                vocab_size=32128, d_model=sizes.captions, d_kv=8 if is_tiny else 64,
                d_ff=64 if is_tiny else 10240, num_layers=sizes.text_layers,
                num_heads=4 if is_tiny else 64, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip

    def build_vae() -> Any:
        shrink = 32 if sizes == TINY else 1
        return AutoencoderKLLTXVideo(
            latent_channels=sizes.channels,
            block_out_channels=tuple(c // shrink for c in (128, 256, 512, 1024, 2048)),
            down_block_types=("LTXVideo095DownBlock3D",) * 4,
            layers_per_block=(4, 6, 6, 2, 2),
            spatio_temporal_scaling=(True,) * 4,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            decoder_block_out_channels=tuple(c // shrink for c in (256, 512, 1024)),
            decoder_layers_per_block=(5, 5, 5, 5),
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_inject_noise=(False,) * 4,
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
            decoder_causal=False,
        )

    return {
        "transformer": lambda: LTXVideoTransformer3DModel(
            in_channels=sizes.channels, out_channels=sizes.channels,
            num_attention_heads=sizes.heads, attention_head_dim=sizes.head,
            cross_attention_dim=sizes.heads * sizes.head, num_layers=sizes.layers,
            caption_channels=sizes.captions,
        ),
        "vae": build_vae,
        "text_encoder": build_text_encoder,
    }  # fmt: skip


def _fill(name: str, weight: Any) -> None:
    """Random values of the size that training leaves: the state neither grows nor vanishes."""
    if "norm" in name or name == "latents_std":
        weight.fill_(1.0)
    elif name == "latents_mean" or name.endswith("timestep_scale_multiplier"):
        weight.fill_(0.0 if name == "latents_mean" else 1000.0)
    elif name.endswith("bias") or "scale_shift" in name:
        weight.normal_(0.0, 0.05)
    else:
        weight.normal_(0.0, weight[0].numel() ** -0.5)


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def load_stock(part: str, folder: Path, sizes: Sizes) -> Call:
    """Stock diffusers in float32, its own default."""
    import torch
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    from transformers import T5EncoderModel

    kinds = {
        "transformer": (LTXVideoTransformer3DModel, "transformer"),
        "decoder": (AutoencoderKLLTXVideo, "vae"),
        "text_encoder": (T5EncoderModel, "text_encoder"),
    }
    kind, name = kinds[part]
    module = kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval()
    frames, rows, columns = sizes.latent

    def call() -> NDArray:
        with torch.inference_mode():
            if part == "text_encoder":
                found = module(torch.tensor(_ids(sizes)))[0]
            elif part == "decoder":
                latents = torch.tensor(draw(1, sizes.channels, *sizes.latent))
                found = module.decode(latents, torch.tensor([0.05])).sample
            else:
                found = module(
                    hidden_states=torch.tensor(draw(1, frames * rows * columns, sizes.channels)),
                    encoder_hidden_states=torch.tensor(draw(1, sizes.words, sizes.captions)),
                    timestep=torch.tensor([1000 * LEVEL]),
                    encoder_attention_mask=torch.ones(1, sizes.words),
                    video_coords=torch.tensor(_places(sizes)),
                )[0]
        return found.numpy()

    return call


def load_filmlet(part: str, folder: Path, sizes: Sizes, backend: str) -> Call:
    """filmlet's engine, one component in memory."""
    from filmlet.core.memory import OffloadMode
    from filmlet.core.model_card import Components
    from filmlet.engine import selection
    from filmlet.engine.latents import Modalities
    from filmlet.engine.placement import Backend, Optimization, Placement
    from filmlet.models import get_card

    placement = Placement("cpu", "float32", "a measurement", OffloadMode.MODEL)
    if backend == "openvino":
        placement = replace(
            placement,
            backend=Backend.OPENVINO,
            cache=folder / "cache",
            optimizations=frozenset({Optimization.INT8}),
            is_blockwise=True,
        )
    files = Components(
        transformer=folder / "transformer",
        vae=folder / "vae",
        text_encoder=folder / "text_encoder",
        tokenizer=folder / "text_encoder",
    )
    card = replace(get_card("ltxv-2b-0.9.6-distilled"), is_condition_pipeline=True)
    engine = selection._create_engine(card, files, placement)
    for _ in engine.load_components(part):
        pass
    if part == "text_encoder":
        return lambda: np.asarray(engine._encode_ids(_ids(sizes)))
    if part == "transformer":
        inputs = _transformer_inputs(engine, sizes)
        return lambda: np.asarray(engine._predict_velocity(inputs))
    tokens = draw(1, sizes.channels, *sizes.latent).reshape(1, sizes.channels, -1)
    own = engine.to_device({"tokens": np.ascontiguousarray(tokens.swapaxes(1, 2))})["tokens"]
    params = _denoise_params(card, sizes)
    return lambda: np.concatenate(list(engine.decode(Modalities(own), params)))


def pocket_psnr(cache: Path) -> Iterator[float]:
    """Yield the PSNR in dB of pocket's frames, its transformer in 8 bits, to those in float32."""
    from filmlet.core.events import drain
    from filmlet.core.request import build_request
    from filmlet.core.shape import resolve_shape
    from filmlet.engine import selection
    from filmlet.engine.base import DenoiseParams, PromptEmbeds
    from filmlet.engine.placement import Backend, Optimization, Placement
    from filmlet.models import get_card, local_files
    from filmlet.models.tokenizer import load_tokenizer, tokenize

    card = get_card("pocket")
    files = local_files(card)
    assert files  # it is bundled
    exact = Placement("cpu", "float32", "a measurement", backend=Backend.OPENVINO, cache=cache)
    rounded = replace(exact, is_blockwise=True, optimizations=frozenset({Optimization.INT8}))
    engines = [drain(selection.load_engine(card, files, one)) for one in (exact, rounded)]
    tokenizer = load_tokenizer(files.tokenizer)
    shape, _ = resolve_shape(build_request("x", frames=25), card.grid)
    params = DenoiseParams(shape, card.schedule.sigmas_for(4), 1.0, seed=1)
    for prompt in POCKET_PROMPTS:
        pixels = []
        for engine in engines:
            told = engine.encode_prompt(tokenize(tokenizer, prompt, card.max_prompt_tokens))
            *_, step = engine.denoise(PromptEmbeds(told), params)
            parts = [*engines[0].decode(step.latents, params)]
            pixels.append(np.concatenate(parts).astype(float))
        noise = np.mean((pixels[0] - pixels[1]) ** 2)
        yield float(10 * np.log10(255**2 / max(noise, 1e-9)))


def _transformer_inputs(engine: Any, sizes: Sizes) -> Any:
    from filmlet.engine.base import TransformerInputs

    frames, rows, columns = sizes.latent
    own = engine.to_device(
        {
            "latents": draw(1, frames * rows * columns, sizes.channels),
            "text": draw(1, sizes.words, sizes.captions),
            "times": np.array([LEVEL], np.float32),
            "places": _places(sizes),
        }
    )
    return TransformerInputs(own["latents"], own["text"], own["times"], own["places"], ())


def _denoise_params(card: Any, sizes: Sizes) -> Any:
    from filmlet.core.request import build_request
    from filmlet.core.shape import resolve_shape
    from filmlet.engine.base import DenoiseParams

    size = f"{sizes.width}x{sizes.height}"
    shape, _ = resolve_shape(build_request("x", size=size, frames=sizes.frames), card.grid)
    return DenoiseParams(shape, (1.0,), 1.0, seed=0)


def _ids(sizes: Sizes) -> NDArray[np.int64]:
    return np.arange(3, sizes.words + 3)[None]


def _places(sizes: Sizes) -> NDArray[np.float32]:
    """Seconds, rows and columns of the tokens."""
    frames, rows, columns = sizes.latent
    axes = np.arange(frames) * 8 / 30, np.arange(rows) * 32, np.arange(columns) * 32
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(1, 3, -1).astype(np.float32)


def measure(side: str, part: str, folder: Path, sizes: Sizes, calls: int) -> dict[str, float]:
    """Return seconds and MB of one side, in this process; its last result goes to a file."""
    start = time.perf_counter()
    if side == "stock":
        call = load_stock(part, folder, sizes)
    else:
        call = load_filmlet(part, folder, sizes, side)
    load_s, load_mb, seconds, cpu = time.perf_counter() - start, memory_mb("VmHWM"), [], []
    for _ in range(calls):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = call()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    np.save(folder / f"{part}-{side}.npy", found)
    return {
        "load_s": load_s,
        "load_mb": load_mb,
        "call_s": median(seconds[1:] or seconds),
        "cpu_s": median(cpu[1:] or cpu),
        "peak_mb": memory_mb("VmHWM"),
    }


def compare(part: str, side: str, folder: Path) -> str:
    """How far a side's result is from stock's: of frames, the PSNR in dB; else both."""
    expected, found = (
        np.load(folder / f"{part}-{one}.npy").astype(np.float64) for one in ("stock", side)
    )
    if part == "decoder":  # noise is decoded with noise of its own, so pictures are not compared
        return ""
    noise = np.mean((found - expected) ** 2)
    psnr_db = 10 * np.log10(np.ptp(expected) ** 2 / max(noise, 1e-30))
    return f"{psnr_db:.1f} dB, {np.sqrt(noise / np.mean(expected**2)):.2%}"


def report(folder: Path, parts: list[str], sides: list[str], options: list[str]) -> Iterator[str]:
    """Yield the lines of a table as they are measured."""
    yield "| part | side | load, s | call, s | CPU s of a call | peak MB | PSNR, error |"
    yield "|---|---|---|---|---|---|---|"
    for part in parts:
        for side in sides:
            command = [sys.executable, "-m", "bench.real_sizes", "--folder", str(folder)]
            command += [*options, "--one", side, part]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            far = "" if side == "stock" or "stock" not in sides else compare(part, side, folder)
            yield (
                f"| {part} | {side} | {found['load_s']:.1f} | {found['call_s']:.2f} | "
                f"{found['cpu_s']:.2f} | {found['peak_mb']:.0f} | {far} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="says whether it works, no more")
    parser.add_argument("--calls", type=int, default=2, help="the first is not counted")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--pocket", action="store_true", help="only the PSNR of pocket's frames")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "PART"), help="in this process")
    options = parser.parse_args()
    sizes = TINY if options.tiny else Sizes()
    if options.one:
        side, part = options.one
        print(json.dumps(measure(side, part, options.folder, sizes, options.calls)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.pocket:
        found = sorted(pocket_psnr(options.folder / "cache"))
        print(f"pocket: worst {found[0]:.1f} dB, median {median(found):.1f} dB of {len(found)}")
        return
    make_files(options.folder, sizes)
    passed = ["--calls", str(options.calls), *(["--tiny"] if options.tiny else [])]
    for line in report(options.folder, options.parts, options.sides, passed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
