"""What is measured, most important first: a run that is cut short has the first of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from bench.gpu.measure import Side, measure_limits, measure_sides, to_float8
from bench.gpu.models import Call, RandomModel, parameters, weight_bytes
from bench.gpu.session import Item, Measurement, NotApplicableError, Session
from bench.gpu.sizes import ModelSize, video_shape
from bench.optimizations import attention_backends
from filmlet.core.events import PixelFormat
from filmlet.engine.placement import Optimization
from filmlet.engine.torch.block_offload import offload_blocks
from filmlet.engine.torch.fp8 import quantize_linears
from filmlet.engine.torch.ltx2.prompts import encode_text
from filmlet.engine.torch.transformer import CUDA_GRAPH_MAX_TOKENS

MAX_RUNS_OF_CLIPS = 3
Measure = Callable[[Session, ModelSize], Measurement]


def list_items(sizes: Sequence[ModelSize]) -> list[Item]:
    """Three passes: stock and filmlet, the optimizations, what is around.

    sizes: 2B, 13B, 2.3; the first two may be one, which is then measured once.
    """
    small, large, sound = sizes
    items = [Item("limits of this device", 6, find_limits)]

    def add(what: str, measure: Measure, *expected: tuple[ModelSize, float]) -> None:
        for size, seconds in expected:
            name = f"{size.name}, {what}"
            if all(item.name != name for item in items):
                items.append(Item(name, seconds, partial(_measure, measure, size)))

    # 13B has the decoder of 2B.
    for size, has_decoder, step_s, clip_s in (
        (small, True, 8, 10),
        (large, False, 12, 25),
        (sound, True, 15, 35),
    ):
        add(f"one call at {size.shape}", measure_step, (size, step_s))
        if has_decoder:
            add(f"decode of {size.shape}", measure_decode, (size, 12))
        add(f"clip of {size.shape}, 8 calls", measure_clip, (size, clip_s))
    add("compiled blocks", measure_compile, (small, 25), (large, 30), (sound, 45))
    add("products in 8 bits", measure_fp8, (small, 30), (large, 40), (sound, 50))
    add(f"CUDA graph at {small.draft_shape}", measure_graph, (small, 8), (large, 12))
    other = (small, 8), (large, 12)
    add(f"one call at {small.other_shape}", partial(measure_step, is_other=True), *other)
    add(f"decode of {small.other_shape}", partial(measure_decode, is_other=True), (small, 12))
    add(f"two stages to {small.shape}", measure_two_stages, (small, 8), (large, 12), (sound, 20))
    add("encoding of pictures", measure_encode, (small, 10), (sound, 12))
    add("attention by backend", measure_attention, (small, 5), (large, 5))
    add("weights in 8 bits, widened", measure_casting, (small, 10), (large, 15), (sound, 20))
    add("weights in main memory", measure_offload, (small, 25), (large, 60))
    add("encoding of a prompt", measure_prompt, (small, 10), (sound, 15))
    return items


def _measure(measure: Measure, size: ModelSize, session: Session) -> Measurement:
    return measure(session, size)


def find_limits(session: Session) -> Measurement:
    session.limits = measure_limits(session.placement)
    units = {"flops": (1e12, "TFLOP/s"), "fp8_flops": (1e12, "TFLOP/s")}
    lines = ["| | |", "|---|---|"]
    for name, value in asdict(session.limits).items():
        divisor, unit = units.get(name, (1e9, "GB/s"))
        shown = "–" if value is None else f"{value / divisor:.3g} {unit}"
        lines.append(f"| {name.removesuffix('_bytes_s')} | {shown} |")
    return Measurement(text="\n".join(lines))


def compare(session: Session, *sides: Side, runs: int = 0, is_counted: bool = True) -> Measurement:
    count = min(runs or session.runs, session.runs)
    figures = measure_sides(sides, session.placement, session.limits, count, is_counted=is_counted)
    return Measurement(figures)


def side(name: str, run: Call, *modules: Any, device: str) -> Side:
    return Side(name, run, weight_bytes(device, *modules))


def plain_sides(model: RandomModel, shape_text: str) -> Iterator[Side]:
    """Of one call: stock, and filmlet without optimizations."""
    shape, device = video_shape(shape_text), model.device
    stock = model.part("transformer")
    yield side("diffusers", model.stock_step(shape), stock, device=device)
    yield filmlet_side(model, "filmlet", shape_text, model.twin("transformer"))


def filmlet_side(
    model: RandomModel, name: str, shape: str, module: Any, *levers: Optimization
) -> Side:
    """One call, by a module whose weights or layers may have been changed."""
    run = model.filmlet_step(video_shape(shape), model.runner(*levers, model=module))
    return side(name, run, module, device=model.device)


def measure_step(session: Session, size: ModelSize, *, is_other: bool = False) -> Measurement:
    shape = size.other_shape if is_other else size.shape
    return compare(session, *plain_sides(session.model(size), shape))


def measure_decode(session: Session, size: ModelSize, *, is_other: bool = False) -> Measurement:
    """Latents to a tensor, and to frames in main memory as each side hands them on."""
    model = session.model(size)
    shape = video_shape(size.other_shape if is_other else size.shape)
    vae, engine = model.part("vae"), model.engine("vae")
    latents, params = model.latents(shape), parameters(shape, (1.0,), audio=False)
    clip = model.randn(1, latents.video.shape[-1], *model.latent_shape(shape))
    time = None if model.is_ltx2 else torch.full((1,), 0.05, device=model.device).to(model.dtype)
    last = model.twin("vae").decoder.to(memory_format=torch.channels_last_3d)

    def to_numpy() -> object:
        from diffusers.video_processor import VideoProcessor

        video = vae.decode(clip, time, return_dict=False)[0]
        return VideoProcessor(vae_scale_factor=32).postprocess_video(video, output_type="np")

    def to_planes() -> None:
        for _ in engine.decode(latents, params, PixelFormat.YUV420P):
            pass

    named: list[tuple[str, Call, Any]] = [
        ("diffusers", lambda: vae.decode(clip, time, return_dict=False), vae.decoder),
        ("diffusers, to numpy", to_numpy, vae.decoder),
        ("channels last", lambda: last(clip, time), last),
        ("filmlet: streamed, to the encoder's planes", to_planes, engine.vae.decoder),
    ]
    return compare(
        session,
        *(side(name, torch.no_grad()(run), m, device=model.device) for name, run, m in named),
    )


def measure_clip(session: Session, size: ModelSize) -> Measurement:
    """From the text encoder's result to frames in main memory; 8 calls, the decode, the sound."""
    model, shape = session.model(size), video_shape(size.shape)
    engine = model.engine(*model.clip_parts)
    stock = [model.part(name) for name in model.clip_parts]
    own = engine.components.modules.values()
    return compare(
        session,
        side("diffusers", model.stock_clip(shape), *stock, device=model.device),
        side("filmlet", model.filmlet_clip(engine, shape), *own, device=model.device),
        runs=MAX_RUNS_OF_CLIPS,
    )


