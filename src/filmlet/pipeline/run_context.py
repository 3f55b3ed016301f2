"""RunContext: everything that changes while a clip is made."""

import threading
from dataclasses import dataclass, field

from filmlet.core.events import PixelFormat
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.engine_cache import EngineCache


@dataclass(frozen=True, eq=False)
class RunContext:
    """Engines, artifacts, cancel flag and pixel format of one run of a clip.

    cancelled: set from another thread, it stops the run inside a model call. pixel_format: of the
    frames that are wanted; an engine that gains nothing by it gives RGB.
    """

    engines: EngineCache = field(default_factory=EngineCache)
    artifacts: ArtifactStore = field(default_factory=ArtifactStore)
    cancelled: threading.Event = field(default_factory=threading.Event)
    pixel_format: PixelFormat = PixelFormat.RGB24
