"""Transformer and decoder through OpenVINO, against torch."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from filmlet import stages
from filmlet.card import ModelCard
from filmlet.engine import ltx, streaming
from filmlet.engine.denoise import Step
from filmlet.engine.guiding import Shown
from filmlet.engine.loading import Weights
from filmlet.engine.ltx import Embeddings, LtxEngine, Recipe, Start
from filmlet.engine.placement import Compiled, Placement
from filmlet.errors import Cancelled
from filmlet.events import Pixels
from filmlet.models import CARDS, find, locate
from filmlet.plan import plan
from filmlet.request import clip_request, fit
from filmlet.settings import Settings
from filmlet.work import fold, prepare
from tests.tiny import make_checkpoint, make_vae

pytest.importorskip("openvino")
from filmlet.engine.compiled import made, running
from filmlet.engine.compiled.store import Store, fingerprint

FLOAT32 = Placement("cpu", torch.float32, "a test")
POCKET = CARDS["pocket"]
needs_bfloat16 = pytest.mark.skipif(not running.has_bfloat16(), reason="no bfloat16 on this CPU")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def load(card: ModelCard, compiled: Compiled | None = None) -> LtxEngine:
    return fold(ltx.load(card, locate(card), replace(FLOAT32, compiled=compiled)))


def recipe_for(card: ModelCard, **settings: object) -> Recipe:
    shape, _ = fit(clip_request("a ball", **settings), card.grid)
    return Recipe(shape, card.schedule.at(8), 1.0, seed=7)


def text_for(card: ModelCard, words: int) -> Tensor:
    width = Weights("transformer", locate(card).transformer).config["caption_channels"]
    return torch.randn(1, words, width, generator=torch.Generator().manual_seed(words))


def last(steps: Iterator[Step]) -> Tensor:
    *_, step = steps
    return step.latents


def frames(engine: LtxEngine, latents: Tensor, recipe: Recipe) -> Pixels:
    return np.concatenate(list(engine.decode(latents, recipe)))


def decibels(a: Pixels, b: Pixels) -> float:
    """PSNR."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pocket_is_as_in_torch(cache: Path, dtype: torch.dtype) -> None:
    plain, fast = load(POCKET), load(POCKET, Compiled(dtype, cache))
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    exact = dtype == torch.float32
    for words in (9, 14):
        text = Embeddings(text_for(POCKET, words) / 5)
        expected, found = last(plain.denoise(text, recipe)), last(fast.denoise(text, recipe))
        assert (found - expected).abs().max() <= (1e-4 if exact else 0.25)
        assert decibels(
            frames(plain, expected, recipe), frames(fast, found, recipe)
        ) >= (60 if exact else 40)  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("frame", [None, 0, 8])
def test_guides_guidance_and_resumed_steps_are_as_in_torch(
    tiny_guided: Path, cache: Path, guidance: float, frame: int | None
) -> None:
    card = find(str(tiny_guided))
    plain, fast = load(card), load(card, Compiled(torch.float32, cache))
    recipe = replace(recipe_for(card, size="96x64", frames=17), guidance=guidance)
    shown = torch.randn(1, 16, 1, 2, 3)
    guides = [] if frame is None else [Shown(shown, frame, 0.9)]
    text = Embeddings(text_for(card, 5), text_for(card, 2) if guidance > 1 else None)
    expected = last(plain.denoise(text, recipe, guides=guides))
    steps = list(fast.denoise(text, recipe, guides=guides))
    assert (steps[-1].latents - expected).abs().max() <= 1e-4
    third = steps[2]
    again = fast.denoise(text, recipe, Start(3, third.latents, third.beside), guides)
    assert torch.equal(last(again), steps[-1].latents)


@pytest.mark.parametrize("kind", [{}, {"timed": True}, {"causal": True}])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_decoder_gives_the_frames_of_the_whole_one(
    kind: dict[str, bool], count: int, tmp_path: Path
) -> None:
    vae = make_vae(**kind)
    vae.save_pretrained(tmp_path / "vae")
    card = replace(POCKET, decode_timestep=0.05)
    compiled = Compiled(torch.float32, tmp_path / "cache")
    decoder = fold(made.Build(card, Weights("vae", tmp_path / "vae"), compiled).decoder())
    latents = torch.randn(1, 16, count, 2, 3, generator=torch.Generator().manual_seed(5))
    timestep = torch.tensor([0.05]) if kind.get("timed") else None
    with torch.inference_mode():
        whole = vae.decoder(latents, timestep)
        parts = list(streaming.flow(decoder.streams(), latents.split(1, 2)))
    assert torch.cat(parts, 2).shape == whole.shape
    assert (torch.cat(parts, 2) - whole).abs().max() <= 1e-4
    assert all(part.shape[2] <= 16 for part in parts)  # also at the end: memory stays flat


