"""Distillation: a student does in a few unguided steps what a teacher does in many guided ones.

Two methods over the same steps, both with guidance built in (Meng et al., 2023, arXiv 2210.03142):

- progressive (Salimans & Ho, 2022, arXiv 2202.00512): one student step must land where several
  guided teacher steps land;
- consistency (Song et al., 2023, arXiv 2303.01469; within each step as in Heek et al., 2024, arXiv
  2403.06807): from anywhere within a step the student must land where it lands itself after one
  guided teacher step from there.

`python -m recipe.distil` takes any LTX checkpoint in diffusers' layout as the teacher.
"""

import argparse
import copy
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from recipe import vae
from recipe.teacher import (
    LatentDataset,
    TextToVideoModel,
    add_noise,
    mask_given_frames,
    sample_given_frames,
    shape_at,
    sigmas,
    weighted_square,
)
from recipe.trainer import TrainingRun, autocast

STEPS = 4
PARTS = 4  # guided teacher steps within one student step


@dataclass(frozen=True)
class DistillConfig:
    """How to distil: the student's steps, and the teacher's guidance."""

    method: str
    steps: int
    guidance: float
    parts: int = PARTS


@dataclass(frozen=True, eq=False)
class TrajectoryBatch:
    """A batch somewhere on its way to the end of a step."""

    latents: Tensor
    now: Tensor  # levels, (batch,) each
    end: Tensor
    part: Tensor  # how far one teacher step goes
    given_frames: Tensor  # given frames, (batch, frames)
    prompts: list[str]

    @property
    def sigma(self) -> Tensor:
        """The level of each frame: (batch, frames)."""
        return self.now[:, None].masked_fill(self.given_frames, 0.0)

    def euler_step(
        self, pair: TextToVideoModel, to: Tensor, guidance: float = 1.0
    ) -> "TrajectoryBatch":
        """One step of `pair` to the levels `to`."""
        if guidance > 1:
            flow = pair.guided_velocity(self.latents, self.sigma, self.prompts, guidance)
        else:
            flow = pair.velocity(self.latents, self.sigma, pair.encode_prompts(self.prompts))
        moved = self.latents + _expand_levels(to - self.now) * mask_given_frames(
            flow.float(), self.given_frames
        )
        return replace(self, latents=moved, now=to)

    def teacher_step(self, teacher: TextToVideoModel, guidance: float) -> "TrajectoryBatch":
        """One step of the teacher; rounding must not lead past the end."""
        return self.euler_step(teacher, torch.maximum(self.now - self.part, self.end), guidance)


def _expand_levels(levels: Tensor) -> Tensor:
    return levels.view(-1, 1, 1, 1, 1)


def train(
    run: TrainingRun,
    student: TextToVideoModel,
    teacher: TextToVideoModel,
    data: LatentDataset,
    way: DistillConfig,
    steps: int,
) -> None:
    """Train the student, which starts as a copy of the teacher, on the sampler's own levels."""
    target = METHODS[way.method]
    teacher.requires_grad_(False)

    def loss(step: int, choice: random.Random) -> Tensor:
        shape = shape_at(step, 0, 0, random.Random(f"shape/{step}"))  # the same for all workers
        clean, weight, prompts = data.sample_batch(shape, choice)
        half = max(1, len(clean) // 2)  # each clip costs several passes here
        clean, weight, prompts = clean[:half].to(run.device), weight[:half], prompts[:half]
        held = sample_given_frames(len(clean), clean.shape[2]).to(run.device)
        now, end, part = (levels.to(run.device) for levels in sample_levels(way, len(clean)))
        draw = TrajectoryBatch(clean, now, end, part, held, prompts)
        draw = replace(draw, latents=add_noise(clean, torch.randn_like(clean), draw.sigma))
        with autocast(run.device):
            with torch.no_grad():
                landed = target(student, teacher, draw, way)
            flow = student.velocity(
                draw.latents, draw.sigma, student.encode_prompts(prompts)
            ).float()
        wanted = (landed.latents - draw.latents) / _expand_levels(end - now)
        return weighted_square(mask_given_frames(flow - wanted, held), weight.to(run.device))

    run.fit(student, loss, steps=steps, matrix_rate=0.003, rate=3e-4, average=0.98)


def sample_levels(way: DistillConfig, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each clip of a batch is, where its step ends, and a part of the step: (count,) each."""
    levels = sigmas(way.steps)
    start = torch.randint(0, way.steps, (count,))
    end = levels[start + 1]
    part = (levels[start] - end) / way.parts
    gone = torch.randint(0, way.parts, (count,)) if way.method == "consistency" else 0
    return levels[start] - gone * part, end, part


def progressive_target(
    _: TextToVideoModel, teacher: TextToVideoModel, draw: TrajectoryBatch, way: DistillConfig
) -> TrajectoryBatch:
    """Where the teacher lands at the end of the step."""
    for _part in range(way.parts):
        draw = draw.teacher_step(teacher, way.guidance)
    return draw


def consistency_target(
    student: TextToVideoModel, teacher: TextToVideoModel, draw: TrajectoryBatch, way: DistillConfig
) -> TrajectoryBatch:
    """Where the student lands after the teacher has gone one part of the step."""
    return draw.teacher_step(teacher, way.guidance).euler_step(student, draw.end)


METHODS: dict[
    str,
    Callable[[TextToVideoModel, TextToVideoModel, TrajectoryBatch, DistillConfig], TrajectoryBatch],
] = {
    "progressive": progressive_target,
    "consistency": consistency_target,
}
BEST = "progressive"


def distil(
    folder: Path, checkpoint: Path, target: Path, way: DistillConfig, steps: int, clips: int
) -> None:
    """Distil a checkpoint on clips of pocket's world; the target gets all else from the teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    coder, teacher = (
        vae.load(checkpoint / "vae").eval(),
        TextToVideoModel.from_pretrained(checkpoint).eval(),
    )
    data = LatentDataset(coder, clips, folder / "latents", is_normal=True)
    student = copy.deepcopy(teacher)
    student.text.requires_grad_(False)  # another model's is large, and knows its words
    run = TrainingRun(folder, way.method, torch.device("cpu"))
    train(run, student, teacher, data, way, steps)
    shutil.copytree(checkpoint, target, dirs_exist_ok=True)
    shutil.rmtree(target / "transformer")
    student.transformer.to(torch.bfloat16).save_pretrained(target / "transformer")


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe.distil", description=distil.__doc__)
    options.add_argument("teacher", type=Path, help="an LTX checkpoint in diffusers' layout")
    options.add_argument("target", type=Path, help="folder for the student")
    options.add_argument("--method", choices=METHODS, default=BEST)
    options.add_argument("--steps", type=int, default=4, help="of the student")
    options.add_argument("--parts", type=int, default=PARTS, help="teacher steps within each")
    options.add_argument("--guidance", type=float, default=1.0, help="of the teacher; 1 is none")
    options.add_argument("--train", type=int, default=200, help="training steps")
    options.add_argument("--clips", type=int, default=2000, help="training clips")
    options.add_argument("--folder", type=Path, default=Path("build/distil"))
    chosen = options.parse_args()
    way = DistillConfig(chosen.method, chosen.steps, chosen.guidance, chosen.parts)
    distil(chosen.folder, chosen.teacher, chosen.target, way, chosen.train, chosen.clips)


if __name__ == "__main__":
    main()
