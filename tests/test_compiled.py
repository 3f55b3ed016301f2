"""The OpenVINO engine, component by component and as a whole, against torch's."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from filmlet import cli, stages
from filmlet.card import Components, ModelCard
from filmlet.engine import engines
from filmlet.engine.arrays import as_numpy
from filmlet.engine.denoise import Step
from filmlet.engine.engine import Embeddings, Engine, Recipe, Start
from filmlet.engine.guiding import Shown
from filmlet.engine.noise import Noise
from filmlet.engine.placement import Lever, Library, Placement
from filmlet.engine.text import load_tokenizer, read
from filmlet.engine.weights import Weights
from filmlet.errors import Cancelled, NotFinite
from filmlet.events import Frames, Pixels
from filmlet.models import CARDS, find, locate
from filmlet.plan import plan
from filmlet.request import clip_request, fit
from filmlet.settings import Settings
from filmlet.work import fold, prepare
from tests.tiny import make_checkpoint, make_vae

pytest.importorskip("openvino")
from filmlet.engine.compiled import building, made, running
from filmlet.engine.compiled.building import Build
from filmlet.engine.compiled.store import Store, fingerprint

FLOAT32 = Placement("cpu", "float32", "a test")
POCKET = CARDS["pocket"]
needs_bfloat16 = pytest.mark.skipif(not running.has_bfloat16(), reason="no bfloat16 on this CPU")
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def load(
    card: ModelCard, cache: Path | None = None, dtype: str = "float32", *levers: Lever
) -> Engine:
    """In OpenVINO where there is a cache for it, else in torch."""
    placement = replace(FLOAT32, dtype=dtype, levers=frozenset(levers))
    if cache:
        placement = replace(placement, library=Library.OPENVINO, cache=cache)
    return fold(engines.load(card, locate(card), placement))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_of_pocket_is_as_in_torch(cache: Path, dtype: str) -> None:
    plain, fast = load(POCKET), load(POCKET, cache, dtype)
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    is_exact = dtype == "float32"
    tokenizer = load_tokenizer(locate(POCKET).tokenizer)
    for prompt in ("a cat", "a red circle moving left on a white background"):
        reading = read(tokenizer, prompt, POCKET.max_tokens)
        told, expected_told = fast.encode(reading), plain.encode(reading)
        assert np.abs(told - as_numpy(expected_told)).max() <= 1e-4
        expected = last(plain.denoise(Embeddings(expected_told), recipe))
        found = last(fast.denoise(Embeddings(told), recipe))
        assert np.abs(found - expected).max() <= (1e-3 if is_exact else 0.25)
        assert decibels(
            frames(plain, expected, recipe), frames(fast, found, recipe)
        ) >= (60 if is_exact else 40)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoder_that_multiplies_in_eight_bits_is_near_the_exact_one(
    cache: Path, dtype: str
) -> None:
    exact, fast = load(POCKET, cache), load(POCKET, cache, dtype, Lever.INT8)
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    for prompt in ("a red circle moving left on white", "a yellow star spinning in the rain"):
        told = exact.encode(read(load_tokenizer(locate(POCKET).tokenizer), prompt, 64))
        latents = last(exact.denoise(Embeddings(told), recipe))
        expected, found = (frames(engine, latents, recipe) for engine in (exact, fast))
        assert 43 < decibels(expected, found) < 60
    for engine, kinds in ((exact, {"f32"}), (fast, {"u8", "i8"})):
        nodes = engine.held["decoder"].runs[-1].model.get_runtime_model().get_ops()
        told = [{k: v.astype(str) for k, v in node.get_rt_info().items()} for node in nodes]
        convolutions = [t["runtimePrecision"] for t in told if t["layerType"] == "Convolution"]
        assert {*convolutions} <= kinds, convolutions
        assert len(convolutions) == 3


def test_a_preview_is_as_in_torch(cache: Path) -> None:
    plain, fast = load(POCKET), load(POCKET, cache)
    recipe, clean = recipe_for(POCKET, size="128x96", frames=25), Noise(1).draw(1, 48, 64)
    picture = fast.preview(clean, recipe.shape)
    assert picture.shape == (12, 16, 3)
    middle = clean.reshape(4, 3, 4, 64)[2] @ fast.projection[:-1] + fast.projection[-1]
    smooth = torch.nn.functional.interpolate(
        torch.tensor(middle).permute(2, 0, 1)[None], scale_factor=4, mode="bicubic"
    )[0]
    expected = (smooth.permute(1, 2, 0) * 255).round().clip(0, 255).numpy()
    assert np.abs(picture - expected).max() <= 1
    assert np.array_equal(plain.preview(torch.tensor(clean), recipe.shape), picture)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("frame", [None, 0, 8])
def test_guides_guidance_and_resumed_steps_are_as_in_torch(
    tiny_guided: Path, cache: Path, guidance: float, frame: int | None
) -> None:
    card = replace(find(str(tiny_guided)), guide_noise=0.1, rescale=0.7)
    plain, fast = load(card), load(card, cache)
    recipe = replace(recipe_for(card, size="96x64", frames=17), guidance=guidance)
    results = []
    for engine in (plain, fast):
        shown = engine.take({"shown": Noise(3).draw(1, 16, 1, 2, 3)})["shown"]
        guides = [] if frame is None else [Shown(shown, frame, 0.9)]
        text = text_for(engine, 5)
        if guidance > 1:
            text = replace(text, negative=text_for(engine, 2).prompt)
        steps = list(engine.denoise(text, recipe, guides=guides))
        third = steps[2]
        again = engine.denoise(text, recipe, Start(3, third.latents, third.beside), guides)
        results.append(as_numpy(steps[-1].latents))
        assert np.array_equal(last(again), results[-1])
    assert np.abs(results[1] - results[0]).max() <= 1e-3


def test_noise_drawn_anew_is_as_in_torch(tiny_noisy: Path, cache: Path) -> None:
    card = find(str(tiny_noisy))
    assert card.stochastic
    recipe = recipe_for(card, size="96x64", frames=17)
    expected, found = (
        last(engine.denoise(text_for(engine, 5), recipe))
        for engine in (load(card), load(card, cache))
    )
    assert np.abs(found - expected).max() <= 1e-3


def component(vae: torch.nn.Module, folder: Path, name: str, card: ModelCard) -> object:
    """Of a VAE, compiled in float32."""
    vae.save_pretrained(folder / "vae")
    place = folder / "vae"
    files = Components(transformer=place, vae=place, text_encoder=place, tokenizer=place)
    build = Build(name, card, files, "float32", folder / "cache")
    return fold({"encoder": made.Encoder, "decoder": made.Decoder}[name].load(build))


@pytest.mark.parametrize("kind", [{}, {"timed": True}, {"causal": True}])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_decoder_gives_the_frames_of_the_whole_one(
    kind: dict[str, bool], count: int, tmp_path: Path
) -> None:
    vae = make_vae(**kind)
    card = replace(POCKET, decode_timestep=0.05)
    decoder = component(vae, tmp_path, "decoder", card)
    latents = Noise(5).draw(1, 16, count, 2, 3)
    timestep = torch.tensor([0.05]) if kind.get("timed") else None
    with torch.inference_mode():
        whole = vae.decoder(torch.tensor(latents) * 9, timestep)[0].permute(1, 2, 3, 0)
    expected = ((whole + 1) * 127.5).round().clip(0, 255).numpy()
    assert expected.std() > 10
    parts = list(decoder(latents * 9))
    assert np.concatenate(parts).shape == expected.shape
    assert np.abs(np.concatenate(parts) - expected).max() <= 1  # where rounding falls apart
    assert all(len(part) <= 16 for part in parts)  # also at the end: memory stays flat


@pytest.mark.parametrize("down", ["spatial", "temporal", "spatiotemporal", None])
@pytest.mark.parametrize("count", [1, 9])
def test_every_encoder_gives_the_latents_of_the_whole_one(
    down: str | None, count: int, tmp_path: Path
) -> None:
    vae = make_vae(timed=down is not None, down=down)
    encoder = component(vae, tmp_path, "encoder", POCKET)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), np.uint8)
    with torch.inference_mode():
        video = torch.tensor(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1
        expected = vae.encode(video).latent_dist.mode().numpy()
    found = encoder(pixels)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_kept_graph_gives_the_same_bytes_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    recipe = recipe_for(POCKET, size="64x64", frames=9)

    def make() -> tuple[NDArray, Pixels]:
        engine = load(POCKET, tmp_path)
        latents = last(engine.denoise(text_for(engine, 7), recipe))
        return latents, frames(engine, latents, recipe)

    first = make()
    blobs = list(tmp_path.glob("*.blob"))
    assert len(blobs) == 6
    second = make()
    for file in blobs:
        file.write_bytes(file.read_bytes()[:1000])
    third = make()
    for latents, pixels in (second, third):
        assert np.array_equal(latents, first[0])
        assert np.array_equal(pixels, first[1])
    assert all(Store(tmp_path).load(file.stem) for file in blobs)


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
    assert kept.blob.tobytes() == bytes(60)
    kept.put_away()
    assert kept.blob.tobytes() == bytes(60)
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
    engine = load(POCKET, cache)
    recipe, text = recipe_for(POCKET, size="512x512", frames=97), text_for(engine, 7)
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
    fresh = load(POCKET, cache)
    assert np.array_equal(last(engine.denoise(text, small)), last(fresh.denoise(text, small)))


def test_a_process_waits_for_the_end_of_a_call_that_a_signal_broke_off(cache: Path) -> None:
    run = load(POCKET, cache)._get("text_encoder").run
    request, done = run.request, []

    class Broken:
        """A signal comes as the call has begun, before anybody waits for it."""

        def start_async(self) -> None:
            request.start_async()
            raise KeyboardInterrupt

        def wait(self) -> None:
            request.wait()
            done.append("waited")

        def cancel(self) -> None:
            done.append("cancelled")

        def __getattr__(self, name: str) -> object:
            return getattr(request, name)

    run.request = Broken()
    with pytest.raises(KeyboardInterrupt):
        run(np.ones((1, 4), np.int64), np.zeros((1, 4, 4, 4), np.float32))
    assert run in running.at_work
    running._settle_all()
    assert done == ["cancelled", "cancelled", "waited"]
    assert run not in running.at_work


@pytest.mark.parametrize("levers", [(), (Lever.INT8,)])
def test_frames_that_are_not_numbers_are_an_error(cache: Path, levers: tuple[Lever, ...]) -> None:
    engine = load(POCKET, cache, "float32", *levers)
    recipe = recipe_for(POCKET, size="64x64", frames=9)
    latents = np.full((1, 8, 64), np.nan, np.float32)
    with pytest.raises(NotFinite):
        frames(engine, latents, recipe)


def test_an_exported_model_is_compiled_once_and_for_every_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FILMLET_CACHE", str(tmp_path))
    assert cli.main(["models", "export", "pocket", "--json"]) == 0
    told, kept = json.loads(capsys.readouterr().out), sorted(tmp_path.iterdir())
    assert told["bytes_in_cache"] == sum(file.stat().st_size for file in kept) > 10_000_000

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(building, "compile_all", refuse)
    engine = load(POCKET, tmp_path, told["dtype"], *map(Lever, told["levers"]))
    engine.see(np.zeros((1, 64, 64, 3), np.uint8))
    assert cli.main(["models", "export", "pocket"]) == 0
    assert sorted(tmp_path.iterdir()) == kept


def test_what_is_torchs_is_not_exported_and_says_why(
    tiny_two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "export", str(tiny_two)]) == 2
    assert "upsampler is torch's" in capsys.readouterr().err
    assert cli.main(["models", "export", "ltxv-13b-0.9.8-distilled"]) == 2
    assert "filmlet models pull" in capsys.readouterr().err


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
    exact = fold(prepare(plan(request), Settings(cache=cache), "float32", "openvino"))
    assert (exact.effective.engine, exact.effective.dtype) == ("openvino", "float32")


def test_what_it_cannot_do_is_left_to_torch_with_the_reason(
    tiny: Path, tiny_two: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    chosen, told = engine(tiny_two, engine="openvino")
    assert chosen == "torch"
    assert "upsampler" in told
    noisy = make_checkpoint(tmp_path / "noisy", timed=True)
    make_vae(timed=True, noisy=True).save_pretrained(noisy / "vae")
    chosen, told = engine(noisy, engine="openvino")
    assert chosen == "torch"
    assert "adds noise" in told
    monkeypatch.setattr(engines, "LARGEST", 10_000)
    chosen, told = engine(tiny, engine="openvino")
    assert chosen == "torch"
    assert "too much memory" in told


def test_where_memory_runs_out_torch_goes_on_from_what_openvino_has_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(made.Decoder, "__call__", full)
    request = clip_request("a red ball", size="64x64", frames=9, seed=1)
    settings = Settings(engine="openvino", cache=cache, hold="turns")
    work = fold(prepare(plan(request), settings, "float32", "openvino"))
    pixels = [event.pixels for event in stages.run(work) if isinstance(event, Frames)]
    assert (work.effective.engine, work.effective.hold) == ("torch", "stored")
    assert {"hold", "engine"} <= {change.field for change in work.effective.changes}
    latents = as_numpy(work.made["latents"]["latents"])
    expected = frames(load(POCKET, dtype=work.effective.dtype), latents, work.recipe)
    assert np.array_equal(np.concatenate(pixels), expected)


def test_eight_bits_are_used_where_the_cpu_has_them_unless_they_are_not_wanted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = clip_request("a red ball", size="64x64", frames=9, seed=1)
    for flags, wanted, levers in (("vnni", 1, ("int8",)), ("vnni", 0, ()), ("", 1, ())):
        monkeypatch.setattr(running, "_flags", lambda flags=flags: flags)
        settings = Settings(engine="openvino", cache=cache, int8=wanted)
        assert fold(prepare(plan(request), settings)).effective.levers == levers


def test_eight_bits_are_left_to_cpus_whose_bfloat16_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "_flags", lambda: "avx512_vnni amx_bf16")
    assert running.prefers_int8("float32")
    assert not running.prefers_int8("bfloat16")


def test_eight_bits_that_are_off_are_given_up_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_flags", lambda: "avx512_vnni")
    monkeypatch.setattr(made, "LEAST_DB", 99.0)
    settings = Settings(engine="openvino", cache=tmp_path / "cache")
    request = clip_request("a ball", size="64x64", frames=9, seed=1)
    work = fold(prepare(plan(request), settings))
    assert work.effective.levers == ("int8",)
    assert list(stages.run(work))
    assert (work.effective.dtype, work.effective.levers) == ("float32", ())
    (told,) = [change for change in work.effective.changes if change.field == "int8"]
    assert "dB in the decoder" in told.reason
    assert fold(prepare(plan(request), settings)).effective.levers == ()


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
    assert (work.effective.engine, work.effective.dtype) == ("openvino", "float32")
    assert "dtype" in {change.field for change in work.effective.changes}
    following = fold(prepare(plan(request), settings)).effective
    assert (following.engine, following.dtype) == ("openvino", "float32")
