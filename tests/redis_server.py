"""
A Redis server for tests, which they can start, kill and pause.

Import the fixtures by name, C{from .redis_server import redis as redis}. Without the
program C{redis-server}, tests that need it are skipped, unless C{TSRV_DATABASES} is
C{required}.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from shutil import rmtree, which
from signal import SIGCONT, SIGKILL, SIGSTOP
from socket import create_connection
from tempfile import mkdtemp
from time import monotonic
from typing import Any, cast

import pytest
from hiredis import Reader, ReplyError, pack_command
from twisted.internet.task import Clock

from tsrv.sessions.redis import RedisSessionStore

from .websupport import reservedPort

__all__ = ["Redis", "Timed", "ownRedis", "redis", "storeAt", "using"]

MAX_SECONDS = 30.0
"""
Maximum duration of one step of the server, in seconds.
"""

SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    # What was acknowledged survives a kill.
    "appendonly": "yes",
    "appendfsync": "always",
    "databases": "4",
}

_WATCHER = 'cat > /dev/null; kill -9 "$1"; rm -rf "$2"'
"""
Kills the server and removes its files when the process of the tests has ended, which
closes the pipe to this script.
"""


@cache
def _program() -> str | None:
    return which("redis-server")


def _required() -> str:
    program = _program()
    if program is None:
        missing = "no Redis: there is no program redis-server"
        if os.environ.get("TSRV_DATABASES") == "required":
            raise AssertionError(missing)
        pytest.skip(missing)
    return program


class Redis:
    """
    A server on the loopback interface, which keeps its port while it is down.
    """

    def __init__(self, program: str, port: int) -> None:
        self.program = program
        self.port = port
        self.directory = Path(mkdtemp(prefix="tsrv-redis-"))
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """
        The URL for clients.
        """
        return f"redis://127.0.0.1:{self.port}"

    def start(self, **settings: str) -> None:
        """
        Start the server, and wait until it answers.

        @param settings: Further settings, with C{_} instead of C{-}.
        """
        assert self._process is None, "it runs already"
        lines = [f"port {self.port}"]
        for name, value in {**SETTINGS, **settings}.items():
            lines.append(f'{name.replace("_", "-")} "{value}"')
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [self.program, "-"],
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # An interrupt from the terminal is for the tests alone.
                start_new_session=True,
            )
        self._watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "sh", str(self._process.pid), self.directory],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        # On the command line everybody could read a password.
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write("\n".join(lines).encode())
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = monotonic() + MAX_SECONDS
        while monotonic() < deadline:
            try:
                self.ask("PING")
                return
            except ReplyError as error:
                # It needs a password first, or still reads its data.
                if not str(error).startswith("LOADING"):
                    return
            except OSError:
                pass
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                break
        log = self._log.read_text()
        self.kill()
        raise AssertionError(f"Redis does not answer: {log}")

    def kill(self) -> None:
        """
        Kill the server, if it runs, and wait until it is gone.
        """
        if self._process is None or self._watcher is None:
            return
        self._watcher.kill()
        self._watcher.communicate(timeout=MAX_SECONDS)
        self._process.send_signal(SIGKILL)
        self._process.wait(MAX_SECONDS)
        self._process = self._watcher = None

    def pause(self) -> None:
        """
        Stop the process: the system still accepts connections, nobody answers.
        """
        assert self._process is not None, "it does not run"
        self._process.send_signal(SIGSTOP)

    def resume(self) -> None:
        """
        Let the process go on.
        """
        assert self._process is not None, "it does not run"
        self._process.send_signal(SIGCONT)

    def ask(self, *words: str | bytes, password: str | None = None) -> Any:
        """
        Send a command over a connection of its own, and wait for the answer.

        @raise ReplyError: The answer is an error.
        """
        commands = [words] if password is None else [("AUTH", password), words]
        reader = Reader(notEnoughData=self)
        answer: Any = None
        with create_connection(("127.0.0.1", self.port), MAX_SECONDS) as connection:
            for command in commands:
                connection.sendall(pack_command(cast(Any, command)))
                while (answer := reader.gets()) is self:
                    data = connection.recv(65536)
                    if not data:
                        raise ConnectionError("Redis has closed the connection")
                    reader.feed(data)
                if isinstance(answer, ReplyError):
                    raise answer
        return answer

    def remove(self) -> None:
        """
        Kill the server, and remove its files.
        """
        self.kill()
        rmtree(self.directory)


@cache
def _shared(config: pytest.Config) -> Redis:
    with reservedPort() as port:
        server = Redis(_required(), port)
    config.add_cleanup(server.remove)
    server.start(appendonly="no", unixsocket=str(server.directory / "socket"))
    return server


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Redis:
    """
    The server that the tests share, without data. It also listens on C{socket} in
    its directory. Do not stop it.
    """
    _required()
    server = _shared(request.config)
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    return server


@pytest.fixture
def ownRedis() -> Iterator[Redis]:
    """
    A server for one test, which does not run yet.
    """
    with reservedPort() as port:
        server = Redis(_required(), port)
        yield server
        server.remove()


class Timed:
    """
    The real reactor, except for time and timers, which the test decides.
    """

    def __init__(self, clock: Clock) -> None:
        from twisted.internet import reactor

        self._reactor = reactor
        self.seconds = clock.seconds
        self.callLater = clock.callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def storeAt(
    url: str, prefix: str = "tsrv:session:", **options: Any
) -> RedisSessionStore:
    """
    @return: A store on the real reactor.
    """
    from twisted.internet import reactor

    return RedisSessionStore(reactor, url, prefix, **options)


@asynccontextmanager
async def using(
    url: str, prefix: str = "tsrv:session:", **options: Any
) -> AsyncIterator[RedisSessionStore]:
    """
    Use a store on the real reactor.
    """
    store = storeAt(url, prefix, **options)
    try:
        await store.initialize()
        yield store
    finally:
        await store.close()
