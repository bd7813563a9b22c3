"""
The file of SQLite: how a thread opens it, and whether it is still in its place.

An error of SQLite is known by the name of its extended result code, which begins
with the name of the primary code.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from threading import Event, Lock
from time import monotonic
from typing import Final

from .interface import DatabaseRefused, DatabaseUnavailable, Row, Schema, Settings
from .schema import upgrade

__all__ = [
    "TEMPORARY",
    "Connection",
    "File",
    "FileMoved",
    "nameOf",
]

TEMPORARY: Final = re.compile(
    "SQLITE_(ABORT|BUSY|FULL|INTERRUPT|IOERR|LOCKED|NOMEM|PROTOCOL|SCHEMA)|FileMoved|"
    "E(AGAIN|DQUOT|IO|MFILE|NFILE|NOMEM|NOSPC|STALE|TIMEDOUT)$"
)
"""
Errors for which neither the statement nor the path is to blame.
"""

_ADVICE: Final = {
    "ENOENT": "create the directory, or give another path",
    "SQLITE_CORRUPT": "the file is damaged: restore it from a backup",
    "SQLITE_ERROR": "the tables belong to another program",
    "SQLITE_NOTADB": "the file is not a database: give another path",
}

_LOCK_POLL_SECONDS: Final = 0.01
_MAX_IDLE_LOG_BYTES: Final = 64 * 1024 * 1024


class FileMoved(Exception):
    """
    The file is no longer at its path: nobody would find what is written to it.
    """


def nameOf(error: BaseException) -> str:
    """
    Return the name of SQLite's or the system's error code, or of the error's type.
    """
    if isinstance(error, MemoryError):
        return "SQLITE_NOMEM"
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "OSError")
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return name


def _identityOf(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class Connection:
    """
    A connection to the file. One thread uses it; any thread may interrupt it.

    @ivar sqlite: The connection, while it is open.
    @ivar interrupted: Set when nobody waits any more for the connection to open.
    """

    def __init__(self, closing: Lock) -> None:
        """
        @param closing: Held while any connection to the file closes.
        """
        self.sqlite: sqlite3.Connection | None = None
        self._closing = closing
        self.interrupted = Event()

    def interrupt(self) -> None:
        """
        End the statement that is running, if there is one.
        """
        self.interrupted.set()
        if (opened := self.sqlite) is not None:
            # Its thread may be closing it.
            with suppress(sqlite3.ProgrammingError):
                opened.interrupt()

    def close(self) -> None:
        """
        Close the connection if it is open.
        """
        opened, self.sqlite = self.sqlite, None
        if opened is not None:
            # The last connection to close removes the log. Two that close at the
            # same time may both leave it.
            with self._closing:
                opened.close()


class File:
    """
    The file at a path. It has to stay the same file while there are connections.
    """

    def __init__(
        self, path: str, schemas: Sequence[Schema], settings: Settings
    ) -> None:
        """
        @param path: The path; the file is created if it does not exist.
        @param schemas: The tables to create or upgrade.
        @param settings: The time limits.
        """
        self._given = self._path = path
        self._schemas = schemas
        self._lockTimeout = min(settings.connectTimeout, settings.statementTimeout)
        self._identities: dict[str, tuple[int, int]] = {}

    def check(self) -> None:
        """
        @raise FileMoved: The file, or its write-ahead log with what was written
            last, was moved, replaced or deleted.
        """
        for path, identity in self._identities.items():
            try:
                isSame = _identityOf(path) == identity
            except OSError:
                isSame = False
            if not isSame:
                raise FileMoved(f"{path} was moved")

    def openWriter(self, connection: Connection) -> None:
        """
        Open the file for writing, and bring its schema up to date. A new file is
        readable by its owner only.
        """
        self._create()
        self._upgrade(self._open(connection))
        # SQLite keeps the log as long as a connection is open.
        log = f"{self._path}-wal"
        self._identities[log] = _identityOf(log)

    def openReader(self, connection: Connection) -> None:
        """
        Open the file for reading, after it was opened for writing.
        """
        self._open(connection).execute("PRAGMA query_only = ON")

    def openingError(self, error: Exception) -> Exception:
        """
        Return the error to report when opening raised C{error}:
        L{DatabaseUnavailable} if a retry may help, otherwise L{DatabaseRefused}.
        """
        if isinstance(error, DatabaseRefused):
            return error
        name = nameOf(error)
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"cannot open {self._given}: {reason} ({name})"
        if TEMPORARY.match(name):
            return DatabaseUnavailable(text, name)
        advice = _ADVICE.get(name, "check the permissions of file and directory")
        return DatabaseRefused(f"{text}: {advice}", name)

    def _create(self) -> None:
        # SQLite does not mistake an absolute path for a URI or for ":memory:".
        path = self._path = os.path.realpath(self._given)
        if os.path.exists(f"{path}-wal") and not os.path.exists(path):
            raise DatabaseRefused(
                f"{self._given} is missing, but not its write-ahead log with what was "
                f"written last: put the file back, or move {path}-wal away"
            )
        # An existing file is not opened here: closing it would release the locks
        # that this process holds by other connections.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, mode=0o600))
        self._identities[path] = _identityOf(path)
        if not os.path.isfile(path):
            raise DatabaseRefused(f"{self._given} is not a file: give another path")
        if not os.access(path, os.W_OK):
            raise DatabaseRefused(f"{self._given} is not writable: change its owner")

    def _open(self, connection: Connection) -> sqlite3.Connection:
        opened = connection.sqlite = sqlite3.connect(
            self._path,
            timeout=self._lockTimeout,
            isolation_level=None,
            check_same_thread=False,
        )
        self.check()
        execute = opened.execute
        execute("PRAGMA trusted_schema = OFF")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA temp_store = MEMORY")
        mode = self._useLog(opened, connection.interrupted)
        if mode != "wal":
            raise DatabaseRefused(
                f"{self._given}: journal mode is {mode}, because SQLite cannot use a "
                "write-ahead log there: move the file to a local disk"
            )
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_LOG_BYTES}")
        return opened

    def _useLog(self, opened: sqlite3.Connection, interrupted: Event) -> object:
        deadline = monotonic() + self._lockTimeout
        while True:
            try:
                return opened.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.Error as error:
                # SQLite itself does not wait when several open a new file.
                if not nameOf(error).startswith("SQLITE_BUSY"):
                    raise
                if monotonic() >= deadline or interrupted.wait(_LOCK_POLL_SECONDS):
                    raise

    def _upgrade(self, opened: sqlite3.Connection) -> None:
        # Closing the connection rolls back what an error leaves behind.
        steps = upgrade(self._schemas, "sqlite")
        rows: list[Row] | None = None
        with suppress(StopIteration):
            while True:
                statement, parameters = steps.send(rows)
                rows = opened.execute(statement.sql, tuple(parameters)).fetchall()
