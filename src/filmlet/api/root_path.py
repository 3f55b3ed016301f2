"""The path below which a proxy shows the server, as ASGI has it in a scope: `root_path`.

`scope["path"]` begins with it. Whoever decides by a path asks `route_path`, and whoever writes a
path for a client puts `root_path` before it.
"""

from starlette._utils import get_route_path
from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path: exactly what starlette routes by."""
    return get_route_path(scope)


def root_path(scope: Scope) -> str:
    """Return the root path of the server, "" for none; the same within mounted apps."""
    return str(scope.get("app_root_path", scope.get("root_path", "")))


def cookie_path(scope: Scope) -> str:
    """Return the Path of a cookie for all of this server, and for nothing beside it."""
    return root_path(scope) or "/"
