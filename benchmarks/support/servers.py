"""
Servers with their own databases: tsrv and Express.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.support.processes import MAX_PROCESS_SECONDS

__all__ = ["EXPRESS", "Server", "hasExpress"]

EXPRESS: Final = Path(__file__).parent.parent / "peers" / "express"


def hasExpress(peer: Path = EXPRESS) -> bool:
    """
    Return whether a server with Express is installed.

    @param peer: The folder of the server.
    """
    return bool(shutil.which("node")) and (peer / "node_modules").is_dir()


def _freePort() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Server:
    """
    A server, as a context manager that kills it.

    @ivar port: The port.
    @ivar acknowledged: Number of acknowledged users.
    @cvar peer: The folder of the server with Express.
    @cvar options: Further options of tsrv.
    """

    peer = EXPRESS
    options: Sequence[str] = ()

    def __init__(self, kind: str, directory: Path) -> None:
        """
        @param kind: C{"tsrv"}, C{"direct"} for tsrv without wrappers, or
            C{"express"}.
        @param directory: The folder of the database.
        """
        self.port = _freePort()
        self.acknowledged = 0
        self._kind = kind
        self._path = directory / f"{kind}.db"
        self.start()

    def start(self) -> None:
        """
        Start the server, and wait until it is ready.
        """
        if self._kind == "express":
            command = ["node", "server.js", str(self._path), str(self.port)]
            directory, ready = self.peer, "Started"
        else:
            twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
            command = [sys.executable, twistd, "-n", "--pidfile=", "tsrv"]
            command += [f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=1024"]
            command += ["--delay=0", f"--database=sqlite:{self._path}", *self.options]
            if self._kind == "direct":
                command.append("--direct")
            directory, ready = self._path.parent, "Async module initialized"
        self._process = subprocess.Popen(  # noqa: S603
            command,
            cwd=directory,
            env={**os.environ, "NODE_ENV": "production"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if ready in line:
                break
        else:
            raise RuntimeError(f"{self._kind} did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def cpu(self) -> float:
        """
        The processor time of the server, in seconds.
        """
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """
        Kill the server with SIGKILL.
        """
        self._process.kill()
        self._process.communicate(timeout=MAX_PROCESS_SECONDS)

    def check(self) -> None:
        """
        Check the database after the server was killed.

        @raise RuntimeError: An acknowledged user is missing.
        """
        with sqlite3.connect(self._path) as database:
            query = "SELECT count(*), count(DISTINCT email) FROM users"
            found, different = database.execute(query).fetchone()
        database.close()
        if not found == different == self.acknowledged:
            raise RuntimeError(
                f"{found} of {self.acknowledged} users are in {self._path}"
            )
