"""
The databases of tests.

The fixtures are imported by name, C{from .databases import postgresql as
postgresql}: all modules share one server. Without PostgreSQL or PgBouncer a test that
needs it is skipped, unless C{TSRV_DATABASES} is C{required}.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredList

from tsrv import databases
from tsrv.databases import Schema, Settings

from .postgresql_server import PASSWORD, Installation, Missing, PostgreSQL
from .websupport import reservedPort

__all__ = [
    "Database",
    "PostgreSQL",
    "database",
    "errorOf",
    "opened",
    "ownPostgresql",
    "pooler",
    "postgresql",
    "watchedSockets",
]


NAME = "test"
"""
The name of the database that tests use in turn.
"""


async def errorOf(deferred: Deferred[Any]) -> BaseException:
    """
    @return: The error with which a Deferred fails.
    """
    ((success, result),) = await DeferredList([deferred], consumeErrors=True)
    assert not success, result
    error: BaseException = result.value
    return error


def watchedSockets() -> list[Any]:
    """
    @return: The sockets of PostgreSQL connections that the reactor watches.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    watched = [*reactor.getReaders(), *reactor.getWriters()]
    return [each for each in watched if each.logPrefix() == "PostgreSQL"]


@asynccontextmanager
async def opened(
    url: str, schemas: Sequence[Schema] = (), **settings: Any
) -> AsyncIterator[databases.Database]:
    """
    An initialised database that has released everything when it is closed.
    """
    from twisted.internet import reactor

    module = databases.Database(reactor, url, schemas, Settings(**settings))
    try:
        await module.initialize()
        yield module
    finally:
        await module.close()
    assert watchedSockets() == []


@dataclass(frozen=True)
class Database:
    """
    An empty database for one test, on the server that the tests share.
    """

    server: PostgreSQL
    name: str

    @property
    def url(self) -> str:
        return self.server.urlFor(database=self.name)

    def ask(self, sql: str, *parameters: object) -> Deferred[list[tuple[Any, ...]]]:
        """
        Run one statement over a connection of its own.
        """
        return self.server.ask(sql, *parameters, database=self.name)

    def countConnections(self) -> Deferred[list[tuple[Any, ...]]]:
        """
        Count the connections to this database.
        """
        return self.server.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", self.name
        )

    def endConnections(self, where: str = "true") -> Deferred[list[tuple[Any, ...]]]:
        """
        Have the server end connections to this database.

        @param where: A condition on C{pg_stat_activity}, as SQL.
        """
        return self.server.ask(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {where} "  # noqa: S608
            "AND datname = %s AND pid <> pg_backend_pid()",
            self.name,
        )


@cache
def _installation() -> Installation | Missing:
    try:
        return Installation()
    except Missing as missing:
        return missing


@cache
def _shared(installation: Installation) -> PostgreSQL:
    with reservedPort() as port:
        server = PostgreSQL(installation, port)
        server.startNow()
    server.askNow(f"create database {NAME}")
    return server


@cache
def _prepared(config: pytest.Config) -> Installation:
    """
    @return: The installation, which is removed after the tests.
    """
    installation = _installation()
    if isinstance(installation, Missing):
        if os.environ.get("TSRV_DATABASES") == "required":
            raise installation
        pytest.skip(f"no PostgreSQL: {installation}")
    config.add_cleanup(installation.remove)
    return installation


@pytest.fixture
def postgresql(request: pytest.FixtureRequest) -> PostgreSQL:
    """
    The server that the tests share; it must not be stopped.
    """
    return _shared(_prepared(request.config))


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """
    An empty database on the server that the tests share.
    """
    server = _shared(_prepared(request.config))
    yield Database(server, NAME)
    # Creating a new database would take longer. Wait for the end of each connection.
    server.askNow(
        "select pg_terminate_backend(pid, 30000) from pg_stat_activity "
        "where datname = %s",
        NAME,
    )
    server.askNow(
        "drop schema public cascade; create schema public; "
        "grant usage on schema public to public",
        database=NAME,
    )


@pytest.fixture
def pooler(database: Database, tmp_path: Path) -> Iterator[str]:
    """
    The URL of the database behind PgBouncer, which lends its only connection to the
    server for one transaction at a time.
    """
    program = which("pgbouncer") or which("pgbouncer", path="/usr/sbin")
    if program is None:
        if os.environ.get("TSRV_DATABASES") == "required":
            raise Missing("PgBouncer is not installed")
        pytest.skip("no PgBouncer")
    target = f"host=127.0.0.1 port={database.server.port}"
    with reservedPort() as port:
        configuration = tmp_path / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n{database.name} = {target} "
            f"user=postgres password='{PASSWORD}'\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
            "default_pool_size = 1\n"
        )
        # PgBouncer refuses to run as root, and reads its file before it changes the
        # user.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with (tmp_path / "pgbouncer.log").open("w") as log:
            command = [program, *user, str(configuration)]
            process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        try:
            while f"listening on 127.0.0.1:{port}" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
            yield f"postgresql://postgres@127.0.0.1:{port}/{database.name}"
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def ownPostgresql(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """
    A stopped server for one test.
    """
    installation = _prepared(request.config)
    with reservedPort() as port:
        server = PostgreSQL(installation, port)
        yield server
        server.remove()
