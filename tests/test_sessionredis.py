"""
Sessions in Redis: what goes over the wire, what becomes of answers that are none,
and a real server that is killed, paused, locked and filled with other things.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from hashlib import sha256
from pathlib import Path
from select import POLLIN, poll
from time import monotonic
from typing import Any, cast

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tsrv import QueuingWrapper
from tsrv.asyncmodule import NotInitialized
from tsrv.errors import OutcomeUnknown
from tsrv.sessions import (
    Changes,
    ISessionStore,
    Limits,
    SessionError,
    SessionsUnavailable,
    keyOf,
    makeIdentifier,
)
from tsrv.sessions.redis import (
    RedisSessionStore,
    SessionsRefused,
)
from tsrv.sessions.redisanswers import codeOf
from tsrv.sessions.redisscripts import PROLONG
from tsrv.testing import SharedSessionStoreTests

from ._redis import Redis
from ._redis import ownRedis as ownRedis
from ._redis import redis as redis
from .support import Result, resultOf
from .websupport import asynchronous, logged, textsOf

SECRET = "correct horse"  # noqa: S105

ONE = makeIdentifier()


class Wire(StringTransport):
    """
    The store's end of a connection in memory.
    """

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Nothing is delayed anyway.
        """

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """
        Nothing is kept alive.
        """


class Line:
    """
    A store whose Redis is the test.
    """

    def __init__(
        self, reactor: Any, url: str = "redis://10.0.0.1", **options: Any
    ) -> None:
        self.reactor = reactor
        self.store = RedisSessionStore(reactor, url, **options)
        self.protocol: Any = None
        self.wire = Wire()

    def begin(self) -> Result:
        """
        Let the store initialise.
        """
        return resultOf(self.store.initialize())

    def connect(self) -> None:
        """
        Accept the connection.
        """
        factory = self.reactor.tcpClients[-1][2]
        self.protocol = factory.buildProtocol(IPv4Address("TCP", "10.0.0.1", 6379))
        self.wire = Wire()
        self.protocol.makeConnection(self.wire)

    def refuse(self) -> None:
        """
        Refuse the connection.
        """
        factory = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(Refused()))

    def asked(self) -> list[list[bytes]]:
        """
        @return: The commands that came since.
        """
        rest = self.wire.value()
        self.wire.clear()
        commands = []
        while rest:
            head, _, rest = rest.partition(b"\r\n")
            words = []
            for _ in range(int(head[1:])):
                size, _, rest = rest.partition(b"\r\n")
                words.append(rest[: int(size[1:])])
                rest = rest[int(size[1:]) + 2 :]
            commands.append(words)
        return commands

    def answer(self, *data: bytes) -> None:
        """
        Say something.
        """
        for each in data:
            self.protocol.dataReceived(each)

    def drop(self) -> None:
        """
        Close the connection.
        """
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def ready(self) -> None:
        """
        Initialise the store.
        """
        opening = self.begin()
        self.connect()
        self.answer(b"+PONG\r\n", b":0\r\n")
        assert opening.value is None
        self.asked()


@pytest.fixture
def reactor() -> Iterator[MemoryReactorClock]:
    """
    A reactor in memory, on which no call may be left when the test ends.
    """
    reactor = MemoryReactorClock()
    yield reactor
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def line(reactor: MemoryReactorClock) -> Iterator[Line]:
    """
    A store that is ready, and is closed when the test ends.
    """
    line = Line(reactor)
    line.ready()
    yield line
    closing = resultOf(line.store.close())
    reactor.pump([1.0] * 6)
    if closing.pending:
        line.drop()
    assert closing.value is None


def bulk(*values: object) -> bytes:
    """
    @return: An answer of several values.
    """
    parts = [b"*%d\r\n" % len(values)]
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(
            b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(data), data)
        )
    return b"".join(parts)


ROW = bulk('{"a":1}', 0.0, 1800.0, 1)
NONE = bulk(None, None, None, None)


# Where it is.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis:",
        "redis://",
        "rediss://host",
        "http://host",
        "redis://host/name",
        "redis://host/0/1",
        "redis://host:port",
        "redis://host:0",
        "redis://host:70000",
        "redis://host/0?db=1",
        "redis://host/0#1",
        f"redis://:{SECRET}#@host",
        f"redis://:{SECRET}/@host",
        f"redis://:{SECRET}@@host",
        f"redis://{SECRET}@host",
        "redis://user:@host",
        "redis://[::1",
        "redis://:\udcff@host",
    ],
)
def test_a_url_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    """
    It may hold a password, and is refused before anything else begins.
    """
    with pytest.raises(ValueError, match="the URL of Redis is") as raised:
        RedisSessionStore(Clock(), url)
    assert SECRET not in str(raised.value)
    error = raised.value
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown", "commands"),
    [
        ("redis://10.0.0.1", "redis://10.0.0.1:6379/0", []),
        ("redis://[::1]:1/3", "redis://[::1]:1/3", [[b"SELECT", b"3"]]),
        (
            "redis://:p%40ss%2F@10.0.0.1/0",
            "redis://10.0.0.1:6379/0",
            [[b"AUTH", b"p@ss/"]],
        ),
        (
            "redis://al:p%3Ass:@10.0.0.1/1",
            "redis://al@10.0.0.1:6379/1",
            [[b"AUTH", b"al", b"p:ss:"], [b"SELECT", b"1"]],
        ),
    ],
)
def test_the_url_says_where_to_connect_and_how_to_log_in(
    reactor: MemoryReactorClock, url: str, shown: str, commands: list[list[bytes]]
) -> None:
    """
    A password may hold any character, and is shown nowhere.
    """
    line = Line(reactor, url)
    with logged() as events:
        opening = line.begin()
        host, port, *_ = reactor.tcpClients[-1]
        assert f"{host}:{port}" in shown.replace("[", "").replace("]", "")
        line.connect()
        for command in [*commands, [b"PING"]]:
            assert line.asked() == [command]
            line.answer(b"+OK\r\n")
        ((_, _, keys, probe, *rest),) = line.asked()
        assert (keys, probe, rest) == (b"1", b"tsrv:session:probe", [])
        line.answer(b":0\r\n")
        assert opening.value is None
        assert line.store.initialized
    assert repr(line.store) == f"<RedisSessionStore at {shown}>"
    assert "p@ss" not in repr(vars(line.store))
    assert "p:ss" not in repr(vars(line.store))
    assert f"Connected to {shown}" in textsOf(events)
    assert not any("p@ss" in text or "p:ss" in text for text in textsOf(events))
    closing = resultOf(line.store.close())
    line.drop()
    assert closing.value is None


