"""
A laboratory for SQLite: real files and threads, and a disk that fails on command.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pytest
from twisted.internet.task import Clock

from tsrv.databases import Database, Schema, Settings, Statement

from .support import Result, resultOf

__all__ = [
    "ADD",
    "ALL",
    "GET",
    "LONG",
    "SCHEMA",
    "Disk",
    "Gate",
    "Hook",
    "Lab",
    "connect",
    "files",
    "make",
    "namesIn",
    "running",
    "trouble",
]

SCHEMA = Schema(
    "things",
    {
        "sqlite": [
            [
                "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE, "
                "size INTEGER NOT NULL DEFAULT 1 CHECK (size > 0))",
                "CREATE TABLE parts (name TEXT PRIMARY KEY, thing INTEGER "
                "REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED, "
                "other INTEGER REFERENCES things (id))",
            ]
        ]
    },
)

ADD = Statement("INSERT INTO things (name) VALUES (?) RETURNING id")

ALL = Statement("SELECT name FROM things ORDER BY id")

GET = Statement("SELECT name FROM things WHERE id = ?")

LONG = 30.0
"""
Maximum time for one step of a thread, in seconds.
"""

WATCHED = 0.11
"""
Maximum interval of the timer that watches a working thread, in seconds.
"""

Hook = Callable[[], object]

connect = sqlite3.connect
"""
SQLite's own function, for connections of other processes.
"""


class Gate:
    """
    A hook at which a thread waits until the test opens it.
    """

    def __init__(self, lab: Lab, then: Hook = lambda: None) -> None:
        self.reached = Event()
        self._opened = Event()
        self._lab = lab
        self._then = then

    def __call__(self) -> None:
        self.reached.set()
        assert self._opened.wait(LONG)
        self._then()

    def wait(self) -> None:
        while any(call.getTime() <= self._lab.seconds() for call in self._lab.calls):
            self._lab.advance(0)
        assert self.reached.wait(LONG)

    def open(self) -> None:
        self._opened.set()


class Disk:
    """
    SQLite, with control over some statements.

    @ivar hooks: Functions that are called, in the thread, before statements that begin
        with a text. If a function returns a cursor, that cursor replaces the result.
    @ivar made: The connections.
    @ivar onConnect: Called before a connection is made.
    @ivar onClose: Called before a connection is closed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.hooks: dict[str, Hook] = {}
        self.made: list[Connection] = []
        self.onConnect: Hook = lambda: None
        self.onClose: Hook = lambda: None
        monkeypatch.setattr(sqlite3, "connect", self._connect)

    def _connect(self, *arguments: Any, **options: Any) -> Connection:
        self.onConnect()
        connection = Connection(self, connect(*arguments, **options))
        self.made.append(connection)
        return connection


class Connection:
    """
    A connection that obeys the disk.

    @ivar closed: Whether the connection was closed.
    @ivar interrupts: The number of interrupts.
    """

    def __init__(self, disk: Disk, connection: sqlite3.Connection) -> None:
        self.closed = False
        self.interrupts = 0
        self._disk = disk
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        for text, hook in list(self._disk.hooks.items()):
            if sql.startswith(text):
                result = hook()
                if isinstance(result, sqlite3.Cursor):
                    return result
        return self._connection.execute(sql, parameters)

    def interrupt(self) -> None:
        self.interrupts += 1
        self._connection.interrupt()

    def close(self) -> None:
        self._disk.onClose()
        self.closed = True
        self._connection.close()


class Lab(Disk, Clock):
    """
    A disk, real threads, and a clock that the test advances.

    @ivar path: The path of the file.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__(monkeypatch)
        self.path = path
        self._fromThreads: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def callFromThread(self, *call: Any) -> None:
        self._fromThreads.put(call)

    def deliver(self) -> None:
        function, *arguments = self._fromThreads.get(timeout=LONG)
        function(*arguments)

    def work(self, *until: Result) -> None:
        # Without results: until all threads are idle.
        while not until or any(each.pending for each in until):
            near = min(
                (call.getTime() - self.rightNow for call in self.calls), default=9
            )
            if near <= 0:
                self.advance(0)
            elif until or near <= WATCHED or not self._fromThreads.empty():
                self.deliver()
            else:
                return

    def gate(self, text: str, then: Hook = lambda: None) -> Gate:
        gate = self.hooks[text] = Gate(self, then)
        return gate

    def count(self, text: str) -> list[str]:
        counted: list[str] = []
        self.hooks[text] = lambda: counted.append(text)
        return counted

    def make(self, **settings: Any) -> Database:
        return make(self, self.path, **settings)

    def open(self, **settings: Any) -> Database:
        database = self.make(**settings)
        opening = resultOf(database.initialize())
        self.work(opening)
        assert opening.value is None
        return database

    def refused(self, **settings: Any) -> BaseException:
        opening = resultOf(self.make(**settings).initialize())
        self.work(opening)
        assert running() == files() == []
        return opening.error

    def end(self, database: Database) -> None:
        closed = resultOf(database.close())
        self.work(closed)
        assert closed.value is None

    def together(self, database: Database, *calls: Any) -> list[Result]:
        results = [resultOf(database.write(*call)) for call in calls]
        self.work(*results)
        return results

    def find(self, database: Database, *call: Any) -> Any:
        result = resultOf(database.read(*call))
        self.work(result)
        return result.value

    def names(self) -> list[str]:
        return namesIn(self.path)


def trouble(code: str) -> Hook:
    """
    @return: A hook that fails as SQLite or the system does.
    """

    def hook() -> None:
        if code.startswith("E"):
            raise OSError(getattr(errno, code), f"text of {code}")
        error = sqlite3.OperationalError(f"text of {code}")
        error.sqlite_errorname = code
        error.sqlite_errorcode = getattr(sqlite3, code)
        raise error

    return hook


def make(reactor: Any, path: Path, **settings: Any) -> Database:
    """
    @return: A database that is not initialised yet.
    """
    return Database(reactor, f"sqlite:{path}", [SCHEMA], Settings(**settings))


def namesIn(path: Path) -> list[str]:
    """
    @return: The names that another process finds in the database.
    """
    with closing(connect(path)) as connection:
        return [name for (name,) in connection.execute(ALL.sql).fetchall()]


def files() -> list[str]:
    """
    @return: The database files that this process has open.
    """
    links = [f"/proc/self/fd/{entry}" for entry in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [target for target in targets if ".db" in target]


def running() -> list[str]:
    """
    @return: The names of the threads that have not ended.
    """
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("tsrv-")]
