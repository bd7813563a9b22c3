"""
The end of a program: every module is closed when those that need it are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..queuing.slices import SlicedWork
from .member import Member

__all__ = ["Shutdown"]


class Shutdown:
    """
    Closes modules in the opposite order of their start, at the same time where
    they have nothing to do with each other. Whatever one of them does about it,
    the others are closed.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        members: Collection[Member],
        over: Callable[[], None],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param members: The modules.
        @param over: Called when all are closed.
        """
        self._members = members
        self._over = over
        self._open = len(members)
        self._closable: deque[Member] = deque()
        self._work = SlicedWork(reactor, self._step, self._sliceEnded)

    def begin(self) -> None:
        """
        Close those that no other needs, and so on.
        """
        for member in self._members:
            member.using = len(member.dependents)
            if not member.using:
                self._closable.append(member)
        self._work.now()

    def _step(self) -> bool:
        if not self._closable:
            return False
        member = self._closable.popleft()
        member.wrapper.close().addBoth(self._closed, member)
        return True

    def _closed(self, result: Failure | None, member: Member) -> None:
        """
        A module is closed, or as good as that.
        """
        if result is not None:
            member.closeError = result.value
        for needed in member.suppliers:
            needed.using -= 1
            if not needed.using:
                self._closable.append(needed)
        self._open -= 1
        self._work.now()

    def _sliceEnded(self, more: bool) -> None:
        if not self._open:
            # One that is closed by what comes of this is none of these.
            self._open = -1
            self._over()
