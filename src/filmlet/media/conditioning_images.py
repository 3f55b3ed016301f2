"""Pictures as LTX-2 was trained on them: frames of compressed videos, resized without smoothing."""

import math
from io import BytesIO

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from filmlet.core.events import Pixels

PRESET = "veryfast"
MIN_SIDE = 2  # of a picture that can be a frame in 4:2:0


def conditioning_image(picture: Pixels, crf: int, width: int, height: int) -> NDArray[np.float32]:
    """A picture as one compressed frame that covers width x height: (1, height, width, 3), 0 to
    255.

    picture: (1, height, width, 3). crf: of H.264; 0 leaves it as it is. As `preprocess` and
    `resize_and_center_crop` of Lightricks' ltx-pipelines.
    """
    frame = picture[0]
    if crf and min(frame.shape[:2]) >= MIN_SIDE:
        frame = _compress(frame, crf)
    return _cover_bilinear(frame.astype(np.float32), width, height)[None]


def _compress(frame: Pixels, crf: int) -> Pixels:
    """The frame, (height, width, 3), encoded and decoded again; its sides become even."""
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    file = BytesIO()
    with av.open(file, "w", "mp4") as container:
        stream = container.add_stream(
            "libx264", rate=1, options={"crf": str(crf), "preset": PRESET}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        whole = np.ascontiguousarray(frame[:height, :width])
        picture = av.VideoFrame.from_ndarray(whole, format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r", "mp4") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def _cover_bilinear(frame: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """The middle of a frame that was resized to cover width x height."""
    tall, wide = frame.shape[:2]
    scale = max(height / tall, width / wide)
    covered_height, covered_width = math.ceil(tall * scale), math.ceil(wide * scale)
    top, left = (covered_height - height) // 2, (covered_width - width) // 2
    rows = _resample_axis(frame, covered_height, slice(top, top + height), axis=0)
    return _resample_axis(rows, covered_width, slice(left, left + width), axis=1)


def _resample_axis(
    frame: NDArray[np.float32], size: int, kept: slice, axis: int
) -> NDArray[np.float32]:
    """Linear interpolation along one axis to `size` places, of which `kept` are returned.

    Between the nearest two values, however much smaller the result is: torch's `interpolate`
    without antialiasing.
    """
    count = frame.shape[axis]
    places = (np.arange(size)[kept] + 0.5) * (count / size) - 0.5
    places = places.clip(0, None).astype(np.float32)
    low = places.astype(np.int64).clip(0, count - 1)
    high = (low + 1).clip(0, count - 1)
    shape = [1, 1, 1]
    shape[axis] = len(places)
    weight = (places - low).reshape(shape).astype(np.float32)
    lower, higher = frame.take(low, axis), frame.take(high, axis)
    return lower * (1 - weight) + higher * weight
