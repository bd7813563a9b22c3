"""
Connections that cannot be accepted are logged, at most once a second.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python.log import FileLogObserver

from tsrv.server.shortage import Shortage

from .processes import spawned
from .websupport import Wire, asynchronous, logged, reservedPort, textsOf

GET = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"

PORTS = ["twisted.internet.tcp.Port", "twisted.internet.unix.Port"]


class Refusing:
    """
    Logs the messages of Twisted's ports, to a L{Shortage} and then to a writer.
    """

    def __init__(self, clock: Clock, writer: Any, namespace: str = PORTS[0]) -> None:
        self.shortage = Shortage(clock)
        observers = [cast(ILogObserver, self.shortage), writer]
        self.log = Logger(namespace, observer=LogPublisher(*observers))

    def recover(self, refused: int) -> None:
        self.log.info("EMFILE encountered; releasing reserved file descriptor.")
        for number in range(refused):
            text = "EMFILE recovery: Closed socket from {address}"
            self.log.info(text, address=("192.0.2.1", number))
        self.log.info("Re-reserving EMFILE recovery file descriptor.")

    def fail(self, name: str) -> None:
        text = "Could not accept new connection ({acceptError})"
        self.log.info(text, acceptError=name)


def ignore(event: LogEvent) -> None:
    """
    Write nothing.
    """


def shortageLine(rest: str) -> str:
    """
    @return: The log line of a process without free file descriptors.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"Cannot accept connections: too many open files (limit {limit:,}); {rest}"


@pytest.mark.parametrize("namespace", PORTS)
def test_refused_connections_are_counted_each_second(
    clock: Clock, namespace: str
) -> None:
    """
    One line per second counts the connections that were refused, on TCP and on UNIX
    sockets.
    """
    port = Refusing(clock, ignore, namespace)
    with logged() as events:
        for _ in range(1234):
            port.recover(1)
        clock.advance(0.5)
        port.recover(2)
        clock.advance(0.4)
        assert events == []
        clock.advance(0.1)
        clock.advance(10)
        port.recover(3)
        clock.advance(1)
    assert textsOf(events) == [
        shortageLine("1,236 refused in the last second"),
        shortageLine("3 refused in the last second"),
    ]
    assert {event["log_level"] for event in events} == {LogLevel.warn}
    assert [event["refused"] for event in events] == [1236, 3]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ENFILE", "too many open files in system"),
        ("ENOBUFS", "no buffer space available"),
        ("ENOMEM", "cannot allocate memory"),
    ],
)
def test_failed_attempts_to_accept_are_counted(
    clock: Clock, name: str, reason: str
) -> None:
    """
    Failed attempts to accept are counted, with the reason of the system.
    """
    port = Refusing(clock, ignore)
    with logged() as events:
        for _ in range(1000):
            port.fail(name)
        clock.advance(1)
        port.fail(name)
        clock.advance(1)
    first, second = textsOf(events)
    line = f"Cannot accept connections: {reason}; 1,000 attempts failed in the last"
    assert first == f"{line} second"
    assert second == first.replace("1,000", "1")
    assert [event["failed"] for event in events] == [1000, 1]


def test_one_line_has_all_reasons(clock: Clock) -> None:
    """
    Several reasons in one second share one line.
    """
    port = Refusing(clock, ignore)
    with logged() as events:
        port.recover(2)
        port.fail("EMFILE")
        port.fail("ENFILE")
        clock.advance(1)
    (line,) = textsOf(events)
    rest = "2 refused, 2 attempts failed in the last second"
    expected = shortageLine(rest).replace(");", "), too many open files in system;")
    assert line == expected


def test_what_was_counted_is_logged_at_the_end(clock: Clock) -> None:
    """
    A process that exits logs its remaining count, if any, and leaves no timer.
    """
    port = Refusing(clock, ignore)
    with logged() as events:
        port.recover(5)
        port.shortage.flush()
        port.shortage.flush()
    assert textsOf(events) == [shortageLine("5 refused in the last second")]
    assert clock.getDelayedCalls() == []


