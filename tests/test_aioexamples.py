"""
The examples for asyncio: each runs in a process of its own, with a real server.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE, STDOUT

from .databases import ownPostgresql as ownPostgresql
from .loops import onRealLoop
from .postgresql_server import PostgreSQL
from .processes import ROOT
from .redis_server import Redis
from .redis_server import ownRedis as ownRedis
from .websupport import reservedPort

COMPLAINTS = ["Task was destroyed", "never retrieved", "never awaited", "Traceback"]
"""
Messages of asyncio about abandoned tasks and errors.
"""


class Example:
    """
    A running example.
    """

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.output = ""

    async def whenWritten(self, text: str) -> None:
        """
        Wait until the program has written a text, from the last match on.
        """
        assert self.process.stdout is not None
        while True:
            line = (await self.process.stdout.readline()).decode()
            assert line, f"{text!r} not in {self.output}"
            self.output += line
            if text in line:
                return

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def ask(self, path: str, body: str | None = None) -> str:
        """
        @return: The status and the body of a response.
        """
        method = "GET" if body is None else "POST"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        length = len(body or "")
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {length}\r\n\r\n{body or ''}".encode())
        response = (await reader.read()).decode()
        writer.close()
        head, _, body = response.partition("\r\n\r\n")
        return f"{head.split()[1]} {body}"

    async def terminate(self) -> None:
        """
        Stop the program. It must exit without an error, and without a complaint.
        """
        self.process.terminate()
        rest, _ = await self.process.communicate()
        self.output += rest.decode()
        assert self.process.returncode == 0, self.output
        assert not [each for each in COMPLAINTS if each in self.output], self.output


@asynccontextmanager
async def example(name: str, *words: str) -> AsyncIterator[Example]:
    """
    Run an example, with asyncio's warnings for developers. C{PORT} stands for a free
    port.
    """
    with reservedPort() as port:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-X", "dev", str(ROOT / "examples" / "aio" / name)],
            *[str(port) if word == "PORT" else word for word in words],
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
        )
        try:
            yield Example(process, port)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@onRealLoop
async def test_starlette_holds_requests(ownPostgresql: PostgreSQL) -> None:
    """
    The Starlette example holds requests while PostgreSQL is down, at the start and
    after a loss.
    """
    server = ownPostgresql
    async with example("items_starlette.py", "PORT", server.url) as app:
        await app.whenWritten("Uvicorn running")
        held = [asyncio.create_task(app.ask("/items", each)) for each in "abc"]
        assert await app.ask("/livez") == "200 alive"
        assert await app.ask("/readyz") == '503 {"missing":["items"]}'
        await asyncio.to_thread(server.startNow)
        assert await asyncio.gather(*held) == ["201 added"] * 3
        assert await app.ask("/readyz") == '200 {"missing":[]}'

        await asyncio.to_thread(server.killNow)
        await app.whenWritten("items: lost")
        read = asyncio.create_task(app.ask("/items"))
        added = asyncio.create_task(app.ask("/items", "d"))
        assert await app.ask("/livez") == "200 alive"
        await asyncio.to_thread(server.startNow)
        # The connections of a pool work at the same time.
        status, _, names = (await read).partition(" ")
        assert status == "200"
        assert {*"abc"} <= set(json.loads(names)) <= {*"abcd"}
        assert await added == "201 added"
        await app.terminate()


@onRealLoop
async def test_aiohttp_holds_requests(ownRedis: Redis) -> None:
    """
    The aiohttp example holds requests while Redis is down, at the start and after a
    loss.
    """
    async with example("hits_aiohttp.py", "PORT", ownRedis.url) as app:
        await app.whenWritten("redis: attempt")
        held = [asyncio.create_task(app.ask("/hits", "")) for _ in range(3)]
        assert await app.ask("/livez") == "200 alive"
        await asyncio.to_thread(ownRedis.start)
        assert await asyncio.gather(*held) == ["200 1", "200 2", "200 3"]

        ownRedis.kill()
        await app.whenWritten("redis: lost")
        read = asyncio.create_task(app.ask("/hits"))
        assert await app.ask("/livez") == "200 alive"
        await asyncio.to_thread(ownRedis.start)
        assert await read == "200 3"
        assert await app.ask("/hits", "") == "200 4"
        await app.terminate()


@onRealLoop
async def test_the_worker_stores_all_lines(ownRedis: Redis) -> None:
    """
    The worker stores all lines in order: lines that arrive before Redis starts, and
    lines that arrive after a loss.
    """
    async with example("worker.py", ownRedis.url) as worker:
        for number in range(3):
            worker.write(f"early {number}")
        await worker.whenWritten("redis: attempt")
        await asyncio.to_thread(ownRedis.start)
        for number in range(3):
            await worker.whenWritten(f"stored: early {number}")

        ownRedis.kill()
        await worker.whenWritten("redis: lost")
        for number in range(3):
            worker.write(f"late {number}")
        await asyncio.to_thread(ownRedis.start)
        await worker.whenWritten("stored: late 2")
        lines = ownRedis.ask("LRANGE", "lines", "0", "-1")
        assert [line.decode() for line in lines] == [
            f"{when} {number}" for when in ("early", "late") for number in range(3)
        ]
        await worker.terminate()
