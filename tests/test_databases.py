"""
The servers, networks and disks of the other tests: what those rely on.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from select import select
from socket import create_connection, socket
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from . import databases
from ._postgresql import Missing, family, inThread
from .census import Census, SmallDisk
from .census import smallDisk as smallDisk
from .databases import Database, PostgreSQL
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .databases import postgresql as postgresql
from .networks import Relay, blackHole, relaying, unanswered
from .processes import ROOT
from .websupport import Wire, asynchronous, reservedPort

WRONG = "wrong: /@"

RUN = """
import sys
from tests._postgresql import Installation
from tests.databases import PostgreSQL
from tests.websupport import reservedPort
installation = Installation()
with reservedPort() as port:
    server = PostgreSQL(installation, port)
    server.startNow()
    pids = server._process.pid, installation._watcher.pid
    print(installation.directory, *pids, flush=True)
    sys.stdin.read()
"""
"""
A run of tests.
"""


def pause(seconds: float) -> Deferred[None]:
    """
    Give something that must not happen the time to happen.
    """
    from twisted.internet import reactor

    return deferLater(cast(Any, reactor), seconds, lambda: None)


async def until(condition: Callable[[], bool]) -> None:
    """
    Wait for what nobody tells of.
    """
    while not condition():
        await pause(0.01)


class End(Wire):
    """
    An end of a connection.

    @ivar ending: How it was closed.
    """

    ending: Failure | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ending = reason
        super().connectionLost(reason)


async def connect(port: int) -> End:
    """
    Make a connection.
    """
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port)
    return cast(End, await connectProtocol(endpoint, End()))


def _lives(pid: int) -> bool:
    """
    @return: Whether there is a process, and whether it is more than a name.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _shares(pid: int) -> bool:
    """
    @return: Whether there is shared memory that a process has made.
    """
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return str(pid) in (line.split()[4] for line in lines)


async def keptBusy(server: PostgreSQL) -> list[Deferred[Any]]:
    """
    Ask a server for something that takes longer than any test, and wait until it
    is at it: before that, what a server that stops says may not arrive.

    @return: What fires with the answer.
    """
    asked = server.ask("select pg_sleep(50)")
    while not await server.ask(
        "select from pg_stat_activity"
        " where state = 'active' and query = 'select pg_sleep(50)'"
    ):
        pass
    return [asked]


def _one(url: str) -> object:
    """
    Ask a database for the number one.
    """
    from psycopg import connect

    with connect(url, connect_timeout=10) as connection:
        return connection.execute("select 1").fetchone()


class Served:
    """
    A server whose ends of the connections a test holds.
    """

    def __init__(self) -> None:
        self.wires: list[End] = []
        self.port = 0
        self._listening: Any = None

    def build(self) -> End:
        end = End()
        self.wires.append(end)
        return end

    async def through(self, relay: Relay) -> tuple[End, End]:
        """
        Connect to it.

        @return: The two ends.
        """
        before = len(self.wires)
        client = await connect(relay.port)
        await until(lambda: len(self.wires) > before)
        return client, self.wires[-1]

    async def __aenter__(self) -> Served:
        from twisted.internet import reactor

        factory: Any = Factory.forProtocol(cast(Any, self.build))
        factory.noisy = False
        endpoint = TCP4ServerEndpoint(cast(Any, reactor), 0, interface="127.0.0.1")
        self._listening = await endpoint.listen(factory)
        self.port = self._listening.getHost().port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listening.stopListening()
        for wire in self.wires:
            wire.leave()
        await gatherResults([wire.whenClosed() for wire in self.wires])


def refusal(port: int) -> type[BaseException] | None:
    """
    @return: What a connection to a port fails with at once.
    """
    try:
        create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError as error:
        return type(error)
    return None


