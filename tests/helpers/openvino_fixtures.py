"""Checkpoints in OpenVINO and in torch, for tests that compare them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core.events import Pixels, drain
from filmlet.core.model_card import ModelCard
from filmlet.core.request import build_request
from filmlet.core.shape import resolve_shape
from filmlet.engine import selection
from filmlet.engine.arrays import to_numpy
from filmlet.engine.base import DenoiseParams, Engine, PromptEmbeds
from filmlet.engine.latents import Modalities
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.placement import Backend, Optimization, Placement
from filmlet.engine.sampler import DenoiseStep
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.models import REGISTRY, local_files

pytest.importorskip("openvino")
from filmlet.engine.openvino import runner

FLOAT32 = Placement("cpu", "float32", "a test")
POCKET = REGISTRY["pocket"]
needs_bfloat16 = pytest.mark.skipif(not runner.has_bfloat16(), reason="no bfloat16 on this CPU")
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def load(
    card: ModelCard, cache: Path | None = None, dtype: str = "float32", *optimizations: Optimization
) -> Engine:
    """In OpenVINO where there is a cache for it, else in torch."""
    placement = replace(FLOAT32, dtype=dtype, optimizations=frozenset(optimizations))
    if cache:
        placement = replace(placement, backend=Backend.OPENVINO, cache=cache)
    return drain(selection.load_engine(card, local_files(card), placement))


def recipe_for(card: ModelCard, **settings: object) -> DenoiseParams:
    shape, _ = resolve_shape(build_request("a ball", **settings), card.grid)
    return DenoiseParams(shape, card.schedule.sigmas_for(8), 1.0, seed=7)


def text_for(engine: Engine, words: int) -> PromptEmbeds:
    width = CheckpointWeights("transformer", local_files(engine.card).transformer).config[
        "caption_channels"
    ]
    (text,) = engine.to_device({"text": TorchNoise(words).randn(1, words, width)}).values()
    return PromptEmbeds(text)


def last(steps: Iterator[DenoiseStep]) -> NDArray:
    *_, step = steps
    return to_numpy(step.latents.video)


def frames(engine: Engine, latents: NDArray, recipe: DenoiseParams) -> Pixels:
    (own,) = engine.to_device({"latents": latents}).values()
    return np.concatenate(list(engine.decode(Modalities(own), recipe)))


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))
