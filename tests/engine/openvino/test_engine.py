"""The OpenVINO engine, component by component and as a whole, against torch's."""

import threading
import time
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from filmlet.core import cpu
from filmlet.core.events import drain
from filmlet.core.model_card import Components, ModelCard
from filmlet.engine.arrays import to_numpy
from filmlet.engine.base import PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.placement import Optimization
from filmlet.engine.sampler import ResumeState
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import Cancelled, NonFiniteValues
from filmlet.models import get_card, local_files
from filmlet.models.tokenizer import load_tokenizer, tokenize
from tests.helpers.tiny_checkpoint import make_vae

pytest.importorskip("openvino")
import openvino as ov
from openvino import opset13 as ops

from filmlet.engine.openvino import components, runner
from filmlet.engine.openvino.compile import ComponentBuild
from filmlet.engine.openvino.ops import Kernels, ModuleWeights, gelu
from filmlet.engine.openvino.vae_ops import convolution, fake_quantize, unpatchify
from tests.helpers.openvino_fixtures import (
    DTYPES,
    POCKET,
    frames,
    last,
    load,
    psnr,
    recipe_for,
    text_for,
)

pytestmark = pytest.mark.compile


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_of_pocket_is_as_in_torch(cache: Path, dtype: str) -> None:
    plain, fast = load(POCKET), load(POCKET, cache, dtype)
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    is_exact = dtype == "float32"
    tokenizer = load_tokenizer(local_files(POCKET).tokenizer)
    for prompt in ("a cat", "a red circle moving left on a white background"):
        reading = tokenize(tokenizer, prompt, POCKET.max_prompt_tokens)
        told, expected_told = fast.encode_prompt(reading), plain.encode_prompt(reading)
        assert np.abs(told - to_numpy(expected_told)).max() <= 1e-4
        expected = last(plain.denoise(PromptEmbeds(expected_told), recipe))
        found = last(fast.denoise(PromptEmbeds(told), recipe))
        assert np.abs(found - expected).max() <= (1e-3 if is_exact else 0.25)
        assert psnr(
            frames(plain, expected, recipe), frames(fast, found, recipe)
        ) >= (60 if is_exact else 40)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoder_that_multiplies_in_eight_bits_is_near_the_exact_one(
    cache: Path, dtype: str
) -> None:
    exact, fast = load(POCKET, cache), load(POCKET, cache, dtype, Optimization.INT8)
    recipe = recipe_for(POCKET, size="128x96", frames=25)
    for prompt in ("a red circle moving left on white", "a yellow star spinning in the rain"):
        told = exact.encode_prompt(
            tokenize(load_tokenizer(local_files(POCKET).tokenizer), prompt, 64)
        )
        latents = last(exact.denoise(PromptEmbeds(told), recipe))
        expected, found = (frames(engine, latents, recipe) for engine in (exact, fast))
        assert 43 < psnr(expected, found) < 60
    for engine, kinds in ((exact, {"f32"}), (fast, {"u8", "i8"})):
        nodes = engine.components["decoder"].runs[-1].model.get_runtime_model().get_ops()
        told = [{k: v.astype(str) for k, v in node.get_rt_info().items()} for node in nodes]
        convolutions = [t["runtimePrecision"] for t in told if t["layerType"] == "Convolution"]
        assert {*convolutions} <= kinds, convolutions
        assert len(convolutions) == 3


@pytest.mark.parametrize("has", [cpu.cpu_flags(), frozenset({"avx2"})])
def test_largest_products_of_bytes_do_not_overflow(
    monkeypatch: pytest.MonkeyPatch, has: frozenset[str]
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: has)
    weight, bias = np.ones((16, 16, 3, 3, 3), np.float32), np.zeros(16, np.float32)
    given = ops.parameter([1, 16, 3, 4, 4], np.float32)
    x = fake_quantize(given, (0, 1))
    conv = convolution(ModuleWeights({"weight": weight, "bias": bias}), x, is_rounded=True)
    model = runner.get_core().compile_model(ov.Model([conv], [given]), "CPU")
    (found,) = model(np.ones((1, 16, 3, 4, 4), np.float32)).values()
    assert found[0, :, 0, 1, 1] == pytest.approx(16 * 27, rel=1e-2)


