"""
Creates and upgrades tables, version by version. Each version runs once.

A database remembers the version of each part of the program. Missing versions run in
one transaction, under a lock: other processes that start at the same time wait.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Final

from .interface import DatabaseRefused, Kind, Row, Schema, Statement

__all__ = ["upgrade"]

Steps = Generator[tuple[Statement, Sequence[object]], list[Row] | None, None]
"""
Yields statements with their parameters, and receives the rows of each statement.
"""

POSTGRESQL_LOCK: Final = 0x74737276
"""
The number of the advisory lock that a process holds while it upgrades the tables.
"""

_EXISTS: Final = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'tsrv_schema'",
    "postgresql": "SELECT count(to_regclass('tsrv_schema'))",
}

_LOCK: Final = {
    "sqlite": ["BEGIN IMMEDIATE"],
    "postgresql": ["BEGIN", f"SELECT pg_advisory_xact_lock({POSTGRESQL_LOCK})"],
}

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS tsrv_schema "
    "(part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
)

_VERSIONS: Final = Statement("SELECT part, version FROM tsrv_schema")

_RECORD: Final = Statement(
    "INSERT INTO tsrv_schema (part, version) VALUES (?, ?) "
    "ON CONFLICT (part) DO UPDATE SET version = excluded.version"
)


def upgrade(schemas: Sequence[Schema], kind: Kind) -> Steps:
    """
    Bring the tables up to date.

    @return: The statements to carry out, in order.
    @raise DatabaseRefused: A newer program has changed the database.
    """
    exists = yield Statement(_EXISTS[kind]), ()
    versions = (yield _VERSIONS, ()) if exists == [(1,)] else []
    if next(_missing(schemas, kind, versions or []), None) is None:
        # The tables are up to date: do not wait for the lock.
        return
    for sql in (*_LOCK[kind], _CREATE):
        yield Statement(sql), ()
    versions = yield _VERSIONS, ()
    yield from _missing(schemas, kind, versions or [])
    yield Statement("COMMIT"), ()


def _missing(schemas: Sequence[Schema], kind: Kind, rows: Iterable[Row]) -> Steps:
    current = {row[0]: row[1] for row in rows}
    for schema in schemas:
        known = schema.versions[kind]
        version = current.get(schema.part, 0)
        if version > len(known):
            raise DatabaseRefused(
                f"the tables of {schema.part!r} have version {version}, made by a "
                f"newer program: upgrade this one, which knows version {len(known)}"
            )
        for statements in known[version:]:
            for sql in statements:
                yield Statement(sql), ()
        if version < len(known):
            yield _RECORD, (schema.part, len(known))
