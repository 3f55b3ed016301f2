"""Slow work by a few threads of its own, so that it never takes those of other requests."""

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

P = ParamSpec("P")
Value = TypeVar("Value")


class Turns:
    """At most `count` calls at once in threads; a request that waits for its turn holds none."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._limiter: RunVar[CapacityLimiter] = RunVar(f"turns-{id(self)}")  # of an event loop

    async def run(self, function: Callable[P, Value], *args: P.args, **named: P.kwargs) -> Value:
        """Call the function in a thread. Raises what it raises."""
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = CapacityLimiter(self.count)
            self._limiter.set(limiter)
        return await to_thread.run_sync(partial(function, *args, **named), limiter=limiter)


UPLOADS = Turns(2)  # looks at files that are sent
STILLS = Turns(2)  # decodes finished clips
