"""One training run: a folder of checkpoints that any step can go on from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipe.muon import Muon, warm_then_linear

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

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    def fit(
        self,
        module: nn.Module,
        loss: Callable[[int], Tensor],
        *,
        steps: int,
        matrix_rate: float,
        rate: float,
        average: float,
    ) -> None:
        """Minimise `loss(step)`; go on from the last checkpoint; end with the averaged weights."""
        muon = Muon(module, matrix_rate, rate, average)
        first = steps_done(self.path)
        if first:
            muon.load(self.path, first)
        saved = started = time.monotonic()
        recent = 0.0
        for step in range(first, steps):
            torch.manual_seed(self.seed * 1_000_003 + step)
            value = loss(step)
            value.backward()
            muon.step(warm_then_linear(step, steps))
            recent += value.item()
            if (step + 1) % 20 == 0:
                pace = (time.monotonic() - started) / (step + 1 - first)
                print(
                    f"{self.name} {step + 1}/{steps} loss {recent / 20:.4f} {pace:.2f} s a step",
                    flush=True,
                )
                recent = 0.0
            if time.monotonic() - saved > SAVE_EVERY_S or step + 1 == steps:
                muon.save(self.path)
                saved = time.monotonic()
        module.load_state_dict(muon.averaged_weights(), strict=False)


def steps_done(path: Path) -> int:
    """How far the checkpoint at `path` has come; 0 without one."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["steps"])
