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

    @ivar name: The name of the module in errors and in the log.
    @ivar limit: Maximum number of queued calls.
    @ivar history: The attempts, losses and pauses so far, and how long the attempts
        took and the calls waited.
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
        The time at which the current state was entered, by the reactor, in seconds.
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
        The number of calls in progress that tsrv tracks, or has queued before.
        """
        return self._queue.running.count

    @property
    def paused(self) -> bool:
        """
        Whether the module has a holder. This does not depend on its state.
        """
        return bool(self._holds)

    def isPausedBy(self, holder: object) -> bool:
        """
        @return: Whether this holder has paused the module.
        """
        return holder in self._holds

    @property
    def stats(self) -> Stats:
        """
        Counters of the calls that went through the queue.
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
        The reason why the module is not ready: the error of the last attempt, or
        of the loss.
        """
        return self._initialization.lastError

    def retryAfter(self) -> float | None:
        """
        @return: The seconds until the next attempt begins, or the attempt in progress
            ends, if they are known.
        """
        return self._initialization.retryAfter()

    def addObserver(self, observer: Callable[[], object]) -> None:
        """
        Register an observer, which is called without arguments after each change of
        L{state}. It may call any method of the wrapper.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[], object]) -> None:
        """
        Unregister an observer. An unknown one is ignored.
        """
        self._observers.remove(observer)

    def _describe(self) -> str:
        queued = f", {self.pending} queued" if self.pending else ""
        return f"{self.state.value}{queued}"