@pytest.mark.parametrize("by_exp", [True, False])
def test_gelu_is_as_in_torch(by_exp: bool) -> None:
    given = ops.parameter([401], np.float32)
    graph = ov.Model([gelu(given, Kernels(gelu_by_exp=by_exp))], [given])
    model = runner.get_core().compile_model(graph, "CPU")
    x = np.linspace(-1, 1, 401, dtype=np.float32)
    for reach in (1, 10, 1e4):
        expected = torch.nn.functional.gelu(torch.tensor(reach * x), approximate="tanh").numpy()
        (found,) = model(reach * x).values()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_preview_is_as_in_torch(cache: Path) -> None:
    plain, fast = load(POCKET), load(POCKET, cache)
    recipe, clean = recipe_for(POCKET, size="128x96", frames=25), TorchNoise(1).randn(1, 48, 64)
    picture = fast.preview(clean, recipe.shape)
    assert picture.shape == (12, 16, 3)
    middle = (
        clean.reshape(4, 3, 4, 64)[2] @ fast.latent_rgb_factors[:-1] + fast.latent_rgb_factors[-1]
    )
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
    card = replace(get_card(str(tiny_guided)), image_cond_noise_scale=0.1, guidance_rescale=0.7)
    plain, fast = load(card), load(card, cache)
    recipe = replace(recipe_for(card, size="96x64", frames=17), guidance=guidance)
    results = []
    for engine in (plain, fast):
        shown = engine.to_device({"shown": TorchNoise(3).randn(1, 16, 1, 2, 3)})["shown"]
        guides = [] if frame is None else [GuideLatents(shown, frame, 0.9)]
        text = text_for(engine, 5)
        if guidance > 1:
            text = replace(text, negative=text_for(engine, 2).prompt)
        steps = list(engine.denoise(text, recipe, guides=guides))
        third = steps[2]
        again = engine.denoise(
            text, recipe, ResumeState(3, third.latents, third.keyframe_tokens), guides
        )
        results.append(to_numpy(steps[-1].latents.video))
        assert np.array_equal(last(again), results[-1])
    assert np.abs(results[1] - results[0]).max() <= 1e-3


def test_noise_drawn_anew_is_as_in_torch(tiny_noisy: Path, cache: Path) -> None:
    card = get_card(str(tiny_noisy))
    assert card.stochastic_sampling
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
    build = ComponentBuild(name, card, files, "float32", folder / "cache")
    return drain(
        {"encoder": components.VaeEncoder, "decoder": components.VaeDecoder}[name].load(build)
    )


@pytest.mark.parametrize("kind", [{}, {"timed": True}, {"causal": True}])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_decoder_gives_the_frames_of_the_whole_one(
    kind: dict[str, bool], count: int, tmp_path: Path
) -> None:
    vae = make_vae(**kind)
    card = replace(POCKET, decode_timestep=0.05)
    decoder = component(vae, tmp_path, "decoder", card)
    latents = TorchNoise(5).randn(1, 16, count, 2, 3)
    timestep = torch.tensor([0.05]) if kind.get("timed") else None
    with torch.inference_mode():
        whole = vae.decoder(torch.tensor(latents) * 9, timestep)[0].permute(1, 2, 3, 0)
    expected = ((whole + 1) * 127.5).round().clip(0, 255).numpy()
    assert expected.std() > 10
    parts = list(decoder(latents * 9))
    assert np.concatenate(parts).shape == expected.shape
    assert np.abs(np.concatenate(parts) - expected).max() <= 1  # where rounding falls apart
    assert all(len(part) <= 16 for part in parts)  # also at the end: memory stays flat


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_patches_of_every_side_become_pictures(side: int) -> None:
    """Of a patch, channels are its rows, in these its columns, in these its colours."""
    patches = np.random.default_rng(0).integers(0, 256, (1, 3 * side**2, 2, 3, 5), np.uint8)
    apart = patches.reshape(side, side, 3, 2, 3, 5).transpose(3, 4, 0, 5, 1, 2)
    assert np.array_equal(unpatchify(patches, side), apart.reshape(2, 3 * side, 5 * side, 3))


def test_two_clips_that_take_turns_in_a_decoder_do_not_meet(cache: Path) -> None:
    decoder = load(POCKET, cache)._get("decoder")
    latents = [TorchNoise(seed).randn(1, 64, 3, 2, 2) for seed in (1, 2)]
    alone = [np.concatenate([*decoder(one)]) for one in latents]
    turns = [*zip(*map(decoder, latents), strict=True)]
    for straight, mixed in zip(alone, zip(*turns, strict=True), strict=True):
        assert np.array_equal(np.concatenate(mixed), straight)


