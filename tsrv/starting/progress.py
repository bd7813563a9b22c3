"""
The progress of a program: its status, its waiters, and the time it took to start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..asyncmodule import timeOfDay
from ..errors import Closed
from ..queuing.awaiting import fired
from ..queuing.home import homeOf
from ..queuing.waiters import Waiters
from .program import StartupFailed, Status
from .tally import Tally

__all__ = ["Progress"]

_log = Logger("tsrv.startup")

# Maximum number of Deferreds that wait for the program to become ready, or to stop.
MAX_WAITERS: Final = 10_000

_FINAL_STATUSES: Final = (Status.STOPPING, Status.STOPPED)

_makeClosed: Final = partial(Closed, "the program is stopping")


class Progress:
    """
    Derives the status of a program from the tally of its modules.

    @ivar status: The current L{Status}.
    @ivar began: The time at which the start-up began, by the reactor.
    @ivar beganAt: The same as a time of day, in seconds since 1970 in UTC.
    @ivar becameReady: The seconds from the beginning until the program was ready for
        the first time.
    @ivar criticalPath: The names of the modules that decided C{becameReady}.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        tally: Tally,
        *,
        changed: Callable[[], None],
        describe: Callable[[], str],
        stopProgram: Callable[[int], object] | None,
    ) -> None:
        """
        @param changed: Called after each change of the status.
        @param describe: Returns the table of the start-up for the log.
        @param stopProgram: Stops the program with an exit status; L{None} if the
            program keeps running when a required module has failed.
        """
        self.status = Status.NEW
        self.began: float | None = None
        self.beganAt: float | None = None
        self.becameReady: float | None = None
        self.criticalPath: list[str] = []
        self._reactor = reactor
        self._tally = tally
        self._changed = changed
        self._describe = describe
        self._stopProgram = stopProgram
        self._waiters = Waiters(MAX_WAITERS, "for the program to become ready")

    @property
    def isReady(self) -> bool:
        """
        Whether every required module is ready, and the program is not stopping.
        """
        return self.status in (Status.READY, Status.DEGRADED)

    @property
    def elapsed(self) -> float:
        """
        Seconds since the start-up began; 0 before.
        """
        return 0.0 if self.began is None else self._reactor.seconds() - self.began

    def whenReady(self) -> Deferred[None]:
        """
        Wait until every required module is ready.
        """
        homeOf(self._reactor).check("whenReady")
        if self.status in _FINAL_STATUSES:
            return fired(_makeClosed())
        if self.status is not Status.NEW and self._tally.failed:
            return fired(self._tally.explainFailure()())
        return fired() if self.isReady else self._waiters.wait()

    def begin(self) -> None:
        """
        The start-up begins.
        """
        self.began, self.beganAt = self._reactor.seconds(), timeOfDay(self._reactor)
        self._set(Status.STARTING)

    def update(self) -> None:
        """
        A module has changed its state.
        """
        if self.status is not Status.NEW and self.status not in _FINAL_STATUSES:
            self._set(self._tally.status(self.becameReady is not None))

    def announceStop(self) -> None:
        """
        The program will stop soon.
        """
        if self.status not in _FINAL_STATUSES:
            waiters = self._waiters.takeAll()
            self._set(Status.STOPPING)
            waiters.fail(_makeClosed)

    def stopped(self) -> None:
        """
        All modules are closed.
        """
        self._set(Status.STOPPED)

    def _set(self, status: Status) -> None:
        if status is self.status:
            return
        self.status = status
        if self.isReady:
            waiters = self._waiters.takeAll()
            if self.becameReady is None:
                self._becameReadyFirst()
            self._changed()
            waiters.succeed()
        elif status is Status.FAILED:
            # Foreign code may initialise the failed module again. The waiters get the
            # error of this failure.
            waiters, makeError = self._waiters.takeAll(), self._tally.explainFailure()
            self._failed(makeError())
            self._changed()
            waiters.fail(makeError)
        else:
            self._changed()

    def _becameReadyFirst(self) -> None:
        self.becameReady = round(self.elapsed, 6)
        member = self._tally.lastReady
        while member is not None:
            self.criticalPath.append(member.name)
            member = member.waitedFor
        self.criticalPath.reverse()
        self._tally.isTabled = True
        _log.info("Start-up: {table}", table=self._describe(), seconds=self.becameReady)

    def _failed(self, error: StartupFailed) -> None:
        # The wrapper has logged the error of an attempt.
        isLogged = error.__cause__ is not None
        _log.critical(
            "{module} is required, and failed{reason}; {outcome}",
            module=error.name,
            reason="" if isLogged else f": {error.reason}",
            outcome="stopping" if self._stopProgram else "staying up to report it",
        )
        if self._stopProgram is not None:
            try:
                self._stopProgram(1)
            except BaseException:
                _log.failure("Cannot stop the program")
