"""
The module's own report of its loss: C{whenLost()}.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .foreign import abandonCoroutine, asDeferred, errorOf, observe, readResult
from .needsasyncio import NeedsAsyncio

__all__ = ["StaleWatch", "Watch"]


class StaleWatch(TypeError):
    """
    C{whenLost()} returned the Deferred of the last loss again, so no attempt can
    succeed.
    """


class Watch:
    """
    Asks a module for the Deferred of its next loss, and waits for it.
    """

    def __init__(
        self,
        whenLost: Callable[[], object] | None,
        lost: Callable[[BaseException | None], None],
    ) -> None:
        """
        @param whenLost: Returns the Deferred; L{None} if the module cannot be lost.
        @param lost: Called at each loss, with its reason if there is one. It may be
            called late, when the module is no longer ready.
        """
        self._whenLost = whenLost
        self._lost = lost
        # The last result of whenLost(), and whether it has fired.
        self._current: object = self
        self._fired = False
        self._watching: Deferred[Any] | None = None

    def end(self) -> None:
        """
        The module is closed: stop waiting for a loss.
        """
        abandonCoroutine(self._watching)
        self._watching = None

    def ask(self) -> Callable[[], None]:
        """
        Call C{whenLost()}.

        @return: A callable that begins to wait for its Deferred. Call it even if the
            attempt is over: the module may return the same Deferred again.
        @raise TypeError: C{whenLost()} returned something else.
        @raise NeedsAsyncio: C{whenLost()} needs asyncio.
        @raise StaleWatch: C{whenLost()} returned a Deferred that has reported a loss.
        """
        if self._whenLost is None:
            return _beginNothing
        answer = self._whenLost()
        if answer is self._current:
            if self._fired:
                raise StaleWatch(
                    "whenLost() returned the Deferred of the last loss: "
                    "it must return a new one for each initialisation"
                )
            # The module was reset, and keeps its Deferred.
            return _beginNothing
        deferred = asDeferred(answer)
        if deferred is None:
            raise TypeError(f"whenLost() returned {answer!r}, not a Deferred")
        if deferred.called and not deferred.paused:
            reason = readResult(deferred)
            if isinstance(reason, Failure) and isinstance(reason.value, NeedsAsyncio):
                reason.raiseException()
        abandonCoroutine(self._watching)
        self._watching = deferred
        self._current, self._fired = answer, False
        return partial(observe, deferred, self._noticeLoss, answer)

    def _noticeLoss(self, reason: object, answer: object) -> None:
        if answer is self._current:
            self._fired = True
            self._lost(errorOf(reason) if isinstance(reason, Failure) else None)


def _beginNothing() -> None:
    pass
