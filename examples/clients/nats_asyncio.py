"""
NATS with nats-py: publish, request and subscribe.

NATS stores nothing: a message without a subscriber is lost. So a write is a request,
which ends when a subscriber has answered. The client does not reconnect by itself:
each attempt subscribes again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from tsrv import OutcomeUnknown, QueuingWrapper

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, Error, OSError)


class Items:
    # Both sides of a service that keeps items.

    def __init__(self, url: str) -> None:
        self._url = url
        self._items: list[bytes] = []
        self._client: Any = None

    async def initialize(self) -> None:
        await self.close()
        self._closed = closed = asyncio.Event()

        async def tell(error: Exception | None = None) -> None:
            closed.set()

        self._client = client = Client()
        await client.connect(
            self._url,
            allow_reconnect=False,
            # With other numbers the client retries the first connection for minutes.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            closed_cb=tell,
            error_cb=tell,
        )
        closed.clear()
        await client.subscribe("items.add", cb=self._add)
        await client.subscribe("items.list", cb=self._list)
        await client.flush()

    async def whenLost(self) -> None:
        await self._closed.wait()

    async def ping(self) -> None:
        await self._client.flush()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _add(self, request: Msg) -> None:
        self._items.append(request.data)
        await request.respond(b"")

    async def _list(self, request: Msg) -> None:
        await request.respond(b" ".join(self._items))

    async def add(self, item: str) -> None:
        await self._client.request("items.add", item.encode(), timeout=10)

    async def list(self) -> list[str]:
        response: Msg = await self._client.request("items.list", timeout=10)
        return response.data.decode().split()


def wrap(reactor: Any, url: str) -> QueuingWrapper[Items]:
    items = Items(url)
    return QueuingWrapper(items, reactor, name="nats", ping=items.ping, replay={"list"})


async def write(items: Items, item: str) -> None:
    await items.add(item)


async def read(items: Items) -> list[str]:
    return await items.list()