@asynchronous
async def test_what_is_committed_survives_being_killed(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    The tests of outages count rows after it; were some lost here, nothing that
    they say would be worth anything.
    """
    await ownPostgresql.start()
    await ownPostgresql.ask("create table t (n int)")
    await ownPostgresql.ask("insert into t select generate_series(1, %s)", 5000)
    await ownPostgresql.kill()
    assert refusal(ownPostgresql.port) is ConnectionRefusedError
    await ownPostgresql.start()
    assert await ownPostgresql.ask("select count(*) from t") == [(5000,)]


@asynchronous
async def test_kill_ends_every_process_of_it_even_a_busy_one(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    A backend that runs a statement does not notice that the postmaster is gone,
    and would commit, after the kill, what the test takes for lost.
    """
    await ownPostgresql.start()
    assert ownPostgresql._process is not None
    pid = ownPostgresql._process.pid
    busy = await keptBusy(ownPostgresql)
    processes = list(family(pid))
    assert len(processes) > 4
    await ownPostgresql.kill()
    assert not any(_lives(each) for each in processes)
    with pytest.raises(Exception, match="server closed the connection"):
        await busy[0]


@asynchronous
async def test_stop_tells_the_clients_and_restart_keeps_the_port(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    An orderly restart is another event for a client than a crash.
    """
    await ownPostgresql.start()
    port = ownPostgresql.port
    busy = await keptBusy(ownPostgresql)
    await ownPostgresql.restart()
    with pytest.raises(Exception, match="due to administrator command"):
        await busy[0]
    assert ownPostgresql.port == port
    assert await ownPostgresql.ask("select 1") == [(1,)]
    await ownPostgresql.stop()
    assert not ownPostgresql.running
    assert ownPostgresql.log.count("database system is shut down") == 2


@asynchronous
async def test_a_paused_server_accepts_and_goes_on_where_it_was(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    It is how a machine looks that is there, but does not answer any more.
    """
    await ownPostgresql.start()
    ownPostgresql.pause()
    asked = ownPostgresql.ask("select 1")
    assert refusal(ownPostgresql.port) is None
    assert not asked.called
    ownPostgresql.resume()
    assert await asked == [(1,)]


@asynchronous
async def test_a_paused_server_can_be_killed_and_stopped(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    A test that fails while it is paused must not hang at its end.
    """
    for end in (ownPostgresql.kill, ownPostgresql.stop):
        await ownPostgresql.start()
        ownPostgresql.pause()
        await end()
        assert refusal(ownPostgresql.port) is ConnectionRefusedError


@asynchronous
async def test_a_server_that_is_held_says_that_it_starts_up(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    That passes by itself, unlike most of what a server refuses a client for.
    """
    await ownPostgresql.startHeld()
    for _ in range(2):
        with pytest.raises(Exception, match="the database system is starting up"):
            await ownPostgresql.ask("select 1")
    await ownPostgresql.letIn()
    assert await ownPostgresql.ask("select 1") == [(1,)]


@asynchronous
async def test_a_server_that_was_held_can_be_ended_and_started(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    What holds it is a process of its own, and a file that must not hold the next
    start too.
    """
    for end in (ownPostgresql.kill, ownPostgresql.stop):
        await ownPostgresql.startHeld()
        await end()
        await ownPostgresql.start()
        assert await ownPostgresql.ask("select 1") == [(1,)]
        await ownPostgresql.kill()
    await ownPostgresql.startHeld()


@asynchronous
async def test_a_server_that_cannot_start_says_why(ownPostgresql: PostgreSQL) -> None:
    """
    Otherwise a mistake in a test ends as a time-out.
    """
    with pytest.raises(AssertionError, match="unrecognized configuration parameter"):
        await ownPostgresql.start(nonsense="1")
    assert not ownPostgresql.running
    with pytest.raises(AssertionError, match="it does not run"):
        ownPostgresql.letInNow()


def test_a_wrong_password_and_an_unknown_database_are_refused(
    database: Database,
) -> None:
    """
    With the authentication that initdb sets up by itself every password would
    do.
    """
    psycopg = pytest.importorskip("psycopg")
    server = database.server
    for url, why in (
        (server.urlFor(password=WRONG), "password authentication failed"),
        (server.urlFor(password=None), "no password supplied"),
        (server.urlFor(user="nobody else"), "password authentication failed"),
        (server.urlFor(database="nowhere?"), 'database "nowhere\\?" does not exist'),
    ):
        with pytest.raises(psycopg.OperationalError, match=why):
            psycopg.connect(url)


def test_tests_get_databases_that_are_their_own(
    database: Database, postgresql: PostgreSQL
) -> None:
    """
    What one test writes another must not read.
    """
    assert database.askNow("select current_database()") == [(database.name,)]
    assert database.askNow("create table users (id int)") == []
    assert database.server is postgresql
    with pytest.raises(Exception, match='relation "users" does not exist'):
        postgresql.askNow("select from users")
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(database.url):
        assert postgresql.clientsNow() == {database.name: 1}


@asynchronous
async def test_no_thread_is_left_when_an_answer_is_there(database: Database) -> None:
    """
    A process that has threads cannot fork safely, and newer Pythons warn of it.
    """
    before = threading.active_count()
    assert await database.ask("select %s + 1", 1) == [(2,)]
    assert threading.active_count() == before


@pytest.mark.usefixtures("postgresql")
def test_a_run_that_is_killed_leaves_no_server_behind() -> None:
    """
    Whoever kills a test that hangs would be left with servers that nobody knows
    of, and with the memory they share.
    """
    words = [sys.executable, "-c", RUN]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe) as run:  # noqa: S603
        assert run.stdout is not None
        directory, *pids = run.stdout.readline().decode().split()
        server, watcher = map(int, pids)
        assert (_lives(server), _shares(server)) == (True, True)
        ending = os.pidfd_open(watcher)
        run.kill()
    assert select([ending], [], [], 30)[0]
    os.close(ending)
    assert (_lives(server), _shares(server)) == (False, False)
    assert not Path(directory).exists()


def test_without_postgresql_its_tests_are_skipped_unless_they_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A run that is to prove something must not skip the proof.
    """
    missing = Missing("it rained")
    monkeypatch.setattr(databases, "_installed", lambda: missing)
    monkeypatch.delenv("TSRV_DATABASES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no PostgreSQL: it rained"):
        databases._installation()
    monkeypatch.setenv("TSRV_DATABASES", "required")
    with pytest.raises(Missing):
        databases._installation()


@asynchronous
async def test_a_relay_forwards_both_ways_and_closes_both_ends() -> None:
    """
    All that a test sees through it has to be what it would see without it.
    """
    async with Served() as served, relaying(served.port) as relay:
        client, server = await served.through(relay)
        client.send(b"a" * 10_000_000)
        server.send(b"b" * 10_000_000)
        await client.whenReceived(b"b", 10_000_000)
        await server.whenReceived(b"a", 10_000_000)
        assert (relay.accepted, relay.connections) == (1, 1)
        client.send(b"last words")
        client.finish()
        assert (await server.whenClosed()).endswith(b"last words")
        assert server.ending is not None
        assert server.ending.check(ConnectionDone)
        await client.whenClosed()
        assert relay.connections == 0


@asynchronous
async def test_nothing_passes_a_silent_relay_not_even_an_end() -> None:
    """
    If the end of a connection were told, the client would learn at once what it
    has to find out by itself.
    """
    async with Served() as served, relaying(served.port) as relay:
        client, server = await served.through(relay)
        relay.silence()
        client.send(b"question")
        server.send(b"answer")
        server.finish()
        late = await connect(relay.port)
        late.send(b"too late?")
        await relay.whenAccepted(2)
        await pause(0.1)
        assert (client.received, server.received) == (b"", b"")
        assert not client.closed
        assert len(served.wires) == 1
        relay.resume()
        assert await client.whenClosed() == b"answer"
        await until(lambda: len(served.wires) == 2)
        await served.wires[1].whenReceived(b"too late?")
        late.leave()
        await late.whenClosed()


@asynchronous
async def test_a_relay_cuts_connections_by_rst_or_by_fin() -> None:
    """
    One is an error to the client, the other the end of the stream: drivers
    treat them in different ways.
    """
    async with Served() as served, relaying(served.port) as relay:
        for reset, expected in ((True, ConnectionLost), (False, ConnectionDone)):
            wires = await served.through(relay)
            await relay.cut(reset=reset)
            for wire in wires:
                await wire.whenClosed()
                assert wire.ending is not None
                assert wire.ending.check(ConnectionDone, ConnectionLost) is expected


@asynchronous
async def test_a_silent_relay_can_be_cut() -> None:
    """
    It is how a broken line is noticed at last.
    """
    async with Served() as served, relaying(served.port) as relay:
        client, server = await served.through(relay)
        relay.silence()
        client.send(b"lost")
        late = await connect(relay.port)
        await relay.whenAccepted(2)
        await relay.cut()
        for wire in (client, server, late):
            await wire.whenClosed()
        assert server.received == b""
        relay.resume()
        assert relay.connections == 0


@asynchronous
async def test_a_relay_refuses_and_accepts_again_on_its_port() -> None:
    """
    A client goes on with the address that it was given.
    """
    async with Served() as served, relaying(served.port) as relay:
        client, _ = await served.through(relay)
        for _ in range(2):
            await relay.refuse()
        assert refusal(relay.port) is ConnectionRefusedError
        assert not client.closed
        for _ in range(2):
            await relay.accept()
        await served.through(relay)
        client.leave()
        await client.whenClosed()


@asynchronous
async def test_a_relay_to_nowhere_resets_its_clients() -> None:
    """
    A server that is down must not look like one that does not answer.
    """
    with reservedPort() as port:
        async with relaying(port) as relay:
            client = await connect(relay.port)
            await client.whenClosed()
            assert relay.connections == 0


@asynchronous
async def test_a_database_is_reached_through_a_relay(database: Database) -> None:
    """
    It is what the relay is for; the target can be changed as well.
    """
    server = database.server
    with reservedPort() as port:
        async with relaying(port) as relay:
            relay.target = server.port
            url = server.urlFor(database=database.name, port=relay.port)
            assert await inThread(_one, url) == (1,)
            assert relay.accepted == 1


@asynchronous
async def test_a_black_hole_accepts_and_stays_silent() -> None:
    """
    A limit of time is the only thing that ends a wait for such a server.
    """
    async with blackHole() as hole:
        accepted = hole.whenAccepted(2)
        given = hole.whenAccepted(3)
        clients = [await connect(hole.port) for _ in range(2)]
        await accepted
        given.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        for client in clients:
            client.send(b"anybody there?")
        await pause(0.1)
        assert [client.closed for client in clients] == [False, False]
        assert hole.accepted == 2
    for client in clients:
        assert await client.whenClosed() == b""


def test_a_connection_to_a_port_can_stay_unanswered() -> None:
    """
    That is another limit than the one for what is said on a connection.
    """
    with unanswered() as port:
        assert refusal(port) is TimeoutError


def test_a_census_counts_what_a_process_holds() -> None:
    """
    A count that misses something finds no leak.
    """
    before = Census.of()
    assert before.grownFrom(before, memory=0) == {}
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with create_connection(listening.getsockname()) as client:
            server, _ = listening.accept()
            memory = bytes(2**25).replace(b"\0", b"1")
            client.close()
            grown = Census.of().grownFrom(before, memory=2**24)
            server.close()
    stop.set()
    thread.join()
    assert len(memory) == 2**25
    assert grown.pop("memory") > 2**24
    assert grown == {"threads": 1, "files": 2, "connections": 1}
    assert Census.of().grownFrom(before, memory=2**26) == {}


@asynchronous
async def test_a_census_is_taken_of_other_processes_too(
    ownPostgresql: PostgreSQL,
) -> None:
    """
    What is measured in the process of the tests is also theirs.
    """
    await ownPostgresql.start()
    assert ownPostgresql._process is not None
    census = Census.of(ownPostgresql._process.pid)
    assert census.threads == 1
    assert census.connections == 0
    assert census.files > 3
    assert census.memory > 2**20


def test_a_full_disk_is_full_for_sqlite_and_has_room_again(
    smallDisk: SmallDisk,
) -> None:
    """
    The real error of a full disk comes from the system alone; an artificial
    limit has others.
    """
    path = smallDisk.directory / "users.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (b blob)")
        smallDisk.fill()
        with pytest.raises(sqlite3.OperationalError) as raised:
            connection.execute("insert into t values (zeroblob(100000))")
        assert raised.value.sqlite_errorname == "SQLITE_FULL"
        smallDisk.free()
        connection.execute("insert into t values (zeroblob(100000))")
        assert connection.execute("select count(*) from t").fetchone() == (1,)
