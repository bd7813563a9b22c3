"""
Real processes of the server are started, requested, restarted and stopped. No test
waits for a time: each step follows a line of the log, a response, or a report of the
load.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from socket import SO_ACCEPTCONN, SOL_SOCKET, create_connection, socket
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from tsrv import Startup
from tsrv.server import Server
from tsrv.web.responses import NotFoundResource, Response
from tsrv.web.site import Site

from .processes import ROOT, Process, running, spawned
from .restarts import Load, Starter
from .websupport import (
    Answer,
    Rendered,
    Wire,
    answersIn,
    asynchronous,
    reservedPort,
    serving,
)

GET = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"

# The interim response shows that the head was received. Only a request with a body gets
# one.
EXPECTING = (
    b"GET %s HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n"
    b"Content-Length: 1\r\n\r\nx"
)

BODY = b'{"name": "Ada", "email": "a@b"}'

POST = (
    b"POST /users HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n"
    b"X-Request-ID: mine\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


@pytest.fixture
def port() -> Iterator[int]:
    """
    A free port.
    """
    with reservedPort() as port:
        yield port


def listen(port: int, option: str = "listen") -> str:
    """
    @return: The options for a port on the loopback interface.
    """
    return f"--{option}=tcp:{port}:interface=127.0.0.1:backlog=1024"


async def connect(port: int, *data: bytes) -> Wire:
    """
    Connect, and send something.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    for each in data:
        wire.send(each)
    return wire


async def queueRequests(port: int, *requests: bytes) -> list[Wire]:
    """
    Make requests, and wait until the server processes all of them.
    """
    parts = [each.partition(b"\r\n\r\n") for each in requests]
    wires = await gatherResults(
        [Deferred.fromCoroutine(connect(port, head + end)) for head, end, _ in parts]
    )
    continued = b"HTTP/1.1 100 Continue\r\n\r\n"
    await gatherResults([wire.whenReceived(continued) for wire in wires])
    for wire, (_, _, body) in zip(wires, parts, strict=True):
        wire.send(body)
    return wires


async def finalAnswers(wires: list[Wire]) -> list[Answer]:
    """
    Wait until the server has closed all connections.

    @return: The last response on each connection.
    """
    received = await gatherResults([wire.whenClosed() for wire in wires])
    return [answersIn(each)[-1] for each in received]


async def fetch(port: int, path: str) -> Answer:
    """
    Request one page.
    """
    head = f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    (answer,) = await finalAnswers([await connect(port, head.encode())])
    return answer


async def stop(process: Process) -> None:
    """
    Stop a server gracefully.
    """
    process.terminate()
    await stopped(process)


async def stopped(process: Process) -> None:
    """
    Wait for a server that stops gracefully.
    """
    assert await process.ended == 0
    assert "Traceback" not in process.output
    assert process.errors == ""


@asynccontextmanager
async def terminatedWhilePaused(process: Process) -> AsyncIterator[None]:
    """
    Send SIGTERM to a process that is suspended in this context.
    """
    pid = cast(Any, process.transport).pid
    os.kill(pid, SIGSTOP)
    yield
    os.kill(pid, SIGTERM)
    os.kill(pid, SIGCONT)


def countAnswers(received: bytes) -> int:
    """
    @return: The number of responses. Each of them must be a success.
    """
    answers = answersIn(received)
    for answer in answers:
        assert answer.status == 200
        assert answer.body.startswith(b"I say: Current time is: ")
    return len(answers)


@asynchronous
async def test_twist_runs_the_server(tmp_path: Path, port: int) -> None:
    """
    C{twist} runs the server, too: it queues and answers requests. On SIGTERM it serves
    the connections that the kernel has accepted, since no other server would.
    """
    words = ("tsrv", listen(port), "--delay=0.5")
    async with running(tmp_path, *words, program="twist") as process:
        await process.whenWritten("Started")
        (first,) = await queueRequests(port, EXPECTING % b"/say")
        await first.whenReceived(b"I say: Current time is: ")
        async with terminatedWhilePaused(process):
            wires = [await connect(port, GET) for _ in range(200)]
        received = await gatherResults([wire.whenClosed() for wire in wires])
        assert [countAnswers(each) for each in received] == [1] * 200
        await stopped(process)
        await first.whenClosed()


