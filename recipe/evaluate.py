"""Does a clip show what its prompt says? Judged from pixels alone, proved on rendered truth.

`python -m recipe.evaluate CHECKPOINT --steps 8` scores any LTX checkpoint in diffusers' layout.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.corpus import Example, examples
from recipe.making import Maker
from recipe.world import COLOURS, SCENES, SUBJECTS, atlas, render, scenery

PATCH = 48
MASK = 0.12  # difference from the scene that counts as subject, of 1
SPECK = 5
QUARTER = 6  # frames after which a spinning sprite has turned by 45 degrees


@dataclass(frozen=True)
class Verdict:
    """What a clip shows, as far as pixels tell."""

    subject: str
    colour: str
    motion: str
    scene: str


def judge(clip: Tensor) -> Verdict:
    """clip: (3, frames, height, width) in [-1, 1], at least 25 frames."""
    clip = ((clip.float() + 1) / 2).clamp(0, 1)
    scene, back = _scene(clip)
    masks = _opened((clip - back[:, None]).abs().amax(0) > MASK)  # (frames, height, width)
    boxes = [_box(mask) for mask in masks]
    return Verdict(
        subject=_subject(clip[:, 0], masks[0], boxes[0]),
        colour=_colour(clip, masks),
        motion=_motion(clip, masks, boxes),
        scene=scene,
    )


def _scene(clip: Tensor) -> tuple[str, Tensor]:
    """The scenery that most of the picture agrees with."""
    typical = clip[:, :: max(1, clip.shape[1] // 6)].median(dim=1).values
    errors = {}
    for name in SCENES:
        back = scenery(name, *typical.shape[1:])
        errors[name] = (typical - back).abs().amax(0).clamp(max=0.3).mean().item()
    best = min(errors, key=errors.__getitem__)
    return best, scenery(best, *typical.shape[1:])


def _grown(masks: Tensor, speck: int) -> Tensor:
    """True within a square of `speck` pixels around what is true: (count, height, width)."""
    half = speck // 2
    for dim, pad in ((2, (half, half)), (1, (0, 0, half, half))):
        wide, side = F.pad(masks, pad), masks.shape[dim]
        masks = reduce(torch.logical_or, (wide.narrow(dim, k, side) for k in range(speck)))
    return masks


def _opened(masks: Tensor, speck: int = SPECK) -> Tensor:
    """Without specks: shrunk, then grown back (a morphological opening)."""
    return _grown(~_grown(~masks, speck), speck)


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


def _cut_out(picture: Tensor, mask: Tensor, box: Box) -> Tensor:
    """The subject on grey: (3, PATCH, PATCH)."""
    cover = mask.float()[None]
    return _patch(picture * cover + 0.5 * (1 - cover), box)


@cache
def _templates() -> Tensor:
    """Every subject on grey, cut out as a clip's subject is: (subjects, 3, PATCH, PATCH)."""
    pieces = []
    for sprite in atlas():
        cover = _opened(sprite[3:] > 0.5).float()
        picture = (sprite[:3] / sprite[3:].clamp_min(1e-3)).clamp(0, 1)
        pieces.append(_patch(picture * cover + 0.5 * (1 - cover), _box(cover[0] > 0.5)))
    return torch.stack(pieces)


def _subject(picture: Tensor, mask: Tensor, box: Box) -> str:
    """The subject whose template is nearest, after a slight blur of both."""
    seen = F.avg_pool2d(_cut_out(picture, mask, box)[None], 3)
    distances = (F.avg_pool2d(_templates(), 3) - seen).abs().mean((1, 2, 3))
    return SUBJECTS[int(distances.argmin())]


def _colour(clip: Tensor, masks: Tensor) -> str:
    """The named colour nearest to the subject's inside, away from its blurred edge."""
    deep = ~_grown(~masks, 9)
    inside = (deep if deep.sum() > 50 else masks).float()
    seen = (clip * inside).sum((1, 2, 3)) / inside.sum().clamp_min(1)
    table = {name: torch.tensor(rgb) / 255 for name, rgb in COLOURS.items()}
    return min(table, key=lambda name: (table[name] - seen).norm().item())


def _motion(clip: Tensor, masks: Tensor, boxes: list[Box]) -> str:
    """Read off size and place at the start, the middle and the end, then the turn."""
    areas = [masks[k : k + 2].float().sum().item() + 1 for k in (0, 23)]
    if areas[1] / areas[0] > 2.0:
        return "growing"
    (x0, y0, _), (_, y1, _), (x2, y2, _) = boxes[0], boxes[12], boxes[24]
    across, along, hop = x2 - x0, y2 - y0, (y0 + y2) / 2 - y1
    if hop > 25:
        return "bouncing"
    if max(abs(across), abs(along)) > 25:
        if abs(across) > abs(along):
            return "right" if across > 0 else "left"
        return "down" if along > 0 else "up"
    return "spinning" if _turns(clip, masks, boxes) else "still"


def _turns(clip: Tensor, masks: Tensor, boxes: list[Box]) -> bool:
    """Is the frame after QUARTER frames nearer to the first one turned by 45 degrees?"""
    x, y, _ = (sum(values) / len(boxes) for values in zip(*boxes, strict=True))
    half = max(box[2] for box in boxes)
    frame = x, y, half
    cover = masks.float()
    first, later = (clip[:, k] * cover[k] + 0.5 * (1 - cover[k]) for k in (0, QUARTER))
    as_it_was = (_patch(first, frame) - _patch(later, frame)).abs().mean()
    turned = (_patch(first, frame, -45) - _patch(later, frame)).abs().mean()
    return bool(turned < as_it_was)


Scores = dict[str, float]


def score(pairs: Iterable[tuple[Example, Verdict]]) -> Scores:
    """Share of clips that are right, in percent: a row each; colour is asked of shapes only."""
    right: dict[str, list[bool]] = {r: [] for r in ("colour", "motion", "scene", "subject")}
    for example, verdict in pairs:
        wanted = example.scenario
        if " " in wanted.subject:
            right["colour"].append(verdict.colour == wanted.subject.split()[0])
        right["motion"].append(verdict.motion == wanted.motion)
        right["scene"].append(verdict.scene == wanted.scene)
        right["subject"].append(verdict.subject == wanted.subject)
    return {row: round(100 * sum(v) / max(1, len(v)), 1) for row, v in right.items()}


def evaluate(make: Callable[[Example], Tensor], count: int, seed: int = 4) -> Scores:
    """Score clips made for `count` held-out combinations."""
    stream = examples(seed, held_out=True)
    corpus = [next(stream) for _ in range(count)]
    return score((example, judge(make(example))) for example in corpus)


def prove(count: int) -> Scores:
    """The judge on rendered ground truth: what it cannot see it cannot measure."""
    return evaluate(lambda example: render(example.scenario, 25), count)


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe.evaluate", description=score.__doc__)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    options.add_argument("--prompts", type=int, default=96)
    chosen = options.parse_args()
    maker = Maker.of(chosen.checkpoint, chosen.steps, chosen.guidance)
    print(json.dumps(evaluate(lambda example: maker.make(example.prompt), chosen.prompts)))


if __name__ == "__main__":
    main()