def test_decoder_whose_call_was_given_up_gives_the_next_clip_its_own_frames(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ASK_MS", 1)
    decoder = load(POCKET, cache)._get("decoder")
    small, large = TorchNoise(1).randn(1, 64, 3, 2, 2), TorchNoise(2).randn(1, 64, 9, 24, 24)
    expected = np.concatenate([*decoder(small)])

    def stop() -> None:
        raise Cancelled("nobody wants it")

    levels = decoder.runs[:2]
    for level in levels:
        level.cancel_checks = (stop,)
    with pytest.raises(Cancelled):
        list(decoder(large))
    for level in levels:
        level.cancel_checks = ()
    assert np.array_equal(np.concatenate([*decoder(small)]), expected)


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


def test_stop_is_heard_inside_a_model_call(cache: Path) -> None:
    engine = load(POCKET, cache)
    recipe, text = recipe_for(POCKET, size="512x512", frames=97), text_for(engine, 7)
    stopped, asked = threading.Event(), []

    def is_cancelled() -> bool:
        asked.append(time.monotonic())
        if len(asked) == 2:
            stopped.set()
        return stopped.is_set()

    with pytest.raises(Cancelled), engine.cancel_when(is_cancelled):
        list(engine.denoise(text, recipe))
    assert time.monotonic() - asked[1] < 0.5
    small = recipe_for(POCKET, size="64x64", frames=9)
    fresh = load(POCKET, cache)
    assert np.array_equal(last(engine.denoise(text, small)), last(fresh.denoise(text, small)))


def test_calls_that_were_given_up_at_any_moment_leave_the_next_ones_as_they_are(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO itself mixes up the shapes of a call that was cancelled with those of the next."""
    engine = load(POCKET, cache)
    text = text_for(engine, 7)
    small, large = (recipe_for(POCKET, size=size, frames=97) for size in ("64x64", "512x512"))
    expected = last(engine.denoise(text, small))
    for moment in (1, 2, 4, 7, 12, 20):
        monkeypatch.setattr(runner, "ASK_MS", moment)
        with pytest.raises(Cancelled), engine.cancel_when(lambda: True):
            list(engine.denoise(text, large))
        assert np.array_equal(last(engine.denoise(text, small)), expected)


def test_process_waits_for_the_end_of_a_call_that_a_signal_broke_off(cache: Path) -> None:
    run = load(POCKET, cache)._get("text_encoder").run
    own, done = run.request.own, []

    class Broken:
        """A signal comes as the call has begun, before anybody waits for it."""

        def start_async(self) -> None:
            own.start_async()
            raise KeyboardInterrupt

        def wait(self) -> None:
            own.wait()
            done.append("waited")

        def cancel(self) -> None:
            done.append("cancelled")

        def __getattr__(self, name: str) -> object:
            return getattr(own, name)

    run.request.own = Broken()
    with pytest.raises(KeyboardInterrupt):
        run({"ids": np.ones((1, 4), np.int64), "bias": np.zeros((1, 4, 4, 4), np.float32)})
    assert run.request in runner.in_flight
    runner._cancel_pending_requests()
    assert done == ["cancelled", "cancelled", "waited"]
    assert run.request not in runner.in_flight


@pytest.mark.parametrize("optimizations", [(), (Optimization.INT8,)])
def test_frames_that_are_not_numbers_are_an_error(
    cache: Path, optimizations: tuple[Optimization, ...]
) -> None:
    engine = load(POCKET, cache, "float32", *optimizations)
    recipe = recipe_for(POCKET, size="64x64", frames=9)
    with pytest.raises(NonFiniteValues, match="latents"):
        frames(engine, np.full((1, 8, 64), np.nan, np.float32), recipe)


def test_last_weights_that_are_not_numbers_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = CheckpointWeights.arrays

    def damaged(self: CheckpointWeights, *wanted: Container[str]) -> Iterator[tuple[str, NDArray]]:
        for name, array in arrays(self, *wanted):
            yield name, array * np.float32(np.nan if name.startswith("decoder.conv_out") else 1)

    monkeypatch.setattr(CheckpointWeights, "arrays", damaged)
    with pytest.raises(NonFiniteValues, match="last weights"):
        load(POCKET, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoder_that_leaves_the_numbers_is_an_error(cache: Path, dtype: str) -> None:
    engine, recipe = load(POCKET, cache, dtype), recipe_for(POCKET, size="64x64", frames=9)
    with pytest.raises(NonFiniteValues, match="decoder"):
        frames(engine, np.full((1, 8, 64), 1e37, np.float32), recipe)
