"""
What SQLite was asked for is carried out once or not at all, and the answer
says which; whatever happens to the file, the disk and the threads.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tsrv.databases import (
    ConstraintViolated,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Schema,
    Settings,
    Statement,
    UniqueViolated,
)
from tsrv.databases.interface import Engine
from tsrv.databases.sqlite import SQLite
from tsrv.databases.sqlitebatch import Batch
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

ADD_ID = Statement("INSERT INTO things (id, name) VALUES (?, ?)")

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


class Reactor(Clock):
    """
    A clock with threads that run when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []
        self.fromThread: deque[tuple[Any, ...]] = deque()
        self.canStart = True

    def callFromThread(self, *call: Any) -> None:
        self.fromThread.append(call)

    def createWorker(self, reactor: Any, name: str) -> Worker:
        """
        Make what runs in no thread.
        """
        if not self.canStart:
            raise RuntimeError("can't start new thread")
        worker = Worker(self, name)
        self.workers.append(worker)
        return worker

    def deliver(self) -> None:
        """
        Make the calls that threads have asked for.
        """
        while self.fromThread:
            function, *arguments = self.fromThread.popleft()
            function(*arguments)

    def turn(self) -> None:
        """
        Let turns pass in which nothing more is asked for.
        """
        self.advance(0)
        self.deliver()

    def work(self) -> None:
        """
        Let all threads do all that they have to do.
        """
        self.deliver()
        worked = True
        while worked:
            worked = False
            for worker in list(self.workers):
                worked |= worker.step()
            self.deliver()
            while any(call.getTime() <= self.seconds() for call in self.calls):
                self.turn()
                worked = True

    @property
    def running(self) -> list[str]:
        """
        The names of the threads that have not ended.
        """
        return [worker.name for worker in self.workers if not worker.ended]


class Worker:
    """
    A thread that is none.
    """

    def __init__(self, reactor: Reactor, name: str) -> None:
        self.name = name
        self.ended = False
        self.tasks: deque[Callable[[], None]] = deque()
        self._reactor = reactor

    def do(self, task: Callable[[], None]) -> None:
        self.tasks.append(task)

    def quit(self, ended: Callable[[], None]) -> None:
        def end() -> None:
            self.ended = True
            self._reactor.callFromThread(ended)

        self.tasks.append(end)

    def step(self) -> bool:
        """
        Do the next thing.

        @return: Whether there was one.
        """
        if not self.tasks:
            return False
        self.tasks.popleft()()
        return True


Hook = Callable[[], object]


class Disk:
    """
    SQLite, except for what the test makes of some statements.

    @ivar hooks: What happens before a statement that begins so: it may raise.
    @ivar answers: What a statement answers instead.
    @ivar made: The connections.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hooks: dict[str, Hook] = {}
        self.answers: dict[str, list[tuple[object]]] = {}
        self.made: list[Connection] = []
        self.onConnect: Hook = lambda: None
        self._connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", self.connect)

    def connect(self, *arguments: Any, **options: Any) -> Connection:
        """
        Open a database.
        """
        self.onConnect()
        connection = Connection(self, self._connect(*arguments, **options))
        self.made.append(connection)
        return connection


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

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        for text, hook in list(self._disk.hooks.items()):
            if sql.startswith(text):
                hook()
        for text, rows in self._disk.answers.items():
            if sql.startswith(text):
                return self._connection.execute("SELECT ?", rows[0])
        return self._connection.execute(sql, parameters)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def rollback(self) -> None:
        self._connection.rollback()

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
    assert reactor.running == []
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    Where the file will be.
    """
    return tmp_path / "the.db"


def make(reactor: Reactor, path: Path, **settings: Any) -> SQLite:
    """
    @return: What is not opened yet.
    """
    return SQLite(
        reactor, str(path), [SCHEMA], Settings(**settings), reactor.createWorker
    )


def opened(reactor: Reactor, path: Path, **settings: Any) -> SQLite:
    """
    @return: What is opened.
    """
    engine = make(reactor, path, **settings)
    opening = resultOf(engine.open())
    reactor.work()
    assert opening.value is None
    return engine


@pytest.fixture
def engine(reactor: Reactor, path: Path) -> Iterator[SQLite]:
    """
    A database that is open.
    """
    engine = opened(reactor, path)
    yield engine
    end(reactor, engine)


def end(reactor: Reactor, engine: SQLite) -> None:
    """
    Close a database, and leave nothing behind.
    """
    closing = resultOf(engine.close())
    reactor.work()
    assert closing.value is None


def namesIn(path: Path) -> list[str]:
    """
    @return: What somebody else finds in the file.
    """
    connection = sqlite3.connect(path)
    try:
        return [name for (name,) in connection.execute(ALL.sql).fetchall()]
    finally:
        connection.close()


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


def threads() -> list[str]:
    """
    @return: The threads of databases.
    """
    return [
        each.name for each in threading.enumerate() if each.name.startswith("tsrv-")
    ]


def errorOf(deferred: Deferred[Any]) -> Result:
    """
    Watch a Deferred that is going to fail.
    """
    return resultOf(deferred)


def test_it_is_what_a_database_is_made_of(engine: SQLite) -> None:
    """
    L{Database} knows no more of it than that.
    """
    checked: Engine = engine
    assert checked is engine


