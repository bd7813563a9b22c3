"""
Real processes: start them, and follow their output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from socket import socket
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

__all__ = ["ROOT", "Process", "run", "running", "spawned"]

ROOT = Path(__file__).parent.parent
"""
The checkout.
"""


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    """
    Run a program outside of the checkout, with no Python path but the given one,
    without measuring its coverage.

    @return: Its output, and its errors.
    """
    inherited = {
        name: os.environ[name]
        for name in os.environ
        if not name.startswith(("COVERAGE", "PYTHON"))
    }
    ended = subprocess.run(  # noqa: S603
        [str(word) for word in command],
        cwd=sys.prefix,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


class Process(ProcessProtocol):
    """
    A process and its output.

    @ivar ended: Fires with the exit status (negative for a signal) when the process and
        all its descendants have ended.
    @ivar exited: Fires when the process itself has ended.
    @ivar status: The exit status, once C{ended} has fired.
    """

    def __init__(self) -> None:
        self.ended: Deferred[int] = Deferred()
        self.exited: Deferred[None] = Deferred()
        self.status: int | None = None
        self._written = {1: "", 2: ""}
        self._waiting: list[tuple[str, Deferred[None]]] = []

    @property
    def output(self) -> str:
        return self._written[1]

    @property
    def errors(self) -> str:
        return self._written[2]

    def whenWritten(self, text: str) -> Deferred[None]:
        """
        @return: A Deferred that fires when the process has written a text, and fails if
            the process ends first.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((text, deferred))
        self._look()
        return deferred

    def write(self, text: str) -> None:
        cast(Any, self.transport).write(text.encode())

    def terminate(self) -> None:
        cast(Any, self.transport).signalProcess("TERM")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._written[childFD] += data.decode()
        self._look()

    def processExited(self, reason: Failure) -> None:
        self.exited.callback(None)

    def processEnded(self, reason: Failure) -> None:
        if reason.check(ProcessDone):
            self.status = 0
        else:
            value: Any = reason.value
            self.status = value.exitCode if value.signal is None else -value.signal
        self._look()
        self.ended.callback(self.status)

    def _look(self) -> None:
        for each in list(self._waiting):
            text, deferred = each
            isWritten = text in self.output or text in self.errors
            if isWritten or self.status is not None:
                self._waiting.remove(each)
                error = AssertionError(f"{text!r} not in {self.output}{self.errors}")
                deferred.callback(None if isWritten else Failure(error))


@asynccontextmanager
async def spawned(
    directory: Path,
    *words: str,
    listening: socket | None = None,
    python: str | Path = sys.executable,
) -> AsyncIterator[Process]:
    """
    Run Python in a directory, and kill it after the test if it still runs.

    @param listening: A listening socket to pass on, as systemd does.
    @param python: Python of this environment or of another one.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    process = Process()
    # A daemon closes the first three descriptors; it has exited when the last one is
    # closed.
    files: dict[int, str | int] = {0: "w", 1: "r", 2: "r", 3: "r"}
    environment = dict(os.environ)
    command = [os.fspath(python), *words]
    if listening is not None:
        files[3] = listening.fileno()
        environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
        # Only the process itself knows its process ID.
        command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
        environment["LISTEN_PID"] = ""
    transport = reactor.spawnProcess(
        process,
        command[0],
        command,
        env=environment,
        path=os.fspath(directory),
        childFDs=files,
    )
    try:
        yield process
    finally:
        if process.status is None:
            if process.exited.called:
                os.kill(int((directory / "twistd.pid").read_text()), SIGKILL)
            else:
                transport.signalProcess("KILL")
            await process.ended


def running(
    directory: Path,
    *words: str,
    program: str = "twistd",
    listening: socket | None = None,
) -> AbstractAsyncContextManager[Process]:
    """
    Run a program of this environment in a directory, on the reactor that the tests run
    on (C{pytest --reactor=asyncio}).
    """
    from twisted.internet import reactor

    path = os.path.join(os.path.dirname(sys.executable), program)
    isChosen = any(word.startswith("--reactor") for word in words)
    if type(reactor).__name__ == "AsyncioSelectorReactor" and not isChosen:
        words = ("--reactor=asyncio", *words)
    return spawned(directory, path, *words, listening=listening)
