"""Decoded frames on their way out: what a GPU lays out for the encoder, against the encoder's."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from filmlet.core.shape import VideoShape
from filmlet.engine.torch.frame_transfer import FrameTransfer, to_rgb, to_yuv420
from filmlet.errors import NonFiniteValues
from filmlet.media import write_video
from filmlet.media.video_writer import VideoWriter

HEIGHT, WIDTH = (
    62,
    96,
)  # not of fours, so that a row of planes holds the end of U and the start of V
SHAPE = VideoShape(WIDTH, HEIGHT, 5, 24.0, WIDTH, HEIGHT, 9)


def frames() -> Tensor:
    """Smooth colours over all of their range: (3, frames, height, width) in [-1, 1]."""
    spots = torch.rand(1, 3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    size = (SHAPE.frames, HEIGHT, WIDTH)
    video = torch.nn.functional.interpolate(spots, size, mode="trilinear")[0] * 2 - 1
    video[..., :4, :4], video[..., -4:, -4:] = -1.1, 1.1  # black and white, and beyond
    return video


def test_planes_are_those_of_the_encoders_own_conversion(tmp_path: Path) -> None:
    movie = VideoWriter(tmp_path / "clip.mp4", "mp4", SHAPE, {})
    theirs = np.stack([movie._in_planes(p).to_ndarray() for p in to_rgb(frames()).numpy()])
    movie.close()
    made = to_yuv420(frames()).numpy()
    difference = np.abs(theirs.astype(int) - made)
    assert made.shape == (SHAPE.frames, HEIGHT * 3 // 2, WIDTH)
    assert np.quantile(difference, 0.99) <= 3  # it looks further at edges
    assert difference.mean() < 0.2
    assert made[:, :HEIGHT].min() == 16
    assert made[:, :HEIGHT].max() == 235


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_video_of_planes_shows_what_one_of_pixels_shows(tmp_path: Path, suffix: str) -> None:
    shown = []
    for name, lay_out in (("pixels", to_rgb), ("planes", to_yuv420)):
        path = tmp_path / f"{name}{suffix}"
        with write_video(path, SHAPE, {}) as movie:
            movie.add(FrameTransfer(frames(), lay_out).result())
        with av.open(str(path)) as file:
            pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
            stream = file.streams.video[0]
            assert (stream.codec_context.color_range, stream.codec_context.colorspace) == (1, 1)
        shown.append(np.stack(pictures).astype(int))
    pixels, planes = shown
    assert pixels.shape == planes.shape == (SHAPE.frames, HEIGHT, WIDTH, 3)
    assert np.abs(pixels - planes).mean() < 3
    assert pixels.std() > 30


@pytest.mark.parametrize("lay_out", [to_rgb, to_yuv420])
def test_values_that_are_not_numbers_do_not_leave(lay_out: type) -> None:
    broken = frames()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteValues):
        FrameTransfer(broken, lay_out).result()
