"""filmlet turns a sentence into a short video with distilled LTX models, on your own machine."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmlet.clip import Clip, generate, stream
    from filmlet.core.effective import EffectiveSettings
    from filmlet.core.enhanced_prompt import EnhancedPrompt
    from filmlet.core.events import Audio, Frames, Preview, Progress, Stage, StageFinished
    from filmlet.core.guide import Guide
    from filmlet.core.lora import Lora
    from filmlet.core.request import ClipRequest
    from filmlet.core.shape import Change
    from filmlet.enhancers import enhance_prompt
    from filmlet.errors import FilmletError, InvalidRequest
    from filmlet.media import convert_clip

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "Clip": "filmlet.clip",
    "generate": "filmlet.clip",
    "stream": "filmlet.clip",
    "ClipRequest": "filmlet.core.request",
    "EffectiveSettings": "filmlet.core.effective",
    "convert_clip": "filmlet.media",
    "EnhancedPrompt": "filmlet.core.enhanced_prompt",
    "enhance_prompt": "filmlet.enhancers",
    "Change": "filmlet.core.shape",
    "Progress": "filmlet.core.events",
    "Preview": "filmlet.core.events",
    "StageFinished": "filmlet.core.events",
    "SettingsChanged": "filmlet.core.events",
    "Audio": "filmlet.core.events",
    "Frames": "filmlet.core.events",
    "Stage": "filmlet.core.events",
    "Guide": "filmlet.core.guide",
    "Lora": "filmlet.core.lora",
    "FilmletError": "filmlet.errors",
    "InvalidRequest": "filmlet.errors",
}

__all__ = [
    "Audio",
    "Change",
    "Clip",
    "ClipRequest",
    "EffectiveSettings",
    "EnhancedPrompt",
    "FilmletError",
    "Frames",
    "Guide",
    "InvalidRequest",
    "Lora",
    "Preview",
    "Progress",
    "SettingsChanged",
    "Stage",
    "StageFinished",
    "__version__",
    "convert_clip",
    "enhance_prompt",
    "generate",
    "stream",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import filmlet` itself stays instant."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'filmlet' has no attribute {name!r}")
    return getattr(import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
