"""
psycopg 3 on any Twisted reactor, without threads.

psycopg writes each operation as a generator that yields when libpq would block:
for its socket to become readable (1), writable (2) or either (3). The public
method C{AsyncConnection.wait} drives that generator. L{Connection} overrides it
to wait for the reactor instead of an asyncio event loop, so everything that
psycopg documents works: cursors, transactions, pipelines, COPY, notifications.

The reactor watches the socket all the time, so that a lost connection is
noticed even while nobody uses it, and a query costs no change to the set of
watched sockets. What arrives between two operations is read at once, unless an
operation is under way, or too much arrives: then it waits in the socket.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, errors, generators, pq
from psycopg.abc import PQGen, PQGenConn
from psycopg.rows import Row
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ..queuing.waiters import Waiters

__all__ = ["Connection", "drive"]

T = TypeVar("T")

READ: Final = 1
"""
What a generator of psycopg yields to wait for the socket to become readable, and
is sent when it is.
"""

WRITE: Final = 2
"""
The same for a socket that is writable; the sum of both is either.
"""

MAX_IDLE_NOTIFICATIONS: Final = 10_000
"""
Maximum number of notifications read while nobody waits for them; later ones stay
in the socket.
"""

MAX_WAITERS: Final = 1_000
"""
Maximum number of callers that wait for one connection to be lost.
"""

CANCEL_TIMEOUT_SECONDS: Final = 5.0
"""
Maximum time for the server to end a cancelled query; then the connection is
closed.
"""


@implementer(IReadWriteDescriptor)
class _Socket:
    """
    A socket of libpq, as the reactor sees it.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        """
        @raise OSError: Too many files are open.
        """
        self._reactor = reactor
        # libpq closes its descriptor as soon as a connection breaks, and the
        # system may reuse the number before the reactor forgets it.
        self._descriptor = os.dup(descriptor)
        self._isReading = True
        self._wanted = 0
        self._waiting: Deferred[int] | None = None
        reactor.addReader(self)

    def wait(self, wanted: int) -> Deferred[int]:
        """
        Wait until the socket is readable or writable.
        """
        if self._descriptor < 0:
            raise psycopg.OperationalError("the connection is closed")
        self._wanted = wanted
        if wanted & WRITE:
            self._reactor.addWriter(self)
        if wanted & READ and not self._isReading:
            self._isReading = True
            self._reactor.addReader(self)
        waiting = self._waiting = Deferred(self._stopWaiting)
        return waiting

    def fileno(self) -> int:
        """
        Return the number of the descriptor.
        """
        return self._descriptor

    def logPrefix(self) -> str:
        """
        Return the name used in the reactor's log.
        """
        return "PostgreSQL"

    def doRead(self) -> None:
        """
        Continue the operation that waits to read.
        """
        if self._wanted & READ:
            self._ready(READ)
        elif self._wanted or not self.readIdle():
            self._isReading = False
            self._reactor.removeReader(self)

    def doWrite(self) -> None:
        """
        Continue the operation that waits to write.
        """
        if self._wanted & WRITE:
            self._ready(WRITE)

    def connectionLost(self, reason: Failure) -> None:
        """
        Let the operation find out what happened.
        """
        if self._wanted:
            self._ready(READ | WRITE)
        else:
            self.readIdle()

    def readIdle(self) -> bool:
        """
        Read what arrived while no operation waits.

        @return: Whether to continue to read.
        """
        return False

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

    def _ready(self, ready: int) -> None:
        waiting = self._waiting
        assert waiting is not None
        self._stopWaiting(waiting)
        waiting.callback(ready)

    def _stopWaiting(self, waiting: Deferred[int]) -> None:
        if self._wanted & WRITE:
            self._reactor.removeWriter(self)
        self._wanted = 0
        self._waiting = None


class _ConnectionSocket(_Socket):
    """
    The socket of an open connection, which is read between operations too.
    """

    def __init__(self, reactor: Any, connection: Connection[Any]) -> None:
        super().__init__(reactor, connection.pgconn.socket)
        self._connection = connection
        self._notifications = 0

    def wait(self, wanted: int) -> Deferred[int]:
        """
        Wait until the socket is readable or writable.
        """
        self._notifications = 0
        return super().wait(wanted)

    def readIdle(self) -> bool:
        """
        Read what arrived while no operation waits.
        """
        pgconn = self._connection.pgconn
        try:
            if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                # Rows that the program has not asked for yet.
                return False
            pgconn.consume_input()
            while notification := pgconn.notifies():
                self._notifications += 1
                if pgconn.notify_handler is not None:
                    pgconn.notify_handler(notification)
        except psycopg.Error as error:
            self._connection.abort(str(error))
        return self._notifications < MAX_IDLE_NOTIFICATIONS


