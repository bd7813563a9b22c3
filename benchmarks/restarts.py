"""
Failed requests during restarts.

A server is restarted five times under a steady load from another process: it gets
SIGTERM, and after its exit the next server starts, and needs some time to become ready.
Another process holds the listening socket, as systemd does. The comparison is the same
server, which opens its own port. The script counts failed requests, and measures the
longest wait.

The load sends its requests on schedule, each on a new connection. Then it sends them
on 60 keep-alive connections, through a network with a delay, so that requests are on
their way when the server stops. No request is repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from tempfile import TemporaryDirectory
from typing import Any, Self

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child

_SIZES = {
    "restarts": Size(5, 1, "restarts"),
    "rate": Size(250, 250, "requests that the load begins per second"),
    "requests": Size(
        250, 20, "requests between two restarts, without the waiting ones"
    ),
    "clients": Size(60, 10, "keep-alive connections"),
    "latency": Size(4, 4, "delay of the network in each direction, in milliseconds"),
    "delay": Size(
        500, 100, "time that the server takes to become ready, in milliseconds"
    ),
}

_BACKLOG = 4096

_READY = "Async module initialized"

# Like systemd between fork and exec: the socket becomes descriptor 3, and the
# environment names the process.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class _Server:
    """
    A server that can be restarted, as a context manager that stops it.
    """

    def __init__(self, listening: socket, held: bool, delay: int) -> None:
        """
        @param listening: The socket.
        @param held: Whether the server inherits the socket; otherwise it opens its
            port.
        @param delay: Milliseconds that the clock takes to start.
        """
        twistd = os.fspath(Path(sys.executable).with_name("twistd"))
        port = listening.getsockname()[1]
        command = [sys.executable]
        endpoint = f"tcp:{port}:interface=127.0.0.1:backlog={_BACKLOG}"
        self._files = []
        if held:
            command += ["-c", _ACTIVATE, str(listening.fileno())]
            endpoint = "systemd:domain=INET:index=0"
            self._files.append(listening.fileno())
        command += [twistd, "-n", "--pidfile=", "tsrv"]
        command += [f"--listen={endpoint}", f"--delay={delay / 1e3}"]
        self._command = command
        self._directory = TemporaryDirectory()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        finally:
            self._process.kill()
            self._process.wait()
            self._directory.cleanup()

    def start(self) -> None:
        """
        Start the server, and wait until it is ready.

        @raise RuntimeError: The server has exited.
        """
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            cwd=self._directory.name,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=self._files,
        )
        assert self._process.stdout is not None
        if not any(_READY in line for line in self._process.stdout):
            raise RuntimeError("the server did not start")

    def stop(self) -> None:
        """
        Send SIGTERM to the server, and wait for its exit.

        @raise RuntimeError: The exit status is not 0.
        """
        self._process.terminate()
        self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(f"the server exited with {self._process.returncode}")


def _restart(sizes: Mapping[str, int], held: bool, isKept: bool) -> dict[str, Any]:
    """
    Measure one side.

    @param held: Whether another process holds the listening socket.
    @param isKept: Whether connections are kept alive, and the network has a delay.
    @return: The report of the load.
    """
    with ExitStack() as stack:
        listening = stack.enter_context(socket())
        # A bound socket reserves the port, and others may still listen on it.
        listening.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        if held:
            listening.listen(_BACKLOG)
        port = listening.getsockname()[1]
        server = stack.enter_context(_Server(listening, held, sizes["delay"]))
        words = [f"--rate={sizes['rate']}"]
        if isKept:
            network = stack.enter_context(
                Child(
                    "benchmarks.support.delayingproxy",
                    f"--port={port}",
                    f"--milliseconds={sizes['latency']}",
                )
            )
            port = network.request("port")["port"]
            words.append(f"--kept={sizes['clients']}")
        load = stack.enter_context(Child("tests.load", f"--port={port}", *words))
        load.request("answered", sizes["requests"])
        for _ in range(sizes["restarts"]):
            server.stop()
            server.start()
            report = load.request("begun", 0)
            waiting = report["begun"] - report["answered"] - report["failed"]
            load.request("answered", waiting + sizes["requests"])
        return load.request("stop")


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    return [figure for isKept in (False, True) for figure in _figures(sizes, isKept)]


def _figures(sizes: Mapping[str, int], isKept: bool) -> list[Figure]:
    ours = _restart(sizes, held=True, isKept=isKept)
    theirs = _restart(sizes, held=False, isKept=isKept)
    for error, count in ours["errors"].items():
        print(f"{count} x {error}", file=sys.stderr)
    against = "a server that opens its own port"
    requests = ours["answered"] + ours["failed"]
    clients = f", keep-alive, {sizes['latency']} ms away" if isKept else ""
    restarts = f"{sizes['restarts']} restarts{clients}"
    return [
        Figure(
            f"{restarts}: failed requests of {requests:,}",
            against,
            ours["failed"],
            theirs["failed"],
            "requests",
            Target(0, "requests"),
            # Avoid a division by zero.
            [ours["failed"] / max(theirs["failed"], 1)],
        ),
        Figure(
            f"{restarts}: requests per second",
            against,
            ours["rate"],
            theirs["rate"],
            "1/s",
            Target(200, "1/s", atLeast=True),
        ),
        Figure(
            f"{restarts}: longest wait",
            against,
            ours["longest"],
            theirs["longest"],
            "s",
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
