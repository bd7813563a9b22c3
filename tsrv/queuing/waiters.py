"""
Those who wait for the same thing to happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, fail

from ..errors import QueueFull

__all__ = ["Waiters", "fire"]


class Waiters:
    """
    Deferreds that fire together. To cancel one takes constant time, and
    concerns no other.
    """

    __slots__ = ("_most", "_waiting", "_what")

    def __init__(self, most: int, what: str) -> None:
        """
        @param most: How many may wait.
        @param what: What they wait for, in a few words.
        """
        self._most = most
        self._what = what
        self._waiting: dict[Deferred[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._waiting

    def wait(self) -> Deferred[None]:
        """
        @return: One more Deferred; it fails with L{QueueFull} if too many are
            waiting already.
        """
        if len(self._waiting) >= self._most:
            return fail(QueueFull(f"{self._most} wait already {self._what}"))
        waiter: Deferred[None] = Deferred(self._leave)
        self._waiting[waiter] = None
        return waiter

    def takeAll(self) -> list[Deferred[None]]:
        """
        Take out all who wait; those who come later wait for something else.
        """
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def _leave(self, waiter: Deferred[None]) -> None:
        self._waiting.pop(waiter, None)


def fire(
    waiters: Iterable[Deferred[None]],
    makeError: Callable[[], BaseException] | None = None,
) -> None:
    """
    Fire those who are still waiting.

    @param makeError: Makes the error for each; L{None} for success.
    """
    for waiter in waiters:
        # The callback of one may have cancelled another.
        if not waiter.called:
            if makeError is None:
                waiter.callback(None)
            else:
                waiter.errback(makeError())
