"""Guides: pictures and videos that a clip begins with, passes through, ends in."""

import json
import re
import shutil
from dataclasses import asdict
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
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

import filmlet
from filmlet.core.events import Pixels, Progress, Stage
from filmlet.core.guide import Guide, parse_keyframe
from filmlet.core.model_card import GuideSupport, ModelCard
from filmlet.core.request import ClipOptions, ClipRequest, build_request
from filmlet.core.shape import VideoShape, resolve_shape
from filmlet.engine.arrays import pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.latents import Modalities
from filmlet.engine.sampler import ResumeState
from filmlet.engine.torch.engine import TorchEngine
from filmlet.errors import InvalidRequest
from filmlet.media import metadata_tags, pad_to, probe, read_image, resize_to_cover, write_video
from filmlet.models import REGISTRY, get_card
from filmlet.models.registry import POCKET
from filmlet.models.tokenizer import load_tokenizer, tokenize
from tests.engine.torch.test_engine import load as load_card
from tests.helpers.clips import changes, distance, film, footage, keep, work_for
from tests.helpers.tiny_checkpoint import edit_json, make_checkpoint

pytestmark = pytest.mark.usefixtures("forked_decoders")
PROMPT = "a red ball moving left"
SIGMAS = (1.0, 0.9, 0.6, 0.25)
Told = list[tuple[Pixels, int, float]]  # frames, where they stand, how strong they are


@pytest.fixture
def _mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock draws from the encoder's distribution; here it takes its middle, as filmlet does."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mode())


load = cache(load_card)


def recipe_of(card: ModelCard, guidance: float = 1.0) -> DenoiseParams:
    shape, _ = resolve_shape(build_request("a ball", size="96x64", frames=25, fps=12), card.grid)
    return DenoiseParams(shape, SIGMAS, guidance, seed=7)


def told(engine: TorchEngine, folder: Path, recipe: DenoiseParams) -> PromptEmbeds:
    tokenizer, most = load_tokenizer(folder / "tokenizer"), engine.card.max_prompt_tokens
    away = engine.encode_prompt(tokenize(tokenizer, "white", most)) if recipe.guidance > 1 else None
    return PromptEmbeds(engine.encode_prompt(tokenize(tokenizer, PROMPT, most)), away)


def ours(
    engine: TorchEngine,
    folder: Path,
    recipe: DenoiseParams,
    guides: Told,
    start: ResumeState | None = None,
) -> Tensor:
    shown = [
        GuideLatents(engine.encode_frames(pixels), frame, strength)
        for pixels, frame, strength in guides
    ]
    *_, last = engine.denoise(told(engine, folder, recipe), recipe, start, shown)
    return unpack_latents(last.latents.video, *engine.latent_shape(recipe.shape))


@cache
def stock_pipeline(folder: Path) -> LTXConditionPipeline:
    pipe = LTXConditionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(folder: Path, recipe: DenoiseParams, guides: Told, **more: object) -> Tensor:
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
def test_guided_latents_equal_stock_diffusers(tiny_guided: Path, guides: Told) -> None:
    card = get_card(str(tiny_guided))
    assert (card.guide_support, card.image_cond_noise_scale, card.context_frames) == (
        GuideSupport.ANY_FRAME,
        0.15,
        25,
    )
    recipe = recipe_of(card, guidance=3.0 if len(guides) == 2 else 1.0)
    mine = ours(load(card), tiny_guided, recipe, guides)
    theirs = stock(tiny_guided, recipe, guides)
    assert (mine - theirs).abs().max() <= 1e-4
    if guides:
        assert (mine - stock(tiny_guided, recipe, [])).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_mode")
def test_guides_of_a_second_stage_equal_stock_diffusers(tiny_guided: Path) -> None:
    card, guides = get_card(str(tiny_guided)), [(footage(), 0, 1.0), (footage(seed=1), 16, 0.8)]
    recipe, engine = recipe_of(card), load(card)
    clean = torch.randn(1, 16, 4, 2, 3, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(recipe.seed))
    sigma = SIGMAS[1]
    second = DenoiseParams(recipe.shape, SIGMAS[1:], 1.0, recipe.seed)
    start = ResumeState(0, Modalities(pack_latents(sigma * noise + (1 - sigma) * clean)))
    mine = ours(engine, tiny_guided, second, guides, start)
    theirs = stock(tiny_guided, recipe, guides, latents=clean, denoise_strength=0.999)
    assert (mine - theirs).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_mode")
