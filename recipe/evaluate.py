"""Does a clip show what its prompt says? Judged from pixels alone, proved on rendered truth.

`python -m recipe.evaluate CHECKPOINT` scores any LTX checkpoint in diffusers' layout.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from recipe.prompts import Example, examples
from recipe.renderer import (
    COLOURS,
    FPS,
    MOTIONS,
    MOTIONS_WITH_SPEED,
    PAIR_SCALE,
    SIDE,
    SIZES,
    SPEEDS,
    SQUARE,
    SUBJECTS,
    Actor,
    actor_trajectory,
    atlas,
    render,
)
from recipe.sampling import Sampler
from recipe.scenery import SCENES, scenery

JUDGED_PAIRS = 0.2  # share of prompts with two subjects
PATCH = 32
MASK = 0.12  # difference from the scene that counts as subject, of 1
SPECK = 5  # pixels; what is thinner is no subject
GAP = 9  # pixels; parts of one subject lie no further apart
EDGE = 9  # pixels; half as many next to a subject's edge are blurred
SECOND = 25  # frames
FAR = 45.0  # pixels; a subject that is half out of the canvas is not further off
DOUBLING = 40.0  # pixels that count as much as twice the size
WOBBLE = 8.0  # pixels that what stays in place may seem to move by; turning, twice as many
IN_PLACE = ("still", "shaking", "spinning")


@dataclass(frozen=True)
class DetectedActor:
    """What one actor is and does, as far as pixels tell."""

    subject: str
    colour: str
    motion: str
    size: str
    speed: str


@dataclass(frozen=True)
class ClipLabels:
    """What a clip shows."""

    scene: str
    actors: tuple[DetectedActor, ...]


def classify_clip(clip: Tensor, count: int = 1) -> ClipLabels:
    """clip: (3, frames, height, width) in [-1, 1], at least 25 frames.

    count: of subjects to look for, side by side.
    """
    clip = ((clip.float() + 1) / 2).clamp(0, 1)
    clip = clip if count == 1 else clip[:, :SECOND]  # later they may cross
    _, frames, height, width = clip.shape
    scene = _scene(clip)
    loop = scenery(scene, height, width)
    back = loop[:, torch.arange(frames) % loop.shape[1]]
    differs = (clip - back).abs().amax(0)  # (frames, height, width)
    masks = _remove_specks(differs > MASK)
    sides = [width * k // count for k in range(count + 1)]
    parts = [slice(a, b) for a, b in pairwise(sides)]
    return ClipLabels(
        scene,
        tuple(
            _classify_actor(
                ActorCrop(
                    clip[..., p],
                    back[..., p],
                    _largest_difference(masks[..., p], differs[..., p]),
                    (height, width),
                    count,
                )
            )
            for p in parts
        ),
    )


@dataclass(frozen=True, eq=False)
class ActorCrop:
    """The part of a clip that one actor has: pixels and scene in [0, 1], where they differ."""

    clip: Tensor
    back: Tensor
    masks: Tensor
    canvas: tuple[int, int]  # of the whole clip
    count: int

    @property
    def eroded_mask(self) -> float:
        return PAIR_SCALE if self.count > 1 else 1.0


def _classify_actor(part: ActorCrop) -> DetectedActor:
    boxes = [_box(mask) for mask in part.masks]
    # A quick subject may begin half outside; then it is seen best as it crosses the centre.
    edge = part.masks[0].clone()
    edge[1:-1, 1:-1] = False
    subject, scale = _subject(part, 12 if edge.any() else 0, boxes)
    motion, speed = _motion(part, boxes)
    size = min(SIZES, key=lambda name: abs(math.log(scale / part.eroded_mask / SIZES[name])))
    return DetectedActor(subject, _colour(part), motion, size, speed)


def _scene(clip: Tensor) -> str:
    """The scenery that most of the picture agrees with."""
    typical = clip[:, :: max(1, clip.shape[1] // 6)].median(dim=1).values
    errors = {}
    for name in SCENES:
        back = scenery(name, *typical.shape[1:]).median(dim=1).values
        errors[name] = (typical - back).abs().amax(0).clamp(max=0.3).mean().item()
    return min(errors, key=errors.__getitem__)


def _square(side: int) -> NDArray[np.bool_]:
    """Of one frame, `side` pixels wide and high."""
    return np.ones((1, side, side), bool)


def _remove_specks(masks: Tensor, speck: int = SPECK) -> Tensor:
    """(count, height, width) without what is thinner than `speck` pixels."""
    opened = ndimage.binary_erosion(masks.numpy(), _square(speck), border_value=1)
    return torch.from_numpy(ndimage.binary_dilation(opened, _square(speck)))


def _largest_difference(masks: Tensor, differs: Tensor, gap: int = GAP) -> Tensor:
    """Of what differs from the scene in each frame, the one thing that differs most.

    The rest is scenery that came out a little different: a star, a bubble, the sun.
    """
    # The parts of one thing lie close together.
    joined = ndimage.binary_dilation(masks.numpy(), _square(gap))
    kept = []
    for mask, whole, differ in zip(masks, joined, differs, strict=True):
        labels, count = ndimage.label(whole)
        places = torch.from_numpy(labels).long()
        weights = torch.zeros(count + 1).index_add(0, places[mask], differ[mask])
        kept.append(mask & (places == weights.argmax()))
    return torch.stack(kept)


Kind = tuple[str, str]  # motion and speed
Box = tuple[float, float, float]  # centre x, centre y, half side: pixels


def _box(mask: Tensor) -> Box:
    """A square around the subject; its outermost specks are left out."""
    rows, columns = mask.float().sum(1), mask.float().sum(0)
    total = mask.sum().item()
    if total < 20:
        return mask.shape[1] / 2, mask.shape[0] / 2, 8.0
    edges = []
    for counts in (columns, rows):
        share = counts.cumsum(0) / total
        low = int((share < 0.01).sum().item())
        high = int((share < 0.99).sum().item())
        edges.append((low, high))
    (left, right), (top, bottom) = edges
    half = max(right - left, bottom - top) / 2 + 1
    return (left + right) / 2, (top + bottom) / 2, half


def _patch(picture: Tensor, box: Box, degrees: float = 0.0) -> Tensor:
    """Cut the box out, turned, at a fixed size: (channels, PATCH, PATCH)."""
    x, y, half = box
    _, height, width = picture.shape
    angle = math.radians(degrees)
    line = torch.linspace(-1, 1, PATCH) * half
    v, u = torch.meshgrid(line, line, indexing="ij")
    columns = x + u * math.cos(angle) - v * math.sin(angle)
    rows = y + u * math.sin(angle) + v * math.cos(angle)
    grid = torch.stack([columns / width * 2 - 1, rows / height * 2 - 1], dim=-1)
    return F.grid_sample(picture[None], grid[None], align_corners=False, padding_mode="border")[0]


@cache
def _small_atlas() -> Tensor:
    """The sprites at half their size: fine enough for a PATCH."""
    return F.avg_pool2d(atlas(), 2)


def _templates(colour: Tensor) -> tuple[Tensor, Tensor]:
    """Every subject cut out where it differs from `colour`, as a clip's is from its scene.

    Returns premultiplied RGBA (subjects, 4, PATCH, PATCH), and the half side of each, of a whole
    sprite's.
    """
    sprites = _small_atlas()
    over = sprites[:, :3] + colour.view(3, 1, 1) * (1 - sprites[:, 3:])
    differs = (over - colour.view(3, 1, 1)).abs().amax(1) > MASK
    boxes = [_box(mask) for mask in _remove_specks(differs, speck=3)]
    cut = [_patch(sprite, box) for sprite, box in zip(sprites, boxes, strict=True)]
    return torch.stack(cut), torch.tensor([2 * box[2] / sprites.shape[-1] for box in boxes])


def _subject(part: ActorCrop, frame: int, boxes: list[Box]) -> tuple[str, float]:
    """The subject that, put into the scene there, looks most like the frame; and its scale."""
    x, y, half = boxes[frame]
    behind = _patch(part.back[:, frame], boxes[frame])
    templates, halves = _templates(behind.mean((1, 2)))
    best: tuple[float, str, float] = (math.inf, SUBJECTS[0], 1.0)
    steps = (-0.1, 0.0, 0.1)
    for right, down, more in product(steps, steps, steps):
        box = (x + right * half, y + down * half, half * (1 + more))
        seen, behind = (_patch(p[:, frame], box) for p in (part.clip, part.back))
        error = templates[:, :3] + behind * (1 - templates[:, 3:]) - seen
        distances = F.avg_pool2d(error, 3, stride=2).abs().mean((1, 2, 3))
        nearest = int(distances.argmin())
        scale = 2 * box[2] / halves[nearest].item() / SIDE
        best = min(best, (distances[nearest].item(), SUBJECTS[nearest], scale))
    return best[1:]


def _colour(part: ActorCrop) -> str:
    """The named colour nearest to the subject's inside, away from its blurred edge."""
    every = slice(0, SECOND, 4)  # it does not change
    clip, masks = part.clip[:, every], part.masks[every]
    deep = torch.from_numpy(ndimage.binary_erosion(masks.numpy(), _square(EDGE), border_value=1))
    inside = (deep if deep.sum() > 50 else masks).float()
    seen = (clip * inside).sum((1, 2, 3)) / inside.sum().clamp_min(1)
    table = {name: torch.tensor(rgb) / 255 for name, rgb in COLOURS.items()}
    return min(table, key=lambda name: (table[name] - seen).norm().item())


