"""Position and ETA of each unfinished job."""

import json
import threading
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import heapreplace

from filmlet.core.events import Stage
from filmlet.core.memory import DeviceInfo
from filmlet.jobs import cost_model
from filmlet.jobs.cost_model import CostModel, Sample, WorkloadSize
from filmlet.jobs.database import Reader, Row
from filmlet.jobs.job import Estimate, Status
from filmlet.jobs.old_rows import load_json

GUESS_KB_S = 20_000  # of a download, before anything of it has come
FETCH_BAND = 2.0
CACHE_TTL_S, BURST_S = 0.25, 0.05  # of a QueueEta; of one to which jobs are new
PICKUP_DELAY = Estimate(0.15, 0.0, 0.4)  # until an idle worker has seen the job


@dataclass(frozen=True)
class FittedCostModel:
    """The cost model fitted to the samples up to `at`.

    waiting: seconds from a free worker to the clip, by size and whether the model is loaded.
    """

    at: float
    model: CostModel
    waiting: dict[tuple[str, bool], Estimate] = field(default_factory=dict)


Fitted = dict[tuple[str, str], FittedCostModel]  # by model and device


class QueueEta:
    """positions, etas: of every unfinished job by its id, as one transaction sees them."""

    def __init__(self, t: Reader, fitted: Fitted) -> None:
        """fitted: models of earlier ones, used until something new is measured."""
        self.known: dict[str, FittedCostModel] = {}
        self.fitted = fitted
        workers = t.rows("select device, speed, model, machine from filmlet_worker where dead = 0")
        machine_json = workers[0]["machine"] if workers else None
        self.machine = DeviceInfo(**load_json(machine_json)) if machine_json else None
        self.loaded = {str(w["model"]) for w in workers}
        self.device = str(workers[0]["device"]) if workers else "cpu"
        self.speed = float(workers[0]["speed"]) if workers else cost_model.measure_flops()
        rows = t.rows(
            "select id, status, rank, queued, model, work, stage, done, total,"
            " {now} - started as running from filmlet_job where status in ('queued', 'running')"
            " order by case status when 'running' then 0 else 1 end, rank, queued, id"
        )
        self.ranks: dict[str, int] = {}  # of those that wait, when this was seen
        self.positions: dict[str, int] = {}
        self.etas: dict[str, Estimate] = {}
        self.free = [Estimate(0, 0, 0)] * max(1, len(workers))  # a heap: the next free one is first
        self.order: list[tuple[int, float, str]] = []  # of those that wait
        self.starts: list[Estimate] = []  # when a worker is free for each of them
        for row in rows:
            if row["status"] == Status.QUEUED:
                self.add_waiting_job(t, row)
            else:
                self.etas[row["id"]] = remaining = self._remaining_seconds(t, row)
                heapreplace(self.free, remaining)

    def eta_if_submitted(self, t: Reader, model: str, size: WorkloadSize) -> Estimate:
        """Estimate the seconds until a clip that is submitted now is done."""
        return _add(self.free[0], self._job_duration(t, model, json.dumps(asdict(size))))

    def of_stages(
        self, t: Reader, model: str, size: WorkloadSize, stages: Sequence[Stage]
    ) -> Estimate:
        """Estimate the seconds of some stages of a clip."""
        return self._cost_model(t, model).model.estimate(size, stages)

    def add_waiting_job(self, t: Reader, row: Row) -> None:
        """Add a queued job. Jobs behind it are updated by the next QueueEta."""
        key = row["rank"], row["queued"], row["id"]
        position = bisect(self.order, key)
        start = self.free[0] if position == len(self.order) else self.starts[position]
        duration = self._job_duration(t, row["model"], row["work"])
        heapreplace(self.free, _add(self.free[0], duration))
        self.order.insert(position, key)
        self.starts.insert(position, start)
        self.ranks[row["id"]] = row["rank"]
        self.positions[row["id"]] = position + 1
        self.etas[row["id"]] = _add(start, duration)

    def has_changed(self, row: Row) -> bool:
        """Return whether a job has another rank, or waits again, since it was added."""
        waits_again = row["status"] == Status.QUEUED and row["id"] not in self.positions
        return waits_again or bool(self.ranks.get(row["id"], row["rank"]) != row["rank"])

    def _job_duration(self, t: Reader, name: str, work: str) -> Estimate:
        """Estimate the seconds of a queued job once a worker is free."""
        cost_model, key = self._cost_model(t, name), (work, name in self.loaded)
        if key not in cost_model.waiting:
            estimate = cost_model.model.estimate(
                WorkloadSize(**json.loads(work)), self._remaining_stages(name)
            )
            cost_model.waiting[key] = _add(PICKUP_DELAY, estimate)
        return cost_model.waiting[key]

    def _remaining_seconds(self, t: Reader, row: Row) -> Estimate:
        """Estimate the remaining seconds of a running job."""
        model, size = (
            self._cost_model(t, row["model"]).model,
            WorkloadSize(**json.loads(row["work"])),
        )
        stages = self._remaining_stages(row["model"])
        if row["stage"] == Stage.FETCH:
            return _add(_download_remaining(row), model.estimate(size, stages))
        if row["stage"] not in stages:
            return model.estimate(size, stages)
        now = Stage(row["stage"])
        share = row["done"] / max(1, row["total"])
        later = [model.stage_estimate(stage, size) for stage in stages[stages.index(now) + 1 :]]
        current = model.stage_estimate(now, size)
        return cost_model.sum_estimates(
            [replace(current, seconds=current.seconds * (1 - share)), *later]
        )

    def _remaining_stages(self, name: str) -> list[Stage]:
        without = {Stage.FETCH, *((Stage.LOAD,) if name in self.loaded else ())}
        return [stage for stage in Stage if stage not in without]

    def _cost_model(self, t: Reader, name: str) -> FittedCostModel:
        if name not in self.known:
            newest = t.rows(
                "select coalesce(max(at), 0) as at from filmlet_cost"
                " where model = :model and device = :device",
                model=name, device=self.device,
            )[0]["at"]  # fmt: skip
            fitted_model = self.fitted.get((name, self.device))
            if fitted_model is None or fitted_model.at != newest:
                fitted_model = self.fitted[name, self.device] = FittedCostModel(
                    newest, self._fit_cost_model(t, name)
                )
            self.known[name] = fitted_model
        return self.known[name]

    def _fit_cost_model(self, t: Reader, name: str) -> CostModel:
        rows = t.rows(
            "select stage, units, seconds from filmlet_cost"
            " where model = :model and device = :device order by at desc limit 400",
            model=name, device=self.device,
        )  # fmt: skip
        samples = [Sample(Stage(r["stage"]), r["units"], r["seconds"]) for r in reversed(rows)]
        return CostModel(samples, self.speed)


