"""Distillation: a student that does in 4 unguided steps what the teacher does in many guided ones.

Progressive distillation with guidance built in (Salimans & Ho, 2022, arXiv 2202.00512; Meng et al.,
2023, arXiv 2210.03142): one student step must land where four guided teacher steps land.
"""

import random

import torch
from torch import Tensor

from recipe.run import Run, quick
from recipe.teacher import (
    Latents,
    Pair,
    free,
    given,
    noised,
    shape_at,
    sigmas,
    weighted_square,
)

GUIDANCE = 3.0
STEPS = 4
TEACHER_STEPS = 4  # guided teacher steps within one student step


def train(run: Run, student: Pair, teacher: Pair, data: Latents, steps: int) -> None:
    """Train the student, which starts as a copy of the teacher, on the sampler's own levels."""
    levels = sigmas(STEPS)
    teacher.requires_grad_(False)

    def loss(step: int) -> Tensor:
        choice = random.Random(f"student/{step}")
        clean, weight, prompts = data.draw(shape_at(step, 0, choice), choice)
        half = max(1, len(clean) // 2)
        clean, weight, prompts = clean[:half].to(run.device), weight[:half], prompts[:half]
        start = torch.randint(0, STEPS, (len(clean),))
        now, following = (levels[i].to(run.device) for i in (start, start + 1))
        held = given(len(clean), clean.shape[2]).to(run.device)
        sigma = now[:, None].masked_fill(held, 0.0)
        latents = noised(clean, torch.randn_like(clean), sigma)
        with quick(run.device):
            target = _land(teacher, latents, (now, following), held, prompts)
            flow = student.velocity(latents, sigma, student.read(prompts)).float()
        return weighted_square(free(flow - target, held), weight.to(run.device))

    run.fit(student, loss, steps=steps, matrix_rate=0.003, rate=3e-4, average=0.98)


@torch.no_grad()
def _land(
    teacher: Pair, latents: Tensor, step: tuple[Tensor, Tensor], held: Tensor, prompts: list[str]
) -> Tensor:
    """The one velocity that leads where the teacher's guided steps end.

    step: levels before and after, (batch,) each; held: given frames, (batch, frames).
    """
    now, following = step
    place, level = latents, now
    for k in range(TEACHER_STEPS):
        ahead = torch.lerp(now, following, (k + 1) / TEACHER_STEPS)
        sigma = level[:, None].masked_fill(held, 0.0)
        flow = free(teacher.guided(place, sigma, prompts, GUIDANCE).float(), held)
        place = place + (ahead - level).view(-1, 1, 1, 1, 1) * flow
        level = ahead
    return (place - latents) / (following - now).view(-1, 1, 1, 1, 1)