def test_nothing_is_logged_if_no_connection_was_refused(clock: Clock) -> None:
    """
    A port that finds no free descriptor, but also no waiting client, has refused
    nobody.
    """
    port = Refusing(clock, ignore)
    with logged() as events:
        port.recover(0)
        clock.advance(1)
    assert events == []
    assert clock.getDelayedCalls() == []


def byTwistd(file: StringIO) -> Any:
    """
    @return: The default observer of C{twistd}.
    """
    return textFileLogObserver(file)


def byLegacyTwistd(file: StringIO) -> Any:
    """
    @return: The observer of C{twistd} for a legacy logger.
    """
    return LegacyLogObserverWrapper(cast(Any, FileLogObserver(file).emit))


def byTwist(file: StringIO) -> Any:
    """
    @return: The observer of C{twist --log-format=json}.
    """
    predicate = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    return FilteringLogObserver(jsonFileLogObserver(file), [predicate])


@pytest.mark.parametrize("makeWriter", [byTwistd, byLegacyTwistd, byTwist])
def test_no_writer_writes_the_single_lines(
    clock: Clock, makeWriter: Callable[[StringIO], Any]
) -> None:
    """
    None of Twisted's writers writes the counted lines. They write all other lines,
    including other lines of the same port, and similar lines of other code.
    """
    file = StringIO()
    port = Refusing(clock, makeWriter(file))
    with logged():
        port.recover(3)
        port.fail("ENFILE")
        assert file.getvalue() == ""
        port.shortage.flush()
    port.log.info("A line of the port about {subject}", subject="subject")
    other = Logger("application", observer=port.log.observer)
    other.info("Could not accept new connection ({acceptError})", acceptError="x")
    written = file.getvalue()
    # In JSON each text is a format, beside its values.
    assert written.count("A line of the port about") == 1
    assert written.count("Could not accept new connection") == 1
    assert "EMFILE" not in written
    assert clock.getDelayedCalls() == []


# A server process with few file descriptors.

LIMIT = 80

LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


async def visit(port: int) -> Wire | None:
    """
    Connect, and make a request.

    @return: The connection; L{None} if it was refused.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    try:
        wire: Wire = await connectProtocol(endpoint, Wire())
        wire.send(GET)
        await wire.whenReceived(b"\r\n\r\n")
    except (AssertionError, ConnectError, ConnectionLost):
        return None
    assert wire.received.startswith(b"HTTP/1.1 200 OK\r\n")
    return wire


@pytest.mark.parametrize("program", ["twistd -n", "twist --log-format=text"])
@asynchronous
async def test_a_server_without_descriptors_stays_up(
    tmp_path: Path, program: str
) -> None:
    """
    A server without free descriptors logs at most one line per second, with the number
    of refused connections, and accepts connections again when some have ended.
    """
    name, *options = program.split()
    path = os.path.join(os.path.dirname(sys.executable), name)
    with reservedPort() as port:
        listen = f"--listen=tcp:{port}:interface=127.0.0.1:backlog=1024"
        words = ["-c", LIMITED, path, *options, "tsrv", listen, "--delay=0"]
        async with spawned(tmp_path, *words) as process:
            await process.whenWritten("Async module initialized")
            began = time.monotonic()
            visiting = [Deferred.fromCoroutine(visit(port)) for _ in range(400)]
            visits = await gatherResults(visiting)
            wires = [wire for wire in visits if wire is not None]
            refused = len(visits) - len(wires)
            assert 0 < len(wires) < LIMIT
            for wire in wires:
                wire.leave()
            while (last := await visit(port)) is None:
                refused += 1
            process.terminate()
            assert await process.ended == 0
            elapsed = time.monotonic() - began
            await last.whenClosed()
    lines = re.findall(r"Cannot accept connections: .*", process.output)
    pattern = rf"Cannot .*: too many open files \(limit {LIMIT}\); (\d+) refused in .*"
    counts = [int(line.group(1)) for each in lines if (line := re.match(pattern, each))]
    assert len(counts) == len(lines) <= elapsed + 1
    assert sum(counts) == refused
    assert "EMFILE" not in process.output
    assert "Traceback" not in process.output
    assert process.errors == ""
