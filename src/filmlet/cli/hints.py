"""What the command line adds to errors: which of its own words help.

The errors themselves are read by clients of a server and by Python programs, too.
"""

import argparse
from pathlib import Path

from filmlet.errors import (
    AddressUnusable,
    ApiKeyRequired,
    EnhancementUnavailable,
    FilmletError,
    ModelNotFetched,
    OutputExists,
    UnknownJob,
    UnknownKey,
    UnsuitedGuidance,
)

NO_OPTIONS = argparse.Namespace()
FILE_OPTIONS = ("image", "last_image", "keyframe", "extend")


def describe_error(error: FilmletError, options: argparse.Namespace = NO_OPTIONS) -> str:
    """Return the message of an error with what to type: the option at fault, or what helps."""
    message, hint = _name_option(str(error), options), _hint(error)
    return f"{message} {hint}" if hint else message


def _name_option(message: str, options: argparse.Namespace) -> str:
    """Return a message about a file with the option that names the file, as it was typed."""
    for name in FILE_OPTIONS:
        value = getattr(options, name, None) or ()
        for typed in [value] if isinstance(value, str) else value:
            file = typed.rpartition("@")[0] if name == "keyframe" else typed
            start = f"{Path(file).name}: "
            if message.startswith(start):
                return f"--{name.replace('_', '-')} {file}: {message.removeprefix(start)}"
    return message


def _hint(error: FilmletError) -> str:
    match error:
        case UnsuitedGuidance():
            return "--force-guidance does it all the same."
        case ModelNotFetched():
            return f"`filmlet models pull {error.model}` fetches it."
        case OutputExists():
            return "--force overwrites it."
        case UnknownKey():
            return "`filmlet keys` lists the names."
        case UnknownJob():
            return "`filmlet jobs` lists yours."
        case ApiKeyRequired():
            return "Make one with `filmlet keys add NAME`, or serve without keys by --no-keys."
        case EnhancementUnavailable():
            return (
                "FILMLET_ENHANCE_URL and FILMLET_ENHANCE_MODEL, or FILMLET_ENHANCER, say what "
                "enhances prompts."
            )
        case AddressUnusable():
            return "Try another --port."
    return ""