def test_what_was_written_can_be_read(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    That is what it is for.
    """
    written = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert written.value == [(1,)]
    read = resultOf(engine.read(GET, 1))
    none = resultOf(engine.read(GET, 2))
    reactor.work()
    assert read.value == [("one",)]
    assert none.value == []
    assert namesIn(path) == ["one"]


def test_what_waits_is_one_transaction_in_order(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    To wait for the disk once is what makes many writers fast.
    """
    commits: list[None] = []
    disk.hooks["COMMIT"] = lambda: commits.append(None)
    answers: list[Any] = []
    for number in range(600):
        engine.write(ADD, f"name {number}").addCallback(answers.append)
    reactor.work()
    assert answers == [[(number,)] for number in range(1, 601)]
    # No more than 256 in one.
    assert len(commits) == 3


def test_what_comes_in_turn_after_turn_is_one_transaction(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    A thread that is given one statement at a time takes the interpreter from the
    reactor with each of them.
    """
    commits: list[None] = []
    disk.hooks["COMMIT"] = lambda: commits.append(None)
    answers: list[Any] = []

    def ask(left: int) -> None:
        if left:
            reactor.callLater(0, ask, left - 1)
        engine.write(ADD, f"name {left}").addCallback(answers.append)

    ask(20)
    reactor.work()
    assert len(answers) == 21
    assert len(commits) == 1


def test_nobody_waits_long_for_others_to_come(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    Where each turn is long and brings one more, the first would wait for ever.
    """
    commits: list[float] = []
    disk.hooks["COMMIT"] = lambda: commits.append(reactor.seconds())
    asked: list[float] = []

    def ask() -> None:
        asked.append(reactor.seconds())
        if len(asked) < 20:
            reactor.callLater(0, ask)
        engine.write(ADD, f"name {len(asked)}")
        reactor.rightNow += 0.004
        reactor.workers[0].step()
        reactor.deliver()

    ask()
    reactor.work()
    assert len(commits) == 7
    assert commits[0] - asked[0] < 0.02


def test_nothing_is_answered_before_it_is_on_the_disk(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    An answer is a promise that outlives the process.
    """
    written: list[Result] = []
    pending: list[bool] = []

    def look() -> None:
        reactor.deliver()
        reactor.advance(0.1)
        pending.extend(each.pending for each in written)

    disk.hooks["COMMIT"] = look
    written += [resultOf(engine.write(ADD, str(number))) for number in range(3)]
    reactor.work()
    assert pending == [True, True, True]
    assert [each.value for each in written] == [[(1,)], [(2,)], [(3,)]]


def together(reactor: Reactor, engine: SQLite, *calls: Any) -> list[Result]:
    """
    Make several writes in one transaction.
    """
    results = [resultOf(engine.write(*call)) for call in calls]
    reactor.work()
    return results


@pytest.mark.parametrize(
    ("sql", "code", "unique"),
    [
        ("INSERT INTO things (name) VALUES ('first')", "UNIQUE", True),
        ("INSERT INTO things (id) VALUES (1)", "PRIMARYKEY", True),
        ("INSERT INTO things (rowid) VALUES (1)", "PRIMARYKEY", True),
        ("INSERT INTO bare (rowid) VALUES (1)", "ROWID", True),
        ("INSERT INTO things (size) VALUES (NULL)", "NOTNULL", False),
        ("INSERT INTO things (size) VALUES (0)", "CHECK", False),
        ("INSERT INTO parts VALUES ('part', 1, 7)", "FOREIGNKEY", False),
        ("INSERT INTO parts VALUES ('part', 7, 1)", "FOREIGNKEY", False),
    ],
)
def test_who_violates_a_constraint_fails_alone(
    reactor: Reactor, engine: SQLite, path: Path, sql: str, code: str, unique: bool
) -> None:
    """
    Others in the same transaction have done nothing wrong; and the reason is
    told by SQLite's extended code, whatever its messages say.
    """
    together(
        reactor,
        engine,
        (Statement("CREATE TABLE bare (x)"),),
        (Statement("INSERT INTO bare (rowid) VALUES (1)"),),
        (ADD, "first"),
    )
    before, wrong, after = together(
        reactor, engine, (ADD, "before"), (Statement(sql),), (ADD, "after")
    )
    assert before.value == [(2,)]
    assert after.value == [(3,)]
    assert isinstance(wrong.error, ConstraintViolated)
    assert wrong.error.code == f"SQLITE_CONSTRAINT_{code}"
    assert isinstance(wrong.error, UniqueViolated) is unique
    assert namesIn(path) == ["first", "before", "after"]


def test_what_is_looked_at_in_the_end_is_one_statements_fault(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    Such a constraint fails the whole transaction; then each is made on its own.
    """
    fine, unique, late, also = together(
        reactor,
        engine,
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


def test_a_statement_that_fails_leaves_nothing_behind(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    Some fail half way, or after they were carried out, when their rows cannot
    be understood.
    """
    fine, half, rows, also = together(
        reactor,
        engine,
        (ADD, "fine"),
        (Statement("INSERT OR FAIL INTO things (name) VALUES ('x'), ('fine')"),),
        (
            Statement(
                "INSERT INTO things (name) VALUES ('y') "
                "RETURNING CAST (x'ff' AS TEXT), name"
            ),
        ),
        (ADD, "also"),
    )
    assert fine.value == [(1,)]
    assert also.value == [(2,)]
    assert isinstance(half.error, ConstraintViolated)
    assert isinstance(rows.error, DatabaseError)
    assert namesIn(path) == ["fine", "also"]


def test_a_statement_that_ends_the_transaction_fails_all(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    What SQLite has rolled back was not carried out, and nobody is told that it
    was.
    """
    fine, end, also = together(
        reactor,
        engine,
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
    reactor: Reactor, engine: SQLite, sql: str, parameters: tuple[object, ...]
) -> None:
    """
    To try again would not help, and what came from outside is not repeated.
    """
    first = resultOf(engine.read(GET, 1))
    wrong = resultOf(engine.read(Statement(sql), *parameters))
    after = resultOf(engine.read(GET, 1))
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
            reactor, engine, (ADD, "x"), (Statement(sql), *parameters)
        )
        assert fine.value == [(1,)]
        assert type(wrong.error) is DatabaseError


def test_out_of_memory_passes(disk: Disk, reactor: Reactor, engine: SQLite) -> None:
    """
    It says nothing about the statement.
    """

    def hook() -> None:
        raise MemoryError

    disk.hooks["SELECT name"] = hook
    read = resultOf(engine.read(GET, 1))
    reactor.work()
    assert isinstance(read.error, DatabaseUnavailable)


# What keeps a transaction from being made.


def test_a_lock_that_is_held_too_long_fails_those_who_waited(
    reactor: Reactor, path: Path
) -> None:
    """
    Nobody waits longer than was configured, and nothing is written later.
    """
    engine = opened(reactor, path, connectTimeout=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    first = [resultOf(engine.write(ADD, "early 0"))]
    reactor.turn()
    first.append(resultOf(engine.write(ADD, "early 1")))
    reactor.workers[0].step()
    later = resultOf(engine.write(ADD, "later"))
    other.execute("ROLLBACK")
    other.close()
    reactor.work()
    for each in first[:1]:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_BUSY"
        assert each.error.retryAfter is not None
    assert first[1].value == [(1,)]
    assert later.value == [(2,)]
    assert namesIn(path) == ["early 1", "later"]
    end(reactor, engine)


def test_who_waited_behind_a_full_batch_waited_for_the_lock_too(
    reactor: Reactor, path: Path
) -> None:
    """
    One lock must not be waited for again and again.
    """
    engine = opened(reactor, path, connectTimeout=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    first = resultOf(engine.write(ADD, "first"))
    reactor.turn()
    many = [resultOf(engine.write(ADD, f"name {number}")) for number in range(300)]
    gone = engine.write(ADD, "gone")
    reactor.workers[0].step()
    reactor.deliver()
    reactor.turn()
    other.execute("BEGIN IMMEDIATE")
    later = resultOf(engine.write(ADD, "later"))
    given = errorOf(gone)
    gone.cancel()
    reactor.workers[0].step()
    other.execute("ROLLBACK")
    other.close()
    reactor.work()
    assert first.value == [(1,)]
    assert {type(each.error) for each in many} == {DatabaseUnavailable}
    assert isinstance(given.error, CancelledError)
    assert later.value == [(2,)]
    end(reactor, engine)


def test_answers_leave_others_their_turn(reactor: Reactor, engine: SQLite) -> None:
    """
    Sixty who have written together, and write again at once, would keep everybody
    else from the reactor.
    """
    written = [resultOf(engine.write(ADD, str(number))) for number in range(60)]
    answered: list[int] = []

    def others() -> None:
        answered.append(sum(not each.pending for each in written))
        if answered[-1] < 60:
            reactor.callLater(0, others)

    reactor.turn()
    reactor.workers[0].step()
    reactor.deliver()
    others()
    reactor.work()
    assert answered == list(range(3, 61, 3))
    assert [each.value for each in written] == [[(n,)] for n in range(1, 61)]


def test_more_may_be_carried_out_while_many_are_answered(
    reactor: Reactor, engine: SQLite
) -> None:
    """
    Where so many wait, the thread need not.
    """
    written = [resultOf(engine.write(ADD, str(number))) for number in range(600)]
    pending: list[int] = []

    def others() -> None:
        pending.append(sum(each.pending for each in written))
        reactor.workers[0].step()
        reactor.deliver()
        if pending[-1]:
            reactor.callLater(0, others)

    reactor.callLater(0, others)
    reactor.work()
    assert [each.value for each in written] == [[(n,)] for n in range(1, 601)]
    assert all(a - b <= 6 for a, b in pairwise(pending))


def test_who_gave_up_before_the_thread_came_to_it_is_passed_over(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    Nothing runs after its caller gave up.
    """
    given = engine.write(ADD, "given up")
    result = resultOf(given)
    kept = resultOf(engine.write(ADD, "kept"))
    reactor.turn()
    given.cancel()
    reactor.work()
    assert isinstance(result.error, CancelledError)
    assert kept.value == [(1,)]
    assert namesIn(path) == ["kept"]


def test_who_comes_back_at_once_waits_for_those_who_do_so_too(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    They have waited for one transaction together, and will do so again.
    """
    commits: list[None] = []
    disk.hooks["COMMIT"] = lambda: commits.append(None)
    answers: list[Any] = []

    def again(answer: Any) -> None:
        answers.append(answer)
        if len(answers) % 6 == 1:
            # As the answer of a client takes a while: not in each turn.
            reactor.callLater(0, engine.write, ADD, f"again {len(answers)}")

    for number in range(60):
        engine.write(ADD, str(number)).addCallback(again)
    reactor.work()
    assert len(answers) == 60
    assert len(commits) == 2


def test_what_was_answered_is_told_before_it_is_closed(
    reactor: Reactor, engine: SQLite
) -> None:
    """
    Nothing that is on the disk is reported to have failed.
    """
    written = [resultOf(engine.write(ADD, str(number))) for number in range(60)]
    reactor.turn()
    reactor.workers[0].step()
    reactor.deliver()
    assert written[-1].pending
    closing = resultOf(engine.close())
    assert [each.value for each in written] == [[(n,)] for n in range(1, 61)]
    reactor.work()
    assert closing.value is None


def test_a_full_disk_loses_nothing_that_was_acknowledged(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    Those who do not fit are told so, may come again, and others can be read.
    """
    resultOf(engine.write(Statement("PRAGMA max_page_count = 12")))
    reactor.work()
    written = [
        resultOf(engine.write(ADD, f"{number} {'x' * 500}")) for number in range(100)
    ]
    reactor.work()
    acknowledged = [
        number for number, each in enumerate(written) if isinstance(each.fired[0], list)
    ]
    assert 0 < len(acknowledged) < 100
    errors = [each.error for each in written if not isinstance(each.fired[0], list)]
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    assert [int(name.split()[0]) for name in namesIn(path)] == acknowledged
    read = resultOf(engine.read(GET, 1))
    resultOf(engine.write(Statement("PRAGMA max_page_count = 1000")))
    again = resultOf(engine.write(ADD, "again"))
    reactor.work()
    assert read.value[0][0].startswith("0 ")
    assert again.value


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_INTERRUPT"])
def test_what_was_certainly_not_committed_may_be_tried_again(
    disk: Disk, reactor: Reactor, engine: SQLite, path: Path, code: str
) -> None:
    """
    A full disk is seen before the transaction counts.
    """
    disk.hooks["COMMIT"] = trouble(code)
    written = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert isinstance(written.error, DatabaseUnavailable)
    assert written.error.code == code
    assert namesIn(path) == []
    del disk.hooks["COMMIT"]
    again = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert again.value == [(1,)]


@pytest.mark.parametrize("code", ["SQLITE_IOERR_FSYNC", "SQLITE_NOMEM"])
def test_nobody_knows_what_became_of_a_commit_that_failed(
    disk: Disk, reactor: Reactor, path: Path, code: str
) -> None:
    """
    It may be on the disk already. Only a new connection can tell.
    """
    engine = opened(reactor, path)
    happened: list[str] = []
    engine.whenLost().addCallback(lambda _: happened.append("lost"))
    disk.hooks["COMMIT"] = trouble(code)
    writing = engine.write(ADD, "one")

    def failed(reason: Failure) -> Failure:
        happened.append("failed")
        return reason

    written = resultOf(writing.addErrback(failed))
    reactor.turn()
    waiting = resultOf(engine.write(ADD, "two"))
    with logged() as events:
        reactor.work()
    assert happened == ["lost", "failed"]
    assert isinstance(written.error, OutcomeUnknown)
    assert isinstance(waiting.error, DatabaseUnavailable)
    assert textsOf(events) == [f"Lost the database: {code}"]
    assert all(each.closed for each in disk.made)
    assert reactor.running == []


def test_a_constraint_that_failed_alone_stays_that_when_the_commit_fails(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Of that statement it is known that it was not carried out.
    """
    engine = opened(reactor, path)
    together(reactor, engine, (ADD, "one"))
    disk.hooks["COMMIT"] = trouble("SQLITE_IOERR_WRITE")
    disk.hooks["DELETE"] = lambda: None
    engine.read(ALL)
    wrong = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert isinstance(wrong.error, ConstraintViolated)


def test_a_statement_that_fails_for_the_disk_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Before the transaction is to be committed, all know that it was not.
    """
    engine = opened(reactor, path)
    disk.hooks["DELETE"] = trouble("SQLITE_IOERR_WRITE")
    first = resultOf(engine.write(ADD, "first"))
    reactor.turn()
    beside = resultOf(engine.write(ADD, "beside"))
    failing = resultOf(engine.write(Statement("DELETE FROM things")))
    behind = resultOf(engine.write(ADD, "behind"))
    reactor.work()
    assert first.value == [(1,)]
    for each in (beside, failing, behind):
        assert isinstance(each.error, DatabaseUnavailable)
    assert reactor.running == []
    assert namesIn(path) == ["first"]


@pytest.mark.parametrize("where", ["ROLLBACK", "ROLLBACK TO", "SAVEPOINT"])
def test_a_transaction_that_cannot_be_ended_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path, where: str
) -> None:
    """
    What comes next must not become a part of it.
    """
    engine = opened(reactor, path)
    disk.hooks[where] = trouble("SQLITE_IOERR")
    disk.hooks["COMMIT"] = trouble("SQLITE_FULL")
    fine = resultOf(engine.write(ADD, "a"))
    half = Statement("INSERT OR FAIL INTO things (name) VALUES ('x'), ('a')")
    wrong = resultOf(engine.write(half))
    reactor.work()
    assert isinstance(fine.error, DatabaseUnavailable)
    assert isinstance(wrong.error, (DatabaseUnavailable, DatabaseError))
    assert reactor.running == []
    assert namesIn(path) == []


@pytest.mark.parametrize("code", ["SQLITE_IOERR_READ", "SQLITE_READONLY_DBMOVED"])
def test_a_read_that_fails_for_the_disk_ends_the_connection(
    disk: Disk, reactor: Reactor, path: Path, code: str
) -> None:
    """
    Those who were answered before are told before; those behind may be tried
    with a new connection.
    """
    engine = opened(reactor, path)
    happened: list[str] = []

    def watch(name: str, deferred: Deferred[Any]) -> None:
        deferred.addCallbacks(
            lambda _: happened.append(name),
            lambda f: happened.append(f"{name} {f.type.__name__}"),
        )

    watch("first", engine.read(GET, 1))
    watch("wrong", engine.read(Statement("SELECT ?"), 1 << 63))
    watch("fine", engine.read(GET, 1))
    watch("fails", engine.read(ALL))
    watch("behind", engine.read(GET, 1))
    watch("lost", engine.whenLost())
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


def test_a_damaged_page_concerns_who_asked_for_it(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    A new connection would not repair it; whoever asks for it again and again
    must not take the database away from others.
    """
    disk.hooks[ALL.sql] = trouble("SQLITE_CORRUPT")
    wrong, fine = resultOf(engine.read(ALL)), resultOf(engine.read(GET, 1))
    reactor.work()
    assert type(wrong.error) is DatabaseError
    assert fine.value == []


def test_it_is_used_as_it_has_to_be(reactor: Reactor, engine: SQLite) -> None:
    """
    What was acknowledged survives a power cut: its log is written through.
    """
    pragmas = ["journal_mode", "synchronous", "foreign_keys", "trusted_schema"]
    results = [resultOf(engine.write(Statement(f"PRAGMA {each}"))) for each in pragmas]
    reactor.work()
    assert [each.value for each in results] == [[("wal",)], [(2,)], [(1,)], [(0,)]]


# The file.


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("statement", [ADD, GET])
def test_a_file_that_is_moved_away_ends_the_connection(
    reactor: Reactor, path: Path, replaced: bool, statement: Statement
) -> None:
    """
    SQLite would go on writing where nobody finds it again.
    """
    engine = opened(reactor, path)
    path.rename(path.with_suffix(".old"))
    if replaced:
        path.write_bytes(b"")
    failing = resultOf(
        engine.write(ADD, "lost") if statement is ADD else engine.read(GET, 1)
    )
    lost = resultOf(engine.whenLost())
    reactor.work()
    assert lost.value is None
    assert isinstance(failing.error, DatabaseUnavailable)
    assert reactor.running == []
    if replaced:
        end(reactor, opened(reactor, path))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_log_that_is_taken_away_ends_the_connection(
    reactor: Reactor, path: Path, replaced: bool
) -> None:
    """
    In it is what was acknowledged last; what is written after that would be in
    no file.
    """
    engine = opened(reactor, path)
    written = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert written.value == [(1,)]
    log = path.with_name(f"{path.name}-wal")
    log.unlink()
    if replaced:
        log.write_bytes(b"")
    failing = resultOf(engine.write(ADD, "two"))
    lost = resultOf(engine.whenLost())
    reactor.work()
    assert isinstance(failing.error, DatabaseUnavailable)
    assert lost.value is None
    end(reactor, opened(reactor, path))
    assert namesIn(path) == ["one"]


def test_what_does_not_work_for_a_while_is_told_once(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    Else nobody would learn from the log that the disk is full; and with a line
    for each statement it would be full the sooner.
    """
    disk.hooks["COMMIT"] = trouble("SQLITE_FULL")
    with logged() as events:
        for _ in range(3):
            result = resultOf(engine.write(ADD, "x"))
            reactor.work()
            assert isinstance(result.error, DatabaseUnavailable)
    sentence = "the database cannot carry out a statement now (SQLITE_FULL)"
    assert textsOf(events) == [sentence]
    reactor.advance(60)
    with logged() as events:
        failing = [resultOf(engine.write(ADD, str(number))) for number in range(9)]
        reactor.work()
        assert all(isinstance(each.error, DatabaseUnavailable) for each in failing)
        disk.hooks["COMMIT"] = trouble("SQLITE_BUSY")
        busy = resultOf(engine.write(ADD, "x"))
        reactor.work()
        assert isinstance(busy.error, DatabaseUnavailable)
    assert textsOf(events) == [sentence, sentence.replace("FULL", "BUSY")]


def test_a_read_leaves_no_transaction_behind(reactor: Reactor, engine: SQLite) -> None:
    """
    Those that follow would see the tables as they were then.
    """
    for statement in (Statement("BEGIN"), ALL):
        resultOf(engine.read(statement))
        reactor.work()
    engine.write(ADD, "new")
    reactor.work()
    seen = resultOf(engine.read(ALL))
    reactor.work()
    assert seen.value == [("new",)]


def test_a_file_that_comes_back_has_all_that_was_acknowledged(
    reactor: Reactor, path: Path
) -> None:
    """
    What was written last is in the log beside it. To make a new file would
    throw that away.
    """
    engine = opened(reactor, path)
    written = resultOf(engine.write(ADD, "one"))
    reactor.work()
    old = path.rename(path.with_suffix(".old"))
    failing = resultOf(engine.write(ADD, "two"))
    reactor.work()
    assert written.value == [(1,)]
    assert isinstance(failing.error, DatabaseUnavailable)
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "its log is there" in str(error)
    assert not path.exists()
    old.rename(path)
    end(reactor, opened(reactor, path))
    assert namesIn(path) == ["one"]


def test_a_new_file_is_for_its_owner(reactor: Reactor, path: Path) -> None:
    """
    There are people's addresses in it.
    """
    engine = opened(reactor, path)
    written = resultOf(engine.write(ADD, "one"))
    reactor.work()
    assert written.value
    for each in path.parent.iterdir():
        assert each.stat().st_mode & 0o777 == 0o600, each
    assert len(list(path.parent.iterdir())) == 3
    end(reactor, engine)
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o640)
    end(reactor, opened(reactor, path))
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["file:x.db?mode=memory", ":memory:", "a b?c#d%20"])
def test_a_path_is_a_path(
    reactor: Reactor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """
    What SQLite takes for something else would be gone with the process.
    """
    monkeypatch.chdir(tmp_path)
    end(reactor, opened(reactor, Path(name)))
    assert [each.name for each in tmp_path.iterdir()] == [name]


def refused(reactor: Reactor, path: Path, **settings: Any) -> BaseException:
    """
    @return: Why it could not be opened; nothing is left open.
    """
    engine = make(reactor, path, **settings)
    left: list[str] = []

    def failed(reason: Failure) -> Failure:
        left.extend([*reactor.running, *files()])
        return reason

    opening = resultOf(engine.open().addErrback(failed))
    reactor.work()
    assert left == []
    assert reactor.running == []
    assert reactor.getDelayedCalls() == []
    return opening.error


def test_what_is_no_database_is_refused(reactor: Reactor, path: Path) -> None:
    """
    To try again would not help; and what is there is left as it is.
    """
    path.write_text("Dear diary, " * 1000)
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert str(path) in str(error)
    assert "give another path" in str(error)
    assert path.read_text() == "Dear diary, " * 1000


def test_a_directory_is_no_database(reactor: Reactor, tmp_path: Path) -> None:
    """
    Whoever gave a directory has forgotten a name.
    """
    error = refused(reactor, tmp_path)
    assert isinstance(error, DatabaseRefused)
    assert "is not a file" in str(error)


def test_a_directory_that_is_missing_is_not_made(
    reactor: Reactor, tmp_path: Path
) -> None:
    """
    It may be one that is not mounted, or a slip of the pen.
    """
    error = refused(reactor, tmp_path / "none" / "the.db")
    assert isinstance(error, DatabaseRefused)
    assert "No such file or directory" in str(error)


def test_a_file_that_may_not_be_written_to_is_refused(
    reactor: Reactor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It would look well until the first write.
    """
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "may not be written to" in str(error)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DatabaseUnavailable),
        (errno.EMFILE, DatabaseUnavailable),
        (errno.EACCES, DatabaseRefused),
    ],
)
def test_the_system_says_whether_a_file_can_be_made_later(
    reactor: Reactor,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
) -> None:
    """
    A full disk is emptied some time; a permission stays.
    """

    def fail(*arguments: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
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
@pytest.mark.parametrize("where", ["PRAGMA foreign_keys", "PRAGMA query_only"])
def test_sqlite_says_whether_it_can_be_opened_later(
    disk: Disk,
    reactor: Reactor,
    path: Path,
    where: str,
    code: str,
    expected: type[Exception],
) -> None:
    """
    What passes is tried again, and what does not is reported once.
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
    Without its log SQLite is something else: readers would stop writers.
    """
    disk.answers["PRAGMA journal_mode"] = [("delete",)]
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "local disk" in str(error)


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Nobody would know which of them was meant.
    """

    def replace() -> None:
        if not disk.made:
            return
        path.unlink()
        path.with_suffix(".x").write_bytes(b"")
        path.with_suffix(".x").rename(path)

    disk.onConnect = replace
    assert isinstance(refused(reactor, path), DatabaseUnavailable)


def test_the_log_is_waited_for_although_sqlite_does_not(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Of ten processes that make a file at the same moment, all must succeed.
    """
    left = [3]

    def hook() -> None:
        if left[0]:
            left[0] -= 1
            trouble("SQLITE_BUSY")()

    disk.hooks["PRAGMA journal_mode"] = hook
    end(reactor, opened(reactor, path))
    assert left == [0]


def test_the_log_is_waited_for_no_longer_than_configured(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Somebody may keep the file locked for ever.
    """

    def hook() -> None:
        reactor.pump([0.1] * 10)
        trouble("SQLITE_BUSY")()

    disk.hooks["PRAGMA journal_mode"] = hook
    error = refused(reactor, path, connectTimeout=5)
    assert isinstance(error, DatabaseUnavailable)
    assert 5 <= reactor.seconds() < 7


# The schema.


def test_the_schema_is_brought_up_to_date(reactor: Reactor, path: Path) -> None:
    """
    A program that is upgraded finds what it needs, and loses nothing.
    """
    engine = opened(reactor, path)
    resultOf(engine.write(ADD, "one"))
    reactor.work()
    end(reactor, engine)
    more = ["ALTER TABLE things ADD COLUMN color TEXT DEFAULT 'red'"]
    newer = Schema("things", [*SCHEMA.sqlite, more], [[], []])
    engine = SQLite(reactor, str(path), [newer], None, reactor.createWorker)
    opening = resultOf(engine.open())
    reactor.work()
    assert opening.value is None
    read = resultOf(engine.read(Statement("SELECT name, color FROM things")))
    reactor.work()
    assert read.value == [("one", "red")]
    end(reactor, engine)
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "upgrade tsrv" in str(error)


def test_a_schema_that_cannot_be_made_leaves_the_file_as_it_was(
    reactor: Reactor, path: Path
) -> None:
    """
    Half a schema would keep the next version from being made.
    """
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE parts (mine)")
    connection.close()
    error = refused(reactor, path)
    assert isinstance(error, DatabaseRefused)
    assert "tables" in str(error)
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert found == [("parts",)]


def test_to_open_needs_no_lock_when_there_is_nothing_to_do(
    reactor: Reactor, path: Path
) -> None:
    """
    A server can be started beside one that is busy.
    """
    end(reactor, opened(reactor, path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO things (name) VALUES ('x')")
    engine = opened(reactor, path, connectTimeout=0.0)
    other.execute("COMMIT")
    other.close()
    end(reactor, engine)


def test_a_schema_waits_for_the_lock_no_longer_than_configured(
    reactor: Reactor, path: Path
) -> None:
    """
    It may be tried again; the file is as it was.
    """
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    engine = make(reactor, path, connectTimeout=0.05)
    opening = resultOf(engine.open())
    reactor.work()
    other.close()
    assert isinstance(opening.error, DatabaseUnavailable)
    assert opening.error.code == "SQLITE_BUSY"
    assert reactor.running == []


def test_a_schema_whose_version_cannot_be_read_is_not_made_anew(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    That it cannot be read does not mean that it is not there.
    """

    def hook() -> None:
        disk.hooks.clear()
        trouble("SQLITE_IOERR_READ")()

    disk.hooks["SELECT part"] = hook
    assert isinstance(refused(reactor, path), DatabaseUnavailable)


# Time.


def test_a_statement_that_takes_too_long_is_interrupted(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    It has not been carried out, and the connection goes on.
    """
    engine = opened(reactor, path, statementTimeout=2.0)

    def hook() -> None:
        reactor.pump([0.1] * 22)
        if disk.made[0].interrupts:
            trouble("SQLITE_INTERRUPT")()

    disk.hooks["INSERT"] = hook
    slow = resultOf(engine.write(ADD, "a"))
    reactor.turn()
    behind = resultOf(engine.write(ADD, "b"))
    reactor.workers[0].step()
    del disk.hooks["INSERT"]
    reactor.work()
    assert isinstance(slow.error, DatabaseUnavailable)
    assert slow.error.code == "SQLITE_INTERRUPT"
    assert behind.value == [(1,)]
    end(reactor, engine)
    assert namesIn(path) == ["b"]


def test_what_waits_for_the_lock_too_long_does_not_begin(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Its time is up, even if the lock is there at last. Until then it is not
    slow: the lock is not given away again.
    """
    engine = opened(reactor, path, statementTimeout=2.0)
    begun: list[None] = []

    def hook() -> None:
        begun.append(None)
        reactor.pump([0.1] * (5 if len(begun) == 1 else 25))

    disk.hooks["BEGIN"] = hook
    soon = resultOf(engine.write(ADD, "a"))
    reactor.work()
    assert soon.value == [(1,)]
    disk.hooks["INSERT"] = lambda: begun.append(None)
    late = resultOf(engine.write(ADD, "b"))
    reactor.work()
    assert isinstance(late.error, DatabaseUnavailable)
    assert len(begun) == 2
    end(reactor, engine)
    assert namesIn(path) == ["a"]


def test_what_is_behind_a_slow_write_stays_in_order(
    disk: Disk, reactor: Reactor, engine: SQLite
) -> None:
    """
    It is done in the next transaction, before what came later.
    """

    def hook() -> None:
        del disk.hooks["DELETE"]
        reactor.advance(0.05)
        engine.write(ADD, "last").addCallback(answers.append)

    disk.hooks["DELETE"] = hook
    answers: list[Any] = []
    engine.write(ADD, "first")
    engine.write(Statement("DELETE FROM parts"))
    for name in ("a", "b", "c"):
        engine.write(ADD, name).addCallback(answers.append)
    reactor.work()
    named = resultOf(engine.read(ALL))
    reactor.work()
    assert named.value == [("first",), ("a",), ("b",), ("c",), ("last",)]
    assert answers == [[(2,)], [(3,)], [(4,)], [(5,)]]


def test_what_could_not_be_interrupted_in_time_is_not_committed(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    To interrupt does nothing between two statements.
    """
    engine = opened(reactor, path, statementTimeout=2.0)
    disk.hooks["INSERT"] = lambda: reactor.pump([0.1] * 25)
    slow = resultOf(engine.write(ADD, "a"))
    reactor.work()
    assert disk.made[0].interrupts > 1
    assert isinstance(slow.error, DatabaseUnavailable)
    assert namesIn(path) == []
    end(reactor, engine)


def test_a_slow_read_does_not_stop_the_others(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Those behind it in the same batch go another way, those before it are
    answered; and there are no more threads than were allowed.
    """
    engine = opened(reactor, path, connections=2)
    seen: list[Any] = []

    def hook() -> None:
        # The first connection is in the middle of it.
        del disk.hooks[ALL.sql]
        reactor.advance(0.05)
        reactor.work()
        seen.extend(each.pending for each in (before, slow, behind))
        late = resultOf(engine.read(GET, 1))
        reactor.work()
        seen.append(late.value)

    disk.hooks[ALL.sql] = hook
    first = resultOf(engine.read(GET, 1))
    before = resultOf(engine.read(GET, 1))
    slow = resultOf(engine.read(ALL))
    behind = resultOf(engine.read(GET, 1))
    reactor.work()
    assert seen == [False, True, False, []]
    assert first.value == slow.value == behind.value == []
    assert reactor.running == [
        "tsrv-sqlite-writer",
        "tsrv-sqlite-reader",
        "tsrv-sqlite-reader",
    ]
    end(reactor, engine)


def test_who_gave_up_is_not_taken_back(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    What was behind a slow statement waits again, but not if nobody waits for
    it.
    """
    engine = opened(reactor, path, limit=2, connections=1)
    waiting: list[Result] = []

    def hook() -> None:
        del disk.hooks[ALL.sql]
        given.cancel()
        reactor.advance(0.05)
        waiting.extend(resultOf(engine.read(GET, 1)) for _ in range(2))

    disk.hooks[ALL.sql] = hook
    first = resultOf(engine.read(GET, 1))
    reactor.turn()
    slow = resultOf(engine.read(ALL))
    given = engine.read(GET, 1)
    result = resultOf(given)
    reactor.work()
    assert first.value == slow.value == []
    assert isinstance(result.error, CancelledError)
    assert [each.value for each in waiting] == [[], []]
    end(reactor, engine)


def test_with_one_connection_the_others_wait(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    More is not allowed.
    """
    engine = opened(reactor, path, connections=1)
    disk.hooks[ALL.sql] = lambda: reactor.advance(0.05)
    slow, behind = resultOf(engine.read(ALL)), resultOf(engine.read(GET, 1))
    reactor.work()
    assert slow.value == behind.value == []
    assert len(reactor.workers) == 2
    end(reactor, engine)


@pytest.mark.parametrize("reason", ["thread", "file"])
def test_when_one_more_connection_cannot_be_had_those_there_do(
    disk: Disk, reactor: Reactor, path: Path, reason: str
) -> None:
    """
    It is tried again after a while, not with each read.
    """
    engine = opened(reactor, path, connections=3, connectTimeout=5)
    answers: list[Result] = []

    def hook() -> None:
        del disk.hooks[ALL.sql]
        reactor.canStart = reason != "thread"
        if reason == "file":
            disk.onConnect = trouble("SQLITE_CANTOPEN")
        reactor.advance(0.05)
        reactor.work()
        for _ in range(10):
            answers.append(resultOf(engine.read(GET, 1)))
            reactor.work()
        assert all(each.pending for each in answers)

    disk.hooks[ALL.sql] = hook
    slow = resultOf(engine.read(ALL))
    answers.append(resultOf(engine.read(GET, 1)))
    with logged() as events:
        reactor.work()
    (text,) = textsOf(events)
    assert text.startswith("Cannot use one more connection for reading: ")
    assert slow.value == []
    assert {tuple(each.value) for each in answers} == {()}
    end(reactor, engine)


def test_who_closes_while_one_more_connection_is_made_closes_it_too(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    No warning: that is as it should be.
    """
    engine = opened(reactor, path)

    def hook() -> None:
        del disk.hooks[ALL.sql]
        reactor.advance(0.05)
        closing.append(resultOf(engine.close()))

    closing: list[Result] = []
    disk.hooks[ALL.sql] = hook
    slow, behind = resultOf(engine.read(ALL)), resultOf(engine.read(GET, 1))
    with logged() as events:
        reactor.work()
    assert closing[0].value is None
    assert slow.value == []
    assert isinstance(behind.error, DatabaseUnavailable)
    assert textsOf(events) == []


def test_a_disk_that_hangs_is_given_up(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Its callers are told what is known, nobody waits for the thread, and when it
    comes back after all, it cleans up behind itself.
    """
    engine = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    happened: list[str] = []
    lost = engine.whenLost()
    lost.addCallback(lambda _: happened.append("lost"))
    closing: list[Result] = []

    def hook() -> None:
        reactor.pump([0.1] * 35)
        assert not any(each.pending for each in written)
        closing.append(resultOf(engine.close()))
        # The others end in good order.
        assert closing[0].pending
        assert engine.stuck == 1

    disk.hooks["COMMIT"] = hook
    written = [resultOf(engine.write(ADD, "begun"))]
    reactor.turn()
    written += [resultOf(engine.write(ADD, "waiting")) for _ in range(2)]
    reactor.work()
    assert happened == ["lost"]
    assert isinstance(written[0].error, OutcomeUnknown)
    assert isinstance(written[1].error, DatabaseUnavailable)
    assert closing[0].value is None
    assert all(each.closed for each in disk.made)
    assert files() == []
    assert engine.stuck == 0


def test_a_write_that_never_began_was_not_carried_out(
    reactor: Reactor, path: Path
) -> None:
    """
    That is known although the thread has not come back; and it stays so when
    it does.
    """
    engine = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    written = resultOf(engine.write(ADD, "one"))
    reactor.pump([0.1] * 35)
    assert isinstance(written.error, DatabaseUnavailable)
    reactor.work()
    reactor.pump([0.1] * 35)
    assert namesIn(path) == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_that_hangs_may_be_made_again(
    disk: Disk, reactor: Reactor, path: Path, begun: bool
) -> None:
    """
    It has changed nothing; and one that the thread never looked at has not
    even begun.
    """
    engine = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    results: list[Result] = []
    done = resultOf(engine.read(GET, 1))
    reactor.work()
    if begun:
        disk.hooks[GET.sql] = lambda: reactor.pump([0.1] * 35)
        results.append(resultOf(engine.read(GET, 1)))
        reactor.work()
    else:
        results.append(resultOf(engine.read(GET, 1)))
        reactor.pump([0.1] * 35)
    assert done.value == []
    assert isinstance(results[0].error, DatabaseUnavailable)
    assert resultOf(engine.whenLost()).value is None
    # The others had no chance to end before.
    reactor.work()
    reactor.pump([0.1] * 35)


def test_an_opening_that_hangs_is_given_up(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    A disk that does not answer is one that may answer later.
    """
    engine = make(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
    opening = resultOf(engine.open())
    disk.onConnect = lambda: reactor.pump([0.1] * 45)
    reactor.work()
    assert isinstance(opening.error, DatabaseUnavailable)
    assert "does not answer" in str(opening.error)
    assert all(each.closed for each in disk.made)


@pytest.mark.parametrize("phase", ["opening", "idle", "busy"])
def test_a_closing_that_hangs_is_given_up(
    reactor: Reactor, path: Path, phase: str
) -> None:
    """
    A process must be able to end, whatever its disk does.
    """
    if phase == "opening":
        engine = make(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
        begun = resultOf(engine.open())
    else:
        engine = opened(reactor, path, statementTimeout=2.0, connectTimeout=1.0)
        begun = resultOf(engine.read(GET, 1))
    if phase == "idle":
        reactor.work()
    closing = resultOf(engine.close())
    for worker in reactor.workers:
        if phase != "idle":
            worker.step()
    reactor.deliver()
    assert begun.pending is (phase == "opening")
    reactor.pump([0.1] * 29)
    assert closing.pending
    reactor.pump([0.1] * 3)
    assert closing.value is None
    assert not begun.pending
    assert reactor.getDelayedCalls() == []
    reactor.work()


# Giving up.


def test_nothing_runs_after_its_caller_gave_up(
    reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    Neither what waits, nor what was handed over and has not begun.
    """
    first, second = engine.write(ADD, "first"), engine.write(ADD, "second")
    results = [resultOf(first), resultOf(second)]
    first.cancel()
    second.cancel()
    reactor.work()
    assert {type(each.error) for each in results} == {CancelledError}
    assert namesIn(path) == []


def test_an_answer_that_nobody_waits_for_is_dropped(
    disk: Disk, reactor: Reactor, engine: SQLite, path: Path
) -> None:
    """
    What has begun is carried out; those beside it are answered.
    """
    given = engine.write(ADD, "given up")
    result = resultOf(given)
    disk.hooks["COMMIT"] = given.cancel
    reactor.work()
    assert isinstance(result.error, CancelledError)
    assert namesIn(path) == ["given up"]


def test_one_answer_may_give_up_another(reactor: Reactor, engine: SQLite) -> None:
    """
    A callback can do anything.
    """
    resultOf(engine.read(GET, 1))
    first = engine.read(GET, 1)
    second = engine.read(GET, 1)
    result = resultOf(second)
    first.addCallback(lambda _: second.cancel())
    reactor.work()
    assert isinstance(result.error, CancelledError)


def test_those_who_gave_up_take_no_place(reactor: Reactor, path: Path) -> None:
    """
    Else many impatient clients would keep out all others.
    """
    engine = opened(reactor, path, limit=3)
    held = [resultOf(engine.read(GET, 1))]
    reactor.turn()
    held += [resultOf(engine.read(GET, 1)) for _ in range(2)]
    for _ in range(100_000):
        given = engine.read(GET, 1)
        given.addErrback(lambda f: f.trap(CancelledError))
        given.cancel()
    last = resultOf(engine.write(ADD, "x"))
    reactor.turn()
    more = resultOf(engine.write(ADD, "y"))
    over = resultOf(engine.write(ADD, "z"))
    assert isinstance(over.error, DatabaseUnavailable)
    reactor.work()
    assert not any(each.pending for each in held)
    assert last.value == [(1,)]
    assert more.value == [(2,)]
    end(reactor, engine)


def test_no_more_wait_than_are_allowed(reactor: Reactor, path: Path) -> None:
    """
    One more is told so at once, and a place that becomes free is used.
    """
    engine = opened(reactor, path, limit=2)
    held = [resultOf(engine.read(GET, 1)), resultOf(engine.write(ADD, "begun"))]
    reactor.turn()
    held += [resultOf(engine.read(GET, 1)), resultOf(engine.write(ADD, "waiting"))]
    over = [resultOf(engine.write(ADD, "over")), resultOf(engine.read(GET, 1))]
    for each in over:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.retryAfter is not None
    reactor.work()
    assert not any(each.pending for each in held)
    again = resultOf(engine.write(ADD, "again"))
    reactor.work()
    assert again.value == [(3,)]
    end(reactor, engine)


def test_what_answers_call_is_carried_out(reactor: Reactor, engine: SQLite) -> None:
    """
    Who reads on from a callback gets an answer.
    """
    result = resultOf(
        engine.write(ADD, "one").addCallback(lambda rows: engine.read(GET, *rows[0]))
    )
    reactor.work()
    assert result.value == [("one",)]


# Opening and closing.


def test_it_is_opened_once(reactor: Reactor, engine: SQLite) -> None:
    """
    A second time is a mistake that is told.
    """
    assert isinstance(resultOf(engine.open()).error, DatabaseUnavailable)


def test_before_it_is_open_and_after_it_is_closed_nothing_is_carried_out(
    reactor: Reactor, path: Path
) -> None:
    """
    Whoever comes too early or too late is told at once.
    """
    engine = make(reactor, path)
    assert isinstance(resultOf(engine.read(GET, 1)).error, DatabaseUnavailable)
    opening = resultOf(engine.open())
    assert isinstance(resultOf(engine.write(ADD, "x")).error, DatabaseUnavailable)
    reactor.work()
    assert opening.value is None
    end(reactor, engine)
    assert isinstance(resultOf(engine.read(GET, 1)).error, DatabaseUnavailable)
    assert isinstance(resultOf(engine.open()).error, DatabaseUnavailable)


def test_it_can_be_closed_before_it_was_opened(reactor: Reactor, path: Path) -> None:
    """
    Then it never is.
    """
    engine = make(reactor, path)
    assert resultOf(engine.close()).value is None
    assert isinstance(resultOf(engine.open()).error, DatabaseUnavailable)
    assert not path.exists()


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("how", ["close", "cancel"])
def test_it_can_be_given_up_while_it_is_opened(
    disk: Disk, reactor: Reactor, path: Path, how: str, steps: int
) -> None:
    """
    At no moment anything is left open.
    """
    engine = make(reactor, path)
    opening = engine.open()
    result = resultOf(opening)
    for number in range(steps):
        if number % 2:
            reactor.deliver()
        else:
            reactor.workers[-1].step()
    if how == "cancel" and steps < 4:
        opening.cancel()
    else:
        closing = resultOf(engine.close())
        reactor.work()
        assert closing.value is None
    reactor.work()
    expected = CancelledError if how == "cancel" else DatabaseUnavailable
    if steps < 4:
        assert isinstance(result.error, expected)
    else:
        assert result.value is None
    assert reactor.running == []
    assert all(each.closed for each in disk.made)
    assert files() == []


def test_it_is_not_waited_for_what_is_opened_in_vain(
    disk: Disk, reactor: Reactor, path: Path
) -> None:
    """
    Whoever closes it does not want the schema any more.
    """
    engine = make(reactor, path)
    opening = resultOf(engine.open())
    disk.hooks["BEGIN"] = engine.close
    reactor.work()
    assert isinstance(opening.error, DatabaseUnavailable)
    assert disk.made[0].interrupts == 1


def test_a_thread_that_cannot_be_started_is_waited_for(
    reactor: Reactor, path: Path
) -> None:
    """
    There may be room for it later.
    """
    reactor.canStart = False
    opening = resultOf(make(reactor, path).open())
    assert isinstance(opening.error, DatabaseUnavailable)


def test_nothing_is_handed_over_when_it_is_closed(reactor: Reactor, path: Path) -> None:
    """
    What was about to be is told so at once, and leaves no timer.
    """
    engine = opened(reactor, path)
    written = resultOf(engine.write(ADD, "x"))
    closing = resultOf(engine.close())
    assert isinstance(written.error, DatabaseUnavailable)
    for worker in reactor.workers:
        while worker.step():
            pass
    reactor.deliver()
    assert closing.value is None
    assert reactor.getDelayedCalls() == []
    assert namesIn(path) == []


def test_what_has_begun_ends_when_it_is_closed(reactor: Reactor, path: Path) -> None:
    """
    And what waits ends at once, so that nothing comes behind.
    """
    engine = opened(reactor, path)
    begun = resultOf(engine.write(ADD, "begun"))
    reactor.turn()
    waiting = [resultOf(engine.write(ADD, "waiting")) for _ in range(2)]
    lost = resultOf(engine.whenLost())
    first, second = resultOf(engine.close()), resultOf(engine.close())
    assert isinstance(waiting[0].error, DatabaseUnavailable)
    assert isinstance(waiting[1].error, DatabaseUnavailable)
    assert first.pending
    reactor.work()
    assert begun.value == [(1,)]
    assert first.value is None
    assert second.value is None
    assert lost.value is None
    assert resultOf(engine.close()).value is None
    assert namesIn(path) == ["begun"]


def test_who_waits_for_the_end_may_give_up(reactor: Reactor, path: Path) -> None:
    """
    That concerns nobody else.
    """
    engine = opened(reactor, path)
    waiters = [engine.whenLost() for _ in range(3)]
    results = [resultOf(each) for each in waiters]
    waiters[0].cancel()
    waiters[1].addCallback(lambda _: waiters[2].cancel())
    closing = engine.close()
    given = resultOf(closing)
    closing.cancel()
    reactor.work()
    assert isinstance(given.error, CancelledError)
    assert isinstance(results[0].error, CancelledError)
    assert results[1].value is None
    assert isinstance(results[2].error, CancelledError)
    assert resultOf(engine.whenLost()).value is None


def test_it_can_be_closed_from_an_answer(reactor: Reactor, path: Path) -> None:
    """
    Also from one that says that the database was lost.
    """
    engine = opened(reactor, path)
    answers: list[Any] = []
    closing: list[Result] = []

    def close(result: Any) -> None:
        answers.append(result)
        closing.append(resultOf(engine.close()))

    for _ in range(3):
        engine.read(GET, 1).addBoth(close)
    reactor.work()
    assert len(answers) == 3
    assert [each.value for each in closing] == [None, None, None]


# The real thing.


@asynchronous
async def test_threads_and_files_are_gone_when_it_is_closed(path: Path) -> None:
    """
    A program may open and close it as often as it likes.
    """
    from twisted.internet import reactor

    for number in range(10):
        engine = SQLite(reactor, str(path), [SCHEMA])
        await engine.open()
        await engine.write(ADD, f"name {number}")
        assert len(threads()) == 2
        assert files()
        await engine.close()
        assert threads() == []
        assert files() == []
        given = SQLite(reactor, str(path), [SCHEMA])
        opening = given.open()
        opening.addErrback(lambda f: f.trap(CancelledError))
        opening.cancel()
        await given.close()
        assert threads() == []
        assert files() == []
    assert len(namesIn(path)) == 10


@asynchronous
async def test_endless_statements_end_and_others_go_on(path: Path) -> None:
    """
    SQLite itself ends them, and rolls back what they have written.
    """
    from twisted.internet import reactor

    engine = SQLite(
        reactor, str(path), [SCHEMA], Settings(statementTimeout=0.5, connections=2)
    )
    await engine.open()
    endless = [resultOf(engine.read(ENDLESS)), resultOf(engine.write(ADD_ENDLESS))]
    behind = engine.write(ADD, "behind")
    for _ in range(100):
        assert await engine.read(ALL) == []
    assert [each.pending for each in endless] == [True, True]
    assert await behind == [(1,)]
    while endless[0].pending:
        await engine.read(ALL)
    for each in endless:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_INTERRUPT"
    assert await engine.read(ALL) == [("behind",)]
    await engine.close()
    assert threads() == []


@asynchronous
async def test_it_is_closed_while_it_is_busy(path: Path) -> None:
    """
    It takes no longer than the statement may take.
    """
    from twisted.internet import reactor

    engine = SQLite(reactor, str(path), [SCHEMA], Settings(statementTimeout=0.3))
    await engine.open()
    endless = resultOf(engine.read(ENDLESS))
    await engine.close()
    assert isinstance(endless.error, DatabaseUnavailable)
    assert threads() == []
    assert files() == []


async def _writeMany(engine: SQLite, name: str, count: int) -> list[int]:
    numbers: list[int] = []

    async def write(part: int) -> None:
        for number in range(count):
            rows = await engine.write(ADD, f"{name} {part} {number}")
            numbers.append(rows[0][0])

    await gatherResults(
        [Deferred.fromCoroutine(write(part)) for part in range(16)], consumeErrors=True
    )
    return numbers


@asynchronous
async def test_two_on_one_file_lose_nothing(path: Path) -> None:
    """
    What either has acknowledged is there once.
    """
    from twisted.internet import reactor

    engines = [SQLite(reactor, str(path), [SCHEMA]) for _ in range(2)]
    await gatherResults([engine.open() for engine in engines])
    numbers = await gatherResults(
        [
            Deferred.fromCoroutine(_writeMany(engine, str(number), 50))
            for number, engine in enumerate(engines)
        ]
    )
    await gatherResults([engine.close() for engine in engines])
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 1601))
    assert len(set(namesIn(path))) == 1600


CHILD = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.test_sqlite import ADD, SCHEMA
from tsrv.databases.sqlite import SQLite

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = SQLite(reactor, path, [SCHEMA])

async def write(part):
    for number in range(count):
        text = f"{name}-{part}-{number}"
        await engine.write(ADD, text)
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()

async def main():
    sys.stdin.readline()
    await engine.open()
    for each in [Deferred.fromCoroutine(write(part)) for part in range(16)]:
        await each
    await engine.close()

def ended(result):
    if result is not None:
        print(result)
    reactor.stop()

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addBoth(ended))
reactor.run()
"""


def spawn(stack: ExitStack, path: Path, name: str, count: int) -> Any:
    """
    Start a process that writes when it is told to, and says what it has
    written.
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
    All of them make the file, its log and its schema at the same moment, and
    what each has acknowledged is there once.
    """
    with ExitStack() as stack:
        processes = [spawn(stack, path, str(number), 20) for number in range(6)]
        for each in processes:
            each.stdin.write("\n")
            each.stdin.flush()
        said = [line for each in processes for line in each.stdout.read().split()]
    assert len(said) == 6 * 16 * 20
    assert sorted(namesIn(path)) == sorted(said)


def test_what_was_acknowledged_survives_kill(path: Path) -> None:
    """
    However suddenly the process ends.
    """
    with ExitStack() as stack:
        process = spawn(stack, path, "x", 1_000_000)
        process.stdin.write("\n")
        process.stdin.flush()
        said = [process.stdout.readline().strip() for _ in range(2000)]
        process.kill()
        rest = process.stdout.read()
        # The last line may not be whole.
        said += rest.split("\n")[:-1]
    names = namesIn(path)
    assert len(said) >= 2000
    assert set(said) <= set(names)
    assert len(names) == len(set(names))


def test_a_batch_alone_says_nothing() -> None:
    """
    It is what reads and writes have in common.
    """
    batch = Batch([])
    with pytest.raises(NotImplementedError):
        batch.carryOut(sqlite3.connect(":memory:"), lambda: None)
    with pytest.raises(NotImplementedError):
        batch.unknown()