def measure_two_stages(session: Session, size: ModelSize) -> Measurement:
    """filmlet's own way of these models; stock has no pipeline that does it in one call."""
    model, shape = session.model(size), video_shape(size.shape)
    engine = model.engine(*model.clip_parts, "upsampler")
    run, own = model.filmlet_two_stages(engine, shape), engine.components.modules.values()
    one = side("filmlet, two stages", run, *own, device=model.device)
    return compare(session, one, runs=MAX_RUNS_OF_CLIPS)


def compiled_side(model: RandomModel, name: str, shape: str, module: Any) -> Side:
    if not model.is_ltx2:
        return filmlet_side(model, name, shape, module, Optimization.COMPILE)
    for block in model.blocks(module):
        block.forward = torch.compile(block.forward)
    return filmlet_side(model, f"{name} (a trial: filmlet compiles no LTX-2)", shape, module)


def measure_compile(session: Session, size: ModelSize) -> Measurement:
    model = session.model(size)
    stock, plain = plain_sides(model, size.shape)
    compiled = compiled_side(model, "filmlet, compiled", size.shape, model.twin("transformer"))
    again = model.twin("transformer")
    again.compile_repeated_blocks()
    run = model.stock_step(video_shape(size.shape), again)
    other = side("diffusers, compile_repeated_blocks", run, again, device=model.device)
    return compare(session, stock, plain, compiled, other)


def measure_fp8(session: Session, size: ModelSize) -> Measurement:
    """Lossy. The limit is that of products in the plain dtype: more than all of it is possible."""
    model = session.model(size)
    module = model.twin("transformer")
    for block in model.blocks(module):
        quantize_linears(block)
    stock, plain = plain_sides(model, size.shape)
    rounded = filmlet_side(model, "filmlet, fp8", size.shape, module)
    both = compiled_side(model, "filmlet, fp8, compiled", size.shape, twin_of(model, module))
    return compare(session, stock, plain, rounded, both)


