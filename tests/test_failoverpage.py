"""
The examples that the pages about databases do not execute themselves, against a real
server.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.web.client import HTTPConnectionPool

from .databases import PostgreSQL
from .databases import ownPostgresql as ownPostgresql
from .processes import ROOT, run, running
from .services import Service
from .websupport import asynchronous, reservedPort


def block(page: str, language: str) -> str:
    """
    @return: The first block of a language that the page does not execute.
    """
    text = (ROOT / "docs" / "howto" / page).read_text()
    found = re.search(rf"^% not executed.*\n```{language}\n((?s:.*?))^```$", text, re.M)
    assert found is not None
    return found[1]


@asynchronous
async def test_a_request_waits_while_postgresql_restarts(
    tmp_path: Path, ownPostgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A request that arrives while PostgreSQL is down succeeds when it runs again, and the
    log has the lines that the page shows.
    """
    from twisted.internet import reactor

    await ownPostgresql.start()
    monkeypatch.setenv("TSRV_DATABASE", ownPostgresql.url)
    with reservedPort() as port:
        words = [f"--listen=tcp:{port}:interface=127.0.0.1", "--delay=0"]
        async with running(tmp_path, "-n", "tsrv", *words) as process:
            await process.whenWritten("ready on")
            await ownPostgresql.stop()
            await process.whenWritten("attempt 2 failed")
            pool = HTTPConnectionPool(reactor, persistent=False)
            client = Service(process, f"http://127.0.0.1:{port}", pool)
            user = {"name": "Ada", "email": "ada@example.org"}
            created = client.ask("POST", "/users", user)
            await ownPostgresql.start()
            answer: Any = await created
            assert (answer.status, answer.body) == (201, {"id": 1, **user})
            # Seconds, attempts and the reason of the loss differ from run to run.
            output = process.output.replace(f"port {ownPostgresql.port} ", "port 5432 ")
            for line in block("postgresql.md", "text").splitlines():
                text = re.escape(line.partition("] ")[2]).replace(r"\.\.\.", ".*")
                text = re.sub(r"\d+\\\.\d+\\ s", r"\\d+\\.\\d+ s", text)
                text = re.sub(r"\d+(?=\\ attempts)", r"\\d+", text)
                assert re.search(text, output), f"{line} is not in {output}"


@asynchronous
async def test_psycopg_alone(tmp_path: Path, ownPostgresql: PostgreSQL) -> None:
    """
    The program of the page counts the rows of a table.
    """
    await ownPostgresql.start()
    await ownPostgresql.ask("CREATE TABLE users ()")
    program = block("databases.md", "python")
    url = "postgresql://ada@localhost/app"
    assert url in program
    path = tmp_path / "count.py"
    path.write_text(program.replace(url, ownPostgresql.url))
    assert run(sys.executable, path) == "(0,)\n"
