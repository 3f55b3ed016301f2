"""Which of Gradio's routes exist here: everything that is not in `ROUTES` is answered with 404.

The paths are written as Gradio writes them. The page, gradio_client, @gradio/client and MCP
clients need these and no others.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

EVENT_BYTES = 512 * 1024  # JSON of an event: two prompts of the longest kind, escaped
MCP_BYTES = 8 * 1024 * 1024  # JSON of a tool call: a picture of 6 MB in base64
UPLOAD_BYTES = 101 * 1024 * 1024  # a form with a video of 100 MiB


class RouteAccess(StrEnum):
    """Who may use a route: anybody, or who has a key, is a visitor, or is the local user."""

    PUBLIC = "public"
    CALLER = "caller"


class Answer(StrEnum):
    """What answers a route: Gradio, or code of ours instead of it."""

    GRADIO = "gradio"
    UPLOAD = "upload"
    FILE = "file"


@dataclass(frozen=True)
class Route:
    """A path of Gradio that is open.

    max_body: bytes that are read of a body, 0 reads none. max_open: how many requests one caller
    may have under way here.
    """

    path: str
    methods: tuple[str, ...] = ("GET",)
    access: RouteAccess = RouteAccess.CALLER
    answer: Answer = Answer.GRADIO
    max_body: int = 0
    max_open: int = 128


def _event(path: str) -> Route:
    return Route(path, ("POST",), max_body=EVENT_BYTES)


ROUTES = (
    # The key prompt is drawn by the page, so the page and its parts come before any key.
    Route("/", ("GET", "HEAD"), RouteAccess.PUBLIC),
    Route("/config", access=RouteAccess.PUBLIC),
    Route("/gradio_api/info", access=RouteAccess.PUBLIC),
    Route("/assets/{path:path}", access=RouteAccess.PUBLIC),
    Route("/static/{path:path}", access=RouteAccess.PUBLIC),
    Route("/theme.css", access=RouteAccess.PUBLIC),
    Route("/favicon.ico", access=RouteAccess.PUBLIC),
    Route("/gradio_api/upload", ("POST",), answer=Answer.UPLOAD, max_body=UPLOAD_BYTES, max_open=8),
    Route("/gradio_api/file={path_or_url:path}", ("GET", "HEAD"), answer=Answer.FILE),
    _event("/gradio_api/run/{api_name}"),
    _event("/gradio_api/api/{api_name}"),
    _event("/gradio_api/call/{api_name}"),
    _event("/gradio_api/call/v2/{api_name}"),
    _event("/gradio_api/queue/join"),
    _event("/gradio_api/cancel"),
    _event("/gradio_api/reset"),
    Route("/gradio_api/queue/data"),
    Route("/gradio_api/call/{api_name}/{event_id}"),
    Route("/gradio_api/call/v2/{api_name}/{event_id}"),
    Route("/gradio_api/startup-events"),  # `launch` asks for it itself
    Route("/gradio_api/mcp/schema"),
    Route("/gradio_api/mcp/sse", max_open=16),
    Route("/gradio_api/mcp/messages/", ("POST",), max_body=MCP_BYTES, max_open=16),
    Route("/gradio_api/mcp", ("GET", "POST", "DELETE"), max_body=MCP_BYTES, max_open=16),
    Route("/gradio_api/mcp/", ("GET", "POST", "DELETE"), max_body=MCP_BYTES, max_open=16),
)


def compile_path(path: str) -> re.Pattern[str]:
    """Return the expression of a path with `{name}` and `{name:path}` in it."""
    parts = re.split(r"({\w+(?::path)?})", path)
    return re.compile("".join(map(_compile_part, parts)), re.DOTALL)


def _compile_part(part: str) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    name = part.strip("{}").removesuffix(":path")
    return f"(?P<{name}>.*)" if part.endswith(":path}") else f"(?P<{name}>[^/]+)"


PATTERNS = tuple((compile_path(route.path), route) for route in ROUTES)


def find_route(method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """Return the open route that answers, with what its names stand for; None is 404."""
    for pattern, route in PATTERNS:
        if method in route.methods and (match := pattern.fullmatch(path)):
            return route, match.groupdict()
    return None


def find_methods(path: str) -> set[str]:
    """Return the methods that the open routes of a path have, empty if there is none."""
    found = (route.methods for pattern, route in PATTERNS if pattern.fullmatch(path))
    return set().union(*found)