def _motion(part: ActorCrop, boxes: list[Box]) -> Kind:
    """The motion and speed whose path is nearest to the one that was seen."""
    seconds = torch.arange(len(boxes)) / FPS
    seen_size = part.masks.float().sum((1, 2)).clamp_min(1).sqrt().log2()
    # A tilt moves the middle of some subjects' boxes, and turns of others move their centroid.
    box_x, box_y, _ = (torch.tensor(values) for values in zip(*boxes, strict=True))
    places = torch.stack([torch.stack([box_x, box_y]), torch.stack(_centroids(part.masks))])

    def distance(kind: Kind) -> float:
        motion, speed = kind
        x, y, size, _ = actor_trajectory(Actor("", motion, speed=speed), seconds, part.canvas)
        apart = places - part.eroded_mask * torch.stack([x, y])
        off = (apart - apart.median(-1, keepdim=True).values).abs().clamp_max(FAR).sum(1)
        grown = seen_size - size.log2()
        wrong = DOUBLING * (grown - grown.median()).abs().mean()
        return (off.mean(-1).min() + wrong).item()

    kinds = [(m, s) for m in MOTIONS for s in SPEEDS if not s or m in MOTIONS_WITH_SPEED]
    motion, speed = min(kinds, key=distance)
    # What wobbles as it turns may go a few pixels any way; what goes anywhere goes further.
    off = min(distance((place, "")) for place in IN_PLACE)
    if motion in IN_PLACE or off < WOBBLE:
        return _least_left(part, boxes, STAYING)
    return (
        _least_left(part, boxes, [*STAYING, (motion, speed)])
        if off < 2 * WOBBLE
        else (motion, speed)
    )


