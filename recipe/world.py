"""pocket's world: a sprite moves over a scene, drawn with tensor operations.

Sprites are rendered once into a small atlas (colour emoji from the Noto font, OFL; plain shapes by
their outline); a clip is that sprite under one affine map a frame, blended over a scene.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size this bitmap font holds
SPRITE = 144  # atlas cell, pixels
SIZE = 96.0  # a sprite's width on the canvas, pixels
FPS = 24.0
SPEED = 80.0  # pixels a second

EMOJI = {
    "cat": "🐱",
    "dog": "🐶",
    "panda": "🐼",
    "frog": "🐸",
    "pig": "🐷",
    "penguin": "🐧",
    "octopus": "🐙",
    "butterfly": "🦋",
    "fish": "🐠",
    "car": "🚗",
    "rocket": "🚀",
    "apple": "🍎",
    "banana": "🍌",
    "sunflower": "🌻",
    "tree": "🌲",
    "mushroom": "🍄",
}
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (225, 30, 40),
    "green": (30, 160, 60),
    "blue": (35, 75, 225),
    "yellow": (250, 215, 30),
    "purple": (140, 50, 180),
    "orange": (245, 135, 25),
}
MOTIONS = ("left", "right", "up", "down", "still", "spinning", "growing", "bouncing")
SCENES = ("white", "black", "sky", "night", "grass", "sea", "sunset")
SUBJECTS = (*EMOJI, *(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS))


@dataclass(frozen=True)
class Scenario:
    """One clip before it is drawn: what is seen, and the small accidents that make clips differ."""

    subject: str
    motion: str
    scene: str
    shift: tuple[float, float] = (0.0, 0.0)  # of the whole path, pixels
    scale: float = 1.0

    @property
    def is_visible(self) -> bool:
        """A circle that spins cannot be told from one that is still."""
        return not (self.motion == "spinning" and self.subject.endswith("circle"))


@cache
def atlas() -> Tensor:
    """Every subject once: (subjects, 4, SPRITE, SPRITE), premultiplied RGBA in [0, 1]."""
    cells = [_emoji(EMOJI[s]) if s in EMOJI else _shape(*s.split()) for s in SUBJECTS]
    return torch.stack(cells)


def _emoji(character: str) -> Tensor:
    if not EMOJI_FONT.is_file():
        raise FileNotFoundError(f"{EMOJI_FONT} is missing; install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(EMOJI_FONT), STRIKE)
    drawing = Image.new("RGBA", (STRIKE * 2, STRIKE * 2))
    ImageDraw.Draw(drawing).text((20, 20), character, font=font, embedded_color=True)
    drawing = drawing.crop(drawing.getbbox())
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return _cell(square)


def _shape(colour: str, shape: str) -> Tensor:
    side = SPRITE * 4
    drawing = Image.new("RGBA", (side, side))
    pen, fill = ImageDraw.Draw(drawing), (*COLOURS[colour], 255)
    if shape == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=fill)
    elif shape == "square":
        pen.rectangle((side * 0.06, side * 0.06, side * 0.94, side * 0.94), fill=fill)
    else:
        points, inner = (3, 1.0) if shape == "triangle" else (5, 0.42)
        pen.polygon(_corners(points, inner, side), fill=fill)
    return _cell(drawing)


def _corners(points: int, inner: float, side: float) -> list[tuple[float, float]]:
    """A regular polygon (inner = 1) or a star, standing on its base inside a square of `side`."""
    turns = points if inner == 1.0 else 2 * points
    corners = []
    for k in range(turns):
        radius = side / 2 * (inner if inner != 1.0 and k % 2 else 1.0)
        angle = 2 * math.pi * k / turns
        corners.append((side / 2 + radius * math.sin(angle), side / 2 - radius * math.cos(angle)))
    return corners


def _cell(drawing: Image.Image) -> Tensor:
    """Shrink into one atlas cell with a two-pixel empty border, premultiplied."""
    small = drawing.resize((SPRITE - 4, SPRITE - 4), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(small).copy()).float().permute(2, 0, 1) / 255
    pixels[:3] *= pixels[3:]
    return F.pad(pixels, (2, 2, 2, 2))


def path(scenario: Scenario, seconds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Offset from the canvas centre (x, y: pixels), size factor and angle (radians) at each time.

    A straight path crosses the centre half a second in, whatever the length of the clip.
    """
    zero, one = torch.zeros_like(seconds), torch.ones_like(seconds)
    along = SPEED * (seconds - 0.5)
    x, y, scale, angle = zero, zero, one, zero
    match scenario.motion:
        case "left":
            x = -along
        case "right":
            x = along
        case "up":
            y = -along
        case "down":
            y = along
        case "spinning":
            angle = math.pi * seconds
        case "growing":
            scale = 0.6 + 0.8 * seconds
        case "bouncing":
            y = 35 - 80 * (math.pi * seconds).sin().abs()
        case "still":
            pass
        case unknown:
            raise ValueError(f"unknown motion {unknown!r}")
    return x + scenario.shift[0], y + scenario.shift[1], scale * scenario.scale, angle