def test_to_import_it_installs_no_reactor() -> None:
    """
    txredisapi does; which reactor there is, is the program's choice.
    """
    program = (
        "import sys, tsrv.sessions.redis as it; it.RedisSessionStore(None, "
        "'redis://host'); assert 'twisted.internet.reactor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, reactor: MemoryReactorClock
) -> None:
    """
    Redis is an extra.
    """
    monkeypatch.setitem(sys.modules, "txredisapi", None)
    monkeypatch.delitem(sys.modules, "tsrv.sessions.redisconnection", raising=False)
    line = Line(reactor)
    error = line.begin().error
    assert isinstance(error, SessionsRefused)
    assert "pip install 'tsrv[redis]'" in str(error)
    assert resultOf(line.store.close()).value is None


# How it becomes ready, or does not.


@pytest.mark.parametrize(
    ("answers", "expected", "words"),
    [
        (["-WRONGPASS invalid pair"], SessionsRefused, "check the user and"),
        (["-ERR invalid password"], SessionsRefused, "check the user and"),
        (["-NOPERM"], SessionsRefused, "allow"),
        (["-DENIED Redis is running in"], SessionsRefused, "protected mode"),
        (
            [f"-ERR unknown command 'AUTH', with args beginning with: '{SECRET}'"],
            SessionsRefused,
            "check the user and",
        ),
        (["-ERR max number of clients reached"], SessionsUnavailable, "too many"),
        (["+OK", "-ERR DB index is out of range"], SessionsRefused, "no database 2"),
        (["+OK", "-NOAUTH x"], SessionsRefused, "write it into the URL"),
        (["+OK", "+OK", "-LOADING Redis is"], SessionsUnavailable, "reading its data"),
        (["+OK", "+OK", "-MASTERDOWN x"], SessionsUnavailable, "lost its master"),
        (["+OK", "+OK", "+PONG", "-READONLY You"], SessionsUnavailable, "a copy"),
        (["+OK", "+OK", "+PONG", "-NOPERM this"], SessionsRefused, "+@scripting"),
        (["+OK", "+OK", "+PONG", "-MOVED 1 x"], SessionsRefused, "a cluster"),
        (["+OK", "+OK", "+PONG", "-MISCONF x"], SessionsUnavailable, "its disk"),
        (["+OK", "+OK", "+PONG", "-ERR unknown"], SessionError, "(ERR)"),
    ],
)
def test_what_redis_refuses_says_what_to_do_and_whether_to_try_again(
    reactor: MemoryReactorClock,
    answers: list[str],
    expected: type[Exception],
    words: str,
) -> None:
    """
    A start that never can succeed has to end, with the reason; one that may
    succeed later has to be tried again. What Redis says may repeat the password.
    """
    line = Line(reactor, f"redis://:{SECRET}@10.0.0.1/2")
    opening = line.begin()
    line.connect()
    for answer in answers:
        line.answer(answer.encode() + b"\r\n")
    error = opening.error
    assert isinstance(error, expected)
    assert words in str(error)
    assert SECRET not in str(error)
    assert error.__suppress_context__ or error.__context__ is None
    assert line.wire.disconnecting
    assert not line.store.initialized
    closing = resultOf(line.store.close())
    assert closing.pending
    line.drop()
    assert closing.value is None


def test_a_refused_connection_may_be_tried_again(reactor: MemoryReactorClock) -> None:
    """
    Redis may be started after the program.
    """
    line = Line(reactor)
    opening = line.begin()
    line.refuse()
    assert isinstance(opening.error, SessionsUnavailable)
    assert "redis://10.0.0.1:6379/0 cannot be connected to" in str(opening.error)
    line.ready()
    closing = resultOf(line.store.close())
    line.drop()
    assert closing.value is None


@pytest.mark.parametrize("connected", [False, True])
def test_who_does_not_answer_is_given_up(
    reactor: MemoryReactorClock, connected: bool
) -> None:
    """
    A firewall drops what is sent; a Redis that is stopped accepts, and says
    nothing.
    """
    line = Line(reactor, connectTimeout=2.0)
    opening = line.begin()
    if connected:
        line.connect()
    reactor.advance(1.9)
    assert opening.pending
    reactor.advance(0.1)
    assert isinstance(opening.error, SessionsUnavailable)
    assert "gives no answer in 2 s" in str(opening.error)
    if connected:
        assert line.wire.disconnecting
        line.drop()
    assert resultOf(line.store.close()).value is None


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("close", [False, True])
def test_an_initialisation_can_be_given_up(
    reactor: MemoryReactorClock, connected: bool, close: bool
) -> None:
    """
    A program may be stopped while it starts; nothing may be left open.
    """
    line = Line(reactor)
    deferred = line.store.initialize()
    opening = resultOf(deferred)
    if connected:
        line.connect()
    if close:
        closing = resultOf(line.store.close())
    else:
        deferred.cancel()
        closing = resultOf(line.store.close())
    assert isinstance(opening.error, CancelledError)
    if connected:
        assert line.wire.disconnecting
        assert closing.pending
        line.drop()
    assert closing.value is None
    line.ready()
    closing = resultOf(line.store.close())
    line.drop()
    assert closing.value is None