def test_first_frame_of_pocket_equals_unmodified_stock_diffusers() -> None:
    card, folder = REGISTRY["pocket"], POCKET
    assert card.guide_support == GuideSupport.FIRST_FRAME
    recipe = DenoiseParams(recipe_of(card).shape, card.schedule.sigmas_for(4), 1.0, seed=7)
    mine = ours(load(card), folder, recipe, [(footage(), 0, 1.0)])
    pipe = LTXImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        image=Image.fromarray(footage()[0]), prompt=PROMPT, width=96, height=64, num_frames=25,
        frame_rate=12, num_inference_steps=4, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7), output_type="latent",
    ).frames  # fmt: skip
    assert (pack_latents(mine) - theirs).abs().max() <= 1e-4
    plain = LTXPipeline.from_pipe(pipe)(
        prompt=PROMPT, width=96, height=64, num_frames=25, frame_rate=12, num_inference_steps=4,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(7), output_type="latent",
    ).frames  # fmt: skip
    assert (theirs - plain).abs().max() > 0.1


def test_clip_of_pocket_begins_with_its_picture(tmp_path: Path) -> None:
    drawn = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(drawn).ellipse((30, 40, 90, 100), fill=(220, 40, 40))
    drawn.save(tmp_path / "circle.png")
    small: ClipOptions = {"size": "128x128", "frames": 9, "steps": 4, "seed": 1}
    guided = filmlet.generate("a red circle", image=tmp_path / "circle.png", **small)
    plain = filmlet.generate("a red circle", **small)
    assert distance(guided.frames[0], np.asarray(drawn)) < 10
    assert distance(plain.frames[0], np.asarray(drawn)) > 20
    assert guided.effective.guides[0].file.startswith("given-")
    assert not guided.effective.changes


