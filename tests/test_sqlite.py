"""
SQLite carries out a statement once or not at all, and says which, whatever happens
to the file, the disk and the threads.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tsrv.databases import (
    ConstraintViolated,
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from tsrv.errors import OutcomeUnknown

from .processes import ROOT
from .support import Result, resultOf
from .websupport import asynchronous, logged, textsOf

SCHEMA = Schema(
    "things",
    [
        [
            "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE, "
            "size INTEGER NOT NULL DEFAULT 1 CHECK (size > 0))",
            "CREATE TABLE parts (name TEXT PRIMARY KEY, thing INTEGER "
            "REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED, "
            "other INTEGER REFERENCES things (id))",
        ]
    ],
    [[]],
)

ADD = Statement("INSERT INTO things (name) VALUES (?) RETURNING id")

ALL = Statement("SELECT name FROM things ORDER BY id")

GET = Statement("SELECT name FROM things WHERE id = ?")

ENDLESS = Statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) FROM n"
)

ADD_ENDLESS = Statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "INSERT INTO things (name) SELECT 'n' || i FROM n"
)

LONG = 30.0
"""
No thread takes so long, in seconds.
"""

WATCHED = 0.1
"""
A thread that has something to do is looked at in at most so many seconds.
"""

Hook = Callable[[], object]

connect = sqlite3.connect
"""
What other processes use, where a test changes what the database uses.
"""


class Reactor(Clock):
    """
    A clock that the test advances, beside real threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fromThreads: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def callFromThread(self, *call: Any) -> None:
        self._fromThreads.put(call)

    def deliver(self) -> None:
        """
        Wait for the next call that a thread asks for, and make it.
        """
        function, *arguments = self._fromThreads.get(timeout=LONG)
        function(*arguments)

    def work(self, *until: Result) -> None:
        """
        Wait until these have fired; or else until no thread has anything to do.
        """
        while not until or any(each.pending for each in until):
            near = [call.getTime() - self.seconds() for call in self.calls]
            if near and min(near) <= 0:
                self.advance(0)
            elif (
                until
                or not self._fromThreads.empty()
                or (near and min(near) <= WATCHED + 0.001)
            ):
                self.deliver()
            else:
                return

    @property
    def running(self) -> list[str]:
        """
        The names of the threads that have not ended.
        """
        return [
            each.name for each in threading.enumerate() if each.name.startswith("tsrv-")
        ]


class Gate:
    """
    A hook at which a thread waits until the test opens it.
    """

    def __init__(self, then: Hook = lambda: None) -> None:
        self.reached = Event()
        self._opened = Event()
        self._then = then

    def __call__(self) -> None:
        self.reached.set()
        assert self._opened.wait(LONG)
        self._then()

    def wait(self, reactor: Reactor) -> None:
        """
        Hand over what was asked for, and wait until the thread is at the gate.
        """
        while any(call.getTime() <= reactor.seconds() for call in reactor.calls):
            reactor.advance(0)
        assert self.reached.wait(LONG)

    def open(self) -> None:
        """
        Let the thread, and all that follow, pass.
        """
        self._opened.set()


class Disk:
    """
    SQLite, except for what the test makes of some statements.

    @ivar hooks: What happens, in the thread, before a statement that begins so.
    @ivar made: The connections.
    @ivar onConnect: What happens before a connection is made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hooks: dict[str, Hook] = {}
        self.made: list[Connection] = []
        self.onConnect: Hook = lambda: None
        monkeypatch.setattr(sqlite3, "connect", self.connect)

    def connect(self, *arguments: Any, **options: Any) -> Connection:
        """
        Open a database.
        """
        self.onConnect()
        connection = Connection(self, connect(*arguments, **options))
        self.made.append(connection)
        return connection

    def count(self, text: str) -> list[str]:
        """
        @return: What grows with each statement that begins so.
        """
        counted: list[str] = []
        self.hooks[text] = lambda: counted.append(text)
        return counted


class Connection:
    """
    A connection that does what the disk says.

    @ivar closed: Whether it was closed.
    @ivar interrupts: How often it was interrupted.
    """

    def __init__(self, disk: Disk, connection: sqlite3.Connection) -> None:
        self.closed = False
        self.interrupts = 0
        self._disk = disk
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        for text, hook in list(self._disk.hooks.items()):
            if sql.startswith(text):
                instead = hook()
                if isinstance(instead, sqlite3.Cursor):
                    return instead
        return self._connection.execute(sql, parameters)

    def interrupt(self) -> None:
        self.interrupts += 1
        self._connection.interrupt()

    def close(self) -> None:
        self.closed = True
        self._connection.close()


def trouble(code: str) -> Hook:
    """
    @return: What fails as SQLite does.
    """

    def hook() -> None:
        error = sqlite3.OperationalError(f"text of {code}")
        error.sqlite_errorname = code
        error.sqlite_errorcode = getattr(sqlite3, code)
        raise error

    return hook


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """
    A disk in which the test can put its finger.
    """
    return Disk(monkeypatch)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """
    No thread may be left, and no delayed call.
    """
    reactor = Reactor()
    yield reactor
    reactor.work()
    assert reactor.running == []
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    Where the file will be.
    """
    return tmp_path / "the.db"


def make(reactor: Any, path: Path, **settings: Any) -> Database:
    """
    @return: What is not initialised yet.
    """
    return Database(reactor, f"sqlite:{path}", [SCHEMA], Settings(**settings))


def opened(reactor: Reactor, path: Path, **settings: Any) -> Database:
    """
    @return: What is initialised.
    """
    database = make(reactor, path, **settings)
    opening = resultOf(database.initialize())
    reactor.work(opening)
    assert opening.value is None
    return database


@pytest.fixture
def database(reactor: Reactor, path: Path) -> Iterator[Database]:
    """
    A database that is open.
    """
    database = opened(reactor, path)
    yield database
    end(reactor, database)


def end(reactor: Reactor, database: Database) -> None:
    """
    Close a database, and leave nothing behind.
    """
    closing = resultOf(database.close())
    reactor.work(closing)
    assert closing.value is None


def namesIn(path: Path) -> list[str]:
    """
    @return: What somebody else finds in the file.
    """
    with closing(connect(path)) as connection:
        return [name for (name,) in connection.execute(ALL.sql).fetchall()]


def files() -> list[str]:
    """
    @return: The databases that this process has open.
    """
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if ".db" in target:
            found.append(target)
    return found


