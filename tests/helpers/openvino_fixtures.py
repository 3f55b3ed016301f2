"""Checkpoints in OpenVINO and in torch, for tests that compare them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core.events import Pixels
from filmlet.core.model_card import ModelCard
from filmlet.core.request import clip_request
from filmlet.core.shape import fit
from filmlet.engine import selection
from filmlet.engine.arrays import as_numpy
from filmlet.engine.base import Embeddings, Engine, Recipe
from filmlet.engine.openvino.noise import Noise
from filmlet.engine.placement import Lever, Library, Placement
from filmlet.engine.sampler import Step
from filmlet.engine.state_dict import Weights
from filmlet.models import CARDS, locate
from filmlet.pipeline.prepare import fold

pytest.importorskip("openvino")
from filmlet.engine.openvino import runner

FLOAT32 = Placement("cpu", "float32", "a test")
POCKET = CARDS["pocket"]
needs_bfloat16 = pytest.mark.skipif(not runner.has_bfloat16(), reason="no bfloat16 on this CPU")
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def load(
    card: ModelCard, cache: Path | None = None, dtype: str = "float32", *levers: Lever
) -> Engine:
    """In OpenVINO where there is a cache for it, else in torch."""
    placement = replace(FLOAT32, dtype=dtype, levers=frozenset(levers))
    if cache:
        placement = replace(placement, library=Library.OPENVINO, cache=cache)
    return fold(selection.load(card, locate(card), placement))


def recipe_for(card: ModelCard, **settings: object) -> Recipe:
    shape, _ = fit(clip_request("a ball", **settings), card.grid)
    return Recipe(shape, card.schedule.at(8), 1.0, seed=7)


def text_for(engine: Engine, words: int) -> Embeddings:
    width = Weights("transformer", locate(engine.card).transformer).config["caption_channels"]
    (text,) = engine.take({"text": Noise(words).draw(1, words, width)}).values()
    return Embeddings(text)


def last(steps: Iterator[Step]) -> NDArray:
    *_, step = steps
    return as_numpy(step.latents)


def frames(engine: Engine, latents: NDArray, recipe: Recipe) -> Pixels:
    (own,) = engine.take({"latents": latents}).values()
    return np.concatenate(list(engine.decode(own, recipe)))


def decibels(a: Pixels, b: Pixels) -> float:
    """PSNR."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))