def _centroids(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The mean place of what is true: x and y, (count,) each, pixels."""
    cover = masks.float()
    total = cover.sum((1, 2)).clamp_min(1)
    x, y = (torch.arange(n).float() for n in reversed(masks.shape[1:]))
    return (cover.sum(1) * x).sum(1) / total, (cover.sum(2) * y).sum(1) / total


STAYING = [(m, s) for m in IN_PLACE for s in SPEEDS if not s or m in MOTIONS_WITH_SPEED]


def _least_left(part: ActorCrop, boxes: list[Box], kinds: list[Kind]) -> Kind:
    """Of these motions, the one that leaves no motion when it is undone."""
    x, y, _ = (sum(values) / len(boxes) for values in zip(*boxes, strict=True))
    half = max(box[2] for box in boxes)
    frames = torch.arange(0, SECOND, 2)
    cover = part.masks[frames].float()
    on_grey = part.clip[:, frames] * cover + 0.5 * (1 - cover)

    def left(kind: Kind) -> float:
        motion, speed = kind
        right, down, size, angle = actor_trajectory(Actor("", motion, speed=speed), frames / FPS)
        right, down = (
            part.eroded_mask * (way - way.mean()) + at for way, at in ((right, x), (down, y))
        )
        halves = half * size / size.max()
        poses = zip(*(t.tolist() for t in (right, down, halves, angle.rad2deg())), strict=True)
        undone = [_patch(on_grey[:, k], pose[:3], pose[3]) for k, pose in enumerate(poses)]
        cuts = torch.stack(undone)
        return (cuts - cuts.mean(0)).abs().mean().item()

    return min(kinds, key=left)


Scores = dict[str, float]
ROWS = ("colour", "motion", "scene", "subject", "size", "speed", "pair")


def score(pairs: Iterable[tuple[Example, ClipLabels]]) -> Scores:
    """Share of clips that are right, in percent: a row each.

    Colour is asked of shapes only, size and speed where they are said; a clip with two subjects
    counts in the rows scene and pair: both subjects and both motions right.
    """
    right: dict[str, list[bool]] = {row: [] for row in ROWS}
    for example, verdict in pairs:
        right["scene"].append(verdict.scene == example.scenario.scene)
        told = list(zip(example.scenario.actors, verdict.actors, strict=True))
        both = [(a.subject, a.motion) == (s.subject, s.motion) for a, s in told]
        if len(told) > 1:
            right["pair"].append(all(both))
            continue
        ((wanted, seen),) = told
        right["subject"].append(wanted.subject == seen.subject)
        right["motion"].append(wanted.motion == seen.motion)
        if " " in wanted.subject:
            right["colour"].append(wanted.subject.split()[0] == seen.colour)
        if wanted.size:
            right["size"].append(wanted.size == seen.size)
        if wanted.speed:
            right["speed"].append((wanted.motion, wanted.speed) == (seen.motion, seen.speed))
    return {row: round(100 * sum(v) / len(v), 1) for row, v in right.items() if v}


def evaluate(
    make: Callable[[Example], Tensor], count: int, seed: int = 4, pairs: float = JUDGED_PAIRS
) -> Scores:
    """Score clips made for `count` held-out combinations in held-out words."""
    stream = examples(seed, held_out=True, pairs=pairs)
    corpus = [next(stream) for _ in range(count)]
    return score((e, classify_clip(make(e), len(e.scenario.actors))) for e in corpus)


def score_ground_truth(count: int, frames: int = 25, canvas: tuple[int, int] = SQUARE) -> Scores:
    """The judge on rendered ground truth: what it cannot see it cannot measure."""
    return evaluate(lambda example: render(example.scenario, frames, canvas), count)


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe.evaluate", description=score.__doc__)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    options.add_argument("--prompts", type=int, default=300)
    chosen = options.parse_args()
    maker = Sampler.from_checkpoint(chosen.checkpoint, chosen.steps, chosen.guidance)
    print(json.dumps(evaluate(lambda example: maker.make(example.prompt), chosen.prompts)))


if __name__ == "__main__":
    main()
