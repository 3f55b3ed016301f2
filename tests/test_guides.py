"""Guides: pictures and videos that a clip begins with, passes through, ends in, goes on from."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from torch import Tensor

from filmlet.card import GuideKind, ModelCard
from filmlet.engine.denoise import pack, unpack
from filmlet.engine.guiding import Shown
from filmlet.engine.ltx import Embeddings, LtxEngine, Recipe, Start
from filmlet.engine.text import load_tokenizer, read
from filmlet.events import Pixels
from filmlet.models import CARDS, check, find
from filmlet.request import clip_request, fit
from tests.test_engine import load as load_card
from tests.tiny import edit_json, make_checkpoint

PROMPT = "a red ball moving left"
SIGMAS = (1.0, 0.9, 0.6, 0.25)
Told = list[tuple[Pixels, int, float]]  # frames, where they stand, how strong they are


@pytest.fixture(scope="session")
def tiny_guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint for LTXConditionPipeline: guides anywhere."""
    folder = make_checkpoint(tmp_path_factory.mktemp("guided") / "guided", timed=True)
    edit_json(folder / "model_index.json", _class_name="LTXConditionPipeline")
    return folder


@pytest.fixture
def _mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock draws from the encoder's distribution; here it takes its middle, as filmlet does."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mode())


load = cache(load_card)


def footage(frames: int = 1, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Pixels:
    """Smooth random frames: (frames, height, width, 3)."""
    width, height = size
    rough = np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in rough]
    ).reshape(frames, height, width, 3)


def recipe_of(card: ModelCard, guidance: float = 1.0) -> Recipe:
    shape, _ = fit(clip_request("a ball", size="96x64", frames=25, fps=12), card.grid)
    return Recipe(shape, SIGMAS, guidance, seed=7)


def told(engine: LtxEngine, folder: Path, recipe: Recipe) -> Embeddings:
    tokenizer, most = load_tokenizer(folder), engine.card.max_tokens
    away = engine.encode(read(tokenizer, "white", most)) if recipe.guidance > 1 else None
    return Embeddings(engine.encode(read(tokenizer, PROMPT, most)), away)


def ours(
    engine: LtxEngine, folder: Path, recipe: Recipe, guides: Told, start: Start | None = None
) -> Tensor:
    shown = [Shown(engine.see(pixels), frame, strength) for pixels, frame, strength in guides]
    *_, last = engine.denoise(told(engine, folder, recipe), recipe, start, shown)
    return unpack(last.latents, *engine.latent_shape(recipe.shape))


@cache
def stock_pipeline(folder: Path) -> LTXConditionPipeline:
    pipe = LTXConditionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(folder: Path, recipe: Recipe, guides: Told, **more: object) -> Tensor:
    """What LTXConditionPipeline computes: (1, channels, frames, height, width), normalised."""
    pipe = stock_pipeline(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    conditions = [
        LTXVideoCondition(
            image=Image.fromarray(pixels[0]) if len(pixels) == 1 else None,
            video=[Image.fromarray(p) for p in pixels] if len(pixels) > 1 else None,
            frame_index=frame,
            strength=strength,
        )
        for pixels, frame, strength in guides
    ]
    timesteps = [1000 * sigma for sigma in recipe.sigmas]
    return pipe(
        **{
            "conditions": conditions or None, "prompt": PROMPT, "negative_prompt": "white",
            "width": 96, "height": 64, "num_frames": 25, "frame_rate": 12,
            "guidance_scale": recipe.guidance, "timesteps": timesteps,
            "generator": torch.Generator().manual_seed(recipe.seed), "output_type": "latent",
        } | more
    ).frames  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # stock's own
@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "guides",
    [
        [],
        [(footage(), 0, 1.0)],
        [(footage(), 0, 1.0), (footage(seed=1), 24, 1.0)],
        [(footage(), 16, 1.0)],
        [(footage(), 0, 0.7)],
        [(footage(), 8, 0.7), (footage(seed=1), 24, 0.4)],
        [(footage(9), 0, 1.0)],
        [(footage(17), 8, 0.9)],
        [(footage(9), 16, 1.0), (footage(seed=1), 0, 1.0)],
    ],
    ids=["none", "first", "first+last", "middle", "soft", "two soft", "video", "end", "both"],
)
def test_guided_latents_equal_stock_diffusers(
    tiny_guided: Path, guides: Told, guidance: float
) -> None:
    card = find(str(tiny_guided))
    assert (card.guides, card.guide_noise, card.context) == (GuideKind.ANY_FRAME, 0.15, 25)
    recipe = recipe_of(card, guidance)
    mine = ours(load(card), tiny_guided, recipe, guides)
    theirs = stock(tiny_guided, recipe, guides)
    assert (mine - theirs).abs().max() <= 1e-4
    if guides:
        assert (mine - stock(tiny_guided, recipe, [])).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_mode")
def test_guides_of_a_second_stage_equal_stock_diffusers(tiny_guided: Path) -> None:
    card, guides = find(str(tiny_guided)), [(footage(), 0, 1.0), (footage(seed=1), 16, 0.8)]
    recipe, engine = recipe_of(card), load(card)
    clean = torch.randn(1, 16, 4, 2, 3, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(recipe.seed))
    sigma = SIGMAS[1]
    second = Recipe(recipe.shape, SIGMAS[1:], 1.0, recipe.seed)
    start = Start(0, pack(sigma * noise + (1 - sigma) * clean))
    mine = ours(engine, tiny_guided, second, guides, start)
    theirs = stock(tiny_guided, recipe, guides, latents=clean, denoise_strength=0.999)
    assert (mine - theirs).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_mode")
def test_a_first_frame_of_pocket_equals_unmodified_stock_diffusers() -> None:
    card, folder = CARDS["pocket"], check(CARDS["pocket"])
    assert card.guides == GuideKind.FIRST_FRAME
    recipe = Recipe(recipe_of(card).shape, card.schedule.at(4), 1.0, seed=7)
    mine = ours(load(card), folder, recipe, [(footage(), 0, 1.0)])
    pipe = LTXImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        image=Image.fromarray(footage()[0]), prompt=PROMPT, width=96, height=64, num_frames=25,
        frame_rate=12, num_inference_steps=4, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7), output_type="latent",
    ).frames  # fmt: skip
    assert (pack(mine) - theirs).abs().max() <= 1e-4
    plain = LTXPipeline.from_pipe(pipe)(
        prompt=PROMPT, width=96, height=64, num_frames=25, frame_rate=12, num_inference_steps=4,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(7), output_type="latent",
    ).frames  # fmt: skip
    assert (theirs - plain).abs().max() > 0.1
