"""Long clips: windows that go on from each other, a prompt for each part, nothing made twice."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from fastapi.testclient import TestClient
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import filmlet
from filmlet.core.events import Event, Frames, Progress, Stage, StageFinished
from filmlet.core.guide import Guide
from filmlet.core.request import ClipRequest, build_request
from filmlet.core.shape import ShapeConstraints, resolve_shape
from filmlet.core.windows import Window, split_into_windows
from filmlet.engine.arrays import unpack_latents
from filmlet.engine.base import PromptEmbeds
from filmlet.errors import InvalidRequest
from filmlet.jobs import Queue, Status
from filmlet.jobs.job_reader import workload_size
from filmlet.models import REGISTRY
from filmlet.pipeline.denoise import WINDOW_SEED_STRIDE
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import ClipRun, prepare_run
from tests.helpers.forked_processes import run_filmlet
from tests.helpers.queues import Start, ask, is_over, wait, without_queue
from tests.helpers.servers import refusal
from tests.helpers.tiny_checkpoint import edit_json, make_checkpoint

pytestmark = pytest.mark.usefixtures("forked_decoders")
MARK = {"mark": "written by the test"}
GRID = ShapeConstraints(overlap_frames=32)
TWO = {
    "frames": 73,
    "extra_prompts": ["a white ball"],
}  # the shortest clip of two parts that share 32
Stop = Callable[[Event], bool]


def work_for(model: Path | str, folder: Path | None = None, **settings: object) -> ClipRun:
    small = {"size": "64x64", "steps": 3, "seed": 2, "guidance": 1.0, "model": str(model)}
    request = build_request("a red ball", **(small | settings))
    work = prepare_run(make_plan(request), Settings(device="cpu"), "float32")
    work.keep_in(folder)
    return work


def film(work: ClipRun, path: Path, stop: Stop | None = None) -> list[Event]:
    """The events of a clip, up to the one at which it is left."""
    told, events = [], work.write(path, force=True)
    for event in events:
        told.append(event)
        if stop and stop(event):
            events.close()
            break
    return told


def calls(events: list[Event], stage: Stage = Stage.DENOISE) -> list[int]:
    return [e.done for e in events if isinstance(e, Progress) and e.stage == stage]


def kept(folder: Path, name: str) -> Tensor:
    return load_file(folder / f"{name}.safetensors")["latents"]


# The windows


@pytest.mark.parametrize("frames", [281, 289, 500, 513, 1000, 1441, 1800])
@pytest.mark.parametrize("prompts", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "grid", [GRID, ShapeConstraints(overlap_frames=8), REGISTRY["pocket"].grid]
)
def test_every_latent_is_new_in_one_window_and_the_windows_are_nearly_equal(
    frames: int, prompts: int, grid: ShapeConstraints
) -> None:
    shape, _ = resolve_shape(build_request("a ball", frames=frames, fps=30), grid)
    windows = split_into_windows(shape, grid, prompts)
    spans = [window.latents(8) for window in windows]
    new = [list(s)[w.overlap_frames // 8 :] for s, w in zip(spans, windows, strict=True)]
    assert [i for span in new for i in span] == list(
        range(grid.latent_frames(shape.generated_frames))
    )
    assert all(len(span) <= grid.latent_frames(grid.window_frames) for span in spans)
    assert [w.overlap_frames for w in windows] == [0] + [grid.overlap_frames] * (len(windows) - 1)
    assert [w.prompt_index for w in windows] == sorted(w.prompt_index for w in windows)
    assert {w.prompt_index for w in windows} == set(range(prompts))
    assert windows[-1].end_frame == shape.generated_frames
    assert all(b.start_frame == a.end_frame - grid.overlap_frames for a, b in pairwise(windows))
    if prompts == 1:
        later = [len(span) for span in new[1:]]
        assert max(later) - min(later) <= 1


def test_clip_that_the_model_makes_at_once_has_one_window() -> None:
    for frames in (1, 9, 25, 257):
        shape, _ = resolve_shape(build_request("a ball", frames=frames), GRID)
        assert split_into_windows(shape, GRID) == (Window(0, shape.generated_frames),)


def test_prompts_share_what_is_new_and_need_room_for_what_they_share() -> None:
    shape, _ = resolve_shape(
        build_request("a ball", frames=80, extra_prompts=["two"]), GRID, context=33
    )
    assert split_into_windows(shape, GRID, 2) == (Window(0, 73), Window(41, 113, 32, 1))
    with pytest.raises(InvalidRequest, match="2 prompts need at least 73 frames") as refused:
        split_into_windows(
            resolve_shape(build_request("a ball", frames=65, extra_prompts=["two"]), GRID)[0],
            GRID,
            2,
        )
    assert refused.value.code == "invalid_then"
    split_into_windows(
        resolve_shape(build_request("a ball", frames=73, extra_prompts=["two"]), GRID)[0], GRID, 2
    )


@pytest.mark.parametrize(
    ("settings", "param", "says"),
    [
        ({"seconds": 60.1}, "seconds", "at most 60.00"),
        ({"frames": 1441}, "frames", "1440"),
        ({"frames": 3601, "fps": 60.0}, "frames", "3600"),
        ({"extra_prompts": [""]}, "extra_prompts", "empty"),
        ({"extra_prompts": ["a"] * 32}, "extra_prompts", "at most 31"),
        ({"extra_prompts": ["a\0"]}, "extra_prompts", "no text"),
        ({"extra_prompts": "a ball"}, "extra_prompts", "list"),
    ],
)
def test_what_is_too_long_or_no_prompt_is_refused_in_a_sentence(
    settings: dict[str, object], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        make_plan(build_request("a ball", **settings))
    assert refused.value.param == param


def test_model_that_goes_on_from_nothing_makes_no_long_clips() -> None:
    shape, _ = resolve_shape(
        build_request("a ball", seconds=60), ShapeConstraints(overlap_frames=8)
    )
    assert shape.frames == 1440
    with pytest.raises(InvalidRequest, match=r"at most 10\.71"):
        resolve_shape(build_request("a ball", seconds=60), ShapeConstraints())


def test_each_prompt_has_the_models_usual_length_and_json_brings_them_back() -> None:
    request = build_request("a ball", extra_prompts=["a cat", "a dog"])
    assert make_plan(request).shape.frames == 73
    assert ClipRequest(**json.loads(json.dumps(request.explicit_settings()))) == request
    assert request.explicit_settings()["extra_prompts"] == ("a cat", "a dog")


# What is computed


@pytest.mark.filterwarnings("ignore")  # stock's own
def test_later_window_equals_stock_diffusers_given_the_latents_before_it(
    tiny_guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_for(tiny_guided, tmp_path / "kept", **TWO)
    film(work, tmp_path / "clip.mp4")
    first, second = (unpack_latents(kept(work.folder, f"latents-{i}"), 5, 2, 2) for i in (1, 2))
    assert work.effective.windows == (Window(0, 33), Window(1, 73, 32, 1))
    pipe = LTXConditionPipeline.from_pretrained(tiny_guided, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    # Stock is given frames; what it would see in them are the latents of the first window.
    known = work.engine().statistics.denormalize(first[:, :, 1:])
    monkeypatch.setattr(pipe.vae, "encode", lambda _: SimpleNamespace(latents=known))
    theirs = pipe(
        conditions=[LTXVideoCondition(video=[Image.new("RGB", (64, 64))] * 25, frame_index=0)],
        prompt="a white ball",
        width=64,
        height=64,
        num_frames=65,
        frame_rate=24,
        guidance_scale=1.0,
        timesteps=[1000 * sigma for sigma in work.effective.sigmas],
        generator=torch.Generator().manual_seed((2 + WINDOW_SEED_STRIDE) % 2**32),
        output_type="latent",
    ).frames
    assert (second - theirs[:, :, 4:]).abs().max() <= 1e-4
    assert second.std() > 0.1


def test_windows_are_joined_and_decoded_as_one_clip(tiny: Path, tmp_path: Path) -> None:
    work = work_for(tiny, tmp_path / "kept", frames=265)
    events = film(work, tmp_path / "clip.mp4")
    frames = np.concatenate([e.pixels for e in events if isinstance(e, Frames)])
    parts = [kept(work.folder, f"latents-{i}") for i in (1, 2)]
    whole = kept(work.folder, "latents")
    assert torch.equal(torch.cat(parts, 1), whole)
    engine = work.engine()
    with torch.inference_mode():
        video = engine.statistics.denormalize(unpack_latents(whole, 34, 2, 2))
        pixels = engine.vae.decode(video, return_dict=False)[0][0].permute(1, 2, 3, 0)
    expected = ((pixels + 1) * 127.5).round().clamp(0, 255).numpy()
    assert frames.shape == (265, 64, 64, 3)
    assert np.abs(frames - expected).max() <= 1


def test_clip_in_one_window_is_made_as_ever(tiny: Path, tmp_path: Path) -> None:
    work = work_for(tiny, tmp_path / "kept", frames=25)
    film(work, tmp_path / "clip.mp4")
    engine = work.engine()
    *_, last = engine.denoise(
        PromptEmbeds(engine.encode_prompt(work.clip.prompts.prompts[0])), work.clip.denoise_params
    )
    assert torch.equal(kept(work.folder, "latents"), last.latents.video)
    assert {p.name for p in work.folder.iterdir()} == {
        "embeddings.safetensors", "latents.safetensors", "decoded.mp4",
    }  # fmt: skip
    assert not {"windows", "extra_prompts"} & work.effective.as_json().keys()


def test_each_prompt_makes_its_own_part_and_is_reported(tiny: Path, tmp_path: Path) -> None:
    one = work_for(tiny, tmp_path / "one", frames=25, extra_prompts=["a white ball"])
    two = work_for(tiny, tmp_path / "two", frames=25, extra_prompts=["a castle " + "on " * 200])
    for work in (one, two):
        film(work, tmp_path / "clip.mp4")
    assert torch.equal(*(kept(work.folder, "latents-1") for work in (one, two)))
    assert not torch.equal(*(kept(work.folder, "latents-2") for work in (one, two)))
    told = {change.field: change for change in two.effective.changes}
    assert set(told) == {"windows", "then_1", "then_1_words"}
    assert told["windows"].reason == (
        "each prompt has its own part of the clip; "
        "made in 2 windows of at most 257 frames that share 8"
    )
    assert two.effective.unknown_words == ("castle",)
    assert len(two.effective.extra_prompts[0]) < 400
    assert two.effective.as_json()["windows"][1] == {
        "start_frame": 1, "end_frame": 25, "overlap_frames": 8, "prompt_index": 1,
    }  # fmt: skip


def test_picture_is_given_to_the_window_that_holds_its_frame(
    tiny_guided: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    plain = work_for(tiny_guided, tmp_path / "plain", **TWO)
    shown = [Guide(str(tmp_path / "red.png"), -1)]
    guided = work_for(tiny_guided, tmp_path / "guided", guides=shown, **TWO)
    for work in (plain, guided):
        film(work, tmp_path / "clip.mp4")
    assert torch.equal(*(kept(work.folder, "latents-1") for work in (plain, guided)))
    assert not torch.equal(*(kept(work.folder, "latents-2") for work in (plain, guided)))
    assert guided.effective.guides[0].frame == 72
    sizes = [workload_size(work.plan) for work in (plain, guided)]
    assert [s.tokens for s in sizes] == [9 * 4, 10 * 4]
    assert [s.calls for s in sizes] == [6, 6]
    early = work_for(tiny_guided, guides=[Guide(str(tmp_path / "red.png"), 16)], **TWO)
    assert workload_size(early.plan).tokens == 9 * 4  # of the second window, still the largest


def test_video_is_shown_as_far_as_its_window_goes(tiny_guided: Path, tmp_path: Path) -> None:
    small = {"model": str(tiny_guided), "size": "64x64", "steps": 1}
    path = filmlet.generate("a ball", frames=49, **small).save(tmp_path / "a.mp4")
    work = work_for(tiny_guided, guides=[Guide(str(path), 16)], **TWO)
    assert work.plan.guides[0].frames == 17
    assert {c.field for c in work.effective.changes} == {"windows", "guide_1_frames"}


def test_long_clip_extends_another(tiny_guided: Path, tmp_path: Path) -> None:
    small = {"model": str(tiny_guided), "size": "64x64", "steps": 1, "seed": 1}
    path = filmlet.generate("a ball", frames=33, **small).save(tmp_path / "a.mp4")
    work = work_for(
        tiny_guided, tmp_path / "kept", extend=path, frames=80, extra_prompts=["a white ball"]
    )
    frames = [e.pixels for e in film(work, tmp_path / "b.mp4") if isinstance(e, Frames)]
    assert sum(map(len, frames)) == 113
    assert work.effective.windows == (Window(0, 65), Window(33, 105, 32, 1))


# What is kept


@pytest.fixture
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)


@pytest.mark.usefixtures("_every_step")
@pytest.mark.parametrize(
    ("left", "again"),
    [(2, [2, 3, 4, 5, 6, 7, 8, 9]), (3, [2, 3, 4, 5, 6, 7, 8, 9]), (4, [4, 5, 6, 7, 8, 9]),
     (5, [5, 6, 7, 8, 9]), (8, [8, 9])],
)  # fmt: skip
def test_clip_left_in_any_window_goes_on_to_the_same_bytes(
    tiny: Path, tmp_path: Path, left: int, again: list[int]
) -> None:
    settings = {"frames": 41, "extra_prompts": ["a white ball", "the red ball"]}
    straight = film(work_for(tiny, **settings), tmp_path / "straight.mp4")
    assert calls(straight) == list(range(10))
    film(
        work_for(tiny, tmp_path / "kept", **settings), tmp_path / "clip.mp4",
        lambda e: e == Progress(Stage.DENOISE, left, 9),
    )  # fmt: skip
    there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kept").glob("latents-*")}
    assert len(there) == (left - 1) // 3
    events = film(work_for(tiny, tmp_path / "kept", **settings), tmp_path / "clip.mp4")
    assert calls(events) == again
    assert all((tmp_path / "kept" / n).stat().st_mtime_ns == at for n, at in there.items())
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_window_that_cannot_be_read_is_made_again_and_so_are_those_after_it(
    tiny: Path, tmp_path: Path
) -> None:
    settings = {"frames": 41, "extra_prompts": ["a white ball", "the red ball"]}
    film(work_for(tiny, tmp_path / "kept", **settings), tmp_path / "one.mp4")
    for name in ("latents.safetensors", "latents-2.safetensors"):
        (tmp_path / "kept" / name).write_bytes(b"half")
    (tmp_path / "kept" / "decoded.mp4").unlink()
    events = film(work_for(tiny, tmp_path / "kept", **settings), tmp_path / "two.mp4")
    assert calls(events) == [3, 4, 5, 6, 7, 8, 9]
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    (tmp_path / "kept" / "latents.safetensors").unlink()  # left just before the whole was kept
    (tmp_path / "kept" / "decoded.mp4").unlink()
    events = film(work_for(tiny, tmp_path / "kept", **settings), tmp_path / "three.mp4")
    assert calls(events) == [9]
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "three.mp4").read_bytes()


@pytest.mark.usefixtures("_every_step")
def test_both_stages_are_made_in_windows_and_a_draft_can_be_refined(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "two", timed=True, two_stages=True)
    edit_json(folder / "model_index.json", _class_name="LTXConditionPipeline")
    once, draft, refined = (work_for(folder, draft=i == 1, **TWO) for i in range(3))
    for name, work in (("once", once), ("draft", draft), ("refined", refined)):
        work.keep_in(tmp_path / name)
    events = film(once, tmp_path / "once.mp4")
    assert calls(events, Stage.REFINE) == list(range(7))
    film(draft, tmp_path / "draft.mp4")
    for name in ("embeddings.safetensors", "latents.safetensors"):
        shutil.copy(tmp_path / "draft" / name, tmp_path / "refined" / name)
    film(refined, tmp_path / "clip.mp4", lambda e: e == Progress(Stage.REFINE, 5, 6))
    assert {p.name for p in (tmp_path / "refined").glob("*-*")} == {
        "refined-1.safetensors", "refine-step.safetensors",
    }  # fmt: skip
    events = film(refined, tmp_path / "clip.mp4")
    assert calls(events, Stage.REFINE) == [5, 6]
    reused = {e.stage for e in events if isinstance(e, StageFinished) and e.reused}
    assert reused == {Stage.ENCODE, Stage.DENOISE, Stage.UPSAMPLE}
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "once.mp4").read_bytes()


# From outside


def test_pocket_goes_on_smoothly_from_window_to_window() -> None:
    clip = filmlet.generate(
        "a red circle bouncing on white",
        extra_prompts=["a red circle still on white"],
        size="128x128",
        seed=1,
        steps=4,
    )
    assert clip.frames.shape == (49, 128, 128, 3)
    windows = clip.effective.windows
    assert [w.prompt_index for w in windows] == [0, 1]
    jumps = np.abs(np.diff(clip.frames.astype(float), axis=0)).mean((1, 2, 3))
    seams = [w.start_frame + w.overlap_frames - 1 for w in windows[1:]]
    assert max(jumps[s] for s in seams) < 4 * np.median(jumps) + 1


@pytest.mark.server
def test_command_line_takes_further_prompts_and_shows_the_windows(
    tiny: Path, tmp_path: Path
) -> None:
    run = run_filmlet(
        "generate", "a red ball", "--then", "a white ball", "--then", "the castle", "-o", "a.mp4",
        "--model", tiny, "--size", "64x64", "--frames", 41, "--steps", 1, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["requested"]["extra_prompts"] == ["a white ball", "the castle"]
    assert [w["prompt_index"] for w in report["effective"]["windows"]] == [0, 1, 2]
    assert [w["end_frame"] for w in report["effective"]["windows"]] == [1 + 8, 17 + 8, 41]
    assert {c["field"] for c in report["effective"]["changes"]} == {"windows", "then_2_words"}
    refused = run_filmlet("generate", "a ball", "--seconds", 61, "--json", cwd=tmp_path)
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_seconds"


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_job_whose_worker_was_killed_in_the_second_window_goes_on_from_the_first_elsewhere(
    tiny: Path, tmp_path: Path, settings: Settings, start: Start
) -> None:
    store = tmp_path / "store"
    queue = Queue(replace(settings, storage_url=str(store)))
    request = ask(tiny, frames=41, steps=4, extra_prompts=["a white ball", "the red ball"])
    job = queue.submit(request).id
    dying, told = ("denoise", "6", str(tmp_path / "marker")), {"FILMLET_STORAGE_URL": str(store)}
    assert start(*dying, module="tests.helpers.crashing_worker", **told).wait(60) == -signal.SIGKILL
    assert {p.name for p in (store / job).glob("latents*")} == {"latents-1.safetensors"}
    first = store / job / "latents-1.safetensors"
    save_file(load_file(first), first, MARK)
    shutil.rmtree(settings.home / "jobs" / job)  # as on another machine
    dying = ("denoise", "10", str(tmp_path / "second marker"))
    assert start(*dying, module="tests.helpers.crashing_worker", **told).wait(60) == -signal.SIGKILL
    names = {p.name for p in (store / job).glob("latents*")}
    assert names == {"latents-1.safetensors", "latents-2.safetensors"}
    with safe_open(first, "pt") as file:
        assert file.metadata() == MARK, "the first window was made again"
    start(**told)
    after = wait(queue, job, is_over)
    assert after.status == Status.COMPLETED, after.failure
    assert not list((store / job).glob("latents-*"))  # of a finished clip nobody needs them
    assert after.effective
    assert after.effective["windows"][2]["prompt_index"] == 2
    with queue.storage.open(job, "clip.mp4") as clip:
        assert clip.read() == without_queue(request, after, tmp_path / "straight.mp4")
    queue.close()


def test_further_prompts_come_as_json_or_as_a_form_and_are_planned_and_kept(
    client: TestClient,
) -> None:
    sent = {
        "prompt": "a red circle",
        "extra_prompts": ["a blue circel", "a green circle"],
        "frames": 97,
    }
    planned = client.post("/v1/videos/plan", json=sent).json()
    assert planned["windows"] == 3
    assert planned["unknown_words"] == {"circel": ["circle", "circles"]}
    for body in ({"json": sent}, {"data": sent}):
        video = client.post("/v1/videos", **body).json()
        assert video["requested"]["extra_prompts"] == sent["extra_prompts"]
    again = client.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "a star"}).json()
    assert again["requested"]["extra_prompts"] == sent["extra_prompts"]
    refused = client.post("/v1/videos", json=sent | {"extra_prompts": [" "]})
    assert refusal(refused)["param"] == "extra_prompts"
    refused = client.post("/v1/videos", json=sent | {"seconds": 61, "frames": None})
    assert refusal(refused)["code"] == "invalid_seconds"
    assert client.get("/v1/models/pocket").json()["max_seconds"] == 60
