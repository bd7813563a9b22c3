"""
Modules that need asyncio, under a reactor that is not asyncio's or does not run yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .awaiting import runningLoop
from .foreign import callForeign

__all__ = ["NeedsAsyncio", "callOnLoop"]

# What asyncio and its libraries say outside of their loop.
_COMPLAINTS: Final = (
    "await wasn't used with future",
    "no running event loop",
    "no current event loop",
    "should be used inside a task",
    "cannot determine the parent task",
    "asynclibrarynotfound",
)


class NeedsAsyncio(RuntimeError):
    """
    A coroutine awaits what only asyncio can wait for, and no asyncio loop is running.
    """

    def __init__(self) -> None:
        super().__init__(
            "this module needs asyncio: run the program with "
            "'twistd --reactor=asyncio', or use tsrv.aio"
        )


def callOnLoop(reactor: Any, function: Callable[[], object]) -> Deferred[Any]:
    """
    Call a function that may need asyncio: now, or when the asyncio reactor runs.

    @return: A Deferred that fires with the result or the error, which is
        L{NeedsAsyncio} if no reactor of asyncio runs and the function needs one.
    """
    if runningLoop() is not None:
        return callForeign(function)
    module = sys.modules.get("twisted.internet.asyncioreactor")
    if module is not None and isinstance(reactor, module.AsyncioSelectorReactor):
        running: Deferred[Any] = Deferred()
        reactor.callWhenRunning(running.callback, None)
        return running.addCallback(lambda _: callForeign(function))
    return callForeign(function).addErrback(_explain)


def _explain(failure: Failure) -> Failure:
    error = failure.value
    text = f"{type(error).__name__} {error}".lower()
    if not any(each in text for each in _COMPLAINTS):
        return failure
    explained = NeedsAsyncio()
    explained.__cause__ = error
    return Failure(explained)