def test_only_one_initialisation_is_in_progress(reactor: MemoryReactorClock) -> None:
    """
    Two would make two connections, one of which nobody closes.
    """
    line = Line(reactor)
    first = line.begin()
    assert isinstance(line.begin().error, SessionsUnavailable)
    line.connect()
    line.answer(b"+PONG\r\n:0\r\n")
    assert first.value is None
    assert line.begin().value is None
    assert len(reactor.tcpClients) == 1
    closing = resultOf(line.store.close())
    line.drop()
    assert closing.value is None


def test_a_host_that_nobody_knows_may_be_known_later(
    reactor: MemoryReactorClock,
) -> None:
    """
    The name server may be started after the program, too.
    """

    @implementer(IHostnameResolver)
    class Resolver:
        """
        Knows no name.
        """

        def resolveHostName(  # type: ignore[override]
            self, receiver: Any, *_: Any, **__: Any
        ) -> Any:
            """
            Find nothing.
            """
            receiver.resolutionBegan(None)
            receiver.resolutionComplete()

    reactor.installNameResolver(Resolver())
    line = Line(reactor, "redis://redis.example")
    error = line.begin().error
    assert isinstance(error, SessionsUnavailable)
    assert str(error) == "the host of Redis, redis.example, is not known"
    assert resultOf(line.store.close()).value is None


# What is said, and what is not understood.


def test_answers_may_come_in_any_pieces(line: Line) -> None:
    """
    TCP keeps no bounds: several answers come at once, or one byte at a time.
    """
    answers = ROW + NONE + b":1\r\n" + bulk("7", b"") + b"+OK\r\n" + ROW

    def asking() -> list[Result]:
        return [
            resultOf(line.store.get(ONE)),
            resultOf(line.store.get(ONE)),
            resultOf(line.store.destroy(ONE)),
            resultOf(line.store._ask(b"SCAN")),
            resultOf(line.store._ask(b"PING")),
            resultOf(line.store.get(ONE)),
        ]

    for size in (1, 2, 3, 7, 1000):
        results = asking()
        line.answer(*(answers[at : at + size] for at in range(0, len(answers), size)))
        found, none, destroyed, listed, status, again = [r.value for r in results]
        assert found == again
        assert found.data == {"a": 1}
        assert (none, destroyed, listed, status) == (None, True, [b"7", b""], "OK")


def test_many_answers_at_once_need_no_more_time(line: Line) -> None:
    """
    The protocol of txredisapi goes through the reactor for each value.
    """
    results = [resultOf(line.store.get(ONE)) for _ in range(5000)]
    line.answer(ROW * 5000)
    assert all(result.value.data == {"a": 1} for result in results)


@pytest.mark.parametrize(
    "data",
    [
        b":one\r\n",
        b"$one\r\n",
        b"*one\r\n",
        b"$-7\r\nx",
        b"+\xff\r\n",
        b"x" * 70_000,
    ],
)
def test_an_answer_that_is_none_ends_the_connection(line: Line, data: bytes) -> None:
    """
    Behind it, nobody can tell whose answer is whose.
    """
    reading = resultOf(line.store.get(ONE))
    writing = resultOf(line.store.destroy(ONE))
    lost = resultOf(line.store.whenLost())
    with logged() as events:
        line.answer(data)
        line.answer(ROW)
    assert lost.value is None
    assert line.wire.disconnecting
    assert isinstance(reading.error, SessionsUnavailable)
    assert isinstance(writing.error, OutcomeUnknown)
    assert writing.error.method == "destroy"
    (text,) = textsOf(events)
    assert text == "Lost redis://10.0.0.1:6379/0: it sends what is no answer"
    line.drop()


def test_an_answer_that_nobody_asked_for_goes_to_nobody(line: Line) -> None:
    """
    With txredisapi the next command would get it, and so a visitor the session of
    another one.
    """
    line.answer(ROW)
    assert line.wire.disconnecting
    assert not line.store.initialized
    assert isinstance(resultOf(line.store.get(ONE)).error, NotInitialized)
    line.drop()


def test_who_gave_up_gets_no_answer_and_the_next_gets_its_own(line: Line) -> None:
    """
    The answer of a command that was given up comes all the same.
    """
    first, second = line.store.get(ONE), line.store.get(ONE)
    given, kept = resultOf(first), resultOf(second)
    first.cancel()
    assert isinstance(given.error, CancelledError)
    line.answer(ROW, NONE)
    assert kept.value is None


def test_who_gave_up_is_not_told_of_a_loss(line: Line) -> None:
    """
    A Deferred fires once.
    """
    deferred = line.store.get(ONE)
    given = resultOf(deferred)
    deferred.cancel()
    line.drop()
    assert isinstance(given.error, CancelledError)


def test_only_so_many_commands_wait(line: Line) -> None:
    """
    A Redis that does not answer would cost all memory.
    """
    results = [resultOf(line.store.get(ONE)) for _ in range(10_000)]
    error = resultOf(line.store.get(ONE)).error
    assert isinstance(error, SessionsUnavailable)
    assert "10000 commands wait" in str(error)
    assert all(result.pending for result in results)
    line.answer(NONE)
    resultOf(line.store.get(ONE))
    line.answer(NONE * 10_000)


