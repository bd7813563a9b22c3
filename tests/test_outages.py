"""
PostgreSQL starts late, stops, and starts again: no acknowledged write is lost, and none
is carried out twice.

The server is a real one, in a process of its own, and so is its database.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tsrv import QueuingWrapper
from tsrv.databases import Database, Settings, Statement

from .databases import PostgreSQL
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .networks import blackHole, relaying
from .resources import ResourceUsage
from .services import Answer, serving, tried
from .userload import FIRST, Load, underTwoServers
from .websupport import asynchronous


async def emailsIn(server: PostgreSQL, name: str) -> list[str]:
    """
    @return: The addresses in a database of PostgreSQL.
    """
    rows = await server.ask("SELECT email FROM users", database=name)
    return [email for (email,) in rows]


@asynchronous
async def test_a_database_that_comes_late_is_waited_for(
    tmp_path: Path, ownPostgresql: PostgreSQL
) -> None:
    """
    Requests that arrive before the database are queued, and succeed.
    """
    async with serving(tmp_path, ownPostgresql.url) as service:
        asked = []
        for number in range(40):
            user = {"name": "Ada", "email": f"{number}@x"}
            for request in (("POST", "/users", user), ("GET", "/users")):
                asked.append(Deferred.fromCoroutine(service.ask(*request)))
        await service.process.whenWritten("database: attempt 1 failed")
        assert not any(each.called for each in asked)
        await ownPostgresql.start()
        answers = await gatherResults(asked)
        assert [answer.status for answer in answers] == [201, 200] * 40
        assert len(await emailsIn(ownPostgresql, "postgres")) == 40


def isBusy(answer: Answer) -> bool:
    """
    @return: Whether a write is in progress on a connection: all clients wait for a
        response, and all but one of them write.
    """
    found = re.search(r"^tsrv_http_requests_in_progress (\d+)", answer.body, re.M)
    assert found is not None
    return int(found[1]) >= 21


@asynchronous
async def test_a_database_that_is_killed_loses_nothing(
    tmp_path: Path, ownPostgresql: PostgreSQL
) -> None:
    """
    When the database is killed, reads are repeated. A client that writes learns the
    outcome, or that it is unknown.
    """
    await ownPostgresql.start()
    async with serving(tmp_path, ownPostgresql.url) as service:
        await service.ready()
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        load = Load([service])
        done = load.start(20, 1)
        for attempts in (1, 2):
            await load.until(100)
            # Calls in progress get no response.
            ownPostgresql.pause()
            await service.until("/metrics", isBusy)
            await ownPostgresql.kill()
            await service.until("/startup", tried("database", attempts))
            await ownPostgresql.start()
            await load.until(50)
        load.stopping = True
        await done
        assert {answer.status for answer in load.read} == {200}
        assert load.count("unknown") > 0
        assert load.count("0") == 0
        found = await emailsIn(ownPostgresql, "postgres")
        load.check([email for email in found if email != "first@x"])


@asynchronous
async def test_restarts_leave_nothing_behind(database: Any) -> None:
    """
    After forty restarts of its server, a database has as many threads, files,
    connections and as much memory as before.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    async with relaying(database.server.port) as relay:
        url = database.server.urlFor(database=database.name, port=relay.port)
        module = Database(reactor, url, settings=Settings(connections=1))
        wrapper = QueuingWrapper(
            module, reactor, replay=["read"], retryPolicy=lambda attempts: 0.005
        )

        async def restart() -> None:
            await relay.refuse()
            await relay.cut()
            queued = wrapper.proxy.read(Statement("SELECT 1 AS one"))
            await relay.accept()
            assert await queued == [(1,)]

        wrapper.initialize()
        # Objects that the first restarts create once are not growth.
        for _ in range(10):
            await restart()
        before = ResourceUsage.of()
        for _ in range(40):
            await restart()
        assert ResourceUsage.of().grownFrom(before, memory=8 * 2**20) == {}
        assert relay.connections == 1
        await wrapper.close()


@asynchronous
async def test_a_silent_database_is_waited_for_a_limited_time(
    tmp_path: Path,
) -> None:
    """
    If the database accepts connections and never responds, a request fails after
    C{--queue-timeout}, and can be repeated.
    """
    async with blackHole() as hole:
        url = f"postgresql://u:hush@127.0.0.1:{hole.port}/n"
        words = ["--connect-timeout=0.5", "--queue-timeout=1.5"]
        async with serving(tmp_path, url, *words) as service:
            answer = await service.ask("GET", "/users/1")
            assert answer.kind == "not now"
            assert answer.body["error"] == "The service did not become ready in time"
            ready = await service.ask("GET", "/readyz")
            assert ready.status == 503
            missing = [each["module"] for each in ready.body["missing"]]
            assert missing == ["database", "sessions"]
            await service.process.whenWritten("database: attempt 1 failed")
            assert "hush" not in service.process.output


@asynchronous
async def test_a_refused_password_is_reported_once_and_at_once(
    tmp_path: Path, database: Any
) -> None:
    """
    A refused password is reported once and at once. The log says what to do, and does
    not show the password.
    """
    url = database.server.urlFor(password="hush", database=database.name)  # noqa: S106
    # A request that waited would not be answered within the time limit of the test.
    words = ["--stay-up", "--queue-timeout=3600"]
    async with serving(tmp_path, url, *words) as service:
        await service.process.whenWritten("database is required, and failed")
        answer = await service.ask("GET", "/users")
        assert answer.kind == "not now"
        assert (await service.ask("GET", "/readyz")).status == 503
        command = Path(f"/proc/{service.process.transport.pid}/cmdline")
        assert b"hush" not in command.read_bytes()
        log = service.process.output
        lines = [line for line in log.splitlines() if "28P01" in line or "pass" in line]
        assert len(lines) == 1, lines
        assert "check the password" in lines[0]
        assert "hush" not in log
        assert "Traceback" not in log


@asynchronous
async def test_a_network_that_is_cut_silently_is_noticed(
    tmp_path: Path, database: Any
) -> None:
    """
    Only time limits can notice a network that is silently cut.
    """
    server = database.server
    async with relaying(server.port) as relay:
        url = server.urlFor(database=database.name, port=relay.port)
        words = ["--connect-timeout=0.5", "--statement-timeout=0.5"]
        async with serving(tmp_path, url, *words) as service:
            await service.ready()
            assert (await service.ask("POST", "/users", FIRST)).status == 201
            relay.silence()
            user = {"name": "Ada", "email": "second@x"}
            answer = await service.ask("POST", "/users", user)
            assert answer.kind in ("unknown", "not now")
            await service.ready(False)
            relay.resume()
            await service.ready()
            assert (await service.ask("GET", "/users/1")).status == 200


@asynchronous
async def test_two_servers_share_one_postgresql(tmp_path: Path, database: Any) -> None:
    """
    If one of two servers on the same database is killed, each acknowledged write is
    found once.
    """
    load = await underTwoServers(tmp_path, database.url)
    load.check(await emailsIn(database.server, database.name))
