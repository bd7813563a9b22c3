"""
A restart of the server loses no request.

The test holds the listening socket, as systemd does. Nothing here waits for a time:
each step follows a line of the log, a response, or a report of the load.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from socket import SO_ACCEPTCONN, SOL_SOCKET, socket
from typing import Any, cast

import pytest
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from .processes import ROOT, Process, running, spawned
from .websupport import Wire, answersIn, asynchronous, reservedPort

GET = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def listening() -> Iterator[socket]:
    """
    A listening socket, for several servers.
    """
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(4096)
        yield listening


class Starter:
    """
    Starts servers on the same socket, each in a directory of its own.

    @ivar started: All servers, in order.
    """

    def __init__(
        self, stack: AsyncExitStack, directory: Path, listening: socket
    ) -> None:
        self._stack = stack
        self._directory = directory
        self._listening = listening
        self.started: list[Process] = []

    async def start(self, delay: float = 0.2) -> Process:
        """
        Start a server, and wait until it listens.
        """
        directory = self._directory / str(len(self.started))
        directory.mkdir()
        listen = "--listen=systemd:domain=INET:index=0"
        command = ["-n", "tsrv", listen, f"--delay={delay}"]
        process: Process = await self._stack.enter_async_context(
            running(directory, *command, listening=self._listening)
        )
        self.started.append(process)
        await process.whenWritten("Started")
        return process


async def stop(process: Process) -> None:
    """
    Stop a server, and wait until it has ended.
    """
    process.terminate()
    assert await process.ended == 0


class Load:
    """
    The process that makes requests, which takes commands.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._commands = 0

    async def tell(self, *words: object) -> dict[str, Any]:
        """
        Give it a command, and wait for its report.
        """
        self._commands += 1
        self._process.write(" ".join(map(str, words)) + "\n")
        await self._process.whenWritten(f'"told": {self._commands}}}\n')
        report: dict[str, Any] = json.loads(self._process.output.splitlines()[-1])
        return report


@asynccontextmanager
async def loading(listening: socket) -> AsyncIterator[Load]:
    """
    Make requests at a steady rate.
    """
    port = f"--port={listening.getsockname()[1]}"
    words = ["-m", "tests.load", port, "--rate=150", "--kept=4"]
    async with spawned(ROOT, *words) as process:
        yield Load(process)


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


def countAnswers(received: bytes) -> int:
    """
    @return: The number of responses, all of which must be good.
    """
    answers = answersIn(received)
    for answer in answers:
        assert answer.status == 200
        assert answer.body.startswith(b"I say: Current time is: ")
    return len(answers)


@asynchronous
async def test_restarts_under_load_lose_no_request(
    tmp_path: Path, listening: socket
) -> None:
    """
    Requests that arrive while no server runs wait in the kernel, and requests that
    arrive while one starts wait in its queue.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path, listening)
        server = await servers.start()
        load = await stack.enter_async_context(loading(listening))

        # The next server starts when the last one has stopped.
        await load.tell("answered", 60)
        await stop(server)
        server = await servers.start(delay=1)

        # A server stops while it starts, with requests in its queue.
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

        assert len(servers.started) == 4
        assert report["errors"] == {}
        assert report["failed"] == 0
        assert report["answered"] >= report["strangers"] > 200
        for process in servers.started:
            assert "Traceback" not in process.output
            assert process.errors == ""


@asynchronous
async def test_requests_at_sigterm_are_answered(
    tmp_path: Path, listening: socket
) -> None:
    """
    A server responds on each connection that it has accepted before SIGTERM, even if it
    reads the request afterwards; the next server on the socket serves the rest.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path, listening)
        server = await servers.start(delay=0)
        port = listening.getsockname()[1]
        silent = [await connect(port) for _ in range(20)]
        begun = [await connect(port, GET[:10]) for _ in range(20)]
        kept = [await connect(port, GET) for _ in range(20)]
        # Connections are accepted in order: the others have been accepted too.
        await gatherResults([wire.whenReceived(b"I say: ") for wire in kept])

        pid = cast(Any, server.transport).pid
        os.kill(pid, SIGSTOP)
        for wire in silent + kept:
            wire.send(GET)
        for wire in begun:
            wire.send(GET[10:])
        waiting = [await connect(port, GET) for _ in range(200)]
        os.kill(pid, SIGTERM)
        os.kill(pid, SIGCONT)

        wires = silent + begun + kept
        received = await gatherResults([wire.whenClosed() for wire in wires])
        assert [countAnswers(each) for each in received] == [1] * 40 + [2] * 20
        assert await server.ended == 0

        # The socket is not shut down.
        assert listening.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == 1
        server = await servers.start(delay=0)
        await gatherResults([wire.whenReceived(b"I say: ") for wire in waiting])
        await stop(server)
        received = await gatherResults([wire.whenClosed() for wire in waiting])
        assert [countAnswers(each) for each in received] == [1] * 200


@asynchronous
async def test_pending_connections_at_sigterm_are_answered(tmp_path: Path) -> None:
    """
    A server that has opened its own port serves the connections that the kernel has
    accepted, since no other server would.
    """
    with reservedPort() as port:
        listen = f"--listen=tcp:{port}:interface=127.0.0.1:backlog=1024"
        async with running(tmp_path, "-n", "tsrv", listen, "--delay=0") as server:
            await server.whenWritten("Async module initialized")
            first = await connect(port, GET)
            await first.whenReceived(b"I say: ")
            pid = cast(Any, server.transport).pid
            os.kill(pid, SIGSTOP)
            wires = [await connect(port, GET) for _ in range(200)]
            os.kill(pid, SIGTERM)
            os.kill(pid, SIGCONT)
            received = await gatherResults([wire.whenClosed() for wire in wires])
            assert [countAnswers(each) for each in received] == [1] * 200
            await first.whenClosed()
            assert await server.ended == 0
