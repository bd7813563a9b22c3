"""
Sessions in Redis: the protocol, with a server that the test plays; and a real server
that is killed, suspended, locked and filled.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from errno import ECONNREFUSED
from pathlib import Path
from typing import Any, cast

import pytest
from hiredis import Reader
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorPluggableNameResolver,
)
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from tsrv import QueuingWrapper, State
from tsrv.asyncmodule import NotInitialized
from tsrv.errors import OutcomeUnknown
from tsrv.sessions import (
    Changes,
    Limits,
    SessionError,
    SessionsUnavailable,
    keyOf,
    makeIdentifier,
)
from tsrv.sessions.redis import RedisSessionStore, SessionsRefused

from .redis_server import Redis, Timed, storeAt, using
from .redis_server import ownRedis as ownRedis
from .redis_server import redis as redis
from .support import Result, resultOf
from .websupport import asynchronous, logged, reservedPort, textsOf

SECRET = "correct horse"  # noqa: S105

ONE = makeIdentifier()


class Server:
    """
    A Redis that the test plays, and a store that uses it over a UNIX socket in
    memory.
    """

    protocol: Any
    transport: StringTransport

    def __init__(
        self, reactor: Any, url: str = "unix:///socket", **options: Any
    ) -> None:
        self.reactor = reactor
        self.store = RedisSessionStore(reactor, url, **options)

    def accept(self) -> None:
        factory = self.reactor.unixClients[-1][1]
        self.protocol = factory.buildProtocol(UNIXAddress("/socket"))
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def commands(self) -> list[list[bytes]]:
        """
        @return: The commands that have arrived since the last call.
        """
        reader = Reader()
        reader.feed(self.transport.value())
        self.transport.clear()
        return [*iter(reader.gets, False)]

    def answer(self, *data: bytes) -> None:
        for each in data:
            self.protocol.dataReceived(each)

    def drop(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def start(self) -> None:
        """
        Initialise the store.
        """
        opening = resultOf(self.store.initialize())
        self.accept()
        self.answer(*LOGIN)
        assert opening.value is None
        self.commands()

    def finish(self) -> None:
        """
        Close the store.
        """
        closing = resultOf(self.store.close())
        self.drop()
        assert closing.value is None


def bulk(*values: object) -> bytes:
    """
    @return: A reply of several values.
    """
    texts = [None if value is None else str(value).encode() for value in values]
    return b"*%d\r\n" % len(texts) + b"".join(
        b"$-1\r\n" if text is None else b"$%d\r\n%b\r\n" % (len(text), text)
        for text in texts
    )


def info(version: str = "7.0.15", mode: str = "standalone", of: str = "redis") -> str:
    """
    @return: A reply to C{INFO}. Valkey has C{server_mode} in place of C{redis_mode}.
    """
    text = f"# Server\r\nredis_version:{version}\r\n{of}_mode:{mode}\r\n"
    return f"${len(text)}\r\n{text}"


LOGIN = [info().encode() + b"\r\n", b":0\r\n", b"*4\r\n" + b"$-1\r\n" * 4]
ROW = bulk('{"a":1}', 0.0, 1800.0, 1)
NONE = bulk(None, None, None, None)


@pytest.fixture
def reactor() -> Iterator[MemoryReactorClock]:
    """
    A reactor in memory, on which no call may be pending when the test ends.
    """
    reactor = MemoryReactorClock()
    yield reactor
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def server(reactor: MemoryReactorClock) -> Iterator[Server]:
    """
    An initialised store, which is closed after the test.
    """
    server = Server(reactor)
    server.start()
    yield server
    closing = resultOf(server.store.close())
    reactor.pump([1.0] * 6)
    server.drop()
    assert closing.value is None


# The URL.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis:",
        "redis://",
        "http://host",
        "redis://host/name",
        "redis://host/0/1",
        "redis://host:port",
        "redis://host:0",
        "redis://host:70000",
        "redis://host/0?db=1",
        "redis://host/0#1",
        "unix:",
        "unix:///",
        "unix://host/path",
        "unix:///path?db=x",
        "unix:///path?a=1",
        f"redis://:{SECRET}#@host",
        f"redis://:{SECRET}/@host",
        f"redis://{SECRET}@host",
        "redis://user:@host",
        "redis://[::1",
        "redis://:\udcff@host",
    ],
)
def test_an_invalid_url_is_refused_and_not_repeated(url: str) -> None:
    """
    An invalid URL is refused and not repeated, since it may contain a password.
    """
    with pytest.raises(ValueError, match="the URL of Redis is") as raised:
        RedisSessionStore(Clock(), url)
    assert SECRET not in str(raised.value)
    error = raised.value
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://[::1]:1/3", "redis://[::1]:1/3"),
        ("rediss://al:secret@host", "rediss://al@host:6379/0"),
        ("unix:/run/redis", "unix:///run/redis?db=0"),
        ("unix://:secret@/run/redis?db=2", "unix:///run/redis?db=2"),
    ],
)
def test_a_store_shows_where_it_is(url: str, shown: str) -> None:
    """
    A store shows its URL without the password.
    """
    store = RedisSessionStore(Clock(), url)
    assert repr(store) == f"<RedisSessionStore at {shown}>"
    assert "secret" not in repr(vars(store))


@pytest.mark.parametrize(
    ("login", "query", "expected"),
    [
        ("", "", []),
        (":p%40ss%2F@", "", [[b"AUTH", b"p@ss/"]]),
        ("al:p%3As:@", "?db=1", [[b"AUTH", b"al", b"p:s:"], [b"SELECT", b"1"]]),
    ],
)
def test_the_url_says_how_to_log_in(
    reactor: MemoryReactorClock, login: str, query: str, expected: list[list[bytes]]
) -> None:
    """
    A password in the URL may contain any character, and is not logged.
    """
    server = Server(reactor, f"unix://{login}/socket{query}")
    with logged() as events:
        opening = resultOf(server.store.initialize())
        server.accept()
        for command in expected:
            assert server.commands() == [command]
            server.answer(b"+OK\r\n")
        assert server.commands() == [[b"INFO", b"server"]]
        server.answer(LOGIN[0])
        ((_, _, count, probe, *_),) = server.commands()
        assert (count, probe) == (b"2", b"tsrv:session:" + b"probe".hex().encode())
        server.answer(*LOGIN[1:])
    assert opening.value is None
    assert server.store.initialized
    (text,) = textsOf(events)
    assert text.startswith("Connected to unix://")
    assert "p@s" not in text
    server.finish()


# Initialisation.


@pytest.mark.parametrize(
    ("answers", "expected", "words"),
    [
        (["-WRONGPASS invalid pair"], SessionsRefused, "check the user and"),
        (["-ERR invalid", info()], SessionsRefused, "check the user and"),
        (["-ERR x", info("7.0.9", "sentinel")], SessionsRefused, "a Redis Sentinel"),
        (["-NOPERM"], SessionsRefused, "allow"),
        (["-DENIED Redis is running in"], SessionsRefused, "protected mode"),
        (
            [f"-ERR unknown command, with args beginning with: '{SECRET}'", "-ERR"],
            SessionsRefused,
            "check the user and",
        ),
        (["-ERR max number of clients reached"], SessionsUnavailable, "too many"),
        (["+OK", "-ERR DB index", "-NOPERM"], SessionsRefused, "no database 2"),
        (["+OK", "-NOAUTH x"], SessionsRefused, "requires a password"),
        (["+OK", "+OK", "-LOADING Redis is"], SessionsUnavailable, "reading its data"),
        (["+OK", "+OK", "-MASTERDOWN x"], SessionsUnavailable, "lost its master"),
        (["+OK"] * 2 + [info("4.0.9")], SessionsRefused, "version 5"),
        (["+OK"] * 2 + [info("7.0.9", "cluster")], SessionsRefused, "cluster is"),
        (["+OK"] * 2 + [info(mode="cluster", of="server")], SessionsRefused, "cluster"),
        (["+OK"] * 2 + [info(), "-READONLY You"], SessionsUnavailable, "a replica"),
        (["+OK"] * 2 + ["-NOPERM", "-NOPERM"], SessionsRefused, "+@scripting"),
        (["+OK"] * 2 + ["-NOPERM", ":0", "-NOPERM"], SessionsRefused, "+@read"),
        (["+OK", "+OK", "-ERR", "-MOVED 1"], SessionsRefused, "cluster is"),
        (["+OK", "+OK", "-ERR", "-CROSSSLOT x"], SessionsRefused, "cluster is"),
        (["+OK", "+OK", "-ERR", "-CLUSTERDOWN"], SessionsRefused, "cluster is"),
        (["+OK"] * 2 + [info(), "-MISCONF x"], SessionsUnavailable, "its disk"),
        (["+OK"] * 2 + [info(), "-ERR unknown"], SessionError, "(ERR)"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused(
    reactor: MemoryReactorClock,
    answers: list[str],
    expected: type[Exception],
    words: str,
) -> None:
    """
    The error says what to do, and its type whether a retry may succeed. It does not
    repeat the message of Redis, which may contain the password.
    """
    server = Server(reactor, "unix://:correct%20horse@/socket?db=2")
    opening = resultOf(server.store.initialize())
    server.accept()
    for answer in answers:
        server.answer(answer.encode() + b"\r\n")
    error = opening.error
    assert isinstance(error, expected)
    assert words in str(error)
    assert SECRET not in str(error)
    assert error.__suppress_context__ or error.__context__ is None
    assert server.transport.disconnecting
    assert not server.store.initialized
    closing = resultOf(server.store.close())
    assert closing.pending
    server.drop()
    assert closing.value is None


def test_a_refused_connection_can_be_retried(reactor: MemoryReactorClock) -> None:
    """
    A refused connection is retried; the error names the address of Redis.
    """
    server = Server(reactor)
    opening = resultOf(server.store.initialize())
    factory = reactor.unixClients[-1][1]
    factory.clientConnectionFailed(None, Failure(Refused(ECONNREFUSED)))
    assert isinstance(opening.error, SessionsUnavailable)
    reason = "cannot connect to unix:///socket?db=0: Connection refused"
    assert str(opening.error) == reason
    assert opening.error.retryAfter == 1.0
    server.start()
    server.finish()


@pytest.mark.parametrize("connected", [False, True])
def test_connecting_has_a_timeout(reactor: MemoryReactorClock, connected: bool) -> None:
    """
    One timeout covers the connection and the login.
    """
    server = Server(reactor, connectTimeout=2.0)
    opening = resultOf(server.store.initialize())
    if connected:
        server.accept()
    reactor.advance(1.9)
    assert opening.pending
    reactor.advance(0.1)
    assert isinstance(opening.error, SessionsUnavailable)
    assert "no answer from unix:///socket?db=0 in 2 s" in str(opening.error)
    if connected:
        assert server.transport.disconnecting
        server.drop()
    assert resultOf(server.store.close()).value is None


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("close", [False, True])
def test_an_initialisation_can_be_cancelled(
    reactor: MemoryReactorClock, connected: bool, close: bool
) -> None:
    """
    An initialisation can be cancelled, also by a close. No connection stays open, and
    the store can be initialised again.
    """
    server = Server(reactor)
    deferred = server.store.initialize()
    opening = resultOf(deferred)
    if connected:
        server.accept()
    if not close:
        deferred.cancel()
    closing = resultOf(server.store.close())
    assert isinstance(opening.error, CancelledError)
    if connected:
        assert server.transport.disconnecting
        assert closing.pending
        server.drop()
    assert closing.value is None
    server.start()
    server.finish()


def test_there_is_one_initialisation_at_a_time(reactor: MemoryReactorClock) -> None:
    """
    A second initialisation fails while the first one is in progress, and has no effect
    after it.
    """
    server = Server(reactor)
    first = resultOf(server.store.initialize())
    second = resultOf(server.store.initialize())
    assert isinstance(second.error, SessionsUnavailable)
    server.accept()
    server.answer(*LOGIN)
    assert first.value is None
    assert resultOf(server.store.initialize()).value is None
    assert len(reactor.unixClients) == 1
    server.finish()


@pytest.mark.parametrize(
    "place", ["redis://al..example", "rediss://al..example", f"unix:///{'x' * 107}"]
)
def test_an_impossible_place_is_refused(place: str) -> None:
    """
    A host that cannot have such a name, and a socket whose path is too long, are not
    retried; the error names the location.
    """
    reactor: Any = MemoryReactorClock()
    # The name is not looked up.
    reactor.nameResolver = None
    alsoProvides(reactor, IReactorPluggableNameResolver)
    store = RedisSessionStore(reactor, place)
    error = resultOf(store.initialize()).error
    assert isinstance(error, SessionsRefused)
    assert str(error).startswith(f"cannot connect to {place}")
    assert str(error).endswith(": check the URL")
    assert resultOf(store.close()).value is None


def test_an_unknown_host_can_be_retried(reactor: MemoryReactorClock) -> None:
    """
    An unknown host is retried, since the name server may find it later.
    """

    @implementer(IHostnameResolver)
    class Resolver:
        def resolveHostName(  # type: ignore[override]
            self, receiver: Any, *_: Any, **__: Any
        ) -> Any:
            receiver.resolutionBegan(None)
            receiver.resolutionComplete()

    reactor.nameResolver = Resolver()
    alsoProvides(reactor, IReactorPluggableNameResolver)
    store = RedisSessionStore(reactor, "rediss://redis.example")
    error = resultOf(store.initialize()).error
    assert isinstance(error, SessionsUnavailable)
    assert str(error).startswith("cannot connect to rediss://redis.example:6379/0: DNS")
    assert resultOf(store.close()).value is None


# Commands and replies.


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_answers_may_arrive_in_any_pieces(server: Server, size: int) -> None:
    """
    Replies may arrive in any pieces: one byte at a time, or several replies at once.
    """
    calls = [
        server.store.get(ONE),
        server.store.get(ONE),
        server.store.destroy(ONE),
        server.store.length(),
        server.store.get(ONE),
    ]
    results = [resultOf(cast(Deferred[Any], call)) for call in calls]
    answers = ROW + NONE + b":1\r\n" + b"*2\r\n$1\r\n0\r\n*0\r\n" + ROW + b":0\r\n"
    server.answer(*(answers[at : at + size] for at in range(0, len(answers), size)))
    found, none, destroyed, length, again = [result.value for result in results]
    assert found == again
    assert found.data == {"a": 1}
    assert (none, destroyed, length) == (None, True, 0)


@pytest.mark.parametrize(
    "data",
    [b":one\r\n", b"$one\r\n", b"*one\r\n", b"$-7\r\nx", b"x" * 70_000],
)
def test_an_invalid_answer_ends_the_connection(server: Server, data: bytes) -> None:
    """
    An invalid reply ends the connection, since later replies could not be assigned to
    their commands.
    """
    reading = resultOf(server.store.get(ONE))
    writing = resultOf(server.store.destroy(ONE))
    lost = resultOf(server.store.whenLost())
    with logged() as events:
        server.answer(data, ROW)
    assert isinstance(lost.error, SessionsUnavailable)
    reason = "unix:///socket?db=0: it does not speak the protocol of Redis"
    assert str(lost.error) == reason
    assert server.transport.disconnecting
    assert isinstance(reading.error, SessionsUnavailable)
    assert isinstance(writing.error, OutcomeUnknown)
    assert writing.error.method == "destroy"
    # The reason of the loss was reported to whenLost().
    assert textsOf(events) == []


def test_an_answer_is_limited_in_size(server: Server) -> None:
    """
    The size of a reply is limited, so that an endless reply does not fill the memory.
    """
    reading = resultOf(server.store.get(ONE))
    server.answer(b"$500000000\r\n", *[b"x" * 2**23] * 9)
    assert isinstance(reading.error, SessionsUnavailable)
    assert "too large" in str(reading.error)


def test_an_unsolicited_answer_ends_the_connection(server: Server) -> None:
    """
    An unsolicited reply ends the connection; otherwise the next command, of another
    visitor, would get it.
    """
    server.answer(ROW)
    assert server.transport.disconnecting
    assert not server.store.initialized
    assert isinstance(resultOf(server.store.get(ONE)).error, NotInitialized)


@pytest.mark.parametrize("isLost", [False, True])
def test_a_call_can_be_cancelled(server: Server, isLost: bool) -> None:
    """
    The reply to a cancelled call is ignored, and the next call gets its own.
    """
    first, second = server.store.get(ONE), server.store.get(ONE)
    cancelled, kept = resultOf(first), resultOf(second)
    first.cancel()
    assert isinstance(cancelled.error, CancelledError)
    if isLost:
        server.drop()
        assert isinstance(kept.error, SessionsUnavailable)
    else:
        server.answer(ROW, NONE)
        assert kept.value is None


def test_the_number_of_waiting_commands_is_limited(server: Server) -> None:
    """
    One command too many fails at once; a reply makes room again.
    """
    results = [resultOf(server.store.get(ONE)) for _ in range(10_000)]
    error = resultOf(server.store.get(ONE)).error
    assert isinstance(error, SessionsUnavailable)
    assert "10000 commands wait" in str(error)
    assert all(result.pending for result in results)
    server.answer(ROW)
    last = resultOf(server.store.get(ONE))
    server.answer(ROW * 10_000)
    assert all(result.value.data == {"a": 1} for result in [*results, last])


def test_the_size_of_waiting_commands_is_limited(reactor: MemoryReactorClock) -> None:
    """
    The size of waiting commands is limited, too, since a few large sessions need as
    much memory as many commands.
    """
    server = Server(reactor, limits=Limits(size=40 * 1024 * 1024))
    server.start()
    data = {"a": "x" * (33 * 1024 * 1024)}
    first = resultOf(server.store.create(ONE, data))
    second = resultOf(server.store.create(makeIdentifier(), data))
    assert isinstance(second.error, SessionsUnavailable)
    server.answer(b":1\r\n")
    assert first.value.version == 1
    third = resultOf(server.store.create(ONE, data))
    server.answer(b":0\r\n")
    assert isinstance(third.error, SessionError)
    server.finish()


# Losses.


def test_a_loss_is_reported_before_any_call_fails(server: Server) -> None:
    """
    The loss is reported before any call fails, so that a wrapper queues the calls in
    replay, and the store can be initialised again at once.
    """
    told: list[str] = []
    again: list[Result] = []

    def lost(reason: Failure) -> None:
        assert str(reason.value) == "unix:///socket?db=0: it closed the connection"
        told.append("lost")
        assert not server.store.initialized
        again.append(resultOf(server.store.initialize()))

    server.store.whenLost().addErrback(lost)
    server.store.get(ONE).addErrback(lambda _: told.append("read"))
    server.store.destroy(ONE).addErrback(lambda _: told.append("write"))
    server.drop()
    assert told == ["lost", "read", "write"]
    server.accept()
    server.answer(*LOGIN)
    assert again[0].value is None
    assert server.store.initialized


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_read_given_up_around_a_loss_is_not_made_again(
    reactor: MemoryReactorClock, when: str
) -> None:
    """
    A read that was cancelled around a loss is not repeated; a wrapper repeats the other
    reads.
    """
    server = Server(reactor)
    wrapper = QueuingWrapper(
        server.store, reactor, replay=["get"], retryPolicy=lambda attempts: 1.0
    )
    wrapper.initialize()
    server.accept()
    server.answer(*LOGIN)
    server.commands()
    given, kept = wrapper.proxy.get(ONE), resultOf(wrapper.proxy.get(ONE))
    result = resultOf(given)
    if when == "before":
        given.cancel()
    elif when == "during":
        wrapper.addObserver(given.cancel)
    server.drop()
    assert wrapper.state is State.LOST
    given.cancel()
    assert isinstance(result.error, CancelledError)
    reactor.advance(1)
    server.accept()
    server.answer(*LOGIN)
    reactor.advance(0)
    asked = [words[0] for words in server.commands()]
    assert asked == [b"INFO", b"EVALSHA", b"HMGET", b"HMGET"]
    server.answer(NONE)
    assert kept.value is None
    wrapper.close()
    server.drop()


def test_a_silent_redis_is_lost(server: Server, reactor: MemoryReactorClock) -> None:
    """
    A command without a reply for 5 s ends the connection.
    """
    lost = resultOf(server.store.whenLost())
    reactor.pump([1.0] * 2)
    reading = resultOf(server.store.get(ONE))
    reactor.pump([1.0] * 4)
    server.answer(ROW)
    assert reading.value.data == {"a": 1}
    reading = resultOf(server.store.get(ONE))
    writing = resultOf(server.store.create(ONE, {}))
    reactor.pump([1.0] * 4)
    assert lost.pending
    reactor.pump([1.0] * 2)
    assert str(lost.error) == "unix:///socket?db=0: no answer in 5 s"
    assert isinstance(reading.error, SessionsUnavailable)
    assert "no answer in 5 s" in str(reading.error)
    assert isinstance(writing.error, OutcomeUnknown)
    assert server.transport.disconnecting


@pytest.mark.parametrize("answers", [True, False])
def test_an_idle_connection_is_checked(
    server: Server, reactor: MemoryReactorClock, answers: bool
) -> None:
    """
    An idle connection is checked with a PING; a silent Redis is lost within 10 s.
    """
    lost = resultOf(server.store.whenLost())
    for _ in range(10):
        reactor.advance(1.0)
        if (commands := server.commands()) and answers:
            assert commands == [[b"PING"]]
            server.answer(b"+PONG\r\n")
    assert lost.pending is answers


def test_a_program_that_stood_still_does_not_blame_redis(
    server: Server, reactor: MemoryReactorClock
) -> None:
    """
    If a program was suspended for an hour, replies have arrived although the timers run
    first: Redis is not lost.
    """
    reading = resultOf(server.store.get(ONE))
    reactor.advance(3600.0)
    assert reading.pending
    # The session has expired after 1800 s.
    server.answer(ROW)
    assert reading.value is None
    assert server.store.initialized


@pytest.mark.parametrize(
    ("answer", "expected", "isLost"),
    [
        (b"-READONLY You can't write", SessionsUnavailable, True),
        (b"-LOADING Redis is loading", SessionsUnavailable, True),
        (b"-BUSY Redis is busy", SessionsUnavailable, True),
        (
            b"-ERR Error running script (call to f_1a2b): @user_script:3: "
            b"@user_script: 3: -READONLY You can't write against a replica.",
            SessionsUnavailable,
            True,
        ),
        (b"-OOM command not allowed", SessionsUnavailable, False),
        (b"-MISCONF Redis is", SessionsUnavailable, False),
        (b"-NOPERM this user", SessionsUnavailable, False),
        (b"-NOAUTH Authentication required.", SessionsUnavailable, False),
        (b"-MOVED 1 127.0.0.1:7001", SessionsUnavailable, False),
        (b"-ERR wrong", SessionError, False),
        (b"-nothing that is known", SessionError, False),
    ],
)
def test_an_error_says_whether_a_retry_may_succeed(
    server: Server, answer: bytes, expected: type[Exception], isLost: bool
) -> None:
    """
    After these errors nothing was carried out. If the server is a replica, the
    connection ends, since a new one may reach the master.
    """
    lost = resultOf(server.store.whenLost())
    writing = resultOf(server.store.create(ONE, {}))
    reading = resultOf(server.store.get(ONE))
    server.answer(answer + b"\r\n")
    assert type(writing.error) is expected
    assert lost.pending is not isLost
    assert reading.pending is not isLost
    server.drop()
    assert isinstance(reading.error, SessionsUnavailable)


def test_an_unknown_script_is_sent_again(server: Server) -> None:
    """
    An unknown script is sent again, since Redis forgets scripts when it restarts.
    """
    creating = resultOf(server.store.create(ONE, {"a": 1}))
    ((command, _, *words),) = server.commands()
    assert command == b"EVALSHA"
    server.answer(b"-NOSCRIPT No matching script.\r\n")
    ((command, text, *again),) = server.commands()
    assert command == b"EVAL"
    assert b"HSET" in text
    assert again == words
    server.answer(b":1\r\n")
    assert creating.value.data == {"a": 1}


@pytest.mark.parametrize("isClosing", [True, False])
def test_a_command_that_was_not_sent_was_not_carried_out(
    server: Server, isClosing: bool
) -> None:
    """
    If the connection ends between two commands of a call, the second command was not
    carried out, and the outcome is known.
    """
    creating = resultOf(server.store.create(ONE, {"a": 1}))
    counting = resultOf(server.store.length())
    if isClosing:
        server.store.close()
    server.answer(b"-NOSCRIPT No matching script.\r\n")
    assert creating.pending is not isClosing
    server.answer(b"*2\r\n$1\r\n7\r\n*0\r\n")
    server.drop()
    expected = SessionsUnavailable if isClosing else OutcomeUnknown
    assert isinstance(creating.error, expected)
    assert isinstance(counting.error, SessionsUnavailable)


def test_a_change_that_needs_a_lost_connection_fails(server: Server) -> None:
    """
    A change that has read its session, and a change that waits for it, were not carried
    out if the connection is lost.
    """
    first = resultOf(server.store.set(ONE, Changes({"a": 1})))
    second = resultOf(server.store.set(ONE, Changes({"a": 2})))
    server.answer(ROW)
    server.drop()
    assert isinstance(first.error, OutcomeUnknown)
    assert isinstance(second.error, SessionsUnavailable)


# Closing.


def test_a_close_waits_for_answers(server: Server) -> None:
    """
    A close waits for the replies to commands that were sent, and their calls succeed.
    """
    lost = resultOf(server.store.whenLost())
    creating = resultOf(server.store.create(ONE, {}))
    first, second = resultOf(server.store.close()), resultOf(server.store.close())
    assert lost.value is None
    assert resultOf(server.store.whenLost()).value is None
    assert isinstance(resultOf(server.store.get(ONE)).error, NotInitialized)
    assert not server.transport.disconnecting
    server.answer(b":1\r\n")
    assert creating.value.version == 1
    assert server.transport.disconnecting
    assert first.pending
    server.drop()
    assert (first.value, second.value) == (None, None)
    assert resultOf(server.store.close()).value is None


def test_a_close_does_not_wait_for_ever(
    server: Server, reactor: MemoryReactorClock
) -> None:
    """
    After 5 s without a reply, a close aborts the connection.
    """
    creating = resultOf(server.store.create(ONE, {}))
    closing = resultOf(server.store.close())
    reactor.pump([1.0] * 6)
    assert isinstance(creating.error, OutcomeUnknown)
    assert server.transport.disconnecting
    server.drop()
    assert closing.value is None


def test_the_end_of_an_old_connection_does_not_affect_the_new_one(
    server: Server,
) -> None:
    """
    While the old connection is closing, the store can be initialised again, and the end
    of the old connection does not affect the new one.
    """
    creating = resultOf(server.store.create(ONE, {}))
    closing = resultOf(server.store.close())
    old = server.protocol
    server.start()
    lost = resultOf(server.store.whenLost())
    with logged() as events:
        old.connectionLost(Failure(ConnectionDone()))
    assert isinstance(creating.error, OutcomeUnknown)
    assert closing.value is None
    assert lost.pending
    assert server.store.initialized
    assert textsOf(events) == []


# The data in a real Redis.


def nameOf(identifier: str) -> str:
    """
    @return: The name of the key of a session.
    """
    key = keyOf(identifier)
    assert key is not None
    return f"tsrv:session:{key.hex()}"


@asynchronous
async def test_a_session_is_a_hash_that_expires(redis: Redis) -> None:
    """
    A session is a hash in the database of the URL, which does not contain the
    identifier.
    """

    def ask(*words: str | bytes) -> Any:
        script = "redis.call('SELECT', 1) return redis.call(unpack(ARGV))"
        return redis.ask("EVAL", script, "0", *words)

    async with using(f"{redis.url}/1") as store:
        made = await store.create(ONE, {"ä": "\r\n$-1\r\n"})
        assert redis.ask("DBSIZE") == 0
        (name,) = ask("KEYS", "*")
        assert name.decode() == nameOf(ONE)
        fields = ask("HGETALL", name)
        kept = dict(zip(fields[::2], fields[1::2], strict=True))
        assert json.loads(kept[b"d"]) == {"ä": "\r\n$-1\r\n"}
        assert float(kept[b"c"]) == made.created
        assert float(kept[b"x"]) == made.expires
        assert kept[b"v"] == b"1"
        assert 1790 < ask("PTTL", name) / 1000 <= 1801
        assert ONE.encode() not in b"".join(fields)
        ask("PEXPIRE", name, "60000")
        session = await store.set(ONE, Changes({"b": 2}), made)
        assert session is not None
        assert session.version == 2
        assert ask("PTTL", name) > 1_790_000
        ask("PEXPIRE", name, "1")
        while await store.touch(ONE):
            pass
        assert await store.get(ONE) is None


@asynchronous
async def test_a_use_is_written_with_its_time_to_live_unless_it_is_late(
    redis: Redis,
) -> None:
    """
    A use is written with its time to live, but a slow process does not replace a later
    use by another one.
    """
    clock = Clock()
    timed = Timed(clock)
    store = RedisSessionStore(timed, redis.url)
    await store.initialize()
    await store.create(ONE, {})
    for seconds, left in ((80.0, 1800.0), (20.0, 1900.0)):
        clock.advance(seconds)
        redis.ask("PEXPIRE", nameOf(ONE), "5000")
        assert await store.touch(ONE)
        assert float(redis.ask("HGET", nameOf(ONE), "x")) == left
        isWritten = redis.ask("PTTL", nameOf(ONE)) > 5000
        assert isWritten is (left > 1800.0)

    def useInTheMeantime() -> float:
        redis.ask("HSET", nameOf(ONE), "x", "3000")
        return clock.seconds()

    clock.advance(100.0)
    # The store reads the clock between reading and writing.
    timed.seconds = useInTheMeantime
    assert await store.touch(ONE)
    assert redis.ask("HGET", nameOf(ONE), "x") == b"3000"
    await store.close()


@asynchronous
async def test_a_session_may_live_for_ever(redis: Redis) -> None:
    """
    A session without a time limit can be stored, although Redis accepts only finite
    numbers.
    """
    async with using(redis.url, limits=Limits(float("inf"), None)) as store:
        made = await store.create(ONE, {"a": 1})
        found = await store.get(ONE)
        assert found is not None
        assert found.data == made.data


@pytest.mark.parametrize(
    "commands",
    [
        [("DEL", "NAME"), ("SET", "NAME", "a text")],
        [("DEL", "NAME"), ("RPUSH", "NAME", "a", "list")],
        [("HSET", "NAME", "d", '{"cut')],
        [("HSET", "NAME", "d", "[]")],
        [("HDEL", "NAME", "d")],
        [("HDEL", "NAME", "v")],
        [("HSET", "NAME", "v", "one")],
        [("HSET", "NAME", "x", "soon")],
        [("HDEL", "NAME", "c", "x", "v")],
    ],
)
@asynchronous
async def test_a_damaged_hash_is_absent_and_removed(
    redis: Redis, commands: list[tuple[str, ...]]
) -> None:
    """
    Anything else under the key of a session is treated as absent, and removed.
    """
    async with using(redis.url) as store:
        asks: list[Callable[[], Any]] = [
            lambda: store.get(ONE),
            lambda: store.set(ONE, Changes({"a": 2})),
            lambda: store.touch(ONE),
            store.all,
        ]
        for ask in asks:
            known = await store.create(ONE, {"a": 1})
            for command in commands:
                redis.ask(
                    *(nameOf(ONE) if word == "NAME" else word for word in command)
                )
            with logged() as events:
                assert not await ask()
            (text,) = textsOf(events)
            assert text == f"Removing a damaged session: {nameOf(ONE)[13:25]}"
            # The removal was sent before this command.
            await store.get(makeIdentifier())
            assert not redis.ask("EXISTS", nameOf(ONE))
            assert await store.set(ONE, Changes({"a": 2}), known) is None


@asynchronous
async def test_what_replaces_a_session_is_not_written_to(redis: Redis) -> None:
    """
    A script does not change a key of another type, except that C{destroy()} deletes it.
    """
    async with using(redis.url) as store:
        known = await store.create(ONE, {})
        redis.ask("DEL", nameOf(ONE))
        redis.ask("SET", nameOf(ONE), "a text")
        assert await store.length() == 0
        with pytest.raises(SessionError):
            await store.create(ONE, {})
        assert redis.ask("GET", nameOf(ONE)) == b"a text"
        assert await store.set(ONE, Changes({"a": 1}), known) is None
        redis.ask("SET", nameOf(ONE), "a text")
        assert await store.destroy(ONE) is False
        assert redis.ask("EXISTS", nameOf(ONE)) == 0


@asynchronous
async def test_a_session_that_was_repaired_is_not_removed(ownRedis: Redis) -> None:
    """
    A session that was repaired is not removed: the removal names the version that was
    damaged.
    """
    ownRedis.start()
    async with using(ownRedis.url) as store:
        await store.create(ONE, {})
        ownRedis.ask("HSET", nameOf(ONE), "d", "damaged")
        # Scripts, which would remove the session, are refused at first.
        ownRedis.ask("ACL", "SETUSER", "default", "-evalsha")
        assert await store.get(ONE) is None
        await store.get(makeIdentifier())
        ownRedis.ask("HSET", nameOf(ONE), "d", "{}", "v", "2")
        ownRedis.ask("ACL", "SETUSER", "default", "+evalsha")
        session = await store.get(ONE)
        assert session is not None
        assert session.version == 2


@asynchronous
async def test_only_keys_with_the_prefix_are_listed_and_removed(redis: Redis) -> None:
    """
    Listing and removing take special characters in the prefix literally.
    """
    prefix = "a*[b]?\\:"
    async with (
        using(redis.url, prefix) as store,
        using(redis.url, "aX[b]Y\\:") as other,
    ):
        await other.create(ONE, {})
        redis.ask("SET", prefix + "other", "kept")
        redis.ask("SET", prefix + "x" * 64, "kept")
        for number in range(3):
            await store.create(makeIdentifier(), {"n": number})
        assert await store.length() == 3
        assert len(await store.all()) == 3
        assert await store.clear() == 3
        assert await store.length() == 0
        assert redis.ask("DBSIZE") == 3
        assert await other.length() == 1


@asynchronous
async def test_many_sessions_are_listed_in_order(redis: Redis) -> None:
    """
    Listing omits damaged sessions, and has no empty part before the end.
    """
    async with using(redis.url) as store:
        await DeferredList(
            [store.create(makeIdentifier(), {"n": n}) for n in range(1500)]
        )
        assert await store.length() == 1500
        listed: list[bytes] = []
        while entries := await store.all(listed[-1] if listed else b"", 400):
            assert len(entries) <= 400
            listed += [key for key, _ in entries]
        assert listed == sorted(set(listed))
        assert len(listed) == 1500
        for key in listed[:200]:
            redis.ask("SET", f"tsrv:session:{key.hex()}", "a text")
        for key in listed[200:400]:
            redis.ask("HSET", f"tsrv:session:{key.hex()}", "x", "0")
        entries = await store.all(limit=200)
        assert [key for key, _ in entries] == listed[400:600]
        assert await store.clear() == 1300
        assert redis.ask("DBSIZE") == 0


# Connections to a real Redis, and their failures.


@asynchronous
async def test_a_login_that_fails_is_refused(ownRedis: Redis) -> None:
    """
    A login is refused if the password is wrong or missing, or the user has too few
    rights. The right to use INFO is not needed.
    """
    ownRedis.start(requirepass=SECRET)
    rights = ["+@read", "+@write", "+@scripting", "+@connection"]
    for user, prefix in (("al", "tsrv:session:*"), ("eve", "other:*")):
        ownRedis.ask(
            *("ACL", "SETUSER", user, "on", ">x", *rights, f"~{prefix}"),
            password=SECRET,
        )
    at = f"127.0.0.1:{ownRedis.port}"
    for login, number, words in [
        ("", 0, "it requires a password"),
        (":wrong@", 0, "check the user and the password"),
        ("someone:wrong@", 0, "check the user and the password"),
        (":correct%20horse@", 4, "no database 4"),
        ("eve:x@", 0, "the prefix of the keys"),
    ]:
        with pytest.raises(SessionsRefused, match=words):
            async with using(f"redis://{login}{at}/{number}"):
                pass
    for login in (":correct%20horse@", "default:correct%20horse@", "al:x@"):
        async with using(f"redis://{login}{at}") as store:
            await store.create(ONE, {})
            assert await store.length() == 1
            assert await store.touch(ONE) is True
            assert await store.clear() == 1


@asynchronous
async def test_redis_can_be_reached_by_localhost_and_by_a_socket(redis: Redis) -> None:
    """
    C{redis://} takes host names, and C{unix://} the path of a socket.
    """
    for url in (
        f"redis://localhost:{redis.port}/1",
        f"unix://{redis.directory / 'socket'}?db=1",
    ):
        async with using(url) as store:
            await store.create(ONE, {})
            assert await store.clear() == 1
    with pytest.raises(SessionsUnavailable, match="cannot connect to unix://"):
        async with using(f"unix://{redis.directory / 'missing'}"):
            pass


@asynchronous
async def test_attempts_to_connect_are_not_logged(tmp_path: Path) -> None:
    """
    Attempts to connect are not logged by the store, since the wrapper has a line for
    each of them.
    """
    store = storeAt(f"unix://{tmp_path / 'missing'}")
    with logged() as events:
        with pytest.raises(SessionsUnavailable, match="cannot connect"):
            await store.initialize()
        await store.close()
    assert textsOf(events) == []


def makeCertificate(directory: Path) -> tuple[str, str]:
    """
    @return: The files of a certificate for C{localhost} and of its key.
    """
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(  # noqa: S603
        ["openssl", *words.split(), *names, *files],  # noqa: S607
        check=True,
        capture_output=True,
    )
    return str(certificate), str(key)


@asynchronous
async def test_redis_can_be_reached_by_tls(
    ownRedis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The certificate must be valid for the host, and issued by a known authority.
    """
    certificate, key = makeCertificate(tmp_path)
    with reservedPort() as port:
        try:
            ownRedis.start(
                tls_port=str(port),
                tls_cert_file=certificate,
                tls_key_file=key,
                tls_ca_cert_file=certificate,
                tls_auth_clients="no",
            )
        except AssertionError as error:
            pytest.skip(f"this redis-server has no TLS: {error}")
        store = storeAt(f"rediss://localhost:{port}")
        with pytest.raises(SessionsUnavailable, match="certificate verify failed"):
            await store.initialize()
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        await store.initialize()
        made = await store.create(ONE, {"a": "x" * 50_000})
        assert await store.get(ONE) == made
        await store.close()
        with pytest.raises(SessionsUnavailable):
            async with using(f"rediss://127.0.0.1:{port}"):
                pass


@asynchronous
async def test_a_server_that_became_a_replica_is_left(ownRedis: Redis) -> None:
    """
    If the server has become a replica after a failover, the store connects again.
    """
    ownRedis.start()
    async with using(ownRedis.url) as store:
        ownRedis.ask("REPLICAOF", "127.0.0.1", "1")
        if store.initialized:
            with pytest.raises(SessionsUnavailable, match="a replica"):
                await store.create(ONE, {})
        assert not store.initialized
        with pytest.raises(SessionsUnavailable, match="a replica"):
            await store.initialize()
        ownRedis.ask("REPLICAOF", "NO", "ONE")
        await store.initialize()
        await store.create(ONE, {})


@asynchronous
async def test_a_full_redis_still_reads(ownRedis: Redis) -> None:
    """
    If Redis is full, reads succeed, changes fail, and nothing is lost.
    """
    ownRedis.start()
    async with using(ownRedis.url) as store:
        made = await store.create(ONE, {"a": 1})
        ownRedis.ask("CONFIG", "SET", "maxmemory", "1")
        for change in (
            store.create(makeIdentifier(), {}),
            store.set(ONE, Changes({"a": 2})),
        ):
            with pytest.raises(SessionsUnavailable, match="no memory left"):
                await change
        assert await store.get(ONE) == made
        ownRedis.ask("CONFIG", "SET", "maxmemory", "0")
        assert await store.set(ONE, Changes({"a": 2})) is not None
