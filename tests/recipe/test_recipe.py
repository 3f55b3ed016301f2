"""The recipe that made pocket: its judge can see, its runs resume, its stages all run."""

import argparse
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from recipe import contact_sheets, decoder, distil, fidelity, transfer, vae, workers
from recipe import trainer as runs
from recipe.evaluate import evaluate, score_ground_truth
from recipe.frames import decode_frames, encode_frames, repeat_frames
from recipe.muon import orthogonalize
from recipe.prompts import (
    PAIR_ORDERS,
    Example,
    combinations,
    draw,
    examples,
    is_held_out,
    vocabulary,
)
from recipe.renderer import (
    COLOURS,
    EMOJI,
    EMOJI_FONT,
    FPS,
    GLYPHS,
    MOTIONS,
    SIDE,
    STRAIGHT,
    Actor,
    Scenario,
    actor_trajectory,
    render,
    single_actor,
)
from recipe.renderer import SHAPES as OUTLINED
from recipe.sampling import Sampler
from recipe.scenery import LOOP, SCENES, scenery
from recipe.teacher import (
    CHANGE,
    SHAPES,
    TOKENS,
    LatentDataset,
    TextToVideoModel,
    add_noise,
    weighted_square,
)
from recipe.text import build_tokenizer
from recipe.trainer import TrainingRun

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "src" / "filmlet" / "pocket"
needs_font = pytest.mark.skipif(not EMOJI_FONT.is_file(), reason="needs fonts-noto-color-emoji")


def test_world_is_as_large_as_the_model_card_says() -> None:
    assert (len(EMOJI), len(OUTLINED), len(GLYPHS)) == (62, 6, 13)
    assert (len(COLOURS), len(MOTIONS), len(SCENES)) == (9, 12, 12)


@needs_font
def test_judge_is_right_on_rendered_truth() -> None:
    scores = score_ground_truth(40)
    assert set(scores) == {"colour", "motion", "scene", "subject", "size", "speed", "pair"}
    # A brown car before brown trunks has no outline that could be seen: one of 31 subjects.
    assert min(scores.values()) >= 96, scores


@needs_font
@pytest.mark.parametrize("name", ["wide", "tall", "low", "long", "longer"])
def test_judge_is_right_on_the_truth_of_other_sizes_and_lengths(name: str) -> None:
    shape = SHAPES[name]
    scores = score_ground_truth(5, shape.frames, (shape.height, shape.width))
    assert min(scores.values()) == 100, scores


@needs_font
def test_judge_is_not_right_on_something_else() -> None:
    other = single_actor("purple triangle", "growing", "sea")
    scores = evaluate(lambda _: render(other, 25), 12, pairs=0)
    asked = [scores[row] for row in ("colour", "motion", "scene", "subject")]
    assert max(asked) < 50, scores


@needs_font
def test_scenery_that_came_out_differently_is_no_part_of_the_subject() -> None:
    def spotted(example: Example) -> Tensor:
        clip = render(example.scenario, 25)
        clip[:, :, 8:28, 8:28] += 0.6
        clip[:, :, -28:-8, -28:-8] -= 0.6
        return clip

    scores = evaluate(spotted, 12, pairs=0)
    assert min(scores[row] for row in ("scene", "subject", "motion")) == 100, scores


@needs_font
def test_judge_wants_each_of_two_subjects_on_its_own_side() -> None:
    def swapped(example: Example) -> Tensor:
        first, second = example.scenario.actors
        return render(Scenario((second, first), example.scenario.scene), 25)

    assert evaluate(swapped, 4, pairs=1)["pair"] == 0


@needs_font
def test_window_of_a_clip_is_that_part_of_the_whole() -> None:
    scenario = Scenario((Actor("cat", "circling"), Actor("red circle", "left")), "rain")
    whole = render(scenario, 25, (192, 320))
    part = render(scenario, 8, (192, 320), window=(32, 64, 128, 128), first_frame=5)
    assert torch.allclose(part, whole[:, 5:13, 32:160, 64:192], atol=1e-5)


def test_rain_falls_in_a_loop_of_one_latent_and_other_scenes_stand_still() -> None:
    loops = {scene: scenery(scene, 64, 96).shape[1] for scene in SCENES}
    assert loops == {scene: LOOP if scene == "rain" else 1 for scene in SCENES}


def test_what_moves_straight_on_comes_back_in_a_long_clip() -> None:
    seconds = torch.arange(97) / FPS
    for motion in STRAIGHT:
        x, y, _, _ = actor_trajectory(Actor("cat", motion, speed="quickly"), seconds)
        assert torch.maximum(x.abs(), y.abs()).max() <= (256 + SIDE) / 2
        assert torch.maximum(x.diff().abs(), y.diff().abs()).max() > 200


