"""What the environment says: the only reader of it."""

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Settings:
    """device: `cpu`, `cuda`, `mps`, or None for the best there is."""

    device: str | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """FILMLET_DEVICE."""
        return cls(device=os.environ.get("FILMLET_DEVICE") or None)
