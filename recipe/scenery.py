"""The scenes of pocket's world; rain falls, in a loop of eight frames, the others stand still."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

LOOP = 8  # frames a latent stands for: what repeats with them is the same in every latent
Colour = tuple[int, int, int]


def _gradient(y: Tensor, top: Colour, bottom: Colour) -> Tensor:
    start, end = (torch.tensor(c).view(3, 1, 1) / 255 for c in (top, bottom))
    return start * (1 - y) + end * y


def _blend(picture: Tensor, cover: Tensor, colour: Colour) -> Tensor:
    return picture * (1 - cover) + cover * torch.tensor(colour).view(3, 1, 1) / 255


def _blobs(x: Tensor, y: Tensor, blobs: Sequence[tuple[float, float, float]]) -> Tensor:
    """Soft discs (centre x, centre y, radius), all in fractions of the canvas."""
    cover = torch.zeros_like(x)
    for cx, cy, radius in blobs:
        distance = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        cover = torch.maximum(cover, ((radius - distance) * 40 + 0.5).clamp(0, 1))
    return cover


def _spots(x: Tensor, y: Tensor, seed: int) -> Tensor:
    places = np.random.default_rng(seed).uniform(0.04, 0.96, (28, 2)).tolist()
    return _blobs(x, y, [(cx, cy, 0.012) for cx, cy in places])


def _below(y: Tensor, edge: Tensor | float) -> Tensor:
    """1 under the edge, 0 over it, soft over about three pixels."""
    return ((y - edge) * y.shape[0] / 3).clamp(0, 1)


def _plain(grey: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, _: torch.full((3, *x.shape), grey)


def _sky(x: Tensor, y: Tensor) -> Tensor:
    cloud = _blobs(x, y, [(0.2, 0.2, 0.1), (0.3, 0.17, 0.08), (0.78, 0.72, 0.11)])
    return _blend(_gradient(y, (90, 165, 245), (190, 225, 255)), cloud, (255, 255, 255))


def _night(x: Tensor, y: Tensor) -> Tensor:
    return _blend(_gradient(y, (8, 10, 45), (35, 30, 90)), _spots(x, y, 7), (255, 250, 210))


def _grass(_: Tensor, y: Tensor) -> Tensor:
    ground = _below(y, 0.55)
    meadow = _gradient(y, (120, 205, 90), (40, 125, 45))
    return _gradient(y, (165, 215, 250), (220, 240, 255)) * (1 - ground) + meadow * ground


def _sea(x: Tensor, y: Tensor) -> Tensor:
    bubble = _blobs(x, y, [(0.12, 0.3, 0.035), (0.85, 0.2, 0.045), (0.88, 0.75, 0.03)])
    return _blend(_gradient(y, (30, 165, 190), (5, 55, 110)), 0.7 * bubble, (200, 245, 255))


def _sunset(x: Tensor, y: Tensor) -> Tensor:
    picture = _gradient(y, (110, 50, 130), (255, 150, 60))
    return _blend(picture, _blobs(x, y, [(0.5, 1.0, 0.2)]), (255, 225, 120))


def _rain(x: Tensor, y: Tensor) -> Tensor:
    """Drops 14 pixels long that fall 4 pixels a frame: (3, LOOP, height, width)."""
    height, width = x.shape
    phase = torch.from_numpy(np.random.default_rng(5).permutation(64).repeat(16)[:width] * 11)
    is_drop = torch.arange(width) % 16 < 2
    rows = torch.arange(height)[None, :, None] + phase - 4 * torch.arange(LOOP)[:, None, None]
    drops = is_drop * (rows.remainder(4 * LOOP) < 14) * 0.6
    back = _gradient(y, (75, 90, 110), (125, 140, 155))[:, None]
    return back * (1 - drops) + drops * torch.tensor((200, 215, 230)).view(3, 1, 1, 1) / 255


def _city(x: Tensor, y: Tensor) -> Tensor:
    """Towers 32 pixels wide with lit windows."""
    height, width = x.shape
    column, row = (torch.arange(n) for n in (width, height))
    tops = torch.from_numpy(np.random.default_rng(9).choice((0.45, 0.55, 0.65, 0.75), 32))
    towers = _below(y, tops[(column // 32) % 32].float())
    lit = (column % 16 >= 6) & (column % 16 < 10) & ((row % 16 >= 5) & (row % 16 < 11))[:, None]
    picture = _blend(_gradient(y, (15, 12, 55), (95, 55, 120)), towers, (30, 32, 48))
    return _blend(picture, towers * lit * 0.8, (255, 205, 110))


def _forest(x: Tensor, y: Tensor) -> Tensor:
    """Trunks every 64 pixels under a roof of leaves."""
    column = torch.arange(x.shape[1])
    trunks = ((column % 64 < 14) * (1 - _below(y, 0.85))).float()
    leaves = _blobs(x, y * 0.8, [(k / 6, 0.02, 0.17) for k in range(7)])
    picture = _blend(_gradient(y, (120, 180, 120), (60, 120, 60)), trunks, (95, 62, 40))
    return _blend(picture, leaves, (25, 85, 40))


def _snow(x: Tensor, y: Tensor) -> Tensor:
    hill = _below(y, 0.68 + 0.05 * (6.3 * x).sin())
    picture = _blend(_gradient(y, (120, 150, 190), (185, 205, 230)), hill, (240, 246, 255))
    return _blend(picture, _spots(x, y, 3), (255, 255, 255))


def _desert(x: Tensor, y: Tensor) -> Tensor:
    dune = _below(y, 0.62 + 0.06 * (8 * x).sin())
    picture = _gradient(y, (70, 175, 215), (235, 235, 205))
    picture = _blend(picture, _blobs(x, y, [(0.82, 0.16, 0.09)]), (255, 240, 130))
    return _blend(picture, dune, (222, 172, 96))


PAINTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "white": _plain(1.0),
    "black": _plain(0.0),
    "sky": _sky,
    "night": _night,
    "grass": _grass,
    "sea": _sea,
    "sunset": _sunset,
    "rain": _rain,
    "city": _city,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
}
SCENES = tuple(PAINTERS)


@cache
def scenery(scene: str, height: int, width: int) -> Tensor:
    """The background alone: (3, 1 or LOOP frames, height, width) in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    picture = PAINTERS[scene](x, y)
    return picture if picture.ndim == 4 else picture[:, None]
