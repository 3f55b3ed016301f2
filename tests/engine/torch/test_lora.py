"""LoRAs: every layout of their files, what they do to the weights, and how they are told."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import filmlet
from filmlet.core.events import Frames
from filmlet.core.lora import Lora, LoraAdapter, parse_lora
from filmlet.core.request import build_request
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.placement import Placement
from filmlet.engine.torch.engine import TorchEngine
from filmlet.engine.torch.lora import FusedLoras
from filmlet.errors import (
    Cancelled,
    InvalidRequest,
)
from filmlet.media import metadata_tags
from filmlet.models import get_card, inspect_lora
from filmlet.models.tokenizer import load_tokenizer, tokenize
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.engine.torch.test_engine import load as load_card
from tests.engine.torch.test_engine import poison, recipe_for
from tests.helpers.clips import ClipRun, prepare_run
from tests.helpers.forked_processes import run_filmlet

PROMPT = "a red ball moving left"
LAYERS = {  # of the tiny transformer: (out, in)
    "proj_in": (48, 16), "proj_out": (16, 48), "time_embed.linear": (288, 48),
    "time_embed.emb.timestep_embedder.linear_1": (48, 256), "caption_projection.linear_2": (48, 48),
    "transformer_blocks.0.attn1.to_q": (48, 48), "transformer_blocks.1.attn2.to_k": (48, 48),
    "transformer_blocks.1.attn1.to_out.0": (48, 48),
    "transformer_blocks.0.ff.net.0.proj": (192, 48), "transformer_blocks.1.ff.net.2": (48, 192),
}  # fmt: skip
Matrices = dict[str, tuple[Tensor, Tensor]]  # layer: down, up
load = cache(load_card)


def matrices(seed: int = 0, layers: dict[str, tuple[int, int]] = LAYERS) -> Matrices:
    """Random ones that change a clip well; ranks 4 and 3 take turns."""
    torch.manual_seed(seed)
    return {
        layer: (torch.randn(rank, into) * 0.3, torch.randn(out, rank) * 0.3)
        for (layer, (out, into)), rank in zip(layers.items(), [4, 3] * 8, strict=False)
    }


def diffusers(pairs: Matrices) -> dict[str, Tensor]:
    return written(pairs, "transformer.{}.lora_{}.weight")


def written(pairs: Matrices, form: str, parts: str = "A B") -> dict[str, Tensor]:
    down, up = parts.split()
    table = {}
    for layer, (a, b) in pairs.items():
        table[form.format(layer, down)], table[form.format(layer, up)] = a.clone(), b.clone()
    return table


def save(path: Path, table: dict[str, Tensor], about: dict[str, str] | None = None) -> str:
    save_file(table, path, about)
    return str(path)


@pytest.fixture
def style(tmp_path: Path) -> str:
    return save(tmp_path / "style.safetensors", diffusers(matrices()))


def adapters(*loras: Lora | str) -> tuple[LoraAdapter, ...]:
    return tuple(inspect_lora(parse_lora(o) if isinstance(o, str) else o) for o in loras)


def latents(engine: TorchEngine, folder: Path, *loras: Lora | str) -> Tensor:
    recipe = replace(recipe_of(engine), loras=adapters(*loras))
    text = engine.encode_prompt(
        tokenize(load_tokenizer(folder / "tokenizer"), PROMPT, engine.card.max_prompt_tokens)
    )
    *_, last = engine.denoise(PromptEmbeds(text), recipe)
    return last.latents.video


def recipe_of(engine: TorchEngine) -> DenoiseParams:
    return recipe_for(engine.card, guidance=1.0, steps=4, size="96x64", frames=17, fps=12)


def stock_latents(folder: Path, *changes: tuple[Matrices, float]) -> Tensor:
    """LTXPipeline over weights that were merged here, in float64."""
    pipe = LTXPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    weights = pipe.transformer.state_dict()
    for pairs, scale in changes:
        for layer, (down, up) in pairs.items():
            more = torch.einsum("or,ri->oi", up.double(), down.double()) * scale
            weights[f"{layer}.weight"].copy_(weights[f"{layer}.weight"].double() + more)
    return pipe(
        prompt=PROMPT, width=96, height=64, num_frames=17, frame_rate=12, num_inference_steps=4,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(7), output_type="latent",
    ).frames  # fmt: skip


# What they do


@pytest.mark.filterwarnings("ignore")  # stock's own
def test_latents_equal_stock_diffusers_with_the_same_weights_merged(
    tiny: Path, style: str, tmp_path: Path
) -> None:
    engine = load(get_card(str(tiny)))
    other = save(tmp_path / "other.safetensors", diffusers(matrices(1)))
    plain = latents(engine, tiny)
    assert (plain - stock_latents(tiny)).abs().max() <= 1e-4
    one = latents(engine, tiny, f"{style}:0.7")
    assert (one - stock_latents(tiny, (matrices(), 0.7))).abs().max() <= 1e-4
    assert (one - plain).abs().max() > 0.05
    two = latents(engine, tiny, f"{style}:0.7", f"{other}:-0.5")
    theirs = stock_latents(tiny, (matrices(), 0.7), (matrices(1), -0.5))
    assert (two - theirs).abs().max() <= 1e-4
    assert (two - one).abs().max() > 0.05


def kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def lightricks(layer: str) -> str:
    return layer.replace("proj_in", "patchify_proj").replace("time_embed", "adaln_single")


def named(name: Callable[[str], str], pairs: Matrices) -> Matrices:
    return {name(layer): pair for layer, pair in pairs.items()}


def layouts() -> Iterator[tuple[str, dict[str, Tensor], dict[str, str] | None]]:
    """The same LoRA, scale 2, in every layout."""
    pairs = matrices()
    twice = {layer: (down, 2 * up) for layer, (down, up) in pairs.items()}
    alphas = {layer: torch.tensor(2.0 * len(down)) for layer, (down, _) in pairs.items()}
    yield "diffusers", diffusers(twice), None
    yield "bare", written(twice, "{}.lora_{}.weight"), None
    yield "peft", written(twice, "base_model.model.{}.lora_{}.default.weight"), None
    yield (
        "peft of a pipeline",
        written(twice, "base_model.model.transformer.{}.lora_{}.weight"),
        None,
    )
    comfy = named(lightricks, twice)
    yield "comfy", written(comfy, "diffusion_model.{}.lora_{}.weight"), None
    table = written(comfy, "model.diffusion_model.{}.lora_{}.weight", "down up")
    yield "comfy down and up", table, None
    table = written(named(lightricks, pairs), "diffusion_model.{}.lora_{}.weight", "down up")
    for layer, alpha in alphas.items():
        table[f"diffusion_model.{lightricks(layer)}.alpha"] = alpha
    yield "comfy with alphas", table, None
    table = written(named(kohya, pairs), "{}.lora_{}.weight", "down up")
    yield "kohya", table | {f"{kohya(layer)}.alpha": a for layer, a in alphas.items()}, None
    config = {
        "transformer.r": 4, "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {n: 6 for n, (down, _) in pairs.items() if len(down) == 3},
    }  # fmt: skip
    yield "diffusers with its configuration", diffusers(pairs), {
        "format": "pt", "lora_adapter_metadata": json.dumps(config),
    }  # fmt: skip
    config = {"transformer.alpha_pattern": {}, "transformer.use_rslora": True}
    config["transformer.alpha_pattern"] = {n: 2 * len(d) ** 0.5 for n, (d, _) in pairs.items()}
    yield "rank-stabilised", diffusers(pairs), {"lora_adapter_metadata": json.dumps(config)}


def test_every_layout_of_a_file_gives_the_same_latents(tiny: Path, tmp_path: Path) -> None:
    engine = load(get_card(str(tiny)))
    made = {}
    for name, table, about in layouts():
        path = save(tmp_path / "lora.safetensors", table, about)
        (adapter,) = adapters(path)
        assert {p.layer: p.shape for p in adapter.layers} == LAYERS, name
        assert (adapter.to_applied().rank, adapter.to_applied().layers) == (4, len(LAYERS))
        made[name] = latents(engine, tiny, path)
    expected = made.pop("diffusers")
    assert (expected - latents(engine, tiny)).abs().max() > 0.05
    assert {name: float((each - expected).abs().max()) < 1e-5 for name, each in made.items()} == (
        dict.fromkeys(made, True)
    )


def test_matrices_of_any_precision_are_read(tiny: Path, style: str, tmp_path: Path) -> None:
    engine, table = load(get_card(str(tiny))), load_file(style)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        rough = {name: tensor.to(dtype) for name, tensor in table.items()}
        same = {name: tensor.float() for name, tensor in rough.items()}
        paths = save(tmp_path / "a.safetensors", rough), save(tmp_path / "b.safetensors", same)
        assert torch.equal(*(latents(engine, tiny, path) for path in paths))


def test_strength_of_0_equals_none_and_the_same_twice_adds_up(tiny: Path, style: str) -> None:
    engine = load(get_card(str(tiny)))
    assert torch.equal(latents(engine, tiny, f"{style}:0"), latents(engine, tiny))
    assert adapters(f"{style}:0")[0].to_applied().layers == 0
    once, halves = latents(engine, tiny, style), latents(engine, tiny, *[f"{style}:0.5"] * 2)
    assert (once - halves).abs().max() < 1e-5


def weights(engine: TorchEngine) -> dict[str, tuple[int, int]]:
    """Where each weight lies, and how often it was written to."""
    return {n: (t.data_ptr(), t._version) for n, t in engine.transformer.named_parameters()}


def test_without_loras_again_weights_and_latents_are_those_of_a_fresh_engine(
    tiny: Path, style: str, tmp_path: Path
) -> None:
    engine, fresh = load_card(get_card(str(tiny))), load_card(get_card(str(tiny)))
    other = save(tmp_path / "other.safetensors", diffusers(matrices(1, {"proj_out": (16, 48)})))
    expected, before = latents(fresh, tiny), weights(engine)
    for wanted in ((style,), (style, other), (other,), (f"{style}:-1",), ()):
        latents(engine, tiny, *wanted)
        changed = {layer for w in wanted for layer in (["proj_out"] if w == other else LAYERS)}
        assert set(engine.loras.original_weights) == changed
    assert weights(engine) == before
    for (name, ours), theirs in zip(
        engine.transformer.state_dict().items(), fresh.transformer.state_dict().values(),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(ours, theirs), name
    assert latents(engine, tiny).numpy().tobytes() == expected.numpy().tobytes()


def test_same_loras_twice_touch_no_weight_wherever_their_file_lies(
    tiny: Path, style: str, tmp_path: Path
) -> None:
    engine = load_card(get_card(str(tiny)))
    plain = weights(engine)
    first = latents(engine, tiny, style)
    worn = weights(engine)
    assert {n for n in plain if plain[n] != worn[n]} == {f"{layer}.weight" for layer in LAYERS}
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(style).read_bytes())
    assert torch.equal(latents(engine, tiny, str(copy)), first)
    assert weights(engine) == worn
    before = copy.stat()
    save(copy, diffusers(matrices(1)))
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # as by a clock that did not tick
    assert not torch.equal(latents(engine, tiny, str(copy)), first)


def test_clips_that_take_turns_do_not_wear_each_others_loras(tiny: Path, style: str) -> None:
    engine = load_card(get_card(str(tiny)))
    recipe = recipe_of(engine)
    text = PromptEmbeds(
        engine.encode_prompt(
            tokenize(load_tokenizer(tiny / "tokenizer"), PROMPT, engine.card.max_prompt_tokens)
        )
    )
    recipes = (recipe, replace(recipe, loras=adapters(style)))
    alone = [[step.latents.video for step in engine.denoise(text, each)] for each in recipes]
    turns = zip(*(engine.denoise(text, each) for each in recipes), strict=True)
    for (plain, styled), steps in zip(zip(*alone, strict=True), turns, strict=True):
        assert torch.equal(plain, steps[0].latents.video)
        assert torch.equal(styled, steps[1].latents.video)


def test_change_that_was_left_half_done_is_done_again(tiny: Path, style: str) -> None:
    engine = load_card(get_card(str(tiny)))
    expected = latents(engine, tiny), latents(engine, tiny, style)
    latents(engine, tiny)
    for layers, clip in ((2, 0), (1, 1)):
        before, asked = weights(engine), iter([False] * layers + [True])
        with (
            pytest.raises(Cancelled),
            engine.cancel_when(lambda asked=asked: next(asked)),
            engine.loras.ensure_fused(adapters(style)),
        ):
            raise AssertionError("every layer was changed")
        assert sum(before[name] != weight for name, weight in weights(engine).items()) == layers
        assert torch.equal(latents(engine, tiny, *[style][:clip]), expected[clip])
        latents(engine, tiny)


def test_weights_in_eight_bits_are_merged_in_the_dtype_of_the_model_and_come_back(
    style: str,
) -> None:
    layers = {"proj_in": (48, 16)}
    torch.manual_seed(0)
    exact = torch.randn(48, 16).to(torch.float8_e4m3fn)
    model = torch.nn.Module()
    model.proj_in = torch.nn.Linear(16, 48)
    model.proj_in.weight = torch.nn.Parameter(exact, requires_grad=False)
    loras, pairs = FusedLoras(model, torch.bfloat16), matrices()
    (adapter,) = adapters(style)
    adapter = replace(adapter, layers=tuple(p for p in adapter.layers if p.layer in layers))
    with loras.ensure_fused([adapter]):
        down, up = pairs["proj_in"]
        assert model.proj_in.weight.dtype == torch.bfloat16
        assert torch.equal(model.proj_in.weight, (exact.float() + up @ down).to(torch.bfloat16))
    with loras.ensure_fused([]):
        assert model.proj_in.weight.data_ptr() == exact.data_ptr()


def test_lora_for_a_larger_model_is_refused_before_a_weight_is_touched(
    tiny: Path, tmp_path: Path
) -> None:
    engine = load_card(get_card(str(tiny)))
    before = weights(engine)
    for layer, shape, says in (
        ("transformer_blocks.0.attn1.to_q", (2048, 2048), "48x48 here and 2048x2048 there"),
        ("transformer_blocks.27.attn1.to_q", (48, 48), "no layer transformer_blocks.27"),
    ):
        pairs = matrices(0, LAYERS | {layer: shape})
        path = save(tmp_path / "large.safetensors", diffusers(pairs))
        with pytest.raises(InvalidRequest, match=says) as error:
            latents(engine, tiny, path)
        assert error.value.code == "invalid_loras"
    assert weights(engine) == before


# The clip as a whole


def work_for(model: Path | str, **settings: object) -> ClipRun:
    small = {"size": "64x64", "frames": 9, "steps": 2, "seed": 2, "model": str(model)}
    request = build_request("a red ball", **(small | settings))
    return prepare_run(make_plan(request), Settings(device="cpu"), "float32")


def test_what_was_used_is_told_by_content_in_the_report_and_in_the_file(
    tiny: Path, style: str, tmp_path: Path
) -> None:
    work = work_for(tiny, loras=[f"{style}:0.5"])
    (used,) = work.effective.as_json()["loras"]  # type: ignore[attr-defined]
    assert used["file"] == f"lora-{used['sha256']}.safetensors"
    assert (used["strength"], used["rank"], used["layers"]) == (0.5, 4, len(LAYERS))
    told = metadata_tags(work.effective)["effective"]
    assert used["sha256"] in told
    assert str(tmp_path) not in told
    assert work_for(tiny).effective.loras == ()


def test_clip_with_loras_is_torchs_and_says_why(tiny: Path, style: str) -> None:
    pytest.importorskip("openvino")
    request = build_request("a red ball", model=str(tiny), size="64x64", frames=9, loras=[style])
    effective = prepare_run(make_plan(request), Settings(engine="openvino")).effective
    assert effective.engine == "torch"
    (change,) = (change for change in effective.changes if change.field == "engine")
    assert "LoRAs are merged" in change.reason


def test_clips_with_and_without_follow_each_other_over_one_engine(
    tiny_two: Path, style: str
) -> None:
    def frames(**settings: object) -> bytes:
        events = work_for(tiny_two, **settings).frames()
        return b"".join(e.pixels.tobytes() for e in events if isinstance(e, Frames))

    plain = frames()
    engine = work_for(tiny_two).engine()
    styled = frames(loras=[style])
    assert styled != plain
    assert frames() == plain
    assert frames(loras=[f"{style}:1.0"]) == styled
    assert frames() == plain
    assert work_for(tiny_two).engine() is engine
    assert engine.loras.original_weights == {}


def test_clip_that_is_run_again_in_float32_still_has_its_lora(
    tmp_path: Path, tiny: Path, style: str
) -> None:
    folder, job = shutil.copytree(tiny, tmp_path / "model"), tmp_path / "job"
    poison(folder, "transformer", "proj_out.bias", 70000.0)  # float16 ends at 65504
    job.mkdir()
    shutil.copy(style, job / "lora.safetensors")
    settings = {"model": str(folder), "size": "64x64", "frames": 9, "steps": 2, "seed": 2}
    request = build_request("a red ball", loras=["lora.safetensors"], **settings)
    work = prepare_run(make_plan(request, job), Settings(device="cpu"))
    placement = Placement("cpu", "float16", "a test")
    effective = replace(work.effective, dtype="float16")
    work.clip = replace(work.clip, placement=placement, effective=effective)
    work.keep_in(job)
    for _ in work.write(job / "clip.mp4"):
        pass
    assert "dtype" in {change.field for change in work.effective.changes}
    kept = load_file(job / "latents.safetensors")["latents"]
    plain = work_for(folder, loras=[style])
    plain.keep_in(tmp_path / "plain")
    for _ in plain.write(tmp_path / "clip.mp4"):
        pass
    assert torch.equal(load_file(plain.folder / "latents.safetensors")["latents"], kept)


def test_streams_that_are_read_in_turns_give_the_clips_that_they_give_alone(
    style: str, tiny: Path
) -> None:
    def stream(loras: list[str]) -> Iterator[bytes]:
        events = filmlet.stream(
            "a red ball", model=str(tiny), size="64x64", frames=9, steps=2, seed=2, loras=loras
        )
        return (e.pixels.tobytes() for e in events if isinstance(e, Frames))

    alone = [list(stream([])), list(stream([style]))]
    turns = list(zip(stream([]), stream([style]), strict=True))
    assert [list(each) for each in zip(*turns, strict=True)] == alone
    assert alone[0] != alone[1]


@pytest.mark.server
def test_command_line_takes_loras_and_reports_them(tiny: Path, style: str, tmp_path: Path) -> None:
    quick = ("--size", "64x64", "--frames", "9", "--steps", "2", "--model", tiny, "--json")
    run = run_filmlet(
        "generate", "a", *quick, "-o", "a.mp4", "--lora", f"{style}:0.5", "--lora", style,
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["requested"]["loras"][0] == {"source": style, "strength": 0.5}
    assert [used["strength"] for used in report["effective"]["loras"]] == [0.5, 1.0]
    (tmp_path / "style.bin").write_bytes(b"")
    for wrong in ("style.bin", "none.safetensors"):
        run = run_filmlet("generate", "a", *quick, "--lora", wrong, cwd=tmp_path)
        assert run.returncode == 2
        error = json.loads(run.stdout)["error"]
        assert (error["code"], error["param"]) == ("invalid_loras", "loras")
    assert not (tmp_path / "clips").exists()