def together(reactor: Reactor, database: Database, *calls: Any) -> list[Result]:
    """
    Make several writes in one transaction.
    """
    results = [resultOf(database.write(*call)) for call in calls]
    reactor.work(*results)
    return results


def find(reactor: Reactor, database: Database, *call: Any) -> Any:
    """
    @return: The rows that are found.
    """
    result = resultOf(database.read(*call))
    reactor.work(result)
    return result.value


def refused(reactor: Reactor, path: Path, **settings: Any) -> BaseException:
    """
    @return: Why it could not be opened; nothing is left open.
    """
    opening = resultOf(make(reactor, path, **settings).initialize())
    reactor.work(opening)
    assert reactor.running == files() == []
    return opening.error


# Batches.


def test_what_was_written_can_be_read(
    reactor: Reactor, database: Database, path: Path
) -> None:
    """
    A write is on the disk when it is answered, and reads find it.
    """
    assert together(reactor, database, (ADD, "one"))[0].value == [(1,)]
    assert find(reactor, database, GET, 1) == [("one",)]
    assert find(reactor, database, GET, 2) == []
    assert namesIn(path) == ["one"]


def test_writes_that_wait_are_one_transaction_in_order(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    Writes that wait together wait for the disk once, at most 256 of them.
    """
    commits = disk.count("COMMIT")
    answers: list[Any] = []
    for number in range(600):
        database.write(ADD, f"name {number}").addCallback(answers.append)
    reactor.work()
    assert answers == [[(number,)] for number in range(1, 601)]
    assert len(commits) == 3


def test_writes_of_successive_turns_are_one_transaction(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    Statements are gathered while each turn of the reactor brings more.
    """
    commits = disk.count("COMMIT")
    answers: list[Any] = []

    def ask(left: int) -> None:
        if left:
            reactor.callLater(0, ask, left - 1)
        database.write(ADD, f"name {left}").addCallback(answers.append)

    ask(20)
    reactor.work()
    assert len(answers) == 21
    assert len(commits) == 1


def test_statements_are_gathered_for_10_ms_at_most(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    Where each turn is long and brings one more, the first does not wait for ever.
    """
    gate = disk.hooks["BEGIN"] = Gate()
    for number in range(4):
        database.write(ADD, f"name {number}")
        reactor.rightNow += 0.004
        reactor.advance(0)
    database.write(ADD, "late")
    assert gate.reached.wait(LONG)
    gate.open()
    reactor.work()
    assert len(find(reactor, database, ALL)) == 5


def test_calls_that_come_back_are_gathered_again(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    Clients that waited for one transaction, and write again, wait for one again.
    """
    commits = disk.count("COMMIT")
    answers: list[Any] = []

    def again(answer: Any) -> None:
        answers.append(answer)
        if len(answers) % 6 == 1:
            # As the answer of a client takes a while: not in each turn.
            reactor.callLater(0, database.write, ADD, f"again {len(answers)}")

    for number in range(60):
        database.write(ADD, str(number)).addCallback(again)
    reactor.work()
    assert len(answers) == 60
    assert len(commits) == 2


def test_nothing_is_answered_before_it_is_on_the_disk(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    No write is answered before its transaction is committed.
    """
    gate = disk.hooks["COMMIT"] = Gate()
    written = [resultOf(database.write(ADD, str(number))) for number in range(3)]
    gate.wait(reactor)
    reactor.advance(0.1)
    assert all(each.pending for each in written)
    gate.open()
    reactor.work()
    assert [each.value for each in written] == [[(1,)], [(2,)], [(3,)]]


@pytest.mark.parametrize("closed", [False, True])
def test_answers_are_spread_over_turns(
    reactor: Reactor, path: Path, closed: bool
) -> None:
    """
    Sixty answers leave others their turn; closing tells those that are left.
    """
    database = opened(reactor, path)
    written = [resultOf(database.write(ADD, str(number))) for number in range(60)]
    answered: list[int] = []

    def look() -> None:
        answered.append(sum(not each.pending for each in written))
        if closed:
            database.close()
        elif written[-1].pending:
            reactor.callLater(0, look)

    while written[0].pending:
        reactor.advance(0)
        reactor.deliver()
    look()
    reactor.work()
    assert answered == ([3] if closed else list(range(3, 61, 3)))
    assert [each.value for each in written] == [[(n,)] for n in range(1, 61)]
    end(reactor, database)


def test_a_callback_can_make_a_call(reactor: Reactor, database: Database) -> None:
    """
    A call that is made by the callback of another is carried out.
    """
    result = resultOf(
        database.write(ADD, "one").addCallback(
            lambda rows: database.read(GET, *rows[0])
        )
    )
    reactor.work(result)
    assert result.value == [("one",)]


# Statements that fail.


@pytest.mark.parametrize(
    ("sql", "code", "unique"),
    [
        ("INSERT INTO things (name) VALUES ('first')", "UNIQUE", True),
        ("INSERT INTO things (id) VALUES (1)", "PRIMARYKEY", True),
        ("INSERT INTO bare (rowid) VALUES (1)", "ROWID", True),
        ("INSERT INTO things (size) VALUES (NULL)", "NOTNULL", False),
        ("INSERT INTO things (size) VALUES (0)", "CHECK", False),
        ("INSERT INTO parts VALUES ('part', 1, 7)", "FOREIGNKEY", False),
        # This one is checked by COMMIT.
        ("INSERT INTO parts VALUES ('part', 7, 1)", "FOREIGNKEY", False),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_violated_constraint_fails_one_statement(
    reactor: Reactor, path: Path, sql: str, code: str, unique: bool, alone: bool
) -> None:
    """
    Others in the transaction succeed, and SQLite's extended code tells the kind.
    """
    database = opened(reactor, path)
    bare = Statement("CREATE TABLE bare (x)")
    row = Statement("INSERT INTO bare (rowid) VALUES (1)")
    together(reactor, database, (bare,), (row,), (ADD, "first"))
    if alone:
        (wrong,) = together(reactor, database, (Statement(sql),))
    else:
        before, wrong, after = together(
            reactor, database, (ADD, "before"), (Statement(sql),), (ADD, "after")
        )
        assert (before.value, after.value) == ([(2,)], [(3,)])
    assert isinstance(wrong.error, ConstraintViolated)
    assert wrong.error.code == f"SQLITE_CONSTRAINT_{code}"
    assert isinstance(wrong.error, UniqueViolated) is unique
    end(reactor, database)
    assert namesIn(path) == ["first"] + ([] if alone else ["before", "after"])


def test_a_constraint_that_fails_the_commit_is_one_statements_fault(
    disk: Disk, reactor: Reactor, database: Database, path: Path
) -> None:
    """
    When COMMIT violates a constraint, each statement is carried out on its own.
    """
    commits = disk.count("COMMIT")
    fine, unique, late, also = together(
        reactor,
        database,
        (ADD, "fine"),
        (ADD, "fine"),
        (Statement("INSERT INTO parts VALUES ('part', 7, 1)"),),
        (ADD, "also"),
    )
    assert [fine.value, also.value] == [[(1,)], [(2,)]]
    assert isinstance(unique.error, UniqueViolated)
    assert isinstance(late.error, ConstraintViolated)
    assert not isinstance(late.error, UniqueViolated)
    assert namesIn(path) == ["fine", "also"]
    assert len(commits) == 5


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        (
            "INSERT OR FAIL INTO things (name) VALUES ('x'), ('fine')",
            ConstraintViolated,
        ),
        (
            "INSERT INTO things (name) VALUES ('y') "
            "RETURNING CAST (x'ff' AS TEXT), name",
            DatabaseError,
        ),
    ],
)
def test_a_statement_that_fails_half_way_leaves_nothing_behind(
    reactor: Reactor,
    database: Database,
    path: Path,
    sql: str,
    error: type[Exception],
) -> None:
    """
    What a statement has changed before it failed is undone, and others succeed.
    """
    fine, half, also = together(
        reactor, database, (ADD, "fine"), (Statement(sql),), (ADD, "also")
    )
    assert (fine.value, also.value) == ([(1,)], [(2,)])
    assert type(half.error) in (error, UniqueViolated)
    (alone,) = together(reactor, database, (Statement(sql),))
    assert isinstance(alone.error, error)
    assert namesIn(path) == ["fine", "also"]


def test_a_lock_that_is_lost_between_statements_fails_those_that_are_left(
    disk: Disk, reactor: Reactor, database: Database, path: Path
) -> None:
    """
    When each statement is carried out on its own, another process may come first.
    """
    begun = [trouble("SQLITE_BUSY"), lambda: None, lambda: None]

    def begin() -> None:
        begun.pop()()

    disk.hooks["BEGIN"] = begin
    half = Statement("INSERT OR FAIL INTO things (name) VALUES ('x'), ('fine')")
    fine, wrong, also = together(
        reactor, database, (ADD, "fine"), (half,), (ADD, "also")
    )
    assert fine.value == [(1,)]
    for each in (wrong, also):
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_BUSY"
    assert namesIn(path) == ["fine"]


def test_a_statement_that_ends_the_transaction_fails_those_before_it(
    reactor: Reactor, database: Database, path: Path
) -> None:
    """
    What SQLite has rolled back is not reported as carried out.
    """
    fine, end, also = together(
        reactor,
        database,
        (ADD, "fine"),
        (Statement("INSERT OR ROLLBACK INTO things (name) VALUES ('fine')"),),
        (ADD, "also"),
    )
    assert isinstance(fine.error, DatabaseUnavailable)
    assert isinstance(end.error, ConstraintViolated)
    assert also.value == [(1,)]
    assert namesIn(path) == ["also"]


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT unknown", ()),
        ("SELECT ?", ()),
        ("SELECT ?", ("secret", "secret")),
        ("SELECT ?", (1 << 63,)),
        ("SELECT ?", ("secret \udcff",)),
        ("SELECT ?", ({"secret": 1},)),
        ("SELECT 1; SELECT 'secret'", ()),
        ("SELECT json(?)", ("{secret",)),
        ("SELECT json_extract('{}', ?)", ("secret",)),
        ("SELECT CAST (? AS TEXT)", (b"secret \xff",)),
        ("INSERT INTO things (name) VALUES ('x')", ()),
    ],
)
def test_a_statement_that_cannot_be_carried_out_fails_alone(
    reactor: Reactor, database: Database, sql: str, parameters: tuple[object, ...]
) -> None:
    """
    The error names the statement, and no parameter.
    """
    first = resultOf(database.read(GET, 1))
    wrong = resultOf(database.read(Statement(sql), *parameters))
    after = resultOf(database.read(GET, 1))
    reactor.work()
    error = wrong.error
    assert first.value == after.value == []
    assert type(error) is DatabaseError
    assert error.code
    assert "secret" not in str(error).replace(sql, "")
    assert ("no such column: unknown" in str(error)) == ("unknown" in sql)
    assert error.__cause__ is error.__context__ is None
    if not sql.startswith("INSERT"):
        fine, wrong = together(
            reactor, database, (ADD, "x"), (Statement(sql), *parameters)
        )
        assert fine.value == [(1,)]
        assert type(wrong.error) is DatabaseError


def test_a_read_leaves_no_transaction_behind(
    reactor: Reactor, database: Database
) -> None:
    """
    Later reads do not see the tables as an earlier one has found them.
    """
    find(reactor, database, Statement("BEGIN"))
    assert find(reactor, database, ALL) == []
    together(reactor, database, (ADD, "new"))
    assert find(reactor, database, ALL) == [("new",)]


# Locks.


def test_a_lock_that_is_held_too_long_fails_those_who_waited(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Nothing waits longer for the lock than configured, or is written later.
    """
    database = opened(reactor, path, connectTimeout=0.05)
    gate = disk.hooks["BEGIN"] = Gate()
    with closing(connect(path, isolation_level=None)) as other:
        first = resultOf(database.write(ADD, "first"))
        gate.wait(reactor)
        many = [resultOf(database.write(ADD, f"name {n}")) for n in range(300)]
        gone = database.write(ADD, "gone")
        given = resultOf(gone)
        gate.open()
        reactor.work(first)
        gate = disk.hooks["BEGIN"] = Gate()
        gate.wait(reactor)
        other.execute("BEGIN IMMEDIATE")
        gone.cancel()
        later = resultOf(database.write(ADD, "later"))
        following = disk.hooks["BEGIN"] = Gate()
        gate.open()
        # They are more than one transaction, but have waited as long.
        reactor.work(*many)
        other.execute("ROLLBACK")
    following.open()
    reactor.work(later)
    assert first.value == [(1,)]
    for each in many:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_BUSY"
        assert each.error.retryAfter is not None
    assert isinstance(given.error, CancelledError)
    assert later.value == [(2,)]
    end(reactor, database)
    assert namesIn(path) == ["first", "later"]


# The disk.


def test_a_full_disk_loses_nothing_that_was_acknowledged(
    reactor: Reactor, database: Database, path: Path
) -> None:
    """
    Writes that do not fit are told so and may come again; reads go on.
    """
    together(reactor, database, (Statement("PRAGMA max_page_count = 12"),))
    written = together(
        reactor, database, *((ADD, f"{number} {'x' * 500}") for number in range(100))
    )
    acknowledged = [
        number for number, each in enumerate(written) if isinstance(each.fired[0], list)
    ]
    assert 0 < len(acknowledged) < 100
    errors = [each.error for each in written if not isinstance(each.fired[0], list)]
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    assert [int(name.split()[0]) for name in namesIn(path)] == acknowledged
    assert find(reactor, database, GET, 1)[0][0].startswith("0 ")
    more = Statement("PRAGMA max_page_count = 1000")
    _, again = together(reactor, database, (more,), (ADD, "again"))
    assert again.value


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_INTERRUPT"])
def test_what_was_certainly_not_committed_may_be_tried_again(
    disk: Disk, reactor: Reactor, database: Database, path: Path, code: str
) -> None:
    """
    After some errors of COMMIT it is known that nothing was written.
    """
    disk.hooks["COMMIT"] = trouble(code)
    (written,) = together(reactor, database, (ADD, "one"))
    assert isinstance(written.error, DatabaseUnavailable)
    assert written.error.code == code
    assert namesIn(path) == []
    del disk.hooks["COMMIT"]
    (again,) = together(reactor, database, (ADD, "one"))
    assert again.value == [(1,)]


@pytest.mark.parametrize("code", ["SQLITE_IOERR_FSYNC", "SQLITE_NOMEM"])
def test_nobody_knows_what_became_of_a_commit_that_failed(
    disk: Disk, reactor: Reactor, path: Path, code: str
) -> None:
    """
    The outcome is unknown, the database is lost, and whoever waits for the loss
    learns of it first.
    """
    database = opened(reactor, path)
    together(reactor, database, (ADD, "one"))
    happened: list[str] = []
    database.whenLost().addCallback(lambda _: happened.append("lost"))
    gate = disk.hooks["COMMIT"] = Gate(trouble(code))
    writing = database.write(ADD, "two")

    def failed(reason: Failure) -> Failure:
        happened.append("failed")
        return reason

    written = resultOf(writing.addErrback(failed))
    unique = resultOf(database.write(ADD, "one"))
    gate.wait(reactor)
    waiting = resultOf(database.write(ADD, "three"))
    gate.open()
    with logged() as events:
        reactor.work()
    assert happened == ["lost", "failed"]
    assert isinstance(written.error, OutcomeUnknown)
    assert isinstance(waiting.error, DatabaseUnavailable)
    # Of this one it is known that it was not carried out.
    assert isinstance(unique.error, UniqueViolated)
    assert textsOf(events) == [f"Lost the database: {code}"]
    assert all(each.closed for each in disk.made)
    assert not database.initialized


def test_a_statement_that_fails_for_the_disk_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Before the commit it is known that the whole transaction was not carried out.
    """
    database = opened(reactor, path)
    (first,) = together(reactor, database, (ADD, "first"))
    disk.hooks["DELETE"] = trouble("SQLITE_IOERR_WRITE")
    failed = together(
        reactor,
        database,
        (ADD, "beside"),
        (Statement("DELETE FROM things"),),
        (ADD, "behind"),
    )
    assert first.value == [(1,)]
    assert {type(each.error) for each in failed} == {DatabaseUnavailable}
    reactor.work()
    assert reactor.running == []
    assert namesIn(path) == ["first"]


def test_a_transaction_that_cannot_be_ended_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    What follows does not become a part of it.
    """
    database = opened(reactor, path)
    disk.hooks["ROLLBACK"] = trouble("SQLITE_IOERR")
    half = Statement("INSERT OR FAIL INTO things (name) VALUES ('x'), ('a')")
    fine, wrong = together(reactor, database, (ADD, "a"), (half,))
    assert isinstance(fine.error, DatabaseUnavailable)
    assert isinstance(wrong.error, ConstraintViolated)
    reactor.work()
    assert reactor.running == []
    assert namesIn(path) == []


@pytest.mark.parametrize("code", ["SQLITE_IOERR_READ", "SQLITE_READONLY_DBMOVED"])
def test_a_read_that_fails_for_the_disk_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path, code: str
) -> None:
    """
    Reads that succeeded are answered before the loss is told, others after.
    """
    database = opened(reactor, path)
    happened: list[str] = []

    def watch(name: str, deferred: Deferred[Any]) -> None:
        deferred.addCallbacks(
            lambda _: happened.append(name),
            lambda f: happened.append(f"{name} {f.type.__name__}"),
        )

    watch("first", database.read(GET, 1))
    watch("wrong", database.read(Statement("SELECT ?"), 1 << 63))
    watch("fine", database.read(GET, 1))
    watch("fails", database.read(ALL))
    watch("behind", database.read(GET, 1))
    watch("lost", database.whenLost())
    disk.hooks[ALL.sql] = trouble(code)
    reactor.work()
    assert happened == [
        "first",
        "fine",
        "lost",
        "behind DatabaseUnavailable",
        "wrong DatabaseError",
        "fails DatabaseUnavailable",
    ]


def test_an_error_in_one_read_does_not_end_the_connection(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    A damaged page, or too little memory, concerns the read that met it.
    """

    def memory() -> None:
        raise MemoryError

    for hook, kind in (
        (trouble("SQLITE_CORRUPT"), DatabaseError),
        (memory, DatabaseUnavailable),
    ):
        disk.hooks[ALL.sql] = hook
        wrong, fine = resultOf(database.read(ALL)), resultOf(database.read(GET, 1))
        reactor.work()
        assert type(wrong.error) is kind
        assert fine.value == []


def test_what_was_acknowledged_survives_a_power_cut(
    reactor: Reactor, database: Database
) -> None:
    """
    The log is written through to the disk, and foreign keys are enforced.
    """
    pragmas = ["journal_mode", "synchronous", "foreign_keys", "trusted_schema"]
    results = together(
        reactor, database, *((Statement(f"PRAGMA {each}"),) for each in pragmas)
    )
    assert [each.value for each in results] == [[("wal",)], [(2,)], [(1,)], [(0,)]]


def test_an_error_of_the_disk_is_logged_once_a_minute(
    disk: Disk, reactor: Reactor, database: Database
) -> None:
    """
    The log tells that the disk is full, but not of each statement.
    """

    def failing(code: str, *names: str) -> None:
        disk.hooks["COMMIT"] = trouble(code)
        for each in together(reactor, database, *((ADD, name) for name in names)):
            assert isinstance(each.error, DatabaseUnavailable)

    sentence = "the database cannot carry out a statement now (SQLITE_FULL)"
    with logged() as events:
        for _ in range(3):
            failing("SQLITE_FULL", "x")
    assert textsOf(events) == [sentence]
    reactor.advance(60)
    with logged() as events:
        failing("SQLITE_FULL", *"abcd")
        failing("SQLITE_BUSY", "x")
    assert textsOf(events) == [sentence, sentence.replace("FULL", "BUSY")]


# The file.


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("statement", [ADD, GET])
def test_a_file_that_is_taken_away_ends_the_connection(
    reactor: Reactor, path: Path, replaced: bool, suffix: str, statement: Statement
) -> None:
    """
    Nothing is acknowledged that goes to a file, or a log, that nobody finds.
    """
    database = opened(reactor, path)
    together(reactor, database, (ADD, "one"))
    with closing(connect(path)) as other:
        # The file itself has all by now.
        other.execute("PRAGMA wal_checkpoint")
    file = path.with_name(f"{path.name}{suffix}")
    file.rename(path.with_suffix(".old"))
    if replaced:
        file.write_bytes(b"")
    ask = database.write if statement is ADD else database.read
    failing = resultOf(ask(statement, 1))
    lost = resultOf(database.whenLost())
    reactor.work()
    assert lost.value is None
    assert isinstance(failing.error, DatabaseUnavailable)
    assert reactor.running == []
    if suffix or replaced:
        end(reactor, opened(reactor, path))
        assert namesIn(path) == (["one"] if suffix else [])


def test_a_file_that_comes_back_has_all_that_was_acknowledged(
    reactor: Reactor, path: Path
) -> None:
    """
    A log without its file is kept: no new file is made beside it.
    """
    database = opened(reactor, path)
    together(reactor, database, (ADD, "one"))
    old = path.rename(path.with_suffix(".old"))
    (failing,) = together(reactor, database, (ADD, "two"))
    assert isinstance(failing.error, DatabaseUnavailable)
    reactor.work()
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "put the file back" in str(error)
    assert not path.exists()
    old.rename(path)
    end(reactor, opened(reactor, path))
    assert namesIn(path) == ["one"]


def test_a_new_file_is_for_its_owner(reactor: Reactor, path: Path) -> None:
    """
    Nobody but the owner may read a new file; permissions that exist are kept.
    """
    database = opened(reactor, path)
    together(reactor, database, (ADD, "one"))
    for each in path.parent.iterdir():
        assert each.stat().st_mode & 0o777 == 0o600, each
    assert len(list(path.parent.iterdir())) == 3
    end(reactor, database)
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o640)
    end(reactor, opened(reactor, path))
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["file:x.db?mode=memory", "a b?c#d%20"])
def test_a_path_is_a_path(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """
    SQLite does not take a path for a URI or a database in memory.
    """
    monkeypatch.chdir(tmp_path)
    end(reactor, opened(reactor, Path(name)))
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("diary", "give another path"),
        ("", "is not a file"),
        ("none/the.db", "No such file or directory"),
    ],
)
def test_a_path_without_a_database_is_refused(
    reactor: Reactor, tmp_path: Path, name: str, text: str
) -> None:
    """
    A retry would not help; what is there stays as it is.
    """
    diary = tmp_path / "diary"
    diary.write_text("Dear diary, " * 1000)
    error = refused(reactor, tmp_path / name)
    assert isinstance(error, DatabaseRefused)
    assert str(tmp_path / name) in str(error)
    assert text in str(error)
    assert diary.read_text() == "Dear diary, " * 1000


@pytest.mark.parametrize(
    ("function", "number", "expected"),
    [
        ("open", errno.ENOSPC, DatabaseUnavailable),
        ("open", errno.EMFILE, DatabaseUnavailable),
        ("open", errno.EACCES, DatabaseRefused),
        ("access", None, DatabaseRefused),
    ],
)
def test_the_system_says_whether_a_file_can_be_opened_later(
    reactor: Reactor,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int | None,
    expected: type[Exception],
) -> None:
    """
    A full disk passes; a permission, or a file that is not writable, stays.
    """

    def fail(*arguments: Any, **options: Any) -> bool:
        if number is not None:
            raise OSError(number, os.strerror(number))
        return False

    monkeypatch.setattr(os, function, fail)
    assert type(refused(reactor, path)) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("SQLITE_BUSY", DatabaseUnavailable),
        ("SQLITE_IOERR", DatabaseUnavailable),
        ("SQLITE_FULL", DatabaseUnavailable),
        ("SQLITE_CORRUPT", DatabaseRefused),
        ("SQLITE_CANTOPEN", DatabaseRefused),
        ("SQLITE_PERM", DatabaseRefused),
        ("SQLITE_READONLY", DatabaseRefused),
        ("SQLITE_AUTH", DatabaseRefused),
    ],
)
@pytest.mark.parametrize(
    "where", ["PRAGMA foreign_keys", "SELECT part", "PRAGMA query_only"]
)
def test_sqlite_says_whether_a_file_can_be_opened_later(
    disk: Disk,
    reactor: Reactor,
    path: Path,
    where: str,
    code: str,
    expected: type[Exception],
) -> None:
    """
    A retry is for errors that pass; the others are told once.
    """
    disk.hooks[where] = trouble(code)
    error = refused(reactor, path)
    assert type(error) is expected
    assert code in str(error)
    assert all(each.closed for each in disk.made)


def test_a_file_system_without_shared_memory_is_refused(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    SQLite is used with its write-ahead log only.
    """
    disk.hooks["PRAGMA journal_mode"] = lambda: (
        disk.made[0].cursor().execute("SELECT 'delete'")
    )
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "local disk" in str(error)


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    The writer and the readers have the same file.
    """

    def replace() -> None:
        if disk.made:
            path.with_suffix(".x").write_bytes(b"")
            path.with_suffix(".x").rename(path)

    disk.onConnect = replace
    assert isinstance(refused(reactor, path), DatabaseUnavailable)


@pytest.mark.parametrize("free", [True, False])
def test_the_log_is_waited_for_although_sqlite_does_not(
    disk: Disk, reactor: Reactor, path: Path, free: bool
) -> None:
    """
    Processes that make a file at the same moment wait for each other, but no
    longer than configured.
    """
    left = [3]

    def hook() -> None:
        left[0] -= 1
        if not free or left[0] > 0:
            trouble("SQLITE_BUSY")()

    disk.hooks["PRAGMA journal_mode"] = hook
    if free:
        end(reactor, opened(reactor, path))
    else:
        error = refused(reactor, path, connectTimeout=0.05)
        assert isinstance(error, DatabaseUnavailable)
        assert left[0] < 0


# The schema.


def test_the_schema_is_brought_up_to_date(reactor: Reactor, path: Path) -> None:
    """
    A program that is upgraded loses nothing; an older one refuses a newer schema.
    """
    database = opened(reactor, path)
    together(reactor, database, (ADD, "one"))
    end(reactor, database)
    more = ["ALTER TABLE things ADD COLUMN color TEXT DEFAULT 'red'"]
    newer = Schema("things", [*SCHEMA.sqlite, more], [[], []])
    database = Database(reactor, f"sqlite:{path}", [newer])
    opening = resultOf(database.initialize())
    reactor.work(opening)
    assert opening.value is None
    rows = find(reactor, database, Statement("SELECT name, color FROM things"))
    assert rows == [("one", "red")]
    end(reactor, database)
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "upgrade tsrv" in str(error)


def test_a_schema_that_cannot_be_made_leaves_the_file_as_it_was(
    reactor: Reactor, path: Path
) -> None:
    """
    The steps of a schema are made all or none.
    """
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE parts (mine)")
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "tables" in str(error)
    with closing(connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert found == [("parts",)]


def test_opening_waits_for_a_lock_only_to_change_the_schema(
    reactor: Reactor, path: Path
) -> None:
    """
    A server can start beside one that is busy, and waits no longer than configured.
    """
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        opening = resultOf(make(reactor, path, connectTimeout=0.05).initialize())
        reactor.work(opening)
        assert isinstance(opening.error, DatabaseUnavailable)
        assert opening.error.code == "SQLITE_BUSY"
        other.execute("ROLLBACK")
        end(reactor, opened(reactor, path))
        other.execute("BEGIN IMMEDIATE")
        database = opened(reactor, path, connectTimeout=0.05)
        other.execute("ROLLBACK")
    end(reactor, database)


# Time.


def test_a_statement_that_takes_too_long_is_interrupted(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    It was not carried out, and the connection goes on.
    """
    database = opened(reactor, path, statementTimeout=2.0)
    gate = disk.hooks["INSERT"] = Gate(trouble("SQLITE_INTERRUPT"))
    slow = resultOf(database.write(ADD, "a"))
    gate.wait(reactor)
    behind = resultOf(database.write(ADD, "b"))
    reactor.pump([0.1] * 19)
    assert disk.made[0].interrupts == 0
    reactor.pump([0.1] * 3)
    assert disk.made[0].interrupts > 1
    del disk.hooks["INSERT"]
    gate.open()
    reactor.work(slow, behind)
    assert isinstance(slow.error, DatabaseUnavailable)
    assert slow.error.code == "SQLITE_INTERRUPT"
    assert behind.value == [(1,)]
    end(reactor, database)
    assert namesIn(path) == ["b"]


@pytest.mark.parametrize("where", ["BEGIN", "INSERT"])
def test_a_write_whose_time_is_up_is_not_committed(
    disk: Disk, reactor: Reactor, path: Path, where: str
) -> None:
    """
    It makes no difference whether it waited for the lock, or could not be
    interrupted in time.
    """
    database = opened(reactor, path, statementTimeout=2.0)
    gate = disk.hooks[where] = Gate()
    soon = resultOf(database.write(ADD, "a"))
    gate.wait(reactor)
    reactor.pump([0.1] * 5)
    gate.open()
    reactor.work(soon)
    assert soon.value == [(1,)]
    gate = disk.hooks[where] = Gate()
    late = resultOf(database.write(ADD, "b"))
    gate.wait(reactor)
    reactor.pump([0.1] * 25)
    gate.open()
    reactor.work(late)
    assert isinstance(late.error, DatabaseUnavailable)
    end(reactor, database)
    assert namesIn(path) == ["a"]


def test_writes_behind_a_slow_one_stay_in_order(
    disk: Disk, reactor: Reactor, database: Database, path: Path
) -> None:
    """
    They are in the next transaction, before what came later.
    """
    commits = disk.count("COMMIT")
    gate = disk.hooks["DELETE"] = Gate()
    answers: list[Any] = []
    database.write(ADD, "first")
    database.write(Statement("DELETE FROM parts"))
    for name in ("a", "b", "c"):
        database.write(ADD, name).addCallback(answers.append)
    gate.wait(reactor)
    reactor.advance(0.05)
    database.write(ADD, "last").addCallback(answers.append)
    gate.open()
    reactor.work()
    assert namesIn(path) == ["first", "a", "b", "c", "last"]
    assert answers == [[(2,)], [(3,)], [(4,)], [(5,)]]
    assert len(commits) == 2


def test_a_slow_read_does_not_stop_the_others(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Reads behind it use another connection, and those before it are answered.
    """
    database = opened(reactor, path, connections=2)
    gate = disk.hooks[ALL.sql] = Gate()
    before = resultOf(database.read(GET, 1))
    slow = resultOf(database.read(ALL))
    behind = resultOf(database.read(GET, 1))
    gate.wait(reactor)
    assert before.pending
    reactor.advance(0.05)
    reactor.work(before, behind)
    assert find(reactor, database, GET, 1) == []
    assert slow.pending
    assert sorted(reactor.running) == [
        "tsrv-sqlite-reader",
        "tsrv-sqlite-reader",
        "tsrv-sqlite-writer",
    ]
    second = resultOf(database.read(ALL))
    reactor.advance(0.05)
    waiting = resultOf(database.read(GET, 1))
    reactor.advance(0.05)
    # There are no more threads than allowed.
    assert len(reactor.running) == 3
    gate.open()
    reactor.work(slow, second, waiting)
    end(reactor, database)


def test_a_cancelled_read_does_not_wait_for_another_connection(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    It takes no place among those that wait.
    """
    database = opened(reactor, path, limit=2, connections=1)
    gate = disk.hooks[ALL.sql] = Gate()
    slow, given = resultOf(database.read(ALL)), database.read(GET, 1)
    result = resultOf(given)
    gate.wait(reactor)
    given.cancel()
    reactor.advance(0.05)
    waiting = [resultOf(database.read(GET, 1)) for _ in range(2)]
    gate.open()
    reactor.work()
    assert slow.value == []
    assert isinstance(result.error, CancelledError)
    assert [each.value for each in waiting] == [[], []]
    end(reactor, database)


def test_a_disk_that_stalls_is_given_up(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    The outcome of a write that has begun is unknown; what waits was not carried
    out; a thread that returns after all closes its connection.
    """
    database = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    lost = resultOf(database.whenLost())
    gate = disk.hooks["COMMIT"] = Gate()
    begun = resultOf(database.write(ADD, "begun"))
    gate.wait(reactor)
    waiting = resultOf(database.write(ADD, "waiting"))
    reactor.pump([0.1] * 29)
    assert begun.pending
    reactor.pump([0.1] * 3)
    assert lost.value is None
    assert isinstance(begun.error, OutcomeUnknown)
    assert isinstance(waiting.error, DatabaseUnavailable)
    end(reactor, database)
    assert reactor.running == ["tsrv-sqlite-writer"]
    gate.open()
    while reactor.running:
        reactor.deliver()
    assert all(each.closed for each in disk.made)
    assert files() == []


@pytest.mark.parametrize("where", ["BEGIN", GET.sql, "connect"])
def test_what_has_changed_nothing_before_the_disk_stalled_may_be_made_again(
    disk: Disk, reactor: Reactor, path: Path, where: str
) -> None:
    """
    That is known of reads, of a write that has not begun, and of opening.
    """
    database = make(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    gate = Gate()
    stalled = resultOf(database.initialize())
    if where == "connect":
        disk.onConnect = gate
    else:
        reactor.work(stalled)
        disk.hooks[where] = gate
        stalled = resultOf(
            database.read(GET, 1) if where == GET.sql else database.write(ADD, "a")
        )
    gate.wait(reactor)
    behind = resultOf(database.read(GET, 1))
    reactor.pump([0.1] * 42)
    assert isinstance(stalled.error, DatabaseUnavailable)
    assert "does not answer" in str(stalled.error)
    assert not behind.pending
    gate.open()
    while reactor.running:
        reactor.deliver()
    assert where == "connect" or namesIn(path) == []


@pytest.mark.parametrize("phase", ["opening", "idle", "busy"])
def test_closing_a_disk_that_stalls_is_given_up(
    disk: Disk, reactor: Reactor, path: Path, phase: str
) -> None:
    """
    A process can end, whatever its disk does.
    """
    gate = Gate()
    if phase == "opening":
        database = make(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
        disk.onConnect = gate
        begun = resultOf(database.initialize())
        assert gate.reached.wait(LONG)
    else:
        database = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
        disk.hooks[GET.sql] = gate if phase == "busy" else lambda: None
        begun = resultOf(database.read(GET, 1))
        if phase == "busy":
            gate.wait(reactor)
        else:
            reactor.work(begun)
            for each in disk.made:
                each.close = gate  # type: ignore[method-assign]
    closed = resultOf(database.close())
    reactor.pump([0.1] * 43)
    assert not begun.pending
    while closed.pending:
        reactor.deliver()
    assert reactor.getDelayedCalls() == []
    gate.open()
    while reactor.running:
        reactor.deliver()


# Giving up.


@pytest.mark.parametrize("handed", [False, True])
def test_a_cancelled_call_is_never_started(
    disk: Disk, reactor: Reactor, database: Database, path: Path, handed: bool
) -> None:
    """
    Neither one that waits, nor one that the thread has and has not begun.
    """
    gate = disk.hooks["BEGIN"] = Gate()
    given = database.write(ADD, "given up")
    result = resultOf(given)
    kept = resultOf(database.write(ADD, "kept"))
    if handed:
        gate.wait(reactor)
    given.cancel()
    gate.open()
    reactor.work()
    assert isinstance(result.error, CancelledError)
    assert kept.value == [(1,)]
    assert namesIn(path) == ["kept"]


def test_the_answer_of_a_cancelled_call_is_dropped(
    disk: Disk, reactor: Reactor, database: Database, path: Path
) -> None:
    """
    A call that has begun is carried out, and its answer is dropped.
    """
    gate = disk.hooks["COMMIT"] = Gate()
    given = database.write(ADD, "given up")
    result = resultOf(given)
    gate.wait(reactor)
    given.cancel()
    gate.open()
    reactor.work()
    assert isinstance(result.error, CancelledError)
    assert namesIn(path) == ["given up"]


def test_a_callback_may_cancel_another_call(
    reactor: Reactor, database: Database
) -> None:
    """
    A callback can do anything.
    """
    first, second = database.read(GET, 1), database.read(GET, 1)
    result = resultOf(second)
    first.addCallback(lambda _: second.cancel())
    reactor.work()
    assert isinstance(result.error, CancelledError)


def test_no_more_calls_wait_than_allowed(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    One more fails at once; cancelled calls, and those that have begun, do not count.
    """
    database = opened(reactor, path, limit=2)
    gate = disk.hooks["BEGIN"] = Gate()
    held = [resultOf(database.read(GET, 1)), resultOf(database.write(ADD, "begun"))]
    gate.wait(reactor)
    held.append(resultOf(database.read(GET, 1)))
    for _ in range(1000):
        given = database.write(ADD, "given up")
        given.addErrback(lambda f: f.trap(CancelledError))
        given.cancel()
    held.append(resultOf(database.write(ADD, "waiting")))
    for each in (database.write(ADD, "over"), database.read(GET, 1)):
        error = resultOf(each).error
        assert isinstance(error, DatabaseUnavailable)
        assert error.retryAfter is not None
    gate.open()
    reactor.work()
    assert not any(each.pending for each in held)
    assert together(reactor, database, (ADD, "again"))[0].value == [(3,)]
    end(reactor, database)


# Opening and closing.


@pytest.mark.parametrize("where", ["connect", "BEGIN", "PRAGMA query_only"])
@pytest.mark.parametrize("how", ["close", "cancel"])
def test_opening_can_be_given_up(
    disk: Disk, reactor: Reactor, path: Path, how: str, where: str
) -> None:
    """
    At no moment anything is left open; a schema is not waited for.
    """
    gate = Gate()
    if where == "connect":
        disk.onConnect = gate
    else:
        disk.hooks[where] = gate
    database = make(reactor, path)
    opening = database.initialize()
    result = resultOf(opening)
    while not gate.reached.is_set():
        if where == "PRAGMA query_only":
            reactor.deliver()
        assert gate.reached.wait(LONG)
    if how == "close":
        closed = resultOf(database.close())
    else:
        opening.cancel()
        closed = resultOf(database.close())
    assert isinstance(result.error, CancelledError)
    assert where == "connect" or disk.made[-1].interrupts == 1
    gate.open()
    reactor.work(closed)
    assert closed.value is None
    assert not database.initialized
    assert all(each.closed for each in disk.made)
    assert files() == reactor.running == []


def test_a_thread_that_cannot_be_started_may_be_tried_again(
    reactor: Reactor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The system may have room for it later.
    """

    def fail(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        opening = resultOf(make(reactor, path).initialize())
    assert isinstance(opening.error, DatabaseUnavailable)
    assert not path.exists()


def test_closing_ends_what_waits_and_lets_finish_what_has_begun(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    All who close it, or wait for the loss, are told.
    """
    database = opened(reactor, path)
    gate = disk.hooks["BEGIN"] = Gate()
    begun = resultOf(database.write(ADD, "begun"))
    gate.wait(reactor)
    waiting = [resultOf(database.write(ADD, "waiting")), resultOf(database.read(ALL))]
    waiters = [database.whenLost() for _ in range(4)]
    results = [resultOf(each) for each in waiters]
    waiters[0].cancel()
    waiters[1].addCallback(lambda _: waiters[2].cancel())
    closings = [resultOf(database.close()) for _ in range(2)]
    for each in waiting:
        assert isinstance(each.error, DatabaseUnavailable)
    assert closings[0].pending
    gate.open()
    reactor.work(*closings)
    assert begun.value == [(1,)]
    for each in (results[0], results[2]):
        assert isinstance(each.error, CancelledError)
    for each in (results[1], results[3], *closings):
        assert each.value is None
    end(reactor, database)
    assert namesIn(path) == ["begun"]


def test_it_can_be_closed_from_a_callback(reactor: Reactor, path: Path) -> None:
    """
    The calls that have finished together are all answered.
    """
    database = opened(reactor, path)
    answers: list[Any] = []
    closed: list[Result] = []

    def close(result: Any) -> None:
        answers.append(result)
        closed.append(resultOf(database.close()))

    for _ in range(20):
        database.read(GET, 1).addBoth(close)
    reactor.work()
    assert answers == [[]] * 20
    assert {each.value for each in closed} == {None}


# Real time.


@asynchronous
async def test_threads_and_files_are_gone_when_it_is_closed(path: Path) -> None:
    """
    A program may open and close it as often as it likes.
    """
    from twisted.internet import reactor

    running = Reactor()
    for number in range(10):
        database = make(reactor, path)
        await database.initialize()
        await database.write(ADD, f"name {number}")
        assert len(running.running) == 5
        assert files()
        await database.close()
        opening = database.initialize()
        opening.addErrback(lambda f: f.trap(CancelledError))
        opening.cancel()
        await database.close()
        assert running.running == files() == []
    assert len(namesIn(path)) == 10


@asynchronous
async def test_endless_statements_end_and_others_go_on(path: Path) -> None:
    """
    SQLite ends them, and rolls back what they have written; closing waits for it.
    """
    from twisted.internet import reactor

    database = make(reactor, path, statementTimeout=0.5, connections=2)
    await database.initialize()
    endless = [
        resultOf(database.read(ENDLESS)),
        resultOf(database.write(ADD_ENDLESS)),
    ]
    behind = database.write(ADD, "behind")
    for _ in range(100):
        assert await database.read(ALL) == []
    assert [each.pending for each in endless] == [True, True]
    assert await behind == [(1,)]
    while endless[0].pending:
        await database.read(ALL)
    assert await database.read(ALL) == [("behind",)]
    endless.append(resultOf(database.read(ENDLESS)))
    # So that it has begun.
    await database.read(ALL)
    await database.close()
    for each in endless:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_INTERRUPT"
    assert Reactor().running == files() == []


@asynchronous
async def test_two_on_one_file_lose_nothing(path: Path) -> None:
    """
    What either has acknowledged is there once.
    """
    from twisted.internet import reactor

    numbers: list[int] = []

    async def write(database: Database, name: str) -> None:
        for number in range(20):
            rows = await database.write(ADD, f"{name} {number}")
            numbers.append(rows[0][0])

    databases = [make(reactor, path) for _ in range(2)]
    await gatherResults([each.initialize() for each in databases])
    await gatherResults(
        [
            Deferred.fromCoroutine(write(database, f"{index} {part}"))
            for index, database in enumerate(databases)
            for part in range(16)
        ],
        consumeErrors=True,
    )
    await gatherResults([each.close() for each in databases])
    assert sorted(numbers) == list(range(1, 641))
    assert len(set(namesIn(path))) == 640


CHILD = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.test_sqlite import ADD, make

path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
database = make(reactor, path)

async def write(part):
    for number in range(count):
        text = f"{name}-{part}-{number}"
        await database.write(ADD, text)
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()

async def main():
    sys.stdin.readline()
    await database.initialize()
    for each in [Deferred.fromCoroutine(write(part)) for part in range(16)]:
        await each
    await database.close()

def ended(result):
    if result is not None:
        print(result)
    reactor.stop()

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addBoth(ended))
reactor.run()
"""


def spawn(stack: ExitStack, path: Path, name: str, count: int) -> Any:
    """
    Start a process that writes when it is told to, and says what it has written.
    """
    process = stack.enter_context(
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", CHILD, str(path), name, str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(process.kill)
    return process


def test_processes_that_begin_at_once_lose_nothing(path: Path) -> None:
    """
    They make the file, its log and its schema at the same moment; what each has
    acknowledged is there once.
    """
    with ExitStack() as stack:
        processes = [spawn(stack, path, str(number), 10) for number in range(4)]
        for each in processes:
            each.stdin.write("\n")
            each.stdin.flush()
        said = [line for each in processes for line in each.stdout.read().split()]
    assert len(said) == 4 * 16 * 10
    assert sorted(namesIn(path)) == sorted(said)


def test_what_was_acknowledged_survives_kill(path: Path) -> None:
    """
    However suddenly the process ends.
    """
    with ExitStack() as stack:
        process = spawn(stack, path, "x", 1_000_000)
        process.stdin.write("\n")
        process.stdin.flush()
        said = [process.stdout.readline().strip() for _ in range(1000)]
        process.kill()
        # The last line may not be whole.
        said += process.stdout.read().split("\n")[:-1]
    names = namesIn(path)
    assert len(said) >= 1000
    assert set(said) <= set(names)
    assert len(names) == len(set(names))
