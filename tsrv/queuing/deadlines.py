"""
How long a command may wait: one timer for a whole queue.

All commands of a queue may wait equally long, so the first in the queue is the
first to expire, and a timer for that one is enough. The exception are commands
that were put back at the head: they began to wait later than those behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .command import (
    Chain,
    Command,
)

__all__ = ["Deadlines"]

_BATCH: Final = 5000
"""
How many commands are looked through before the reactor gets its turn.
"""

_RESOLUTION: Final = 1e-6
"""
Two times this close are the same, in seconds.
"""


class Deadlines:
    """
    The one timer of a queue.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        timeout: float | None,
        waiting: Chain,
        expire: Callable[[Sequence[Command]], None],
        over: Callable[[], None],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param timeout: How long each command may wait, in seconds; L{None} for
            any time.
        @param waiting: The commands that wait.
        @param expire: Ends some of them.
        @param over: Called when the time of all that waited is up.
        """
        self._reactor = reactor
        self._timeout = timeout
        self._waiting = waiting
        self._expire = expire
        self._over = over
        self._call: IDelayedCall | None = None

    def watch(self) -> None:
        """
        A command begins to wait.
        """
        if self._call is None and self._timeout is not None:
            self._call = self._reactor.callLater(self._timeout, self._passed)

    def stop(self) -> None:
        """
        No command waits any more.
        """
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _passed(self) -> None:
        """
        End what has waited too long, and set the timer for what has not.
        """
        assert self._timeout is not None
        self._call = None
        now = self._reactor.seconds()
        late: list[Command] = []
        following: float | None = None
        for command in self._waiting:
            assert command.since is not None
            left = command.since + self._timeout - now
            if left > _RESOLUTION:
                following = left if following is None else min(left, following)
                if command.run == 0:
                    # All behind it have been waiting for less time.
                    break
            elif len(late) < _BATCH:
                late.append(command)
            else:
                following = 0
                break
        if following is None:
            self._over()
        else:
            self._call = self._reactor.callLater(following, self._passed)
        if late:
            self._expire(late)
