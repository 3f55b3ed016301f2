"""`submit`, `jobs` and `watch` as a person reads them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmlet.cli import jobs
from filmlet.cli import main as cli
from filmlet.cli.durations import format_duration
from filmlet.jobs import Queue, Status
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.settings import Settings
from tests.helpers.queues import add_worker

NO_WORKER = "no worker is running; `filmlet worker` starts one"


@pytest.fixture
def own_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """The queue that the commands of this process see."""
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path))
    queue = Queue(Settings(home=tmp_path))
    yield queue
    queue.close()


def test_without_a_worker_nothing_is_promised(
    own_queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "a red circle"]) == 0
    said = capsys.readouterr()
    assert NO_WORKER in said.err
    job = said.out.strip()
    for words in (["jobs"], ["jobs", "show", job]):
        assert cli.main(words) == 0
        said = capsys.readouterr()
        assert "position 1" in said.out
        assert "done in" not in said.out
        assert said.err.count(NO_WORKER) == 1
    add_worker(own_queue, "one")
    assert cli.main(["jobs"]) == 0
    said = capsys.readouterr()
    assert "done in" in said.out
    assert said.err == ""


def test_variations_are_queued_with_seeds_in_a_row_up_to_the_limit(
    own_queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["submit", "a red circle", "--variations", "3", "--seed", "7"]) == 0
    said = capsys.readouterr()
    assert said.err.count(NO_WORKER) == 1
    assert [own_queue.get_job(job).seed for job in said.out.split()] == [7, 8, 9]
    monkeypatch.setenv("FILMLET_MAX_ACTIVE", "5")
    assert cli.main(["submit", "a red circle", "--variations", "4", "--json"]) == 1
    said = capsys.readouterr()
    *lines, refusal = said.out.strip().split("\n", 2)
    assert len({json.loads(line)["seed"] for line in lines}) == 2
    assert json.loads(refusal)["error"]["code"] == "too_many_jobs"
    assert cli.main(["submit", "a red circle", "--variations", "2", "--key", "a"]) == 2
    assert "--key is for one job" in capsys.readouterr().err
    assert len(own_queue.list_jobs()) == 5


def test_watch_says_once_that_no_worker_is_running(
    own_queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "a red circle"]) == 0
    job = capsys.readouterr().out.strip()
    cancel = threading.Timer(0.5, own_queue.cancel, [job])
    cancel.start()
    assert cli.main(["jobs", "watch", job]) == 0
    cancel.join()
    said = capsys.readouterr()
    assert said.err.count(NO_WORKER) == 1
    assert "done in" not in said.out
    assert "cancelled" in said.out
    assert cli.main(["jobs"]) == 0
    assert capsys.readouterr().err == "", "nothing waits for a worker"


def test_a_job_is_deleted_whether_it_waits_or_has_ended(
    own_queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli.main(["submit", "a red circle"]) == 0
    waiting, ended = capsys.readouterr().out.split()
    own_queue.cancel(ended)
    for job in (waiting, ended):
        assert cli.main(["jobs", "delete", job]) == 0
        assert capsys.readouterr().out == f"{job} deleted\n"
    assert own_queue.list_jobs() == []


def test_job_that_does_not_stop_is_not_deleted(
    own_queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker holds it and has not looked yet."""
    assert cli.main(["submit", "a red circle"]) == 0
    job = capsys.readouterr().out.strip()
    add_worker(own_queue, "one")
    assert ClaimedJob.claim(own_queue.database, own_queue.settings, job, "one", 1)
    monkeypatch.setattr(jobs, "DELETE_TIMEOUT_S", 0.2)
    assert cli.main(["jobs", "delete", job]) == 1
    assert "delete it again in a moment" in capsys.readouterr().err
    assert own_queue.get_job(job).status is Status.RUNNING
    with own_queue.database.transaction() as t:
        t.rows("update filmlet_worker set dead = 1")
    assert cli.main(["jobs", "delete", job]) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"), (9.94, "9.9 s"), (42.4, "42 s"), (89.6, "90 s"), (754, "13 min"),
        (24_000, "6 h 40 min"), (7200, "2 h"), (23_867 * 60, "17 days"),
    ],
)  # fmt: skip
def test_durations_are_in_units_of_their_size(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.server
def test_list_of_jobs_takes_no_dbos(own_queue: Queue) -> None:
    code = (
        "import sys\nfrom filmlet.cli.main import main\nassert main(['jobs']) == 0\n"
        "assert 'dbos' not in sys.modules and 'sqlalchemy' in sys.modules"
    )
    assert own_queue.list_jobs() == []  # another process has made the tables
    subprocess.run([sys.executable, "-c", code], check=True)
