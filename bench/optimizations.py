"""What each lever of the torch engine gains, on random weights: `python -m bench.optimizations`.

One call of the transformer and one decode, each beside the plain one of diffusers, in turns; on a
GPU with `--size 2b --shape 768x512x121` and `--size 13b`. The limit is what matrix products reach
in the same process.
"""

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from filmlet.engine.base import TransformerInputs
from filmlet.engine.placement import Optimization, Placement, best_device, device_name
from filmlet.engine.torch import vae_decoder
from filmlet.engine.torch.block_offload import offload_blocks
from filmlet.engine.torch.dtype import choose_dtype, torch_dtype
from filmlet.engine.torch.fp8 import quantize_linears
from filmlet.engine.torch.transformer import CachedTransformer

SIZES = {  # heads, channels of each, layers, channels of a caption
    "tiny": (2, 32, 2, 64),
    "small": (8, 64, 8, 512),
    "2b": (32, 64, 28, 4096),
    "13b": (32, 128, 48, 4096),
}
LATENT = 128  # channels
PADDED, WORDS = 128, 16  # tokens of a prompt, with its padding and without
RUNS = 5
ATTENTION_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)
SIDES = 6  # that compute with a transformer of their own
Side = Callable[[], object]
Build = Callable[[LTXVideoTransformer3DModel], CachedTransformer]
Module = TypeVar("Module", bound=nn.Module)


def random(module: Module, placement: Placement) -> Module:
    """A module from the meta device, with weights that keep values small.

    Buffers that no file holds, such as frequencies, are random, too.
    """
    module.to(torch_dtype(placement)).to_empty(device=placement.device)
    module.eval().requires_grad_(False)
    for weight in chain(module.parameters(), module.buffers()):
        if weight.is_floating_point():
            weight.normal_(0, 0.02)
        else:
            weight.zero_()
    return module


def transformers(size: str, placement: Placement) -> list[LTXVideoTransformer3DModel]:
    """Several over the same weights: each lever changes how its own computes."""
    heads, head, layers, captions = SIZES[size]
    with torch.device("meta"):
        models = [
            LTXVideoTransformer3DModel(
                num_attention_heads=heads, attention_head_dim=head, num_layers=layers,
                cross_attention_dim=heads * head, caption_channels=captions,
            )
            for _ in range(SIDES)
        ]  # fmt: skip
    first = random(models[0], placement)
    for model in models[1:]:
        model.load_state_dict(first.state_dict(), assign=True)
        model.eval().requires_grad_(False)
    return models


