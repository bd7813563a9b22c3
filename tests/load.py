"""
A steady load on one server, as a process of its own.

    python -m tests.load --port=8000 --rate=250

Requests for C{/say} start at a fixed rate, whether the previous one was answered or
not; every second one is sent in two pieces. Each has a new connection, or with
C{--kept=60} one of 60 that are kept open and used in turn. No request is repeated.

Each line on the standard input is a command, and is answered with a line of JSON.
C{begun 50} is answered when 50 more requests have begun, C{answered 50} when 50 more
have been answered, and C{stop} starts no further request, and is answered when all
requests have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from collections import Counter, deque
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final

__all__ = ["Load", "obey"]

MAX_AGE_SECONDS: Final = 600
MAX_RESPONSE_SECONDS: Final = 60.0
TICK_SECONDS: Final = 0.002
PAUSE_SECONDS: Final = 0.05

_HEAD: Final = b"GET /say HTTP/1.1\r\nHost: localhost\r\n"

_BODY: Final = b"I say: Current time is: "

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """
    All requests.
    """

    def __init__(self, port: int, rate: float = 0.0, kept: int = 0) -> None:
        self.port = port
        self._kept = kept
        self._idle = deque[_Streams]()
        self._rate = rate
        self._begun = monotonic()
        self._longest = 0.0
        self._counts = Counter[str]()
        self._errors = Counter[str]()
        self._changed = asyncio.Event()
        self._requests = set[asyncio.Task[None]]()
        self._starting = asyncio.ensure_future(self.start())

    async def wait(self, kind: str, more: int) -> None:
        """
        Wait for more requests of a kind.
        """
        wanted = self._counts[kind] + more
        while self._counts[kind] < wanted:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """
        Start no further request, and wait for all requests in progress.
        """
        self._starting.cancel()
        await asyncio.gather(*self._requests)

    def report(self) -> dict[str, Any]:
        """
        Return the number of requests of each kind and of each error, the rate, and
        the longest time of a response in seconds.
        """
        return {
            "begun": self._counts["begun"],
            "answered": self._counts["answered"],
            "failed": self._counts["failed"],
            "longest": self._longest,
            "rate": self._counts["begun"] / (monotonic() - self._begun),
            "errors": dict(self._errors.most_common(5)),
        }

    async def start(self) -> None:
        """
        Begin requests until cancelled.
        """
        while True:
            while self._counts["begun"] < (monotonic() - self._begun) * self._rate:
                self.begin(self._say(isSlow=self._counts["begun"] % 2 == 0))
            self._changed.set()
            await asyncio.sleep(TICK_SECONDS)

    def begin(self, request: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """
        Start a request; count it, and its outcome.
        """
        self._counts["begun"] += 1
        task = asyncio.ensure_future(self._count(request))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return task

    async def _count(self, request: Coroutine[Any, Any, None]) -> None:
        begun = monotonic()
        try:
            async with asyncio.timeout(MAX_RESPONSE_SECONDS):
                await request
        except Exception as error:
            self._counts["failed"] += 1
            self._errors[f"{type(error).__name__}: {error}"] += 1
        else:
            self._counts["answered"] += 1
            self._longest = max(self._longest, monotonic() - begun)
        self._changed.set()

    async def _say(self, isSlow: bool) -> None:
        streams = reader, writer = await self._connect()
        isKept = False
        try:
            writer.write(_HEAD if self._kept else _HEAD + b"Connection: close\r\n")
            if isSlow:
                await asyncio.sleep(PAUSE_SECONDS)
            writer.write(b"\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0]
            body = await reader.readexactly(int(length))
            isKept = "\r\nconnection: close\r\n" not in head
            rest = b"" if isKept else await reader.read()
            if not (
                head.startswith("http/1.1 200 ") and body.startswith(_BODY) and not rest
            ):
                raise ValueError(f"unexpected response: {head!r}, {body!r}, {rest!r}")
        finally:
            if isKept and len(self._idle) < self._kept:
                self._idle.append(streams)
            else:
                writer.close()

    async def _connect(self) -> _Streams:
        # The first requests open all connections.
        while self._idle and self._counts["begun"] > self._kept:
            reader, writer = self._idle.popleft()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)


async def obey(load: Load) -> None:
    """
    Carry out the commands on the standard input.
    """
    signal.alarm(MAX_AGE_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    commands = 0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, *arguments = line.split()
        if command == "stop":
            await load.stop()
        else:
            await load.wait(command, int(arguments[0]))
        commands += 1
        print(json.dumps(load.report() | {"commands": commands}), flush=True)  # noqa: T201


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--kept", type=int, default=0)
    options = parser.parse_args()
    await obey(Load(options.port, options.rate, options.kept))


if __name__ == "__main__":
    asyncio.run(_main())
