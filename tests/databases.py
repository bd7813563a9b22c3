"""
What the tests of databases need: a PostgreSQL that they start, stop, kill and
pause as they like.

The fixtures are imported by name, C{from .databases import postgresql as
postgresql}: what they share is made once for all modules that do. Without
PostgreSQL a test that needs it is skipped, unless C{TSRV_DATABASES} is
C{required}.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from select import POLLIN, poll
from signal import SIGCONT, SIGINT, SIGQUIT, Signals
from time import monotonic
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import pytest
from twisted.internet.defer import Deferred

from ._postgresql import (
    PASSWORD,
    Installation,
    Missing,
    destroy,
    family,
    halt,
    inThread,
    send,
)
from .websupport import reservedPort

__all__ = [
    "Database",
    "PostgreSQL",
    "database",
    "ownPostgresql",
    "postgresql",
]

_T = TypeVar("_T")

_LONG = 30.0
"""
No step of a server takes so long, in seconds.
"""

_SETTINGS = {
    # What was written survives the death of the processes without it.
    "fsync": "off",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "16MB",
    # Files in the server's directory: a server that is killed leaves none in
    # /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "",
}


@cache
def _installed() -> Installation | Missing:
    try:
        return Installation()
    except Missing as missing:
        return missing


@cache
def _shared() -> PostgreSQL:
    with reservedPort() as port:
        server = PostgreSQL(_installation(), port)
        server.startNow()
    return server


def _installation() -> Installation:
    installation = _installed()
    if isinstance(installation, Missing):
        if os.environ.get("TSRV_DATABASES") == "required":
            raise installation
        pytest.skip(f"no PostgreSQL: {installation}")
    return installation


class PostgreSQL:
    """
    A server of PostgreSQL on a port of the loopback interface that stays its
    own while it is down.

    Each method that waits answers a Deferred; that of the same name with C{Now}
    blocks, for tests without a reactor. What takes too long fails with what the
    server has logged.

    @ivar port: Its TCP port.
    @ivar directory: Its data directory.
    """

    user: ClassVar[str] = "postgres"
    password: ClassVar[str] = PASSWORD

    def __init__(self, installation: Installation, port: int) -> None:
        self._installation = installation
        self.port = port
        self.directory = installation.makeDirectory()
        self._process: subprocess.Popen[bytes] | None = None
        self._open = -1
        self._hold = self.directory / "hold"

    def start(self, **settings: str) -> Deferred[None]:
        """
        Start it.

        @param settings: More settings, or others.
        @return: A Deferred that fires when it accepts connections.
        """
        return inThread(lambda: self.startNow(**settings))

    def startNow(self, **settings: str) -> None:
        """
        Start it, and wait until it accepts connections.
        """
        (self.directory / "recovery.signal").unlink(missing_ok=True)
        self._start("ready", settings)

    def startHeld(self, **settings: str) -> Deferred[None]:
        """
        Start it, but keep it from being ready: until L{letIn} is called it
        refuses connections because "the database system is starting up".

        @return: A Deferred that fires when it does.
        """
        return inThread(lambda: self.startHeldNow(**settings))

    def startHeldNow(self, **settings: str) -> None:
        """
        Start it, keep it from being ready, and wait until it refuses connections
        for that.
        """
        # It recovers from an archive whose first file it is long in getting.
        self._hold.unlink(missing_ok=True)
        os.mkfifo(self._hold)
        self._hold.chmod(0o666)
        signal = self.directory / "recovery.signal"
        signal.touch()
        signal.chmod(0o666)
        self._start(
            "starting",
            {
                "restore_command": "test -p hold && cat hold; false",
                "hot_standby": "off",
                **settings,
            },
        )

    def letIn(self) -> Deferred[None]:
        """
        Let a server that was held become ready.

        @return: A Deferred that fires when it accepts connections.
        """
        return inThread(self.letInNow)

    def letInNow(self) -> None:
        """
        Let a server that was held become ready, and wait until it is.
        """
        assert self._process is not None, "it does not run"
        # Whoever has opened it to read gets the end of it; others do not find
        # it any more.
        writing = os.open(self._hold, os.O_RDWR)
        self._hold.unlink()
        os.close(writing)
        self._waitFor("ready")

    def kill(self) -> Deferred[None]:
        """
        Kill it, and all that it has started, with SIGKILL.

        @return: A Deferred that fires when all of them are gone.
        """
        return inThread(self.killNow)

    def killNow(self) -> None:
        """
        Kill it, and all that it has started, with SIGKILL; wait until all of
        them are gone. Does nothing when it does not run.
        """
        if self._process is not None:
            destroy(halt(self._process.pid), _LONG)
            self._reap()

    def stop(self) -> Deferred[None]:
        """
        Stop it as an administrator does: it ends all connections, with a word
        to their clients, and writes everything down.

        @return: A Deferred that fires when it is gone.
        """
        return inThread(self.stopNow)

    def stopNow(self, signal: Signals = SIGINT) -> None:
        """
        Stop it, and wait until it is gone. Does nothing when it does not run.

        @param signal: SIGQUIT to have it end its processes at once, as after a
            crash of one.
        """
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal)
            self._reap()

    def restart(self) -> Deferred[None]:
        """
        Stop it, and start it again.

        @return: A Deferred that fires when it accepts connections.
        """
        return inThread(self.restartNow)

    def restartNow(self) -> None:
        """
        Stop it, start it again, and wait until it accepts connections.
        """
        self.stopNow()
        self.startNow()

    def pause(self) -> None:
        """
        Stop its processes where they are: connections are accepted, by the
        system, and nobody answers.
        """
        if self._process is not None:
            halt(self._process.pid)

    def resume(self) -> None:
        """
        Let its processes go on.
        """
        if self._process is not None:
            for pid in family(self._process.pid):
                send(pid, SIGCONT)

    @property
    def running(self) -> bool:
        """
        Whether it was started, and neither stopped nor killed.
        """
        return self._process is not None

    @property
    def url(self) -> str:
        """
        What its administrator connects to.
        """
        return self.urlFor()

    def urlFor(
        self,
        user: str = user,
        password: str | None = password,
        database: str = "postgres",
        port: int | None = None,
    ) -> str:
        """
        @param user: Who connects.
        @param password: With which password; None to name none.
        @param database: To which database.
        @param port: By which port, if that is not the server's own.
        @return: The URL.
        """
        secret = "" if password is None else f":{quote(password, safe='')}"
        who = f"{quote(user, safe='')}{secret}"
        return f"postgresql://{who}@127.0.0.1:{port or self.port}/{quote(database)}"

    def ask(
        self, sql: str, *parameters: object, database: str = "postgres"
    ) -> Deferred[list[tuple[Any, ...]]]:
        """
        Run one statement, as its administrator, over a connection of its own.

        @return: A Deferred that fires with the rows.
        """
        return inThread(lambda: self.askNow(sql, *parameters, database=database))

    def askNow(
        self, sql: str, *parameters: object, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """
        Run one statement, as its administrator, over a connection of its own.

        @return: The rows.
        """
        from psycopg import connect

        url = self.urlFor(database=database)
        with connect(url, autocommit=True, connect_timeout=int(_LONG)) as connection:
            # Text that is not known to be constant is taken for SQL as bytes.
            cursor = connection.execute(sql.encode(), parameters or None)
            return [] if cursor.description is None else cursor.fetchall()

    def clients(self) -> Deferred[Counter[str]]:
        """
        @return: A Deferred that fires with the number of connections to each
            database, without that which asks.
        """
        return inThread(self.clientsNow)

    def clientsNow(self) -> Counter[str]:
        """
        @return: The number of connections to each database, without that which
            asks.
        """
        return Counter(
            name
            for (name,) in self.askNow(
                "select datname from pg_stat_activity where pid <> pg_backend_pid()"
                " and backend_type = 'client backend'"
            )
        )

    @property
    def log(self) -> str:
        """
        What it has logged since it was made.
        """
        try:
            return (self.directory / "log").read_text()
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        """
        End it, and remove its data.
        """
        self.resume()
        with suppress(AssertionError):
            self.stopNow(SIGQUIT)
        self.killNow()
        self._installation.removeDirectory(self.directory)

    def _start(self, status: str, settings: Mapping[str, str]) -> None:
        assert self._process is None, "it runs already"
        settings = {**_SETTINGS, "port": str(self.port), **settings}
        # All its processes have one end of it: it is closed when all are gone.
        self._open, end = os.pipe()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [
                    self._installation.programs / "postgres",
                    f"-D{self.directory}",
                    *(f"-c{name}={value}" for name, value in settings.items()),
                ],
                cwd=self.directory,
                env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[end],
                # An interrupt from the terminal is for the tests alone.
                start_new_session=True,
                **self._installation.user,
            )
        os.close(end)
        self._waitFor(status)

    def _waitFor(self, status: str) -> None:
        """
        Wait until the server's own file tells of a status.
        """
        assert self._process is not None, "it does not run"
        file = self.directory / "postmaster.pid"
        expected = [str(self._process.pid), status]
        deadline = monotonic() + _LONG
        while monotonic() < deadline:
            with suppress(FileNotFoundError):
                lines = file.read_text().splitlines()
                if [line.strip() for line in lines[:1] + lines[7:]] == expected:
                    return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.01)
                self._reap()
                break
        raise AssertionError(f"PostgreSQL is not {status}: {self.log}")

    def _reap(self) -> None:
        """
        Wait until all its processes are gone.
        """
        assert self._process is not None
        ending = poll()
        ending.register(self._open, POLLIN)
        if not ending.poll(_LONG * 1000):
            raise AssertionError(f"PostgreSQL did not end: {self.log}")
        self._process.wait(_LONG)
        self._process = None
        os.close(self._open)


@dataclass(frozen=True)
class Database:
    """
    An empty database of a test on the server that the tests share.
    """

    server: PostgreSQL
    name: str

    @property
    def url(self) -> str:
        """
        What its owner connects to.
        """
        return self.server.urlFor(database=self.name)

    def ask(self, sql: str, *parameters: object) -> Deferred[list[tuple[Any, ...]]]:
        """
        Run one statement over a connection of its own.

        @return: A Deferred that fires with the rows.
        """
        return self.server.ask(sql, *parameters, database=self.name)

    def askNow(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """
        Run one statement over a connection of its own.

        @return: The rows.
        """
        return self.server.askNow(sql, *parameters, database=self.name)


_numbers = count(1)


@cache
def _prepared(config: pytest.Config) -> Installation:
    """
    @return: The installation, which is removed when the tests have ended.
    """
    installation = _installation()

    def end() -> None:
        if _shared.cache_info().currsize:
            _shared().remove()
        installation.remove()

    config.add_cleanup(end)
    return installation


@pytest.fixture
def postgresql(request: pytest.FixtureRequest) -> PostgreSQL:
    """
    The server that the tests share, which runs. It is not to be stopped.
    """
    _prepared(request.config)
    return _shared()


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """
    An empty database, on the server that the tests share.
    """
    _prepared(request.config)
    server = _shared()
    name = f"test{next(_numbers)}"
    server.askNow(f"create database {name}")
    yield Database(server, name)
    server.askNow(f"drop database {name} with (force)")


@pytest.fixture
def ownPostgresql(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """
    A server for one test, which does not run yet.
    """
    installation = _prepared(request.config)
    with reservedPort() as port:
        server = PostgreSQL(installation, port)
        yield server
        server.remove()
