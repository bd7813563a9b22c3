"""
The shutdown of a program: each module is closed after its dependents.
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
    Closes modules in reverse order of their start, in parallel where they are
    independent. An error of one module does not stop the shutdown of the others.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        members: Collection[Member],
        finished: Callable[[], None],
    ) -> None:
        """
        @param finished: Called when all modules are closed.
        """
        self._members = members
        self._finished = finished
        self._openCount = len(members)
        self._closable: deque[Member] = deque()
        self._work = SlicedWork(reactor, self._step, self._sliceEnded)

    def begin(self) -> None:
        """
        Close the modules without dependents, then the modules that they waited for,
        and so on.
        """
        for member in self._members:
            member.openDependents = len(member.dependents) + len(member.followers)
            if not member.openDependents:
                self._closable.append(member)
        self._work.now()

    def _step(self) -> bool:
        if not self._closable:
            return False
        member = self._closable.popleft()
        member.wrapper.close().addBoth(self._closed, member)
        return True

    def _closed(self, result: Failure | None, member: Member) -> None:
        if result is not None:
            member.closeError = result.value
        for earlier in (*member.dependencies, *member.predecessors):
            earlier.openDependents -= 1
            if not earlier.openDependents:
                self._closable.append(earlier)
        self._openCount -= 1
        self._work.now()

    def _sliceEnded(self, more: bool) -> None:
        if not more and not self._openCount:
            self._finished()
