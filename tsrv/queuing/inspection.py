"""
The attributes of a wrapper that show its state.
"""

from __future__ import annotations

from collections.abc import Callable

from .history import History
from .holds import Holds
from .initialization import Initialization
from .observers import Observers
from .queue import CommandQueue
from .states import Lifecycle, State
from .stats import Stats

__all__ = ["Inspection"]


class Inspection:
    """
    The read-only part of L{QueuingWrapper<tsrv.QueuingWrapper>}.
    """

    limit: int
    history: History
    name: str
    _lifecycle: Lifecycle
    _initialization: Initialization
    _queue: CommandQueue
    _holds: Holds
    _observers: Observers[[]]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: {self._describe()}>"

    @property
    def state(self) -> State:
        """
        The current L{State}.
        """
        return self._lifecycle.state

    @property
    def since(self) -> float:
        """
        The time of the last change of L{state}, by the reactor, in seconds.
        """
        return self._lifecycle.since

    @property
    def pending(self) -> int:
        """
        The number of queued calls.
        """
        return self._queue.pending

    @property
    def oldest(self) -> float | None:
        """
        The age of the oldest queued call, in seconds; L{None} if no call is queued.
        """
        return self._queue.oldest

    @property
    def inProgress(self) -> int:
        """
        The number of calls in progress that tsrv tracks, or that were queued before.
        """
        return self._queue.running.count

    @property
    def paused(self) -> bool:
        """
        Whether the module has a holder, see L{pause<tsrv.QueuingWrapper.pause>}. This
        does not depend on its state.
        """
        return bool(self._holds)

    def isPausedBy(self, holder: object) -> bool:
        """
        Return whether this holder has paused the module.

        @param holder: The holder, as for L{pause<tsrv.QueuingWrapper.pause>}.
        """
        return holder in self._holds

    @property
    def stats(self) -> Stats:
        """
        Counters of calls: a copy, which does not change.
        """
        return self._queue.stats

    @property
    def attempts(self) -> int:
        """
        The number of attempts since the module was last ready.
        """
        return self._initialization.attempts

    @property
    def lastError(self) -> BaseException | None:
        """
        The reason why the module is not ready: the error of the last attempt, or of
        the loss; L{None} if the module is ready, or has given no reason.
        """
        return self._initialization.lastError

    def retryAfter(self) -> float | None:
        """
        Return the seconds after which a caller's retry makes sense: until the next
        attempt begins, or the attempt in progress ends; L{None} if they are unknown.
        """
        return self._initialization.retryAfter()

    def addObserver(self, observer: Callable[[], object]) -> None:
        """
        Register an observer. Registering it twice has no effect.

        @param observer: Called without arguments after each change of L{state}. It may
            call any method of the wrapper. Its errors are logged.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[], object]) -> None:
        """
        Unregister an observer. An unknown one is ignored.

        @param observer: The observer.
        """
        self._observers.remove(observer)

    def _describe(self) -> str:
        queued = f", {self.pending} queued" if self.pending else ""
        return f"{self.state.value}{queued}"
