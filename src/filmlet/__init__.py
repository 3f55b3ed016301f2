"""filmlet turns a sentence into a short video with distilled LTX models, on your own machine."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmlet.clip import Clip, generate, stream
    from filmlet.effective import Effective
    from filmlet.errors import FilmletError, InvalidRequest
    from filmlet.events import Finished, Frames, Preview, Progress, Stage
    from filmlet.guide import Guide
    from filmlet.lora import Lora
    from filmlet.request import ClipRequest
    from filmlet.shape import Change

__version__ = "0.1.0"

_HOME = {
    "Clip": "filmlet.clip",
    "generate": "filmlet.clip",
    "stream": "filmlet.clip",
    "ClipRequest": "filmlet.request",
    "Effective": "filmlet.effective",
    "Change": "filmlet.shape",
    "Progress": "filmlet.events",
    "Preview": "filmlet.events",
    "Finished": "filmlet.events",
    "Frames": "filmlet.events",
    "Stage": "filmlet.events",
    "Guide": "filmlet.guide",
    "Lora": "filmlet.lora",
    "FilmletError": "filmlet.errors",
    "InvalidRequest": "filmlet.errors",
}

__all__ = [
    "Change",
    "Clip",
    "ClipRequest",
    "Effective",
    "FilmletError",
    "Finished",
    "Frames",
    "Guide",
    "InvalidRequest",
    "Lora",
    "Preview",
    "Progress",
    "Stage",
    "__version__",
    "generate",
    "stream",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import filmlet` itself stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'filmlet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
