"""
Real processes of the server are started, asked and stopped.

Nothing here waits for a time: each step follows a line of the log, or a response.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM
from socket import socket
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.web.server import Request

from tsrv.web.responses import AsyncResource, Response
from tsrv.web.site import Site

from .processes import running
from .websupport import Answer, Wire, answersIn, asynchronous, reservedPort

# The interim response tells that the request has been received.
SAY = b"GET /say HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n\r\n"

USERS = SAY.replace(b"/say", b"/users")


@pytest.fixture
def port() -> Iterator[int]:
    """
    A free port.
    """
    with reservedPort() as port:
        yield port


def listen(port: int, option: str = "listen") -> str:
    """
    @return: The option for a port on the loopback interface.
    """
    return f"--{option}=tcp:{port}:interface=127.0.0.1:backlog=1024"


async def connect(port: int, request: bytes = SAY) -> Wire:
    """
    Connect, and send a request.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    wire.send(request)
    return wire


async def queueRequests(port: int, count: int, request: bytes = SAY) -> list[Wire]:
    """
    Make requests, and wait until the server has received all of them.
    """
    connecting = [Deferred.fromCoroutine(connect(port, request)) for _ in range(count)]
    wires = await gatherResults(connecting)
    continued = b"HTTP/1.1 100 Continue\r\n\r\n"
    await gatherResults([wire.whenReceived(continued) for wire in wires])
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
    Request one page.
    """
    head = f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    wire = await connect(port, head.encode())
    (answer,) = answersIn(await wire.whenClosed())
    return answer


class SettingsPage(AsyncResource):
    """
    A page with the settings of a server.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Response:
        return Response(b'{"database": "sqlite:elsewhere.db"}', b"application/json")


@asynccontextmanager
async def servingSettings(port: int) -> AsyncIterator[None]:
    """
    Serve this page on a port.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    site = Site(SettingsPage(), reactor)
    listening = reactor.listenTCP(port, site, interface="127.0.0.1")
    yield
    await listening.stopListening()
    await site.stop(0)


@asynchronous
async def test_twist_runs_the_server(tmp_path: Path, port: int) -> None:
    """
    C{twist} runs the server too: it queues, answers, and ends with status 0 on SIGTERM.
    """
    words = ("tsrv", listen(port), "--delay=0.5")
    async with running(tmp_path, *words, program="twist") as process:
        await process.whenWritten("Started")
        (wire,) = await queueRequests(port, 1)
        received = await wire.whenReceived(b"I say: Current time is: ")
        assert [answer.status for answer in answersIn(received)] == [100, 200]
        await process.whenWritten("Async module initialized")
        process.terminate()
        assert await process.ended == 0
        await wire.whenClosed()
        assert "Traceback" not in process.output
        assert process.errors == ""


@asynchronous
async def test_sigterm_during_the_start_answers_queued_requests(
    tmp_path: Path, port: int
) -> None:
    """
    On SIGTERM a server that is still starting finishes its start for the requests that
    wait, and its operators can watch until the end.
    """
    with reservedPort() as operations, reservedPort() as settings:
        words = [listen(port), listen(operations, "operations-listen"), "--delay=0"]
        words.append(f"--config-url=http://127.0.0.1:{settings}/")
        async with running(tmp_path, "-n", "tsrv", *words) as process:
            await process.whenWritten("Started")
            wires = await queueRequests(port, 100, USERS)
            assert (await fetch(port, "/readyz")).status == 404
            assert b'"state": "starting"' in (await fetch(operations, "/readyz")).body
            process.terminate()
            await process.whenWritten("Stopped listening")
            assert b'"state": "stopping"' in (await fetch(operations, "/readyz")).body
            async with servingSettings(settings):
                assert await statuses(wires) == [200] * 100
                assert await process.ended == 0
            steps = ("Started", "Stopped listening", "Stopped\n")
            found = [process.output.index(step) for step in steps]
            assert found == sorted(found)
            assert "Traceback" not in process.output
            assert process.errors == ""


@asynchronous
async def test_a_second_sigterm_ends_the_drain(tmp_path: Path, port: int) -> None:
    """
    On a second SIGTERM the requests that wait get 503.
    """
    words = [listen(port), "--delay=600", "--drain-timeout=600"]
    async with running(tmp_path, "-n", "tsrv", *words) as process:
        await process.whenWritten("Started")
        wires = await queueRequests(port, 10)
        process.terminate()
        await process.whenWritten("Stopped listening")
        assert not any(wire.closed for wire in wires)
        process.terminate()
        assert await statuses(wires) == [503] * 10
        assert all(b"The service is shutting down" in each.received for each in wires)
        assert await process.ended == 0
        assert "Async module initialized" not in process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("program", "words"), [("twistd", ["-n"]), ("twistd", []), ("twist", [])]
)
@asynchronous
async def test_a_port_in_use_ends_the_process(
    tmp_path: Path, program: str, words: list[str]
) -> None:
    """
    A server that cannot listen ends with status 1 and one line, in the foreground and
    as a daemon, and leaves no pid file.
    """
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = [*words, "tsrv", listen(port)]
        async with running(tmp_path, *words, program=program) as process:
            assert await process.ended == 1
            written = process.output + process.errors
            line = f"tsrv: Couldn't listen on 127.0.0.1:{port}: "
            assert written.count(line) == 1
            assert "Traceback" not in written
            assert "Started" not in written
            assert not list(tmp_path.glob("*.pid"))


@asynchronous
async def test_a_daemon_runs_and_stops(tmp_path: Path, port: int) -> None:
    """
    Without C{-n} the server is a daemon, with a pid file while it runs.
    """
    async with running(tmp_path, "tsrv", listen(port), "--delay=0.1") as process:
        await process.exited
        (wire,) = await queueRequests(port, 1)
        os.kill(int((tmp_path / "twistd.pid").read_text()), SIGTERM)
        assert await statuses([wire]) == [200]
        assert await process.ended == 0
        log = (tmp_path / "twistd.log").read_text()
        assert "Started" in log
        assert "Stopped" in log
        assert not (tmp_path / "twistd.pid").exists()


@asynchronous
async def test_the_settings_name_the_database(tmp_path: Path, port: int) -> None:
    """
    A request waits until the settings have been fetched, and its id is in the log.
    """
    body = b'{"name": "Ada", "email": "a@b"}'
    head = (
        "POST /users HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        "X-Request-ID: mine\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with reservedPort() as settings:
        words = [f"--config-url=http://127.0.0.1:{settings}/", "--delay=0"]
        words += [listen(port), "--access-log=on"]
        async with running(tmp_path, "-n", "tsrv", *words) as process:
            await process.whenWritten("configuration: attempt 1 failed")
            wire = await connect(port, head.encode() + body)
            async with servingSettings(settings):
                (answer,) = answersIn(await wire.whenClosed())
            assert (answer.status, answer.headers["location"]) == (201, "/users/1")
            await process.whenWritten(" mine\n")
            assert "#info,mine]" in process.output
            process.terminate()
            assert await process.ended == 0
    assert (tmp_path / "elsewhere.db").exists()
