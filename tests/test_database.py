"""
The URL of a database, and the packages that it needs.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from threading import Event

import pytest
from twisted.internet.defer import Deferred

from tsrv.databases import (
    Database,
    DatabaseRefused,
    DatabaseUnavailable,
    Location,
    Settings,
    Statement,
)

from .sqlitelab import Disk
from .support import resultOf
from .websupport import asynchronous


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
def test_a_url_names_the_kind_and_the_place(url: str, kind: str, target: str) -> None:
    """
    Each kind of database has the URL that its users know.
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
def test_another_url_is_refused_and_not_repeated(url: str) -> None:
    """
    A mistyped scheme is refused without repeating the URL, which may contain a
    password.
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
    A password is shown neither in a log nor in a debugger.
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
def test_an_ambiguous_password_is_refused(url: str) -> None:
    """
    An ambiguous password is refused: if libpq found its end elsewhere, a part of it
    would be shown.
    """
    with pytest.raises(ValueError, match="# as %23") as caught:
        Location.parse(url)
    assert "hush" not in str(caught.value)


def test_the_parameters_of_a_statement_are_numbered_for_postgresql() -> None:
    """
    The same statement works for both databases: PostgreSQL gets numbered parameters.
    """
    assert Statement("SELECT 1").numbered == "SELECT 1"
    assert Statement("? + ?*?").numbered == "$1 + $2*$3"


@asynchronous
async def test_a_stalled_disk_blocks_only_a_few_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Each attempt to initialise may leave a thread behind until the disk responds; their
    number is limited.
    """
    from twisted.internet import reactor

    disk = Disk(monkeypatch)
    answers = Event()
    disk.onConnect = answers.wait
    settings = Settings(connectTimeout=0.03, statementTimeout=0.03)
    database = Database(reactor, f"sqlite:{tmp_path}/d", [], settings)
    for _ in range(8):
        with pytest.raises(DatabaseUnavailable, match="the disk does not answer"):
            await database.initialize()
    before = threading.active_count()
    with pytest.raises(DatabaseUnavailable, match="8 threads wait for a stalled disk"):
        await database.initialize()
    assert threading.active_count() == before
    answers.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tsrv-sqlite"):
            thread.join()
    # After the results of the threads have reached the reactor.
    told: Deferred[None] = Deferred()
    reactor.callFromThread(told.callback, None)  # type: ignore[attr-defined]
    await told
    disk.onConnect = lambda: None
    await database.initialize()
    await database.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without psycopg, the error says what to install for PostgreSQL.
    """
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "tsrv.databases.postgresql", raising=False)
    database = Database(object(), "postgresql://h/n")
    error = resultOf(database.initialize()).error
    assert isinstance(error, DatabaseRefused)
    assert "pip install 'tsrv[postgresql]'" in str(error)
