"""
A client of Redis: one connection, over which commands are sent without waiting for
the answers of earlier ones.

Redis answers in the order of the commands, so the first command that waits gets the
next answer. A connection that breaks, falls silent, or sends what nobody has asked
for is closed at once, because nobody could tell whose answer the next one is. Each
command that waits then fails: with L{SessionsUnavailable} if it changes nothing,
otherwise with L{OutcomeUnknown<tsrv.errors.OutcomeUnknown>}.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from hiredis import ProtocolError, Reader, pack_command
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
)
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown
from ..queuing.waiters import Waiters
from .redislocation import Location
from .store import SessionError, SessionsUnavailable

__all__ = [
    "Connection",
    "NoScript",
    "SessionsRefused",
    "WrongType",
    "unavailable",
]

RETRY_AFTER_SECONDS: Final = 1.0
"""
Seconds after which a retry is reasonable.
"""

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
Seconds without an answer after which Redis is lost. They are counted one by one: an
hour in which the program itself stood still counts as one.
"""

PING_AFTER_SECONDS: Final = 3
"""
Seconds after which an idle connection is checked.
"""

# Up to version 6 the error of a command is inside of the error of its script.
_SCRIPT_ERROR: Final = re.compile(
    r"ERR Error (?:running|compiling) script.*: *-?(?=[A-Z])"
)

_CODE: Final = re.compile(r"[A-Z]{2,}(?= |$)")

_WRONG_SERVER: Final = {
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is still reading its data",
    "MASTERDOWN": "it is a replica that has lost its master",
    "READONLY": "it is a replica",
}
"""
Errors after which another connection may reach a better server.
"""

_NOT_NOW: Final = {
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "it has not enough replicas",
    "OOM": "it has no memory left",
    "TRYAGAIN": "its cluster is being changed",
}

CLUSTER: Final = "a cluster is not supported: use a single server"

_REFUSED: Final = {
    "ASK": CLUSTER,
    "CROSSSLOT": CLUSTER,
    "DENIED": "it is in protected mode: set a password, there and in the URL",
    "MOVED": CLUSTER,
    "NOAUTH": "it requires a password: write redis://:PASSWORD@HOST:PORT/NUMBER",
    "NOPERM": "the user has too few permissions: allow "
    "+@read +@write +@scripting +@connection, and the prefix of the keys",
    "WRONGPASS": "check the user and the password in the URL",
}


_INCOMPLETE: Final = object()


class SessionsRefused(SessionError):
    """
    Redis cannot be used, and a retry would fail too: the password is wrong, for
    example. The message says what to do.
    """


class WrongType(SessionError):
    """
    What is kept under a key is of another type.
    """


class NoScript(SessionError):
    """
    Redis does not know a script.
    """


def unavailable(reason: str) -> SessionsUnavailable:
    """
    @return: The error of a command that was not carried out.
    """
    return SessionsUnavailable(reason, RETRY_AFTER_SECONDS)


def _codeOf(text: str) -> str:
    found = _CODE.match(_SCRIPT_ERROR.sub("", text))
    return found[0] if found else "ERR"


def _errorOf(text: str) -> Exception:
    # The text may repeat what was sent, so no message contains it.
    code = _codeOf(text)
    if code in _WRONG_SERVER:
        return unavailable(f"Redis cannot be used: {_WRONG_SERVER[code]}")
    if code in _NOT_NOW:
        return unavailable(f"Redis cannot do this now: {_NOT_NOW[code]}")
    if "max number of clients" in text:
        return unavailable("Redis has too many clients")
    if code in _REFUSED:
        return SessionsRefused(f"Redis refuses: {_REFUSED[code]}")
    if code == "WRONGTYPE":
        return WrongType("what Redis keeps is of another type")
    if code == "NOSCRIPT":
        return NoScript("Redis does not know the script")
    return SessionError(f"Redis refuses a command ({code})")


class _ErrorReply(Exception):
    """
    An error that Redis has answered with.
    """


