"""
How tables are made and changed: in numbered steps, each of which runs once.

A database remembers the version of each part of the program. Missing steps run in
one transaction, under a lock that other processes wait for that start at the same
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from .interface import DatabaseRefused, Row, Schema, Statement

__all__ = ["CREATE", "VERSIONS", "Step", "stepsTo"]

Step = tuple[Statement, Sequence[object]]
"""
A statement and its parameters.
"""

CREATE: Final = Statement(
    "CREATE TABLE IF NOT EXISTS tsrv_schema "
    "(part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
)

VERSIONS: Final = Statement("SELECT part, version FROM tsrv_schema")

_RECORD: Final = Statement(
    "INSERT INTO tsrv_schema (part, version) VALUES (?, ?) "
    "ON CONFLICT (part) DO UPDATE SET version = excluded.version"
)


def stepsTo(
    schemas: Iterable[Schema],
    kind: Literal["sqlite", "postgresql"],
    versions: Iterable[Row],
) -> list[Step]:
    """
    @param schemas: The tables that have to exist.
    @param kind: The kind of the database.
    @param versions: The rows of L{VERSIONS}.
    @return: The missing steps, in order.
    @raise DatabaseRefused: A newer program has changed the database.
    """
    steps: list[Step] = []
    current: dict[str, int] = {row[0]: row[1] for row in versions}
    for schema in schemas:
        known = schema.sqlite if kind == "sqlite" else schema.postgresql
        version = current.get(schema.part, 0)
        if version > len(known):
            raise DatabaseRefused(
                f"the tables of {schema.part!r} have version {version}, made by a "
                f"newer tsrv; this one knows {len(known)}: upgrade tsrv"
            )
        for statements in known[version:]:
            steps.extend((Statement(sql), ()) for sql in statements)
        if version < len(known):
            steps.append((_RECORD, (schema.part, len(known))))
    return steps
