"""
SQLite, behind threads.

The reactor's thread never touches the file. One thread writes, and as many as
are allowed read; a second one only when the first has been busy for a while,
because to hand many statements to one thread at once is faster than to hand
them one by one to several. What is asked for while a thread is busy waits, and
is handed over together when it is back.

A thread that runs beside the reactor costs both of them: they take the
interpreter from each other with each statement and each packet, and have to be
woken up for it. So what is handed over are statements that came together, as
long as each turn of the reactor brings more of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .interface import (
    DatabaseUnavailable,
    Row,
    Schema,
    Settings,
    Statement,
)
from .sqlitebatch import (
    LATER,
    Batch,
    Call,
    Reads,
    Writes,
    unavailable,
)
from .sqlitefile import (
    File,
    Link,
)
from .sqlitethread import (
    Line,
    ThreadWorker,
    Worker,
)

__all__ = ["SQLite"]

_MOST: Final = 256
"""
How many statements a batch may have.
"""

_READ_TOGETHER: Final = 16
_WRITTEN_TOGETHER: Final = 3
"""
How many statements are answered in one turn of the reactor. Those who have
waited for one transaction are not to come back all together, while nobody else
has a turn.
"""

_LONGEST: Final = 0.01
"""
How long statements may be gathered, in seconds.
"""

_QUIET: Final = 60.0
"""
For how many seconds the same trouble is not told again.
"""

_NO_ANSWER: Final = "the disk does not answer"


class _Waiters:
    """
    Deferreds that fire together. To cancel one takes constant time.
    """

    def __init__(self) -> None:
        self._waiting: dict[Deferred[None], None] = {}

    def wait(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred(self._leave)
        self._waiting[waiter] = None
        return waiter

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            # The callback of one may have cancelled another.
            if not each.called:
                each.callback(None)

    def _leave(self, waiter: Deferred[None]) -> None:
        self._waiting.pop(waiter, None)


class _Side:
    """
    What is to be read, or to be written.

    @ivar waiting: What no thread has taken yet, in order.
    @ivar lines: The threads.
    @ivar most: How many there may be.
    @ivar rest: Until when there will not be one more.
    @ivar done: What has been carried out, and is to be answered, in order.
    @ivar together: How many are answered in one turn of the reactor.
    @ivar settling: When the next are.
    @ivar gathering: When it is seen whether there are more to hand over.
    @ivar gathered: How many there were before.
    @ivar since: Since when they are gathered.
    """

    def __init__(
        self,
        name: str,
        makeBatch: Callable[[Sequence[Call]], Batch],
        open: Callable[[Link], None],  # noqa: A002
        most: int,
        together: int,
    ) -> None:
        self.name = name
        self.open = open
        self.waiting: OrderedDict[Call, None] = OrderedDict()
        self.lines: list[Line] = []
        self._makeBatch = makeBatch
        self.most = most
        self.rest = 0.0
        self.done: deque[Call] = deque()
        self.together = together
        self.settling: IDelayedCall | None = None
        self.gathering: IDelayedCall | None = None
        self.gathered = 0
        self.since = 0.0

    def takeBatch(self) -> Batch:
        waiting = self.waiting
        count = min(len(waiting), _MOST)
        return self._makeBatch([waiting.popitem(last=False)[0] for _ in range(count)])

    def takeAll(self) -> list[Call]:
        taken = list(self.waiting)
        self.waiting.clear()
        return taken

    def putBack(self, calls: Sequence[Call]) -> None:
        for call in reversed(calls):
            if not call.over:
                self.waiting[call] = None
                self.waiting.move_to_end(call, last=False)

    def leave(self, call: Call) -> None:
        self.waiting.pop(call, None)


class SQLite:
    """
    SQLite's connections to one file, opened once and closed once.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        schemas: Sequence[Schema] = (),
        settings: Settings | None = None,
        createWorker: Callable[[Any, str], Worker] = ThreadWorker,
    ) -> None:
        """
        @param reactor: Provides time, and the thread to come back to.
        @param path: Where the file is; it is made if it is not there.
        @param schemas: The tables that have to be there.
        @param settings: How it is used.
        @param createWorker: Makes a thread of a name.
        """
        self._reactor = reactor
        self._settings = settings = settings or Settings()
        self._createWorker = createWorker
        self._file = file = File(path, tuple(schemas), settings)
        readers = max(1, settings.connections)
        self._reads = _Side("reader", Reads, file.openReader, readers, _READ_TOGETHER)
        self._writes = _Side("writer", Writes, file.openWriter, 1, _WRITTEN_TOGETHER)
        self._sides = (self._writes, self._reads)
        self._why: str | None = "has not been opened"
        self._count = 0
        self._begun = False
        self._over = False
        self.stuck = 0
        self._wrong = ""
        self._told = 0.0
        self._lost = _Waiters()
        self._ended = _Waiters()

    def open(self) -> Deferred[None]:
        """
        @see: L{Engine.open<tsrv.databases.Engine.open>}
        """
        if self._begun or self._over:
            return fail(DatabaseUnavailable("the database was opened before"))
        self._begun = True
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            for side in self._sides:
                await self._start(side)
        except CancelledError:
            self._end("is closed")
            raise
        except Exception:
            self._end("is closed")
            await self._whenEnded()
            raise
        self._why = None

    def _start(self, side: _Side) -> Deferred[None]:
        try:
            worker = self._createWorker(self._reactor, f"tsrv-sqlite-{side.name}")
        except RuntimeError as error:
            return fail(DatabaseUnavailable(f"cannot start a thread: {error}", LATER))
        line = Line(self._reactor, worker, self._settings, self, self._file.check)
        side.lines.append(line)
        return line.open(side.open).addErrback(self._notStarted, line)

    def _notStarted(self, reason: Failure, line: Line) -> Failure:
        line.end()
        return reason

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.read<tsrv.databases.IDatabase.read>}
        """
        return self._ask(self._reads, statement, parameters)

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.write<tsrv.databases.IDatabase.write>}
        """
        return self._ask(self._writes, statement, parameters)

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{IDatabase.whenLost<tsrv.databases.IDatabase.whenLost>}
        """
        return self._lost.wait() if not self._over else succeed(None)

    def close(self) -> Deferred[None]:
        """
        @see: L{IDatabase.close<tsrv.databases.IDatabase.close>}
        """
        self._end("is closed")
        return self._whenEnded()

    def _ask(
        self, side: _Side, statement: Statement, parameters: tuple[object, ...]
    ) -> Deferred[list[Row]]:
        if self._why is not None:
            return fail(DatabaseUnavailable(f"the database {self._why}", LATER))
        if len(self._reads.waiting) + len(self._writes.waiting) >= self._settings.limit:
            return fail(
                DatabaseUnavailable(
                    f"{self._settings.limit} statements wait already", LATER
                )
            )
        self._count += 1
        call = Call(statement, parameters, self._count, side.leave)
        side.waiting[call] = None
        if side.gathering is None:
            side.since = self._reactor.seconds()
            self._gather(side)
        return call.answer

    def _gather(self, side: _Side) -> None:
        side.gathered = len(side.waiting)
        side.gathering = self._reactor.callLater(0, self._gathered, side)

    def _gathered(self, side: _Side) -> None:
        side.gathering = None
        waiting = len(side.waiting)
        # Those who are still to be answered may come back with another one.
        more = side.done or waiting > side.gathered
        if (
            more
            and waiting < _MOST
            and 0 <= self._reactor.seconds() - side.since < _LONGEST
        ):
            self._gather(side)
        else:
            self._dispatch(side)

    def _dispatch(self, side: _Side) -> None:
        if not side.waiting:
            return
        free = None
        for line in side.lines:
            if line.idle:
                free = line
            elif not line.isSlow:
                # It will soon be back.
                return
        if free is not None:
            batch = side.takeBatch()
            batch.latest = self._count
            free.carryOut(batch)
        elif len(side.lines) < side.most and self._reactor.seconds() >= side.rest:
            self._start(side).addCallbacks(
                lambda _: self._dispatch(side), self._notMore, errbackArgs=(side,)
            )

    def _notMore(self, reason: Failure, side: _Side) -> None:
        if not self._over:
            # Those that are there have to do.
            side.rest = self._reactor.seconds() + self._settings.connectTimeout
            self._log.warn(
                "Cannot use one more connection for reading: {reason}",
                reason=reason.value,
            )

    def _sideOf(self, line: Line) -> _Side:
        return self._writes if line in self._writes.lines else self._reads

    def _putBack(self, side: _Side, calls: Sequence[Call]) -> None:
        if self._over:
            self._failAll(calls)
        else:
            side.putBack(calls)

    def _failAll(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call.fail(DatabaseUnavailable(f"the database {self._why}", LATER))

    def slow(self, line: Line) -> None:
        """
        Let what has not begun go another way.
        """
        side, batch = self._sideOf(line), line.batch
        done: list[Call] = []
        if batch is not None:
            done = batch.takeDone()
            self._putBack(side, batch.takeBack())
        self._dispatch(side)
        for call in done:
            call.settle()

    def finished(self, line: Line, batch: Batch) -> None:
        """
        Answer what has been carried out.
        """
        side = self._sideOf(line)
        done = batch.takeDone()
        self._putBack(side, batch.takeBack())
        if batch.refused:
            # Those that came before it began have waited as long.
            for call in list(side.waiting):
                if call.number <= batch.latest:
                    side.leave(call)
                    call.error = unavailable(batch.refused)
                    done.append(call)
        for call in done:
            if isinstance(call.error, DatabaseUnavailable):
                self._complain(call.error)
                break
        if batch.lost:
            self._lose(batch.lost, done)
        elif side.waiting and side.gathering is None:
            side.since = self._reactor.seconds()
            self._gather(side)
        side.done.extend(done)
        if side.settling is None:
            self._settle(side)

    def _complain(self, error: DatabaseUnavailable) -> None:
        """
        Say that something is wrong, though not with each statement again.
        """
        now = self._reactor.seconds()
        if error.code != self._wrong or not 0 <= now - self._told < _QUIET:
            self._wrong, self._told = error.code, now
            self._log.warn("{reason}", reason=error)

    def _settle(self, side: _Side) -> None:
        """
        Answer some, and the others in the turns that follow.
        """
        side.settling = None
        done, left = side.done, side.together
        # The callback of one may close the database.
        while done and (left or self._over):
            left -= 1
            done.popleft().settle()
        if done:
            side.settling = self._reactor.callLater(0, self._settle, side)

    def hung(self, line: Line) -> None:
        """
        Answer what nobody knows the end of.
        """
        self.stuck += 1
        batch = line.batch
        done: list[Call] = []
        if batch is not None:
            done = batch.takeDone()
            for call in batch.takeBack():
                call.error = unavailable(_NO_ANSWER)
                done.append(call)
            for call in batch.calls:
                call.error = batch.unknown()
                done.append(call)
        self._lose(_NO_ANSWER, done)
        for call in done:
            call.settle()

    def cameBack(self) -> None:
        """
        Count one thread less.
        """
        self.stuck -= 1

    def ended(self, line: Line) -> None:
        """
        Forget a thread.
        """
        self._sideOf(line).lines.remove(line)
        if self._over and not self._reads.lines and not self._writes.lines:
            self._ended.fire()

    def _lose(self, reason: str, done: Sequence[Call]) -> None:
        for call in done:
            if call.error is None:
                call.settle()
        if not self._over:
            self._log.warn("Lost the database: {reason}", reason=reason)
            self._end("was lost")

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._why = why
        for side in self._sides:
            if side.gathering is not None:
                side.gathering.cancel()
            if side.settling is not None:
                side.settling.cancel()
                self._settle(side)
        waiting = [*self._reads.takeAll(), *self._writes.takeAll()]
        for line in [*self._reads.lines, *self._writes.lines]:
            line.end()
        self._lost.fire()
        self._failAll(waiting)

    def _whenEnded(self) -> Deferred[None]:
        if self._over and not self._reads.lines and not self._writes.lines:
            return succeed(None)
        return self._ended.wait()
