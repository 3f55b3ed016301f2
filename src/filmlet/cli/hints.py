"""What the command line adds to errors: which of its own words help.

The errors themselves are read by clients of a server and by Python programs, too.
"""

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


def describe_error(error: FilmletError) -> str:
    """Return the message of an error, and after it what to type, where there is something."""
    hint = _hint(error)
    return f"{error} {hint}" if hint else str(error)


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
            return "FILMLET_ENHANCE_URL and FILMLET_ENHANCE_MODEL say what enhances prompts."
        case AddressUnusable():
            return "Try another --port."
    return ""
