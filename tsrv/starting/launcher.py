"""
The start of a program: each module is initialised as soon as its needs are ready.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from twisted.internet.interfaces import IReactorTime

from ..queuing.history import explain
from ..queuing.slices import SlicedWork
from ..queuing.states import HEALTHY_STATES
from ..wrapper import IllegalTransition, State
from .member import Member
from .program import Skipped

__all__ = ["Launcher"]


class Launcher:
    """
    Initialises modules in the order of their needs, and skips those whose needs have
    failed.

    Members that may be due to start or to skip go into a queue, and the work is done in
    slices. So a chain of ten thousand modules that are ready at once neither exhausts
    the stack nor blocks the reactor.
    """

    def __init__(
        self, reactor: IReactorTime, changed: Callable[[Member], None]
    ) -> None:
        """
        @param changed: Called after a change that the wrapper does not report.
        """
        self._reactor = reactor
        self._changed = changed
        self._queue: deque[Member] = deque()
        self._begun = False
        self._stopped = False
        self._work = SlicedWork(reactor, self._step)

    def begin(self, members: Iterable[Member]) -> None:
        """
        Start the members that wait for no other member.

        @param members: All members, connected.
        """
        self._begun = True
        self._queue.extend(members)
        self.work()

    def stop(self) -> None:
        """
        Do not start further members.
        """
        self._stopped = True

    def work(self) -> None:
        """
        Start or skip the members that are due.
        """
        if self._queue:
            self._work.now()

    def want(self, member: Member) -> None:
        """
        Start a lazy member when its needs are ready. During the shutdown the member is
        closed instead: a dependent that is being closed must not wait for it.
        """
        member.isWanted = True
        if self._stopped:
            member.wrapper.close()
        elif self._begun:
            self._queue.append(member)
            self.work()

    def availableChanged(self, member: Member) -> None:
        """
        Count a member for its dependents, and queue dependents that can start.
        """
        change = -1 if member.available else 1
        for dependent in member.dependents:
            dependent.unavailableDependencies += change
            if member.available:
                self._waitedFor(dependent, member)

    def settledChanged(self, member: Member) -> None:
        """
        Count a member for its followers, and queue followers that can start.
        """
        change = -1 if member.settled else 1
        for follower in member.followers:
            follower.unsettledPredecessors += change
            if member.settled:
                self._waitedFor(follower, member)

    def _waitedFor(self, waiting: Member, member: Member) -> None:
        if not waiting.started and _canStart(waiting):
            waiting.waitedFor = member
            self._queue.append(waiting)

    def skipDependents(self, member: Member) -> None:
        """
        Skip the modules that need a member that has failed or was closed.
        """
        self._queue.extend(each for each in member.dependents if not each.started)

    def skip(self, member: Member, failed: Member) -> None:
        """
        Skip a member until the failed member that it needs is available.
        """
        member.started = False
        # A lazy module refuses its first call now, so that call cannot initialise it.
        member.isWanted = True
        error = Skipped(member.name, failed.name)
        wrapper = member.wrapper

        def giveUp() -> None:
            # An observer may have made the failed module ready, which starts this one.
            if not member.started:
                with suppress(IllegalTransition):
                    wrapper.fail(error)

        if wrapper.state in HEALTHY_STATES:
            # reset() closes the module; the observer prevents another attempt.
            wrapper.addObserver(giveUp)
            wrapper.reset(error)
            wrapper.removeObserver(giveUp)
        giveUp()

    def checkTime(self, member: Member) -> None:
        """
        Start the timer of C{timeout} when the first attempt has begun, and stop
        it when the module is ready or has failed.
        """
        if not member.isTimed:
            return
        wrapper, timeout = member.wrapper, member.timeout
        if timeout is None or wrapper.state not in (State.INITIALIZING, State.RETRYING):
            member.stopTimer()
        elif member.timer is None and wrapper.attempts:
            member.timer = self._reactor.callLater(timeout, self._timedOut, member)

    def _step(self) -> bool:
        if self._stopped or not self._queue:
            return False
        member = self._queue.popleft()
        if member.started:
            pass
        elif member.isWanted and _canStart(member):
            self._start(member)
        elif member.startsAnew or member.wrapper.state is State.NEW:
            # Other code may have initialised the module: do not touch it then.
            failed = next((each for each in member.dependencies if each.failed), None)
            if failed is not None and member.startsAnew:
                member.startsAnew = False
                self._changed(member)
            elif failed is not None:
                self.skip(member, failed)
        return True

    def _start(self, member: Member) -> None:
        member.started = member.isTimed = True
        # The wrapper logs the failure.
        member.wrapper.initialize().addErrback(lambda failure: None)
        # Other code may have initialised the module before.
        self.checkTime(member)

    def _timedOut(self, member: Member) -> None:
        member.timer = None
        last = member.wrapper.lastError
        message = f"not ready within {member.timeout:g} s"
        if last is not None:
            message += f"; last error: {explain(last)}"
        error = TimeoutError(message)
        error.__cause__ = last
        member.wrapper.fail(error)


def _canStart(member: Member) -> bool:
    return not (member.unavailableDependencies or member.unsettledPredecessors)