def test_only_so_many_bytes_wait(reactor: MemoryReactorClock) -> None:
    """
    Large sessions cost more memory than many commands.
    """
    line = Line(reactor, limits=Limits(size=40 * 1024 * 1024))
    line.ready()
    data = {"a": "x" * (33 * 1024 * 1024)}
    first = resultOf(line.store.create(ONE, data))
    error = resultOf(line.store.create(makeIdentifier(), data)).error
    assert isinstance(error, SessionsUnavailable)
    line.answer(b":1\r\n")
    assert first.value.version == 1
    line.wire.clear()
    third = resultOf(line.store.create(ONE, data))
    line.answer(b":0\r\n")
    assert isinstance(third.error, SessionError)
    closing = resultOf(line.store.close())
    reactor.advance(1.0)
    line.drop()
    assert closing.value is None


# Loss.


def test_the_loss_is_told_before_any_call_fails(line: Line) -> None:
    """
    A wrapper then runs what may be run again, instead of letting it fail; and
    from there the store can be initialised again.
    """
    told: list[str] = []
    again: list[Result] = []

    def lost(_: None) -> None:
        told.append("lost")
        assert not line.store.initialized
        again.append(line.begin())

    line.store.whenLost().addCallback(lost)
    line.store.get(ONE).addErrback(lambda _: told.append("read"))
    line.store.destroy(ONE).addErrback(lambda _: told.append("write"))
    line.drop()
    assert told == ["lost", "read", "write"]
    line.connect()
    line.answer(b"+PONG\r\n:0\r\n")
    assert again[0].value is None
    assert line.store.initialized


def test_a_redis_that_falls_silent_is_lost(
    line: Line, reactor: MemoryReactorClock
) -> None:
    """
    Its connection stays open for ever, and who waits for it too.
    """
    reactor.advance(100.0)
    lost = resultOf(line.store.whenLost())
    reading = resultOf(line.store.get(ONE))
    reactor.pump([1.0] * 4)
    line.answer(ROW)
    assert reading.value.data == {"a": 1}
    reading = resultOf(line.store.get(ONE))
    writing = resultOf(line.store.create(ONE, {}))
    reactor.pump([1.0] * 4)
    assert lost.pending
    reactor.pump([1.0] * 2)
    assert lost.value is None
    assert isinstance(reading.error, SessionsUnavailable)
    assert "no answer in 5 s" in str(reading.error)
    assert isinstance(writing.error, OutcomeUnknown)
    assert line.wire.disconnecting
    line.drop()


def test_a_program_that_stood_still_does_not_blame_redis(
    line: Line, reactor: MemoryReactorClock
) -> None:
    """
    After a pause of the whole machine the answers are there, but are read only
    after all timers have run.
    """
    reading = resultOf(line.store.get(ONE))
    reactor.advance(3600.0)
    assert reading.pending
    line.answer(ROW)
    # As long as the session lasts, 1800 s, by now it has ended.
    assert reading.value is None
    assert line.store.initialized


@pytest.mark.parametrize(
    ("answer", "expected", "isLost"),
    [
        (b"-READONLY You can't write", SessionsUnavailable, True),
        (b"-LOADING Redis is loading", SessionsUnavailable, True),
        (b"-BUSY Redis is busy", SessionsUnavailable, True),
        (b"-OOM command not allowed", SessionsUnavailable, False),
        (b"-MISCONF Redis is", SessionsUnavailable, False),
        (b"-NOPERM this user", SessionsRefused, False),
        (b"-ERR wrong", SessionError, False),
        (b"-nothing that is known", SessionError, False),
    ],
)
def test_an_error_says_whether_it_passes(
    line: Line, answer: bytes, expected: type[Exception], isLost: bool
) -> None:
    """
    After a failover the old server is a copy: another connection may reach the
    new one. Nothing was done in any of these cases.
    """
    lost = resultOf(line.store.whenLost())
    writing = resultOf(line.store.create(ONE, {}))
    reading = resultOf(line.store.get(ONE))
    line.answer(answer + b"\r\n")
    assert type(writing.error) is expected
    assert lost.pending is not isLost
    assert reading.pending is not isLost
    line.drop()
    assert isinstance(reading.error, SessionsUnavailable)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("WRONGTYPE Operation against a key", "WRONGTYPE"),
        ("OOM command not allowed script: 1a2b, on @user_script:3.", "OOM"),
        (
            "ERR Error running script (call to f_1a2b): @user_script:3: "
            "@user_script: 3: -READONLY You can't write against a read only replica.",
            "READONLY",
        ),
        (
            "ERR Error running script (call to f_1a2b): @user_script:2: WRONGTYPE "
            "Operation against a key holding the wrong kind of value",
            "WRONGTYPE",
        ),
        ("ERR unknown command 'EVALSHA'", "ERR"),
        ("LOADING", "LOADING"),
        ("", "ERR"),
    ],
)
def test_older_versions_hide_the_kind_of_an_error_in_a_script(
    text: str, code: str
) -> None:
    """
    Up to Redis 6 an error inside of a script is one of the script.
    """
    assert codeOf(text) == code


def test_a_script_that_redis_has_forgotten_is_sent_again(line: Line) -> None:
    """
    Redis forgets all of them when it is started again.
    """
    making = resultOf(line.store.create(ONE, {"a": 1}))
    ((command, _, *words),) = line.asked()
    assert command == b"EVALSHA"
    line.answer(b"-NOSCRIPT No matching script.\r\n")
    ((command, text, *again),) = line.asked()
    assert command == b"EVAL"
    assert b"HSET" in text
    assert again == words
    line.answer(b":1\r\n")
    assert making.value.data == {"a": 1}


