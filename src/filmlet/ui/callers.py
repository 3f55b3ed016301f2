"""What each caller of the page has at the server: sessions of Gradio, files, open requests."""

import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from filmlet.errors import TooManyJobs
from filmlet.ui.files import ANONYMOUS, CallerFiles
from filmlet.ui.routes import Route

OWNER = "filmlet.owner"  # key of an ASGI scope
MAX_SESSIONS = 256
MAX_SESSIONS_PER_CALLER = 64
SESSION_IDLE_S = 3600.0
MAX_OPEN_REQUESTS = 1024
RETRY_S = 5.0
SESSION_HASH = re.compile(r"[\w-]{1,64}", re.ASCII)


def owner_of(request: Any) -> str:
    """Return who makes a request; the gate has written it there. Takes Gradio's requests, too."""
    http: Request = getattr(request, "request", request)
    return str(http.scope[OWNER])


@dataclass
class GradioSession:
    """A session of Gradio. used_at: by the monotonic clock. streams: that are open."""

    owner: str
    used_at: float
    streams: int = 0


class CallerSessions:
    """Whose session hash it is: the first caller who names one has it from then on.

    is_busy: whether events of a session are under way. forget: frees what Gradio holds for it.
    """

    def __init__(self) -> None:
        self.is_busy: Callable[[str], bool] = lambda _: False
        self.forget: Callable[[str], None] = lambda _: None
        self._sessions: OrderedDict[str, GradioSession] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._sessions)

    def claim(self, session_hash: str, owner: str) -> bool:
        """Return whether the session is the caller's, who gets it if nobody has it yet.

        Raises TooManyJobs.
        """
        session = self._sessions.get(session_hash)
        if session is None:
            if not SESSION_HASH.fullmatch(session_hash):
                return False
            self._make_room(owner)
            session = self._sessions[session_hash] = GradioSession(owner, time.monotonic())
        elif session.owner == owner:
            session.used_at = time.monotonic()
            self._sessions.move_to_end(session_hash)
        return session.owner == owner

    def owns(self, session_hash: str, owner: str) -> bool:
        session = self._sessions.get(session_hash)
        return session is not None and session.owner == owner

    @contextmanager
    def stream(self, session_hash: str) -> Iterator[None]:
        """Keep the session while a stream of it is open."""
        session = self._sessions[session_hash]
        session.streams += 1
        try:
            yield
        finally:
            session.streams -= 1
            session.used_at = time.monotonic()

    def sweep(self) -> None:
        """Forget the sessions that nobody has used for an hour."""
        before = time.monotonic() - SESSION_IDLE_S
        for session_hash in [h for h, s in self._sessions.items() if s.used_at < before]:
            if not self._is_open(session_hash):
                self._drop(session_hash)

    def _make_room(self, owner: str) -> None:
        own = [h for h, s in self._sessions.items() if s.owner == owner]
        if owner != ANONYMOUS and len(own) >= MAX_SESSIONS_PER_CALLER:
            self._drop_idle(own)
        elif len(self._sessions) >= MAX_SESSIONS:
            self._drop_idle(list(self._sessions))

    def _drop_idle(self, session_hashes: list[str]) -> None:
        idle = next((h for h in session_hashes if not self._is_open(h)), None)
        if idle is None:
            raise TooManyJobs("Too many sessions are in use.", retry_after_s=RETRY_S)
        self._drop(idle)

    def _is_open(self, session_hash: str) -> bool:
        return self._sessions[session_hash].streams > 0 or self.is_busy(session_hash)

    def _drop(self, session_hash: str) -> None:
        del self._sessions[session_hash]
        self.forget(session_hash)


class OpenRequests:
    """How many requests each caller has under way."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def count(self, owner: str, route: Route) -> Iterator[None]:
        """Count a request while it is under way. Raises TooManyJobs."""
        of_caller = (owner, route.path)
        is_full = owner != ANONYMOUS and self._open[of_caller] >= route.max_open
        if is_full or self._open.total() >= MAX_OPEN_REQUESTS:
            raise TooManyJobs("Too many requests are under way.", retry_after_s=RETRY_S)
        self._open[of_caller] += 1
        try:
            yield
        finally:
            self._open[of_caller] -= 1
            if not self._open[of_caller]:
                del self._open[of_caller]


@dataclass
class Callers:
    """What the page's parts share about their callers."""

    files: CallerFiles
    sessions: CallerSessions = field(default_factory=CallerSessions)
    requests: OpenRequests = field(default_factory=OpenRequests)

    @classmethod
    def in_folder(cls, folder: Path) -> "Callers":
        return cls(CallerFiles(folder))
