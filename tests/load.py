"""
A steady load on one server, as a process of its own.

    python -m tests.load --port=8000 --rate=250 --kept=4

Requests for C{/say} start at a fixed rate, whether the last one was answered or not,
each on a new connection. Beside them some clients keep their connections, and do what
RFC 9112, 9.3 allows: after C{Connection: close}, or when a used connection closes
without a byte of the response, they make the request on a new connection.

Each line on the standard input is a command, and is answered with a line of JSON.
C{begun 50} is answered when 50 more requests have begun, C{answered 50} when 50 more
have been answered, and C{stop} when all requests have ended; no more begin then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import cycle
from time import monotonic
from typing import Any, Final

__all__: list[str] = []

MAX_AGE_SECONDS: Final = 600
"""
Maximum lifetime of the process.
"""

MAX_RESPONSE_SECONDS: Final = 60.0
"""
Maximum time for a response.
"""

TICK_SECONDS: Final = 0.002
"""
Time between two looks at the clock.
"""

PAUSE_SECONDS: Final = 0.05
"""
Time between two pieces of a request.
"""

_HEAD: Final = b"GET /say HTTP/1.1\r\nHost: localhost\r\n"
_WHOLE: Final = (_HEAD + b"\r\n",)
_CLOSING: Final = (_HEAD + b"Connection: close\r\n\r\n",)

# The pieces in which requests are sent, in turns.
_PIECES: Final = (
    _WHOLE,
    _CLOSING,
    (_HEAD, b"\r\n"),
    (b"", _HEAD + b"\r\n"),
    (_HEAD[:7], _HEAD[7:] + b"\r\n"),
)


class ClosedEarly(Exception):
    """
    The connection was closed without a byte of the response.
    """


class Connection:
    """
    A connection to the server.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._persists = True

    @property
    def isReusable(self) -> bool:
        """
        Whether it can take another request, as far as is known.
        """
        return self._persists and not self._reader.at_eof()

    async def request(self, pieces: tuple[bytes, ...]) -> None:
        """
        Make a request, and check the response.

        @raise ClosedEarly: There was no response.
        """
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(PAUSE_SECONDS)
            self._writer.write(piece)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise ClosedEarly("closed without a response") from None
        _, _, length = head.partition(b"content-length:")
        body = await self._reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        self._persists = b"connection: close\r\n" not in head
        if not (
            head.startswith(b"http/1.1 200 ")
            and body.startswith(b"I say: Current time is: ")
        ):
            raise ValueError(f"unexpected response: {head + body!r}")

    async def close(self) -> None:
        """
        Close the connection.
        """
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Load:
    """
    All requests.
    """

    def __init__(self, port: int, rate: float, kept: int) -> None:
        self._port = port
        self._rate = rate
        self._begun = monotonic()
        self._longest = 0.0
        self._counts = Counter[str]()
        self._errors = Counter[str]()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks = set[asyncio.Task[None]]()
        self._start(self._startStrangers())
        for _ in range(kept):
            self._start(self._reuse())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        Begin no more requests, and wait for all.
        """
        self._stopping.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def report(self) -> dict[str, Any]:
        """
        Return the number of requests of each kind and of each error, the rate, and
        the longest time of a response in seconds.
        """
        return {
            "begun": self._counts["begun"],
            "strangers": self._counts["begun"],
            "answered": self._counts["answered"],
            "failed": self._counts["failed"],
            "longest": self._longest,
            "rate": self._counts["begun"] / (monotonic() - self._begun),
            "errors": dict(self._errors.most_common(5)),
        }

    async def _startStrangers(self) -> None:
        begun = monotonic()
        pieces = cycle(_PIECES)
        while not self._stopping.is_set():
            while self._counts["begun"] < (monotonic() - begun) * self._rate:
                self._counts["begun"] += 1
                self._start(self._stranger(next(pieces)))
            self._changed.set()
            await asyncio.sleep(TICK_SECONDS)

    async def _open(self) -> Connection:
        return Connection(*await asyncio.open_connection("127.0.0.1", self._port))

    async def _stranger(self, pieces: tuple[bytes, ...]) -> None:
        async def request() -> None:
            connection = await self._open()
            try:
                await connection.request(pieces)
            finally:
                await connection.close()

        await self._count(request)

    async def _reuse(self) -> None:
        connection: Connection | None = None

        async def request() -> None:
            nonlocal connection
            if connection is not None:
                if connection.isReusable:
                    with suppress(ClosedEarly, OSError):
                        await connection.request(_WHOLE)
                        return
                await connection.close()
            connection = await self._open()
            await connection.request(_WHOLE)

        while not self._stopping.is_set():
            await self._count(request)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)
        if connection is not None:
            await connection.close()

    async def _count(self, request: Callable[[], Awaitable[None]]) -> None:
        begun = monotonic()
        try:
            async with asyncio.timeout(MAX_RESPONSE_SECONDS):
                await request()
        except Exception as error:
            self._counts["failed"] += 1
            self._errors[f"{type(error).__name__}: {error}"] += 1
        else:
            self._counts["answered"] += 1
            self._longest = max(self._longest, monotonic() - begun)
        self._changed.set()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--kept", type=int, default=0)
    options = parser.parse_args()
    signal.alarm(MAX_AGE_SECONDS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = Load(options.port, options.rate, options.kept)
    loop = asyncio.get_running_loop()
    told = 0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, *arguments = line.split()
        if command == "stop":
            await load.stop()
        else:
            await load.wait(command, int(arguments[0]))
        told += 1
        print(json.dumps(load.report() | {"told": told}), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main())
