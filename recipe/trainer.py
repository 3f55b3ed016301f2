"""One training run: a folder of checkpoints that any step can go on from.

Several workers may share it, each with batches of its own; they average their gradients.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from recipe.muon import Muon, learning_rate_share

SAVE_EVERY_S = 120.0


def autocast(device: torch.device) -> torch.autocast:
    """Half the time in bfloat16, where the processor has it."""
    has_it = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_it)


@dataclass(frozen=True)
class TrainingRun:
    """Where a training run keeps its state, and on what it computes."""

    folder: Path
    name: str
    device: torch.device
    seed: int = 0
    worker: int = 0

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    def fit(
        self,
        module: nn.Module,
        loss: Callable[[int, random.Random], Tensor],
        *,
        steps: int,
        matrix_rate: float,
        rate: float,
        average: float,
    ) -> None:
        """Minimise `loss(step, choice)`; go on from the last checkpoint; end with the averages.

        choice: the source of all that is drawn for this worker's batch.
        """
        muon = Muon(module, matrix_rate, rate, average)
        first = steps_done(self.path)
        if first:
            muon.load(self.path, first)
        saved = started = time.monotonic()
        recent = 0.0
        for step in range(first, steps):
            torch.manual_seed(self.seed * 1_000_003 + step + 500_009 * self.worker)
            value = loss(step, random.Random(f"{self.name}/{step}/{self.worker}"))
            value.backward()
            average_gradients(muon.parameters.values())
            muon.step(learning_rate_share(step, steps))
            recent += value.item()
            if (step + 1) % 20 == 0 and not self.worker:
                pace = (time.monotonic() - started) / (step + 1 - first)
                mean = recent / min(20, step + 1 - first)
                print(
                    f"{self.name} {step + 1}/{steps} loss {mean:.4f} {pace:.2f} s a step",
                    flush=True,
                )
            recent = recent if (step + 1) % 20 else 0.0
            is_due = time.monotonic() - saved > SAVE_EVERY_S or step + 1 == steps
            if is_due and not self.worker:
                muon.save(self.path)
                saved = time.monotonic()
        module.load_state_dict(muon.averaged_weights(), strict=False)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every worker the mean of all workers' gradients; one process alone keeps its own."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    pieces = (flat / dist.get_world_size()).split([grad.numel() for grad in grads])
    for grad, piece in zip(grads, pieces, strict=True):
        grad.copy_(piece.view_as(grad))


def steps_done(path: Path) -> int:
    """How far the checkpoint at `path` has come; 0 without one."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["steps"])
