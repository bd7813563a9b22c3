"""
A table in PostgreSQL, with a pool of asyncpg. This module does not know tsrv.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg


class Items:
    """
    A table of names.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    async def initialize(self) -> None:
        """
        Connect, and create the table.
        """
        await self.close()
        self._lost = lost = asyncio.Event()

        async def watch(connection: Any) -> None:
            connection.add_termination_listener(lambda _: lost.set())

        self._pool = await asyncpg.create_pool(
            self._url, min_size=0, max_inactive_connection_lifetime=0, init=watch
        )
        await self._pool.execute("CREATE TABLE IF NOT EXISTS items (name text)")

    async def whenLost(self) -> None:
        """
        Return when a connection is lost.
        """
        await self._lost.wait()

    async def close(self) -> None:
        """
        Disconnect.
        """
        if self._pool is not None:
            self._pool.terminate()

    async def names(self) -> list[str]:
        """
        Return all names.
        """
        return [row["name"] for row in await self._pool.fetch("SELECT name FROM items")]

    async def add(self, name: str) -> None:
        """
        Add a name.
        """
        await self._pool.execute("INSERT INTO items VALUES ($1)", name)
