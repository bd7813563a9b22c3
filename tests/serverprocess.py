"""
Server processes for tests, which they can start, kill and pause.
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree, which
from signal import SIGCONT, SIGKILL, SIGSTOP
from tempfile import mkdtemp
from time import monotonic

import pytest

__all__ = ["ServerProcess", "required"]

MAX_SECONDS = 60.0
"""
Maximum time for one step of a server, in seconds.
"""

_WATCHER = 'cat > /dev/null; directory="$1"; shift; kill -9 "$@"; rm -rf "$directory"'
"""
Kills a server and removes its files when the process of the tests ends, which closes
the pipe to this script.
"""


def required(name: str, program: str, directory: str = "") -> str:
    """
    Find a program. If it is not installed, skip the test, or fail if C{TSRV_DATABASES}
    is C{required}.

    @param name: The name of the program.
    @param directory: The directory to search first.
    """
    path = os.pathsep.join([directory, os.environ.get("PATH", ""), "/usr/sbin"])
    found = which(program, path=path)
    if found is None:
        missing = f"no {name}: there is no program {program}"
        if os.environ.get("TSRV_DATABASES") == "required":
            raise AssertionError(missing)
        pytest.skip(missing)
    return found


class ServerProcess(ABC):
    """
    A server on the loopback interface, which keeps its port and its files while it is
    down.
    """

    def __init__(self, name: str, port: int) -> None:
        """
        @param name: The name of the server.
        """
        self.name = name
        self.port = port
        self.directory = Path(mkdtemp(prefix=f"tsrv-{name.lower()}-"))
        self._log = self.directory / "log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """
        Start the server, and wait until it responds.
        """

    @abstractmethod
    def answers(self) -> bool:
        """
        @return: Whether the server responds.
        @raise OSError: The server does not respond.
        """

    def run(
        self, *commands: Sequence[str], stdin: bytes = b"", **environment: str
    ) -> None:
        """
        Run processes, and wait until the server responds.

        @param stdin: The input of each process.
        """
        assert not self._processes, "the server is already running"
        for command in commands:
            with self._log.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603
                    command,
                    cwd=self.directory,
                    env=os.environ | environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in the terminal must reach the tests alone.
                    start_new_session=True,
                )
            self._processes.append(process)
        pids = [str(process.pid) for process in self._processes]
        self._watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "sh", str(self.directory), *pids],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        for process in self._processes:
            assert process.stdin is not None
            with process.stdin:
                process.stdin.write(stdin)
        self._wait()

    def _wait(self) -> None:
        deadline = monotonic() + MAX_SECONDS
        while monotonic() < deadline:
            with suppress(OSError):
                if self.answers():
                    return
            with suppress(subprocess.TimeoutExpired):
                self._processes[-1].wait(0.01)
                break
        log = self._log.read_text()
        self.kill()
        raise AssertionError(f"{self.name} does not respond: {log}")

    def kill(self) -> None:
        """
        Kill the server, if it runs, and wait for its end.
        """
        if self._watcher is None:
            return
        self._watcher.kill()
        self._watcher.communicate(timeout=MAX_SECONDS)
        for process in reversed(self._processes):
            process.send_signal(SIGKILL)
            process.wait(MAX_SECONDS)
        self._processes.clear()
        self._watcher = None

    def pause(self) -> None:
        """
        Suspend the process: the system still accepts connections, nobody answers.
        """
        self._processes[-1].send_signal(SIGSTOP)

    def resume(self) -> None:
        """
        Resume the process.
        """
        self._processes[-1].send_signal(SIGCONT)

    def remove(self) -> None:
        """
        Kill the server, and remove its files.
        """
        self.kill()
        rmtree(self.directory)
