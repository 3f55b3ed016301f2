"""Two stages: a draft at half the size, its latents upsampled, refined in a few steps."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines import LTXLatentUpsamplePipeline
from torch import Tensor

from filmlet.core.events import Frames, Progress, Stage, StageFinished
from filmlet.core.request import build_request
from filmlet.engine.arrays import pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds, tone_map_latents
from filmlet.engine.latents import Modalities
from filmlet.engine.torch.engine import TorchEngine
from filmlet.errors import JobConflict, NotSupported
from filmlet.jobs import Queue, Status, SubmitOptions
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import ClipRun, prepare_run
from tests.helpers.queues import Start, ask, is_over, wait, without_queue

SMALL = {"size": "128x64", "frames": 17, "steps": 3, "seed": 5}


def work_for(model: Path, **settings: object) -> ClipRun:
    request = build_request("a red ball", model=str(model), **(SMALL | settings))
    return prepare_run(make_plan(request), Settings(device="cpu"), "float32")


@pytest.fixture
def engine(tiny_two: Path) -> TorchEngine:
    return work_for(tiny_two).engine()


@pytest.fixture
def recipe(tiny_two: Path) -> DenoiseParams:
    return work_for(tiny_two).clip.denoise_params


def draft_latents(engine: TorchEngine, recipe: DenoiseParams) -> Tensor:
    """(1, tokens, channels) of the first stage."""
    frames, height, width = engine.latent_shape(recipe.first_stage().shape)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, frames * height * width, 16, generator=generator)


def test_upsampled_latents_equal_stock_diffusers(
    engine: TorchEngine, recipe: DenoiseParams
) -> None:
    latents = draft_latents(engine, recipe)
    stock = LTXLatentUpsamplePipeline(engine.vae, engine.upsampler)
    expected = stock(
        latents=unpack_latents(latents, *engine.latent_shape(recipe.first_stage().shape)),
        height=64, width=128, adain_factor=1.0, output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    assert torch.allclose(
        engine.upsample(Modalities(latents), recipe).video, pack_latents(expected), atol=1e-4
    )


def test_tone_map_equals_stock_diffusers(engine: TorchEngine) -> None:
    latents = torch.randn(1, 16, 3, 2, 2) * 3
    stock = LTXLatentUpsamplePipeline(engine.vae, engine.upsampler)
    assert torch.allclose(tone_map_latents(latents, 0.6), stock.tone_map_latents(latents, 0.6))
    assert torch.equal(tone_map_latents(latents, 0.0), latents)


def test_refining_follows_diffusers_scheduler_from_the_noised_latents(
    engine: TorchEngine, tiny_two: Path
) -> None:
    work = work_for(tiny_two)
    sigmas = work.effective.refine_sigmas
    assert sigmas == (0.9094, 0.7250, 0.4219)
    recipe = DenoiseParams(work.clip.denoise_params.shape, sigmas, 1.0, seed=5)
    text = PromptEmbeds(torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(3)))
    upsampled = engine.upsample(Modalities(draft_latents(engine, recipe)), recipe)
    *_, last = engine.refine(text, recipe, upsampled)
    clean = upsampled.video

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(sigmas))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    latents = scheduler.scale_noise(clean, scheduler.timesteps[:1], noise)
    frames, height, width = engine.latent_shape(recipe.shape)
    fps = recipe.shape.fps
    with torch.inference_mode():
        for t in scheduler.timesteps:
            flow = engine.transformer(
                latents, text.prompt, t[None], None, frames, height, width,
                (8 / fps, 32, 32), return_dict=False,
            )[0]  # fmt: skip
            latents = scheduler.step(flow, t, latents, return_dict=False)[0]
    assert torch.allclose(last.latents.video, latents, atol=1e-4)


def test_draft_is_the_first_stage_at_half_the_size_and_says_so(
    tiny_two: Path, tiny: Path, tmp_path: Path
) -> None:
    work = work_for(tiny_two, draft=True)
    frames = [e.pixels for e in work.write(tmp_path / "a.mp4") if isinstance(e, Frames)]
    assert frames[0].shape[1:] == (32, 64, 3)
    (change,) = [c for c in work.effective.changes if c.field == "size"]
    assert (change.requested, change.effective) == ("128x64", "64x32")
    with pytest.raises(NotSupported, match="no drafts"):
        work_for(tiny, draft=True)


def test_sides_are_made_in_64_so_that_the_draft_is_exactly_half(tiny_two: Path) -> None:
    shape = work_for(tiny_two, size="100x70").effective.shape
    assert (shape.width, shape.height) == (100, 70)
    assert (shape.generated_width, shape.generated_height) == (128, 128)
    half = shape.half_size()
    assert (half.generated_width, half.generated_height, half.width, half.height) == (
        64,
        64,
        50,
        36,
    )


@pytest.mark.parametrize("left", [Stage.DENOISE, Stage.UPSAMPLE, Stage.REFINE, Stage.DECODE])
def test_two_stage_clip_left_in_any_stage_goes_on_to_the_same_bytes(
    tiny_two: Path, tmp_path: Path, left: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)
    for _ in work_for(tiny_two).write(tmp_path / "straight.mp4"):
        pass
    first = work_for(tiny_two)
    first.keep_in(tmp_path / "kept")
    events = first.write(tmp_path / "clip.mp4")
    for event in events:
        if isinstance(event, Progress) and event.stage == left and event.done > 0:
            break
    events.close()
    second = work_for(tiny_two)
    second.keep_in(first.folder)
    told = list(second.write(tmp_path / "clip.mp4"))
    reused = {e.stage for e in told if isinstance(e, StageFinished) and e.reused}
    order = second.clip.stages
    assert reused == set(order[1 : order.index(left)])
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_refined_draft_starts_from_its_latents_and_equals_the_clip_made_at_once(
    tiny_two: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    request = ask(tiny_two, **SMALL)
    start()
    draft = queue.submit(ask(tiny_two, **SMALL, draft=True)).id
    with pytest.raises(JobConflict):
        queue.refine(
            queue.submit(request, SubmitOptions(idempotency_key="whole")).id, SubmitOptions()
        )
    assert wait(queue, draft, is_over).status == Status.COMPLETED
    refined = wait(queue, queue.refine(draft, SubmitOptions()).id, is_over)
    assert refined.status == Status.COMPLETED, refined.failure
    assert refined.source == draft
    reused = {r.stage for r in refined.stages if r.reused}
    assert reused == {Stage.ENCODE, Stage.DENOISE}
    assert {Stage.UPSAMPLE, Stage.REFINE} <= {r.stage for r in refined.stages}
    with queue.storage.open(refined.id, "clip.mp4") as clip:
        assert clip.read() == without_queue(request, refined, tmp_path / "once.mp4")
