"""
What the tests of Redis need: a server that they start, kill and pause as they
like.

The fixtures are imported by name, C{from ._redis import redis as redis}. Where the
program C{redis-server} is missing, a test that needs it is skipped, unless
C{TSRV_DATABASES} is C{required}.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from shutil import rmtree, which
from signal import SIGCONT, SIGKILL, SIGSTOP
from socket import create_connection
from tempfile import mkdtemp
from time import monotonic
from typing import Any

import pytest

from .websupport import reservedPort

__all__ = ["Redis", "Refusal", "ownRedis", "redis"]

_LONG = 30.0
"""
No step of a server takes so long, in seconds.
"""

_SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    # What was answered is there after a kill.
    "appendonly": "yes",
    "appendfsync": "always",
    "databases": "4",
}

_WATCHER = 'cat > /dev/null; kill -9 "$1"; rm -rf "$2"'
"""
Outlives the tests however they end: when the pipe from them is closed, it kills
the server, and removes what that leaves.
"""


class Refusal(Exception):
    """
    What Redis says when it does not do something.
    """


@cache
def _program() -> str | None:
    return which("redis-server")


def _installed() -> str:
    program = _program()
    if program is None:
        missing = "no Redis: there is no program redis-server"
        if os.environ.get("TSRV_DATABASES") == "required":
            raise AssertionError(missing)
        pytest.skip(missing)
    return program


class Redis:
    """
    A server of Redis on a port of the loopback interface that stays its own while
    it is down. What takes too long fails with what the server has logged.

    @ivar program: The program.
    @ivar port: Its TCP port.
    @ivar directory: Where its data are.
    """

    def __init__(self, program: str, port: int) -> None:
        self.program = program
        self.port = port
        self.directory = Path(mkdtemp(prefix="tsrv-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """
        What clients connect to.
        """
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """
        What it has logged since it was made.
        """
        try:
            return (self.directory / "log").read_text()
        except FileNotFoundError:
            return ""

    def start(self, **settings: str) -> None:
        """
        Start it, and wait until it answers.

        @param settings: More settings, or others.
        """
        assert self._process is None, "it runs already"
        words = [f"--port {self.port}"]
        for name, value in {**_SETTINGS, **settings}.items():
            words.append(f'--{name} "{value}"')
        with (self.directory / "log").open("ab") as log:
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
        # Arguments of the program can be read by everybody; a password is none of
        # them.
        assert self._process.stdin is not None
        with self._process.stdin as file:
            file.write("\n".join(word.removeprefix("--") for word in words).encode())
        self._wait()

    def kill(self) -> None:
        """
        Kill it with SIGKILL, and wait until it is gone. Does nothing when it does
        not run.
        """
        if self._process is None or self._watcher is None:
            return
        # The number of the process is its own until it has been waited for.
        self._watcher.kill()
        self._watcher.communicate(timeout=_LONG)
        self._process.send_signal(SIGKILL)
        self._process.wait(_LONG)
        self._process = self._watcher = None

    def pause(self) -> None:
        """
        Stop it where it is: connections are accepted, by the system, and nobody
        answers.
        """
        assert self._process is not None, "it does not run"
        self._process.send_signal(SIGSTOP)

    def resume(self) -> None:
        """
        Let it go on.
        """
        assert self._process is not None, "it does not run"
        self._process.send_signal(SIGCONT)

    def ask(self, *words: str | bytes, password: str | None = None) -> Any:
        """
        Send a command over a connection of its own, and wait for the answer.

        @raise Refusal: The answer is an error.
        """
        with create_connection(("127.0.0.1", self.port), _LONG) as connection:
            file = connection.makefile("rwb")
            if password is not None:
                _ask(file, "AUTH", password)
            return _ask(file, *words)

    def remove(self) -> None:
        """
        End it, and remove its data.
        """
        self.kill()
        rmtree(self.directory)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = monotonic() + _LONG
        while monotonic() < deadline:
            with suppress(OSError):
                try:
                    self.ask("PING")
                except Refusal as refusal:
                    # It wants a password first, or has not read its data yet.
                    if not str(refusal).startswith("LOADING"):
                        return
                else:
                    return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.01)
                break
        log = self.log
        self.kill()
        raise AssertionError(f"Redis does not answer: {log}")


def _ask(file: Any, *words: str | bytes) -> Any:
    file.write(b"*%d\r\n" % len(words))
    for word in words:
        data = word if isinstance(word, bytes) else word.encode()
        file.write(b"$%d\r\n%b\r\n" % (len(data), data))
    file.flush()
    return _answer(file)


def _answer(file: Any) -> Any:
    line = file.readline()
    if not line:
        raise ConnectionError("it was closed")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise Refusal(rest.decode())
    if kind == b"+":
        return rest
    number = int(rest)
    if kind == b":":
        return number
    if number < 0:
        return None
    if kind == b"$":
        return file.read(number + 2)[:-2]
    return [_answer(file) for _ in range(number)]


@cache
def _shared() -> Redis:
    with reservedPort() as port:
        server = Redis(_installed(), port)
        try:
            # Many tests, and no kill.
            server.start(appendonly="no")
        except BaseException:
            server.remove()
            raise
    return server


@cache
def _prepared(config: pytest.Config) -> Redis:
    """
    @return: The server that the tests share, which ends when they have ended.
    """
    server = _shared()
    config.add_cleanup(server.remove)
    return server


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Redis:
    """
    The server that the tests share, with nothing in it. It is not to be stopped.
    """
    _installed()
    server = _prepared(request.config)
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    return server


@pytest.fixture
def ownRedis() -> Iterator[Redis]:
    """
    A server for one test, which does not run yet.
    """
    program = _installed()
    with reservedPort() as port:
        server = Redis(program, port)
        yield server
        server.remove()
