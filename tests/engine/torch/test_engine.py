"""The engine against stock diffusers, and against itself in the plain way."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from filmlet.core.events import drain
from filmlet.core.model_card import ModelCard
from filmlet.core.request import build_request
from filmlet.core.shape import resolve_shape
from filmlet.engine import selection
from filmlet.engine.arrays import pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.latents import Modalities
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import EulerRule, denoise_steps
from filmlet.engine.torch import dtype, dtype_record, vae_decoder
from filmlet.engine.torch.dtype import choose_dtype
from filmlet.engine.torch.engine import TorchEngine
from filmlet.errors import CheckpointCorrupt, NonFiniteValues
from filmlet.models import REGISTRY, get_card, local_files
from filmlet.models.tokenizer import load_tokenizer, tokenize
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.tiny_checkpoint import folder_of, make_vae

FLOAT32 = Placement("cpu", "float32", "a test")


def load(card: ModelCard) -> TorchEngine:
    return drain(selection.load_engine(card, local_files(card), FLOAT32))


def recipe_for(
    card: ModelCard, *, guidance: float, steps: int, **settings: object
) -> DenoiseParams:
    shape, _ = resolve_shape(build_request("a ball", **settings), card.grid)
    return DenoiseParams(shape, card.schedule.sigmas_for(steps), guidance, seed=7)


def stock_latents(folder: Path, prompt: str, recipe: DenoiseParams, negative: str = "") -> Tensor:
    """What LTXPipeline computes from the same seed: packed, normalised latents."""
    pipe = LTXPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=prompt,
        negative_prompt=negative,
        width=recipe.shape.generated_width,
        height=recipe.shape.generated_height,
        num_frames=recipe.shape.generated_frames,
        frame_rate=recipe.shape.fps,
        num_inference_steps=len(recipe.sigmas),
        guidance_scale=recipe.guidance,
        generator=torch.Generator().manual_seed(recipe.seed),
        output_type="latent",
    ).frames


@pytest.mark.filterwarnings("ignore")  # stock's own
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (3.0, "red")])
def test_latents_equal_stock_diffusers(tiny: Path, guidance: float, negative: str) -> None:
    card, prompt = get_card(str(tiny)), "a red ball moving left"
    recipe = recipe_for(card, guidance=guidance, steps=5, size="96x64", frames=17, fps=12)
    engine, tokenizer = load(card), load_tokenizer(tiny / "tokenizer")
    text = engine.encode_prompt(tokenize(tokenizer, prompt, card.max_prompt_tokens))
    away = (
        engine.encode_prompt(tokenize(tokenizer, negative, card.max_prompt_tokens))
        if guidance > 1
        else None
    )
    *_, last = engine.denoise(PromptEmbeds(text, away), recipe)
    stock = stock_latents(tiny, prompt, recipe, negative)
    assert (last.latents.video - stock).abs().max() <= 1e-4
    assert stock.std() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_pocket_in_unmodified_stock_diffusers_gives_the_same_latents_and_frames() -> None:
    card, prompt = REGISTRY["pocket"], "a cat moving left on a white background"
    recipe = recipe_for(card, guidance=1.0, steps=8, size="128x96", frames=9)
    engine = load(card)
    text = engine.encode_prompt(
        tokenize(load_tokenizer(folder_of(card) / "tokenizer"), prompt, card.max_prompt_tokens)
    )
    *_, last = engine.denoise(PromptEmbeds(text), recipe)
    stock = stock_latents(folder_of(card), prompt, recipe)
    assert (last.latents.video - stock).abs().max() <= 1e-4
    pixels = np.concatenate(list(engine.decode(last.latents, recipe)))
    pipe = LTXPipeline.from_pretrained(folder_of(card), torch_dtype=torch.float32)
    video = pipe._denormalize_latents(
        unpack_latents(stock, 2, 3, 4), pipe.vae.latents_mean, pipe.vae.latents_std
    )
    with torch.inference_mode():
        expected = pipe.vae.decode(video, return_dict=False)[0]
    whole = ((expected[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(pixels - whole).max() <= 1  # one grey level, where rounding falls apart


def test_redrawing_the_noise_equals_the_stock_stochastic_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4])
    start, flow = torch.randn(2, 1, 6, 4).unbind()
    generator, expected = torch.Generator().manual_seed(1), start
    for t in scheduler.timesteps:
        expected = scheduler.step(flow, t, expected, generator=generator).prev_sample
    fresh = torch.Generator().manual_seed(1)
    rule = EulerRule(lambda: torch.randn(1, 6, 4, generator=fresh))
    steps = denoise_steps(
        lambda *_: Modalities(flow), Modalities(start), (1.0, 0.7, 0.4), Modalities(rule)
    )
    *_, last = steps
    assert torch.allclose(last.latents.video, expected, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [{}, {"timed": True}, {"causal": True}, {"timed": True, "noisy": True}]
)
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_decoding_in_chunks_equals_decoding_at_once(
    kind: dict[str, bool], frames: int, chunk: int
) -> None:
    decoder = make_vae(**kind).decoder
    latents = torch.randn(1, 16, frames, 2, 3, generator=torch.Generator().manual_seed(5))
    timestep = torch.tensor([0.05]) if kind.get("timed") else None
    with torch.inference_mode():
        torch.manual_seed(3)
        whole = decoder(latents, timestep)
        torch.manual_seed(3)
        parts = list(vae_decoder.decode(decoder, latents.split(chunk, dim=2), timestep))
    joined = torch.cat(parts, dim=2)
    assert joined.shape == whole.shape == (1, 3, 8 * frames - 7, 64, 96)
    assert (joined - whole).abs().max() <= 1e-5


def test_frames_come_before_the_last_latent_is_asked_for() -> None:
    decoder, asked = make_vae().decoder, []

    def chunks() -> Iterator[Tensor]:
        for i in range(12):
            asked.append(i)
            yield torch.zeros(1, 16, 1, 2, 2)

    with torch.inference_mode():
        next(vae_decoder.decode(decoder, chunks()))
    assert len(asked) < 12


def test_half_of_the_vae_that_is_not_used_keeps_being_pages_of_its_file(tiny: Path) -> None:
    engine = load(get_card(str(tiny)))
    before = {name: weight.data_ptr() for name, weight in engine.vae.named_parameters()}
    recipe = recipe_for(engine.card, guidance=1.0, steps=1, size="64x64", frames=9)
    frames, height, width = engine.latent_shape(recipe.shape)
    channels = engine.vae.config.latent_channels
    latents = torch.zeros(1, frames * height * width, channels)
    list(engine.decode(Modalities(latents), recipe))
    moved = {n for n, weight in engine.vae.named_parameters() if weight.data_ptr() != before[n]}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)


@pytest.mark.filterwarnings("ignore")
def test_timed_decoder_gets_the_cards_timestep_and_noise(tiny_timed: Path) -> None:
    card = get_card(str(tiny_timed))
    assert (card.decode_timestep, card.decode_noise_scale) == (0.05, 0.025)
    engine = load(card)
    recipe = recipe_for(card, guidance=1.0, steps=2, size="64x64", frames=9)
    text = engine.encode_prompt(
        tokenize(load_tokenizer(tiny_timed / "tokenizer"), "a red ball", card.max_prompt_tokens)
    )
    *_, last = engine.denoise(PromptEmbeds(text), recipe)
    pixels = np.concatenate(list(engine.decode(last.latents, recipe)))
    pipe = LTXPipeline.from_pretrained(tiny_timed, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a red ball", width=64, height=64, num_frames=9, frame_rate=24, num_inference_steps=2,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(recipe.seed),
        decode_timestep=0.05, decode_noise_scale=0.025, output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(pixels - (stock * 255).round()).max() <= 1


def test_pack_and_unpack_are_inverse() -> None:
    video = torch.randn(2, 5, 3, 4, 6)
    assert torch.equal(unpack_latents(pack_latents(video), 3, 4, 6), video)


def test_weights_missing_stray_or_misshapen_are_named(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "broken"))
    (path,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(path)
    whole = dict(weights)
    del weights["proj_in.weight"]
    save_file(weights, path)
    with pytest.raises(CheckpointCorrupt, match=r"proj_in\.weight"):
        load(get_card(str(folder)))
    save_file(whole | {"proj_in.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointCorrupt, match=r"shape of proj_in\.weight"):
        load(get_card(str(folder)))
    save_file(whole | {"transformer_blocks.9.stray": torch.zeros(3)}, path)
    with pytest.raises(CheckpointCorrupt, match=r"no place for transformer_blocks\.9\.stray"):
        load(get_card(str(folder)))


def poison(folder: Path, component: str, name: str, value: float) -> None:
    (path,) = (folder / component).glob("*.safetensors")
    weights = load_file(path)
    save_file(weights | {name: torch.full_like(weights[name], value)}, path)


@pytest.mark.parametrize(
    ("component", "name"), [("transformer", "proj_out.bias"), ("vae", "decoder.conv_out.conv.bias")]
)
def test_values_that_are_no_numbers_end_in_one_sentence_and_no_frames(
    tiny: Path, tmp_path: Path, component: str, name: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "nan"))
    poison(folder, component, name, float("nan"))
    planned = make_plan(build_request("a ball", model=str(folder), size="64x64"))
    work = prepare_run(planned, Settings())
    work.clip = replace(work.clip, placement=FLOAT32)
    with pytest.raises(NonFiniteValues, match="no clip was written"):
        list(work.frames())


def test_model_that_leaves_float16_is_run_again_in_float32_and_says_so(
    tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "large"))
    poison(folder, "transformer", "proj_out.bias", 70000.0)  # float16 ends at 65504
    settings = {"model": str(folder), "size": "64x64", "guidance": 9.0}
    work = prepare_run(make_plan(build_request("a red ball", **settings)), Settings())
    placement = Placement("cpu", "float16", "a test")
    effective = replace(work.effective, dtype="float16")
    work.clip = replace(work.clip, placement=placement, effective=effective)
    events = list(work.frames())
    assert events
    assert work.effective.dtype == "float32"
    assert [c.field for c in work.effective.changes if c.field == "dtype"] == ["dtype"]


def test_cpu_dtype_is_chosen_by_measurement_and_explained() -> None:
    placement = choose_dtype("cpu")
    assert placement.dtype in ("float32", "bfloat16")
    assert "here" in placement.reason
    assert choose_dtype("cpu") == placement


def test_cpu_dtype_is_measured_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(["bfloat16", "float32", "float32", "float32"])  # a busy machine
    monkeypatch.setattr(
        dtype, "_probe_cpu_bfloat16", lambda: Placement("cpu", next(found), "faster here")
    )

    def choose() -> str:
        dtype._cpu_placement.cache_clear()  # as another process
        return choose_dtype("cpu", cache=tmp_path / "new").dtype

    assert [choose(), choose()] == ["bfloat16"] * 2
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["torch-dtype.json"]
    record = tmp_path / "new" / "torch-dtype.json"
    kept = json.loads(record.read_text())
    assert dtype_record.save_record(record.parent, "float32", "late") == ("bfloat16", "faster here")
    for damage in (b"", b"[]", b'{"dtype": "int8"}', json.dumps(kept | {"machine": []}).encode()):
        record.write_bytes(damage)
        assert dtype_record.load_record(record.parent) is None
    assert choose() == "float32"
    assert json.loads(record.read_text())["dtype"] == "float32"
    dtype._cpu_placement.cache_clear()


def test_unknown_and_cut_words_are_noticed(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny / "tokenizer")
    reading = tokenize(tokenizer, "A Red castle, a BALL!", 16)
    assert reading.unknown_words == ("castle",)
    assert (reading.truncated_text, reading.token_count) == ("", 6)
    long = tokenize(tokenizer, "a red ball moving left on white", 5)
    assert (long.text, long.truncated_text, long.token_count) == (
        "a red ball moving",
        "left on white",
        5,
    )
