"""
SQLite's file: how it is opened, and whether it is still there.

All of this is for the threads: it waits for the disk.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from stat import S_ISREG
from threading import Event
from typing import Final

from .interface import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Row,
    Schema,
    Settings,
)
from .schema import (
    CREATE,
    VERSIONS,
    stepsTo,
)
from .sqlitebatch import (
    LATER,
    Moved,
    codeOf,
    primaryOf,
)

__all__ = ["File", "Link"]

_TRANSIENT: Final = {
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_SCHEMA,
}
"""
What may be better in a while.
"""

_TRANSIENT_ERRNO: Final = {
    errno.EAGAIN,
    errno.EDQUOT,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETIMEDOUT,
}

_ADVICE: Final = {
    sqlite3.SQLITE_AUTH: "look at who may use it",
    sqlite3.SQLITE_CANTOPEN: "look at its directory, and at who may write there",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it from a backup",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: give another path, or move it",
    sqlite3.SQLITE_PERM: "look at who may use it",
    sqlite3.SQLITE_READONLY: "look at who may write to it, and to its directory",
}
"""
What to do about what stays.
"""

_AGAIN: Final = 0.01
"""
How long to wait for a lock for which SQLite itself does not wait, in seconds.
"""


def _identityOf(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class Link:
    """
    A connection, from the moment in which it is there.

    @ivar connection: The connection; only its thread uses it. Others may
        interrupt it.
    @ivar late: Set when whoever waits for a lock has to give up.
    """

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None
        self.late = Event()

    def interrupt(self) -> None:
        """
        End what is being carried out; from any thread.
        """
        self.late.set()
        connection = self.connection
        if connection is not None:
            # It may be being closed.
            with suppress(sqlite3.ProgrammingError):
                connection.interrupt()

    def close(self) -> None:
        """
        Close the connection.
        """
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class File:
    """
    The file at a path, which has to stay the same from when it is first opened.
    """

    def __init__(
        self, path: str, schemas: Sequence[Schema], settings: Settings
    ) -> None:
        """
        @param path: Where it is.
        @param schemas: The tables that have to be there.
        @param settings: How it is used.
        """
        self._given = self._path = path
        self._schemas = schemas
        self._patience = min(settings.connectTimeout, settings.statementTimeout)
        self._identity: tuple[int, int] | None = None
        self._log: str | None = None
        self._logIdentity: tuple[int, int] | None = None

    def check(self) -> None:
        """
        @raise Moved: Another file is at the path, or none; or so with its log,
            in which is what was written last.
        """
        try:
            if _identityOf(self._path) != self._identity:
                raise Moved
            if self._log is not None and _identityOf(self._log) != self._logIdentity:
                raise Moved
        except OSError as error:
            raise Moved from error

    def openWriter(self, link: Link) -> None:
        """
        Open the file for writing, and bring its schema up to date. If there is
        none, it is made, for the eyes of its owner.

        @raise DatabaseRefused: That is not possible.
        @raise DatabaseUnavailable: It may be possible later.
        """
        with self._explained():
            self._make()
            self._open(link)
            self._upgrade(link)
            # It is there as long as a connection is.
            log = f"{self._path}-wal"
            self._logIdentity = _identityOf(log)
            self._log = log

    def openReader(self, link: Link) -> None:
        """
        Open the file, once it has been opened for writing, for reading.

        @raise DatabaseRefused: That is not possible.
        @raise DatabaseUnavailable: It may be possible later.
        """
        with self._explained():
            self._open(link).execute("PRAGMA query_only = ON")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DatabaseError, DatabaseUnavailable):
            raise
        except Exception as error:
            raise self._refusal(error) from error

    def _make(self) -> None:
        # What begins with a slash is nothing else than a path to SQLite.
        self._path = os.path.realpath(self._given)
        if os.path.exists(f"{self._path}-wal") and not os.path.exists(self._path):
            raise DatabaseRefused(
                f"{self._given} is missing, but its log is there, with what was "
                f"written last: put the file back, or move {self._given}-wal away"
            )
        # One that is there must not be opened here: to close it would give up
        # the locks that this process has by its other connections.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, mode=0o600))
        status = os.stat(self._path)
        if not S_ISREG(status.st_mode):
            raise DatabaseRefused(f"{self._given} is not a file: give another path")
        if not os.access(self._path, os.W_OK):
            raise DatabaseRefused(
                f"{self._given} may not be written to: "
                f"{_ADVICE[sqlite3.SQLITE_READONLY]}"
            )
        self._identity = status.st_dev, status.st_ino
        self._log = None

    def _open(self, link: Link) -> sqlite3.Connection:
        connection = link.connection = sqlite3.connect(
            self._path,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
        )
        self.check()
        execute = connection.execute
        execute("PRAGMA trusted_schema = OFF")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA temp_store = MEMORY")
        mode = self._useLog(link, connection)
        if mode != "wal":
            raise DatabaseRefused(
                f"{self._given} is where SQLite cannot share memory between "
                f"processes (journal mode {mode}): put it on a local disk"
            )
        execute("PRAGMA synchronous = FULL")
        # A log that has once grown large need not stay so.
        execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        return connection

    def _useLog(self, link: Link, connection: sqlite3.Connection) -> object:
        while True:
            try:
                return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.Error as error:
                # When several begin to use a new file, SQLite does not wait.
                if primaryOf(error) != sqlite3.SQLITE_BUSY or link.late.wait(_AGAIN):
                    raise

    def _versions(self, connection: sqlite3.Connection) -> list[Row] | None:
        try:
            return connection.execute(VERSIONS.sql).fetchall()
        except sqlite3.OperationalError as error:
            if codeOf(error) != sqlite3.SQLITE_ERROR:
                raise
            # There is no such table.
            return None

    def _upgrade(self, link: Link) -> None:
        connection = link.connection
        assert connection is not None
        # Who has nothing to do need not wait for who writes.
        versions = self._versions(connection)
        if versions is not None and not stepsTo(self._schemas, "sqlite", versions):
            return
        execute = connection.execute
        # What fails in between is rolled back when the connection is closed.
        execute("BEGIN IMMEDIATE")
        execute(CREATE.sql)
        versions = execute(VERSIONS.sql).fetchall()
        for statement, parameters in stepsTo(self._schemas, "sqlite", versions):
            execute(statement.sql, tuple(parameters))
        execute("COMMIT")

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, Moved):
            return DatabaseUnavailable(f"{self._given} has been moved", LATER)
        if isinstance(error, OSError):
            text = f"cannot open {self._given}: {error.strerror}"
            if error.errno in _TRANSIENT_ERRNO:
                return DatabaseUnavailable(text, LATER)
            return DatabaseRefused(f"{text}: give another path, or make way for it")
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        text = f"cannot open {self._given}: {error} ({name})"
        primary = primaryOf(error)
        if primary in _TRANSIENT:
            return DatabaseUnavailable(text, LATER, name)
        advice = _ADVICE.get(primary, "its tables are not what they have to be")
        return DatabaseRefused(f"{text}: {advice}", name)
