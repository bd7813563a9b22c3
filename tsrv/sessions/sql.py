"""
Sessions in a table of a database, SQLite or PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import ICountsFailures, ISettlesCalls, timeOfDay
from ..databases import (
    Database,
    IDatabase,
    Location,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from ..failures import failuresOf
from .basestore import BaseStore, Row
from .store import KEY_BYTES, ISessionStore, Limits, checkTable

__all__ = [
    "PostgreSQLSessionStore",
    "SQLSessionStore",
    "SQLiteSessionStore",
    "schemaOf",
]

TABLE: Final = "sessions"


def schemaOf(table: str = TABLE) -> Schema:
    """
    Describe the table of a L{SQLSessionStore}.

    @param table: The name of the table, by default C{sessions}.
    @return: The schema of the table, to be passed to the database.
    @raise ValueError: The name of the table is invalid.
    """
    checkTable(table)
    columns = (
        "key {} PRIMARY KEY, data {} NOT NULL, version {} NOT NULL, "
        "created {} NOT NULL, expires {} NOT NULL"
    )
    sqlite = columns.format("BLOB", "BLOB", "INTEGER", "REAL", "REAL")
    double = "double precision"
    postgresql = columns.format("bytea", "bytea", "bigint", double, double)
    index = f'CREATE INDEX "{table}_expires" ON "{table}" (expires)'
    return Schema(
        f"sessions:{table}",
        {
            "sqlite": [[f'CREATE TABLE "{table}" ({sqlite}) WITHOUT ROWID', index]],
            "postgresql": [[f'CREATE TABLE "{table}" ({postgresql})', index]],
        },
    )


@implementer(ISessionStore, ICountsFailures, ISettlesCalls)
class SQLSessionStore(BaseStore):
    """
    A store in a table of a database that the program uses for other tables, too::

        database = Database(reactor, url, [schemaOf(), *otherSchemas])
        store = SQLSessionStore(reactor, database, owned=False)
    """

    def __init__(
        self,
        reactor: Any,
        database: IDatabase | Database,
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        owned: bool = True,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param database: The database.
        @param table: The name of the table, by default C{sessions}.
        @param limits: Lifetimes and maximum size of sessions.
        @param owned: Whether the store initialises and closes the database. Otherwise
            the database must be initialised before the store.
        @raise ValueError: The name of the table is invalid.
        """
        super().__init__(reactor, limits)
        self._database = database
        self._owned = owned
        self._statements = _Statements(checkTable(table))

    @property
    def failures(self) -> Mapping[str, int]:
        """
        Numbers of statements that have failed, by code, if the store owns the database.
        """
        return failuresOf(self._database) if self._owned else {}

    def initialize(self) -> Deferred[None]:
        """
        Initialise the database, if the store owns it.

        @return: A Deferred that fires when the store can be used. It fails with the
            errors of the database.
        """
        if self.initialized:
            return succeed(None)
        if not self._owned:
            self._begin()
            return succeed(None)
        return self._database.initialize().addCallback(self._opened)

    def _opened(self, result: None) -> None:
        if not self.initialized:
            self._begin()
            lost = self._database.whenLost()
            lost.addCallbacks(lambda _: self._end(), self._lost)

    def _lost(self, reason: Failure) -> None:
        error = reason.value
        assert error is not None
        self._end(lambda: error)

    def close(self) -> Deferred[None]:
        """
        Close the database, if the store owns it.

        @return: A Deferred that fires when the store is closed.
        """
        self._end()
        return self._database.close() if self._owned else succeed(None)

    def _read(self, key: bytes) -> Deferred[Row | None]:
        rows = self._database.read(self._statements.read, key)
        return rows.addCallback(lambda found: found[0] if found else None)

    def _write(self, statement: Statement, *parameters: object) -> Deferred[list[Any]]:
        return self._database.write(statement, *parameters)

    def _insert(self, key: bytes, row: Row) -> Deferred[bool]:
        inserting = self._write(self._statements.insert, key, *row)
        return inserting.addCallbacks(lambda _: True, _keyExists)

    def _put(self, key: bytes, row: Row) -> Deferred[Any]:
        return self._write(self._statements.put, key, *row)

    def _replace(
        self, key: bytes, version: int, newKey: bytes, row: Row
    ) -> Deferred[bool]:
        now = timeOfDay(self._reactor)
        replacing = self._write(
            self._statements.replace, newKey, *row, key, version, now
        )
        return replacing.addCallback(bool)

    def _extend(self, key: bytes, before: float, expires: float) -> Deferred[Any]:
        return self._write(self._statements.extend, expires, key, before)

    def _delete(self, key: bytes, version: Any = None) -> Deferred[bool]:
        now = timeOfDay(self._reactor)
        if version is None:
            rows = self._write(self._statements.delete, key, now)
        else:
            rows = self._write(self._statements.deleteVersion, key, version, now)
        return rows.addCallback(lambda deleted: any(row[0] for row in deleted))

    def _count(self) -> Deferred[int]:
        rows = self._database.read(self._statements.count, timeOfDay(self._reactor))
        return rows.addCallback(lambda found: found[0][0])

    def _list(
        self, after: bytes, limit: int
    ) -> Deferred[Sequence[tuple[bytes, Row | None]]]:
        now = timeOfDay(self._reactor)
        rows = self._database.read(self._statements.list, after, now, limit)
        return rows.addCallback(lambda found: [(row[0], row[1:]) for row in found])

    def _removeExpired(self, time: float, limit: int) -> Deferred[tuple[int, bool]]:
        removing = self._write(self._statements.removeExpired, time, limit, time)
        return removing.addCallback(
            lambda rows: (sum(row[0] == KEY_BYTES for row in rows), len(rows) == limit)
        )