def test_what_was_not_sent_was_not_done(line: Line) -> None:
    """
    Nobody need wonder about a write that is not sent again because the
    connection is being closed.
    """
    making = resultOf(line.store.create(ONE, {"a": 1}))
    closing = resultOf(line.store.close())
    line.answer(b"-NOSCRIPT No matching script.\r\n")
    assert isinstance(making.error, SessionsUnavailable)
    assert line.wire.disconnecting
    line.drop()
    assert closing.value is None


@pytest.mark.parametrize("method", ["read", "script", "count"])
def test_nothing_is_asked_of_what_was_lost_meanwhile(line: Line, method: str) -> None:
    """
    What takes several commands may lose Redis between two of them.
    """
    known = resultOf(line.store.get(ONE))
    line.answer(ROW)
    line.drop()
    store = line.store
    ways: dict[str, Callable[[], Deferred[Any]]] = {
        "read": lambda: store._read(b"x" * 32),
        "script": lambda: store._update(b"x" * 32, "{}", 1.0, 1),
        "count": store._count,
    }
    assert isinstance(resultOf(ways[method]()).error, SessionsUnavailable)
    assert known.value.version == 1


# The end.


def test_a_close_waits_for_what_was_asked(line: Line) -> None:
    """
    A write that has been sent is carried out; its caller wants to know.
    """
    lost = resultOf(line.store.whenLost())
    making = resultOf(line.store.create(ONE, {}))
    first, second = resultOf(line.store.close()), resultOf(line.store.close())
    assert lost.value is None
    assert resultOf(line.store.whenLost()).value is None
    assert isinstance(resultOf(line.store.get(ONE)).error, NotInitialized)
    assert not line.wire.disconnecting
    line.answer(b":1\r\n")
    assert making.value.version == 1
    assert line.wire.disconnecting
    assert first.pending
    line.drop()
    assert (first.value, second.value) == (None, None)
    assert resultOf(line.store.close()).value is None


def test_a_close_does_not_wait_for_ever(
    line: Line, reactor: MemoryReactorClock
) -> None:
    """
    A Redis that does not answer must not keep the program from ending.
    """
    making = resultOf(line.store.create(ONE, {}))
    closing = resultOf(line.store.close())
    reactor.pump([1.0] * 6)
    assert isinstance(making.error, OutcomeUnknown)
    assert line.wire.disconnecting
    line.drop()
    assert closing.value is None


def test_the_end_of_one_connection_is_not_that_of_the_next(
    line: Line, reactor: MemoryReactorClock
) -> None:
    """
    A store may be initialised again while what was asked before is waited for.
    """
    making = resultOf(line.store.create(ONE, {}))
    closing = resultOf(line.store.close())
    old = line.protocol
    line.ready()
    lost = resultOf(line.store.whenLost())
    with logged() as events:
        old.connectionLost(Failure(ConnectionDone()))
    assert isinstance(making.error, OutcomeUnknown)
    assert closing.value is None
    assert lost.pending
    assert line.store.initialized
    assert textsOf(events) == []


def test_who_waits_for_a_loss_or_the_end_may_give_up(line: Line) -> None:
    """
    Whoever gave up is not called, and is not kept.
    """
    deferred = line.store.whenLost()
    given = resultOf(deferred)
    deferred.cancel()
    assert isinstance(given.error, CancelledError)
    closing = line.store.close()
    ended = resultOf(closing)
    closing.cancel()
    line.drop()
    assert isinstance(ended.error, CancelledError)


# The servers of the tests.


@pytest.mark.parametrize(
    ("required", "result"), [("", "1 skipped"), ("required", "1 error")]
)
def test_without_the_program_tests_are_skipped_unless_they_are_required(
    required: str, result: str
) -> None:
    """
    A machine that is there to test must not pass by testing nothing.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "a_name_is_looked_up"],
        env={**os.environ, "PATH": "", "TSRV_DATABASES": required},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result in done.stdout
    assert "there is no program redis-server" in done.stdout or not required


RUN = """
import sys
from tests._redis import Redis
from tests.websupport import reservedPort
with reservedPort() as port:
    server = Redis(sys.argv[1], port)
    server.start()
    print(server.ask("INFO", "server").partition(b"process_id:")[2].split()[0].decode())
    print(server.directory, flush=True)
    sys.stdin.read()
