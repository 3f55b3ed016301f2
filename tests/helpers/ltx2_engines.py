"""Engines of the tiny LTX-2 twins, and stock diffusers beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import LTX2ConditionPipeline, LTX2VideoTransformer3DModel
from torch import Tensor

from filmlet.core.model_card import Components, ComponentSource, ModelCard, ModelFamily
from filmlet.core.schedules import FixedSigmas
from filmlet.core.shape import ShapeConstraints, VideoShape
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.placement import Placement
from filmlet.engine.torch.ltx2.engine import Ltx2Engine, create_engine
from filmlet.models.tokenizer import TokenizedPrompt
from tests.helpers.tiny_ltx2 import MAX_TOKENS, make_ltx2

SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
REFINE_SIGMAS = (0.909375, 0.725, 0.421875)
SIDE, FRAMES, FPS, SEED = 128, 17, 24.0, 7  # of the clip; the first stage has half the side
PROMPT = "a red ball is moving left on a white background"
BOS = 2
FOLDERS = {
    "transformer": "transformer", "vae": "vae", "text_encoder": "text_encoder",
    "tokenizer": "tokenizer", "upsampler": "latent_upsampler", "connectors": "connectors",
    "audio_vae": "audio_vae", "vocoder": "vocoder",
}  # fmt: skip
# What makes stock run a distilled model: one call a step.
UNGUIDED = {
    "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Twin:
    """One version: filmlet's engine, and stock's pipeline of the same folder."""

    version: str
    folder: Path
    engine: Ltx2Engine
    stock: LTX2ConditionPipeline

    @property
    def params(self) -> DenoiseParams:
        """Of a clip's second stage; `first_stage()` has the first's shape."""
        shape = VideoShape(SIDE, SIDE, FRAMES, FPS, SIDE, SIDE, FRAMES)
        return DenoiseParams(shape, SIGMAS, 1.0, SEED, audio=True)

    @property
    def first(self) -> DenoiseParams:
        return self.params.first_stage()

    @property
    def text(self) -> str:
        """The prompt as stock has to be told it: it adds no <bos> for Gemma 4."""
        return f"<bos>{PROMPT}" if self.version == "2.5" else PROMPT

    @property
    def embeds(self) -> PromptEmbeds:
        return PromptEmbeds(self.engine.encode_prompt(self.tokens))

    @property
    def tokens(self) -> TokenizedPrompt:
        ids = self.stock.tokenizer(PROMPT).input_ids
        ids = ids if ids[0] == BOS else [BOS, *ids]
        return TokenizedPrompt(torch.tensor([ids]).numpy(), len(ids), PROMPT, "", ())

    @property
    def transformer(self) -> LTX2VideoTransformer3DModel:
        """Stock's."""
        return self.stock.transformer


@cache
def get_twin(version: str) -> Twin:
    """The twin of a version, made once a process; tests may not change it."""
    folder = make_ltx2(Path(mkdtemp(prefix="filmlet-ltx2-")), version)
    stock = LTX2ConditionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return Twin(version, folder, make_engine(folder, version), stock)


def make_engine(folder: Path, version: str, **changes: object) -> Ltx2Engine:
    """An engine with everything read. changes: of its card."""
    files: Components[Path] = Components(**{name: folder / at for name, at in FOLDERS.items()})
    sources = Components(**{name: ComponentSource(at, root=folder) for name, at in FOLDERS.items()})
    card = ModelCard(
        name="tiny-ltx2", summary="", licence="", schedule=FixedSigmas(SIGMAS), sources=sources,
        grid=ShapeConstraints(upscale_factor=2), refine_schedule=FixedSigmas(REFINE_SIGMAS),
        max_prompt_tokens=MAX_TOKENS, family=ModelFamily.LTX2, version=version,
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    engine = create_engine(card, files, Placement("cpu", "float32", "a test"))
    for _ in engine.load_components(*engine.core_components):
        pass
    return engine


def unpack_audio(twin: Twin, tokens: Tensor) -> Tensor:
    """(1, tokens, channels), normalised, as stock returns them: (1, channels, tokens, mel)."""
    vae = twin.stock.audio_vae
    plain = tokens * vae.latents_std + vae.latents_mean
    return plain.unflatten(2, (vae.config.latent_channels, -1)).transpose(1, 2)


@contextmanager
def first_frame_marked(twin: Twin) -> Iterator[None]:
    """Stock is told which tokens stand for one frame, which its pipelines leave out (2.5)."""
    plain, transformer = twin.transformer.forward, twin.transformer

    def forward(*args: object, height: int, width: int, **named: Any) -> object:
        mask = torch.zeros(1, named["hidden_states"].shape[1], 1)
        mask[:, : height * width] = 1
        return plain(
            *args, height=height, width=width, **named, video_keyframes_mask=mask
        )  # fmt: skip

    transformer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        transformer.forward = plain  # type: ignore[method-assign]
