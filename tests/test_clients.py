"""
Clients of all kinds, unmodified, against real servers that start late, are killed, and
start again.

Each client is a file in C{examples/clients}, and runs in a process of its own
(L{tests.clientdriver}). Without the program of its server, a test is skipped, unless
C{TSRV_DATABASES} is C{required}.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Protocol

import pytest

from .databases import ownPostgresql as ownPostgresql
from .loops import onRealLoop
from .nats_server import ownNats as ownNats
from .postgresql_server import PostgreSQL
from .processes import ROOT
from .rabbitmq_server import ownRabbit as ownRabbit
from .redis_server import ownRedis as ownRedis
from .websupport import reservedPort

COMPLAINTS = [
    "Traceback",
    "Unhandled",
    "never retrieved",
    "never awaited",
    "was destroyed",
    "ResourceWarning",
]
"""
Messages of programs about unhandled errors, and abandoned tasks and connections.
"""

MAX_SECONDS = 120.0
"""
Maximum time of a test, in seconds.
"""


class Server(Protocol):
    """
    The server of a client, which keeps its port and its data while it is down.
    """

    @property
    def url(self) -> str:
        """
        The URL for clients.
        """

    def start(self) -> object:
        """
        Start the server, and wait until it works. This blocks.
        """

    def kill(self) -> object:
        """
        Kill the server with SIGKILL, and wait for its end. This blocks.
        """


class _BlockingPostgreSQL:
    def __init__(self, server: PostgreSQL) -> None:
        self.url = server.url
        self.start = server.startNow
        self.kill = server.killNow


@pytest.fixture
def ownPostgres(ownPostgresql: PostgreSQL) -> Server:
    """
    A stopped PostgreSQL server for one test.
    """
    return _BlockingPostgreSQL(ownPostgresql)


class Volume:
    """
    A directory for the file of a database, which can be mounted and unmounted.
    """

    def __init__(self, directory: Path) -> None:
        self._unmounted = directory / "unmounted"
        self._unmounted.mkdir()
        self._mounted = directory / "mounted"
        self.url = str(self._mounted / "file")

    def start(self) -> None:
        self._unmounted.rename(self._mounted)

    def kill(self) -> None:
        self._mounted.rename(self._unmounted)


@pytest.fixture
def volume(tmp_path: Path) -> Server:
    """
    An unmounted volume for one test.
    """
    return Volume(tmp_path)


class Program:
    """
    A server of L{tests.clientservers}.
    """

    def __init__(self, kind: str, port: int, path: Path) -> None:
        self.url = (
            f"http://127.0.0.1:{port}" if kind == "http" else f"tcp:127.0.0.1:{port}"
        )
        program = ROOT / "tests" / "clientservers.py"
        self._command = [sys.executable, str(program), kind, str(port), str(path)]
        self._process: Popen[bytes] | None = None

    def start(self) -> None:
        self._process = Popen(self._command, stdin=PIPE, stderr=PIPE)  # noqa: S603
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert line == b"listening\n", line + self._process.stderr.read()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def _program(kind: str, path: Path) -> Iterator[Server]:
    with reservedPort() as port:
        server = Program(kind, port, path / "items")
        yield server
        server.kill()


@pytest.fixture
def lineServer(tmp_path: Path) -> Iterator[Server]:
    """
    A stopped server of lines for one test.
    """
    with _program("lines", tmp_path) as server:
        yield server


@pytest.fixture
def httpServer(tmp_path: Path) -> Iterator[Server]:
    """
    A stopped HTTP server for one test.
    """
    with _program("http", tmp_path) as server:
        yield server


class Driver:
    """
    A process that runs a client.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output = ""

    async def whenWritten(self, word: str) -> None:
        """
        Wait until the program has written a word as a line, from the last match on.
        """
        assert self.process.stdout is not None
        while True:
            line = (await self.process.stdout.readline()).decode()
            assert line, f"no {word!r} in {self.output}"
            self.output += line
            if line.strip() == word:
                return


@onRealLoop
async def outlast(server: Server, *words: str) -> None:
    """
    Run a client without its server, with it, and after a loss.
    """
    driver = ROOT / "tests" / "clientdriver.py"
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-X", "dev", str(driver), words[0], server.url, *words[1:]],
        stdout=PIPE,
        stderr=STDOUT,
    )
    client = Driver(process)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            await client.whenWritten("made")
            await client.whenWritten("retrying")
            await asyncio.to_thread(server.start)
            await client.whenWritten("busy")
            await asyncio.to_thread(server.kill)
            await client.whenWritten("lost")
            await asyncio.to_thread(server.start)
            await client.whenWritten("end")
            rest, _ = await process.communicate()
        client.output += rest.decode()
    except TimeoutError:
        raise AssertionError(f"too slow: {client.output}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, client.output
    found = [each for each in COMPLAINTS if each in client.output]
    assert not found, client.output


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        pytest.param("ownRedis", ["redis_asyncio", "--asyncio"], id="redis-py"),
        pytest.param("ownPostgres", ["asyncpg_pool", "--asyncio"], id="asyncpg"),
        pytest.param("ownPostgres", ["psycopg_transactions"], id="psycopg"),
        pytest.param("volume", ["adbapi_sqlite"], id="adbapi"),
        pytest.param("httpServer", ["treq_login"], id="treq"),
        pytest.param("lineServer", ["clientservice_lines"], id="ClientService"),
        pytest.param("ownNats", ["nats_asyncio", "--asyncio"], id="nats-py"),
        pytest.param("ownRabbit", ["aiopika_asyncio", "--asyncio"], id="aio-pika"),
        # pika has its own Deferred for consuming, whose error nobody handles.
        pytest.param("ownRabbit", ["pika_twisted", "--idle"], id="pika"),
    ],
)
def test_a_client_outlasts_its_server(
    fixture: str, words: list[str], request: pytest.FixtureRequest
) -> None:
    """
    Calls that are made before the server starts run in order. When the server is
    killed, reads are repeated, and other calls end with their result, or with an error
    that leaves the outcome open. Acknowledged items are kept. After closing, nothing is
    left behind.
    """
    server: Server = request.getfixturevalue(fixture)
    outlast(server, *words)
