"""
How tables come to be: numbered steps, each of which is made once.

A database remembers the version of each part of the program. What is missing
is made in one transaction, under a lock that others who start at the same time
wait for; so it is made by one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from .interface import (
    DatabaseRefused,
    Row,
    Schema,
    Statement,
)

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
    Say what is still to be done.

    @param schemas: The tables that have to be there.
    @param kind: Which database it is.
    @param versions: What L{VERSIONS} has found.
    @return: What has to be carried out, in order.
    @raise DatabaseRefused: The database has been used by a newer program.
    """
    steps: list[Step] = []
    current: dict[str, int] = {row[0]: row[1] for row in versions}
    for schema in schemas:
        made = schema.sqlite if kind == "sqlite" else schema.postgresql
        done = current.get(schema.part, 0)
        if done > len(made):
            raise DatabaseRefused(
                f"the tables of {schema.part!r} have version {done}, made by a "
                f"newer tsrv; this one knows {len(made)}: upgrade tsrv"
            )
        for statements in made[done:]:
            steps.extend((Statement(sql), ()) for sql in statements)
        if done < len(made):
            steps.append((_RECORD, (schema.part, len(made))))
    return steps
