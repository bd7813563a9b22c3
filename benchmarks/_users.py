"""
Servers of users: that of tsrv, and one with Express.
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

from benchmarks._processes import LONGEST

__all__ = ["EXPRESS", "Server", "hasExpress"]

EXPRESS: Final = Path(__file__).parent / "peers" / "express"


def hasExpress(peer: Path = EXPRESS) -> bool:
    """
    @param peer: Where it is.
    @return: Whether the server with Express can be run.
    """
    return bool(shutil.which("node")) and (peer / "node_modules").is_dir()


def freePort() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Server:
    """
    A server, with a database of its own. It is a context manager, at the end of
    which it has ended.

    @ivar port: Its port.
    @ivar made: How many users it has acknowledged.
    @cvar peer: Where the one with Express is.
    @cvar words: Further options of tsrv.
    """

    peer = EXPRESS
    words: Sequence[str] = ()

    def __init__(self, side: str, directory: Path) -> None:
        """
        @param side: C{"tsrv"}, C{"direct"} for tsrv without a wrapper, or
            C{"express"}.
        @param directory: Where its database is.
        """
        self.port = freePort()
        self.made = 0
        self._side = side
        self._path = directory / f"{side}.db"
        self._start()

    def _start(self) -> None:
        if self._side == "express":
            command = ["node", "server.js", str(self._path), str(self.port)]
            directory, ready = self.peer, "Started"
        else:
            twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
            command = [sys.executable, twistd, "-n", "--pidfile=", "tsrv"]
            command += [f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=1024"]
            command += ["--delay=0", f"--database=sqlite:{self._path}", *self.words]
            if self._side == "direct":
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
            raise RuntimeError(f"{self._side} has not started")

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
        The processor time that it has taken, in seconds.
        """
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """
        End it, with a signal of which it does not learn.
        """
        self._process.kill()
        self._process.communicate(timeout=LONGEST)

    def check(self) -> None:
        """
        Look into its database, after it was killed.

        @raise RuntimeError: What it has acknowledged is not there.
        """
        with sqlite3.connect(self._path) as database:
            query = "SELECT count(*), count(DISTINCT email) FROM users"
            found, different = database.execute(query).fetchone()
        database.close()
        if not found == different == self.made:
            raise RuntimeError(f"{found} of {self.made} users are in {self._path}")