@pytest.mark.parametrize("until", [Stage.ENCODE, Stage.DENOISE, Stage.DECODE])
def test_guided_clip_left_in_any_stage_goes_on_to_the_same_bytes(
    tiny_guided: Path, tmp_path: Path, until: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.pipeline.denoise.CHECKPOINT_INTERVAL_S", -1.0)
    image, middle = (keep(tmp_path / f"{i}.png", footage(seed=i)) for i in (1, 2))
    settings = {"image": image, "guides": [Guide(middle, 16, 0.6)]}
    film(work_for(tiny_guided, **settings), tmp_path / "straight.mp4")
    work = work_for(tiny_guided, **settings)
    work.keep_in(tmp_path / "kept")
    film(work, tmp_path / "clip.mp4", until)
    again = work_for(tiny_guided, **settings)
    again.keep_in(work.folder)
    steps = [
        e.done
        for e in film(again, tmp_path / "clip.mp4")
        if isinstance(e, Progress) and e.stage == Stage.DENOISE
    ]
    assert steps == {Stage.ENCODE: [0, 1, 2, 3], Stage.DENOISE: [1, 2, 3], Stage.DECODE: []}[until]
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()


def test_both_stages_see_the_guides_at_their_own_size_and_a_draft_can_be_refined(
    tmp_path: Path,
) -> None:
    folder = make_checkpoint(tmp_path / "two", timed=True, two_stages=True)
    edit_json(folder / "model_index.json", _class_name="LTXConditionPipeline")
    last = keep(tmp_path / "last.png", footage(size=(128, 64)))
    settings = {"size": "128x64", "frames": 17, "last_image": last}
    once, draft, refined = (work_for(folder, draft=i == 1, **settings) for i in range(3))
    for name, work in (("once", once), ("draft", draft), ("refined", refined)):
        work.keep_in(tmp_path / name)
    film(once, tmp_path / "once.mp4")
    kept = {p.stem: load_file(p) for p in (tmp_path / "once").glob("*.safetensors")}
    assert kept["embeddings"]["guide_0"].shape == (1, 16, 1, 1, 2)
    assert kept["upsampled"]["guide_0"].shape == (1, 16, 1, 2, 4)
    film(draft, tmp_path / "draft.mp4")
    for name in ("embeddings.safetensors", "latents.safetensors"):
        shutil.copy(tmp_path / "draft" / name, tmp_path / "refined" / name)
    film(refined, tmp_path / "refined.mp4")
    assert (tmp_path / "refined.mp4").read_bytes() == (tmp_path / "once.mp4").read_bytes()
    film(work_for(folder, size="128x64", frames=17), tmp_path / "plain.mp4")
    assert (tmp_path / "plain.mp4").read_bytes() != (tmp_path / "once.mp4").read_bytes()


def test_what_of_a_guide_is_not_done_as_asked_is_told(tiny_guided: Path, tmp_path: Path) -> None:
    tall = tmp_path / "tall.png"
    Image.new("RGBA", (60, 90), (255, 0, 0, 100)).save(tall)
    video = keep(tmp_path / "video.mp4", footage(20))
    work = work_for(tiny_guided, guides=[Guide(str(tall), 10), Guide(video, -9, 0.5)])
    told = changes(work)
    assert (told["guide_1_frame"].requested, told["guide_1_frame"].effective) == (10, 8)
    assert (told["guide_1_size"].requested, told["guide_1_size"].effective) == ("60x90", "96x64")
    assert "56%" in told["guide_1_size"].reason
    assert told["guide_1_background"].effective == "white"
    assert (told["guide_2_frames"].requested, told["guide_2_frames"].effective) == (40, 9)
    assert set(told) == {
        "guide_1_frame", "guide_1_size", "guide_1_background", "guide_2_frames", "guide_2_fps",
    }  # fmt: skip
    assert (told["guide_2_fps"].requested, told["guide_2_fps"].effective) == (12, 24)
    assert [(g.frame, g.strength) for g in work.effective.guides] == [(8, 1.0), (16, 0.5)]
    assert str(tmp_path) not in json.dumps(metadata_tags(work.effective))
    exact = work_for(tiny_guided, last_image=keep(tmp_path / "last.png", footage()))
    assert changes(exact) == {}
    assert exact.effective.guides[0].frame == 24


def test_of_a_video_only_as_much_is_shown_as_was_asked_for_and_as_the_model_takes(
    tiny_guided: Path, tmp_path: Path
) -> None:
    video = keep(tmp_path / "a.mp4", footage(13))  # 26 frames where 12 a second become 24
    for model, most, shown in (
        (tiny_guided, None, 25), (tiny_guided, 17, 17), (tiny_guided, 12, 9), ("pocket", None, 1),
    ):  # fmt: skip
        work = work_for(model, guides=[Guide(video, frames=most)])
        assert work.plan.guides[0].frames == shown
        told = changes(work)["guide_1_frames"]  # of 26 frames at most 25 can be shown
        assert (told.requested, told.effective) == (26, shown)


@pytest.mark.parametrize(
    ("fps", "source", "numbers"),
    [
        (24, 12, [i // 2 for i in range(25)]),
        (24, 48, [2 * i for i in range(25)]),
        (24, 30, [i * 5 // 4 for i in range(25)]),
        (24, 24, [*range(25)]),
        (24, 24000 / 1001, [*range(25)]),
    ],
)
def test_video_of_another_rate_is_shown_as_fast_as_it_was_and_told(
    tiny_guided: Path, tmp_path: Path, fps: int, source: float, numbers: list[int]
) -> None:
    shades = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.uint8(4)
    shape = VideoShape(96, 64, 60, source, 96, 64, 60)
    with write_video(tmp_path / "a.mp4", shape, {}) as movie:
        movie.add(np.ascontiguousarray(np.broadcast_to(shades, (60, 64, 96, 3))))
    work = work_for(tiny_guided, fps=fps, guides=[Guide(str(tmp_path / "a.mp4"))])
    (guide,) = work.plan.guides
    shown = guide.pixels(work.plan.shape, (96, 64))
    found = np.round(shown.mean((1, 2, 3)) / 4).astype(int)
    assert found.tolist() == numbers
    told = changes(work).get("guide_1_fps")
    if abs(source / fps - 1) < 0.005:
        assert told is None
    else:
        assert told
        assert (told.requested, told.effective) == (round(source, 3), fps)
        assert "as long as it lasts" in told.reason


def test_what_a_model_or_a_clip_cannot_show_is_refused_in_a_sentence(
    tiny_guided: Path, tmp_path: Path
) -> None:
    image, video = keep(tmp_path / "a.png", footage()), keep(tmp_path / "a.mp4", footage(9))
    (tmp_path / "text.png").write_text("no picture")
    for model, settings, code, says in (
        ("pocket", {"last_image": image}, "not_offered", "first frame only"),
        ("pocket", {"image": tmp_path / "none.png"}, "invalid_guides", "no such file"),
        ("pocket", {"image": tmp_path}, "invalid_guides", "cannot be read"),
        ("pocket", {"image": tmp_path / "text.png"}, "invalid_guides", "not a whole PNG"),
        ("pocket", {"extend": image}, "invalid_extend", "only a video"),
        ("pocket", {"extend": tmp_path / "text.png"}, "invalid_extend", "not a whole"),
        ("pocket", {"image": image, "extend": video}, "invalid_guides", "that is extended"),
        (tiny_guided, {"guides": [Guide(image, 25)]}, "invalid_guides", "25 frames"),
        (tiny_guided, {"guides": [Guide(image, -26)]}, "invalid_guides", "25 frames"),
        (tiny_guided, {"image": image, "guides": [Guide(image, 3)]}, "invalid_guides", "Two"),
        (tiny_guided, {"guides": [Guide(image)] * 17}, "invalid_guides", "at most 16"),
    ):
        with pytest.raises(InvalidRequest, match=says) as refused:
            work_for(model, **settings)
        assert refused.value.code == code
    for wrong in (
        {"file": ""},
        {"frame": 1.5},
        {"frames": 0},
        {"strength": 0.0},
        {"strength": 1.1},
    ):
        with pytest.raises(InvalidRequest):
            Guide(**({"file": "a.png"} | wrong))


def test_request_with_guides_comes_back_from_json_and_old_ones_are_still_read() -> None:
    request = build_request("a", image="a.png", guides=[Guide("b.png", 8, 0.5)], extend="c.mp4")
    assert ClipRequest(**json.loads(json.dumps(asdict(request)))) == request
    assert request.files == ("a.png", "b.png", "c.mp4")
    assert request.explicit_settings()["guides"][1] == {
        "file": "b.png", "frame": 8, "strength": 0.5, "frames": None,
    }  # fmt: skip
    old = {"prompt": "a", "model": "pocket", "draft": False}
    assert ClipRequest(**old).guides == ()
    with pytest.raises(InvalidRequest, match="list of file"):
        ClipRequest("a", guides=({"path": "x"},))


def test_keyframe_is_read_off_the_command_line() -> None:
    assert parse_keyframe("a@b.png@48") == Guide("a@b.png", 48)
    assert parse_keyframe("b.png@-1:0.7") == Guide("b.png", -1, 0.7)
    for wrong in ("b.png", "b.png@", "b.png@x", "b.png@3:x", "@3"):
        with pytest.raises(InvalidRequest):
            parse_keyframe(wrong)


def test_pictures_of_every_kind_are_read_upright_and_in_colour(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("RGB", (8, 8), "lime").quantize().save(tmp_path / "palette.png")
    expected = {
        "turned.jpg": ((1, 40, 20, 3), (0, 0, 254)), "clear.png": ((1, 8, 8, 3), (255, 255, 255)),
        "grey.png": ((1, 8, 8, 3), (100, 100, 100)),
        "grey16.png": ((1, 8, 8, 3), (128, 128, 128)), "palette.png": ((1, 8, 8, 3), (0, 255, 0)),
    }  # fmt: skip
    for name, (shape, colour) in expected.items():
        pixels = read_image(tmp_path / name)
        assert pixels.shape == shape, name
        assert tuple(pixels[0, 4, 4]) == colour, name
        assert probe(tmp_path / name).height == shape[1]
    names = {probe(tmp_path / name).name for name in expected}
    assert len(names) == 5
    assert all(re.fullmatch(r"given-[0-9a-f]{16}\.(png|jpeg)", name) for name in names)


def test_frames_cover_a_size_by_their_middle_and_framed_ones_keep_their_pixels() -> None:
    bars = np.zeros((1, 10, 30, 3), np.uint8)
    bars[:, :, 10:20] = 255
    assert (resize_to_cover(bars, 20, 20)[:, :, 1:-1] > 240).all()
    assert resize_to_cover(bars, 30, 10) is bars
    inside = pad_to(bars, 34, 14)
    assert inside.shape == (1, 14, 34, 3)
    assert (inside[:, 2:12, 2:32] == bars).all()
    assert (inside[:, 0] == inside[:, 2]).all()
