"""Peak memory of LTX-2's stages against the plan's: `python -m bench.ltx2_memory` writes MEMORY.md.

The model is random, of LTX-2.3's structure: fewer and narrower layers in the transformer and the
text encoder, fewer at their published widths in VAE, audio VAE and vocoder. Each stage runs in a
process of its own, in float32 on the CPU, over two sizes: what the larger one takes more is what a
token, a pixel or a second takes, whatever else is in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filmlet.core import memory
from filmlet.core.memory import Ltx2Activations, ltx2_stage_memory
from filmlet.core.model_card import Components
from filmlet.core.shape import VideoShape
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.latents import Modalities
from filmlet.engine.placement import Placement
from filmlet.engine.torch.ltx2.engine import Ltx2Engine, create_engine
from filmlet.models import count_parameters
from filmlet.models.registry import REGISTRY
from filmlet.models.tokenizer import TokenizedPrompt

OUT = Path(__file__).parent / "MEMORY.md"
CARD = REGISTRY["ltx-2.3-22b-distilled"]
HEADS, HEAD = 16, 64  # of the transformer; of its sound half as wide
LAYERS, HIDDEN = 24, 640  # of the text encoder
VOCABULARY = 8_192
FPS = 24.0
CLEAR_PEAK = "5"  # what the kernel takes it by, in /proc/self/clear_refs
MEBIBYTE = 2**20
FLOAT32 = 4
SHAPES = {  # width, height and frames of a smaller and a larger clip
    "denoise": ((512, 384, 25), (768, 512, 49)),
    "denoise with a picture": ((512, 384, 25), (768, 512, 49)),
    "decode": ((192, 128, 25), (384, 256, 25)),
    "audio": ((64, 64, 17), (64, 64, 41)),
}
TOKENS = (256, 1024)  # of prompts


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of a stage, more than before its weights were read."""

    size: str
    units: float  # tokens times channels, pixels, or seconds
    bytes: int