class SQLiteSessionStore(SQLSessionStore):
    """
    A store in an SQLite file of its own.
    """

    def __init__(
        self,
        reactor: Any,
        db: str = "sessions.db",
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        """
        @param reactor: Provides the time, and threads.
        @param db: The path of the file, which is created if it does not exist.
        @param table: The name of the table, by default C{sessions}; it is created if it
            does not exist.
        @param limits: Lifetimes and maximum size of sessions.
        @param settings: Time limits and the number of connections.
        @raise ValueError: The path or the name of the table is invalid.
        """
        url = f"sqlite:{db}"
        database = Database(reactor, url, [schemaOf(table)], settings, name="sessions")
        super().__init__(reactor, database, table, limits)


class PostgreSQLSessionStore(SQLSessionStore):
    """
    A store in a PostgreSQL database, which several servers can share: C{pip install
    'tsrv[postgresql]'}.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        table: str = TABLE,
        limits: Limits | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        """
        @param reactor: Provides the time, and watches sockets.
        @param url: The URL: C{postgresql://USER:PASSWORD@HOST:PORT/NAME}.
        @param table: The name of the table, by default C{sessions}; it is created if it
            does not exist.
        @param limits: Lifetimes and maximum size of sessions.
        @param settings: Time limits and the number of connections.
        @raise ValueError: The URL or the name of the table is invalid.
        """
        if Location.parse(url).kind != "postgresql":
            raise ValueError("the URL of the sessions must be postgresql://…")
        database = Database(reactor, url, [schemaOf(table)], settings, name="sessions")
        super().__init__(reactor, database, table, limits)


class _Statements:
    """
    The statements for a table.
    """

    def __init__(self, table: str) -> None:
        def statement(sql: str) -> Statement:
            # Quoted, because the name may be a keyword.
            return Statement(sql.replace("TABLE", f'"{table}"'))

        self.read = statement(
            "SELECT data, created, expires, version FROM TABLE WHERE key = ?"
        )
        self.insert = statement(
            "INSERT INTO TABLE (key, data, created, expires, version) "
            "VALUES (?, ?, ?, ?, ?)"
        )
        self.put = statement(
            "INSERT INTO TABLE (key, data, created, expires, version) "
            "VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET expires = excluded.expires"
        )
        self.replace = statement(
            "UPDATE TABLE SET key = ?, data = ?, created = ?, expires = ?, "
            "version = ? WHERE key = ? AND version = ? AND expires > ? "
            "RETURNING version"
        )
        self.extend = statement(
            "UPDATE TABLE SET expires = ? WHERE key = ? AND expires = ?"
        )
        # An expired row is deleted too, but did not count as a session.
        self.delete = statement("DELETE FROM TABLE WHERE key = ? RETURNING expires > ?")
        self.deleteVersion = statement(
            "DELETE FROM TABLE WHERE key = ? AND version = ? RETURNING expires > ?"
        )
        self.count = statement(
            "SELECT count(*) FROM TABLE WHERE expires > ? AND length(key) = 32"
        )
        self.list = statement(
            "SELECT key, data, created, expires, version FROM TABLE "
            "WHERE key > ? AND expires > ? AND length(key) = 32 ORDER BY key LIMIT ?"
        )
        # PostgreSQL checks the outer condition again after it has waited for a row
        # that another transaction used.
        self.removeExpired = statement(
            "DELETE FROM TABLE WHERE key IN (SELECT key FROM TABLE "
            "WHERE expires <= ? ORDER BY expires LIMIT ?) "
            "AND expires <= ? RETURNING length(key)"
        )


def _keyExists(failure: Failure) -> bool:
    failure.trap(UniqueViolated)
    return False