def call(
    size: str, latent: Sequence[int], placement: Placement, is_guided: bool
) -> TransformerInputs:
    """is_guided: the first frame is given, so tokens have levels of their own."""
    dtype, device = torch_dtype(placement), placement.device
    axes = (torch.arange(n) * step for n, step in zip(latent, (1 / 3, 32.0, 32.0), strict=True))
    places = torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing="ij")])[None]
    tokens = places.shape[-1]
    levels = torch.tensor([0.9])
    if is_guided:
        levels = torch.where(torch.arange(tokens) < tokens // latent[0], 0.0, 0.9)[None]
    return TransformerInputs(
        torch.randn(1, tokens, LATENT).to(device),
        torch.randn(1, WORDS, SIZES[size][3]).to(device, dtype),
        levels.to(device),
        places.to(device),
        (),
    )


def diffusers_call(
    model: LTXVideoTransformer3DModel, asked: TransformerInputs, dtype: torch.dtype
) -> Tensor:
    """As diffusers' pipeline calls it: the prompt padded, and masked."""
    padding = asked.prompt_embeds.new_zeros(1, PADDED - WORDS, asked.prompt_embeds.shape[-1])
    mask = (torch.arange(PADDED, device=padding.device) < WORDS)[None].to(dtype)
    return model(
        hidden_states=asked.latents.to(dtype),
        encoder_hidden_states=torch.cat([asked.prompt_embeds, padding], 1),
        timestep=asked.timesteps.expand(1, -1) * 1000,
        encoder_attention_mask=mask,
        video_coords=asked.video_coords,
        return_dict=False,
    )[0]


def unmasked_call(
    model: LTXVideoTransformer3DModel, asked: TransformerInputs, dtype: torch.dtype
) -> Tensor:
    """The same with the padding cut off instead of masked."""
    return model(
        hidden_states=asked.latents.to(dtype),
        encoder_hidden_states=asked.prompt_embeds,
        timestep=asked.timesteps.expand(1, -1) * 1000,
        encoder_attention_mask=None,
        video_coords=asked.video_coords,
        return_dict=False,
    )[0]


def seconds(side: Side, device: str) -> float:
    started = time.perf_counter()
    side()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def time_in_turns(sides: Mapping[str, Side], runs: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, and of its first call before the others."""
    figures = {name: [seconds(side, device)] for name, side in sides.items()}
    for _ in range(runs):
        for name, side in sides.items():
            figures[name].append(seconds(side, device))
    return figures


def peak_flops(placement: Placement) -> float:
    """FLOP a second of matrix products."""
    side = 8192 if placement.device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side).to(placement.device, torch_dtype(placement)) for _ in range(2))
    times = time_in_turns({"product": lambda: a @ b}, 10, placement.device)["product"]
    return 2.0 * side**3 / min(times[1:])


@dataclass(frozen=True)
class Row:
    """Seconds of a side in the middle, and of its first call; gain: over the first side."""

    name: str
    took: float
    gain: float
    began: float
    flop: float  # of the first side

    def line(self, limit: float) -> str:
        share = self.flop / self.took / limit
        cells = f"{1000 * self.took:.1f} | {self.gain:.2f} | {share:.0%} | {self.began:.1f}"
        return f"| {self.name} | {cells} |"


Rows = list[Row]


def rows(sides: Mapping[str, Side], runs: int, device: str) -> Rows:
    """The gain is taken run by run."""
    with FlopCounterMode(display=False) as counter:
        next(iter(sides.values()))()
    figures = time_in_turns(sides, runs, device)
    _, *first = next(iter(figures.values()))
    flop = float(counter.get_total_flops())
    return [
        Row(
            name,
            median(times),
            median(a / b for a, b in zip(first, times, strict=True)),
            began,
            flop,
        )
        for name, (began, *times) in figures.items()
    ]


def steps(size: str, latent: Sequence[int], placement: Placement, runs: int) -> Iterator[Rows]:
    """Of one call of the transformer: all tokens at one level, and the first frame given."""
    dtype = torch_dtype(placement)
    stock, *others = transformers(size, placement)
    made = {
        name: build(model)
        for (name, build), model in zip(variants(placement), others, strict=False)
    }
    for is_guided, name in ((False, ""), (True, ", first frame given")):
        asked = call(size, latent, placement, is_guided)
        sides: dict[str, Side] = {
            f"diffusers{name}": partial(diffusers_call, stock, asked, dtype),
            f"text cut, not masked{name}": partial(unmasked_call, stock, asked, dtype),
        }
        sides |= {f"{way}{name}": partial(one.predict_velocity, asked) for way, one in made.items()}
        yield rows(sides, runs, placement.device)


def variants(placement: Placement) -> list[tuple[str, Build]]:
    """In which filmlet computes a step here."""
    dtype = torch_dtype(placement)
    is_cuda = placement.device.startswith("cuda")

    def offloaded_variant(model: LTXVideoTransformer3DModel) -> CachedTransformer:
        """As where a device has no room for it: on a GPU, the blocks stay in main memory."""
        offload_blocks(model.transformer_blocks.cpu(), placement, is_ahead=is_cuda)
        return CachedTransformer(model, dtype, is_lent=True)

    def quantized_variant(model: LTXVideoTransformer3DModel) -> CachedTransformer:
        quantize_linears(model.transformer_blocks)
        return CachedTransformer(model, dtype)

    def synchronous_variant(*levers: Optimization) -> Build:
        return lambda model: CachedTransformer(model, dtype, frozenset(levers))

    ways = [
        ("what stays computed once", synchronous_variant()),
        ("and blocks compiled", synchronous_variant(Optimization.COMPILE)),
        ("layers lent", offloaded_variant),
        ("products in 8 bits, lossy", quantized_variant),
    ]
    return ways + [("as one graph", synchronous_variant(Optimization.CUDA_GRAPHS))] * is_cuda


def attention_backends(size: str, latent: Sequence[int], placement: Placement) -> str:
    """Each backend of torch's attention at this size; torch takes the first that it can."""
    heads, head, _, _ = SIZES[size]
    shape = (1, heads, math.prod(latent), head)
    inputs = [torch.randn(shape).to(placement.device, torch_dtype(placement)) for _ in range(3)]
    timer = Timer("F.scaled_dot_product_attention(*inputs)", globals={"F": F, "inputs": inputs})
    lines = ["| | ms |", "|---|---|"]
    for backend in ATTENTION_BACKENDS:
        with sdpa_kernel(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say why one cannot, as the error does
            with suppress(RuntimeError):
                took = timer.blocked_autorange().median
                lines.append(f"| {backend.name} | {1000 * took:.2f} |")
    return "\n".join(lines)


def decodes(latent: Sequence[int], placement: Placement, runs: int) -> Rows:
    """Of one decode: at once as diffusers does it, and in a stream with channels last."""
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo()
    plain = random(vae, placement).decoder
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    clip = torch.randn(1, LATENT, *latent).to(placement.device, torch_dtype(placement))

    def streamed_decode() -> Tensor:
        *_, frames = vae_decoder.decode(last, clip.split(1, dim=2), None, None)
        return frames

    sides: dict[str, Side] = {
        "diffusers": partial(plain, clip, None),
        "in a stream, channels last": streamed_decode,
    }
    return rows(sides, runs, placement.device)


def table(found: Iterable[Rows], limit: float) -> str:
    lines = ["| | ms | gain | of the limit | first call, s |", "|---|---|---|---|---|"]
    for one in found:
        lines += [row.line(limit) for row in one]
    return "\n".join(lines)


@torch.inference_mode()
def report(size: str, shape: str, runs: int, device: str | None = None) -> str:
    """A table of one call of the transformer, and one of a decode."""
    placement = choose_dtype(best_device(device))
    width, height, frames = map(int, shape.split("x"))
    latent = ((frames + 7) // 8, height // 32, width // 32)
    limit = peak_flops(placement)
    step = table(steps(size, latent, placement, runs), limit)
    decode = table([decodes(latent, placement, runs)], limit)
    about = f"{device_name(placement.device)}, {placement.dtype}: {placement.reason}"
    return f"""The levers of the torch engine on random weights, medians of {runs} in turns
(`python -m bench.optimizations --size {size} --shape {shape}`).
{about}.
The limit is what matrix products reach, {limit / 1e12:.2f} TFLOP/s, with the work that diffusers
does. One call of the transformer, {math.prod(latent)} tokens:

{step}

Attention of one layer, by each of torch's fused kernels that computes it here:

{attention_backends(size, latent, placement)}

One decode with the VAE of LTX-Video 0.9:

{decode}
"""


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.optimizations", description=__doc__)
    options.add_argument("--size", choices=SIZES, default="small")
    options.add_argument("--shape", default="256x256x49", help="width x height x frames")
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("--device")
    chosen = options.parse_args()
    print(report(chosen.size, chosen.shape, chosen.runs, chosen.device))


if __name__ == "__main__":
    main()
