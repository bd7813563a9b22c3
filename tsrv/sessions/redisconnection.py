"""
One connection to Redis.

What is sent and received is written and read by txredisapi's protocol. What
becomes of it is decided here: each command is answered once, in their order, and
a connection that breaks, falls silent or says what nobody asked for is never used
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
)
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
)
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from txredisapi import BaseRedisProtocol, InvalidResponse

from ..errors import OutcomeUnknown
from ..queuing.waiters import Waiters
from .redisanswers import (
    AWAY,
    LATER,
    SessionsRefused,
    codeOf,
    errorOf,
)
from .redislocation import Location
from .store import (
    SessionError,
    SessionsUnavailable,
)

__all__ = ["Connection"]

_MOST: Final = 10_000
_MOST_BYTES: Final = 64 * 1024 * 1024
"""
How many commands may wait for their answers, and of how many bytes.
"""

_LOOKS: Final = 5
"""
In how many steps the time of a command is counted. When the program itself has
stood still for long, only one of them passes, and what has arrived meanwhile is
read before the next.
"""

_LINE: Final = 64 * 1024
"""
How long a line may be.
"""


class _Command:
    """
    What was sent, and is not answered yet.

    @ivar size: Its bytes.
    @ivar method: The method that it changes something for; L{None} if it changes
        nothing.
    @ivar looks: How often it was found to be unanswered.
    @ivar answer: Fires with the answer.
    """

    __slots__ = ("answer", "looks", "method", "size")

    def __init__(self, size: int, method: str | None) -> None:
        self.size = size
        self.method = method
        self.looks = 0
        self.answer: Deferred[Any] = Deferred()

    def settle(self, result: object) -> None:
        """
        Answer. A Deferred that was cancelled takes that, and drops it.
        """
        if isinstance(result, Exception):
            self.answer.errback(result)
        else:
            self.answer.callback(result)


class Connection(BaseRedisProtocol):  # type: ignore[misc]
    """
    A connection, which is opened once, and ends once.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        limit: float,
        lost: Callable[[Connection, str], None],
        ended: Callable[[Connection], None],
    ) -> None:
        """
        @param reactor: Provides time, and connections.
        @param limit: How long Redis may take to answer a command, in seconds.
        @param lost: Called with a reason when it can be used no longer, before
            any command fails for that.
        @param ended: Called when nothing of it is open any more.
        """
        super().__init__(charset=None, convertNumbers=False)
        self._reactor = reactor
        self._step = limit / _LOOKS
        self._limit = limit
        self._onLost = lost
        self._onEnded = ended
        self._sent: deque[_Command] = deque()
        self._bytes = 0
        self._rest = b""
        self._looking: IDelayedCall | None = None
        self._finishing = False
        self._over = False
        self._endings = Waiters(_MOST, "for a connection to end")
        self._ended = False

    # Opening it.

    async def open(
        self,
        location: Location,
        limit: float,
        probe: Callable[[Connection], Awaitable[object]],
    ) -> None:
        """
        Connect, and log in.

        @param location: Where Redis is.
        @param limit: How long that may take, in seconds.
        @param probe: Finds out whether the connection can be used.
        @raise SessionsRefused: No retry will help.
        @raise SessionsUnavailable: One may.
        """
        opening = Deferred.fromCoroutine(self._open(location, limit, probe))
        try:
            await opening.addTimeout(limit, self._reactor)
        except TimedOut:
            self._lose("it does not answer")
            sentence = f"Redis at {location} gives no answer in {limit:.3g} s"
            raise SessionsUnavailable(sentence, LATER) from None
        except BaseException:
            self._lose("it could not be opened")
            raise

    async def _open(
        self,
        location: Location,
        limit: float,
        probe: Callable[[Connection], Awaitable[object]],
    ) -> None:
        endpoint = _endpointOf(self._reactor, location, limit + 1)
        try:
            await endpoint.connect(_Only(self))
        except ConnectingCancelledError:
            raise CancelledError from None
        except DNSLookupError:
            sentence = f"the host of Redis, {location.host}, is not known"
            raise SessionsUnavailable(sentence, LATER) from None
        except ConnectError as error:
            reason = str(error).rstrip(".")
            sentence = f"Redis at {location} cannot be connected to: {reason}"
            raise SessionsUnavailable(sentence, LATER) from None
        if location.password is not None:
            await self._logIn(location.user, location.password)
        if location.number:
            await self._choose(location.number)
        await self.ask(b"PING")
        await probe(self)

    async def _logIn(self, user: str, password: str) -> None:
        words = [user.encode()] if user else []
        try:
            await self.ask(b"AUTH", *words, password.encode())
        except SessionsRefused:
            raise
        except SessionError:
            # That of other versions, that there is no password, and that there
            # are no users, have no code of their own.
            raise errorOf("WRONGPASS") from None

    async def _choose(self, number: int) -> None:
        try:
            await self.ask(b"SELECT", b"%d" % number)
        except SessionsRefused:
            raise
        except SessionError:
            raise SessionsRefused(
                f"Redis has no database {number}: check the number at the end of "
                "its URL, and 'databases' in the configuration of Redis"
            ) from None

    # Asking.

    def ask(self, *words: bytes, method: str | None = None) -> Deferred[Any]:
        """
        Send a command.

        @param words: The command.
        @param method: The method that it changes something for; L{None} if it
            changes nothing.
        @return: A Deferred of the answer: bytes, integers, L{None}, and lists of
            these; texts for a mere status. It fails with
            L{SessionsUnavailable} if the command was not carried out, with
            L{OutcomeUnknown} if nobody knows, and with L{SessionError} if no
            retry will help. Who cancels it does without the answer.
        """
        if not self.connected or self._over or self._finishing:
            return fail(SessionsUnavailable("Redis is not connected", LATER))
        data = self._build_command(*words)
        if len(self._sent) >= _MOST or self._bytes + len(data) > _MOST_BYTES:
            sentence = f"{len(self._sent)} commands wait for Redis already"
            return fail(SessionsUnavailable(sentence, LATER))
        command = _Command(len(data), method)
        self._sent.append(command)
        self._bytes += command.size
        if self._looking is None:
            self._looking = self._reactor.callLater(self._step, self._look)
        self.transport.write(data)
        return command.answer

    def _look(self) -> None:
        """
        Count the time of the command that has waited longest.
        """
        self._looking = None
        if not self._sent:
            return
        oldest = self._sent[0]
        oldest.looks += 1
        if oldest.looks >= _LOOKS:
            self._lose(f"no answer in {self._limit:.3g} s")
        else:
            self._looking = self._reactor.callLater(self._step, self._look)

    # What txredisapi's protocol calls, or is called with.

    def connectionMade(self) -> None:
        """
        The connection is there.
        """
        self.connected = 1
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """
        Take what has come. That of txredisapi goes through the reactor, which it
        imports, once for each value.
        """
        self._rest += data
        try:
            while self._rest and not self._over:
                if not self.line_mode:
                    data, self._rest = self._rest, b""
                    self.rawDataReceived(data)
                    continue
                line, end, rest = self._rest.partition(b"\r\n")
                if not end:
                    if len(line) > _LINE:
                        raise ValueError("a line is too long")
                    break
                self._rest = rest
                self.lineReceived(line.decode())
                if not 0 <= self.bulk_length <= _MOST_BYTES:
                    raise ValueError("a value has an impossible size")
        except Exception:
            self._lose("it sends what is no answer")

    def setLineMode(self, extra: bytes = b"") -> None:
        """
        A value has ended.

        @param extra: What came behind it.
        """
        self.line_mode = 1
        self._rest = extra

    def replyReceived(self, reply: object) -> None:
        """
        Take an answer.
        """
        if not self._sent or isinstance(reply, InvalidResponse):
            # Whose it is nobody knows, nor that of any other that comes.
            raise ValueError("that is no answer")
        command = self._sent.popleft()
        self._bytes -= command.size
        if isinstance(reply, Exception):
            text = str(reply)
            code = codeOf(text)
            reply = errorOf(code, text)
            if code in AWAY:
                self._lose(AWAY[code])
        command.settle(reply)
        if self._finishing and not self._sent and not self._over:
            self._lose("it was closed")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self._lose("the connection broke")
        self._end()

    # Ending.

    def finish(self) -> None:
        """
        End it when all that was asked is answered, or the time for that is up.
        """
        self._finishing = True
        if not self._sent:
            self._lose("it was closed")

    def whenEnded(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when nothing of it is open any more.
        """
        return succeed(None) if self._ended else self._endings.wait()

    def _lose(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self.transport is None:
            self._end()
        else:
            self.transport.abortConnection()
        self._onLost(self, reason)
        sent, self._sent = self._sent, deque()
        for command in sent:
            if command.method is None:
                sentence = f"Redis was lost: {reason}"
                command.settle(SessionsUnavailable(sentence, LATER))
            else:
                command.settle(OutcomeUnknown(command.method))

    def _end(self) -> None:
        self._ended = True
        self._onEnded(self)
        self._endings.succeed()


class _Only(Factory):
    """
    Takes part in one connection, and in no other.
    """

    noisy = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def buildProtocol(self, address: object) -> Any:
        """
        @return: The connection.
        """
        return self._connection


def _endpointOf(reactor: Any, location: Location, limit: float) -> Any:
    """
    @return: Where to connect to. Names are looked up; addresses need not be.
    """
    host, port = location.host, location.port
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, limit)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, limit)
    return HostnameEndpoint(reactor, host, port, limit)
