"""
Databases come up late, go away and come back: no acknowledged write is lost, and
none is carried out twice.

The server is a real one, in a process of its own, and so is its database.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults

from tsrv import QueuingWrapper
from tsrv.databases import Database, Settings, Statement

from .census import Census, SmallDisk
from .census import smallDisk as smallDisk
from .databases import PostgreSQL
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .databases import postgresql as postgresql
from .networks import blackHole, relaying
from .processes import spawned
from .services import Answer, Service, pause, serving, tried
from .websupport import asynchronous, reservedPort


@dataclass
class Load:
    """
    Many clients that read and write.

    @ivar read: The answers to reads.
    @ivar written: The answers to writes, for each address.
    """

    services: list[Service]
    name: str = "user"
    read: list[Answer] = field(default_factory=list)
    written: dict[str, Answer] = field(default_factory=dict)
    stopping: bool = False

    async def write(self, client: int) -> None:
        """
        Make one user after the other.
        """
        number = 0
        while not self.stopping:
            email = f"{client}.{number}@{self.name}"
            service = self.services[(client + number) % len(self.services)]
            user = {"name": "Ada", "email": email}
            self.written[email] = await service.ask("POST", "/users", user)
            number += 1
            await self._pause(self.written[email])

    async def look(self, client: int) -> None:
        """
        Read the first user again and again.
        """
        while not self.stopping:
            self.read.append(await self.services[0].ask("GET", "/users/1"))
            await self._pause(self.read[-1])

    async def _pause(self, answer: Answer) -> None:
        # A client that is refused comes back a little later.
        await pause(0.005 if answer.status < 300 else 0.05)

    def start(self, writers: int, readers: int = 0) -> Deferred[Any]:
        """
        Begin.

        @return: A Deferred that fires when all have stopped.
        """
        work = [self.write(client) for client in range(writers)]
        work += [self.look(client) for client in range(readers)]
        return gatherResults([Deferred.fromCoroutine(each) for each in work])

    async def until(self, more: int) -> None:
        """
        Wait until so many more users were acknowledged.
        """
        wanted = self.count("201") + more
        begun = self.services[0].now()
        while self.count("201") < wanted:
            assert self.services[0].now() - begun < 30, self.services[0].process.output
            await pause(0.01)

    def count(self, kind: str) -> int:
        """
        @return: The number of writes with this kind of answer.
        """
        return sum(answer.kind == kind for answer in self.written.values())

    def check(self, found: list[str]) -> None:
        """
        Compare the addresses in a database with the answers.
        """
        there = set(found)
        assert len(there) == len(found)
        for email, answer in self.written.items():
            if answer.kind == "201":
                assert email in there
            elif answer.kind == "not now":
                assert email not in there
            else:
                assert answer.kind in ("unknown", "0"), answer


async def emailsIn(server: PostgreSQL, name: str) -> list[str]:
    """
    @return: The addresses in a database of PostgreSQL.
    """
    rows = await server.ask("SELECT email FROM users", database=name)
    return [email for (email,) in rows]


def emailsInFile(path: Path) -> list[str]:
    """
    @return: The addresses in a file of SQLite, which is sound.
    """
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT email FROM users").fetchall()
    connection.close()
    return [email for (email,) in rows]


FIRST = {"name": "Ada", "email": "first@x"}


# PostgreSQL.


@asynchronous
async def test_a_database_that_comes_late_is_waited_for(
    tmp_path: Path, ownPostgresql: PostgreSQL
) -> None:
    """
    Requests that are made in the meantime are queued, and succeed.
    """
    async with serving(tmp_path, ownPostgresql.url) as service:
        asked = []
        for number in range(40):
            user = {"name": "Ada", "email": f"{number}@x"}
            for request in (("POST", "/users", user), ("GET", "/users")):
                asked.append(Deferred.fromCoroutine(service.ask(*request)))
        await service.process.whenWritten("database failed to initialize (attempt 2)")
        assert not any(each.called for each in asked)
        await ownPostgresql.start()
        answers = await gatherResults(asked)
        assert [answer.status for answer in answers] == [201, 200] * 40
        assert len(await emailsIn(ownPostgresql, "postgres")) == 40


def isBusy(answer: Answer) -> bool:
    """
    @return: Whether all clients wait for an answer.
    """
    found = re.search(r"^tsrv_http_requests_in_progress (\d+)", answer.body, re.M)
    assert found is not None
    return int(found[1]) >= 24


@asynchronous
async def test_a_database_that_is_killed_loses_nothing(
    tmp_path: Path, ownPostgresql: PostgreSQL
) -> None:
    """
    Reads are repeated. A client that writes is told what happened, or that nobody
    knows it.
    """
    await ownPostgresql.start()
    async with serving(tmp_path, ownPostgresql.url) as service:
        await service.ready()
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        load = Load([service])
        done = load.start(20, 4)
        for attempts in (1, 3):
            await load.until(100)
            # The calls in progress get no answer.
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
    After forty restarts of its server a database holds no more threads, files,
    connections or memory than before.
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
        # What is created once, with the first restarts, is not growth.
        for _ in range(10):
            await restart()
        before = Census.of()
        for _ in range(40):
            await restart()
        assert Census.of().grownFrom(before, memory=8 * 2**20) == {}
        assert relay.connections == 1
        await wrapper.close()


@asynchronous
async def test_a_silent_database_is_waited_for_a_limited_time(
    tmp_path: Path,
) -> None:
    """
    The server accepts connections, and is silent.
    """
    async with blackHole() as hole:
        url = f"postgresql://u:hush@127.0.0.1:{hole.port}/n"
        words = ["--connect-timeout=0.5", "--queue-timeout=1.5"]
        async with serving(tmp_path, url, *words) as service:
            begun = service.now()
            answer = await service.ask("GET", "/users/1")
            assert answer.kind == "not now"
            assert 1 < service.now() - begun < 10
            ready = await service.ask("GET", "/readyz")
            assert ready.status == 503
            missing = [each["module"] for each in ready.body["missing"]]
            assert missing == ["database", "sessions"]
            await service.process.whenWritten("(attempt 2)")
            assert "hush" not in service.process.output


@asynchronous
async def test_a_database_that_stops_answering_is_noticed(
    tmp_path: Path, ownPostgresql: PostgreSQL
) -> None:
    """
    Its processes are stopped, and its connections stay open: the time limits act, and
    everything recovers when the processes continue.
    """
    await ownPostgresql.start()
    words = ["--connect-timeout=0.5", "--statement-timeout=0.5"]
    async with serving(tmp_path, ownPostgresql.url, *words) as service:
        await service.ready()
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        ownPostgresql.pause()
        read = Deferred.fromCoroutine(service.ask("GET", "/users/1"))
        user = {"name": "Ada", "email": "second@x"}
        written = await service.ask("POST", "/users", user)
        assert written.kind in ("unknown", "not now")
        await service.ready(False)
        ownPostgresql.resume()
        await service.ready()
        assert (await read).status == 200
        there = "second@x" in await emailsIn(ownPostgresql, "postgres")
        assert not (there and written.kind == "not now")


@pytest.mark.parametrize("stay", [True, False])
@asynchronous
async def test_a_refused_password_is_reported_once_and_at_once(
    tmp_path: Path, database: Any, stay: bool
) -> None:
    """
    Waiting would not help. The log says what to do, and does not show the password.
    """
    url = database.server.urlFor(password="hush", database=database.name)  # noqa: S106
    words = ["--stay-up"] if stay else []
    async with serving(tmp_path, url, *words) as service:
        await service.process.whenWritten("database is required, and failed")
        if stay:
            begun = service.now()
            answer = await service.ask("GET", "/users")
            assert (answer.kind, service.now() - begun < 5) == ("not now", True)
            assert (await service.ask("GET", "/readyz")).status == 503
            command = Path(f"/proc/{service.process.transport.pid}/cmdline")
            assert b"hush" not in command.read_bytes()
        else:
            assert await service.process.ended == 1
        log = service.process.output
        lines = [line for line in log.splitlines() if "28P01" in line or "pass" in line]
        assert len(lines) == 1, lines
        assert "check the password" in lines[0]
        assert "hush" not in log
        assert "Traceback" not in log


@pytest.mark.parametrize("busy", [True, False])
@asynchronous
async def test_a_network_that_is_cut_silently_is_noticed(
    tmp_path: Path, database: Any, busy: bool
) -> None:
    """
    Only the time limits show it.
    """
    server = database.server
    async with relaying(server.port) as relay:
        url = server.urlFor(database=database.name, port=relay.port)
        words = ["--connect-timeout=0.5", "--statement-timeout=0.5"]
        async with serving(tmp_path, url, *words) as service:
            await service.ready()
            assert (await service.ask("POST", "/users", FIRST)).status == 201
            relay.silence()
            begun = service.now()
            if busy:
                user = {"name": "Ada", "email": "second@x"}
                answer = await service.ask("POST", "/users", user)
                assert answer.kind in ("unknown", "not now")
            await service.ready(False)
            assert service.now() - begun < 10
            relay.resume()
            await service.ready()
            assert (await service.ask("GET", "/users/1")).status == 200


@asynchronous
async def test_two_servers_share_one_postgresql(tmp_path: Path, database: Any) -> None:
    """
    They make its tables at the same moment, and one of them is killed: each
    acknowledged write is found once.
    """
    await twoServers(tmp_path, database.url)
    found = await emailsIn(database.server, database.name)
    TWO.pop().check(found)


@asynchronous
async def test_two_servers_share_one_file(tmp_path: Path) -> None:
    """
    SQLite has one writer at a time.
    """
    path = tmp_path / "users.db"
    await twoServers(tmp_path, f"sqlite:{path}")
    TWO.pop().check(emailsInFile(path))


TWO: list[Load] = []


async def twoServers(directory: Path, url: str) -> None:
    """
    Run two servers under load; kill and restart one of them.
    """
    with reservedPort() as port:
        both = [
            Deferred.fromCoroutine(_enter(serving(directory / name, url, port=number)))
            for name, number in (("one", None), ("two", port))
        ]
        (one, first), (two, second) = await gatherResults(both)
        load = Load([first, second])
        TWO.append(load)
        done = load.start(16)
        await load.until(200)
        await second.kill()
        await two.__aexit__(None, None, None)
        async with serving(directory / "two", url, port=port):
            await load.until(200)
            load.stopping = True
            await done
            # Its clients use the server that took its place.
            await second.pool.closeCachedConnections()
        await one.__aexit__(None, None, None)
        assert load.count("201") >= 400


async def _enter(context: Any) -> tuple[Any, Service]:
    return context, await context.__aenter__()


# SQLite.

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@asynchronous
async def test_a_locked_file_is_waited_for_a_limited_time(tmp_path: Path) -> None:
    """
    Writes are refused until it is unlocked; reads succeed.
    """
    path = tmp_path / "users.db"
    async with serving(tmp_path, f"sqlite:{path}", "--connect-timeout=0.3") as service:
        await service.ready()
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        async with spawned(tmp_path, "-c", HOLD, str(path)) as holder:
            await holder.whenWritten("held")
            user = {"name": "Ada", "email": "second@x"}
            assert (await service.ask("POST", "/users", user)).kind == "not now"
            assert (await service.ask("GET", "/users/1")).status == 200
            assert (await service.ask("GET", "/readyz")).status == 200
            waiting = Deferred.fromCoroutine(service.ask("POST", "/users", user))
            holder.write("\n")
            await holder.ended
        answer = await waiting
        if answer.kind == "not now":
            answer = await service.ask("POST", "/users", user)
        assert answer.status == 201
    assert emailsInFile(path) == ["first@x", "second@x"]


@asynchronous
async def test_a_disk_that_is_full_loses_nothing(
    tmp_path: Path, smallDisk: SmallDisk
) -> None:
    """
    A write that fails is not acknowledged; writes succeed when there is room again.
    """
    path = smallDisk.directory / "users.db"
    async with serving(tmp_path, f"sqlite:{path}") as service:
        await service.ready()
        load = Load([service])
        done = load.start(4, 1)
        await load.until(20)
        smallDisk.fill()
        while not load.count("not now"):
            await pause(0.01)
        assert (await service.ask("GET", "/users/1")).status == 200
        smallDisk.free()
        await load.until(20)
        load.stopping = True
        await done
        assert service.process.status is None
        load.check(emailsInFile(path))


@pytest.mark.parametrize(
    ("what", "stay"), [("text", True), ("directory", False), ("nowhere", True)]
)
@asynchronous
async def test_a_path_that_is_no_database_is_reported_once(
    tmp_path: Path, what: str, stay: bool
) -> None:
    """
    The log names the path and says what to do; the file is left as it is.
    """
    path = tmp_path / "users.db"
    if what == "text":
        path.write_text("no database, but somebody's letter\n" * 1000)
    elif what == "directory":
        path.mkdir()
    else:
        path = tmp_path / "nowhere" / "users.db"
    words = ["--stay-up"] if stay else []
    async with serving(tmp_path, f"sqlite:{path}", *words) as service:
        await service.process.whenWritten("database is required, and failed")
        if stay:
            assert (await service.ask("GET", "/users")).kind == "not now"
            assert (await service.ask("GET", "/readyz")).status == 503
        else:
            assert await service.process.ended == 1
        log = service.process.output
        assert log.count("database is required, and failed") == 1
        # Once with its own cause, and once for the sessions, which are in it.
        assert log.count("will not be tried again: DatabaseRefused: ") == 1
        assert log.count("will not be tried again: Skipped: ") == 1
        assert log.count("will not be tried again") == 2
        assert str(path) in log
        assert "Traceback" not in log
    if what == "text":
        assert path.read_text().startswith("no database")


@asynchronous
async def test_acknowledged_writes_survive_a_killed_server(tmp_path: Path) -> None:
    """
    The server is killed while it writes, and started again.
    """
    path = tmp_path / "users.db"
    load = None
    for round_ in range(2):
        async with serving(tmp_path / str(round_), f"sqlite:{path}") as service:
            await service.ready()
            load = Load([service], name=f"round{round_}")
            done = load.start(8)
            await load.until(200)
            await service.kill()
            load.stopping = True
            await done
            found = emailsInFile(path)
            load.check([each for each in found if each.endswith(load.name)])


@asynchronous
async def test_a_file_that_is_replaced_is_not_written_to(tmp_path: Path) -> None:
    """
    A write into a deleted file would be lost.
    """
    path = tmp_path / "users.db"
    async with serving(tmp_path, f"sqlite:{path}") as service:
        await service.ready()
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        user = {"name": "Ada", "email": "second@x"}
        first = await service.ask("POST", "/users", user)
        assert first.kind == "not now"
        await service.ready()
        assert (await service.ask("POST", "/users", user)).status == 201
    assert emailsInFile(path) == ["second@x"]


@asynchronous
async def test_a_graceful_shutdown_finishes_requests_in_progress(
    tmp_path: Path,
) -> None:
    """
    After SIGTERM requests in progress finish.
    """
    path = tmp_path / "users.db"
    async with serving(tmp_path, f"sqlite:{path}") as service:
        await service.ready()
        load = Load([service])
        done = load.start(8)
        await load.until(100)
        service.process.terminate()
        assert await service.process.ended == 0
        load.stopping = True
        await done
    load.check(emailsInFile(path))
