"""
A steady load on one server, as a process of its own.

    python -m tests.load --port=8000 --rate=250

Requests to C{/say} are begun as a clock says, and not when the last one has
been answered, each on a new connection: that is how strangers behave, and what
shows whether any of them is turned away. Beside them there may be clients that
keep their connections, and do what RFC 9112, 9.3 allows: after C{Connection:
close} they open another one, and when a connection that they have used before
closes without a byte of the response they ask again.

It is told what to do by lines on its standard input, and answers each with a
line of JSON. C{begun 50} answers once 50 more requests have been begun;
C{answered 50} once 50 more have been answered; C{stop} begins no more, and
answers once all have ended. It ends when its standard input does, and of itself
when it is too old.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple

__all__: list[str] = []

_LONGEST: Final = 600
"""
How long the process lives at most, in seconds.
"""

_PATIENCE: Final = 60.0
"""
How long a request waits for its response, in seconds.
"""

_TICK: Final = 0.002
"""
How often it is looked which requests are due, in seconds.
"""

_HEAD: Final = b"GET /say HTTP/1.1\r\nHost: localhost\r\n"


class _Way(NamedTuple):
    """
    How a request is sent.

    @ivar pieces: What is sent, with pauses before all but the first. A first
        one that is empty is a connection on which nothing is sent yet.
    """

    pieces: tuple[bytes, ...]


_WAYS: Final = (
    _Way((_HEAD + b"\r\n",)),
    _Way((_HEAD + b"Connection: close\r\n\r\n",)),
    _Way((_HEAD, b"\r\n")),
    _Way((_HEAD + b"\r\n",)),
    _Way((b"", _HEAD + b"\r\n")),
    _Way((_HEAD + b"Connection: close\r\n\r\n",)),
    _Way((_HEAD[:7], _HEAD[7:] + b"\r\n")),
    _Way((_HEAD + b"\r\n",)),
)
"""
What the requests are like, in turns.
"""


class _Closed(Exception):
    """
    The connection was closed without a byte of the response.
    """


class _Connection:
    """
    One connection.

    @ivar persistent: Whether the server has said nothing against keeping it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.persistent = True

    @property
    def reusable(self) -> bool:
        """
        Whether it can be asked again, as far as is known.
        """
        return self.persistent and not self._reader.at_eof()

    @classmethod
    async def open(cls, port: int) -> _Connection:
        """
        @param port: Where the server listens, on the loopback interface.
        """
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, way: _Way, pause: float) -> None:
        """
        Make a request.

        @param way: How to send it.
        @param pause: How long to wait between its pieces, in seconds.
        @raise _Closed: There was no response.
        @raise ValueError: It was not the one that was expected.
        """
        for number, piece in enumerate(way.pieces):
            if number:
                await asyncio.sleep(pause)
            self._writer.write(piece)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise _Closed("closed without a response") from None
        headers = head.lower()
        _, _, length = headers.partition(b"content-length:")
        body = await self._reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        self.persistent = b"connection: close\r\n" not in headers
        if not (
            head.startswith(b"HTTP/1.1 200 ")
            and body.startswith(b"I say: Current time is: ")
        ):
            raise ValueError(f"not what it should say: {head + body!r}")

    async def close(self) -> None:
        """
        Close it; how this ends is no matter, since the response is there.
        """
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class _Load:
    """
    All the requests.
    """

    def __init__(self, port: int, rate: float, kept: int, pause: float) -> None:
        """
        @param port: Where the server listens.
        @param rate: How many requests are begun in a second.
        @param kept: How many clients keep their connections. Each asks ten
            times in a second.
        @param pause: How long a client waits between the pieces of its request,
            in seconds.
        """
        self._port = port
        self._rate = rate
        self._kept = kept
        self._pause = pause
        self._begun = 0
        self._counts = Counter[str]()
        self._errors = Counter[str]()
        self._longest = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._ending = asyncio.Event()
        self._since = monotonic()
        self._seconds = 0.0

    def start(self) -> None:
        """
        Begin.
        """
        self._since = monotonic()
        self._spawn(self._strangers())
        for _ in range(self._kept):
            self._spawn(self._regular())

    async def when(self, what: str, more: int) -> dict[str, object]:
        """
        Wait until so many more requests have been begun, or answered.
        """
        wanted = self._count(what) + more
        while self._count(what) < wanted:
            self._changed.clear()
            await self._changed.wait()
        return self.report()

    async def stop(self) -> dict[str, object]:
        """
        Begin no more requests, except those that are due, and wait for all.
        """
        self._begin()
        self._seconds = monotonic() - self._since
        self._ending.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        return self.report()

    def report(self) -> dict[str, object]:
        """
        @return: All the figures: how many requests were begun, answered, failed
            and repeated, what the errors were, the requests begun in a second
            by strangers, and the longest time from when a request was due to
            its response, in seconds.
        """
        seconds = self._seconds or monotonic() - self._since
        return {
            "begun": self._count("begun"),
            "strangers": self._begun,
            "answered": self._counts["answered"],
            "failed": self._counts["failed"],
            "repeated": self._counts["repeated"],
            "errors": dict(self._errors.most_common(5)),
            "rate": self._begun / seconds,
            "longest": self._longest,
        }

    def _count(self, what: str) -> int:
        return self._begun if what == "begun" else self._counts[what]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _strangers(self) -> None:
        while not self._ending.is_set():
            self._begin()
            await asyncio.sleep(_TICK)

    def _begin(self) -> None:
        """
        Begin what is due.
        """
        if self._ending.is_set():
            return
        passed = monotonic() - self._since
        while self._begun < passed * self._rate:
            due = self._since + self._begun / self._rate
            self._spawn(self._stranger(due, _WAYS[self._begun % len(_WAYS)]))
            self._begun += 1
        self._changed.set()

    async def _stranger(self, due: float, way: _Way) -> None:
        """
        Make a request on a new connection.
        """

        async def ask() -> None:
            connection = await _Connection.open(self._port)
            try:
                await connection.ask(way, self._pause)
            finally:
                await connection.close()

        await self._account(due, ask)

    async def _regular(self) -> None:
        """
        Make requests on a connection that is kept as long as it lasts.
        """
        connection: _Connection | None = None

        async def ask() -> None:
            nonlocal connection
            if connection is not None and not connection.reusable:
                await connection.close()
                connection = None
            used = connection is not None
            if connection is None:
                connection = await _Connection.open(self._port)
            try:
                await connection.ask(_WAYS[0], 0)
            except (_Closed, OSError):
                await connection.close()
                connection = None
                if not used:
                    raise
                self._counts["repeated"] += 1
                await ask()

        while not self._ending.is_set():
            await self._account(monotonic(), ask)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 0.1)
        if connection is not None:
            await connection.close()

    async def _account(
        self, due: float, ask: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """
        Make a request, and count how it ends.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                await ask()
        except Exception as error:
            self._counts["failed"] += 1
            self._errors[f"{type(error).__name__}: {error}"] += 1
        else:
            self._counts["answered"] += 1
            self._longest = max(self._longest, monotonic() - due)
        self._changed.set()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--kept", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.05)
    options = parser.parse_args()
    signal.alarm(_LONGEST)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = _Load(options.port, options.rate, options.kept, options.pause)
    load.start()
    loop = asyncio.get_running_loop()
    told = 0
    # To wait for a line keeps a thread, and not the load.
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        word, *rest = line.split()
        if word == "stop":
            report = await load.stop()
        else:
            report = await load.when(word, int(rest[0]))
        told += 1
        sys.stdout.write(json.dumps(report | {"told": told}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main())
