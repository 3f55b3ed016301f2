"""Engines that stay in memory from clip to clip. Whoever makes clips owns a cache."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace

from filmlet.core.events import Progress, Stage
from filmlet.core.memory import OffloadMode
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.base import Engine
from filmlet.engine.placement import Placement
from filmlet.engine.selection import load_engine

EngineKey = tuple[ModelCard, ComponentFiles, Placement]


@dataclass(eq=False)
class EngineCache:
    """The latest engine of each device."""

    engines: dict[EngineKey, Engine] = field(default_factory=dict)

    def get(
        self, card: ModelCard, files: ComponentFiles, placement: Placement
    ) -> Generator[Progress, None, Engine]:
        """Return the engine, loaded now if another one is here. Raises what `load_engine` raises.

        One engine is in memory on a device: the other's memory is free before this one loads.
        """
        key = card, files, placement
        if key in self.engines:
            yield Progress(Stage.LOAD, 1, 1)
            return self.engines[key]
        for other in [k for k in self.engines if k[2].device == placement.device]:
            del self.engines[other]
        self.engines[key] = yield from load_engine(*key)
        return self.engines[key]

    def offload_mode(
        self, card: ModelCard, files: ComponentFiles, placement: Placement
    ) -> OffloadMode | None:
        """Return the offload mode of an engine that is here and else like `placement`."""
        for other_card, other_files, other in self.engines:
            like = replace(other, offload=placement.offload, optimizations=placement.optimizations)
            if (other_card, other_files, like) == (card, files, placement):
                return other.offload
        return None

    def clear(self) -> None:
        """Let go of every engine."""
        self.engines.clear()
