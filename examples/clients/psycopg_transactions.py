"""
psycopg on Twisted: C{async with} a transaction through the proxy, even before the
first connection is open.

A connection has one transaction at a time. A lock makes other transactions wait, and
serves them in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from twisted.internet.defer import Deferred, DeferredLock

from tsrv import OutcomeUnknown, QueuingWrapper
from tsrv.databases.postgresql import Connection, connect

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, psycopg.OperationalError)

TABLE = "CREATE TABLE IF NOT EXISTS items (id serial PRIMARY KEY, item text)"
INSERT = "INSERT INTO items (item) VALUES (%s)"


class Database:
    def __init__(self, reactor: Any, url: str) -> None:
        self._reactor = reactor
        self._url = url
        self._connection: Connection[Any] | None = None
        self._lock = DeferredLock()

    async def initialize(self) -> None:
        await self.close()
        self._connection = await connect(self._reactor, self._url)
        async with self.transaction() as connection:
            await connection.execute(TABLE)

    def whenLost(self) -> Deferred[None]:
        assert self._connection is not None
        return self._connection.whenLost()

    async def whenIdle(self) -> None:
        # Transactions that wait for the lock end first.
        async with self._lock:
            pass

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection[Any]]:
        async with self._lock:
            assert self._connection is not None
            async with self._connection.transaction():
                yield self._connection

    async def items(self) -> list[str]:
        async with self.transaction() as connection:
            cursor = await connection.execute("SELECT item FROM items ORDER BY id")
            return [item async for (item,) in cursor]


def wrap(reactor: Any, url: str) -> QueuingWrapper[Database]:
    return QueuingWrapper(Database(reactor, url), reactor, replay={"items"})


async def write(database: Database, item: str) -> None:
    await writeAll(database, [item])


async def writeAll(database: Database, items: list[str]) -> None:
    async with database.transaction() as connection:
        for item in items:
            await connection.execute(INSERT, [item])


async def read(database: Database) -> list[str]:
    return await database.items()
