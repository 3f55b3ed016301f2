"""A download is a stage of the job: it is seen, it can be stopped, and it goes on."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from filmlet.core.events import Stage
from filmlet.core.request import build_request
from filmlet.jobs import Queue, Status
from filmlet.models import REGISTRY, hub_cache
from filmlet.settings import Settings
from tests.helpers.fake_hub import Hub
from tests.helpers.queues import environment, is_over, wait
from tests.models.test_download import WEIGHTS, online, partial

pytestmark = pytest.mark.server

__all__ = ["online"]
sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
REQUEST = build_request(
    "a red ball", model="ltxv-2b-0.9.8-distilled", size="64x64", frames=9, steps=2, seed=1
)


@pytest.fixture
def worker(settings: Settings, online: Hub) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker that reads where the Hub is from its environment, as every process does."""
    del online
    words = [sys.executable, "-m", "filmlet", "worker", "--quiet"]
    with subprocess.Popen(words, env=environment(settings)) as process:
        yield process
        process.terminate()


@sqlite
@pytest.mark.usefixtures("worker")
def test_download_is_seen_stopped_and_taken_up_again(queue: Queue, online: Hub) -> None:
    online.faults.slow[WEIGHTS] = 0.5
    card = REGISTRY["ltxv-2b-0.9.8-distilled"]
    forecast = queue.forecast(REQUEST)
    assert forecast.fetch == card.size_bytes
    assert forecast.plan.files is None
    job = queue.submit(REQUEST)
    seen = wait(queue, job.id, lambda job: job.stage == Stage.FETCH and WEIGHTS in online.given())
    assert seen.total > 4000, "kilobytes"
    assert seen.eta
    assert seen.eta.low < seen.eta.seconds < seen.eta.high
    asked = time.monotonic()
    queue.cancel(job.id)
    over = wait(queue, job.id, is_over)
    assert over.status == Status.CANCELLED
    assert time.monotonic() - asked < 3
    assert partial() == []
    online.faults.slow.clear()
    online.asked.clear()
    queue.retry(job.id)
    done = wait(queue, job.id, is_over)
    assert done.status == Status.COMPLETED, done.failure
    assert [record.stage for record in done.stages][:2] == [Stage.FETCH, Stage.LOAD]
    assert "tokenizer/spiece.model" not in online.given(), "what was whole is kept"
    again = wait(queue, queue.submit(REQUEST).id, is_over)
    assert Stage.FETCH not in [record.stage for record in again.stages]
    assert queue.forecast(REQUEST).fetch == 0


@sqlite
@pytest.mark.usefixtures("worker")
def test_refusal_of_the_hub_is_the_jobs_failure(queue: Queue, online: Hub) -> None:
    online.faults.status["Lightricks/LTX-Video"] = 403, "GatedRepo"
    job = wait(queue, queue.submit(REQUEST).id, is_over)
    assert job.status == Status.FAILED
    assert job.failure
    assert job.failure.code == "hub_refused"
    assert "accept its licence" in job.failure.message
    assert list(hub_cache.cache().glob("**/*.incomplete")) == []
