"""
redis-py's asyncio client. It does not report that its server is lost: C{ping=} asks.

One connection is enough, since commands are short. Callers that wait for it have no
order, so the drain runs one call after the other. The client does not retry by itself:
it does not know which calls may safely run twice.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from tsrv import OutcomeUnknown, QueuingWrapper

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, RedisError)


def wrap(reactor: Any, url: str) -> QueuingWrapper[Redis]:
    pool = BlockingConnectionPool.from_url(
        url, max_connections=1, timeout=None, retry=None, decode_responses=True
    )
    client = Redis.from_pool(pool)
    return QueuingWrapper(
        client,
        reactor,
        name="redis",
        # Its own initialize() does not connect.
        initialize=client.ping,
        ping=client.ping,
        close=client.aclose,
        replay={"lrange"},
        concurrency=1,
    )


async def write(client: Redis, item: str) -> None:
    await client.rpush("items", item)


async def read(client: Redis) -> list[str]:
    return [str(item) for item in await client.lrange("items", 0, -1)]