class QueueEtaCache:
    """Caches the latest QueueEta for CACHE_TTL_S: many clients poll at once."""

    def __init__(self) -> None:
        self._latest: tuple[float, QueueEta | None] = (0.0, None)
        self._fitted: Fitted = {}
        self._lock = threading.Lock()

    def compute(self, t: Reader) -> QueueEta:
        """Return the QueueEta of now."""
        return QueueEta(t, self._fitted)

    def for_jobs(self, t: Reader, rows: Sequence[Row]) -> QueueEta:
        """Return a QueueEta that knows these unfinished jobs as in their rows."""
        with self._lock:
            at, queue_eta = self._latest
            now = time.monotonic()
            new = [row for row in rows if queue_eta is None or row["id"] not in queue_eta.etas]
            old = [row for row in rows if row not in new]
            is_known = all(row["status"] == Status.QUEUED for row in new)
            # A new job's own estimate must not count on one that has ended since.
            is_old = now - at > (BURST_S if new else CACHE_TTL_S)
            if queue_eta is None or is_old or not is_known or any(map(queue_eta.has_changed, old)):
                queue_eta = self.compute(t)
                self._latest = now, queue_eta
            for row in new:
                if row["id"] not in queue_eta.etas:
                    queue_eta.add_waiting_job(t, row)
        return queue_eta

    def invalidate(self) -> None:
        """Drop the cached QueueEta."""
        self._latest = 0.0, None


def _download_remaining(row: Row) -> Estimate:
    """Estimate the remaining seconds of a download, from its pace so far."""
    share = row["done"] / max(1, row["total"])
    remaining_s = (
        row["running"] * (1 - share) / share if share else float(row["total"]) / GUESS_KB_S
    )
    return Estimate(remaining_s, remaining_s / FETCH_BAND, remaining_s * FETCH_BAND)


def _add(first: Estimate, then: Estimate) -> Estimate:
    return Estimate(first.seconds + then.seconds, first.low + then.low, first.high + then.high)
