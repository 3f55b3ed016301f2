"""pocket's world: one sprite or two move over a scene, drawn with tensor operations.

Sprites are rendered once into a small atlas (colour emoji from the Noto font, OFL; plain shapes by
their outline); a clip is each sprite under one affine map a frame, blended over a scene.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recipe.scenery import scenery

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_FONT = Path(__file__).with_name("outlines.ttf")
STRIKE = 109  # the one size this bitmap font holds
SPRITE = 144  # atlas cell, pixels
SIDE = 150.0  # a sprite's width on the canvas, pixels: nearly five latents
FPS = 24.0
SPEED = 60.0  # pixels a second
PAIR_SCALE = 0.6  # two sprites are drawn, and move, so much smaller
SQUARE = (256, 256)  # height and width of the default canvas

# Bold and flat ones, which are told apart at a glance; thin and textured ones come out as blobs.
EMOJI = {
    # animals
    "cat": "🐱", "dog": "🐶", "panda": "🐼", "frog": "🐸", "pig": "🐷", "penguin": "🐧",
    "butterfly": "🦋", "fish": "🐠", "rabbit": "🐰", "fox": "🦊", "bear": "🐻", "lion": "🦁",
    "tiger": "🐯", "cow": "🐮", "monkey": "🐵", "mouse": "🐭", "unicorn": "🦄", "elephant": "🐘",
    "turtle": "🐢", "whale": "🐳", "bee": "🐝", "ladybug": "🐞", "chick": "🐤", "dinosaur": "🦕",
    "sheep": "🐑", "horse": "🐴", "crab": "🦀",
    # things that go
    "car": "🚗", "rocket": "🚀", "bus": "🚌", "truck": "🚚", "airplane": "🛩", "helicopter": "🚁",
    "boat": "⛵", "balloon": "🎈",
    # to eat, and plants
    "apple": "🍎", "banana": "🍌", "lemon": "🍋", "strawberry": "🍓", "cherries": "🍒",
    "grapes": "🍇", "watermelon": "🍉", "pineapple": "🍍", "carrot": "🥕", "pizza": "🍕",
    "hamburger": "🍔", "sunflower": "🌻", "tree": "🌲", "mushroom": "🍄", "cactus": "🌵",
    # people's things
    "robot": "🤖", "ghost": "👻", "pumpkin": "🎃", "snowman": "⛄", "alien": "👽", "crown": "👑",
    "gift": "🎁", "umbrella": "☂", "house": "🏠", "clock": "⏰", "bell": "🔔", "smiley": "😀",
}  # fmt: skip
# Silhouettes in any of the colours: the code point of each in GLYPH_FONT.
GLYPHS = {
    "cat": 0xF6BE, "dog": 0xF6D3, "horse": 0xF6F0, "fish": 0xE4F2, "bird": 0xF4BA, "car": 0xF5E4,
    "airplane": 0xF072, "truck": 0xF0D1, "boat": 0xE445, "rocket": 0xF135, "house": 0xF015,
    "tree": 0xF1BB, "umbrella": 0xF0E9,
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "moon")
COLOURS = {
    "red": (225, 30, 40),
    "green": (30, 160, 60),
    "blue": (35, 75, 225),
    "yellow": (250, 215, 30),
    "purple": (140, 50, 180),
    "orange": (245, 135, 25),
    "pink": (255, 120, 185),
    "brown": (115, 65, 30),
    "cyan": (90, 230, 235),
}
COLOURED = (*SHAPES, *GLYPHS)
SUBJECTS = (*EMOJI, *(f"{colour} {noun}" for noun in COLOURED for colour in COLOURS))
SIZES = {"small": 0.7, "": 1.0, "big": 1.3}
SPEEDS = {"slowly": 0.6, "": 1.0, "quickly": 1.8}

# Directions: pixels a second, in units of SPEED; to the right and down.
STRAIGHT = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "diagonal": (0.75, -0.75),
}
Pose = tuple[Tensor, Tensor, Tensor, Tensor]  # x, y: pixels from the centre; size; angle: radians
Curve = Callable[[Tensor, Tensor], Pose]  # of seconds, and zeros like them
# A motion of three times a second repeats with each latent, which stands for 8 frames.
CURVES: dict[str, Curve] = {
    "still": lambda _, o: (o, o, o + 1, o),
    "spinning": lambda t, o: (o, o, o + 1, 0.7 * math.pi * t),
    "growing": lambda t, o: (o, o, 1.35 - 0.7 * (-1.2 * t).exp(), o),
    "shrinking": lambda t, o: (o, o, 0.45 + 0.75 * (-1.6 * t).exp(), o),
    "bouncing": lambda t, o: (o, 30 - 65 * (math.pi * t).sin().abs(), o + 1, o),
    "shaking": lambda t, o: (8 * _wave(3 * t), o, o + 1, 0.15 * _wave(3 * t)),
    "circling": lambda t, o: (-40 * _wave(0.6 * t + 0.25), -40 * _wave(0.6 * t), o + 1, o),
}
MOTIONS = (*STRAIGHT, *CURVES)
MOTIONS_WITH_SPEED = (
    *STRAIGHT,
    "spinning",
    "bouncing",
    "circling",
)  # what slowly and quickly can be said of
MOTIONS_WITH_SIZE = tuple(m for m in MOTIONS if m not in ("growing", "shrinking"))


def _wave(turns: Tensor) -> Tensor:
    return (2 * math.pi * turns).sin()


@dataclass(frozen=True)
class Actor:
    """Who does what, and the small accidents that make clips differ."""

    subject: str
    motion: str
    size: str = ""
    speed: str = ""
    shift: tuple[float, float] = (0.0, 0.0)  # of the whole path, pixels
    scale: float = 1.0

    @property
    def is_visible(self) -> bool:
        """A circle that spins cannot be told from one that is still."""
        return not (self.motion == "spinning" and self.subject.endswith("circle"))


@dataclass(frozen=True)
class Scenario:
    """One clip before it is drawn; of two actors the first is on the left."""

    actors: tuple[Actor, ...]
    scene: str


def single_actor(subject: str, motion: str, scene: str) -> Scenario:
    """A clip of one subject without accidents."""
    return Scenario((Actor(subject, motion),), scene)


@cache
def atlas() -> Tensor:
    """Every subject once: (subjects, 4, SPRITE, SPRITE), premultiplied RGBA in [0, 1]."""
    return torch.stack([_sprite(subject) for subject in SUBJECTS])


def _sprite(subject: str) -> Tensor:
    if subject in EMOJI:
        return _emoji(EMOJI[subject])
    colour, noun = subject.split()
    return _glyph(colour, noun) if noun in GLYPHS else _shape(colour, noun)


def _emoji(character: str) -> Tensor:
    if not EMOJI_FONT.is_file():
        raise FileNotFoundError(f"{EMOJI_FONT} is missing; install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(EMOJI_FONT), STRIKE)
    drawing = Image.new("RGBA", (STRIKE * 2, STRIKE * 2))
    ImageDraw.Draw(drawing).text((20, 20), character, font=font, embedded_color=True)
    return _square_cell(drawing)


def _glyph(colour: str, noun: str) -> Tensor:
    """A silhouette in one colour, drawn large so that its outline stays smooth."""
    side = SPRITE * 4
    font = ImageFont.truetype(str(GLYPH_FONT), side)
    drawing = Image.new("RGBA", (side * 2, side * 2))
    ImageDraw.Draw(drawing).text((side // 4, side // 4), chr(GLYPHS[noun]), COLOURS[colour], font)
    return _square_cell(drawing)


def _square_cell(drawing: Image.Image) -> Tensor:
    """A cell with the drawing in its middle, as large as fits."""
    drawing = drawing.crop(drawing.getbbox())
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return _cell(square)


def _shape(colour: str, shape: str) -> Tensor:
    """Inside where the outline's function is positive, on a square from -1 to 1."""
    line = torch.linspace(-1, 1, SPRITE * 4)
    y, x = torch.meshgrid(line, line, indexing="ij")
    mask = (OUTLINES[shape](x, y) >= 0).to(torch.uint8)
    pixels = torch.stack([*(mask * value for value in COLOURS[colour]), mask * 255], dim=-1)
    return _cell(Image.fromarray(pixels.numpy(), "RGBA"))