def test_a_kept_graph_gives_the_same_bytes_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    recipe, text = recipe_for(POCKET, size="64x64", frames=9), Embeddings(text_for(POCKET, 7))

    def make() -> tuple[Tensor, Pixels]:
        engine = load(POCKET, Compiled(torch.float32, tmp_path))
        latents = last(engine.denoise(text, recipe))
        return latents, frames(engine, latents, recipe)

    first = make()
    blobs = {file: file.read_bytes() for file in tmp_path.glob("*.blob")}
    assert len(blobs) == 5
    second = make()
    for file in blobs:
        file.write_bytes(file.read_bytes()[:1000])
    third = make()
    for latents, pixels in (second, third):
        assert torch.equal(latents, first[0])
        assert np.array_equal(pixels, first[1])
    assert all(len(file.read_bytes()) == len(blob) for file, blob in blobs.items())


def test_the_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.engine.compiled.store.ROOM", 250)
    store = Store(tmp_path / "cache")
    for name in ("a", "b"):
        store.save(name, bytes(60))
        time.sleep(0.01)
    assert store.load("a") is not None
    time.sleep(0.01)
    store.save("c", bytes(60))
    kept = store.load("a")
    assert kept is not None
    assert kept.tobytes() == bytes(60)
    assert store.load("b") is None
    assert not list((tmp_path / "cache").glob("*.part"))


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    before = fingerprint([file], 1)
    assert fingerprint([file], 1) == before != fingerprint([file], 2)
    file.write_bytes(b"two")
    assert fingerprint([file], 1) != before


def test_a_stop_is_heard_inside_a_model_call(cache: Path) -> None:
    engine = load(POCKET, Compiled(torch.float32, cache))
    recipe, text = recipe_for(POCKET, size="512x512", frames=97), Embeddings(text_for(POCKET, 7))
    stopped, asked = threading.Event(), []

    def wanted() -> bool:
        asked.append(time.monotonic())
        if len(asked) == 2:
            stopped.set()
        return not stopped.is_set()

    with pytest.raises(Cancelled), engine.stopping(wanted):
        list(engine.denoise(text, recipe))
    assert time.monotonic() - asked[1] < 0.5
    small = recipe_for(POCKET, size="64x64", frames=9)
    fresh = load(POCKET, Compiled(torch.float32, cache))
    assert torch.equal(last(engine.denoise(text, small)), last(fresh.denoise(text, small)))


@needs_bfloat16
def test_it_is_used_by_itself_and_told(cache: Path, tmp_path: Path) -> None:
    request = clip_request("a red ball", size="64x64", frames=9, seed=1)
    work = fold(prepare(plan(request), Settings(engine="auto", cache=cache)))
    assert (work.effective.engine, work.effective.dtype) == ("openvino", "bfloat16")
    list(stages.film(work, tmp_path / "clip.mp4"))
    again = fold(prepare(plan(request), Settings(cache=cache), "bfloat16", "openvino"))
    list(stages.film(again, tmp_path / "again.mp4"))
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    begun = fold(prepare(plan(request), Settings(cache=cache), "float32", "torch"))
    assert (begun.effective.engine, begun.effective.dtype) == ("torch", "float32")


def test_what_it_cannot_do_is_left_to_torch_with_the_reason(
    tiny: Path, cache: Path, tmp_path: Path
) -> None:
    def engine(model: Path, **settings: object) -> tuple[str, str]:
        chosen = Settings(cache=cache, **({"engine": "auto"} | settings))
        work = fold(prepare(plan(clip_request("a ball", model=str(model), size="64x64")), chosen))
        told = [change.reason for change in work.effective.changes if change.field == "engine"]
        return work.effective.engine, " ".join(told)

    assert engine(tiny) == ("torch", "")  # too small to be compiled, and nobody asked for it
    assert engine(tiny, engine="openvino") == ("openvino", "")
    assert engine(tiny, engine="torch") == ("torch", "")
    chosen, told = engine(tiny, engine="openvino", hold="layers")
    assert chosen == "torch"
    assert "layers" in told
    noisy = make_checkpoint(tmp_path / "noisy", timed=True)
    make_vae(timed=True, noisy=True).save_pretrained(noisy / "vae")
    chosen, told = engine(noisy, engine="openvino")
    assert chosen == "torch"
    assert "adds noise" in told


@needs_bfloat16
def test_bfloat16_that_is_off_is_given_up_once_and_for_all(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "BOUND", 1e-5)
    settings = Settings(engine="openvino", cache=tmp_path / "cache")
    request = clip_request("a ball", model=str(tiny), size="64x64", frames=9)
    work = fold(prepare(plan(request), settings))
    assert work.effective.dtype == "bfloat16"
    assert list(stages.run(work))
    assert (work.effective.engine, work.effective.dtype) == ("torch", "float32")
    assert {"dtype", "engine"} <= {change.field for change in work.effective.changes}
    following = fold(prepare(plan(request), settings)).effective
    assert (following.engine, following.dtype) == ("openvino", "float32")
    by_itself = fold(prepare(plan(request), replace(settings, engine="auto"))).effective
    assert by_itself.engine == "torch"
