"""
Clients that read users, create users and count their visits.

    python -m tests.mixedload --port=8000 --clients=24

Each client sends one request after the other: every second one over one connection
until the server closes it, the others each over a new connection. L{tests.load}
describes the commands on the standard input. The report also says how many users were
created.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from itertools import count
from typing import Any, Final

from tests.load import Load, obey

__all__: list[str] = []

_COOKIE: Final = re.compile(r"\r\nset-cookie: ([^;]*)", re.IGNORECASE)

_CLOSE: Final = "\r\nconnection: close\r\n"

_LENGTH: Final = re.compile(r"\r\ncontent-length: (\d+)", re.IGNORECASE)


class _Client:
    """
    An HTTP client with a session.

    @ivar created: The number of users that the server has acknowledged.
    """

    def __init__(self, port: int, number: int) -> None:
        self.created = 0
        self._port = port
        self._emails = (f"{number}.{each}@example.org" for each in count())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._connection = ("close", "keep-alive")[number % 2]
        self._cookie = ""
        # The number of visits; None while it is in doubt.
        self._visits: int | None = 0

    async def read(self) -> None:
        """
        Read a user.
        """
        await self._ask("GET /users/1", 200)

    async def create(self) -> None:
        """
        Create a user.
        """
        user = {"name": "Ada", "email": next(self._emails)}
        await self._ask("POST /users", 201, json.dumps(user))
        self.created += 1

    async def visit(self) -> None:
        """
        Count a visit.

        @raise ValueError: An earlier visit was not counted, or counted twice.
        """
        before, self._visits = self._visits, None
        visits = json.loads(await self._ask("GET /visits", 200))["visits"]
        if before is not None and visits != before + 1:
            raise ValueError(f"visit {before + 1} was counted as {visits}")
        self._visits = visits

    async def _ask(self, line: str, expected: int, body: str = "") -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        self._streams = None
        writer.write(
            f"{line} HTTP/1.1\r\nHost: localhost\r\nCookie: {self._cookie}\r\n"
            f"Connection: {self._connection}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = _LENGTH.search(head)
        answer = (await reader.readexactly(int(length[1]) if length else 0)).decode()
        # After an error the connection is in an unknown state, so it is not used again.
        if _CLOSE in head.lower():
            writer.close()
        else:
            self._streams = reader, writer
        if (cookie := _COOKIE.search(head)) is not None:
            self._cookie = cookie[1]
        if int(head.split(" ", 2)[1]) != expected:
            raise ValueError(f"{line}: {head.splitlines()[0]}")
        return answer


class _MixedLoad(Load):
    """
    The requests of all clients.
    """

    def __init__(self, port: int, clients: int) -> None:
        super().__init__(port)
        self._clients = [_Client(port, number) for number in range(clients)]

    async def start(self) -> None:
        """
        Let the clients send requests until cancelled.
        """
        await asyncio.gather(*map(self._run, self._clients))

    async def _run(self, client: _Client) -> None:
        while True:
            for request in (client.read, client.create, client.visit):
                # Requests in progress are not cancelled.
                await asyncio.shield(self.begin(request()))

    def report(self) -> dict[str, Any]:
        """
        Return the report of L{Load}, and the number of acknowledged users.
        """
        created = sum(client.created for client in self._clients)
        return {**super().report(), "created": created}


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    options = parser.parse_args()
    await obey(_MixedLoad(options.port, options.clients))


if __name__ == "__main__":
    asyncio.run(_main())