def _polygon(points: int, inner: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A star of so many points, or a regular polygon: inner is then the cosine of half a turn."""

    def outline(x: Tensor, y: Tensor) -> Tensor:
        half = math.pi / points
        turn = (torch.atan2(x, -y) + half).remainder(2 * half) - half  # from the nearest tip
        along, aside = torch.cos(turn), torch.sin(turn).abs()
        radius = (x.square() + y.square()).sqrt()
        tip_x, dent = 1.0, (inner * math.cos(half), inner * math.sin(half))
        # Left of the edge from the tip (1, 0) to the dent beside it.
        return dent[1] * (tip_x - radius * along) - (tip_x - dent[0]) * radius * aside

    return outline


OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: 1 - x.square() - y.square(),
    "square": lambda x, y: 0.88 - torch.maximum(x.abs(), y.abs()),
    "triangle": _polygon(3, math.cos(math.pi / 3)),
    "star": _polygon(5, 0.42),
    "heart": lambda x, y: (
        1.21 * x.square() * (0.16 - 1.18 * y).pow(3)
        - ((1.21 * x).square() + (0.16 - 1.18 * y).square() - 1).pow(3)
    ),
    "moon": lambda x, y: torch.minimum(
        1 - x.square() - y.square(), (x - 0.5).square() + (y + 0.1).square() - 0.6
    ),
}


def _cell(drawing: Image.Image) -> Tensor:
    """Shrink into one atlas cell with a two-pixel empty border, premultiplied."""
    small = drawing.resize((SPRITE - 4, SPRITE - 4), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(small).copy()).float().permute(2, 0, 1) / 255
    pixels[:3] *= pixels[3:]
    return F.pad(pixels, (2, 2, 2, 2))


def actor_trajectory(actor: Actor, seconds: Tensor, canvas: tuple[int, int] = SQUARE) -> Pose:
    """Offset from the centre (x, y: pixels), size factor and angle (radians) at each time.

    A straight path crosses the centre half a second in and comes in again where it went out of the
    canvas (height, width), whatever the length of the clip.
    """
    pace, scale = SPEEDS[actor.speed], SIZES[actor.size] * actor.scale
    zero = torch.zeros_like(seconds)
    if actor.motion in STRAIGHT:
        gone = SPEED * pace * (seconds - 0.5)
        x, y = (
            (gone * share + side / 2).remainder(side) - side / 2 if share else zero
            for share, side in zip(
                STRAIGHT[actor.motion], (c + SIDE * scale for c in reversed(canvas)), strict=True
            )
        )
        size, angle = zero + 1, zero
    else:
        x, y, size, angle = CURVES[actor.motion](seconds * pace, zero)
    return x + actor.shift[0], y + actor.shift[1], size * scale, angle


Window = tuple[int, int, int, int]  # top, left, height, width


def render(
    scenario: Scenario,
    frames: int,
    canvas: tuple[int, int] = SQUARE,
    window: Window | None = None,
    first_frame: int = 0,
) -> Tensor:
    """Draw a clip: (3, frames, height, width) in [-1, 1].

    canvas: (height, width); window: a piece to cut out of it.
    """
    return render_with_cover(scenario, frames, canvas, window, first_frame)[0]


def render_with_cover(
    scenario: Scenario,
    frames: int,
    canvas: tuple[int, int] = SQUARE,
    window: Window | None = None,
    first_frame: int = 0,
) -> tuple[Tensor, Tensor]:
    """A clip as `render` draws it, and the subjects' cover: (1, frames, ...) in [0, 1]."""
    top, left, height, width = window or (0, 0, *canvas)
    times = torch.arange(frames) + first_frame
    back = scenery(scenario.scene, *canvas)[..., top : top + height, left : left + width]
    picture = back[:, times % back.shape[1]]
    cover = torch.zeros_like(picture[:1])
    for centre_x, centre_y, actor, shrunk in place_actors(scenario, canvas):
        x, y, size, angle = actor_trajectory(actor, times / FPS, canvas)
        place = (centre_x + shrunk * x - left, centre_y + shrunk * y - top)
        layer = _layer(actor.subject, place, shrunk * size, angle, (height, width))
        picture = layer[:3] + picture * (1 - layer[3:])
        cover = torch.maximum(cover, layer[3:])
    return picture * 2 - 1, cover


def place_actors(
    scenario: Scenario, canvas: tuple[int, int]
) -> list[tuple[float, float, Actor, float]]:
    """Where each actor's path has its centre (x, y), and how much smaller it is."""
    height, width = canvas
    count = len(scenario.actors)
    shrunk = PAIR_SCALE if count > 1 else 1.0
    return [
        (width * (k + 0.5) / count, height / 2, actor, shrunk)
        for k, actor in enumerate(scenario.actors)
    ]


def _layer(
    subject: str,
    place: tuple[Tensor, Tensor],
    size: Tensor,
    angle: Tensor,
    window: tuple[int, int],
) -> Tensor:
    """A sprite with nothing around it: (4, frames, height, width), premultiplied."""
    # Canvas pixel -> sprite coordinate in [-1, 1]: shift to the centre, turn back, scale.
    reach = SIDE * size / 2
    columns = (torch.arange(window[1]) + 0.5)[None, None] - place[0][:, None, None]
    rows = (torch.arange(window[0]) + 0.5)[None, :, None] - place[1][:, None, None]
    cos, sin = (f(angle)[:, None, None] / reach[:, None, None] for f in (torch.cos, torch.sin))
    grid = torch.stack([columns * cos + rows * sin, rows * cos - columns * sin], dim=-1)
    sprite = atlas()[SUBJECTS.index(subject)].expand(len(size), -1, -1, -1)
    return F.grid_sample(sprite, grid, mode="bilinear", align_corners=False).transpose(0, 1)
