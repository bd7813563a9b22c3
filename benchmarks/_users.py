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
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks._processes import LONGEST

__all__ = ["EXPRESS", "Server", "hasExpress"]

EXPRESS: Final = Path(__file__).parent / "peers" / "express"


def hasExpress() -> bool:
    """
    @return: Whether the server with Express can be run.
    """
    return bool(shutil.which("node")) and (EXPRESS / "node_modules").is_dir()


def _freePort() -> int:
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
    """

    def __init__(self, side: str, directory: Path) -> None:
        """
        @param side: C{"tsrv"}, C{"direct"} for tsrv without a wrapper, or
            C{"express"}.
        @param directory: Where its database is.
        """
        self.port = _freePort()
        self.made = 0
        self._path = directory / f"{side}.db"
        environment = dict(os.environ)
        if side == "express":
            command = ["node", "server.js", str(self._path), str(self.port)]
            environment["NODE_ENV"] = "production"
            ready = "Started"
        else:
            words = [f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=1024"]
            words += ["--delay=0", f"--database=sqlite:{self._path}"]
            if side == "direct":
                words.append("--direct")
            twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
            command = [sys.executable, twistd, "-n", "--pidfile=", "tsrv", *words]
            ready = "Async module initialized"
        self._process = subprocess.Popen(  # noqa: S603
            command,
            cwd=EXPRESS if side == "express" else directory,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if ready in line:
                break
        else:
            raise RuntimeError(f"{side} has not started")

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
