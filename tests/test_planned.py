"""
Planned restarts of a database: its module is paused before and resumed afterwards, and
no call fails.

PostgreSQL is stopped as an administrator does it. Redis is killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.web.client import HTTPConnectionPool

from tsrv import AsyncModule, QueuingWrapper, Startup, State
from tsrv.databases import Database, Schema, Statement
from tsrv.demo.users import SCHEMA, Users
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.sessions import (
    Changes,
    Cookies,
    PostgreSQLSessionStore,
    Sessions,
    SQLSessionStore,
    makeIdentifier,
    schemaOf,
)
from tsrv.sessions.redis import RedisSessionStore
from tsrv.web.site import Site

from .databases import PostgreSQL
from .databases import ownPostgresql as ownPostgresql
from .processes import ROOT
from .redis_server import ownRedis as ownRedis
from .services import Service, pause
from .userload import FIRST, Load
from .websupport import asynchronous, serving

THINGS = Schema("things", {"postgresql": [["CREATE TABLE things (name TEXT)"]]})
ADD = Statement("INSERT INTO things VALUES (?)")
NAMES = Statement("SELECT name FROM things")

BUSY = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE application_name = 'tsrv' AND state <> 'idle'"
)


def soon(attempts: int) -> float:
    """
    A retry policy.
    """
    return 0.02


async def restart(server: PostgreSQL) -> None:
    """
    Restart a server that nobody may be using.
    """
    assert await server.ask(BUSY) == [(0,)]
    await server.stop()
    await server.start()


@asynchronous
async def test_a_wrapper_is_paused_for_a_planned_restart(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    Reads and writes in progress end before the restart; others wait. Each write is
    carried out once.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    await ownPostgresql.start()
    module = Database(reactor, ownPostgresql.url, [THINGS])
    wrapper = QueuingWrapper(module, reactor, replay=["read"], retryPolicy=soon)
    await wrapper.initialize()
    written: list[str] = []
    stopping: list[bool] = []

    async def work(client: int) -> None:
        while not stopping:
            name = f"{client}.{len(written)}"
            await wrapper.proxy.write(ADD, name)
            written.append(name)
            await wrapper.proxy.read(NAMES)

    working = gatherResults([Deferred.fromCoroutine(work(n)) for n in range(16)])
    for number in range(1, 4):
        while len(written) < 50 * number:
            await pause(0.001)
        async with wrapper.pausing():
            before = len(written)
            await restart(ownPostgresql)
            assert len(written) == before
            assert wrapper.pending == 16
    stopping.append(True)
    await working
    assert wrapper.state is State.READY
    assert wrapper.history.losses.count == 3
    assert sorted(await wrapper.proxy.read(NAMES)) == [
        (name,) for name in sorted(written)
    ]
    await wrapper.close()


@pytest.mark.parametrize("kind", ["ownPostgresql", "ownRedis"])
@asynchronous
async def test_a_store_is_paused_for_a_planned_restart(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """
    Each acknowledged change of a session is carried out once.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    server: Any = request.getfixturevalue(kind)
    await maybeDeferred(server.start)
    isRedis = kind == "ownRedis"
    Store = RedisSessionStore if isRedis else PostgreSQLSessionStore
    wrapper: QueuingWrapper[Any] = QueuingWrapper(
        Store(reactor, server.url), reactor, replay=["get"], retryPolicy=soon
    )
    await wrapper.initialize()
    identifiers = [makeIdentifier() for _ in range(4)]
    for each in identifiers:
        await wrapper.proxy.create(each, {})
    counted: Counter[str] = Counter()
    stopping: list[bool] = []

    async def work(identifier: str) -> None:
        while not stopping:
            found = await wrapper.proxy.get(identifier)
            await wrapper.proxy.set(identifier, Changes(added={"n": 1}), found)
            counted[identifier] += 1

    working = [Deferred.fromCoroutine(work(each)) for each in identifiers * 4]
    for number in range(1, 3):
        while counted.total() < 50 * number:
            await pause(0.001)
        async with wrapper.pausing():
            await maybeDeferred(server.kill if isRedis else server.stop)
            await maybeDeferred(server.start)
            while wrapper.history.losses.count < number:
                await pause(0.001)
            assert wrapper.pending == 16
    stopping.append(True)
    await gatherResults(working)
    for each in identifiers:
        assert (await wrapper.proxy.get(each)).data == {"n": counted[each]}
    await wrapper.close()


