"""
The engine for SQLite.

B{Threads.} SQLite blocks, so the reactor's thread never touches the file. One
thread writes, and C{Settings.connections} threads read, each with its own
connection. A second reader gets work only after the first was busy for 20 ms:
handing many statements to one thread is faster than waking several threads.

B{Batches.} A thread and the reactor slow each other down, because only one of them
can run Python code. So the reactor gathers calls while each of its turns brings more
calls, for 10 ms at most, and hands them to the thread as one L{Batch}. The thread wakes
the reactor once for each batch. The reactor then settles a few calls in each turn, so
that the clients that waited for one transaction do not block it all at once.

B{The end of a statement.} A statement ends with its result or error, with the end of
its transaction (see L{sqlitethread<tsrv.databases.sqlitethread>}), or at a time limit:

  - After 20 ms the calls of the batch that have not begun return to the queue, where
    another reader can take them. The time limit is then for the running statement.
  - After C{Settings.statementTimeout} SQLite is interrupted, and the transaction
    is not committed.
  - If the thread does not return within a further C{Settings.connectTimeout}, the
    disk is stalled. The engine gives up the thread, and the database is lost; a write
    that has begun has an unknown outcome. The thread does not keep the process alive.

While the database is idle, a reader checks every two seconds that the file is still in
its place.

A cancelled call that has not begun never begins. If only a new connection can help,
for example because the file was moved, the database is lost: C{whenLost()} fires
before any call fails. Closing the database fails the calls that wait, and lets the
batches that have begun finish.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ..failures import Failures
from .engine import Call, Engine, Queue
from .interface import DatabaseUnavailable, Schema, Settings
from .sqlitefile import Connection, File
from .sqlitethread import Batch, Reads, Writes, refusedError

__all__ = ["SQLite"]

MAX_STUCK_THREADS: Final = 8
"""
Maximum number of threads that may be blocked on the stalled disk of one file.
"""

_stuckThreads: Final[Counter[str]] = Counter()
"""
The number of blocked threads for each path.
"""

_MAX_BATCH_SIZE: Final = 256
_MAX_GATHERING_SECONDS: Final = 0.01
_SLOW_AFTER_SECONDS: Final = 0.02
_WATCH_SECONDS: Final = 0.1
_FILE_SECONDS: Final = 2.0
_STALLED: Final = "the disk does not answer"


class _ConnectionThread:
    """
    A thread with a connection, as the reactor sees it. The thread carries out one task
    at a time, within a time limit.
    """

    def __init__(self, role: _Role) -> None:
        self.isIdle = self.isSlow = self.isStuck = self._isClosing = False
        self.batch: Batch | None = None
        self._role = role
        self._reactor = role.engine.reactor
        self._settings = role.engine.settings
        self._file = role.engine.file
        self._connection = Connection(role.engine.closing)
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._opening: Deferred[None] | None = None
        self._timer: IDelayedCall
        self._elapsed = self._limit = 0.0
        name = f"tsrv-sqlite-{role.name}"
        self._thread = Thread(target=self._runTasks, name=name, daemon=True)
        self._thread.start()

    def _runTasks(self) -> None:
        for task in iter(self._tasks.get, None):
            error: Exception | None = None
            try:
                task()
            except Exception as raised:
                error = raised
            self._reactor.callFromThread(self._returned, error)
        self._reactor.callFromThread(self._ended)

    def open(self) -> Deferred[None]:
        def task() -> None:
            self._file.enter()
            try:
                self._role.openConnection(self._connection)
            except Exception as error:
                raise self._file.openingError(error) from error

        self._opening = opening = Deferred[None]()
        self._watch(self._settings.connectTimeout + self._settings.statementTimeout)
        self._tasks.put(task)
        return opening

    def carryOut(self, batch: Reads | Writes) -> None:
        def task() -> None:
            assert self._connection.sqlite is not None
            batch.carryOut(self._connection.sqlite, self._file)

        self.batch = batch
        self._watch(self._settings.statementTimeout)
        self._tasks.put(task)

    def close(self) -> None:
        def task() -> None:
            # setAside() fails if the directory is read-only.
            with suppress(OSError):
                self._role.engine.replaced = self._file.setAside()
            try:
                self._connection.close()
            finally:
                self._file.leave()

        if not self._isClosing:
            self._isClosing = True
            self._tasks.put(task)
            self._tasks.put(None)
            if self.isIdle:
                self._watch(self._settings.statementTimeout)
            elif self._opening is not None:
                self._connection.interrupt()

    def _returned(self, error: Exception | None) -> None:
        if not self.isStuck:
            self._timer.cancel()
            if self._isClosing:
                self._watch(self._settings.statementTimeout)
            else:
                self.isIdle = True
            self._finish(error)

    def _ended(self) -> None:
        self._thread.join()
        if self.isStuck:
            _stuckThreads[self._role.engine.path] -= 1
        else:
            self._timer.cancel()
            self._role.engine.forget(self)

    def _finish(self, error: Exception | None) -> None:
        opening, self._opening = self._opening, None
        if self.batch is not None:
            self._role.finish(self.batch, error)
            self.batch = None
            self._role.engine.checkIdle()
        elif opening is not None and not opening.called:
            if error is None:
                opening.callback(None)
            else:
                opening.errback(error)

    def _watch(self, limit: float) -> None:
        self.isIdle = self.isSlow = False
        self._limit = limit
        self._elapsed = 0.0
        self._lookAfter(min(_SLOW_AFTER_SECONDS, limit))

    def _lookAfter(self, seconds: float) -> None:
        # A sum of delays does not change when the system's clock is set.
        self._elapsed += seconds
        self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        overtime = self._elapsed - self._limit
        overtimeLeft = self._settings.connectTimeout - overtime
        if overtime < 0:
            self._lookAfter(min(_WATCH_SECONDS, -overtime))
            if self.batch is not None and self.batch.begun and not self.isSlow:
                self.isSlow = True
                self._role.takeBack(self.batch)
        elif overtimeLeft > 0:
            self._lookAfter(min(_WATCH_SECONDS, overtimeLeft))
            if self.batch is not None:
                self.batch.stopped = True
            self._connection.interrupt()
        else:
            self.isStuck = True
            _stuckThreads[self._role.engine.path] += 1
            self.close()
            self._finish(DatabaseUnavailable(_STALLED))
            self._role.engine.forget(self)


class _Role:
    """
    The writer or the readers: the queued calls, and the threads for them.
    """

    def __init__(
        self,
        engine: SQLite,
        name: str,
        openConnection: Callable[[Connection], None],
        makeBatch: Callable[[Sequence[Call], Sequence[Call]], Reads | Writes],
        settledPerTurn: int,
    ) -> None:
        self.engine = engine
        self.name = name
        self.openConnection = openConnection
        self.queue = Queue()
        self.threads: list[_ConnectionThread] = []
        self._reactor = engine.reactor
        self._makeBatch = makeBatch
        self._gathering: IDelayedCall | None = None
        self._gatheringSince = 0.0
        self._gathered = 0
        self._finished: deque[Call] = deque()
        self._settledPerTurn = settledPerTurn
        self._settling: IDelayedCall | None = None

    def startThread(self) -> Deferred[None]:
        try:
            thread = _ConnectionThread(self)
        except RuntimeError as error:
            raise DatabaseUnavailable(f"cannot start a thread: {error}") from None
        self.threads.append(thread)
        return thread.open()

    def add(self, call: Call) -> None:
        call.queue = self.queue
        self.queue[call] = inf
        if self._gathering is None:
            self._gather()

    def _gather(self) -> None:
        self._gatheringSince = self._reactor.seconds()
        self._gatherForOneTurn()

    def _gatherForOneTurn(self) -> None:
        self._gathered = len(self.queue)
        self._gathering = self._reactor.callLater(0, self._gatherMore)

    def _gatherMore(self) -> None:
        self._gathering = None
        waiting = len(self.queue)
        # Clients whose calls are about to be settled may make further calls.
        isMoreExpected = bool(self._finished) or waiting > self._gathered
        seconds = self._reactor.seconds() - self._gatheringSince
        isTimeLeft = 0 <= seconds < _MAX_GATHERING_SECONDS
        if isMoreExpected and isTimeLeft and waiting < _MAX_BATCH_SIZE:
            self._gatherForOneTurn()
        else:
            self._dispatch()

    def _dispatch(self) -> None:
        idle = None
        for thread in self.threads:
            if thread.isIdle:
                idle = thread
            elif not thread.isSlow:
                # This thread will soon be idle.
                return
        if not self.queue:
            # All queued calls were cancelled.
            self.engine.checkIdle()
        elif idle is not None:
            count = min(len(self.queue), _MAX_BATCH_SIZE)
            calls = [self.queue.popitem(last=False)[0] for _ in range(count)]
            idle.carryOut(self._makeBatch(calls, list(self.queue)))

    def lookAfterFile(self) -> None:
        for thread in self.threads:
            if thread.isIdle:
                thread.carryOut(self._makeBatch([], []))
                return

    def takeBack(self, batch: Batch) -> None:
        finished = batch.takeFinished()
        self._putBack(batch)
        self._dispatch()
        self._settle(finished)

    def _putBack(self, batch: Batch) -> None:
        for call in reversed(batch.takeBack()):
            if not call.answer.called:
                self.queue[call] = inf
                self.queue.move_to_end(call, last=False)
        if self.engine.isOver:
            self.engine.failQueued()

    def finish(self, batch: Batch, error: Exception | None) -> None:
        if error is None:
            calls = batch.takeFinished()
        else:
            stalled = isinstance(error, DatabaseUnavailable)
            calls = batch.giveUp(_STALLED if stalled else type(error).__name__)
        if batch.refused:
            # The calls behind the batch have waited for the lock just as long.
            behind = [call for call in batch.behind if call in self.queue]
            for call in (*batch.takeBack(), *behind):
                self.queue.pop(call, None)
                call.outcome = refusedError(batch.refused)
                calls.append(call)
        self._putBack(batch)
        if batch.lost:
            # whenLost() fires before any call fails.
            self._settle([call for call in calls if not call.hasFailed])
            self.engine.lose(batch.lost)
        elif self.queue and self._gathering is None:
            self._gather()
        self._settle(calls)

    def _settle(self, calls: Sequence[Call]) -> None:
        self._finished.extend(calls)
        if self._settling is None:
            self._settleSome()

    def _settleSome(self) -> None:
        self._settling = None
        left = self._settledPerTurn
        # A callback may close the database.
        while self._finished and (left > 0 or self.engine.isOver):
            left -= 1
            self._finished.popleft().settle()
        if self._finished:
            self._settling = self._reactor.callLater(0, self._settleSome)
        else:
            self.engine.checkIdle()

    @property
    def isIdle(self) -> bool:
        threads = any(thread.batch is not None for thread in self.threads)
        return not (self.queue or self._finished or threads)

    def end(self) -> None:
        for timer in (self._gathering, self._settling):
            if timer is not None:
                timer.cancel()
        self._settleSome()
        for thread in self.threads:
            thread.close()


class SQLite(Engine):
    """
    The connections to one file of SQLite.

    @ivar replaced: The log line for a replaced file; empty if it is the same file.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        schemas: Iterable[Schema],
        settings: Settings,
        failures: Failures,
    ) -> None:
        """
        @param path: The path of the file, which is created if it does not exist.
        @param schemas: The tables to create or upgrade.
        """
        super().__init__(reactor, settings, failures)
        self.path = path
        self.closing = Lock()
        self.replaced = ""
        self._timer: IDelayedCall | None = None
        self.file = file = File(path, tuple(schemas), settings)
        self._writes = _Role(self, "writer", file.openWriter, Writes, settledPerTurn=3)
        self._reads = _Role(self, "reader", file.openReader, Reads, settledPerTurn=16)
        self.queues = [self._writes.queue, self._reads.queue]

    async def connect(self) -> None:
        """
        Open the file, and bring the tables up to date.
        """
        if (stuck := _stuckThreads[self.path]) >= MAX_STUCK_THREADS:
            raise DatabaseUnavailable(f"{stuck} threads wait for a stalled disk")
        before, self.predecessor = self.predecessor, None
        if isinstance(before, SQLite):
            self.file.expect(before.file)
        readers = max(1, self.settings.connections)
        for role in (self._writes, *readers * (self._reads,)):
            await role.startThread()
        self._lookLater()

    def _lookLater(self) -> None:
        self._timer = self.reactor.callLater(_FILE_SECONDS, self._lookAfterFile)

    def _lookAfterFile(self) -> None:
        self._lookLater()
        if self.isIdle():
            self._reads.lookAfterFile()

    def accept(self, call: Call) -> None:
        """
        Put a call into the queue of its role.
        """
        (self._writes if call.isWrite else self._reads).add(call)

    def stop(self) -> None:
        """
        Settle the finished calls, and end the threads.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._writes.end()
        self._reads.end()

    def isClosed(self) -> bool:
        """
        Return whether all threads have ended or were given up.
        """
        return not self._writes.threads and not self._reads.threads

    def isIdle(self) -> bool:
        """
        Return whether no call is queued or in progress.
        """
        return self._writes.isIdle and self._reads.isIdle

    def forget(self, thread: _ConnectionThread) -> None:
        """
        Forget a thread that has ended or was given up.
        """
        for role in (self._writes, self._reads):
            if thread in role.threads:
                role.threads.remove(thread)
        if self.replaced and self.isClosed() and not self.isLost:
            # After a loss, the callers of whenLost() report it.
            self.log.warn("{what}", what=self.replaced)
        self.checkClosed()