class _Lock:
    """
    The part of C{asyncio.Lock} that psycopg uses.
    """

    def __init__(self) -> None:
        self._lock = DeferredLock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class Connection(AsyncConnection[Row]):
    """
    A psycopg connection that a Twisted program can use.

    Cancelling a Deferred or coroutine that waits for a query cancels the query
    on the server; the connection can then be used again. If the server does not
    confirm that within L{CANCEL_TIMEOUT_SECONDS} the connection is closed.

    @ivar lossReason: Why the connection was closed or lost.
    """

    def __init__(self, reactor: Any, pgconn: pq.abc.PGconn) -> None:
        """
        @param reactor: Provides time, and watches the socket.
        @param pgconn: An open connection that does not block.
        @raise OSError: Too many files are open.
        """
        super().__init__(pgconn)
        self.lossReason = ""
        self.lock = _Lock()  # type: ignore[assignment]
        self._reactor = reactor
        self._losses = Waiters(MAX_WAITERS, "for a connection to be lost")
        self._socket = _ConnectionSocket(reactor, self)

    def whenLost(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when the connection is closed or lost,
            before the operation that waits fails.
        """
        waiting = self._losses.wait()
        if self.closed:
            self._losses.succeed()
        return waiting

    def abort(self, reason: str) -> None:
        """
        Close the connection at once.

        @param reason: Why, for the error of the operation that waits.
        """
        self.pgconn.finish()
        self.lossReason = self.lossReason or reason.partition("\n")[0]
        waiting = self._socket.close()
        self._losses.succeed()
        if waiting is not None and not waiting.called:
            waiting.errback(psycopg.OperationalError(reason))

    async def close(self) -> None:
        """
        Close the connection. The operation that waits fails.
        """
        await super().close()
        self.abort("the connection was closed")

    async def wait(
        self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None
    ) -> T:
        """
        Drive a generator of psycopg.

        @param gen: The generator.
        @param interval: Ignored: the reactor needs no polling.
        @param timeout: Maximum time, in seconds.
        @return: What the generator returns.
        """
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
        socket = self._socket
        try:
            if timeout is None:
                ready = await socket.wait(next(gen))
                while True:
                    ready = await socket.wait(gen.send(ready))
            until = self._reactor.seconds() + timeout
            wanted = next(gen)
            while True:
                # Not less than a millisecond: the reactor looks at the clock
                # before it looks at the socket, and zero means to look once.
                left = max(until - self._reactor.seconds(), 0.001)
                waiting = socket.wait(wanted).addTimeout(left, self._reactor)
                wanted = gen.send(await waiting)
        except StopIteration as finished:
            result: T = finished.value
            return result
        except TimedOut:
            # Not public, but what the documentation of wait() says it raises.
            raise errors._WaitTimeout("wait timeout expired") from None

    async def _cancel(self, gen: PQGen[Any]) -> None:
        """
        Cancel the query of a generator, and drive the generator to its end: the
        answer must not be taken for that to the next query.
        """
        try:
            await self.cancel_safe(timeout=CANCEL_TIMEOUT_SECONDS)
            await self._drive(gen, CANCEL_TIMEOUT_SECONDS)
        except errors.QueryCanceled:
            pass
        except BaseException:
            self.abort("a cancelled query did not end")

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """
        Ask the server to cancel the query that runs.

        @param timeout: Maximum time, in seconds.
        """
        if self.closed:
            return
        cancelling = self.pgconn.cancel_conn()
        try:
            cancelling.start()
            asking = Deferred.fromCoroutine(
                drive(self._reactor, generators.cancel(cancelling))
            )
            await asking.addTimeout(timeout, self._reactor)
        except TimedOut:
            raise errors.CancellationTimeout("cancellation timeout expired") from None
        finally:
            cancelling.finish()


async def drive(reactor: Any, gen: PQGenConn[T]) -> T:
    """
    Drive a generator of psycopg that yields its socket each time: libpq uses
    several while it connects.

    @param reactor: Watches the sockets.
    @param gen: The generator; it is closed when this is cancelled.
    @return: What the generator returns.
    """
    try:
        descriptor, wanted = next(gen)
        while True:
            socket = _Socket(reactor, descriptor)
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
