"""Results of stages in a job's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filmlet.engine import tensor_files
from filmlet.engine.arrays import Tensors
from filmlet.engine.placement import Placement
from filmlet.media import to_output_error


@dataclass(frozen=True)
class ArtifactStore:
    """Where results are kept: a folder, or nowhere. checkpoint_interval_s: how often a step is.

    confirm: raises if results may not be kept there any more.
    """

    folder: Path | None
    placement: Placement
    checkpoint_interval_s: float
    confirm: Callable[[], None] = lambda: None

    def load(self, name: str) -> Tensors | None:
        """What is kept under a name, if it can be read."""
        file = self.folder / f"{name}.safetensors" if self.folder else None
        return tensor_files.load(file, self.placement) if file else None

    def save(self, name: str, tensors: Tensors) -> None:
        """Keep it. Raises DiskFull and the like."""
        if not self.folder:
            return
        file = self.folder / f"{name}.safetensors"
        try:
            tensor_files.save(file, tensors, self.confirm)
        except OSError as error:
            raise to_output_error(error, file) from error
