"""
To restart the server is no matter for those who ask meanwhile.

The test holds the listening socket, as systemd would. Nothing here waits for a
time: each step follows a line of the log, a response, or a report of the load.
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

RATE = 250

GET = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def listening() -> Iterator[socket]:
    """
    A socket that listens, whoever accepts.
    """
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(4096)
        yield listening


class Starter:
    """
    Starts servers, each in a directory of its own, on the same socket.

    @ivar started: All of them, in order.
    """

    def __init__(
        self, stack: AsyncExitStack, directory: Path, listening: socket
    ) -> None:
        self._stack = stack
        self._directory = directory
        self._listening = listening
        self.started: list[Process] = []

    async def start(self, delay: float = 0.3) -> Process:
        """
        Start one, and wait until it listens.
        """
        directory = self._directory / str(len(self.started))
        directory.mkdir()
        process: Process = await self._stack.enter_async_context(
            running(
                directory,
                "-n",
                "tsrv",
                "--listen=systemd:domain=INET:index=0",
                f"--delay={delay}",
                listening=self._listening,
            )
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
    The load, which is told what to do.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._told = 0

    async def tell(self, *words: object) -> dict[str, Any]:
        """
        Tell it something, and wait for its report.
        """
        self._told += 1
        self._process.write(" ".join(map(str, words)) + "\n")
        await self._process.whenWritten(f'"told": {self._told}}}\n')
        report: dict[str, Any] = json.loads(self._process.output.splitlines()[-1])
        return report


@asynccontextmanager
async def loading(listening: socket) -> AsyncIterator[Load]:
    """
    Put a steady load on what listens.
    """
    port = f"--port={listening.getsockname()[1]}"
    words = ["-m", "tests._load", port, f"--rate={RATE}", "--kept=4"]
    async with spawned(ROOT, *words) as process:
        yield Load(process)


async def connect(port: int, *data: bytes) -> Wire:
    """
    Make a connection, and send something.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    for each in data:
        wire.send(each)
    return wire


def said(received: bytes) -> int:
    """
    @return: How many responses there are; all of them are what was hoped for.
    """
    answers = answersIn(received)
    for answer in answers:
        assert answer.status == 200
        assert answer.body.startswith(b"I say: Current time is: ")
    return len(answers)


@asynchronous
async def test_five_restarts_under_load_lose_no_request(
    tmp_path: Path, listening: socket
) -> None:
    """
    A new version can be rolled out at any time of the day: what comes while
    nothing runs waits in the kernel, what comes while it starts waits in tsrv.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path, listening)
        server = await servers.start()
        load = await stack.enter_async_context(loading(listening))

        # At once, one after the other.
        for _ in range(2):
            await load.tell("answered", 100)
            await stop(server)
            server = await servers.start()

        # While it starts, and holds what it has been asked.
        await stop(server)
        server = await servers.start(delay=1.5)
        await load.tell("begun", 50)
        await stop(server)

        # Some time during which nobody runs.
        await load.tell("begun", 50)
        server = await servers.start()

        # With the next one there already.
        await load.tell("answered", 100)
        server, former = await servers.start(), server
        await load.tell("begun", 50)
        await stop(former)

        await load.tell("answered", 100)
        report = await load.tell("stop")
        await stop(server)

        assert len(servers.started) == 6
        assert report["errors"] == {}
        assert report["failed"] == 0
        assert report["answered"] >= report["strangers"] > 500
        assert report["rate"] >= 200
        for process in servers.started:
            assert "Traceback" not in process.output
            assert process.errors == ""


@asynchronous
async def test_what_is_in_the_air_at_sigterm_is_answered(
    tmp_path: Path, listening: socket
) -> None:
    """
    What clients have sent while a server did not look is not lost when the next
    thing that it sees is SIGTERM: what it has accepted it answers, and what it
    has not, the next one does.
    """
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path, listening)
        server = await servers.start(delay=0)
        port = listening.getsockname()[1]
        silent = [await connect(port) for _ in range(20)]
        begun = [await connect(port, GET[:10]) for _ in range(20)]
        kept = [await connect(port, GET) for _ in range(20)]
        # Connections are accepted in order, so the others are as well.
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
        assert [said(each) for each in received] == [1] * 40 + [2] * 20
        assert await server.ended == 0

        # Whoever listens next, the socket has not been shut down.
        assert listening.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == 1
        server = await servers.start(delay=0)
        await gatherResults([wire.whenReceived(b"I say: ") for wire in waiting])
        await stop(server)
        received = await gatherResults([wire.whenClosed() for wire in waiting])
        assert [said(each) for each in received] == [1] * 200


@asynchronous
async def test_who_is_at_the_door_when_it_closes_is_answered(tmp_path: Path) -> None:
    """
    Where the server has opened its port itself nobody is there to answer those
    whom the system has accepted and the server has not: they would be reset.
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
            assert [said(each) for each in received] == [1] * 200
            await first.whenClosed()
            assert await server.ended == 0