@cache
def scenery(scene: str, height: int, width: int) -> Tensor:
    """The background alone: (3, height, width) in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    match scene:
        case "white":
            return torch.ones(3, height, width)
        case "black":
            return torch.zeros(3, height, width)
        case "sky":
            picture = _gradient(y, (90, 165, 245), (190, 225, 255))
            cloud = _blobs(x, y, [(0.2, 0.2, 0.1), (0.3, 0.17, 0.08), (0.78, 0.72, 0.11)])
            return _over(picture, cloud, (255, 255, 255))
        case "night":
            picture = _gradient(y, (8, 10, 45), (35, 30, 90))
            return _over(picture, _stars(x, y), (255, 250, 210))
        case "grass":
            ground = ((y - 0.55) * height / 3).clamp(0, 1)
            meadow = _gradient(y, (120, 205, 90), (40, 125, 45))
            return _gradient(y, (165, 215, 250), (220, 240, 255)) * (1 - ground) + meadow * ground
        case "sea":
            picture = _gradient(y, (30, 165, 190), (5, 55, 110))
            bubble = _blobs(x, y, [(0.12, 0.3, 0.035), (0.85, 0.2, 0.045), (0.88, 0.75, 0.03)])
            return _over(picture, 0.7 * bubble, (200, 245, 255))
        case "sunset":
            picture = _gradient(y, (110, 50, 130), (255, 150, 60))
            return _over(picture, _blobs(x, y, [(0.5, 1.0, 0.2)]), (255, 225, 120))
    raise ValueError(f"unknown scene {scene!r}")


def _gradient(y: Tensor, top: Sequence[int], bottom: Sequence[int]) -> Tensor:
    start, end = (torch.tensor(c).view(3, 1, 1) / 255 for c in (top, bottom))
    return start * (1 - y) + end * y


def _over(picture: Tensor, cover: Tensor, colour: Sequence[int]) -> Tensor:
    return picture * (1 - cover) + cover * torch.tensor(colour).view(3, 1, 1) / 255


def _blobs(x: Tensor, y: Tensor, blobs: Sequence[tuple[float, float, float]]) -> Tensor:
    """Soft discs (centre x, centre y, radius), all in fractions of the canvas."""
    cover = torch.zeros_like(x)
    for cx, cy, radius in blobs:
        distance = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        cover = torch.maximum(cover, ((radius - distance) * 40 + 0.5).clamp(0, 1))
    return cover


def _stars(x: Tensor, y: Tensor) -> Tensor:
    spots = np.random.default_rng(7).uniform(0.04, 0.96, (28, 2)).tolist()
    return _blobs(x, y, [(cx, cy, 0.012) for cx, cy in spots])


def render(
    scenario: Scenario,
    frames: int,
    size: tuple[int, int] = (256, 256),
    window: tuple[int, int, int, int] | None = None,
    first_frame: int = 0,
) -> Tensor:
    """Draw a clip: (3, frames, height, width) in [-1, 1].

    size: (height, width) of the canvas; window: (top, left, height, width) cuts a piece out of it.
    """
    return render_with_cover(scenario, frames, size, window, first_frame)[0]


def render_with_cover(
    scenario: Scenario,
    frames: int,
    size: tuple[int, int] = (256, 256),
    window: tuple[int, int, int, int] | None = None,
    first_frame: int = 0,
) -> tuple[Tensor, Tensor]:
    """A clip as `render` draws it, and the subject's cover: (1, frames, ...) in [0, 1]."""
    top, left, height, width = window or (0, 0, *size)
    sprite = atlas()[SUBJECTS.index(scenario.subject)]
    seconds = (torch.arange(frames) + first_frame) / FPS
    x, y, scale, angle = path(scenario, seconds)
    centre_x, centre_y = size[1] / 2 + x - left, size[0] / 2 + y - top
    # Canvas pixel -> sprite coordinate in [-1, 1]: shift to the centre, turn back, scale.
    reach = SIZE * scale / 2
    columns = (torch.arange(width) + 0.5)[None, None] - centre_x[:, None, None]
    rows = (torch.arange(height) + 0.5)[None, :, None] - centre_y[:, None, None]
    cos, sin = (f(angle)[:, None, None] / reach[:, None, None] for f in (torch.cos, torch.sin))
    grid = torch.stack([columns * cos + rows * sin, rows * cos - columns * sin], dim=-1)
    layer = F.grid_sample(
        sprite.expand(frames, -1, -1, -1), grid, mode="bilinear", align_corners=False
    ).transpose(0, 1)  # (4, frames, height, width)
    back = scenery(scenario.scene, *size)[:, None, top : top + height, left : left + width]
    picture = layer[:3] + back * (1 - layer[3:])
    return picture * 2 - 1, layer[3:]