"""


def test_no_server_outlives_the_tests(redis: Redis) -> None:
    """
    Whoever kills the tests does not know of it.
    """
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", RUN, redis.program],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        server = os.pidfd_open(int(running.stdout.readline()))
        directory = Path(running.stdout.readline().strip())
        running.kill()
    ending = poll()
    ending.register(server, POLLIN)
    assert ending.poll(30_000)
    os.close(server)
    until = monotonic() + 30.0
    while directory.exists():
        assert monotonic() < until


# What is kept, with a real Redis.


def limited(test: Callable[..., Any]) -> Callable[..., Any]:
    """
    Run a method on the real reactor, as L{asynchronous} does with a function.
    """

    @wraps(test)
    async def run(self: Any) -> None:
        from twisted.internet import reactor

        running: Deferred[Any] = Deferred.fromCoroutine(test(self))
        await running.addTimeout(60.0, cast(Any, reactor))

    return cast(Callable[..., Any], pytest_twisted.ensureDeferred(run))


class Timed:
    """
    The real reactor, on which the test says what the time is.
    """

    def __init__(self, clock: Clock) -> None:
        from twisted.internet import reactor

        self._reactor = reactor
        self.seconds = clock.seconds
        self.callLater = clock.callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class TestRedis(SharedSessionStoreTests, decorate=limited):
    """
    The store in Redis does what all do.
    """

    removesByItself = True

    @pytest.fixture(autouse=True)
    def prepared(self, redis: Redis) -> None:
        self.redis = redis

    async def makeStore(self, limits: Limits, clock: Clock) -> ISessionStore:
        timed = Timed(clock)
        timed.callLater = cast(Any, timed._reactor).callLater
        return cast(
            ISessionStore, RedisSessionStore(timed, self.redis.url, limits=limits)
        )

    async def damage(self, store: Any, identifier: str) -> None:
        self.redis.ask("HSET", nameOf(identifier), "d", '{"cut')


def nameOf(identifier: str, prefix: str = "tsrv:session:") -> str:
    """
    @return: Under what Redis keeps a session.
    """
    return prefix + sha256(identifier.encode()).hexdigest()


def storeAt(
    url: str, prefix: str = "tsrv:session:", **options: Any
) -> RedisSessionStore:
    """
    @return: A store on the real reactor.
    """
    from twisted.internet import reactor

    return RedisSessionStore(reactor, url, prefix, **options)


@asynchronous
async def test_a_session_is_a_hash_that_redis_lets_end(redis: Redis) -> None:
    """
    Redis needs no cleaning up, and whoever reads it can log in as nobody.
    """
    store = storeAt(f"{redis.url}/1")
    await store.initialize()
    made = await store.create(ONE, {"ä": "\r\n$-1\r\n"})
    assert redis.ask("DBSIZE") == 0
    (name,) = _inNumber(redis, "KEYS", "*")
    assert name.decode() == nameOf(ONE)
    fields = _inNumber(redis, "HGETALL", name)
    kept = dict(zip(fields[::2], fields[1::2], strict=True))
    assert json.loads(kept[b"d"]) == {"ä": "\r\n$-1\r\n"}
    assert float(kept[b"c"]) == made.created
    assert float(kept[b"x"]) == made.expires
    assert kept[b"v"] == b"1"
    assert 1790 < _inNumber(redis, "PTTL", name) / 1000 <= 1801
    assert ONE.encode() not in b"".join(fields)
    _inNumber(redis, "PEXPIRE", name, "60000")
    session = await store.set(ONE, Changes({"b": 2}), made)
    assert session is not None
    assert session.version == 2
    assert _inNumber(redis, "PTTL", name) > 1_790_000
    _inNumber(redis, "PEXPIRE", name, "1")
    while await store.touch(ONE):
        pass
    assert await store.get(ONE) is None
    assert await store.cleanup() == 0
    await store.close()


def _inNumber(redis: Redis, *words: str | bytes) -> Any:
    """
    Ask what is in database 1.
    """
    script = "redis.call('SELECT', 1) return redis.call(unpack(ARGV))"
    return redis.ask("EVAL", script, "0", *words)


@asynchronous
async def test_a_use_is_written_only_when_it_is_worth_it(redis: Redis) -> None:
    """
    Many requests in a row need one write.
    """
    clock = Clock()
    clock.advance(1_700_000_000.0)
    store = RedisSessionStore(Timed(clock), redis.url)
    await store.initialize()
    await store.create(ONE, {})
    for seconds, left in ((80.0, 1800), (11.0, 1891), (0.0, 1891)):
        clock.advance(seconds)
        redis.ask("PEXPIRE", nameOf(ONE), "5000")
        assert await store.touch(ONE)
        ends = float(redis.ask("HGET", nameOf(ONE), "x"))
        assert ends == 1_700_000_000.0 + left
        isWritten = redis.ask("PTTL", nameOf(ONE)) > 5000
        assert isWritten == (seconds == 11.0)
    await store.close()
    clock.pump([1.0] * 6)


@asynchronous
async def test_a_session_ends_by_the_clock_of_the_program(redis: Redis) -> None:
    """
    Clocks of machines differ: one that has ended must not be used on one server
    and not on another, nor end at once because the clock of Redis is ahead.
    """
    clock = Clock()
    clock.advance(1_000_000_000.0)
    store = RedisSessionStore(Timed(clock), redis.url, limits=Limits(10.0, None))
    await store.initialize()
    made = await store.create(ONE, {})
    key = keyOf(ONE)
    assert key is not None
    assert await store.get(ONE) is not None
    clock.advance(10.0)
    assert redis.ask("EXISTS", nameOf(ONE)) == 1
    assert await store.get(ONE) is None
    assert not await store.touch(ONE)
    assert await store.set(ONE, Changes({"a": 1}), made) is None
    assert not await store._update(key, "{}", clock.seconds() + 10, 1)
    assert await store.all() == []
    assert await store.length() == 0
    await store.close()
    clock.pump([1.0] * 6)


@asynchronous
async def test_a_session_may_last_for_ever(redis: Redis) -> None:
    """
    Redis takes no number that is not finite.
    """
    store = storeAt(redis.url, limits=Limits(float("inf"), None))
    await store.initialize()
    await store.create(ONE, {"a": 1})
    session = await store.get(ONE)
    assert session is not None
    assert session.data == {"a": 1}
    await store.close()


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
        [("HSET", "NAME", "v", "01")],
        [("HSET", "NAME", "x", "soon")],
        [("HSET", "NAME", "x", "nan")],
        [("HSET", "NAME", "c", "inf")],
        [("HDEL", "NAME", "c", "x", "v")],
    ],
)
@asynchronous
async def test_what_is_damaged_counts_as_absent_and_is_removed(
    redis: Redis, commands: list[tuple[str, ...]]
) -> None:
    """
    Other programs write into the same Redis. Its visitor needs a new session, and
    nobody else may notice.
    """
    store = storeAt(redis.url)
    await store.initialize()
    asks: list[Callable[[], Any]] = [
        lambda: store.get(ONE),
        lambda: store.set(ONE, Changes({"a": 2})),
        store.all,
    ]
    if commands[-1][2] != "d":
        asks.append(lambda: store.touch(ONE))
    for ask in asks:
        known = await store.create(ONE, {"a": 1})
        for command in commands:
            redis.ask(*(nameOf(ONE) if word == "NAME" else word for word in command))
        with logged() as events:
            assert not await ask()
        (text,) = textsOf(events)
        assert text == f"Removed a session that is damaged: {nameOf(ONE)[13:25]}"
        # Who has asked need not wait for that.
        while redis.ask("EXISTS", nameOf(ONE)):
            await store.get(makeIdentifier())
        assert await store.set(ONE, Changes({"a": 2}), known) is None
    await store.close()


@asynchronous
async def test_what_takes_the_place_of_a_session_is_not_written_to(
    redis: Redis,
) -> None:
    """
    A script that fails half-way would leave half of a session.
    """
    store = storeAt(redis.url)
    await store.initialize()
    known = await store.create(ONE, {})
    key = keyOf(ONE)
    assert key is not None
    name = store._nameOf(key)
    redis.ask("DEL", nameOf(ONE))
    redis.ask("SET", nameOf(ONE), "a text")
    assert not await store._update(key, "{}", known.expires, 1)
    assert not await store._delete(key, 1)
    assert not await store._run(PROLONG, "touch", name, b"0", b"1e10", b"1000")
    assert await store.length() == 0
    with pytest.raises(SessionError):
        await store.create(ONE, {})
    assert redis.ask("GET", nameOf(ONE)) == b"a text"
    # What has been put right meanwhile is not removed.
    store._discard(key, b"1", b"2", b"3")
    await store.get(makeIdentifier())
    assert redis.ask("EXISTS", nameOf(ONE)) == 1
    assert not await store.destroy(ONE)
    await store.create(ONE, {})
    store._discard(key)
    store._discard(key, b"1", b"2", b"3")
    await store.get(makeIdentifier())
    assert await store.get(ONE) is not None
    await store.close()


@asynchronous
async def test_what_was_changed_meanwhile_is_left_as_it_is(redis: Redis) -> None:
    """
    Between reading and writing another server may have used or changed a session,
    or it has ended.
    """
    store = storeAt(redis.url)
    await store.initialize()
    known = await store.create(ONE, {})
    key = keyOf(ONE)
    assert key is not None
    name = store._nameOf(key)
    # It lasts longer than who comes late wants it to, or has ended for him.
    for now, ends, isThere in (
        (known.created, known.expires - 1, True),
        (known.expires, known.expires + 1, False),
    ):
        times = repr(now).encode(), repr(ends).encode()
        used = await store._run(PROLONG, "touch", name, *times, b"1000")
        assert bool(used) is isThere
        assert await store.get(ONE) == known
        assert redis.ask("PTTL", name) > 1000
    assert await store.set(ONE, Changes({"a": 1}), known)
    assert not await store._delete(key, 1)
    assert await store.get(ONE) is not None
    assert await store._delete(key, 2)
    await store.close()


@asynchronous
async def test_only_its_own_keys_are_listed_counted_and_removed(redis: Redis) -> None:
    """
    A prefix may have characters in it that mean something in a search, and others
    may have keys that begin alike.
    """
    prefix = "a*[b]?\\:"
    store = storeAt(redis.url, prefix)
    other = storeAt(redis.url, "aX[b]Y\\:")
    await store.initialize()
    await other.initialize()
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
    await store.close()
    await other.close()


@asynchronous
async def test_many_sessions_are_listed_in_the_order_of_their_keys(
    redis: Redis,
) -> None:
    """
    Redis has no order: it has to be made, without all sessions in the memory.
    """
    store = storeAt(redis.url)
    await store.initialize()
    await DeferredList([store.create(makeIdentifier(), {"n": n}) for n in range(1500)])
    assert await store.length() == 1500
    listed: list[bytes] = []
    while entries := await store.all(listed[-1] if listed else b"", 400):
        assert len(entries) <= 400
        listed += [key for key, _ in entries]
    assert listed == sorted(set(listed))
    assert len(listed) == 1500
    # All of the first part are damaged.
    for key in listed[:400]:
        redis.ask("SET", f"tsrv:session:{key.hex()}", "a text")
    entries = await store.all(limit=200)
    assert [key for key, _ in entries] == listed[400:600]
    assert await store.clear() == 1100
    assert redis.ask("DBSIZE") == 0
    await store.close()


@asynchronous
async def test_a_list_that_cannot_be_had_fails_once(ownRedis: Redis) -> None:
    """
    It reads many sessions at a time, each of which fails; and a search that was
    given up leaves nothing behind.
    """
    ownRedis.start()
    store = storeAt(ownRedis.url)
    await store.initialize()
    await DeferredList([store.create(makeIdentifier(), {}) for _ in range(150)])
    for begin in (store.all, store.length, store.clear):
        given = resultOf(asked := cast(Deferred[Any], begin()))
        asked.cancel()
        assert isinstance(given.error, CancelledError)
    assert await store.length() == 150
    assert store._connection is not None
    keys = [key for key, _ in await store.all()]
    ownRedis.pause()
    listing = store._readAll(keys)
    failing = Deferred.fromCoroutine(listing)
    lost = store.whenLost()
    ownRedis.kill()
    await lost
    with pytest.raises(SessionsUnavailable):
        await failing
    await store.close()


# A real Redis that fails.


@asynchronous
async def test_who_may_not_log_in_is_told_so(ownRedis: Redis) -> None:
    """
    That of a real Redis: with a password, without one, and with another user.
    """
    ownRedis.start(requirepass=SECRET)
    at = f"127.0.0.1:{ownRedis.port}"
    for login, number, words in [
        ("", 0, "it wants a password"),
        (":wrong@", 0, "check the user and the password"),
        ("someone:wrong@", 0, "check the user and the password"),
        (":correct%20horse@", 4, "no database 4"),
    ]:
        store = storeAt(f"redis://{login}{at}/{number}")
        with pytest.raises(SessionsRefused, match=words):
            await store.initialize()
        await store.close()
    ownRedis.ask(
        "ACL", "SETUSER", "al", "on", ">x", "+@all", "~other:*", password=SECRET
    )
    store = storeAt(f"redis://al:x@{at}")
    with pytest.raises(SessionsRefused, match="the prefix of the keys"):
        await store.initialize()
    await store.close()
    for login in (":correct%20horse@", "default:correct%20horse@"):
        store = storeAt(f"redis://{login}{at}/3")
        await store.initialize()
        await store.close()
    ownRedis.kill()
    ownRedis.start()
    store = storeAt(f"redis://someone:wrong@{at}")
    with pytest.raises(SessionsRefused, match="check the user and the password"):
        await store.initialize()
    await store.close()


@asynchronous
async def test_a_name_is_looked_up(redis: Redis) -> None:
    """
    Most servers are known by a name.
    """
    store = storeAt(f"redis://localhost:{redis.port}")
    await store.initialize()
    assert await store.length() == 0
    await store.close()
    await store.close()


@asynchronous
async def test_nobody_is_logged_out_by_a_kill(ownRedis: Redis) -> None:
    """
    What was answered is there when Redis is killed and comes back, and requests
    that came meanwhile have waited.
    """
    from twisted.internet import reactor

    ownRedis.start()
    wrapper = QueuingWrapper(
        storeAt(ownRedis.url),
        cast(Any, reactor),
        retryPolicy=lambda attempts: 0.01,
        replay=["get"],
    )
    store = wrapper.proxy
    await wrapper.initialize()
    identifiers = [makeIdentifier() for _ in range(20)]
    for number, each in enumerate(identifiers):
        await store.create(each, {"n": number})
    ownRedis.kill()
    reading = DeferredList([store.get(each) for each in identifiers])
    writing = store.set(identifiers[0], Changes(added={"n": 100}))
    ownRedis.start()
    found = await reading
    assert [each and each.data["n"] for _, each in found] == list(range(20))
    # It had to look the session up first: nothing was done, so that to try again
    # is safe.
    with pytest.raises(SessionsUnavailable):
        await writing
    changed = await store.set(identifiers[0], Changes(added={"n": 100}))
    assert changed is not None
    assert changed.data["n"] == 100
    await wrapper.close()


@asynchronous
async def test_a_redis_that_is_stopped_is_noticed(ownRedis: Redis) -> None:
    """
    The system accepts connections for it, and takes what is sent.
    """
    ownRedis.start()
    clock = Clock()
    store = RedisSessionStore(Timed(clock), ownRedis.url, connectTimeout=2.0)
    await store.initialize()
    await store.create(ONE, {"a": 1})
    ownRedis.pause()
    reading = resultOf(store.get(ONE))
    writing = resultOf(store.set(ONE, Changes({"a": 2})))
    lost = store.whenLost()
    clock.pump([1.0] * 6)
    await lost
    assert isinstance(reading.error, SessionsUnavailable)
    assert isinstance(writing.error, SessionsUnavailable)
    opening = resultOf(store.initialize())
    clock.pump([1.0] * 3)
    assert isinstance(opening.error, SessionsUnavailable)
    await store.close()
    ownRedis.resume()
    await store.initialize()
    session = await store.get(ONE)
    assert session is not None
    assert session.data == {"a": 1}
    await store.close()
    clock.pump([1.0] * 6)


@asynchronous
async def test_a_server_that_became_a_copy_is_left(ownRedis: Redis) -> None:
    """
    After a failover nothing can be written there; where the name leads then is
    found out by connecting again.
    """
    ownRedis.start()
    store = storeAt(ownRedis.url)
    await store.initialize()
    ownRedis.ask("REPLICAOF", "127.0.0.1", "1")
    if store.initialized:
        with pytest.raises(SessionsUnavailable, match="a copy"):
            await store.create(ONE, {})
    assert not store.initialized
    with pytest.raises(SessionsUnavailable, match="a copy"):
        await store.initialize()
    ownRedis.ask("REPLICAOF", "NO", "ONE")
    await store.initialize()
    await store.create(ONE, {})
    await store.close()


@asynchronous
async def test_a_redis_that_is_full_still_reads(ownRedis: Redis) -> None:
    """
    Who is logged in stays so.
    """
    ownRedis.start()
    store = storeAt(ownRedis.url)
    await store.initialize()
    await store.create(ONE, {"a": 1})
    ownRedis.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(SessionsUnavailable, match="no memory left"):
        await store.create(makeIdentifier(), {})
    with pytest.raises(SessionsUnavailable, match="no memory left"):
        await store.set(ONE, Changes({"a": 2}))
    session = await store.get(ONE)
    assert session is not None
    assert session.data == {"a": 1}
    assert session.version == 1
    ownRedis.ask("CONFIG", "SET", "maxmemory", "0")
    assert await store.set(ONE, Changes({"a": 2})) is not None
    await store.close()


@asynchronous
async def test_damage_that_cannot_be_removed_is_said(ownRedis: Redis) -> None:
    """
    Whoever asked has got an answer, and must not get an error for that.
    """
    ownRedis.start()
    store = storeAt(ownRedis.url)
    await store.initialize()
    ownRedis.ask("SET", nameOf(ONE), "a text")
    ownRedis.ask("ACL", "SETUSER", "default", "-del", "-evalsha")
    with logged() as events:
        assert await store.get(ONE) is None
        await store.get(makeIdentifier())
    assert len(textsOf(events)) == 2
    assert textsOf(events)[1].startswith("It could not be removed: Redis refuses")
    await store.close()
