"""
C{twisted.enterprise.adbapi} and SQLite. The file is on a volume that is mounted late,
and sometimes disappears.

SQLite goes on reading a file that was moved away, so the ping writes. A closed pool
cannot be opened again: C{madeBy} makes another pool.
"""

from __future__ import annotations

from functools import partial
from sqlite3 import OperationalError
from typing import Any

from twisted.enterprise.adbapi import ConnectionPool

from tsrv import OutcomeUnknown, QueuingWrapper, madeBy

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, OperationalError)

TABLE = "CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, item TEXT)"
INSERT = "INSERT INTO items (item) VALUES (?)"


def wrap(reactor: Any, path: str) -> QueuingWrapper[ConnectionPool]:
    async def connect() -> ConnectionPool:
        # One thread keeps the order, and SQLite has one writer anyway.
        pool = ConnectionPool(
            "sqlite3",
            path,
            cp_reactor=reactor,
            cp_min=1,
            cp_max=1,
            # Another thread closes it.
            check_same_thread=False,
        )
        try:
            await pool.runOperation(TABLE)
        except BaseException:
            pool.close()
            raise
        return pool

    pool = madeBy(connect, ConnectionPool)
    return QueuingWrapper(
        pool,
        reactor,
        ping=partial(pool.runOperation, "PRAGMA user_version = 1"),
        replay={"runQuery"},
    )


async def write(pool: ConnectionPool, item: str) -> None:
    await pool.runOperation(INSERT, [item])


async def writeAll(pool: ConnectionPool, items: list[str]) -> None:
    def insert(transaction: Any) -> None:
        transaction.executemany(INSERT, [(item,) for item in items])

    await pool.runInteraction(insert)


async def read(pool: ConnectionPool) -> list[str]:
    return [
        item for (item,) in await pool.runQuery("SELECT item FROM items ORDER BY id")
    ]
