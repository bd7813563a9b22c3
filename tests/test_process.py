"""
The real thing: a process that is started, asked, and stopped.

Nothing here waits for a time: each step follows a line of the log, or a
response.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM
from socket import socket
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.web.server import Request

from tsrv.web.responses import (
    AsyncResource,
    Response,
)
from tsrv.web.site import Site

from .processes import Process, running
from .websupport import Answer, Wire, answersIn, asynchronous, reservedPort

# What has been received and is being held is told by the interim response.
SAY = b"GET /say HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    """
    A free port.
    """
    with reservedPort() as port:
        yield port


def twistd(directory: Path, port: int, *words: str) -> Any:
    """
    Run C{twistd -n tsrv} on a port.
    """
    listen = f"--listen=tcp:{port}:interface=127.0.0.1:backlog=1024"
    return running(directory, "-n", "tsrv", listen, *words)


async def connect(port: int) -> Wire:
    """
    Make a connection, and ask.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    wire.send(SAY)
    return wire


async def hold(port: int, count: int) -> list[Wire]:
    """
    Make requests, and wait until all of them are held.
    """
    wires = await gatherResults(
        [Deferred.fromCoroutine(connect(port)) for _ in range(count)]
    )
    await gatherResults(
        [wire.whenReceived(b"HTTP/1.1 100 Continue\r\n\r\n") for wire in wires]
    )
    return wires


async def statuses(wires: list[Wire]) -> list[int]:
    """
    Wait until the server has closed all connections.

    @return: The status of the response on each.
    """
    found = []
    for received in await gatherResults([wire.whenClosed() for wire in wires]):
        _, answer = answersIn(received)
        assert answer.headers["connection"] == "close"
        found.append(answer.status)
    return found


async def fetch(port: int, path: str) -> Answer:
    """
    Ask for one page.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    head = f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    wire.send(head.encode())
    (answer,) = answersIn(await wire.whenClosed())
    return answer


def position(process: Process, *texts: str) -> list[int]:
    """
    @return: Where each of these is in the output.
    """
    return [process.output.index(text) for text in texts]


@asynchronous
async def test_it_starts_answers_and_stops(tmp_path: Path, port: int) -> None:
    """
    What the README promises; to be stopped by SIGTERM is to end well.
    """
    async with twistd(tmp_path, port, "--delay=0.5") as process:
        await process.whenWritten("Started")
        (wire,) = await hold(port, 1)
        received = await wire.whenReceived(b"I say: Current time is: ")
        assert [answer.status for answer in answersIn(received)] == [100, 200]
        await process.whenWritten("Async module initialized")
        assert (await fetch(port, "/readyz")).status == 200
        process.terminate()
        assert await process.ended == 0
        await wire.whenClosed()
        started, initialized, stopped = position(
            process, "Started", "Async module initialized", "Stopped"
        )
        assert started < initialized < stopped
        # How long it took is told once.
        assert process.output.count("critical path: clock") == 1
        assert "Traceback" not in process.output
        assert process.errors == ""


@asynchronous
async def test_what_is_held_at_sigterm_is_answered_when_the_start_ends(
    tmp_path: Path, port: int
) -> None:
    """
    A new version is rolled out while the old one starts: nobody who was taken
    in is turned away, as long as there is time.
    """
    async with twistd(tmp_path, port, "--delay=3") as process:
        await process.whenWritten("Started")
        wires = await hold(port, 100)
        process.terminate()
        assert await statuses(wires) == [200] * 100
        assert await process.ended == 0
        listening, initialized = position(
            process, "Stopped listening", "Async module initialized"
        )
        assert listening < initialized


@asynchronous
async def test_who_watches_it_can_do_so_until_the_end(
    tmp_path: Path, port: int
) -> None:
    """
    Where the operations pages have a port of their own, they tell that the
    server stops while it does; what is held does not suffer.
    """
    with reservedPort() as other:
        apart = f"--operations-listen=tcp:{other}:interface=127.0.0.1"
        async with twistd(tmp_path, port, "--delay=3", apart) as process:
            await process.whenWritten("Started")
            wires = await hold(port, 10)
            assert (await fetch(port, "/readyz")).status == 404
            assert b'"state": "starting"' in (await fetch(other, "/readyz")).body
            process.terminate()
            await process.whenWritten("Stopped listening")
            assert b'"state": "stopping"' in (await fetch(other, "/readyz")).body
            assert (await fetch(other, "/livez")).status == 200
            assert await statuses(wires) == [200] * 10
            assert await process.ended == 0
            assert process.errors == ""


@asynchronous
async def test_what_is_held_at_sigterm_is_refused_when_time_is_up(
    tmp_path: Path, port: int
) -> None:
    """
    Everybody gets an answer, even if it is not the one they waited for.
    """
    async with twistd(tmp_path, port, "--delay=60", "--drain-timeout=1") as process:
        await process.whenWritten("Started")
        wires = await hold(port, 100)
        process.terminate()
        assert await statuses(wires) == [503] * 100
        # It was the stop that ended them, and not that they waited too long.
        assert all(b"The service is shutting down" in each.received for each in wires)
        assert await process.ended == 0
        assert "Async module initialized" not in process.output
        assert "Traceback" not in process.output


@asynchronous
async def test_a_second_sigterm_ends_the_wait(tmp_path: Path, port: int) -> None:
    """
    Who sends it again means now; requests are answered all the same.
    """
    async with twistd(tmp_path, port, "--delay=600", "--drain-timeout=600") as process:
        await process.whenWritten("Started")
        wires = await hold(port, 10)
        process.terminate()
        await process.whenWritten("Stopped listening")
        assert not any(wire.closed for wire in wires)
        process.terminate()
        assert await statuses(wires) == [503] * 10
        assert await process.ended == 0
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("program", "words"), [("twistd", ["-n", "tsrv"]), ("twist", ["tsrv"])]
)
@asynchronous
async def test_a_port_that_is_taken_ends_the_process(
    tmp_path: Path, program: str, words: list[str]
) -> None:
    """
    A server that cannot listen must not stay up and look well.
    """
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listen = f"--listen=tcp:{port}:interface=127.0.0.1"
        async with running(tmp_path, *words, listen, program=program) as process:
            assert await process.ended == 1
            written = process.output + process.errors
            line = f"tsrv: Couldn't listen on 127.0.0.1:{port}: "
            assert written.count(line) == 1
            assert "Traceback" not in written
            assert "Started" not in written
            # Nothing is left of it; twist names no such file.
            assert list(tmp_path.iterdir()) == []


@asynchronous
async def test_a_port_that_is_taken_ends_the_daemon(tmp_path: Path) -> None:
    """
    Who starts it in the background waits to hear that it has started, and
    would wait for ever; and the file that is left would keep the next one from
    starting.
    """
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listen = f"--listen=tcp:{port}:interface=127.0.0.1"
        async with running(tmp_path, "tsrv", listen) as process:
            assert await process.ended == 1
            assert "An error has occurred" in process.errors
            assert f"tsrv: Couldn't listen on 127.0.0.1:{port}: " in process.errors
            assert "Traceback" not in process.errors
        assert [path.name for path in tmp_path.iterdir()] == ["twistd.log"]


@asynchronous
async def test_it_runs_in_the_background(tmp_path: Path, port: int) -> None:
    """
    Without C{-n} it is a daemon, that is found by its file, and is stopped in
    the same way.
    """
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    async with running(tmp_path, "tsrv", listen, "--delay=0.1") as process:
        await process.exited
        (wire,) = await hold(port, 1)
        os.kill(int((tmp_path / "twistd.pid").read_text()), SIGTERM)
        assert await statuses([wire]) == [200]
        assert await process.ended == 0
        log = (tmp_path / "twistd.log").read_text()
        assert "Started" in log
        assert "Stopped" in log
        assert not (tmp_path / "twistd.pid").exists()


@pytest.mark.parametrize("words", [["--delay=soon"], ["--listen=8000"]])
@asynchronous
async def test_a_usage_error_is_one_line(tmp_path: Path, words: list[str]) -> None:
    """
    Who mistyped is told so, and nothing else; a script sees it by the status.
    """
    async with running(tmp_path, "-n", "tsrv", *words) as process:
        assert await process.ended == 1
        assert process.output == ""
        (line,) = process.errors.splitlines()
        assert line.startswith(f"tsrv: {words[0].partition('=')[0]}: ")
        assert list(tmp_path.iterdir()) == []


@asynchronous
async def test_twist_runs_it_too(tmp_path: Path, port: int) -> None:
    """
    The other runner knows the same plugin, and signals mean the same.
    """
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    async with running(
        tmp_path, "tsrv", listen, "--delay=0.5", program="twist"
    ) as process:
        await process.whenWritten("Started")
        (wire,) = await hold(port, 1)
        await wire.whenReceived(b"I say: Current time is: ")
        process.terminate()
        assert await process.ended == 0
        await wire.whenClosed()


class Settings(AsyncResource):
    """
    Where a server's settings are.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Response:
        return Response(b'{"database": "sqlite:elsewhere.db"}', b"application/json")


