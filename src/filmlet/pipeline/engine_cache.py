"""Engines that are in memory, for the next clip."""

from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.base import Engine
from filmlet.engine.placement import Placement

# The engine of the last clip, for the next one.
loaded: dict[tuple[ModelCard, ComponentFiles, Placement], Engine] = {}
