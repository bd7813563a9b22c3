"""
Servers on a listening socket that the test holds, and the load on them.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from typing import Any

from .processes import Process, running

__all__ = ["Load", "Starter"]


class Starter:
    """
    Starts servers on one socket, which the test holds as systemd does. Each has a
    directory of its own.

    @ivar socket: The listening socket.
    @ivar started: Number of servers.
    """

    def __init__(self, stack: AsyncExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self.socket = stack.enter_context(socket())
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(4096)
        self.port = self.socket.getsockname()[1]
        self.started = 0

    async def start(self, *words: str, delay: float = 0.2) -> Process:
        """
        Start a server, and wait until it listens.

        @param words: Further options.
        """
        directory = self._directory / str(self.started)
        directory.mkdir()
        self.started += 1
        listen = "--listen=systemd:domain=INET:index=0"
        command = ["-n", "tsrv", listen, f"--delay={delay}", *words]
        process: Process = await self._stack.enter_async_context(
            running(directory, *command, listening=self.socket)
        )
        await process.whenWritten("Started")
        return process


class Load:
    """
    The process that sends requests, controlled by commands.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._commands = 0

    async def tell(self, *words: object) -> dict[str, Any]:
        """
        Send a command, and wait for the report.
        """
        self._commands += 1
        self._process.write(" ".join(map(str, words)) + "\n")
        await self._process.whenWritten(f'"commands": {self._commands}}}\n')
        report: dict[str, Any] = json.loads(self._process.output.splitlines()[-1])
        return report