@asynchronous
async def test_a_pause_waits_for_an_open_transaction(
    ownPostgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The example of transactions is idle when its last transaction has ended, also one
    that waits for the connection. A later transaction waits until the module is
    resumed.
    """
    from twisted.internet import reactor

    monkeypatch.syspath_prepend(ROOT / "examples" / "clients")
    example = import_module("psycopg_transactions")
    await ownPostgresql.start()
    wrapper: QueuingWrapper[Any] = example.wrap(reactor, ownPostgresql.url)
    await wrapper.initialize()
    # A call that is made during the drain would be queued by the pause.
    while wrapper.state is not State.READY:
        await pause(0.001)
    ends: list[Deferred[None]] = [Deferred(), Deferred()]

    async def work(end: Deferred[None], item: str) -> None:
        async with wrapper.proxy.transaction() as connection:
            await end
            await connection.execute(example.INSERT, [item])

    working = [Deferred.fromCoroutine(work(end, str(end))) for end in ends]
    paused = wrapper.pause()
    late = Deferred.fromCoroutine(example.write(wrapper.proxy, "late"))
    for end, done in zip(ends, working, strict=True):
        assert not paused.called
        end.callback(None)
        await done
    await paused
    assert len(await ownPostgresql.ask("SELECT item FROM items")) == 2
    wrapper.resume()
    await late
    assert (await example.read(wrapper.proxy))[-1] == "late"
    await wrapper.close()


@asynccontextmanager
async def demo(url: str) -> AsyncIterator[tuple[Startup, Service]]:
    """
    Serve the users and the visitors of the demo server.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    startup = Startup(reactor)
    module = Database(reactor, url, [SCHEMA, schemaOf()])
    database = startup.add("database", module, replay=["read"], retryPolicy=soon).proxy
    store = startup.add(
        "sessions",
        SQLSessionStore(reactor, database, owned=False),
        needs=["database"],
    )
    sessions = Sessions(reactor, store.proxy, Cookies(reactor))
    root = makeRoot(AsyncModule(reactor), Users(database), sessions)
    startup.startService()
    await startup.whenReady()
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = 100
    pool.retryAutomatically = False
    async with serving(Site(root, reactor, knownErrors=KNOWN_ERRORS)) as served:
        try:
            process = SimpleNamespace(output="the demo is in this process")
            yield startup, Service(process, served.url, pool)
        finally:
            await pool.closeCachedConnections()
            await startup.stopService()


async def visit(service: Service, load: Load) -> None:
    """
    Count visits until the load stops.
    """
    cookie, visits = "", 0
    while not load.stopping:
        headers: dict[bytes | str, bytes | str] = {"Cookie": f"session={cookie}"}
        answer = await service.ask("GET", "/visits", headers=headers)
        cookie, visits = answer.cookie or cookie, visits + 1
        assert answer.body == {"visits": visits}
        await pause(0.005)


@asynchronous
async def test_a_planned_restart_fails_no_request(ownPostgresql: PostgreSQL) -> None:
    """
    No request fails: the table has exactly the acknowledged users, and visitors keep
    their sessions.
    """
    await ownPostgresql.start()
    async with demo(ownPostgresql.url) as (startup, service):
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        load = Load([service])
        visitors = [Deferred.fromCoroutine(visit(service, load)) for _ in range(4)]
        done = gatherResults([load.start(16, 4), *visitors])
        for _ in range(3):
            await load.until(50)
            await startup.pause("database")
            await restart(ownPostgresql)
            startup.resume("database")
        await load.until(50)
        load.stopping = True
        await done
        assert {answer.status for answer in load.read} == {200}
        assert {answer.status for answer in load.written.values()} == {201}
        emails = await ownPostgresql.ask("SELECT email FROM users ORDER BY id")
        acknowledged = ["first@x", *load.written]
        assert sorted(email for (email,) in emails) == sorted(acknowledged)
