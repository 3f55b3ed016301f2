"""A clip whose tensors are computed in another process, on a GPU that is lent for the call.

ZeroGPU forks a process for each call of a decorated function and pickles what goes in and comes
out. So plain data and paths go in and numpy comes out; tensors pass as files of the job's folder.
The text is read and the movie written here: that time is not the GPU's.
"""

# First of all: it must be there before anything touches CUDA.
import spaces

# ruff: isort: split
import math
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr

from filmlet.core.effective import Effective
from filmlet.core.events import Event, Finished, Progress, Stage
from filmlet.core.request import ClipRequest
from filmlet.errors import FailedElsewhere, FilmletError
from filmlet.jobs.worker import Film
from filmlet.pipeline import stages
from filmlet.pipeline.plan import Plan, plan
from filmlet.pipeline.prepare import Work, fold, prepare
from filmlet.settings import Settings
from filmlet.spaces.zerogpu_errors import explained

HERE = (Stage.LOAD, Stage.ENCODE)  # stages of which this process tells
LENT = (Stage.DENOISE, Stage.UPSAMPLE, Stage.REFINE, Stage.DECODE)
BEGIN_S = 15.0  # to fork a process and bring the weights to the GPU
LEAST_S, MOST_S = 20, 300
_encoding = threading.Lock()  # one text encoder in memory, and no two clips fight for the cores


@dataclass(frozen=True)
class Order:
    """What the other process is told. seconds: that the GPU is asked for."""

    request: ClipRequest
    folder: Path
    device: str
    dtype: str
    seconds: int


@dataclass(frozen=True)
class Failed:
    """A FilmletError over there; exceptions themselves do not pass."""

    code: str
    message: str


Said = Event | Effective | Failed


def _seconds(order: Order) -> int:
    return order.seconds


@spaces.GPU(duration=_seconds)  # type: ignore[untyped-decorator]
def draw(order: Order) -> Iterator[Said]:
    """The stages from denoising to frames. Runs in the other process."""
    settings = Settings(device=order.device)
    try:
        work = fold(prepare(plan(order.request, order.folder), settings, order.dtype))
        work.folder, told = order.folder, work.effective
        for event in stages.run(work):
            if work.effective != told:
                told = work.effective
                yield told
            yield event
    except FilmletError as error:
        yield Failed(error.code, str(error))


def film_by(cost: Callable[[Plan], float]) -> Film:
    """`stages.film` with the GPU elsewhere. cost: its seconds for a clip, at most."""

    def film(work: Work, path: Path, force: bool) -> Generator[Event]:
        return stages.film(work, path, force, lambda work: made(work, cost(work.plan)))

    return film


def made(work: Work, seconds: float) -> Generator[Event]:
    """Every event of a clip. Closing it gives the GPU back after the step that it is in."""
    assert work.folder
    yield from _encoded(work)
    order = Order(
        request=replace(work.plan.request, seed=work.effective.seed),
        folder=work.folder,
        device=work.placement.device,
        dtype=work.placement.dtype,
        seconds=min(MOST_S, max(LEAST_S, math.ceil(BEGIN_S + seconds))),
    )
    with _refusals(order.seconds), closing(draw(order)) as said:
        for one in said:
            match one:
                case Failed(code, message):
                    raise FailedElsewhere(code, message)
                case Effective():
                    work.effective = one
                case Progress(Stage.LOAD) | Finished(Stage.ENCODE):
                    pass  # told already
                case _:
                    yield one


def _encoded(work: Work) -> Generator[Event]:
    """Read the text on the CPU, in the GPU's dtype; the result lies in the job's folder."""
    own = replace(work, placement=replace(work.placement, device="cpu"))
    with _encoding:
        for event in stages.encode(own):
            if event != Finished(Stage.LOAD, getattr(event, "seconds", 0.0)):
                yield event


def preload(settings: Settings) -> None:
    """Put the model on the GPU that is not there yet: ZeroGPU packs it for each process to come."""
    request = ClipRequest(prompt="a", model=settings.model)
    stages.load_engine(fold(prepare(plan(request), settings)))


@contextmanager
def _refusals(seconds: int) -> Iterator[None]:
    """What ZeroGPU says, in sentences for who waits."""
    try:
        yield
    except gr.Error as error:
        raise explained(error, seconds) from error
    except RuntimeError as error:
        if "ZeroGPU" in str(error) or "visitor" in str(error):
            raise explained(error, seconds) from error
        raise
