"""
Child processes that carry out commands. Each command is one line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["MAX_PROCESS_SECONDS", "Child", "raiseFileLimit", "residentBytes"]

MAX_PROCESS_SECONDS: Final = 600
"""
Maximum lifetime of a process, in seconds.
"""

_ROOT = Path(__file__).parent.parent

_EXIT_SECONDS: Final = 5

_PAGE_BYTES: Final = 4096


class Child:
    """
    A process, as a context manager that ends it.
    """

    def __init__(self, module: str, *words: str) -> None:
        """
        @param module: The Python module to run.
        @param words: The arguments of its command line.
        """
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, *words],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            # The process exits when its standard input is closed.
            self._process.communicate(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    @property
    def residentBytes(self) -> int:
        """
        The memory that the process occupies, even if it does not respond.
        """
        return residentBytes(self._process.pid)

    def kill(self) -> None:
        """
        Kill the process, whatever it is doing.
        """
        self._process.kill()

    def request(self, *words: object) -> dict[str, Any]:
        """
        Send a command, and return the response.
        """
        self.send(*words)
        return self.receive()

    def send(self, *words: object) -> None:
        """
        Send a command, without waiting for the response.
        """
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """
        Receive the response to a command.

        @raise RuntimeError: The process has exited.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} exited without a response")
        response: dict[str, Any] = json.loads(line)
        return response


def raiseFileLimit(wanted: int) -> int:
    """
    Raise the limit of open files, for this process and its children.

    @param wanted: The wanted number of connections.
    @return: The possible number of connections.
    """
    spare = 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + spare:
        return wanted
    most = wanted + spare
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - spare


def residentBytes(process: int | str = "self") -> int:
    """
    Return the memory that a process occupies; 0 if the system does not report it.

    @param process: The number of the process; this process by default.
    """
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * _PAGE_BYTES
