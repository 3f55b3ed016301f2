"""Sign-in of the page: the key becomes a cookie that scripts cannot read."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from filmlet.api.dependencies import COOKIE, AppStateDep, Caller, get_caller
from filmlet.api.openapi import refusals
from filmlet.api.root_path import cookie_path
from filmlet.api.schemas import RequestModel
from filmlet.errors import UnknownKey

router = APIRouter(prefix="/session", tags=["session"], responses=refusals(403, 413, 500, 503))
A_YEAR_S = 365 * 86400


class SessionKey(RequestModel):
    """A key of this server."""

    key: str = Field(min_length=1, max_length=200)


class Session(BaseModel):
    """The user of this browser. needs_key: sign-in is needed. keeps: clips survive a restart."""

    needs_key: bool
    uses_keys: bool
    name: str | None
    admin: bool
    keeps: bool = True


@router.get("")
async def read_session(request: Request, shared: AppStateDep) -> Session:
    """Tell the page whether it needs a key."""
    uses_keys = await shared.needs_key()
    try:
        who: Caller | None = await get_caller(request, shared)
    except UnknownKey:
        who = None
    secret = request.cookies.get(COOKIE, "")
    key = await shared.key(secret) if uses_keys and secret else None
    return Session(
        needs_key=who is None,
        uses_keys=uses_keys,
        name=key.name if key else None,
        admin=who is not None and who.visible_owner is None,
        keeps=shared.visitors is None or shared.visitors.is_persistent,
    )


@router.post("", responses=refusals(400, 401))
async def log_in(
    sent: SessionKey, request: Request, response: Response, shared: AppStateDep
) -> Session:
    """Sign in with a key, which becomes a cookie."""
    key = await shared.key(sent.key.strip())
    if key is None:
        raise UnknownKey("This key is not known here; ask whoever runs the server for one.")
    response.set_cookie(
        COOKIE, sent.key.strip(), max_age=A_YEAR_S, httponly=True, samesite="strict",
        path=cookie_path(request.scope), secure=request.url.scheme == "https",
    )  # fmt: skip
    return Session(needs_key=False, uses_keys=True, name=key.name, admin=key.admin)


@router.delete("")
async def log_out(request: Request, response: Response) -> Session:
    """Sign out."""
    path = cookie_path(request.scope)
    response.delete_cookie(COOKIE, path=path, httponly=True, samesite="strict")
    return Session(needs_key=True, uses_keys=True, name=None, admin=False)