def twin_of(model: RandomModel, quantized: Any) -> Any:
    """Another transformer over the same layers in 8 bits."""
    twin = model.twin("transformer")
    for block, other in zip(model.blocks(twin), model.blocks(quantized), strict=True):
        for name, layer in list(block.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                block.set_submodule(name, other.get_submodule(name))
    return twin


def measure_graph(session: Session, size: ModelSize) -> Measurement:
    """Of the first of two stages: longer clips than CUDA_GRAPH_MAX_TOKENS get none."""
    if not session.placement.device.startswith("cuda"):
        raise NotApplicableError("CUDA graphs need a GPU")
    model, module = session.model(size), session.model(size).twin("transformer")
    graphed = filmlet_side(
        model, "filmlet, CUDA graph", size.draft_shape, module, Optimization.CUDA_GRAPHS
    )
    found = compare(session, *plain_sides(model, size.draft_shape), graphed)
    return Measurement(found.figures, f"Up to {CUDA_GRAPH_MAX_TOKENS} tokens.")


def measure_attention(session: Session, size: ModelSize) -> Measurement:
    """Of one layer; LTX-2.3's picture attends as 13B's does."""
    shape = RandomModel(size, session.placement).latent_shape(video_shape(size.shape))
    with torch.inference_mode():
        return Measurement(text=attention_backends(size.transformer, shape, session.placement))


def measure_casting(session: Session, size: ModelSize) -> Measurement:
    """`layerwise_casting` of a file in 8 bits: all of it on the device, widened block by block."""
    model = session.model(size)
    module, other = model.twin("transformer"), model.twin("transformer")
    to_float8(model.blocks(module))
    is_ahead = session.placement.device != "cpu"
    offload_blocks(model.blocks(module), session.placement, is_ahead=is_ahead)
    other.enable_layerwise_casting(torch.float8_e4m3fn, model.dtype)
    run = model.stock_step(video_shape(size.shape), other)
    return compare(
        session,
        *plain_sides(model, size.shape),
        lent_side(model, "filmlet, layerwise casting", size.shape, module),
        side("diffusers, enable_layerwise_casting", run, other, device=model.device),
        is_counted=False,
    )


def lent_side(model: RandomModel, name: str, shape: str, module: Any) -> Side:
    run = model.filmlet_step(video_shape(shape), model.runner(model=module, is_lent=True))
    return side(name, run, module, device=model.device)


def measure_offload(session: Session, size: ModelSize) -> Measurement:
    """`sequential`, with no block kept: as on a card that has room for two."""
    model, device = session.model(size), session.placement.device
    module, other = model.twin("transformer"), model.twin("transformer")
    is_cuda = device.startswith("cuda")
    total = weight_bytes(device, model.part("transformer"))
    module.transformer_blocks.cpu()
    offload_blocks(model.blocks(module), session.placement, is_ahead=is_cuda)
    other.enable_group_offload(
        torch.device(device), num_blocks_per_group=1, use_stream=is_cuda, non_blocking=is_cuda
    )
    run = model.stock_step(video_shape(size.shape), other)
    found = compare(
        session,
        *plain_sides(model, size.shape),
        lent_side(model, "filmlet, sequential", size.shape, module),
        side("diffusers, group offload", run, other, device=device),
        runs=MAX_RUNS_OF_CLIPS,
        is_counted=False,
    )
    limits = session.limits
    if limits is None:
        return found
    rates = (("pageable", limits.upload_bytes_s), ("pinned", limits.pinned_bytes_s))
    bounds = [f"{1000 * total / rate:.0f} ms from {name} memory" for name, rate in rates if rate]
    return Measurement(found.figures, f"To bring all weights: {', '.join(bounds)}.")


def measure_encode(session: Session, size: ModelSize) -> Measurement:
    """A picture, and a video of the clip's length, as a guide."""
    model, shape = session.model(size), video_shape(size.shape)
    vae, engine = model.part("vae"), model.engine("vae")
    found = Measurement()
    for frames, name in ((1, "one picture"), (shape.frames, f"{shape.frames} frames")):
        pixels = torch.zeros(frames, shape.height, shape.width, 3, dtype=torch.uint8)
        found.figures.extend(
            compare(
                session,
                side(
                    f"diffusers, {name}",
                    torch.no_grad()(partial(encode_frames, model, vae, pixels)),
                    vae.encoder,
                    device=model.device,
                ),
                side(
                    f"filmlet, {name}",
                    partial(engine.encode_frames, pixels.numpy()),
                    engine.vae.encoder,
                    device=model.device,
                ),
            ).figures
        )
    return found


def encode_frames(model: RandomModel, vae: Any, pixels: torch.Tensor) -> object:
    """As diffusers' pipelines do it, from bytes on."""
    video = pixels.to(model.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return vae.encode(video.to(model.dtype)).latent_dist.mode()


def measure_prompt(session: Session, size: ModelSize) -> Measurement:
    """The text encoder: on the padded prompt as stock, and on its words alone as filmlet."""
    model = session.model(size)
    model.parts.clear()  # a text encoder and a transformer need not fit at once
    encoder = model.part("text_encoder")
    padded, words = (
        torch.ones(1, count, dtype=torch.int64, device=model.device)
        for count in (size.padded, size.words)
    )

    def encode(ids: torch.Tensor) -> object:
        if model.is_ltx2:
            return encode_text(encoder, ids)
        return encoder(ids)[0]

    return compare(
        session,
        *(
            side(name, torch.no_grad()(partial(encode, ids)), encoder, device=model.device)
            for name, ids in (
                (f"{size.padded} tokens, padded", padded),
                (f"{size.words} tokens", words),
            )
        ),
    )