@asynchronous
async def test_sigterm_during_the_start_answers_queued_requests(
    tmp_path: Path, port: int
) -> None:
    """
    On SIGTERM a server that waits for its settings finishes its start for the queued
    requests, and operators can watch until the end. The settings name the database, and
    the id of a request is in the log.
    """
    settings = Response(b'{"database": "sqlite:elsewhere.db"}', b"application/json")
    from twisted.internet import reactor

    page = Site(Rendered(lambda request: settings), cast(Any, reactor))
    with reservedPort() as operations, reservedPort() as settingsPort:
        words = [listen(port), listen(operations, "operations-listen"), "--delay=0"]
        words.append(f"--config-url=http://127.0.0.1:{settingsPort}/")
        words.append("--access-log=on")
        async with running(tmp_path, "-n", "tsrv", *words) as process:
            await process.whenWritten("Started")
            requests = [EXPECTING % b"/users"] * 100
            wires = await queueRequests(port, POST, *requests)
            await process.whenWritten("configuration: attempt 1 failed")
            assert (await fetch(port, "/readyz")).status == 404
            assert b'"state": "starting"' in (await fetch(operations, "/readyz")).body
            process.terminate()
            await process.whenWritten("Stopped listening")
            assert b'"state": "stopping"' in (await fetch(operations, "/readyz")).body
            async with serving(page, settingsPort):
                created, *listed = await finalAnswers(wires)
                assert (created.status, created.headers["location"]) == (
                    201,
                    "/users/1",
                )
                assert [answer.status for answer in listed] == [200] * 100
                assert {answer.headers["connection"] for answer in listed} == {"close"}
                await stopped(process)
    assert process.output.index("Stopped listening") < process.output.index("Stopped\n")
    (line,) = (each for each in process.output.splitlines() if '"POST /users' in each)
    assert re.fullmatch(
        r"[^ ]+ \[tsrv\.access#info,mine\] 127\.0\.0\.1 "
        r'"POST /users HTTP/1\.1" 201 "-" "-" \d+ bytes in \d+\.\d{3} s',
        line,
    )
    assert (tmp_path / "elsewhere.db").exists()


@asynchronous
async def test_no_line_of_the_start_has_the_id_of_a_request(
    tmp_path: Path, port: int
) -> None:
    """
    No attempt and no line of the start-up has the id of a queued request; such an id is
    in the lines of its request.
    """
    with reservedPort() as closed:
        words = [listen(port), "--delay=1", "--access-log=on"]
        words.append(f"--sessions=redis://127.0.0.1:{closed}/")
        options = ("--reactor=asyncio", "-n")
        async with running(tmp_path, *options, "tsrv", *words) as process:
            await process.whenWritten("Started")
            named = EXPECTING.replace(b"test", b"localhost\r\nX-Request-ID: mine")
            wires = await queueRequests(port, named % b"/say", named % b"/visits")
            await process.whenWritten('"GET /say ')
            await process.whenWritten("sessions: attempt 3 failed")
            wires[1].leave()
            await process.whenWritten('"GET /visits ')
            process.terminate()
            assert await process.ended == 0
    own = [line for line in process.output.splitlines() if "mine" in line]
    assert len(own) == 2
    assert all(" [tsrv.access#info,mine] " in line for line in own)


@pytest.mark.parametrize("program", ["twistd", "twist"])
@asynchronous
async def test_a_port_in_use_ends_the_process(tmp_path: Path, program: str) -> None:
    """
    A server that cannot listen exits with status 1 and one line, in the foreground and
    as a daemon, and leaves no pid file.
    """
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with running(tmp_path, "tsrv", listen(port), program=program) as process:
            assert await process.ended == 1
    written = process.output + process.errors
    assert written.count(f"tsrv: cannot listen on {listen(port)[9:]}: ") == 1
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
        wires = await queueRequests(port, EXPECTING % b"/say")
        os.kill(int((tmp_path / "twistd.pid").read_text()), SIGTERM)
        assert [answer.status for answer in await finalAnswers(wires)] == [200]
        assert await process.ended == 0
        log = (tmp_path / "twistd.log").read_text()
        assert "Started" in log
        assert "Stopped" in log
        assert not (tmp_path / "twistd.pid").exists()


