"""
What the tests of real processes need: to start them, and to follow what they
write.
"""

from __future__ import annotations

import os
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

__all__ = ["ROOT", "Process", "running", "spawned"]

ROOT = Path(__file__).parent.parent
"""
The checkout.
"""


class Process(ProcessProtocol):
    """
    A process, and what it has written.

    @ivar ended: Fires with its exit status (that of a shell, if a signal
        killed it), when all that it has left behind has ended too.
    @ivar exited: Fires when it has ended itself.
    """

    def __init__(self) -> None:
        self.ended: Deferred[int] = Deferred()
        self.exited: Deferred[None] = Deferred()
        self.status: int | None = None
        self._written = {1: "", 2: ""}
        self._waiting: list[tuple[str, Deferred[None]]] = []

    @property
    def output(self) -> str:
        """
        What it has written to its standard output.
        """
        return self._written[1]

    @property
    def errors(self) -> str:
        """
        What it has written to its standard error.
        """
        return self._written[2]

    def whenWritten(self, text: str) -> Deferred[None]:
        """
        @return: A Deferred that fires when the process has written something.
            It fails when the process ends before.
        """
        deferred: Deferred[None] = Deferred()
        self._waiting.append((text, deferred))
        self._look()
        return deferred

    def write(self, text: str) -> None:
        """
        Write something to its standard input.
        """
        cast(Any, self.transport).write(text.encode())

    def terminate(self) -> None:
        """
        Send it SIGTERM.
        """
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
            if text in self.output or text in self.errors:
                self._waiting.remove(each)
                deferred.callback(None)
            elif self.status is not None:
                self._waiting.remove(each)
                deferred.errback(
                    AssertionError(f"{text!r} not in {self.output}{self.errors}")
                )


@asynccontextmanager
async def spawned(
    directory: Path, *words: str, listening: socket | None = None
) -> AsyncIterator[Process]:
    """
    Run Python in a directory; the process is gone afterwards.

    @param directory: Where.
    @param words: Its command line.
    @param listening: A listening socket that it is given, in the way of systemd.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    process = Process()
    # A daemon lets go of the first three; it has not ended before the last one
    # is closed.
    files: dict[int, str | int] = {0: "w", 1: "r", 2: "r", 3: "r"}
    environment = dict(os.environ)
    command = [sys.executable, *words]
    if listening is not None:
        files[3] = listening.fileno()
        environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
        # Its number is known only once there is the process.
        command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
        # exec needs it to be exported.
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
    Run a program that is installed beside Python in a directory of its own; it
    is gone afterwards.
    """
    path = os.path.join(os.path.dirname(sys.executable), program)
    return spawned(directory, path, *words, listening=listening)
