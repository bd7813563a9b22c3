"""
The module's own word for its loss: C{whenLost()}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .foreign import asDeferred, errorOf, observe

__all__ = ["StaleWatch", "Watch"]


class StaleWatch(TypeError):
    """
    C{whenLost()} returned the Deferred of the last loss once more, so no attempt can
    ever succeed.
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
            called late, when the module is not ready any more.
        """
        self._whenLost = whenLost
        self._lost = lost
        # What whenLost() returned last, and whether it has fired.
        self._current: object = self
        self._fired = False

    def ask(self) -> Deferred[Any] | None:
        """
        Call C{whenLost()}, and do not wait yet.

        @return: Its Deferred; L{None} if there is nothing new to wait for.
        @raise TypeError: It returned something else.
        @raise StaleWatch: It returned the Deferred of the last loss.
        """
        if self._whenLost is None:
            return None
        answer = self._whenLost()
        if answer is self._current:
            if self._fired:
                raise StaleWatch(
                    "whenLost() returned the Deferred of the last loss: "
                    "it has to return a new one for each initialisation"
                )
            # The module was reset, and goes on with the same Deferred.
            return None
        deferred = asDeferred(answer)
        if deferred is None:
            raise TypeError(f"whenLost() returned {answer!r}, not a Deferred")
        self._current, self._fired = answer, False
        return deferred

    def begin(self, deferred: Deferred[Any] | None) -> None:
        """
        Wait for what L{ask} has returned.
        """
        if deferred is not None:
            observe(deferred, self._noticeLoss, self._current)

    def forget(self, deferred: Deferred[Any] | None) -> None:
        """
        Do not wait for what L{ask} has returned.
        """
        self._current = self
        if deferred is not None:
            deferred.addErrback(lambda _: None)

    def _noticeLoss(self, reason: object, answer: object) -> None:
        if answer is self._current:
            self._fired = True
            self._lost(errorOf(reason) if isinstance(reason, Failure) else None)
