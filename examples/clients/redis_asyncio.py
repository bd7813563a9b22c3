"""
redis-py's asyncio client, which never tells that its server is gone: C{ping=} asks.

One connection carries the commands in their order. The client's own retrying is
switched off, since only tsrv knows which calls are safe to run twice.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tsrv import OutcomeUnknown, QueuingWrapper

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, RedisError)


def wrap(reactor: Any, url: str) -> QueuingWrapper[Redis]:
    client = Redis.from_url(
        url, single_connection_client=True, retry=None, decode_responses=True
    )
    return QueuingWrapper(
        client,
        reactor,
        name="redis",
        # Its own initialize() does not connect.
        initialize=client.ping,
        ping=client.ping,
        close=client.aclose,
        replay={"lrange"},
    )


async def write(client: Redis, item: str) -> None:
    await client.rpush("items", item)


async def read(client: Redis) -> list[str]:
    return [str(item) for item in await client.lrange("items", 0, -1)]
