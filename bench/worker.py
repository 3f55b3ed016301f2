"""One side of the comparison, in its own process: `python -m bench.worker SIDE FRAMES`.

Reads paths from stdin; for each makes the same clip and answers with one line of JSON.
"""

import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPT = "a red circle moving left on a white background"
SEED, STEPS, SIDE, FPS = 1, 4, 256, 24
ENOUGH = 8  # looks at a growing file: the first frame is in one of them
X264 = {"crf": "18", "preset": "veryfast", "bf": "0", "rc-lookahead": "4"}
Seconds = dict[str, float]
Seen = list[tuple[float, bytes]]


def filmlet_side(frames: int, engine: str = "auto") -> Callable[[Path], Seconds]:
    """filmlet as its command line runs it, on the engine that it chooses or on another one."""
    from filmlet.core.events import Frames, drain
    from filmlet.core.request import build_request
    from filmlet.pipeline import stages
    from filmlet.pipeline.engine_cache import EngineCache
    from filmlet.pipeline.plan import make_plan
    from filmlet.pipeline.prepare import prepare
    from filmlet.pipeline.run_context import RunContext
    from filmlet.settings import Settings

    settings = replace(Settings.from_environment(), engine=engine)
    engines = EngineCache()

    def make(path: Path) -> Seconds:
        start = time.perf_counter()
        request = build_request(
            PROMPT, seed=SEED, steps=STEPS, frames=frames, size=f"{SIDE}x{SIDE}"
        )
        first = None
        with watch_growth(path, start) as seen:
            prepared = drain(prepare(make_plan(request), settings, engines=engines))
            for event in stages.generate_clip(prepared, RunContext(engines), path):
                if first is None and isinstance(event, Frames):
                    first = time.perf_counter() - start
            clip = time.perf_counter() - start
        playable = next((seconds for seconds, data in seen if is_playable(data)), clip)
        return {"clip": clip, "first frame": first or 0.0, "playable": playable}

    return make


@contextmanager
def watch_growth(path: Path, start: float) -> Iterator[Seen]:
    """What a file held while it grew, and when, in seconds since `start`.

    It is looked at every millisecond.
    """
    seen: Seen = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            with suppress(FileNotFoundError, StopIteration):
                grown = next(path.parent.glob(f"{path.name}.*.part"))
                if grown.stat().st_size > len(seen[-1][1] if seen else b""):
                    seen.append((time.perf_counter() - start, grown.read_bytes()))
            if len(seen) > ENOUGH:
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def is_playable(data: bytes) -> bool:
    """Whether a file as it was then shows a frame."""
    import av

    try:
        with av.open(io.BytesIO(data)) as file:
            return any(True for _ in file.decode(video=0))
    except av.FFmpegError:
        return False


def stock_side(frames: int, dtype: str) -> Callable[[Path], Seconds]:
    """Stock diffusers on the same checkpoint, its frames encoded with the same settings."""
    import torch
    from diffusers import LTXPipeline

    from filmlet.models.registry import POCKET

    pipe = LTXPipeline.from_pretrained(POCKET, torch_dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)

    return diffusers_side(pipe, frames)


def diffusers_side(pipe: Any, frames: int) -> Callable[[Path], Seconds]:
    """A pipeline of diffusers, or one with the same arguments and results."""
    import torch

    def generate() -> "NDArray[np.uint8]":
        video = pipe(
            prompt=PROMPT, width=SIDE, height=SIDE, num_frames=frames, frame_rate=FPS,
            num_inference_steps=STEPS, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(SEED), output_type="np",
        ).frames[0]  # fmt: skip
        return (video * 255).round().astype("uint8")

    return partial(time_clip, generate)


def time_clip(generate: "Callable[[], NDArray[np.uint8]]", path: Path) -> Seconds:
    """Seconds of a library that gives all frames at once: nothing can be played before the end."""
    start = time.perf_counter()
    pixels = generate()
    first = time.perf_counter() - start
    encode(pixels, path)
    clip = time.perf_counter() - start
    return {"clip": clip, "first frame": first, "playable": clip}


def encode(pixels: "NDArray[np.uint8]", path: Path) -> None:
    """Frames, (frames, height, width, 3), in one file, with the settings of filmlet's."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(FPS), options=dict(X264))
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 2
        for picture in pixels:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, MB."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


def decode_peak(frames: int) -> float:
    """MB that filmlet's decoding adds at its peak, frames thrown away as they come."""
    import numpy as np

    from filmlet.core.events import drain
    from filmlet.core.request import build_request
    from filmlet.engine.latents import Modalities
    from filmlet.pipeline import stages
    from filmlet.pipeline.engine_cache import EngineCache
    from filmlet.pipeline.plan import make_plan
    from filmlet.pipeline.prepare import prepare
    from filmlet.settings import Settings

    request = build_request(PROMPT, seed=SEED, frames=frames, size=f"{SIDE}x{SIDE}")
    clip = drain(prepare(make_plan(request), Settings.from_environment()))
    engine = stages.load_engine(clip, EngineCache())
    times, height, width = engine.latent_shape(clip.effective.shape)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    size = 1, times * height * width, engine.channels
    latents = np.random.default_rng(0).normal(size=size).astype(np.float32)
    (video,) = engine.to_device({"latents": latents}).values()
    for _ in engine.decode(Modalities(video), clip.denoise_params):
        pass
    return memory_mb("VmHWM") - before


SIDES: dict[str, Callable[[int], Callable[[Path], Seconds]]] = {
    "filmlet": filmlet_side,
    "torch": lambda frames: filmlet_side(frames, "torch"),
    "float32": lambda frames: stock_side(frames, "float32"),
    "bfloat16": lambda frames: stock_side(frames, "bfloat16"),
}


def answer_paths(make: Callable[[Path], Seconds]) -> None:
    """Answer each path on stdin with a line of JSON, once a clip is there."""
    for line in sys.stdin:
        times = make(Path(line.strip()))
        print(json.dumps(times | {"peak MB": memory_mb("VmHWM")}), flush=True)


def main() -> None:
    side, frames = sys.argv[1], int(sys.argv[2])
    if side == "decode":
        print(json.dumps({"peak MB": decode_peak(frames)}), flush=True)
        return
    answer_paths(SIDES[side](frames))


if __name__ == "__main__":
    main()