def build(folder: Path) -> None:
    """Write the model in diffusers' layout, in bfloat16."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers import LTX2VideoTransformer3DModel as Transformer
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE

    torch.manual_seed(1)
    flags = dict.fromkeys(
        ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod"), True
    )
    width = HEADS * HEAD
    makers: dict[str, Callable[[], Any]] = {
        "transformer": lambda: Transformer(
            num_attention_heads=HEADS, attention_head_dim=HEAD, cross_attention_dim=width,
            audio_num_attention_heads=HEADS, audio_attention_head_dim=HEAD // 2,
            audio_cross_attention_dim=width // 2, num_layers=6, caption_channels=HIDDEN,
            rope_type="split", rope_double_precision=True, perturbed_attn=True,
            cross_attn_timestep_scale_multiplier=1000, use_prompt_embeddings=False, **flags,
        ),
        "connectors": lambda: LTX2TextConnectors(
            caption_channels=HIDDEN, text_proj_in_factor=LAYERS + 1, rope_type="split",
            video_connector_num_attention_heads=HEADS, video_connector_attention_head_dim=HEAD,
            audio_connector_num_attention_heads=HEADS, proj_bias=True,
            audio_connector_attention_head_dim=HEAD // 2, video_hidden_dim=width,
            audio_hidden_dim=width // 2, per_modality_projections=True, video_gated_attn=True,
            audio_gated_attn=True, rope_double_precision=True,
        ),
        "vae": lambda: AutoencoderKLLTX2Video(
            block_out_channels=(256, 512, 1024, 1024), layers_per_block=(1,) * 5,
            decoder_block_out_channels=(256, 512, 512, 1024), decoder_layers_per_block=(1,) * 5,
            decoder_spatio_temporal_scaling=(True,) * 4, decoder_inject_noise=(False,) * 5,
            upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            upsample_residual=(False,) * 4, upsample_factor=(2, 2, 1, 2), decoder_causal=False,
            decoder_spatial_padding_mode="zeros", spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
        "audio_vae": AutoencoderKLLTX2Audio,
        "vocoder": LTX2VocoderWithBWE,
        "text_encoder": _make_text_encoder,
    }  # fmt: skip
    for name, make in makers.items():
        module: nn.Module = make().to(torch.bfloat16)
        module.save_pretrained(folder / name)  # type: ignore[operator]


def _make_text_encoder() -> nn.Module:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=160,
        query_pre_attn_scalar=160,
    )  # fmt: skip
    return Gemma3TextModel(config)


def open_engine(folder: Path) -> Ltx2Engine:
    """Return the engine of the model, with nothing read yet."""
    names = ("transformer", "vae", "text_encoder", "connectors", "audio_vae", "vocoder")
    files: Components[Path] = Components(
        **{name: folder / name for name in names}, tokenizer=folder
    )
    return create_engine(CARD, files, Placement("cpu", "float32", "a measurement"))


def measure(folder: Path, stage: str) -> list[Peak]:
    """Return the peaks of a stage, in this process."""
    engine = open_engine(folder)
    runs = {
        "prompt": _prompt_runs, "denoise": _denoise_runs, "decode": _decode_runs,
        "denoise with a picture": lambda engine: _denoise_runs(engine, has_picture=True),
        "audio": _audio_runs,
    }[stage](engine)  # fmt: skip
    before, peaks = _read_memory("VmRSS"), []
    for size, units, run in runs:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
        run()
        peaks.append(Peak(size, units, _read_memory("VmHWM") - before))
    return peaks


Run = tuple[str, float, Callable[[], object]]


def _prompt_runs(engine: Ltx2Engine) -> list[Run]:
    def run(count: int) -> None:
        ids = torch.randint(0, VOCABULARY, (1, count)).numpy()
        reading = TokenizedPrompt(ids, count, "", "", ())
        states = engine.encode_text(reading)
        engine.components.unload("text_encoder")
        engine.connect_prompt(reading, states)
        engine.components.unload("connectors")

    values = (LAYERS + 1) * HIDDEN
    return [(f"{n} tokens", n * values, lambda n=n: run(n)) for n in TOKENS]  # type: ignore[misc]


def _params(size: tuple[int, int, int]) -> DenoiseParams:
    width, height, frames = size
    shape = VideoShape(width, height, frames, FPS, width, height, frames)
    return DenoiseParams(shape, (1.0,), 1.0, 7, audio=True)


def _denoise_runs(engine: Ltx2Engine, *, has_picture: bool = False) -> list[Run]:
    """has_picture: the clip begins with one, so that each token has a noise level of its own."""
    embeds = PromptEmbeds(torch.randn(1, CARD.max_prompt_tokens, HEADS * HEAD * 3 // 2))

    def run(size: tuple[int, int, int]) -> None:
        picture = GuideLatents(torch.randn(1, 128, 1, size[1] // 32, size[0] // 32), 0, 1.0)
        list(engine.denoise(embeds, _params(size), guides=[picture] if has_picture else []))

    return [
        (_name(size), _tokens(size) * HEADS * HEAD, lambda size=size: run(size))  # type: ignore[misc]
        for size in SHAPES["denoise"]
    ]


def _decode_runs(engine: Ltx2Engine) -> list[Run]:
    def run(size: tuple[int, int, int]) -> None:
        latents = Modalities(torch.randn(1, _tokens(size), 128))
        for _ in engine.decode(latents, _params(size)):
            pass

    return [
        (_name(size), size[0] * size[1], lambda size=size: run(size))  # type: ignore[misc]
        for size in SHAPES["decode"]
    ]


def _audio_runs(engine: Ltx2Engine) -> list[Run]:
    def run(size: tuple[int, int, int]) -> None:
        count = round(size[2] / FPS * 25)
        latents = Modalities(torch.zeros(1, 1, 128), torch.randn(1, count, 128))
        engine.decode_audio(latents, _params(size), lambda: False)

    return [
        (f"{size[2] / FPS:.1f} s", size[2] / FPS, lambda size=size: run(size))  # type: ignore[misc]
        for size in SHAPES["audio"]
    ]


def _tokens(size: tuple[int, int, int]) -> int:
    width, height, frames = size
    return (width // 32) * (height // 32) * ((frames - 1) // 8 + 1)


def _name(size: tuple[int, int, int]) -> str:
    return "{}x{}, {} frames".format(*size)


def _read_memory(field: str) -> int:
    """Return a figure of this process in bytes, as Linux has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure_apart(folder: Path, stage: str) -> list[Peak]:
    """As `measure`, in a process of its own."""
    command = [sys.executable, "-m", "bench.ltx2_memory", "--folder", str(folder), "--stage", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Peak(**peak) for peak in json.loads(done.stdout.splitlines()[-1])]


