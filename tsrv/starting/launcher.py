"""
The start of a program: every module is initialised when its needs are ready.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from ..queuing.history import explain
from ..queuing.slices import SlicedWork
from ..wrapper import State
from .member import Member
from .program import Skipped

__all__ = ["Launcher"]


class Launcher:
    """
    Initialises modules in the order of their needs, and skips those whose needs
    have failed.

    @ivar work: Starts or skips what is due.

    Members that may be due to start or to skip are put into a queue, which
    is worked off in slices. So a chain of ten thousand modules that are ready
    at once neither exhausts the stack nor blocks the reactor.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._queue: deque[Member] = deque()
        self._stopped = False
        self.work = SlicedWork(reactor, self._step).now

    def begin(self, members: Mapping[str, Member]) -> None:
        """
        Connect the members with their needs, and start those without needs.

        @param members: All members, by name.
        """
        for member in members.values():
            for need in member.needs:
                needed = members[need]
                member.dependencies.append(needed)
                needed.dependents.append(member)
                if not needed.ready:
                    member.unreadyDependencies += 1
            self._queue.append(member)
        self.work()

    def stop(self) -> None:
        """
        Start no more members.
        """
        self._stopped = True

    def readyChanged(self, member: Member) -> None:
        """
        Count a member for its dependents, which may have to be started.
        """
        change = -1 if member.ready else 1
        for dependent in member.dependents:
            dependent.unreadyDependencies += change
            if dependent.unreadyDependencies == 0 and not dependent.started:
                dependent.waitedFor = member
                self._queue.append(dependent)

    def skipDependents(self, member: Member) -> None:
        """
        Skip the modules that need a member that has failed or was closed.
        """
        self._queue.extend(each for each in member.dependents if not each.started)

    def _step(self) -> bool:
        if self._stopped or not self._queue:
            return False
        member = self._queue.popleft()
        if member.started:
            pass
        elif member.unreadyDependencies == 0:
            self._start(member)
        elif member.skippedFor is None:
            failed = [each.name for each in member.dependencies if each.failed]
            if failed:
                self._skip(member, failed[0])
        return True

    def _start(self, member: Member) -> None:
        member.started = True
        member.skippedFor = None
        # The module may have been initialised by hand before.
        if member.timeout is not None and not member.ready:
            call = self._reactor.callLater(member.timeout, self._timedOut, member)
            member.timer = call
        # The wrapper logs the failure.
        member.wrapper.initialize().addErrback(lambda failure: None)

    def _skip(self, member: Member, failed: str) -> None:
        member.skippedFor = failed
        # A module that was initialised by hand is left alone.
        if member.wrapper.state is State.NEW:
            member.wrapper.fail(Skipped(member.name, failed))

    def _timedOut(self, member: Member) -> None:
        member.timer = None
        last = member.wrapper.lastError
        message = f"not ready within {member.timeout:g} seconds"
        if last is not None:
            message += f", because of {explain(last)}"
        error = TimeoutError(message)
        error.__cause__ = last
        member.wrapper.fail(error)
