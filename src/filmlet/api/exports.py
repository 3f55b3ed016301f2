"""Clips in other formats: each converted once, by a process of its own, and stored with its job.

A conversion goes on when whoever asked for it leaves: the next request finds the file.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter
from fastapi.concurrency import run_in_threadpool

from filmlet.core.request import SILENT_FORMATS
from filmlet.errors import ConversionFailed, DiskFull, InvalidRequest, OutOfMemory, TooManyRequests
from filmlet.jobs import CLIP_FORMAT, EXPORT_FILES, Job
from filmlet.jobs.exports import copy_clip, store_export
from filmlet.settings import bare_environment

if TYPE_CHECKING:
    from filmlet.api.dependencies import AppState

log = logging.getLogger("filmlet.api")

PROGRAM = "filmlet.media.converter"
CONVERSIONS_AT_ONCE = 2
MAX_CONVERSIONS = 16  # in hand, waiting ones included
MAX_OWN_CONVERSIONS = 4  # of these, for the jobs of one owner
TIMEOUT_S = 300.0
CPU_S = 600  # of a conversion, on all cores
MEMORY_BYTES = 3 * 2**30
FILE_BYTES = 2**30
ANIMATION_PIXELS = 256_000_000  # of all frames: GIF and WebP need them in memory at once
RETRY_AFTER_S = 5.0
TOO_MUCH = "Converting this clip takes too much time or memory; its MP4 can be downloaded."


@dataclass(eq=False)
class Conversions:
    """Conversions in hand, by job and format. owners: of their jobs."""

    tasks: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)
    owners: Counter[str] = field(default_factory=Counter)
    running: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(CONVERSIONS_AT_ONCE))

    async def join(
        self, job: Job, form: str, convert: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Wait for the conversion of a job to a format, which begins unless it is in hand.

        Raises TooManyRequests, and what `convert` raises.
        """
        key = job.id, form
        task = self.tasks.get(key)
        if task is None:
            self._check_room(job.owner)
            task = self.tasks[key] = asyncio.create_task(self._run(convert))
            self.owners[job.owner] += 1
            task.add_done_callback(lambda done: self._forget(key, job.owner, done))
        await asyncio.shield(task)

    async def close(self) -> None:
        """Stop all conversions."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, convert: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self.running:
            await convert()

    def _check_room(self, owner: str) -> None:
        if len(self.tasks) >= MAX_CONVERSIONS or self.owners[owner] >= MAX_OWN_CONVERSIONS:
            raise TooManyRequests(
                "Too many clips are being converted; try again when one is done.",
                retry_after_s=RETRY_AFTER_S,
            )

    def _forget(self, key: tuple[str, str], owner: str, task: asyncio.Task[None]) -> None:
        del self.tasks[key]
        self.owners[owner] -= 1
        self.owners += Counter()  # without those that have none
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more


async def prepare_export(shared: "AppState", job: Job, form: str) -> str:
    """Return the name of a finished clip's file in another format, converted unless it is there.

    Raises InvalidRequest, TooManyRequests, TooManyJobs, ConversionFailed, StorageUnusable,
    UnknownJob where the job is deleted meanwhile.
    """
    _check_size(job, form)
    if not await _is_stored(shared, job, form):
        await shared.conversions.join(job, form, lambda: _convert(shared, job, form))
    return EXPORT_FILES[form]


def check_format(form: str | None, variant: str, is_growing: bool) -> None:
    """Raise InvalidRequest where another format is asked for than a request can have."""
    if form not in (None, CLIP_FORMAT) and (variant != "video" or is_growing):
        what = "stream=true" if is_growing else f"variant={variant}"
        raise InvalidRequest(f"format={form} cannot be combined with {what}.", param="format")


def _check_size(job: Job, form: str) -> None:
    """Raise InvalidRequest for an animation that would take too much memory."""
    shape = job.shape
    if form in SILENT_FORMATS and shape:
        pixels = shape.width * shape.height * shape.frames
        if pixels > ANIMATION_PIXELS:
            most = ANIMATION_PIXELS // (shape.width * shape.height)
            raise InvalidRequest(
                f"This clip is too long for an animation: {shape.frames} frames, at most {most} "
                "of this size. mp4 and webm hold it.",
                param="format",
            )


async def _is_stored(shared: "AppState", job: Job, form: str) -> bool:
    path = f"{job.id}/{EXPORT_FILES[form]}"
    return await shared.run_at_storage(shared.queue.storage.exists, path)


async def _convert(shared: "AppState", job: Job, form: str) -> None:
    if await _is_stored(shared, job, form):  # since this was asked for
        return
    queue = shared.queue
    await run_in_threadpool(queue.retention.make_room, job.owner)
    with TemporaryDirectory(prefix="filmlet-") as folder:
        clip, file = Path(folder) / "clip.mp4", Path(folder) / EXPORT_FILES[form]
        await shared.run_at_storage(copy_clip, queue.storage, job, clip)
        await run_converter(clip, file)
        await shared.run_at_storage(store_export, queue, job, file)


async def run_converter(clip: Path, file: Path) -> None:
    """Convert a clip in a process that is killed when it takes too much, or nobody waits.

    Raises ConversionFailed, DiskFull, TooManyRequests.
    """
    process = await _start(clip, file)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, trace = await process.communicate()
    except TimeoutError as error:
        raise ConversionFailed(TOO_MUCH) from error
    finally:
        await _kill(process)
    if process.returncode:
        log.warning("a conversion ended with %d: %s %s", process.returncode, said, trace[-2000:])
        raise _failure(process.returncode, said)


async def _start(clip: Path, file: Path) -> Process:
    order = {
        "source": str(clip), "target": str(file),
        "cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES, "file_bytes": FILE_BYTES,
    }  # fmt: skip
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", PROGRAM, json.dumps(order)),
            stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, env=bare_environment(),
            start_new_session=True,  # its decoders end with it
        )  # fmt: skip
    except OSError as error:
        reason = f"This machine can start no further process ({error.strerror}); try again."
        raise TooManyRequests(reason, retry_after_s=RETRY_AFTER_S) from error


async def _kill(process: Process) -> None:
    """End a process and what it has started."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _failure(status: int, said: bytes) -> ConversionFailed | DiskFull:
    """Return the error of a conversion that has ended with this exit status."""
    try:
        error = json.loads(said)
    except ValueError:
        error = {}
    if error.get("code") == DiskFull.code:
        return DiskFull(error["message"])
    if status < 0 or error.get("code") == OutOfMemory.code:  # killed, by a limit of the kernel
        return ConversionFailed(TOO_MUCH)
    if error.get("code") == "invalid_source":
        return ConversionFailed(f"The clip cannot be converted. {error['message']}")
    return ConversionFailed("The clip cannot be converted; its MP4 can be downloaded.")