def test_held_out_combinations_are_never_drawn_for_training() -> None:
    choice = random.Random(0)
    assert not any(is_held_out(draw(choice).scenario) for _ in range(300))
    stream = examples(4, held_out=True)
    assert all(is_held_out(next(stream).scenario) for _ in range(100))
    seen, held = combinations(False), combinations(True)
    assert len(held) > 2000
    assert not {(s.actors[0].subject, s.actors[0].motion, s.scene) for s in held} & {
        (s.actors[0].subject, s.actors[0].motion, s.scene) for s in seen
    }


def test_held_out_prompts_are_worded_as_no_training_prompt_is() -> None:
    assert not set(PAIR_ORDERS[True]) & set(PAIR_ORDERS[False])
    held, seen = (
        {next(stream).prompt for _ in range(2000)} for stream in (examples(1, True), examples(1))
    )
    assert not held & seen


def test_every_word_of_every_prompt_is_known_to_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    stream = examples(0)
    for _ in range(300):
        prompt = next(stream).prompt
        assert tokenizer.unk_token_id not in tokenizer(prompt).input_ids, prompt
    assert len(vocabulary()) > 240


def test_words_that_a_checkpoint_knows_keep_what_they_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    larger = build_tokenizer([*vocabulary(), "zebra"])
    monkeypatch.setattr("recipe.teacher.build_tokenizer", lambda: larger)
    torch.manual_seed(0)
    pair = TextToVideoModel.untrained(64, 256)
    fresh = pair.text.shared.weight.detach().clone()
    pair.start_from(POCKET)
    now = pair.text.shared.weight
    theirs = load_file(POCKET / "text_encoder" / "model.safetensors")["shared.weight"].float()
    known = json.loads((POCKET / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    ids = pair.tokenizer.get_vocab()
    assert torch.equal(now[ids["cat"]], theirs[known["cat"]])
    new = next(i for word, i in ids.items() if word not in known)
    assert torch.equal(now[new], fresh[new])


def test_step_costs_about_the_same_whatever_the_shape() -> None:
    for shape in SHAPES.values():
        assert 0.7 * TOKENS < shape.batch * math.prod(shape.latent) <= TOKENS, shape


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonal_by_the_gram_matrix_is_the_newton_schulz_iteration() -> None:
    matrix = torch.randn(3, 32, 200, generator=torch.Generator().manual_seed(1))
    x = matrix / matrix.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.allclose(orthogonalize(matrix), x, atol=1e-3)


def test_single_frames_through_2d_convolutions_are_what_the_vae_makes_of_them() -> None:
    torch.manual_seed(0)
    coder = vae.build(vae.VaeSize())
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        latents = coder.encode(pixels[:, :, None]).latent_dist.mode()
        decoded = coder.decode(latents).sample
        assert torch.allclose(encode_frames(coder, pixels), latents[:, :, 0], atol=1e-4)
        assert torch.allclose(decode_frames(coder, latents[:, :, 0]), decoded[:, :, 0], atol=1e-4)


def test_vae_of_single_frames_decodes_a_clip_that_stands_still_as_its_frame() -> None:
    torch.manual_seed(0)
    coder = vae.build(vae.VaeSize())
    repeat_frames(coder)
    pixels = torch.rand(1, 3, 32, 64) * 2 - 1
    with torch.no_grad():
        latents = coder.encode(pixels[:, :, None].expand(-1, -1, 17, -1, -1)).latent_dist.mode()
        clip = coder.decode(latents).sample
        frame = decode_frames(coder, encode_frames(coder, pixels))
    assert clip.shape[2] == 17
    assert torch.allclose(clip, frame[:, :, None].expand_as(clip), atol=1e-4)


@needs_font
@pytest.mark.parametrize("motion", ["left", "growing", "circling"])
def test_fidelity_is_measured_in_a_window_around_the_subject(motion: str) -> None:
    scenario = single_actor("red square", motion, "white")
    truth = render(scenario, 25)
    far = truth.clone()
    for frame in range(25):
        top, left = fidelity.locate_window(scenario, frame)
        centre = far[0, frame, top + 54 : top + 74, left + 54 : left + 74]
        assert centre.mean() > 0.5  # red
        assert far[1, frame, top + 64, left + 64] < 0
        outside = torch.ones(256, 256, dtype=torch.bool)
        outside[top : top + 128, left : left + 128] = False
        far[:, frame, outside] = 0
    assert fidelity.window_psnr(scenario, truth, far) > 60
    assert fidelity.psnr(far, truth) < 20


def add_up(chosen: argparse.Namespace) -> None:
    """What each worker does in the test below: fit one weight to batches of its own."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    drawn = []

    def loss(_: int, choice: random.Random) -> Tensor:
        drawn.append(choice.random())
        return (model.weight * drawn[-1]).sum()

    run = TrainingRun(chosen.folder, "sum", torch.device("cpu"), worker=workers.rank())
    run.fit(model, loss, steps=2, matrix_rate=0.1, rate=0.1, average=0.5)
    text = json.dumps({"drawn": drawn, "weight": model.weight.item()})
    (chosen.folder / f"{workers.rank()}.json").write_text(text)


@pytest.mark.filterwarnings("ignore")
def test_workers_draw_different_batches_and_keep_the_same_weights(tmp_path: Path) -> None:
    workers.start(add_up, argparse.Namespace(folder=tmp_path), 2)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert first["drawn"] != second["drawn"]
    assert first["weight"] == second["weight"] != 0
    assert runs.steps_done(tmp_path / "sum.safetensors") == 2


def test_worker_whose_parent_was_killed_while_it_started_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from recipe import workers; workers._follow_parent(-1)"],
        cwd=ROOT, check=False, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1


def test_weighted_loss_is_the_plain_one_but_for_what_changes_in_time() -> None:
    even, still = torch.ones(2, 1, 4, 3, 3), torch.randn(2, 5, 1, 3, 3).expand(-1, -1, 4, -1, -1)
    moving = torch.randn(2, 5, 4, 3, 3)
    moving = moving - moving.mean(2, keepdim=True)
    plain = (still + moving).square().mean()
    assert torch.allclose(weighted_square(still, even), still.square().mean())
    assert torch.allclose(weighted_square(moving, even), CHANGE * moving.square().mean())
    extra = (CHANGE - 1) * moving.square().mean()
    assert torch.allclose(weighted_square(still + moving, even), plain + extra)


def test_run_that_is_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SAVE_EVERY_S", -1.0)

    def fit(name: str, stop_at: int | None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))

        def loss(step: int, _: random.Random) -> Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            inputs = torch.randn(16, 8)
            return (model(inputs)[:, 0] - inputs.sum(1)).square().mean()

        run = TrainingRun(tmp_path, name, torch.device("cpu"))
        run.fit(model, loss, steps=8, matrix_rate=0.02, rate=1e-3, average=0.9)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = fit("straight", None)
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", 5)
    assert torch.equal(fit("stopped", None), straight)


def draw_of(pair: TextToVideoModel, way: distil.DistillConfig) -> distil.TrajectoryBatch:
    """A batch of random latents, the first clip of which has its first frame given."""
    levels = distil.sample_levels(way, 3)
    held = torch.zeros(3, 2, dtype=torch.bool)
    held[0, 0] = True
    channels = pair.transformer.config.in_channels
    prompts = ["a red ball", "the ball moving left", "on white"]
    return distil.TrajectoryBatch(torch.randn(3, channels, 2, 2, 2), *levels, held, prompts)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_over_steps_of_one_part_both_methods_want_what_the_teacher_does(
    tiny: Path, guidance: float
) -> None:
    torch.manual_seed(0)
    teacher = TextToVideoModel.from_pretrained(tiny)
    for method in distil.METHODS.values():
        draw = draw_of(teacher, way := distil.DistillConfig("progressive", 4, guidance, parts=1))
        with torch.no_grad():
            landed = method(teacher, teacher, draw, way)
            plain = draw.euler_step(teacher, draw.end, guidance)
        assert torch.allclose(landed.latents, plain.latents, atol=1e-5)
        assert torch.equal(landed.latents[0, :, 0], draw.latents[0, :, 0])  # given, so kept


@needs_font
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", distil.METHODS)
def test_another_ltx_checkpoint_can_be_the_teacher(tiny: Path, tmp_path: Path, method: str) -> None:
    target = tmp_path / "student"
    distil.distil(
        tmp_path / "work", tiny, target, distil.DistillConfig(method, 2, 3.0), steps=2, clips=2
    )
    assert (target / "vae" / "config.json").read_bytes() == (
        tiny / "vae" / "config.json"
    ).read_bytes()
    before, after = (
        TextToVideoModel.from_pretrained(folder).state_dict() for folder in (tiny, target)
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer"}
    assert Sampler.from_checkpoint(target, steps=2).make("a red ball").shape == (3, 25, 256, 256)


@needs_font
@pytest.mark.filterwarnings("ignore")
def test_transformer_of_other_latents_starts_far_ahead_of_an_untrained_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PICTURES", 40)
    monkeypatch.setattr(transfer, "BATCHES", 3)
    coder = vae.load(ROOT / "recipe" / "milestone" / "vae").eval()
    data = LatentDataset(coder, 12, tmp_path / "latents")
    stills = data.clips_of("still").clips.float()
    axes = (0, 2, 3, 4)
    vars(data)["normal"] = stills.mean(axes, keepdim=True), stills.std(axes, keepdim=True)
    torch.manual_seed(0)
    pair = TextToVideoModel.untrained(128)

    @torch.no_grad()
    def error(start: TextToVideoModel) -> float:
        torch.manual_seed(1)
        clean, _, prompts = data.sample_batch("still", random.Random(1))
        noise, sigma = torch.randn_like(clean), torch.full((len(clean), 1), 0.8)
        flow = start.velocity(add_noise(clean, noise, sigma), sigma, start.encode_prompts(prompts))
        return (flow - (noise - clean)).square().mean().item()

    untrained = error(pair)
    pair.start_from(POCKET)
    transfer.fit_projections(pair, POCKET, data)
    assert error(pair) < 0.6 * untrained


def test_clean_latents_of_a_student_without_errors_are_the_clean_ones(tiny: Path) -> None:
    class Perfect(TextToVideoModel):
        def velocity(self, latents: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
            del text
            return (latents - clean) / sigma.view(-1, 1, 1, 1, 1)

    clean = torch.randn(1, 16, 2, 2, 2)
    plain = TextToVideoModel.from_pretrained(tiny)
    student = Perfect(plain.tokenizer, plain.text, plain.transformer)
    found = decoder.predict_clean(student, clean, 0.5, "a red ball")
    assert torch.allclose(found, clean, atol=1e-6)
    assert not torch.allclose(decoder.predict_clean(plain, clean, 0.5, "a red ball"), clean)


@needs_font
@pytest.mark.filterwarnings("ignore")
def test_decoder_alone_is_trained_at_the_end(tmp_path: Path) -> None:
    model = vae.load(ROOT / "recipe" / "milestone" / "vae")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    data = LatentDataset(model, 1, tmp_path / "latents")
    vars(data)["normal"] = torch.zeros(1, 128, 1, 1, 1), torch.ones(1, 128, 1, 1, 1)
    student = TextToVideoModel.untrained(128, width=64, layers=1)
    run = TrainingRun(tmp_path, "decoder", torch.device("cpu"))
    decoder.train(run, model, student, data, steps=1)
    changed = {
        n.split(".")[0] for n, t in model.state_dict().items() if not torch.equal(t, before[n])
    }
    assert changed == {"decoder"}


@needs_font
@pytest.mark.filterwarnings("ignore")
def test_sheets_and_gallery_show_the_first_held_out_prompts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    truth = {
        e.prompt: e.scenario for e in contact_sheets.list_held_out_examples(contact_sheets.GALLERY)
    }

    def make(_: Sampler, prompt: str) -> Tensor:
        asked.append(prompt)
        return render(truth[prompt], 25)

    monkeypatch.setattr(Sampler, "make", make)
    maker = Sampler.from_checkpoint(tiny, steps=1)
    (sheet,) = contact_sheets.write_sheets(maker, 2, tmp_path / "sheets")
    with Image.open(sheet) as picture:
        assert picture.width == contact_sheets.CELL * len(contact_sheets.FRAMES)
    contact_sheets.write_gallery(maker, tmp_path / "gallery.webp")
    assert asked == [*list(truth)[:2], *truth]
    with Image.open(tmp_path / "gallery.webp") as picture:
        assert picture.n_frames == 25
    assert (tmp_path / "gallery.webp").stat().st_size <= contact_sheets.BYTES


@pytest.mark.server
@needs_font
@pytest.mark.filterwarnings("ignore")
def test_whole_recipe_runs_and_its_checkpoint_makes_a_clip(tmp_path: Path) -> None:
    target = tmp_path / "pocket"
    subprocess.run(
        [sys.executable, "-m", "recipe", "--compute", "0.0001", "--prompts", "1",
         "--folder", str(tmp_path), "--target", str(target)],
        cwd=ROOT, check=True, capture_output=True, timeout=900,
    )  # fmt: skip
    assert "student, 4 steps" in (tmp_path / "results.json").read_text()
    stock = LTXPipeline.from_pretrained(target)  # no dtype given: the parts must agree on one
    assert {part.dtype for part in (stock.text_encoder, stock.transformer, stock.vae)} == {
        torch.float32
    }
    made = subprocess.run(
        [sys.executable, "-m", "filmlet", "generate", "a cat", "-o", "clip.mp4", "--model",
         str(target), "--size", "64x64", "--frames", "9", "--steps", "2"],
        cwd=tmp_path, check=False, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 500
