"""The queue as its users see it: order, limits, keys, refusals, retention, storage, estimates."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import sqlalchemy as sa

from filmlet.core.events import Stage
from filmlet.engine.placement import core_count
from filmlet.errors import (
    DatabaseUnusable,
    InvalidRequest,
    InvalidSetting,
    JobConflict,
    StorageUnusable,
    TooManyJobs,
    UnknownJob,
)
from filmlet.jobs import (
    ApiKeyStore,
    Limits,
    Priority,
    Queue,
    Status,
    SubmitOptions,
    cost_model,
    queue_eta,
)
from filmlet.jobs.cost_model import CostModel, Sample, WorkloadSize
from filmlet.jobs.database import Database
from filmlet.jobs.object_storage import open_storage
from filmlet.jobs.storage import JobFolders
from filmlet.settings import Settings
from tests.helpers.forked_processes import run_filmlet
from tests.helpers.queues import ask, environment


def order(queue: Queue) -> list[str]:
    """Prompts in the order in which they will run."""
    waiting = [job for job in queue.list_jobs(limit=100) if job.position]
    return [str(j.requested["prompt"]) for j in sorted(waiting, key=lambda j: j.position or 0)]


def test_higher_classes_go_first_and_among_equals_who_has_fewer_jobs(
    tiny: Path, queue: Queue
) -> None:
    def submit(prompt: str, owner: str, priority: Priority = Priority.NORMAL) -> None:
        queue.submit(ask(tiny, prompt), SubmitOptions(owner, priority))

    for i in range(3):
        submit(f"ann {i}", "ann")
    submit("bob 0", "bob")
    submit("cid low", "cid", Priority.LOW)
    submit("bob high", "bob", Priority.HIGH)
    assert order(queue) == ["bob high", "ann 0", "bob 0", "ann 1", "ann 2", "cid low"]


def test_position_and_the_time_grow_with_what_is_ahead(tiny: Path, queue: Queue) -> None:
    jobs = [queue.submit(ask(tiny, prompt=f"a {i}")) for i in range(3)]
    now = [queue.get_job(job.id) for job in jobs]
    assert [job.position for job in now] == [1, 2, 3]
    etas = [job.eta for job in now if job.eta]
    assert etas[0].seconds < etas[1].seconds < etas[2].seconds
    assert all(e.low < e.seconds < e.high for e in etas)
    queue.cancel(jobs[0].id)
    assert queue.get_job(jobs[2].id).position == 2


def test_job_that_is_given_back_has_its_place_at_once(
    tiny: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_eta, "CACHE_TTL_S", 60.0)
    job = queue.submit(ask(tiny)).id

    def set_status(status: str) -> None:
        with queue.database.transaction() as t:
            t.rows("update filmlet_job set status = :status where id = :id", status=status, id=job)

    set_status("running")
    queue.etas.invalidate()
    assert queue.get_job(job).position is None
    set_status("queued")  # before anything that was estimated is computed anew
    assert queue.get_job(job).position == 1


def test_submission_is_told_what_a_fresh_look_says(tiny: Path, queue: Queue) -> None:
    for i, priority in enumerate((Priority.NORMAL, Priority.LOW, Priority.HIGH, Priority.LOW)):
        told = queue.submit(ask(tiny, f"a {i}"), SubmitOptions(priority=priority))
        fresh = Queue(queue.settings)
        assert fresh.get_job(told.id) == told
        fresh.close()


def test_limits_refuse_clearly_and_say_when_to_try_again(tiny: Path, settings: Settings) -> None:
    queue = Queue(replace(settings, max_queued=4, max_active=3, max_per_minute=3))
    for i in range(2):
        queue.submit(ask(tiny, f"ann {i}"), SubmitOptions("ann"))
    over = queue.submit(ask(tiny, "ann 3"), SubmitOptions("ann"))
    with pytest.raises(TooManyJobs, match="3 unfinished jobs") as refused:
        queue.submit(ask(tiny), SubmitOptions("ann"))
    assert refused.value.retry_after_s > 0
    queue.cancel(over.id, "ann")
    with pytest.raises(TooManyJobs, match="within a minute") as refused:
        queue.submit(ask(tiny), SubmitOptions("ann"))
    assert 0 < refused.value.retry_after_s <= 60
    for i in range(2):
        queue.submit(ask(tiny, f"bob {i}"), SubmitOptions("bob"))
    with pytest.raises(TooManyJobs, match="queue is full"):
        queue.submit(ask(tiny), SubmitOptions("cid"))
    queue.close()


def test_job_is_retried_by_the_limits_of_its_owners_key(tiny: Path, queue: Queue) -> None:
    keys = ApiKeyStore(queue.database, queue.settings)
    key = keys.add("ann", limits=Limits(1, 1000, 0)).key
    job = queue.submit(ask(tiny, "a 0"), SubmitOptions(key.id, limits=key.limits)).id
    queue.cancel(job)
    queue.submit(ask(tiny, "a 1"), SubmitOptions(key.id, limits=key.limits))
    with pytest.raises(TooManyJobs, match="may have 1"):
        queue.retry(job)


def test_asking_twice_under_one_key_makes_one_job(tiny: Path, queue: Queue) -> None:
    one = queue.submit(ask(tiny), SubmitOptions("ann", idempotency_key="k"))
    two = queue.submit(ask(tiny), SubmitOptions("ann", idempotency_key="k"))
    other = queue.submit(ask(tiny), SubmitOptions("bob", idempotency_key="k"))
    assert one.id == two.id != other.id
    assert len(queue.list_jobs()) == 2


def test_request_that_no_model_can_meet_never_enters_the_queue(tiny: Path, queue: Queue) -> None:
    with pytest.raises(InvalidRequest, match="steps"):
        queue.submit(ask(tiny, steps=1000))
    assert queue.list_jobs() == []


def test_jobs_of_another_user_do_not_exist(tiny: Path, queue: Queue) -> None:
    job = queue.submit(ask(tiny), SubmitOptions("ann")).id
    for call in (queue.get_job, queue.cancel, queue.retry, queue.delete):
        with pytest.raises(UnknownJob):
            call(job, "bob")
        with pytest.raises(UnknownJob):
            call("clip_none", None)
    assert queue.list_jobs("bob") == []
    assert queue.get_job(job, "ann").status == Status.QUEUED


def test_jobs_are_listed_newest_first_in_pages(tiny: Path, queue: Queue) -> None:
    ids = [queue.submit(ask(tiny, f"a {i}")).id for i in range(5)]
    first = queue.list_jobs(limit=2)
    second = queue.list_jobs(limit=2, after=first[-1].id)
    assert [j.id for j in [*first, *second]] == [*reversed(ids)][:4]


def test_what_cannot_be_done_to_a_job_is_refused(tiny: Path, queue: Queue) -> None:
    job = queue.submit(ask(tiny)).id
    with pytest.raises(JobConflict, match="queued; only"):
        queue.retry(job)
    with pytest.raises(JobConflict, match="cancel it first"):
        queue.delete(job)
    queue.cancel(job)
    assert queue.cancel(job).status == Status.CANCELLED
    queue.delete(job)
    with pytest.raises(UnknownJob):
        queue.get_job(job)


def finish(queue: Queue, job: str, days_ago: float, size: int) -> None:
    """As if a worker had finished it then."""
    (queue.storage.folder(job) / "clip.mp4").write_bytes(b"x" * size)
    with queue.database.transaction() as t:
        t.rows(
            "update filmlet_job set status = 'completed', clip = 'clip.mp4', bytes = :size,"
            " finished = {now} - :ago where id = :id",
            id=job, size=size, ago=days_ago * 86400,
        )  # fmt: skip


def test_old_jobs_leave_first_and_unfinished_ones_never(tiny: Path, settings: Settings) -> None:
    queue = Queue(replace(settings, keep_days=7, keep_gb=0.00025))
    old, middle, young, waiting = (queue.submit(ask(tiny, f"a {i}")).id for i in range(4))
    finish(queue, old, 8, 1000)
    finish(queue, middle, 2, 150_000)
    finish(queue, young, 1, 150_000)
    assert queue.delete_expired() == 2
    assert {job.id for job in queue.list_jobs()} == {young, waiting}
    assert not (settings.home / "jobs" / middle).exists()
    assert (settings.home / "jobs" / young / "clip.mp4").exists()
    queue.close()


def test_every_connection_counts_fractions_of_a_second_whatever_sqlite_is_there(
    tmp_path: Path,
) -> None:
    Database(Settings(home=tmp_path)).close()
    other = sa.create_engine(f"sqlite:///{tmp_path / 'filmlet.sqlite'}")  # as DBOS' own
    with other.connect() as connection:
        told = connection.execute(sa.text("select unixepoch('subsec')")).scalar()
    other.dispose()
    assert isinstance(told, float)
    assert told == pytest.approx(time.time(), abs=5)


def test_database_that_cannot_be_reached_is_told_in_one_sentence(tmp_path: Path) -> None:
    nowhere = Settings(home=tmp_path, database_url="postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnusable) as refused:
        Queue(nowhere)
    assert "secret" not in str(refused.value)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DatabaseUnusable):
        Queue(Settings(home=tmp_path / "file"))
    with pytest.raises(DatabaseUnusable):
        Queue(Settings(home=Path("/proc/filmlet")))
    (tmp_path / "filmlet.sqlite").write_text("not a database, but long enough to be read as one")
    with pytest.raises(DatabaseUnusable, match="not a database"):
        Queue(Settings(home=tmp_path))


def test_database_that_may_only_be_read_is_told_in_one_sentence(
    postgres: Callable[[], str], tmp_path: Path, tiny: Path
) -> None:
    url = postgres()
    queue = Queue(Settings(home=tmp_path, database_url=url))
    job = queue.submit(ask(tiny)).id
    readable = sa.make_url(url).update_query_dict(
        {"options": "-c default_transaction_read_only=on"}
    )
    again = Settings(home=tmp_path, database_url=readable.render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnusable, match="read-only"):
        Queue(again).submit(ask(tiny))
    assert queue.get_job(job).status == Status.QUEUED
    queue.close()


def test_database_of_a_newer_version_is_left_alone(settings: Settings, queue: Queue) -> None:
    with queue.database.transaction() as t:
        t.rows("insert into filmlet_schema values (99)")
    with pytest.raises(DatabaseUnusable, match="newer filmlet"):
        Queue(settings)


@pytest.mark.server
def test_command_line_tells_bad_input_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    def run(*words: str, **extra: str) -> CompletedProcess[str]:
        variables = environment(Settings(home=tmp_path / "home")) | extra
        return run_filmlet(*words, cwd=tmp_path, **variables)

    made = run("submit", "a ball", "--model", str(tiny), "--json", "--key", "once")
    job = json.loads(made.stdout)
    assert job["status"] == "queued"
    assert json.loads(run("jobs", "show", job["id"], "--json").stdout)["id"] == job["id"]
    assert job["id"] in run("jobs").stdout
    assert json.loads(run("jobs", "cancel", job["id"], "--json").stdout)["status"] == "cancelled"
    for words, extra, code in [
        (("jobs", "show", "clip_none"), {}, "unknown_job"),
        (("submit", " "), {}, "invalid_prompt"),
        (("jobs",), {"FILMLET_LEASE_S": "soon"}, "invalid_setting"),
        (("jobs",), {"FILMLET_DATABASE_URL": "nosuch://x"}, "invalid_setting"),
        (("jobs",), {"FILMLET_STORAGE_URL": "nosuch://x"}, "invalid_setting"),
    ]:
        refused = run(*words, **extra)
        assert refused.returncode == (1 if code == "unknown_job" else 2), refused.stderr
        assert refused.stderr.strip().endswith(f"[{code}]")
        assert refused.stderr.count("\n") == 1, refused.stderr


def test_growing_file_is_read_while_its_copy_is_deleted(tmp_path: Path) -> None:
    copies, stopped = JobFolders(tmp_path), threading.Event()

    def make_and_delete() -> None:
        while not stopped.is_set():
            (copies.folder("job") / "decoded.mp4.01234567.part").write_bytes(b"12345")
            shutil.rmtree(tmp_path / "job", ignore_errors=True)

    churn = threading.Thread(target=make_and_delete)
    churn.start()
    try:
        found = {copies.read_grown("job", 0, 10) for _ in range(80_000)}
    finally:
        stopped.set()
        churn.join()
    assert found <= {b"", b"12345"}


def test_growing_file_is_read_on_another_machine(tmp_path: Path, remote: str) -> None:
    worker, other, web = (
        open_storage(Settings(home=tmp_path / name, storage_url=remote))
        for name in ("a", "b", "web")
    )
    part, whole = "decoded.mp4.01234567.part", bytes(range(256)) * 40

    def read(sent: int) -> bytes:
        got = b""
        while piece := web.read_growing("job", sent + len(got), 1000):
            got += piece
        return got

    assert read(0) == b""
    for end in (100, 5000):  # the first attempt dies here
        (worker.folder("job") / part).write_bytes(whole[:end])
        worker.upload_new_bytes("job")
    assert read(0) == whole[:5000]
    for end in (3000, 7000):  # another worker begins again, in other pieces
        (other.folder("job") / part).write_bytes(whole[:end])
        other.upload_new_bytes("job")
    assert read(5000) == whole[5000:7000]
    (other.folder("job") / "decoded.mp4").write_bytes(whole)
    other.upload_new_bytes("job")
    assert read(4321) == whole[4321:]
    assert not [f for f in worker.fetch("job").iterdir() if f.name.startswith("growing")]
    other.store("job", "decoded.mp4")
    other.clear_local("job")  # the pieces are gone, who was reading goes on with the whole file
    assert read(7777) == whole[7777:]
    assert web.size("job") == len(whole)


def test_files_come_back_from_the_storage_on_another_machine(tmp_path: Path, remote: str) -> None:
    here = open_storage(Settings(home=tmp_path / "here", storage_url=remote))
    there = open_storage(Settings(home=tmp_path / "there", storage_url=remote))
    (here.folder("job") / "latents.safetensors").write_bytes(b"latents")
    (here.folder("job") / "clip.mp4").write_bytes(b"clip")
    here.store("job", "latents.safetensors", "clip.mp4", "missing")
    here.clear_local("job")
    assert not (tmp_path / "here" / "jobs" / "job").exists()
    assert (there.fetch("job") / "latents.safetensors").read_bytes() == b"latents"
    assert there.size("job") == 11
    with here.open("job", "clip.mp4") as file:
        assert file.read() == b"clip"
    assert here.display_path("job", "clip.mp4").endswith("job/clip.mp4")
    there.delete("job")
    assert here.size("job") == 0
    with pytest.raises(StorageUnusable):
        here.open("job", "clip.mp4")


def test_environment_is_read_with_its_types(tmp_path: Path) -> None:
    told = {"FILMLET_HOME": str(tmp_path), "FILMLET_MAX_ACTIVE": "3", "FILMLET_LEASE_S": "2.5"}
    settings = Settings.from_environment(told)
    assert (settings.home, settings.max_active, settings.lease_s) == (tmp_path, 3, 2.5)
    with pytest.raises(InvalidSetting, match="FILMLET_MAX_ACTIVE must be a whole number"):
        Settings.from_environment({"FILMLET_MAX_ACTIVE": "many"})


STAGES = (Stage.ENCODE, Stage.DENOISE, Stage.DECODE)


def machine(size: WorkloadSize, noise: np.random.Generator, spread: float = 0.1) -> list[Sample]:
    """What a machine that is a little unsteady would measure."""
    call = 0.01 + 2e-5 * size.tokens + 4e-8 * size.tokens**2
    true = {Stage.ENCODE: 0.05, Stage.DENOISE: call, Stage.DECODE: 1e-7 * size.pixels}
    return [
        Sample(stage, size.units(stage), seconds * float(noise.lognormal(0, spread)))
        for stage, seconds in true.items()
    ]


def told(count: int, slower: Callable[[int], float] = lambda _: 1.0) -> list[dict[str, float]]:
    """Each clip of mixed shapes, estimated from those before: error, inside, width."""
    noise, samples, found = np.random.default_rng(0), list[Sample](), []
    for i in range(count):
        tokens, megapixels = int(noise.integers(50, 3000)), int(noise.integers(1, 60))
        size = WorkloadSize(tokens, 8, megapixels * 10**6, 7e6)
        made = [replace(s, seconds=s.seconds * slower(i)) for s in machine(size, noise)]
        seconds = sum(s.seconds * (8 if s.stage == Stage.DENOISE else 1) for s in made)
        now = CostModel(samples, speed=1e11).estimate(size, STAGES)
        found.append(
            {
                "error": abs(now.seconds - seconds) / seconds,
                "inside": now.low <= seconds <= now.high,
                "width": (now.high - now.low) / now.seconds,
            }
        )
        samples += made
    return found


def test_after_ten_clips_of_mixed_shapes_the_estimate_is_right_and_its_band_tight() -> None:
    clips = told(160)[10:]
    assert np.median([clip["error"] for clip in clips]) < 0.1
    assert 0.8 <= np.mean([clip["inside"] for clip in clips]) <= 0.97
    assert np.median([clip["width"] for clip in clips]) < 0.4


def test_with_few_measurements_the_band_is_wide() -> None:
    clips = told(6)[1:]
    assert all(clip["inside"] for clip in clips)
    assert min(clip["width"] for clip in clips) > 1


def test_estimates_follow_a_machine_that_becomes_slower() -> None:
    clips = told(80, slower=lambda i: 2.5 if i >= 40 else 1.0)
    assert np.mean([clip["inside"] for clip in clips[45:]]) >= 0.8
    assert np.median([clip["error"] for clip in clips[50:]]) < 0.15
    assert np.median([clip["width"] for clip in clips[70:]]) < 0.6


def test_before_any_clip_there_is_a_guess_with_a_wide_band() -> None:
    guess = CostModel([], speed=1e11).estimate(WorkloadSize(256, 8, 1_600_000, 7e6))
    assert 0 < guess.low < guess.seconds / 1.5
    assert guess.high > guess.seconds * 1.5


class BusyClock:
    """A clock of a busy machine: nine of ten products take a hundred times as long."""

    def __init__(self) -> None:
        self.now, self.reads = 0.0, 0

    def perf_counter(self) -> float:
        self.reads += 1
        self.now += 1e-5 if self.reads % 20 == 1 else 1e-3
        return self.now


def test_busy_machine_is_measured_by_its_quickest_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost_model.measure_flops.cache_clear()
    monkeypatch.setattr(cost_model, "time", BusyClock())
    flops = cost_model.measure_flops()
    cost_model.measure_flops.cache_clear()
    assert flops == pytest.approx(core_count() * 2 * 64**3 / 1e-5)