def write_report(folder: Path, peaks: dict[str, list[Peak]]) -> str:
    """Return the page."""
    parameters = count_parameters(open_engine(folder).files)
    lines = [HEAD_OF_PAGE.format(day=datetime.now(UTC).date(), **_sizes(parameters))]
    lines += [
        "| stage | clip | measured, MB | plan, MB | plan / measured |",
        "|---|---|---|---|---|",
    ]
    for stage, those in peaks.items():
        for peak in those:
            planned = _planned(parameters, stage, peak)
            lines.append(
                f"| {stage} | {peak.size} | {peak.bytes / 1e6:.0f} | {planned / 1e6:.0f} "
                f"| {planned / peak.bytes:.2f} |"
            )
    lines += ["", "| what grows | by the plan | measured |", "|---|---|---|"]
    for stage, (what, constant) in CONSTANTS.items():
        small, large = peaks[stage]
        slope = (large.bytes - small.bytes) / (large.units - small.units) / FLOAT32
        lines.append(f"| {what} | {constant:.4g} | {slope:.4g} |")
    return "\n".join([*lines, ""])


CONSTANTS = {
    "prompt": ("copies of what the layers say of a token", float(memory.LTX2_PROMPT_COPIES)),
    "denoise": ("values a token and channel", float(memory.LTX2_TOKEN_VALUES)),
    "denoise with a picture": (
        "values a token and channel, with a picture",
        float(memory.LTX2_GIVEN_TOKEN_VALUES),
    ),
    "decode": ("values a pixel of a frame", float(memory.LTX2_PIXEL_VALUES)),
    "audio": ("values a second of sound", float(memory.LTX2_AUDIO_VALUES)),
}
HEAD_OF_PAGE = """\
# Memory of LTX-2's stages

Written by `python -m bench.ltx2_memory` on {day}, on a CPU in float32. A random model of LTX-2.3's
structure: a transformer of {transformer:.0f} million values, a text encoder of
{text_encoder:.0f}, connectors of {connectors:.0f}, a VAE of {vae:.0f}, audio VAE and vocoder of
{sound:.0f}. Each stage in a process of its own; what it took at its peak, more than before the
stage's weights were read. The plan's figures are those of `core/memory.py` for this model's widths.
"""


def _sizes(parameters: Components[float]) -> dict[str, float]:
    found = {name: count / 1e6 for name, count in parameters.present()}
    return found | {"sound": found["audio_vae"] + found["vocoder"]}


def _planned(parameters: Components[float], stage: str, peak: Peak) -> float:
    """Return the bytes that the plan's formula gives for a stage of this model."""
    _, values = CONSTANTS[stage]
    name, busy = stage.partition(" ")[0], peak.units * values * FLOAT32
    return ltx2_stage_memory(parameters, FLOAT32, Ltx2Activations(**{name: busy}))[name]


def main() -> None:
    """Measure every stage, or one of a model that is there, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage")
    options = parser.parse_args()
    if options.stage:
        print(json.dumps([vars(peak) for peak in measure(options.folder, options.stage)]))
        return
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        peaks = {}
        for stage in CONSTANTS:
            peaks[stage] = measure_apart(Path(name), stage)
            print(stage, peaks[stage], flush=True)
        OUT.write_text(write_report(Path(name), peaks))


if __name__ == "__main__":
    main()
