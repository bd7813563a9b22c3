"""
asyncpg. Its pool exists only when it has connected: C{madeBy} makes a pool at each
attempt.

The drain runs one queued call after the other, so they keep their order; afterwards
the pool's connections work at the same time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import asyncpg

from tsrv import OutcomeUnknown, QueuingWrapper, madeBy

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
# One that fails with one of these was not.
REFUSED = (ConnectionRefusedError,)

TABLE = "CREATE TABLE IF NOT EXISTS items (id serial PRIMARY KEY, item text)"
INSERT = "INSERT INTO items (item) VALUES ($1)"


def wrap(reactor: Any, url: str) -> QueuingWrapper[Any]:
    async def connect() -> Any:
        # With a minimum, the pool would reconnect by itself.
        pool = await asyncpg.create_pool(url, min_size=0, max_size=4)
        try:
            await pool.execute(TABLE)
        except BaseException:
            pool.terminate()
            raise
        return pool

    pool = madeBy(connect, asyncpg.Pool, close=asyncpg.Pool.terminate)
    return QueuingWrapper(
        pool,
        reactor,
        ping=partial(pool.fetchval, "SELECT 1"),
        replay={"fetch"},
        concurrency=1,
    )


async def write(pool: Any, item: str) -> None:
    await pool.execute(INSERT, item)


async def writeAll(pool: Any, items: list[str]) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.executemany(INSERT, [(item,) for item in items])


async def read(pool: Any) -> list[str]:
    rows = await pool.fetch("SELECT item FROM items ORDER BY id")
    return [row["item"] for row in rows]
