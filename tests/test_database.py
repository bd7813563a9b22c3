"""
Where a database is, what can be asked of it, and what becomes of it.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tsrv.asyncmodule import NotInitialized
from tsrv.databases import (
    Database,
    DatabaseRefused,
    DatabaseUnavailable,
    Location,
    Schema,
    Settings,
    Statement,
)
from tsrv.databases.schema import stepsTo

from .databases import database as database
from .databases import postgresql as postgresql
from .support import resultOf
from .test_sqlite import Disk
from .websupport import asynchronous

SCHEMA = Schema(
    "things",
    sqlite=[["CREATE TABLE things (name TEXT)"]],
    postgresql=[["CREATE TABLE things (name TEXT)"]],
)

ADD = Statement("INSERT INTO things VALUES (?)")

ALL = Statement("SELECT name FROM things")


# Where it is.


@pytest.mark.parametrize(
    ("url", "kind", "target"),
    [
        ("sqlite:tsrv.db", "sqlite", "tsrv.db"),
        ("sqlite:/var/lib/tsrv.db", "sqlite", "/var/lib/tsrv.db"),
        ("sqlite:///var/lib/tsrv.db", "sqlite", "/var/lib/tsrv.db"),
        ("sqlite:a b?c#d", "sqlite", "a b?c#d"),
        ("postgresql://h/n", "postgresql", "postgresql://h/n"),
        ("postgres://u:p@h/n", "postgresql", "postgresql://u:p@h/n"),
        (" postgresql:///n?host=/tmp\n", "postgresql", "postgresql:///n?host=/tmp"),
    ],
)
def test_a_url_is_understood(url: str, kind: str, target: str) -> None:
    """
    Both databases are named in the way that their users know.
    """
    location = Location.parse(url)
    assert (location.kind, location.target) == (kind, target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite::memory:",
        "sqlite:a\0b",
        "postgresql:name",
        "postgresql://[secret/n",
        "mysql://u:secret@h/n",
        "secret",
    ],
)
def test_what_is_no_url_of_a_database_is_refused_and_not_repeated(url: str) -> None:
    """
    Who has mistyped a scheme must not find the password in the log.
    """
    with pytest.raises(ValueError, match=r"is sqlite:PATH or postgresql://") as caught:
        Location.parse(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="is sqlite:PATH"):
        Database(object(), url)


@pytest.mark.parametrize(
    ("url", "secret", "shown"),
    [
        ("postgresql://u:hush@h:1/n", True, "postgresql://u@h:1/n"),
        ("postgresql://u:hu%40sh@h/n?a=b", True, "postgresql://u@h/n"),
        ("postgresql://u@h/n?password=hush", True, "postgresql://u@h/n"),
        ("postgresql://u@h/n?sslpassword=hush", True, "postgresql://u@h/n"),
        ("postgresql://u@h/n?sslmode=require", False, "postgresql://u@h/n"),
        ("postgresql://h:5432/n", False, "postgresql://h:5432/n"),
        ("sqlite:a:b@c", False, "sqlite:a:b@c"),
    ],
)
def test_a_password_is_never_shown(url: str, secret: bool, shown: str) -> None:
    """
    Neither a log nor a debugger may give it away.
    """
    location = Location.parse(url)
    assert location.hasPassword is secret
    assert str(location) == shown
    assert repr(Database(object(), url)) == f"<Database at {shown}>"
    for text in (repr(location), repr(Database(object(), lambda: url))):
        assert "hush" not in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hush#hush@h/n",
        "postgresql://u:hush?hush@h/n",
        "postgresql://u:hush/hush@h/n",
        "postgresql://u:hush@hush@h/n",
        "postgresql://u:[hush@h/n",
        "postgresql://h/n?password=hush#hush",
    ],
)
def test_a_password_that_may_be_read_in_two_ways_is_refused(url: str) -> None:
    """
    Where libpq finds the end of it elsewhere, a part of it would be shown.
    """
    with pytest.raises(ValueError, match="# as %23") as caught:
        Location.parse(url)
    assert "hush" not in str(caught.value)


# What is asked of it.


def test_a_statement_is_written_once_for_both() -> None:
    """
    A second text for PostgreSQL would be one that is forgotten.
    """
    assert Statement("SELECT 1").numbered == "SELECT 1"
    assert Statement("? + ?*?").numbered == "$1 + $2*$3"


# How tables come to be.


def test_only_what_is_missing_is_made() -> None:
    """
    Each step is made once, whatever the version that a program begins with.
    """
    schema = Schema("a", [["one"], ["two", "three"]], [["eins"], ["zwei"]])
    other = Schema("b", [["four"]], [["vier"]])

    def made(kind: str, *versions: tuple[str, int]) -> list[str]:
        steps = stepsTo([schema, other], kind, versions)  # type: ignore[arg-type]
        return [
            statement.sql if not parameters else f"{parameters[0]}={parameters[1]}"
            for statement, parameters in steps
        ]

    assert made("sqlite") == ["one", "two", "three", "a=2", "four", "b=1"]
    assert made("postgresql") == ["eins", "zwei", "a=2", "vier", "b=1"]
    assert made("sqlite", ("a", 1), ("b", 1), ("c", 9)) == ["two", "three", "a=2"]
    assert made("sqlite", ("a", 2), ("b", 1)) == []
    with pytest.raises(DatabaseRefused, match="version 3, made by a newer tsrv"):
        made("sqlite", ("a", 3))


# What becomes of it.


@asynchronous
async def test_it_is_there_when_it_has_been_initialised(tmp_path: Path) -> None:
    """
    Before and after there is nothing to be asked; in between there is all.
    """
    from twisted.internet import reactor

    database = Database(reactor, f"sqlite:{tmp_path}/d", [SCHEMA])
    for early in (database.read(ALL), database.write(ADD, "a")):
        assert isinstance(resultOf(early).error, NotInitialized)
    assert resultOf(database.whenLost()).value is None
    assert not database.initialized
    await database.close()

    for _ in range(2):
        await database.initialize()
        await database.initialize()
        assert database.initialized
        await database.write(ADD, "a")
        lost = database.whenLost()
        assert not lost.called
        lost.addErrback(lambda failure: failure.trap(CancelledError))
        lost.cancel()
        await database.close()
        await database.close()
        assert not database.initialized

    await database.initialize()
    assert await database.read(ALL) == [("a",), ("a",)]
    await database.close()


@asynchronous
async def test_its_url_may_come_later_and_change(tmp_path: Path) -> None:
    """
    Where the URL comes from a configuration, each attempt takes what is there
    now: a password that was replaced is not tried for ever.
    """
    from twisted.internet import reactor

    urls: list[Deferred[str] | str] = [
        f"sqlite:{tmp_path}/one",
        "mysql://u:hush@h/n",
        Deferred(),
    ]
    database = Database(reactor, lambda: urls.pop(0), [SCHEMA])
    await database.initialize()
    await database.close()
    with pytest.raises(DatabaseRefused, match="is sqlite:PATH") as caught:
        await database.initialize()
    assert "hush" not in str(caught.value)

    (late,) = urls
    assert isinstance(late, Deferred)
    opening = database.initialize()
    second = resultOf(database.initialize())
    assert isinstance(second.error, DatabaseUnavailable)
    assert not opening.called
    late.callback(f"sqlite:{tmp_path}/two")
    await opening
    await database.close()
    assert {"one", "two"} <= {path.name for path in tmp_path.iterdir()}


def test_closing_gives_an_attempt_up(tmp_path: Path) -> None:
    """
    Nothing is connected to after all has been closed.
    """
    url: Deferred[str] = Deferred()
    database = Database(object(), lambda: url, [SCHEMA])
    opening = resultOf(database.initialize())
    database.close()
    assert isinstance(opening.error, CancelledError)
    assert not database.initialized


@asynchronous
async def test_a_loss_ends_it_until_it_is_initialised_again(tmp_path: Path) -> None:
    """
    Who has been told of the loss finds the module as it says.
    """
    from twisted.internet import reactor

    path = tmp_path / "d"
    database = Database(reactor, f"sqlite:{path}", [SCHEMA])
    await database.initialize()
    lost = database.whenLost().addCallback(lambda _: database.initialized)
    for name in ("d", "d-wal", "d-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(DatabaseUnavailable):
        await database.write(ADD, "a")
    assert resultOf(lost).value is False
    await database.initialize()
    await database.write(ADD, "b")
    assert await database.read(ALL) == [("b",)]
    await database.close()


@asynchronous
async def test_a_disk_that_hangs_is_left_only_so_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It is tried again and again; each time a thread may not come back.
    """
    from twisted.internet import reactor

    disk = Disk(monkeypatch)
    answers = Event()
    disk.onConnect = answers.wait
    settings = Settings(connectTimeout=0.1, statementTimeout=0.1)
    database = Database(reactor, f"sqlite:{tmp_path}/d", [SCHEMA], settings)
    for _ in range(8):
        with pytest.raises(DatabaseUnavailable, match="the disk does not answer"):
            await database.initialize()
    before = threading.active_count()
    with pytest.raises(DatabaseUnavailable, match="8 threads wait for a disk"):
        await database.initialize()
    assert threading.active_count() == before
    answers.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tsrv-sqlite"):
            thread.join()
    # What they have told the reactor's thread comes before this.
    told: Deferred[None] = Deferred()
    reactor.callFromThread(told.callback, None)  # type: ignore[attr-defined]
    await told
    disk.onConnect = lambda: None
    await database.initialize()
    await database.close()


@asynchronous
async def test_it_may_be_postgresql(database: Any) -> None:
    """
    The same questions have the same answers.
    """
    from twisted.internet import reactor

    users = Database(reactor, database.url, [SCHEMA])
    await users.initialize()
    await users.write(ADD, "a")
    assert await users.read(ALL) == [("a",)]
    await users.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Who has installed what SQLite needs learns how to have PostgreSQL.
    """
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("tsrv.databases.p")]:
        monkeypatch.delitem(sys.modules, name)
    database = Database(object(), "postgresql://h/n")
    error = resultOf(database.initialize()).error
    assert isinstance(error, DatabaseRefused)
    assert "pip install 'tsrv[postgresql]'" in str(error)
