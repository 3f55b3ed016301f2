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

from filmlet.core.events import Event, Progress, Stage, StageFinished, drain
from filmlet.core.request import ClipRequest
from filmlet.errors import FilmletError, RemoteError
from filmlet.jobs.worker import FrameGenerator
from filmlet.pipeline import stages
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import Plan, make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings
from filmlet.spaces.zerogpu_errors import to_filmlet_error

LOCAL_STAGES = (Stage.LOAD, Stage.ENCODE)  # stages of which this process tells
GPU_STAGES = (
    Stage.DENOISE, Stage.UPSAMPLE, Stage.REFINE, Stage.DECODE_AUDIO, Stage.DECODE,
)  # fmt: skip
BEGIN_S = 15.0  # to fork a process and bring the weights to the GPU
LEAST_S, MOST_S = 20, 300
# Loaded before the first call: the other process has them by the fork.
ENGINES = EngineCache()
_encoding = threading.Lock()  # one text encoder in memory, and no two clips fight for the cores


@dataclass(frozen=True)
class GpuTask:
    """The order to the GPU process. seconds: requested GPU time."""

    request: ClipRequest
    folder: Path
    device: str
    dtype: str
    seconds: int


@dataclass(frozen=True)
class RemoteFailure:
    """A FilmletError over there; exceptions themselves do not pass."""

    code: str
    message: str


RemoteEvent = Event | RemoteFailure


def _gpu_seconds(order: GpuTask) -> int:
    return order.seconds


@spaces.GPU(duration=_gpu_seconds)  # type: ignore[untyped-decorator]
def generate_on_gpu(order: GpuTask) -> Iterator[RemoteEvent]:
    """Yield the stages from denoising to frames. Runs in the other process."""
    settings = Settings(device=order.device)
    try:
        plan = make_plan(order.request, order.folder)
        clip = drain(prepare(plan, settings, order.dtype, engines=ENGINES))
        yield from stages.generate_frames(clip, RunContext(ENGINES, ArtifactStore(order.folder)))
    except FilmletError as error:
        yield RemoteFailure(error.code, str(error))


def remote_frame_generator(cost: Callable[[Plan], float]) -> FrameGenerator:
    """`stages.generate_frames` with the GPU elsewhere. cost: its seconds for a clip, at most."""

    def generate(clip: PreparedClip, context: RunContext) -> Generator[Event]:
        return generate_remotely(clip, context, cost(clip.plan))

    return generate


def generate_remotely(clip: PreparedClip, context: RunContext, seconds: float) -> Generator[Event]:
    """Yield every event of a clip; closing it gives the GPU back after the current step."""
    folder = context.artifacts.folder
    assert folder
    yield from _encode_locally(clip, context)
    order = GpuTask(
        request=replace(clip.plan.request, seed=clip.effective.seed),
        folder=folder,
        device=clip.placement.device,
        dtype=clip.placement.dtype,
        seconds=min(MOST_S, max(LEAST_S, math.ceil(BEGIN_S + seconds))),
    )
    with _translate_zerogpu_errors(order.seconds), closing(generate_on_gpu(order)) as said:
        for event in said:
            match event:
                case RemoteFailure(code, message):
                    raise RemoteError(code, message)
                case Progress(Stage.LOAD) | StageFinished(Stage.ENCODE):
                    pass  # told already
                case _:
                    yield event


def _encode_locally(clip: PreparedClip, context: RunContext) -> Generator[Event]:
    """Read the text on the CPU, in the GPU's dtype; the result lies in the job's folder."""
    cpu_clip = replace(clip, placement=replace(clip.placement, device="cpu"))
    with _encoding:
        for event in stages.encode_only(cpu_clip, context):
            if event != StageFinished(Stage.LOAD, getattr(event, "seconds", 0.0)):
                yield event


def preload_model(settings: Settings) -> None:
    """Put the model on the GPU that is not there yet: ZeroGPU packs it for each process to come."""
    request = ClipRequest(prompt="a", model=settings.model)
    clip = drain(prepare(make_plan(request), settings, engines=ENGINES))
    stages.load_engine(clip, ENGINES)


@contextmanager
def _translate_zerogpu_errors(seconds: int) -> Iterator[None]:
    """Raise ZeroGPU's errors as sentences for who waits."""
    try:
        yield
    except gr.Error as error:
        raise to_filmlet_error(error, seconds) from error
    except RuntimeError as error:
        if "ZeroGPU" in str(error) or "visitor" in str(error):
            raise to_filmlet_error(error, seconds) from error
        raise
