"""
A client of Redis: one connection, over which commands are sent without waiting for
the answers to earlier ones.

Redis answers commands in their order, so the first command that waits gets the next
answer. If a connection breaks, falls silent, or receives an answer without a command,
it is closed at once: the next answer could belong to any command. Each command that
waits then fails: with L{SessionsUnavailable} if it changes nothing, otherwise with
L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>}.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from os import strerror
from typing import Any, Final, TypeAlias, cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
)
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown
from ..extras import needs
from ..queuing.waiters import Waiters
from .redislocation import Location
from .store import SessionError, SessionsUnavailable

with needs("redis"):
    from hiredis import ProtocolError, Reader, ReplyError, pack_command

__all__ = [
    "Connection",
    "NoScript",
    "SessionsRefused",
    "WrongType",
    "unavailable",
]

MAX_COMMANDS: Final = 10_000
"""
Maximum number of commands that wait for their answers.
"""

MAX_BYTES: Final = 64 * 1024 * 1024
"""
Maximum size of all commands that wait, and of one answer, in bytes.
"""

ANSWER_TIMEOUT_SECONDS: Final = 5
"""
Seconds without an answer after which Redis is lost. A timer counts them: an hour for
which the program itself was suspended counts as one second.
"""

PING_AFTER_SECONDS: Final = 3
"""
Seconds after which an idle connection is checked.
"""


class SessionsRefused(SessionError):
    """
    Redis cannot be used, and a retry would fail too, because the password is wrong, for
    example. The message says what to do.
    """


class WrongType(SessionError):
    """
    The value of a key has another type.
    """


class NoScript(SessionError):
    """
    Redis does not know a script.
    """


def unavailable(reason: str) -> SessionsUnavailable:
    """
    @return: The error of a command that was not carried out.
    """
    return SessionsUnavailable(reason, retryAfter=1.0)


_CLUSTER: Final = "a Redis cluster is not supported: use a single server"

_SENTINEL: Final = "a Redis Sentinel keeps no sessions: use the server that it watches"

_PERMISSIONS: Final = (
    "the user has too few permissions: allow +@read +@write +@scripting +@connection, "
    "and the prefix of the keys"
)

_Error: TypeAlias = SessionError | SessionsUnavailable

_ERRORS: Final[dict[str, tuple[Callable[[str], _Error], str]]] = {
    "ASK": (SessionsRefused, _CLUSTER),
    "BUSY": (unavailable, "a script keeps it busy"),
    "CLUSTERDOWN": (SessionsRefused, _CLUSTER),
    "CROSSSLOT": (SessionsRefused, _CLUSTER),
    "DENIED": (SessionsRefused, "it is in protected mode: set a password"),
    "LOADING": (unavailable, "it is still reading its data"),
    "MASTERDOWN": (unavailable, "it is a replica that has lost its master"),
    "MAXCLIENTS": (unavailable, "it has too many clients"),
    "MISCONF": (unavailable, "it cannot write to its disk"),
    "MOVED": (SessionsRefused, _CLUSTER),
    "NOAUTH": (SessionsRefused, "it requires a password: add it to the URL"),
    "NOPERM": (SessionsRefused, _PERMISSIONS),
    "NOREPLICAS": (unavailable, "it has not enough replicas"),
    "NOSCRIPT": (NoScript, "it does not know a script"),
    "OOM": (unavailable, "it has no memory left"),
    "READONLY": (unavailable, "it is a replica: use its master"),
    "TRYAGAIN": (SessionsRefused, _CLUSTER),
    "WRONGPASS": (SessionsRefused, "check the user and the password in the URL"),
    "WRONGTYPE": (WrongType, "a value has another type"),
}
"""
The meanings of error codes. No message contains the text of Redis, which may repeat
values that were sent.
"""

_WRONG_SERVER: Final = {"BUSY", "LOADING", "MASTERDOWN", "READONLY"}
"""
Codes after which a new connection may reach a better server.
"""

# Up to version 6, the code of the script precedes the code of its command.
_CODES: Final = re.compile(r"(?:^|: -?)([A-Z]{2,})(?= |$)")

_INCOMPLETE: Final = object()


def _codeOf(text: str) -> str:
    if "max number of clients" in text:
        return "MAXCLIENTS"
    return next(reversed(_CODES.findall(text)), "ERR")


def _errorOf(code: str) -> _Error:
    kind, meaning = _ERRORS.get(code, (SessionError, "unexpected error"))
    error = kind(f"Redis refused a command: {meaning} ({code})")
    error.code = code
    return error


def _meaningOf(error: BaseException | None) -> str:
    # Twisted's own texts are longer.
    if isinstance(error, ConnectionDone):
        return "it closed the connection"
    if isinstance(error, ConnectionLost):
        return "the connection broke"
    number = getattr(error, "osError", None)
    meaning = strerror(number) if isinstance(number, int) else str(error)
    return meaning.rstrip(".")


class Connection(Protocol):
    """
    A connection to Redis, which is opened once.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        onLost: Callable[[Connection, str], object],
        onRefused: Callable[[_Error], _Error],
    ) -> None:
        """
        @param reactor: Provides the time, and connections.
        @param onLost: Called with the reason when the connection becomes unusable,
            before its commands fail.
        @param onRefused: Called with an error of Redis, in the context in which the
            command was sent; returns the error for the caller of the command.
        """
        self._reactor = reactor
        self._onLost = onLost
        self._onRefused = onRefused
        self._reader = Reader(notEnoughData=_INCOMPLETE)
        # The commands that wait for their answers: a Deferred, the method that needs
        # the change (None for a read), the size, and the context of the caller.
        self._unanswered: deque[tuple[Deferred[Any], str | None, int, Context]] = (
            deque()
        )
        self._bytesSent = 0
        self._bytesReceived = 0
        self._silentSeconds = 0
        self._timer = LoopingCall(self._tick)
        self._timer.clock = reactor
        self._usable = False
        self._finishing = False
        self._closing = Waiters(MAX_COMMANDS, "for a connection to close")

    async def open(self, location: Location, timeout: float) -> None:
        """
        Connect and log in.

        @param location: The location of Redis.
        @param timeout: Seconds that connecting may take.
        @raise SessionsRefused: A retry would fail too.
        @raise SessionsUnavailable: A retry may succeed.
        """
        factory = Factory.forProtocol(lambda: self)
        # A noisy factory would log the beginning and the end of each attempt.
        factory.noisy = False
        try:
            await location.endpoint(self._reactor, timeout).connect(factory)
        except ImportError:
            needed = "rediss:// needs a package: pip install 'twisted[tls]'"
            raise SessionsRefused(needed) from None
        except ValueError as error:
            # No host can have this name, or no socket this path.
            reason = f"cannot connect to {location}: {error}: check the URL"
            raise SessionsRefused(reason) from None
        except ConnectingCancelledError:
            raise CancelledError from None
        except (ConnectError, DNSLookupError) as error:
            reason = f"cannot connect to {location}: {_meaningOf(error)}"
            raise unavailable(reason) from None
        if location.password:
            user = [location.user] if location.user else []
            # Old versions have no error code for a wrong password.
            refused = _errorOf("WRONGPASS")
            await self._askOr(refused, "AUTH", *user, location.password)
        if location.number:
            missing = f"Redis has no database {location.number}: check the URL"
            await self._askOr(SessionsRefused(missing), "SELECT", location.number)
        await self._checkServer()

    async def _askOr(self, refused: Exception, *words: str | int) -> None:
        try:
            await self.ask(*words)
            return
        except SessionsRefused:
            raise
        except SessionError:
            pass
        # A Sentinel, for example, has neither users nor databases.
        await self._checkServer()
        raise refused

    async def _checkServer(self) -> None:
        try:
            info = await self.ask("INFO", "server")
        except SessionError:
            # INFO is refused: only versions with permissions do that, 6 and newer.
            return
        if re.search(rb"\bredis_version:[1-4]\.", info):
            raise SessionsRefused("Redis is too old: version 5 or newer is needed")
        # Valkey calls it server_mode.
        mode = re.search(rb"\b(?:redis|server)_mode:(cluster|sentinel)", info)
        if mode is not None:
            raise SessionsRefused(_CLUSTER if mode[1] == b"cluster" else _SENTINEL)

    def ask(
        self, *words: str | bytes | float, method: str | None = None
    ) -> Deferred[Any]:
        """
        Send a command. If the Deferred is cancelled, the answer is ignored.

        @param words: The command.
        @param method: The method of the store for which it changes something;
            L{None} if it changes nothing.
        @return: A Deferred of the answer: bytes, integers, L{None}, and lists of
            these.
        """
        if not self._usable or self._finishing:
            return fail(unavailable("Redis is not connected"))
        data = pack_command(cast(Any, words))
        count = len(self._unanswered)
        if count >= MAX_COMMANDS or self._bytesSent + len(data) > MAX_BYTES:
            return fail(unavailable(f"{count} commands wait for Redis already"))
        if not self._unanswered:
            self._silentSeconds = 0
        answer: Deferred[Any] = Deferred()
        self._unanswered.append((answer, method, len(data), copy_context()))
        self._bytesSent += len(data)
        self.transport.write(data)
        return answer

    def connectionMade(self) -> None:
        """
        Begin to watch the connection.
        """
        self._usable = True
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._timer.start(1.0, now=False)

    def _tick(self) -> None:
        self._silentSeconds += 1
        if self._unanswered:
            if self._silentSeconds >= ANSWER_TIMEOUT_SECONDS:
                self.abort(f"no answer in {ANSWER_TIMEOUT_SECONDS} s")
        elif self._silentSeconds >= PING_AFTER_SECONDS:
            # abort() reports a failure. The ping belongs to no request.
            Context().run(self.ask, "PING").addErrback(lambda _: None)

    def dataReceived(self, data: bytes) -> None:
        """
        Settle the commands that have waited longest.
        """
        self._bytesReceived += len(data)
        self._reader.feed(data)
        try:
            while self._usable:
                answer = self._reader.gets()
                if answer is _INCOMPLETE:
                    break
                self._bytesReceived = 0
                self._settle(answer)
        except ProtocolError:
            self.abort("it does not speak the protocol of Redis")
        if self._bytesReceived > MAX_BYTES:
            self.abort("an answer is too large")

    def _settle(self, answer: Any) -> None:
        if not self._unanswered:
            self.abort("it sent an answer without a command")
            return
        self._silentSeconds = 0
        waiting, _, size, context = self._unanswered.popleft()
        self._bytesSent -= size
        if isinstance(answer, ReplyError):
            code = _codeOf(str(answer))
            if code in _WRONG_SERVER:
                self.abort(f"{_ERRORS[code][1]} ({code})")
            error = _errorOf(code)
            if not isinstance(error, NoScript | WrongType):
                error = context.run(self._onRefused, error)
            waiting.errback(error)
        else:
            waiting.callback(answer)
        if self._finishing and not self._unanswered:
            self.abort("it was closed")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Fail the commands that wait.
        """
        self.abort(_meaningOf(reason.value))
        self.connected = 0
        self._closing.succeed()

    def finish(self) -> None:
        """
        Close the connection when Redis has answered all commands, or has not answered
        for L{ANSWER_TIMEOUT_SECONDS}.
        """
        self._finishing = True
        if not self._unanswered:
            self.abort("it was closed")

    def abort(self, reason: str) -> None:
        """
        Close the connection at once.

        @param reason: The reason, for errors and the log.
        """
        if not self._usable:
            return
        self._usable = False
        self._timer.stop()
        self.transport.abortConnection()
        self._onLost(self, reason)
        unanswered, self._unanswered = self._unanswered, deque()
        for waiting, method, *_ in unanswered:
            if method is None:
                waiting.errback(unavailable(f"Redis was lost: {reason}"))
            else:
                waiting.errback(OutcomeUnknown(method))

    def whenClosed(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when the connection is completely closed.
        """
        return self._closing.wait() if self.connected else succeed(None)