@asynchronous
async def test_the_database_is_where_the_settings_say(
    tmp_path: Path, port: int
) -> None:
    """
    What comes before the settings are there is held like anything else; and the
    name of a request is in what is logged for it.
    """
    from twisted.internet import reactor

    request = (
        b"POST /users HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        b"X-Request-ID: mine\r\nContent-Type: application/json\r\n"
        b"Content-Length: 31\r\n\r\n"
        b'{"name": "Ada", "email": "a@b"}'
    )
    with reservedPort() as other:
        words = [f"--config-url=http://127.0.0.1:{other}/", "--delay=0"]
        async with twistd(tmp_path, port, *words, "--access-log=on") as process:
            await process.whenWritten("configuration failed to initialize (attempt 1)")
            endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
            wire: Wire = await connectProtocol(endpoint, Wire())
            wire.send(request)
            site = Site(Settings(), cast(Any, reactor))
            listening = cast(Any, reactor).listenTCP(other, site, interface="127.0.0.1")
            (answer,) = answersIn(await wire.whenClosed())
            assert (answer.status, answer.headers["location"]) == (201, "/users/1")
            await process.whenWritten(" mine\n")
            assert "[tsrv.web.site.Site#info,mine]" in process.output
            await listening.stopListening()
            await site.stop(0)
            process.terminate()
            assert await process.ended == 0
    assert (tmp_path / "elsewhere.db").exists()


@pytest.mark.parametrize("program", ["twistd", "twist"])
@asynchronous
async def test_it_is_found_by_its_name(tmp_path: Path, program: str) -> None:
    """
    A plugin that cannot be imported is left out without a word.
    """
    async with running(tmp_path, "--help", program=program) as process:
        assert await process.ended == 0
        assert " tsrv " in process.output
