"""
Clients that behave well, and clients that disconnect early.

The answer to the command C{run PORT SECONDS CLIENTS} comes when all clients have ended:
the number of times that each behaviour was seen.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from random import Random
from typing import Final

__all__: list[str] = []

_MAX_ROUND_SECONDS: Final = 120

_MAX_RESPONSE_SECONDS: Final = 60.0

_COOKIE: Final = re.compile(rb"\r\nset-cookie: ([^;]*)", re.IGNORECASE)

_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)

_CLOSE: Final = re.compile(rb"\r\nconnection: close\r\n", re.IGNORECASE)

# Closing resets the connection.
_RESET: Final = struct.pack("ii", 1, 0)

_PAGES: Final = ("say", "users", "users/0", "visits", "me", "login", "", "nothing")

_OPERATIONS: Final = ("metrics", "startup", "readyz", "livez", "openapi.json")

_PATHS: Final = [f"/{name}" for name in (*_PAGES, *_OPERATIONS)]

_numbers = count()


class _Client:
    """
    One client and its connection.
    """

    def __init__(self, port: int, random: Random) -> None:
        self._port = port
        self._random = random
        self._cookie = b""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def behave(self, kinds: Counter[str]) -> None:
        """
        Do something, and count it.
        """
        choose: list[Callable[[], Awaitable[str]]]
        choose = [self._look, self._look, self._look, self._create, self._login]
        choose += [self._pipeline, self._talkNonsense]
        choose += [self._leaveInHead, self._leaveInBody, self._leaveUnanswered]
        choose += [self._leaveWhileReading]
        try:
            async with asyncio.timeout(_MAX_RESPONSE_SECONDS):
                kinds[await self._random.choice(choose)()] += 1
        except (OSError, asyncio.IncompleteReadError):
            # A server that refuses a request may close the connection.
            kinds["the connection was lost"] += 1
            self.leave()
        if self._random.random() < 0.1:
            self.leave()
            self._cookie = b""

    def leave(self) -> None:
        """
        Close the connection: sometimes with FIN, sometimes with RST.
        """
        if self._streams is None:
            return
        _, writer = self._streams
        self._streams = None
        if self._random.random() < 0.5:
            end: socket.socket = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.close()

    async def _send(self, data: bytes) -> asyncio.StreamReader:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(data)
        await writer.drain()
        return reader

    def _request(
        self, line: str, body: bytes = b"", length: int | None = None
    ) -> bytes:
        size = len(body) if length is None else length
        return (
            b"%s HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
            b"Content-Type: application/json\r\nCookie: %s\r\n"
            b"Content-Length: %d\r\n\r\n%s"
        ) % (line.encode(), self._cookie, size, body)

    async def _answer(self) -> tuple[int, bytes]:
        reader = await self._send(b"")
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if (cookie := _COOKIE.search(head)) is not None:
            self._cookie = cookie[1]
        if _CLOSE.search(head):
            self.leave()
        return int(head.split(b" ", 2)[1]), body

    async def _look(self) -> str:
        await self._send(self._request(f"GET {self._random.choice(_PATHS)}"))
        status, _ = await self._answer()
        return f"{status // 100}xx"

    async def _create(self) -> str:
        user = json.dumps({"name": "Ada", "email": f"{next(_numbers)}@example.org"})
        await self._send(self._request("POST /users", user.encode()))
        status, body = await self._answer()
        if status != 201:
            return f"{status // 100}xx"
        # Delete the user, so that the table does not grow.
        await self._send(self._request(f"DELETE /users/{json.loads(body)['id']}"))
        await self._answer()
        return "a user was created and deleted"

    async def _login(self) -> str:
        await self._send(self._request("POST /login", b'{"name": "Ada"}'))
        await self._answer()
        await self._send(self._request("POST /logout", b"{}"))
        await self._answer()
        return "logged in and out"

    async def _pipeline(self) -> str:
        await self._send(self._request("GET /say") * 5)
        for _ in range(5):
            await self._answer()
        return "pipelined"

    async def _talkNonsense(self) -> str:
        await self._send(b"nonsense\r\n\r\n")
        await self._answer()
        return "refused"

    async def _leaveInHead(self) -> str:
        await self._send(self._request("GET /say")[:30])
        self.leave()
        return "left in the head"

    async def _leaveInBody(self) -> str:
        await self._send(self._request("POST /users", b'{"name": ', 1000))
        self.leave()
        return "left in the body"

    async def _leaveUnanswered(self) -> str:
        await self._send(self._request(f"GET {self._random.choice(_PATHS)}") * 2)
        await asyncio.sleep(self._random.random() / 50)
        self.leave()
        return "left before the response"

    async def _leaveWhileReading(self) -> str:
        reader = await self._send(self._request("GET /openapi.json") * 20)
        await reader.read(1000)
        self.leave()
        return "left while it read"


async def _run(port: int, seconds: int, clients: int) -> Counter[str]:
    kinds = Counter[str]()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def behave(number: int) -> None:
        client = _Client(port, Random(number))  # noqa: S311
        while loop.time() < end:
            await client.behave(kinds)
        client.leave()

    await asyncio.gather(*map(behave, range(clients)))
    return kinds


def _main() -> None:
    for line in sys.stdin:
        signal.alarm(_MAX_ROUND_SECONDS)
        _, port, seconds, clients = line.split()
        kinds = asyncio.run(_run(int(port), int(seconds), int(clients)))
        print(json.dumps(kinds), flush=True)


if __name__ == "__main__":
    _main()
