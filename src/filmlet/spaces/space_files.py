"""The files of a Space: a few lines that run filmlet, what is installed, and the front matter."""

import json
from dataclasses import dataclass
from pathlib import Path

from filmlet import __version__
from filmlet.core.model_card import ModelCard
from filmlet.errors import FolderNotEmpty, InvalidRequest
from filmlet.models import REGISTRY, get_card
from filmlet.spaces.preload import preload, startup_timeout_minutes

PACKAGE = Path(__file__).parent.parent
PINS = Path(__file__).with_name("pins.txt")
ZEROGPU_HARDWARE = "zero-a10g"
PYTHON = "3.12.12"  # the one that ZeroGPU has and filmlet runs on
TORCH, TORCH_ON_ZERO = "2.13.0", "2.11.0"  # ZeroGPU knows no later one
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"
APP = '''"""filmlet on a Space; `filmlet space create` wrote this."""

from filmlet.spaces import run

run({model!r})
'''
ABOUT = """
# {title}

Sentences into short videos with {model}, by filmlet {version}. Before a clip is made the page says
what will really be done and how long it takes. gradio_client and MCP clients find `/text_to_video`,
`/image_to_video` and `/video_to_video`.

Licence of the model: {licence}. Written by `filmlet space create`; run it again for an update.
"""
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class SpaceConfig:
    """The options that a Space is made with.

    source: a pip requirement for filmlet; None takes the package itself along, as it runs here.
    """

    model: str = "pocket"
    hardware: str = "cpu-basic"
    title: str = "filmlet"
    source: str | None = None

    def __post_init__(self) -> None:
        if self.model not in REGISTRY:
            get_card(self.model)  # its error names the nearest
            raise InvalidRequest(
                f"A Space has no folder {self.model!r}: choose one of {', '.join(REGISTRY)}.",
                param="model",
            )

    @property
    def card(self) -> ModelCard:
        return REGISTRY[self.model]


def build_files(making: SpaceConfig) -> dict[str, bytes]:
    """Return every file by its path in the Space's repository."""
    texts = {
        "app.py": APP.format(model=making.model),
        "requirements.txt": requirements(making),
        "README.md": readme(making),
        ".gitattributes": ATTRIBUTES,
    }
    return {name: text.encode() for name, text in texts.items()} | _package_files(making)


def write_files(making: SpaceConfig, folder: Path) -> list[Path]:
    """The same into a folder, which is new or holds such files already. Raises FolderNotEmpty."""
    contents = build_files(making)
    if folder.exists() and any(folder.iterdir()) and not (folder / "app.py").is_file():
        raise FolderNotEmpty(f"{folder} is not empty and holds no Space; give a new folder.")
    paths = []
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def requirements(making: SpaceConfig) -> str:
    """Return the pinned set. The platform installs it with Gradio of `sdk_version` and `spaces`."""
    torch = [f"torch=={TORCH}"]
    if making.hardware == ZEROGPU_HARDWARE:
        torch = [f"torch=={TORCH_ON_ZERO}"]
    elif making.hardware.startswith("cpu"):
        torch.insert(0, f"--extra-index-url {TORCH_WITHOUT_CUDA}")
    source_lines = [making.source] if making.source else []
    return "\n".join([*torch, *PINS.read_text().split(), *source_lines]) + "\n"


def readme(making: SpaceConfig) -> str:
    """Return the front matter, in YAML's JSON notation, and a few words."""
    card = making.card
    matter: dict[str, object] = {
        "title": making.title,
        "emoji": "🎬",
        "colorFrom": "red",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": _pinned_version("gradio"),
        "python_version": PYTHON,
        "app_file": "app.py",
        "header": "mini",
        "fullWidth": True,
        "license": "apache-2.0",
        "short_description": "Sentences into short videos with distilled LTX models",
        "suggested_hardware": making.hardware,
        "startup_duration_timeout": f"{startup_timeout_minutes(card)}m",
        "tags": ["text-to-video", "image-to-video", "ltx-video", "mcp-server"],
    }
    repo = card.sources.transformer.repo
    if repo:
        matter["models"] = [repo]
    if preload_lines := preload(card):
        matter["preload_from_hub"] = preload_lines
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in matter.items()]
    name = f"[{card.name}](https://huggingface.co/{repo})" if repo else card.name
    about = ABOUT.format(title=making.title, model=name, version=__version__, licence=card.licence)
    return "\n".join(["---", *lines, "---", about])


def _pinned_version(name: str) -> str:
    pins = dict(line.split("==") for line in PINS.read_text().split())
    return pins[name]


def _package_files(making: SpaceConfig) -> dict[str, bytes]:
    """Return the package beside app.py, where Python finds it.

    No wheel: while it installs, the platform shows pip requirements.txt and no other file.
    """
    if making.source:
        return {}
    return {
        str(path.relative_to(PACKAGE.parent)): path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
