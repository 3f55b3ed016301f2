"""Clips with sound in the queue: their times, and what is estimated after them."""

from dataclasses import replace
from pathlib import Path

from filmlet.core.events import Stage
from filmlet.core.model_card import ModelFamily
from filmlet.core.request import ClipRequest
from filmlet.jobs import Queue, Status
from filmlet.jobs.cost_model import CostModel, Sample, WorkloadSize
from filmlet.jobs.worker import Worker
from filmlet.models import REGISTRY
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.queues import ask
from tests.helpers.sounds import FlashClip, look_at_audio

SILENT = WorkloadSize(256, 8, 1_600_000, 7e6)


def test_extension_that_keeps_its_sound_leaves_estimates_for_the_next(
    tiny: Path, tmp_path: Path
) -> None:
    given = FlashClip(frames=25).write(tmp_path / "given.mp4")
    settings = Settings(home=tmp_path / "home", worker="one")
    queue = Queue(settings)
    job = queue.submit(ask(tiny, size=None, extend=str(given))).id
    Worker(settings, queue=queue).run_job(job)
    made = queue.get_job(job)
    assert made.status == Status.COMPLETED, made.failure
    assert "decode_audio" in {record.stage.value for record in made.stages}
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(queue.storage.read(job, "clip.mp4"))
    click = look_at_audio(clip).click_s
    assert click is not None
    assert abs(click - 8 / 24) <= 2 / 48_000
    later = queue.get_job(queue.submit(ask(tiny, size=None, extend=str(given))).id)
    assert later.eta is not None
    assert later.eta.seconds > 0
    queue.close()


def test_samples_that_cost_nothing_are_left_out() -> None:
    """Rows of jobs that were queued before their sound was counted."""
    samples = [Sample(Stage.DECODE_AUDIO, 0.0, 0.4), Sample(Stage.DECODE_AUDIO, 0.0, 0.5)]
    model = CostModel(samples, speed=1e11)
    assert model.stage_estimate(Stage.DECODE_AUDIO, replace(SILENT, audio_seconds=2.0)).seconds > 0


def test_sound_costs_time_only_where_there_is_some() -> None:
    model = CostModel([Sample(Stage.DECODE_AUDIO, 2.0, 4.0)], speed=1e11)
    assert model.stage_estimate(Stage.DECODE_AUDIO, SILENT).seconds == 0
    five = model.stage_estimate(Stage.DECODE_AUDIO, replace(SILENT, audio_seconds=5.0)).seconds
    assert 9 < five < 11
    card = replace(REGISTRY["pocket"], family=ModelFamily.LTX2)
    for audio in (True, False):
        plan = make_plan(ClipRequest("a ball", frames=25, audio=audio), card=card)
        size = WorkloadSize.from_plan(plan, 7e6)
        assert size.audio_seconds == (1.0417 if audio else 0.0)