class Connection(Protocol):
    """
    A connection to Redis, which is opened once.

    @ivar isClosed: Whether nothing of it is open.
    """

    transport: Any

    def __init__(
        self, reactor: Any, onLost: Callable[[Connection, str], object]
    ) -> None:
        """
        @param reactor: Provides time, and connections.
        @param onLost: Called with the reason when the connection cannot be used any
            more, before commands fail for it.
        """
        self._reactor = reactor
        self._onLost = onLost
        self._reader = Reader(replyError=_ErrorReply, notEnoughData=_INCOMPLETE)
        # The commands that wait for their answers: a Deferred, the method that it
        # changes something for, and its size.
        self._unanswered: deque[tuple[Deferred[Any], str | None, int]] = deque()
        self._bytesSent = 0
        self._bytesReceived = 0
        self._silent = 0
        self._timer = LoopingCall(self._tick)
        self._timer.clock = reactor
        self._usable = False
        self._finishing = False
        self.isClosed = True
        self._closing = Waiters(MAX_COMMANDS, "for a connection to close")

    async def open(self, location: Location, timeout: float) -> None:
        """
        Connect and log in.

        @param location: Where Redis is.
        @param timeout: Seconds that connecting may take.
        @raise SessionsRefused: A retry would fail too.
        @raise SessionsUnavailable: A retry may succeed.
        """
        try:
            await connectProtocol(location.endpoint(self._reactor, timeout), self)
        except ImportError:
            needed = "rediss:// needs a package: pip install 'twisted[tls]'"
            raise SessionsRefused(needed) from None
        except ConnectingCancelledError:
            raise CancelledError from None
        except DNSLookupError:
            raise unavailable(f"the host {location.host} is unknown") from None
        except ConnectError as error:
            reason = str(error).rstrip(".")
            raise unavailable(f"cannot connect to {location}: {reason}") from None
        if location.password is not None:
            user = [location.user] if location.user else []
            # Old versions have no error code for a wrong password.
            problem = _REFUSED["WRONGPASS"]
            await self._askOr(problem, "AUTH", *user, location.password)
        if location.number:
            missing = f"it has no database {location.number}: check the URL"
            await self._askOr(missing, b"SELECT", str(location.number))
        await self._check()

    async def _askOr(self, problem: str, *words: str | bytes) -> None:
        try:
            await self.ask(*words)
        except SessionsRefused:
            raise
        except SessionError:
            raise SessionsRefused(f"Redis refuses: {problem}") from None

    async def _check(self) -> None:
        with suppress(SessionError):
            # The name only helps the operator.
            await self.ask(b"CLIENT", b"SETNAME", b"tsrv")
        try:
            info = (await self.ask(b"INFO", b"server")).decode()
        except SessionError:
            # Without the permission for it, Redis has permissions, so it is new.
            return
        version = re.search(r"^redis_version:(\d+)", info, re.MULTILINE)
        if version is not None and int(version[1]) < 5:
            raise SessionsRefused("Redis refuses: version 5 or newer is needed")
        if re.search(r"^redis_mode:cluster", info, re.MULTILINE):
            raise SessionsRefused(f"Redis refuses: {CLUSTER}")

    def ask(self, *words: str | bytes, method: str | None = None) -> Deferred[Any]:
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
        if (
            len(self._unanswered) >= MAX_COMMANDS
            or self._bytesSent + len(data) > MAX_BYTES
        ):
            count = len(self._unanswered)
            return fail(unavailable(f"{count} commands wait for Redis already"))
        if not self._unanswered:
            self._silent = 0
        answer: Deferred[Any] = Deferred()
        self._unanswered.append((answer, method, len(data)))
        self._bytesSent += len(data)
        self.transport.write(data)
        return answer

    def connectionMade(self) -> None:
        """
        Begin to watch the connection.
        """
        self._usable = True
        self.isClosed = False
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._timer.start(1.0, now=False)

    def _tick(self) -> None:
        self._silent += 1
        if self._unanswered:
            if self._silent >= ANSWER_TIMEOUT_SECONDS:
                self.abort(f"no answer in {ANSWER_TIMEOUT_SECONDS} s")
        elif self._silent >= PING_AFTER_SECONDS:
            # If it fails, the connection was lost, which is told anyway.
            self.ask(b"PING").addErrback(lambda _: None)

    def dataReceived(self, data: bytes) -> None:
        """
        Answer the commands that have waited longest.
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
            self.abort("it sends what nobody has asked for")
            return
        self._silent = 0
        waiting, _, size = self._unanswered.popleft()
        self._bytesSent -= size
        if isinstance(answer, _ErrorReply):
            code = _codeOf(str(answer))
            if code in _WRONG_SERVER:
                self.abort(_WRONG_SERVER[code])
            waiting.errback(_errorOf(str(answer)))
        else:
            waiting.callback(answer)
        if self._finishing and not self._unanswered:
            self.abort("it was closed")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Let the commands that wait fail.
        """
        self.abort(reason.getErrorMessage().rstrip("."))
        self.isClosed = True
        self._closing.succeed()

    def finish(self) -> None:
        """
        Close the connection when all commands are answered, or the time for that is
        up.
        """
        self._finishing = True
        if not self._unanswered:
            self.abort("it was closed")

    def abort(self, reason: str) -> None:
        """
        Close the connection at once.

        @param reason: Why, for errors and the log.
        """
        if not self._usable:
            return
        self._usable = False
        self._timer.stop()
        self.transport.abortConnection()
        self._onLost(self, reason)
        unanswered, self._unanswered = self._unanswered, deque()
        for waiting, method, _ in unanswered:
            if method is None:
                waiting.errback(unavailable(f"Redis was lost: {reason}"))
            else:
                waiting.errback(OutcomeUnknown(method))

    def whenClosed(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when nothing of the connection is open.
        """
        return succeed(None) if self.isClosed else self._closing.wait()
