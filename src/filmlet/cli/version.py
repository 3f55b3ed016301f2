"""`filmlet --version`: what computes clips here, found without importing any of it."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from filmlet import __version__
from filmlet.core.model_card import POCKET_REVISION

LIBRARIES = ("openvino", "torch", "diffusers", "transformers")


class VersionAction(argparse.Action):
    """Prints the versions and ends the process."""

    def __init__(self, option_strings: list[str], **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        lines = [f"filmlet {__version__}", f"python {platform.python_version()}"]
        lines += [f"{library} {_version_of(library)}" for library in LIBRARIES]
        lines.append(f"pocket revision {POCKET_REVISION}")
        lines.append(platform.platform())
        print("\n".join(lines))
        parser.exit()


def _version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