@asynchronous
async def test_a_stopping_server_answers_the_connections_that_the_kernel_accepted(
    port: int,
) -> None:
    """
    The server accepts what is pending, and closes its port in the same turn of the
    reactor: each connection is answered or refused, and none is reset.
    """
    from twisted.internet import reactor

    endpoint = f"tcp:{port}:interface=127.0.0.1"
    server = Server(
        reactor, Startup(cast(Any, reactor)), NotFoundResource(), [endpoint]
    )
    server.startService()
    # The reactor does not turn: only the kernel accepts these connections.
    clients = [create_connection(("127.0.0.1", port)) for _ in range(5)]
    stopped = server.stopService()
    with pytest.raises(ConnectionRefusedError):
        create_connection(("127.0.0.1", port))
    for client in clients:
        client.sendall(GET)
        assert await deferToThread(client.recv, 12) == b"HTTP/1.1 404"
        client.close()
    await stopped


# Restarts. The test holds the listening socket, as systemd does.


@asynchronous
async def test_restarts_under_load_lose_no_request(tmp_path: Path) -> None:
    """
    Requests that arrive while no server runs wait in the kernel, and requests that
    arrive during a start wait in the queue of the server.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path)
        server = await servers.start()
        words = ["-m", "tests.load", f"--port={servers.port}", "--rate=150"]
        load = Load(await stack.enter_async_context(spawned(ROOT, *words)))

        # The next server starts when the previous one has stopped.
        await load.tell("answered", 60)
        await stop(server)
        server = await servers.start(delay=1)

        # A server stops during its start, with queued requests.
        await load.tell("begun", 30)
        await stop(server)

        # No server runs for a while.
        await load.tell("begun", 30)
        server = await servers.start()

        # Two servers run at the same time.
        await load.tell("answered", 60)
        server, former = await servers.start(), server
        await load.tell("begun", 30)
        await stop(former)

        await load.tell("answered", 60)
        report = await load.tell("stop")
        await stop(server)

        assert servers.started == 4
        assert report["errors"] == {}
        assert report["answered"] == report["begun"] > 200


@pytest.mark.parametrize("program", ["twistd", "twist"])
@asynchronous
async def test_sigterm_may_be_sent_again_and_again(
    tmp_path: Path, port: int, program: str
) -> None:
    """
    A further SIGTERM at any time before the process has exited does not change the exit
    status.
    """
    words = ["-n"] if program == "twistd" else []
    words += ["tsrv", listen(port), "--delay=0"]
    async with running(tmp_path, *words, program=program) as process:
        await process.whenWritten(": ready on ")
        again = LoopingCall(process.terminate)
        again.start(0.002)
        process.exited.addBoth(lambda _: again.stop())
        await stopped(process)


@asynchronous
async def test_requests_at_sigterm_are_answered(tmp_path: Path) -> None:
    """
    A server responds on each connection that it accepted before SIGTERM, even if it
    reads the request later. The next server on the socket serves the rest.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path)
        server = await servers.start(delay=0)
        port = servers.port
        silent = [await connect(port) for _ in range(20)]
        begun = [await connect(port, GET[:10]) for _ in range(20)]
        kept = [await connect(port, GET) for _ in range(20)]
        # Connections are accepted in order: the others have been accepted too.
        await gatherResults([wire.whenReceived(b"I say: ") for wire in kept])

        async with terminatedWhilePaused(server):
            for wire in silent + kept:
                wire.send(GET)
            for wire in begun:
                wire.send(GET[10:])
            waiting = [await connect(port, GET) for _ in range(200)]

        wires = silent + begun + kept
        received = await gatherResults([wire.whenClosed() for wire in wires])
        assert [countAnswers(each) for each in received] == [1] * 40 + [2] * 20
        await stopped(server)

        # The listening socket itself must not be shut down.
        assert servers.socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == 1
        server = await servers.start(delay=0)
        await gatherResults([wire.whenReceived(b"I say: ") for wire in waiting])
        await stop(server)
        received = await gatherResults([wire.whenClosed() for wire in waiting])
        assert [countAnswers(each) for each in received] == [1] * 200
