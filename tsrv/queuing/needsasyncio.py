"""
Modules that need asyncio, while no asyncio loop is running.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from twisted.python.failure import Failure

from .awaiting import runningLoop

__all__ = ["NeedsAsyncio", "explain"]

# Errors of asyncio outside of its loop. Locks and queues raise the last of them.
_KINDS: Final = (RuntimeError, AttributeError)
_COMPLAINT: Final = re.compile(
    "await wasn't used with future"
    "|no running event loop"
    "|There is no current event loop in thread .*"
    "|Timeout should be used inside a task"
    "|TaskGroup .* cannot determine the parent task"
    "|'NoneType' object has no attribute 'create_future'"
)

# Errors of anyio and similar libraries.
_COMPLAINTS: Final = {"AsyncLibraryNotFoundError", "NoEventLoopError"}

# Maximum length of the chain of causes (__cause__) to look through.
MAX_CAUSES: Final = 10


class NeedsAsyncio(RuntimeError):
    """
    A module awaits something that needs an asyncio loop, but no loop is running.
    """

    def __init__(self) -> None:
        super().__init__(
            "this module needs asyncio: run the program with "
            "'twistd --reactor=asyncio', or use tsrv.aio"
        )


def explain(failure: Failure) -> Failure:
    """
    @return: The failure; or one with L{NeedsAsyncio}, if asyncio lacks its loop.
    """
    if runningLoop() is None and _isComplaint(failure.value):
        explained = NeedsAsyncio()
        explained.__cause__ = failure.value
        return Failure(explained)
    return failure


def _isComplaint(error: BaseException | None) -> bool:
    # Reading or printing an error may raise another one.
    with suppress(BaseException):
        for _ in range(MAX_CAUSES):
            kind = type(error)
            if kind in _KINDS and _COMPLAINT.fullmatch(str(error)):
                return True
            if error is None or kind.__name__ in _COMPLAINTS:
                return error is not None
            # Libraries wrap the error. A __context__ is not its cause.
            error = error.__cause__
    return False
