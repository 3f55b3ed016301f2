"""What is ahead of each unfinished job: its place in the queue, and the time until it is over."""

import json
import threading
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import heapreplace

from filmlet.core.events import Stage
from filmlet.core.memory import Machine
from filmlet.jobs import cost_model
from filmlet.jobs.cost_model import CostModel, Sample, Size
from filmlet.jobs.database import Reader, Row
from filmlet.jobs.job import Estimate, Status

GUESS_KB_S = 20_000  # of a download, before anything of it has come
FETCH_BAND = 2.0
LASTS_S, BURST_S = 0.25, 0.05  # of an outlook, and where jobs are new to it
TAKE = Estimate(0.15, 0.0, 0.4)  # until an idle worker has seen the job


@dataclass(frozen=True)
class Known:
    """What was learned from the samples up to `at`.

    waiting: seconds from a free worker to the clip, by size and whether the model is loaded.
    """

    at: float
    model: CostModel
    waiting: dict[tuple[str, bool], Estimate] = field(default_factory=dict)


Fitted = dict[tuple[str, str], Known]  # by model and device


class Outlook:
    """positions, etas: of every unfinished job by its id, as one transaction sees them."""

    def __init__(self, t: Reader, fitted: Fitted) -> None:
        """fitted: models of earlier outlooks, kept while nothing new was measured."""
        self.known: dict[str, Known] = {}
        self.fitted = fitted
        workers = t.rows("select device, speed, model, machine from filmlet_worker where dead = 0")
        known = workers[0]["machine"] if workers else None
        self.machine = Machine(**json.loads(known)) if known else None
        self.loaded = {str(w["model"]) for w in workers}
        self.device = str(workers[0]["device"]) if workers else "cpu"
        self.speed = float(workers[0]["speed"]) if workers else cost_model.probe()
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
                self.add(t, row)
            else:
                self.etas[row["id"]] = left = self._left(t, row)
                heapreplace(self.free, left)

    def of_another(self, t: Reader, model: str, size: Size) -> Estimate:
        """Seconds until a clip would be done that came last now."""
        return _after(self.free[0], self._waiting(t, model, json.dumps(asdict(size))))

    def of_stages(self, t: Reader, model: str, size: Size, stages: Sequence[Stage]) -> Estimate:
        """Seconds that some stages of a clip take."""
        return self._known(t, model).model.estimate(size, stages)

    def add(self, t: Reader, row: Row) -> None:
        """A job that waits. Those behind it hear of it with the next outlook."""
        key = row["rank"], row["queued"], row["id"]
        place = bisect(self.order, key)
        start = self.free[0] if place == len(self.order) else self.starts[place]
        own = self._waiting(t, row["model"], row["work"])
        heapreplace(self.free, _after(self.free[0], own))
        self.order.insert(place, key)
        self.starts.insert(place, start)
        self.ranks[row["id"]] = row["rank"]
        self.positions[row["id"]] = place + 1
        self.etas[row["id"]] = _after(start, own)

    def has_moved(self, row: Row) -> bool:
        """Whether a job has another rank than it had."""
        return bool(self.ranks.get(row["id"], row["rank"]) != row["rank"])

    def _waiting(self, t: Reader, name: str, work: str) -> Estimate:
        """Seconds that a job needs by itself once a worker is free for it."""
        known, key = self._known(t, name), (work, name in self.loaded)
        if key not in known.waiting:
            whole = known.model.estimate(Size(**json.loads(work)), self._stages(name))
            known.waiting[key] = _after(TAKE, whole)
        return known.waiting[key]

    def _left(self, t: Reader, row: Row) -> Estimate:
        """Seconds of work that a running job still needs."""
        model, size = self._known(t, row["model"]).model, Size(**json.loads(row["work"]))
        stages = self._stages(row["model"])
        if row["stage"] == Stage.FETCH:
            return _after(_fetching(row), model.estimate(size, stages))
        if row["stage"] not in stages:
            return model.estimate(size, stages)
        now = Stage(row["stage"])
        share = row["done"] / max(1, row["total"])
        later = [model.part(stage, size) for stage in stages[stages.index(now) + 1 :]]
        current = model.part(now, size)
        return cost_model.total([replace(current, seconds=current.seconds * (1 - share)), *later])

    def _stages(self, name: str) -> list[Stage]:
        without = {Stage.FETCH, *((Stage.LOAD,) if name in self.loaded else ())}
        return [stage for stage in Stage if stage not in without]

    def _known(self, t: Reader, name: str) -> Known:
        if name not in self.known:
            newest = t.rows(
                "select coalesce(max(at), 0) as at from filmlet_cost"
                " where model = :model and device = :device",
                model=name, device=self.device,
            )[0]["at"]  # fmt: skip
            known = self.fitted.get((name, self.device))
            if known is None or known.at != newest:
                known = self.fitted[name, self.device] = Known(newest, self._fit(t, name))
            self.known[name] = known
        return self.known[name]

    def _fit(self, t: Reader, name: str) -> CostModel:
        rows = t.rows(
            "select stage, units, seconds from filmlet_cost"
            " where model = :model and device = :device order by at desc limit 400",
            model=name, device=self.device,
        )  # fmt: skip
        samples = [Sample(Stage(r["stage"]), r["units"], r["seconds"]) for r in reversed(rows)]
        return CostModel(samples, self.speed)


class Outlooks:
    """The latest outlook, for a moment: hundreds may ask and submit within that."""

    def __init__(self) -> None:
        self._latest: tuple[float, Outlook | None] = (0.0, None)
        self._fitted: Fitted = {}
        self._looking = threading.Lock()

    def fresh(self, t: Reader) -> Outlook:
        """What lies ahead now."""
        return Outlook(t, self._fitted)

    def of(self, t: Reader, rows: Sequence[Row]) -> Outlook:
        """One that knows these unfinished jobs as they stand in their rows."""
        with self._looking:
            at, outlook = self._latest
            now = time.monotonic()
            new = [row for row in rows if outlook is None or row["id"] not in outlook.etas]
            is_known = all(row["status"] == Status.QUEUED for row in new)
            # A new job's own estimate must not count on one that has ended since.
            is_old = now - at > (BURST_S if new else LASTS_S)
            if outlook is None or is_old or not is_known or any(map(outlook.has_moved, rows)):
                outlook = self.fresh(t)
                self._latest = now, outlook
            for row in new:
                if row["id"] not in outlook.etas:
                    outlook.add(t, row)
        return outlook

    def forget(self) -> None:
        """Look anew next time."""
        self._latest = 0.0, None


def _fetching(row: Row) -> Estimate:
    """Seconds until all weights are here, at the pace so far: a fetch is a job's first stage."""
    share = row["done"] / max(1, row["total"])
    left = row["running"] * (1 - share) / share if share else float(row["total"]) / GUESS_KB_S
    return Estimate(left, left / FETCH_BAND, left * FETCH_BAND)


def _after(first: Estimate, then: Estimate) -> Estimate:
    return Estimate(first.seconds + then.seconds, first.low + then.low, first.high + then.high)
