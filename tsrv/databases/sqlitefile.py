"""
The file of SQLite: opens the file, and checks that it is still in its place.

SQLite first writes changes to a write-ahead log beside the file. The log belongs to
this file alone. If another file took its place, SQLite would apply the log to that
file, and mix the two databases. So if the file in use was moved, the database waits for
it. If the file was replaced, the database refuses the new one, and moves the log out of
its way.

Errors of SQLite are named after their extended result codes. Each name begins with the
name of the primary code.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pwd import getpwuid
from threading import Event, Lock
from time import monotonic
from typing import Final

from .interface import DatabaseRefused, DatabaseUnavailable, Row, Schema, Settings
from .schema import upgrade

__all__ = [
    "DAMAGED",
    "TEMPORARY",
    "Connection",
    "File",
    "FileMoved",
    "nameOf",
]

TEMPORARY: Final = re.compile(
    "SQLITE_(ABORT|BUSY|CORRUPT|FULL|INTERRUPT|IOERR|LOCKED|NOMEM|PROTOCOL|SCHEMA)|"
    "FileMoved|"
    "E(AGAIN|DQUOT|IO|MFILE|NFILE|NOMEM|NOSPC|STALE|TIMEDOUT)$"
)
"""
Errors whose cause is neither the statement nor the path.
"""

_ADVICE: Final = {
    "EDQUOT": "make room on the disk",
    "EISDIR": "give another path",
    "ENAMETOOLONG": "give a shorter path",
    "ENOENT": "create the directory {directory}, or give another path",
    "ENOSPC": "make room on the disk",
    "ENOTDIR": "{directory} is not a directory: give another path",
    "EROFS": "give a path on a file system that is not read-only",
    "SQLITE_CORRUPT": "the file is damaged: restore it from a backup",
    "SQLITE_ERROR": "the tables belong to another program: give another path",
    "SQLITE_FULL": "make room on the disk",
    "SQLITE_NOTADB": "the file is not a database: give another path",
}

DAMAGED: Final = re.compile("SQLITE_(CORRUPT|NOTADB)")

_RESTORE: Final = "put a backup in its place"

_LOG: Final = "-wal"
_INDEX: Final = "-shm"

_MIN_BYTES: Final = 512
"""
Size of the smallest page. A file with a write-ahead log has at least one page.
"""

_LOCK_POLL_SECONDS: Final = 0.01
_MAX_IDLE_LOG_BYTES: Final = 64 * 1024 * 1024


class FileMoved(Exception):
    """
    The file is no longer at its path: further changes to it would be lost.

    @ivar isReplaced: Whether another file is at the path.
    @ivar isGone: Whether the file was deleted or truncated.
    """

    def __init__(
        self, message: str, *, isReplaced: bool = False, isGone: bool = False
    ) -> None:
        super().__init__(message)
        self.isReplaced = isReplaced
        self.isGone = isGone


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


def _user() -> str:
    user = os.geteuid()
    with suppress(KeyError):
        return f"the user {getpwuid(user).pw_name}"
    return f"the user {user}"


def _isTaken(name: str) -> bool:
    return any(os.path.lexists(name + suffix) for suffix in ("", _LOG, _INDEX))


class Connection:
    """
    A connection to the file. One thread uses it; any thread may interrupt it.

    @ivar sqlite: The connection, while it is open.
    @ivar interrupted: Set to stop the connection from waiting for a lock.
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
        Interrupt the running statement, if any.
        """
        self.interrupted.set()
        if (opened := self.sqlite) is not None:
            # The thread of the connection may be closing it.
            with suppress(sqlite3.ProgrammingError):
                opened.interrupt()

    def close(self) -> None:
        """
        Close the connection if it is open.
        """
        opened, self.sqlite = self.sqlite, None
        if opened is not None:
            # The last connection to close removes the log. Two connections that close
            # at the same time might both leave it.
            with self._closing:
                opened.close()


class File:
    """
    The file at a path. It must stay the same file while it has connections.
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
        self._known: File | None = None
        # The identities of the file at each of its paths; of the log and its index.
        self._identities: dict[str, tuple[int, int]] = {}
        self._helpers: dict[str, tuple[int, int]] = {}
        # Errors: the file was deleted, truncated or replaced; the file was replaced.
        self._end = self._replaced = ""
        self._lock = Lock()
        self._users = 0
        self._pin = -1

    def expect(self, known: File) -> None:
        """
        Open only the given file, which this process has used before, not another one.
        """
        if known._given == self._given:
            self._known = known

    def check(self) -> None:
        """
        Check that the file is still in its place.

        @raise FileMoved: The file, or its write-ahead log with the last changes, was
            moved, replaced, deleted or truncated.
        """
        self._checkItself()
        for path in self._helpers:
            if not self._isThere(path):
                raise FileMoved(f"{path} was moved or deleted while it was in use")

    def _checkItself(self) -> None:
        for path, identity in self._identities.items():
            try:
                status = os.stat(path)
            except OSError:
                status = None
            if status is None and self._pin >= 0 and not os.fstat(self._pin).st_nlink:
                raise FileMoved(
                    f"{self._given} was deleted while it was in use: {_RESTORE}, or "
                    "restart the server to begin with an empty database",
                    isGone=True,
                )
            if status is None:
                raise FileMoved(
                    f"{self._given} was moved while it was in use: put it back"
                )
            if (status.st_dev, status.st_ino) != identity:
                text = f"{self._given} was replaced while it was in use"
                raise FileMoved(text, isReplaced=True)
            if self._helpers and status.st_size < _MIN_BYTES:
                text = f"{self._given} was truncated while it was in use: {_RESTORE}"
                raise FileMoved(text, isGone=True)

    def setAside(self) -> str:
        """
        Move the write-ahead log away if its file was deleted, truncated or replaced.
        If the file was only moved, the log stays.

        @return: The error if the file was replaced, otherwise C{""}.
        """
        with self._lock:
            try:
                if not self._end:
                    self._checkItself()
            except FileMoved as error:
                self._setAside(error)
            return self._replaced

    def _setAside(self, error: FileMoved) -> None:
        if not (error.isGone or error.isReplaced):
            return
        log = ""
        if error.isGone or not self._isThere(self._path):
            names = (f"{self._path}.replaced{number or ''}" for number in count())
            name = next(each for each in names if not _isTaken(each))
            # SQLite would write the log into a truncated file.
            for path in filter(self._isThere, (self._path, *self._helpers)):
                suffix = path.removeprefix(self._path)
                os.rename(path, name + suffix)
                if suffix == _LOG:
                    log = f"; the last changes of the old file are in {name}{_LOG}"
        self._end = str(error)
        if error.isReplaced:
            self._replaced = self._end + log

    def _isThere(self, path: str) -> bool:
        identity = self._identities.get(path) or self._helpers[path]
        try:
            return _identityOf(path) == identity
        except OSError:
            return False

    def enter(self) -> None:
        """
        Note that one more thread uses the file.
        """
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """
        Note that a thread has closed its connection.
        """
        with self._lock:
            self._users -= 1
            if not self._users and self._pin >= 0:
                os.close(self._pin)
                self._pin = -1

    def openWriter(self, connection: Connection) -> None:
        """
        Open the file for writing, and bring the tables up to date. Only the owner of a
        new file can read it.
        """
        self._create()
        self._upgrade(self._open(connection))
        # SQLite keeps both helper files while a connection is open.
        for helper in (self._path + _LOG, self._path + _INDEX):
            self._helpers[helper] = _identityOf(helper)
        self._known = None

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
        if isinstance(error, FileMoved):
            return DatabaseUnavailable(str(error), name)
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"cannot open {self._given}: {reason} ({name})"
        if DAMAGED.match(name) and self._known is not None:
            return DatabaseUnavailable(f"{text}: {_RESTORE}", name)
        directory = os.path.dirname(os.path.abspath(self._given))
        if name in _ADVICE:
            text += ": " + _ADVICE[name].format(directory=directory)
        if TEMPORARY.match(name) and not DAMAGED.match(name):
            return DatabaseUnavailable(text, name)
        if name not in _ADVICE:
            text += (
                f": let {_user()} create files in the directory {directory}, where "
                "SQLite keeps its write-ahead log, too; or give another path"
            )
        return DatabaseRefused(text, name)

    def _create(self) -> None:
        # SQLite does not mistake an absolute path for a URI or for ":memory:".
        path = self._path = os.path.realpath(self._given)
        if self._known is not None:
            self._findAgain(self._known)
        else:
            self._createAnew(path)
        # The given path may be a symbolic link.
        for name in (path, os.path.abspath(self._given)):
            self._identities[name] = _identityOf(path)
        if not os.path.isfile(path):
            raise DatabaseRefused(f"{self._given} is not a file: give another path")
        if not os.access(path, os.R_OK | os.W_OK):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            raise DatabaseRefused(
                f"{self._given} has the mode {mode:03o}, and {_user()} cannot read and "
                "write it: change its mode or its owner, or give another path"
            )
        if hasattr(os, "O_PATH"):
            # Now no other file can get this identity. Closing O_PATH releases no lock.
            self._pin = os.open(path, os.O_PATH)

    def _createAnew(self, path: str) -> None:
        if os.path.exists(path + _LOG) and not os.path.exists(path):
            raise DatabaseRefused(
                f"{self._given} is missing, but its write-ahead log with the last "
                f"changes exists: put the file back, or move {path}{_LOG} away"
            )
        # Do not open an existing file: closing it would release the locks that other
        # connections of this process hold.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, mode=0o600))

    def _findAgain(self, known: File) -> None:
        replaced = known.setAside()
        if replaced:
            raise DatabaseRefused(f"{replaced}: restart the server to use the new file")
        if known._end:
            if not os.path.exists(self._path):
                raise FileMoved(known._end)
        else:
            known._checkItself()

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
                f"{self._given}: SQLite cannot use a write-ahead log there (journal "
                f"mode {mode}): move the file to a local disk"
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
                # SQLite itself does not wait when several processes open a new file.
                if not nameOf(error).startswith("SQLITE_BUSY"):
                    raise
                if monotonic() >= deadline or interrupted.wait(_LOCK_POLL_SECONDS):
                    raise

    def _upgrade(self, opened: sqlite3.Connection) -> None:
        # After an error, closing the connection rolls the transaction back.
        steps = upgrade(self._schemas, "sqlite")
        rows: list[Row] | None = None
        with suppress(StopIteration):
            while True:
                statement, parameters = steps.send(rows)
                rows = opened.execute(statement.sql, tuple(parameters)).fetchall()
