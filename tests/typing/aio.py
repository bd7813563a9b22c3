"""
The same on asyncio.
"""

from __future__ import annotations

from typing import assert_type

from tsrv import madeBy
from tsrv.aio import QueuingWrapper, Startup


class Pool:
    """
    A client of asyncio.
    """

    async def initialize(self) -> None: ...

    async def fetch(self, query: str) -> list[str]:
        raise NotImplementedError


async def makePool() -> Pool:
    raise NotImplementedError


async def wrapped() -> None:
    wrapper = QueuingWrapper(Pool(), timeout=5.0, replay=["fetch"], ping="initialize")
    assert_type(wrapper.proxy, Pool)
    assert_type(await wrapper.proxy.fetch("SELECT 1"), list[str])
    await wrapper.initialize()
    await wrapper.close()
    wrapper.proxy.fetsch("")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await wrapper.proxy.fetch(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    QueuingWrapper(Pool(), limt=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def started() -> None:
    startup = Startup()
    pool = startup.add("pool", madeBy(makePool, Pool), queueTimeout=5.0).proxy
    assert_type(pool, Pool)
    async with startup:
        await startup.whenReady()
        assert_type(await pool.fetch("SELECT 1"), list[str])
    startup.add("pool", Pool(), neds=["x"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
