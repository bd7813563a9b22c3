"""
psycopg 3 on any Twisted reactor, without threads.

In psycopg, each operation is a generator that yields when libpq would block. The
public method C{AsyncConnection.wait} drives it. L{Connection} overrides this method to
wait for the reactor instead of an asyncio event loop, so everything that psycopg
documents works: cursors, transactions, pipelines, COPY, notifications.

The reactor watches the socket all the time. So it notices a lost connection that nobody
uses, and a query does not change the set of watched sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, errors, generators, pq
from psycopg.abc import PQGen, PQGenConn
from psycopg.rows import Row
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..queuing.waiters import Waiters

__all__ = ["READ", "WRITE", "Connection", "drive"]

_log = Logger("tsrv.databases")

T = TypeVar("T")

READ: Final = 1
WRITE: Final = 2
"""
A generator of psycopg yields one of these numbers, or their sum for either, to wait
until the socket is readable or writable. It receives the numbers that apply.
"""

MAX_IDLE_NOTIFICATIONS: Final = 10_000
"""
Maximum number of notifications that are read while no operation is in progress. Further
ones stay in the socket.
"""

MAX_WAITERS: Final = 1_000
"""
Maximum number of callers that wait for one connection to be lost.
"""


@implementer(IReadWriteDescriptor)
class _Socket:
    """
    The socket of a connection, as the reactor watches it.

    While an operation waits, C{_wanted} is READ, WRITE or both, and C{_waiting} is
    its Deferred; otherwise they are 0 and None. The reactor always watches for input,
    and for space to write only while an operation wants to write. Unread input would
    wake the reactor again and again. So C{doRead} stops watching if it must not read,
    until an operation wants to read or the connection's lock is released.
    """

    def __init__(
        self, reactor: Any, descriptor: int, readIdle: Callable[[], bool]
    ) -> None:
        self._reactor = reactor
        # libpq closes its own descriptor as soon as a connection breaks, and the
        # system may reuse the number before the reactor forgets it.
        self._descriptor = os.dup(descriptor)
        self._readIdle = readIdle
        self._wanted = 0
        self._waiting: Deferred[int] | None = None
        self.watch()

    def watch(self) -> None:
        """
        Watch for input, unless the socket is closed.
        """
        if self._descriptor >= 0:
            self._reactor.addReader(self)

    def wait(self, wanted: int) -> Deferred[int]:
        if self._descriptor < 0:
            return fail(psycopg.OperationalError("the connection is closed"))
        if wanted & WRITE:
            self._reactor.addWriter(self)
        if wanted & READ:
            self._reactor.addReader(self)
        self._wanted = wanted
        waiting = self._waiting = Deferred(self._stopWaiting)
        return waiting

    def _stopWaiting(self, waiting: Deferred[int]) -> None:
        if self._wanted & WRITE:
            self._reactor.removeWriter(self)
        self._wanted = 0
        self._waiting = None

    def _ready(self, ready: int) -> None:
        waiting = self._waiting
        assert waiting is not None
        self._stopWaiting(waiting)
        waiting.callback(ready)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "PostgreSQL"

    def doRead(self) -> None:
        if self._wanted & READ:
            self._ready(READ)
        elif self._wanted or not self._readIdle():
            self._reactor.removeReader(self)

    def doWrite(self) -> None:
        if self._wanted & WRITE:
            self._ready(WRITE)

    def connectionLost(self, reason: Failure) -> None:
        # libpq finds out what happened.
        if self._wanted:
            self._ready(self._wanted)
        elif self._readIdle():
            self.watch()

    def close(self) -> Deferred[int] | None:
        """
        Forget the socket.

        @return: The Deferred of the operation that waits.
        """
        waiting = self._waiting
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            os.close(self._descriptor)
            self._descriptor = -1
            self._wanted = 0
            self._waiting = None
        return waiting


class _Lock(DeferredLock):
    """
    A C{DeferredLock} that is passed on in a loop. Otherwise operations that fail at
    once would release it inside each other, until the stack is full.
    """

    def __init__(self, released: Callable[[], None]) -> None:
        super().__init__()
        self._whenReleased = released
        self._isPassedOn = self._isReleased = False

    def release(self) -> None:
        self._isReleased = True
        if self._isPassedOn:
            return
        self._isPassedOn = True
        while self._isReleased:
            self._isReleased = False
            super().release()
        self._isPassedOn = False
        if not self.locked:
            self._whenReleased()


class Connection(AsyncConnection[Row]):
    """
    A psycopg connection on a Twisted reactor; see psycopg's documentation of
    C{AsyncConnection}. L{connect<tsrv.databases.postgresql.connect>} opens it.

    Cancelling a Deferred or coroutine that waits for a query cancels the query on
    the server, too. Afterwards the connection is free again, or closed.

    Twisted does not close an asynchronous generator that the program leaves early,
    by C{break} or an exception. C{stream()} of a cursor would then block the
    connection for ever, so use it with C{contextlib.aclosing}::

        async with aclosing(cursor.stream("SELECT name FROM people")) as rows:
            async for (name,) in rows:
                if name == wanted:
                    break

    @ivar cancelTimeout: Maximum time for the server to end a cancelled query, in
        seconds; then the connection is closed. 0 closes it at once.
    @ivar lossReason: Why the connection was closed or lost.
    """

    lock: DeferredLock  # type: ignore[assignment]

    def __init__(self, reactor: Any, pgconn: pq.abc.PGconn) -> None:
        """
        @param reactor: Provides time, and watches the socket.
        @param pgconn: An open connection that does not block.
        @raise OSError: Too many files are open; C{pgconn} is closed.
        """
        super().__init__(pgconn)
        self.cancelTimeout = 5.0
        self.lossReason = ""
        self._reactor = reactor
        self._losses = Waiters(MAX_WAITERS, "for a connection to be lost")
        self._idleNotifications = 0
        try:
            self._socket = _Socket(reactor, pgconn.socket, self._readIdle)
        except OSError:
            pgconn.finish()
            raise
        self.lock = _Lock(self._socket.watch)

    def whenLost(self) -> Deferred[None]:
        """
        Wait for the loss or the closing of the connection.

        @return: A Deferred that fires when the connection is closed or lost, before
            the operation in progress fails. While the program has C{notifies()} or
            C{stream()} suspended, the Deferred fires only when the program continues
            or leaves this generator.
        """
        lost = self._losses.wait()
        if self.closed:
            self._losses.succeed()
        return lost

    def abort(self, reason: str) -> None:
        """
        Close the connection at once.

        @param reason: The text of the error with which the operation in progress
            fails.
        """
        self.pgconn.finish()
        self.lossReason = self.lossReason or reason.partition("\n")[0]
        waiting = self._socket.close()
        self._losses.succeed()
        if waiting is not None and not waiting.called:
            waiting.errback(psycopg.OperationalError(self.lossReason))

    async def close(self) -> None:
        """
        Close the connection. The operation in progress fails.
        """
        await super().close()
        self.abort("the connection was closed")

    async def wait(
        self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None
    ) -> T:
        """
        Drive a generator of psycopg.

        @param gen: The generator.
        @param interval: Ignored; the reactor needs no polling.
        @param timeout: Maximum time, in seconds.
        @return: The return value of the generator.
        @raise psycopg.Error: The operation failed, or the time limit expired.
        """
        self._idleNotifications = 0
        try:
            return await self._drive(gen, timeout)
        except CancelledError:
            if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                await self._cancel(gen)
            raise
        except psycopg.Error as error:
            if self.closed:
                self.abort(str(error))
            raise

    async def _drive(self, gen: PQGen[T], timeout: float | None) -> T:
        until = self._reactor.seconds() + (timeout or 0.0)
        try:
            wanted = next(gen)
            while True:
                waiting = self._socket.wait(wanted)
                if timeout is not None:
                    # 0 means to look at the socket once. The reactor looks at its
                    # clock before its sockets, so wait at least a millisecond.
                    left = max(until - self._reactor.seconds(), 0.001)
                    waiting.addTimeout(left, self._reactor)
                try:
                    ready = await waiting
                except psycopg.OperationalError as error:
                    wanted = gen.throw(error)
                else:
                    wanted = gen.send(ready)
        except StopIteration as finished:
            result: T = finished.value
            return result
        except TimedOut:
            # The documentation of wait() promises this error.
            raise errors._WaitTimeout("wait timeout expired") from None

    async def _cancel(self, gen: PQGen[Any]) -> None:
        """
        Cancel the query in progress, and read its answer, so that the next query does
        not get this answer.
        """
        pgconn = self.pgconn
        try:
            if self.cancelTimeout <= 0 or pgconn.pipeline_status or pgconn.flush():
                # A pipeline has answers for several cursors. A query that was not sent
                # completely has not begun.
                self.abort("a query was cancelled")
                gen.close()
                return
            # The generator must not send another query.
            gen.close()
            await self.cancel_safe(timeout=self.cancelTimeout)
            await self._drive(generators.execute(pgconn), self.cancelTimeout)
        except BaseException:
            # The caller cancelled again, or the server does not answer.
            self.abort("a cancelled query did not end")
        if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.abort("COPY was cancelled")

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """
        Ask the server to cancel the query in progress.

        @param timeout: Maximum time, in seconds.
        @raise psycopg.errors.CancellationTimeout: The time limit expired.
        """
        if self.closed:
            return
        request = self.pgconn.cancel_conn()
        try:
            request.start()
            asking = drive(self._reactor, generators.cancel(request))
            await Deferred.fromCoroutine(asking).addTimeout(timeout, self._reactor)
        except TimedOut:
            raise errors.CancellationTimeout("cancellation timeout expired") from None
        finally:
            request.finish()

    def _readIdle(self) -> bool:
        """
        Read what arrives between two operations.

        @return: Whether to continue to read.
        """
        pgconn = self.pgconn
        if (
            # The input belongs to an operation that is suspended between two parts
            # of its result: notifications for notifies(), or rows for stream().
            self.lock.locked
            # Data that the program has not asked for yet, of COPY for example.
            or pgconn.transaction_status == pq.TransactionStatus.ACTIVE
            or self._idleNotifications >= MAX_IDLE_NOTIFICATIONS
        ):
            return False
        try:
            pgconn.consume_input()
            while notification := pgconn.notifies():
                self._idleNotifications += 1
                if pgconn.notify_handler is not None:
                    pgconn.notify_handler(notification)
        except psycopg.Error as error:
            self.abort(str(error))
            return False
        except Exception:
            # No operation is in progress that could fail with this error.
            _log.failure("A notify handler failed")
        return True


async def drive(reactor: Any, gen: PQGenConn[T]) -> T:
    """
    Drive a generator of psycopg that yields its socket each time, because libpq may
    use several sockets while it connects.

    @param reactor: Watches the sockets.
    @param gen: The generator; it is closed in the end.
    @return: The return value of the generator.
    """
    try:
        descriptor, wanted = next(gen)
        while True:
            socket = _Socket(reactor, descriptor, lambda: False)
            try:
                ready = await socket.wait(wanted)
            finally:
                socket.close()
            descriptor, wanted = gen.send(ready)
    except StopIteration as finished:
        result: T = finished.value
        return result
    finally:
        gen.close()
