"""
A thread with a connection to SQLite's file, as the reactor's thread sees it.

It does one thing at a time: opens its connection, carries out batches, closes
the connection. The reactor's clock says when that takes too long: then it is
interrupted; and if that is of no use, because the disk does not answer, nobody
waits for it any more. It closes its connection when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from .interface import (
    DatabaseUnavailable,
    Settings,
)
from .sqlitebatch import (
    LATER,
    Batch,
)
from .sqlitefile import Link

__all__ = ["Line", "Owner", "ThreadWorker", "Worker"]

PATIENCE: Final = 0.02
"""
How long a batch may take before it is worth more than to wait for it, in
seconds.
"""

_AGAIN: Final = 0.1
"""
How long to wait for what was interrupted, in seconds: it may have been between
two statements, which nobody can interrupt.
"""


class Worker(Protocol):
    """
    Does one thing after the other, in a thread of its own.
    """

    def do(self, task: Callable[[], None]) -> None:
        """
        Do one thing more.
        """

    def quit(self, ended: Callable[[], None]) -> None:
        """
        End when all is done.

        @param ended: Called in the reactor's thread, afterwards.
        """


class ThreadWorker:
    """
    A worker that is a thread. The process need not wait for it to end.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param reactor: Provides the thread in which C{ended} is called.
        @param name: The thread's name.
        """
        self._reactor = reactor
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, task: Callable[[], None]) -> None:
        """
        @see: L{Worker.do}
        """
        self._tasks.put(task)

    def quit(self, ended: Callable[[], None]) -> None:
        """
        @see: L{Worker.quit}
        """
        self._tasks.put(lambda: self._reactor.callFromThread(self._join, ended))
        self._tasks.put(None)

    def _run(self) -> None:
        for task in iter(self._tasks.get, None):
            task()

    def _join(self, ended: Callable[[], None]) -> None:
        # It has nothing left to do.
        self._thread.join()
        ended()


class Owner(Protocol):
    """
    Who has a thread.
    """

    def slow(self, line: Line) -> None:
        """
        What the thread does takes a while.
        """

    def finished(self, line: Line, batch: Batch) -> None:
        """
        The thread has carried out a batch, and can have another.
        """

    def hung(self, line: Line) -> None:
        """
        The thread does not come back.
        """

    def ended(self, line: Line) -> None:
        """
        There is no such thread any more, or nobody waits for it.
        """

    def cameBack(self) -> None:
        """
        One for which nobody waits any more has ended.
        """


class Line:
    """
    A thread with a connection.

    @ivar idle: Whether it can have a batch.
    @ivar isSlow: Whether what it does takes a while.
    @ivar batch: What it carries out.
    """

    def __init__(
        self,
        reactor: Any,
        worker: Worker,
        settings: Settings,
        owner: Owner,
        check: Callable[[], None],
    ) -> None:
        """
        @param reactor: Provides the time, and the reactor's thread.
        @param worker: The thread.
        @param settings: How long things may take.
        @param owner: Who is told.
        @param check: See L{Batch.carryOut}.
        """
        self.idle = False
        self.isSlow = False
        self.batch: Batch | None = None
        self._reactor = reactor
        self._worker = worker
        self._settings = settings
        self._owner = owner
        self._check = check
        self._link = Link()
        self._opening: Deferred[None] | None = None
        self._busy = False
        self._ending = False
        self._gone = False
        self._elapsed = 0.0
        self._limit = 0.0
        self._timer: IDelayedCall | None = None

    def open(self, open: Callable[[Link], None]) -> Deferred[None]:  # noqa: A002
        """
        Open the connection.

        @param open: Opens it, in the thread.
        @return: A Deferred that fails with what C{open} raises, and with
            L{DatabaseUnavailable} if it takes too long or is ended.
        """

        def task() -> None:
            try:
                open(self._link)
            except Exception as error:
                result: Exception | None = error
            else:
                result = None
            self._reactor.callFromThread(self._opened, result)

        opening = self._opening = Deferred()
        settings = self._settings
        self._begin(settings.connectTimeout + settings.statementTimeout)
        self._worker.do(task)
        return opening

    def carryOut(self, batch: Batch) -> None:
        """
        Carry out a batch.
        """

        def task() -> None:
            connection = self._link.connection
            assert connection is not None
            batch.carryOut(connection, self._check)
            self._reactor.callFromThread(self._finished, batch)

        self.batch = batch
        self._begin(self._settings.statementTimeout)
        self._worker.do(task)

    def end(self) -> None:
        """
        Close the connection, and end the thread, when it has finished what it
        does.
        """
        if not self._ending:
            self._ending = True
            if self._opening is not None:
                self._link.interrupt()
            self._worker.do(self._link.close)
            self._worker.quit(self._ended)
            if not self._busy:
                self._close()
            self._answer(DatabaseUnavailable("the database is closed", LATER))

    def _begin(self, limit: float) -> None:
        self.idle = self.isSlow = False
        self._busy = True
        self._limit = limit
        self._elapsed = 0.0
        self._wait(min(PATIENCE, limit))

    def _wait(self, seconds: float) -> None:
        # What is added up does not jump when somebody sets the system's clock.
        self._elapsed += seconds
        self._timer = self._reactor.callLater(seconds, self._look)

    def _done(self) -> None:
        self._busy = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _close(self) -> None:
        self._begin(self._settings.statementTimeout)

    def _answer(self, error: Exception | None) -> None:
        opening, self._opening = self._opening, None
        if opening is not None and not opening.called:
            if error is None:
                opening.callback(None)
            else:
                opening.errback(error)

    def _look(self) -> None:
        self._timer = None
        settings = self._settings
        left = self._limit - self._elapsed
        if left > 0:
            if self._elapsed >= settings.connectTimeout:
                self._link.late.set()
            if not self.isSlow and (self.batch is None or self.batch.begun):
                self.isSlow = True
                self._owner.slow(self)
            self._wait(min(_AGAIN, left))
        elif left + settings.connectTimeout > 0:
            if self.batch is not None:
                self.batch.stopped = True
            self._link.interrupt()
            self._wait(min(_AGAIN, left + settings.connectTimeout))
        else:
            self._answer(DatabaseUnavailable("the disk does not answer", LATER))
            self.end()
            self._owner.hung(self)
            self._ended()

    def _opened(self, error: Exception | None) -> None:
        if self._gone:
            return
        self._done()
        if self._ending:
            self._close()
        else:
            self.idle = error is None
            self._answer(error)

    def _finished(self, batch: Batch) -> None:
        if self._gone:
            return
        self._done()
        self.batch = None
        if self._ending:
            self._close()
        else:
            self.idle = True
        self._owner.finished(self, batch)

    def _ended(self) -> None:
        if self._gone:
            self._owner.cameBack()
        else:
            self._gone = True
            self._done()
            self._owner.ended(self)
