"""
Failed requests during planned restarts of PostgreSQL.

An administrator restarts PostgreSQL five times, while clients read users, create users
and count their visits. The server's database module is paused before each restart, and
resumed afterwards. The comparison is the same restarts without a pause. The script
counts failed requests, and measures the longest wait. With the pause, the table must
have the acknowledged users and no others.

PostgreSQL, the server and the load are processes of their own. Each client sends one
request after the other, so calls are always in progress.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child
from tests.postgresql_server import Installation, PostgreSQL
from tests.websupport import reservedPort

_SIZES = {
    "restarts": Size(5, 1, "restarts"),
    "clients": Size(24, 8, "clients"),
    "requests": Size(2_000, 100, "answered requests between two restarts"),
}


def _restart(
    installation: Installation, sizes: Mapping[str, int], pausing: bool
) -> dict[str, Any]:
    """
    Measure one side.

    @return: The report of the load.
    """
    with reservedPort() as port:
        postgresql = PostgreSQL(installation, port)
        try:
            postgresql.startNow()
            report = _load(postgresql, sizes, pausing)
            ((users,),) = postgresql.askNow("SELECT count(*) - 1 FROM users")
        finally:
            postgresql.remove()
    # Nobody knows the outcome of a request that failed.
    most = report["created"] + (0 if pausing else report["failed"])
    if not report["created"] <= users <= most:
        raise RuntimeError(f"{users} users, but {report['created']} acknowledged")
    return report


def _load(
    postgresql: PostgreSQL, sizes: Mapping[str, int], pausing: bool
) -> dict[str, Any]:
    with Child("benchmarks.support.usersserver", postgresql.url) as server:
        port = server.request("wait")["port"]
        postgresql.askNow("INSERT INTO users (name, email) VALUES ('Ada', 'ada@x')")
        words = [f"--port={port}", f"--clients={sizes['clients']}"]
        with Child("tests.mixedload", *words) as load:
            load.request("answered", sizes["requests"])
            for _ in range(sizes["restarts"]):
                if pausing:
                    server.request("pause")
                postgresql.stopNow()
                postgresql.startNow()
                if pausing:
                    server.request("resume")
                load.request("answered", sizes["requests"])
            return load.request("stop")


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    installation = Installation()
    try:
        ours = _restart(installation, sizes, pausing=True)
        theirs = _restart(installation, sizes, pausing=False)
    finally:
        installation.remove()
    for error, count in ours["errors"].items():
        print(f"{count} x {error}", file=sys.stderr)
    against = "the same restarts without a pause"
    restarts = f"{sizes['restarts']} planned restarts of PostgreSQL, paused"
    requests = ours["answered"] + ours["failed"]
    return [
        Figure(
            f"{restarts}: failed requests of {requests:,}",
            against,
            ours["failed"],
            theirs["failed"],
            "requests",
            Target(0, "requests"),
            # Avoid a division by zero.
            [ours["failed"] / max(theirs["failed"], 1)],
        ),
        Figure(
            f"{restarts}: longest wait",
            against,
            ours["longest"],
            theirs["longest"],
            "s",
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
