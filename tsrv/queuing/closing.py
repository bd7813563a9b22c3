"""
The closing of a module, which may take too long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime

__all__ = ["closeWithin"]


def closeWithin(
    timeout: float | None, reactor: IReactorTime, close: Callable[[], object]
) -> Deferred[BaseException | None]:
    """
    Close a module, and wait for it, but not for ever.

    @param timeout: For how long to wait, in seconds; L{None} for any time.
    @param reactor: Provides the time.
    @param close: Closes the module.
    @return: A Deferred that fires with the reason if it went wrong.
    """
    # Of its own, so that a module that does not let itself be cancelled has no
    # say in when the time is up.
    ended: Deferred[Any] = Deferred()
    closing = maybeDeferred(close)
    closing.chainDeferred(ended)

    def tooLong(result: object, timeout: float) -> NoReturn:
        closing.cancel()
        raise TimeoutError(f"no end within {timeout:g} s")

    if timeout is not None:
        ended.addTimeout(timeout, reactor, tooLong)
    return ended.addCallbacks(lambda _: None, lambda failure: failure.value)
