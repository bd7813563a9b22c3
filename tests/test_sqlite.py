"""
SQLite carries out a statement once or not at all, and reports which, whatever happens
to the file, the disk and the threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tsrv import QueuingWrapper, State
from tsrv.asyncmodule import NotInitialized
from tsrv.databases import (
    ConstraintViolated,
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Statement,
    UniqueViolated,
)
from tsrv.errors import OutcomeUnknown

from .sqlitelab import (
    ADD,
    ALL,
    GET,
    Gate,
    Hook,
    Lab,
    connect,
    files,
    make,
    running,
    trouble,
)
from .support import resultOf
from .websupport import asynchronous, logged, textsOf

ENDLESS = Statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) FROM n"
)

ADD_ENDLESS = Statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "INSERT INTO things (name) SELECT 'n' || i FROM n"
)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lab]:
    """
    A laboratory. When the test ends, no thread and no delayed call may be left.
    """
    lab = Lab(monkeypatch, tmp_path / "the.db")
    yield lab
    lab.work()
    assert running() == []
    assert lab.getDelayedCalls() == []


@pytest.fixture
def database(lab: Lab) -> Iterator[Database]:
    """
    An open database.
    """
    database = lab.open()
    yield database
    lab.end(database)


# Batches.


def test_writes_that_wait_are_one_transaction_in_order(
    lab: Lab, database: Database
) -> None:
    """
    Writes that wait together share one transaction of at most 256 writes, in order.
    """
    commits = lab.count("COMMIT")
    answers: list[Any] = []
    for number in range(600):
        database.write(ADD, f"name {number}").addCallback(answers.append)
    lab.work()
    assert answers == [[(number,)] for number in range(1, 601)]
    assert len(commits) == 3


def test_writes_of_successive_turns_are_one_transaction(
    lab: Lab, database: Database
) -> None:
    """
    Statements are gathered while each turn of the reactor brings further ones.
    """
    commits = lab.count("COMMIT")
    answers: list[Any] = []

    def ask(left: int) -> None:
        if left:
            lab.callLater(0, ask, left - 1)
        database.write(ADD, f"name {left}").addCallback(answers.append)

    ask(20)
    lab.work()
    assert len(answers) == 21
    assert len(commits) == 1


def test_statements_are_gathered_for_10_ms_at_most(
    lab: Lab, database: Database
) -> None:
    """
    Statements are gathered for at most 10 ms, even if each long turn brings a further
    one.
    """
    commits = lab.count("COMMIT")

    def ask(left: int) -> None:
        if left:
            lab.callLater(0, ask, left - 1)
        database.write(ADD, f"name {left}")
        lab.rightNow += 0.004

    ask(20)
    lab.work()
    # The others have waited while the thread was busy.
    assert len(commits) == 2


def test_calls_that_come_back_are_gathered_again(lab: Lab, database: Database) -> None:
    """
    Clients that waited for one transaction, and write again, share the next one.
    """
    commits = lab.count("COMMIT")
    answers: list[Any] = []

    def again(answer: Any) -> None:
        answers.append(answer)
        if len(answers) % 6 == 1:
            # A client takes a while to respond, so not in each turn.
            lab.callLater(0, database.write, ADD, f"again {len(answers)}")

    for number in range(60):
        database.write(ADD, str(number)).addCallback(again)
    lab.work()
    assert len(answers) == 60
    assert len(commits) == 2


def test_nothing_is_answered_before_it_is_on_the_disk(
    lab: Lab, database: Database
) -> None:
    """
    A write succeeds only when its transaction is committed.
    """
    gate = lab.gate("COMMIT")
    written = [resultOf(database.write(ADD, str(number))) for number in range(3)]
    gate.wait()
    lab.advance(0.1)
    assert all(each.pending for each in written)
    gate.open()
    lab.work()
    assert [each.value for each in written] == [[(1,)], [(2,)], [(3,)]]


@pytest.mark.parametrize("closed", [False, True])
def test_answers_are_spread_over_turns(lab: Lab, closed: bool) -> None:
    """
    The results of sixty calls are spread over several turns; closing ends the remaining
    calls.
    """
    database = lab.open()
    written = [resultOf(database.write(ADD, str(number))) for number in range(60)]
    answered: list[int] = []

    def look() -> None:
        answered.append(sum(not each.pending for each in written))
        if closed:
            database.close()
        elif written[-1].pending:
            lab.callLater(0, look)

    while written[0].pending:
        lab.advance(0)
        lab.deliver()
    look()
    lab.work()
    assert answered == ([3] if closed else list(range(3, 61, 3)))
    assert [each.value for each in written] == [[(n,)] for n in range(1, 61)]
    lab.end(database)


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
        # COMMIT checks this constraint.
        ("INSERT INTO parts VALUES ('part', 7, 1)", "FOREIGNKEY", False),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_violated_constraint_fails_one_statement(
    lab: Lab, sql: str, code: str, unique: bool, alone: bool
) -> None:
    """
    A violated constraint fails only its own statement in the transaction, and SQLite's
    extended code tells the kind.
    """
    database = lab.open()
    bare = Statement("CREATE TABLE bare (x)")
    row = Statement("INSERT INTO bare (rowid) VALUES (1)")
    lab.together(database, (bare,), (row,), (ADD, "first"))
    if alone:
        (wrong,) = lab.together(database, (Statement(sql),))
    else:
        before, wrong, after = lab.together(
            database, (ADD, "before"), (Statement(sql),), (ADD, "after")
        )
        assert (before.value, after.value) == ([(2,)], [(3,)])
    assert isinstance(wrong.error, ConstraintViolated)
    assert wrong.error.code == f"SQLITE_CONSTRAINT_{code}"
    assert isinstance(wrong.error, UniqueViolated) is unique
    lab.end(database)
    assert lab.names() == ["first"] + ([] if alone else ["before", "after"])


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
    lab: Lab, database: Database, sql: str, error: type[Exception]
) -> None:
    """
    The changes of a statement that fails are undone, and other statements succeed.
    """
    fine, half, also = lab.together(
        database, (ADD, "fine"), (Statement(sql),), (ADD, "also")
    )
    assert (fine.value, also.value) == ([(1,)], [(2,)])
    assert type(half.error) in (error, UniqueViolated)
    (alone,) = lab.together(database, (Statement(sql),))
    assert isinstance(alone.error, error)
    assert lab.names() == ["fine", "also"]


def test_a_lock_that_is_lost_between_statements_fails_the_remaining_ones(
    lab: Lab, database: Database
) -> None:
    """
    If another process takes the lock between statements that are carried out alone, the
    remaining statements fail.
    """
    begun = [trouble("SQLITE_BUSY"), lambda: None, lambda: None]

    def begin() -> None:
        begun.pop()()

    lab.hooks["BEGIN"] = begin
    half = Statement("INSERT OR FAIL INTO things (name) VALUES ('x'), ('fine')")
    fine, wrong, also = lab.together(database, (ADD, "fine"), (half,), (ADD, "also"))
    assert fine.value == [(1,)]
    for each in (wrong, also):
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_BUSY"
    assert lab.names() == ["fine"]


def test_a_statement_that_ends_the_transaction_fails_those_before_it(
    lab: Lab, database: Database
) -> None:
    """
    If a statement ends the transaction, the statements before it fail: a statement that
    SQLite has rolled back is not reported as carried out.
    """
    fine, end, also = lab.together(
        database,
        (ADD, "fine"),
        (Statement("INSERT OR ROLLBACK INTO things (name) VALUES ('fine')"),),
        (ADD, "also"),
    )
    assert isinstance(fine.error, DatabaseUnavailable)
    assert isinstance(end.error, ConstraintViolated)
    assert also.value == [(1,)]
    assert lab.names() == ["also"]


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
    lab: Lab, database: Database, sql: str, parameters: tuple[object, ...]
) -> None:
    """
    A statement that cannot be carried out fails alone. The error names the statement,
    but no parameter.
    """
    first = resultOf(database.read(GET, 1))
    wrong = resultOf(database.read(Statement(sql), *parameters))
    after = resultOf(database.read(GET, 1))
    lab.work()
    error = wrong.error
    assert first.value == after.value == []
    assert type(error) is DatabaseError
    assert error.code
    assert "secret" not in str(error).replace(sql, "")
    assert ("no such column: unknown" in str(error)) == ("unknown" in sql)
    assert error.__cause__ is error.__context__ is None
    if not sql.startswith("INSERT"):
        fine, wrong = lab.together(database, (ADD, "x"), (Statement(sql), *parameters))
        assert fine.value == [(1,)]
        assert type(wrong.error) is DatabaseError


def test_a_read_leaves_no_transaction_behind(lab: Lab, database: Database) -> None:
    """
    A read leaves no transaction open, so later reads see later changes.
    """
    lab.find(database, Statement("BEGIN"))
    assert lab.find(database, ALL) == []
    lab.together(database, (ADD, "new"))
    assert lab.find(database, ALL) == [("new",)]


# Locks.


def test_a_lock_that_is_held_too_long_fails_waiting_statements(lab: Lab) -> None:
    """
    No statement waits longer for a lock than configured, and none is written later.
    """
    database = lab.open(connectTimeout=0.05)
    gate = lab.gate("BEGIN")
    with closing(connect(lab.path, isolation_level=None)) as other:
        first = resultOf(database.write(ADD, "first"))
        gate.wait()
        many = [resultOf(database.write(ADD, f"name {n}")) for n in range(300)]
        gone = database.write(ADD, "gone")
        given = resultOf(gone)
        gate.open()
        lab.work(first)
        gate = lab.gate("BEGIN")
        gate.wait()
        other.execute("BEGIN IMMEDIATE")
        gone.cancel()
        later = resultOf(database.write(ADD, "later"))
        following = lab.gate("BEGIN")
        gate.open()
        # They are more than one transaction, but have waited for the same time.
        lab.work(*many)
        other.execute("ROLLBACK")
    following.open()
    lab.work(later)
    assert first.value == [(1,)]
    for each in many:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_BUSY"
        assert each.error.retryAfter is not None
    assert isinstance(given.error, CancelledError)
    assert later.value == [(2,)]
    lab.end(database)
    assert lab.names() == ["first", "later"]


# Failures that the laboratory causes.


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_INTERRUPT"])
def test_what_was_certainly_not_committed_may_be_tried_again(
    lab: Lab, database: Database, code: str
) -> None:
    """
    After some errors of COMMIT it is certain that nothing was written, so a retry is
    possible.
    """
    lab.hooks["COMMIT"] = trouble(code)
    (written,) = lab.together(database, (ADD, "one"))
    assert isinstance(written.error, DatabaseUnavailable)
    assert written.error.code == code
    assert lab.names() == []
    del lab.hooks["COMMIT"]
    (again,) = lab.together(database, (ADD, "one"))
    assert again.value == [(1,)]


@pytest.mark.parametrize("code", ["SQLITE_IOERR_FSYNC", "SQLITE_NOMEM"])
def test_a_failed_commit_has_an_unknown_outcome(lab: Lab, code: str) -> None:
    """
    If COMMIT fails in any other way the outcome is unknown, and the database is lost
    before the call fails.
    """
    database = lab.open()
    lab.together(database, (ADD, "one"))
    happened: list[str] = []

    def noticed(reason: Failure) -> Failure:
        happened.append("lost")
        return reason

    lost = resultOf(database.whenLost().addBoth(noticed))
    gate = lab.gate("COMMIT", trouble(code))
    writing = database.write(ADD, "two")

    def failed(reason: Failure) -> Failure:
        happened.append("failed")
        return reason

    written = resultOf(writing.addErrback(failed))
    unique = resultOf(database.write(ADD, "one"))
    gate.wait()
    waiting = resultOf(database.write(ADD, "three"))
    gate.open()
    with logged() as events:
        lab.work()
    assert happened == ["lost", "failed"]
    assert isinstance(written.error, OutcomeUnknown)
    assert isinstance(waiting.error, DatabaseUnavailable)
    # This statement was certainly not carried out.
    assert isinstance(unique.error, UniqueViolated)
    assert isinstance(lost.error, DatabaseUnavailable)
    assert str(lost.error) == code
    # The reason of the loss was reported to whenLost().
    (text,) = textsOf(events)
    assert text.endswith(": it may have been carried out, or not")
    assert database.failures == {"outcome_unknown": 1}
    assert all(each.closed for each in lab.made)
    assert not database.initialized


@pytest.mark.parametrize(
    ("where", "sql"),
    [
        ("DELETE", "DELETE FROM things"),
        ("ROLLBACK", "INSERT OR FAIL INTO things (name) VALUES ('x'), ('first')"),
    ],
)
def test_a_transaction_that_fails_for_the_disk_ends_the_connection(
    lab: Lab, where: str, sql: str
) -> None:
    """
    If the disk fails in a transaction, none of its statements is carried out, and later
    statements do not become part of it.
    """
    database = lab.open()
    (first,) = lab.together(database, (ADD, "first"))
    lab.hooks[where] = trouble("SQLITE_IOERR_WRITE")
    beside, wrong, behind = lab.together(
        database, (ADD, "beside"), (Statement(sql),), (ADD, "behind")
    )
    assert first.value == [(1,)]
    assert isinstance(beside.error, DatabaseUnavailable)
    assert isinstance(wrong.error, (DatabaseUnavailable, ConstraintViolated))
    assert isinstance(behind.error, DatabaseUnavailable)
    lab.work()
    assert running() == []
    assert lab.names() == ["first"]


@pytest.mark.parametrize("code", ["SQLITE_IOERR_READ", "SQLITE_READONLY_DBMOVED"])
def test_a_read_that_fails_for_the_disk_ends_the_connection(
    lab: Lab, code: str
) -> None:
    """
    If the disk fails in a read, earlier reads succeed before the loss, and later ones
    fail after it.
    """
    database = lab.open()
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
    lab.hooks[ALL.sql] = trouble(code)
    lab.work()
    assert happened == [
        "first",
        "fine",
        "lost DatabaseUnavailable",
        "behind DatabaseUnavailable",
        "wrong DatabaseError",
        "fails DatabaseUnavailable",
    ]


def test_calls_that_are_made_during_a_loss_fail(lab: Lab) -> None:
    """
    A call that a callback makes during the loss fails, and does not stay pending.
    """
    database = lab.open()
    lab.hooks[ALL.sql] = trouble("SQLITE_IOERR_READ")
    calls = [
        database.read(GET, 1).addCallback(lambda _: database.read(GET, 1))
        for _ in range(20)
    ]
    results = [resultOf(call) for call in (*calls, database.read(ALL))]
    idle = resultOf(database.whenIdle())
    ended = resultOf(
        database.whenIdle().addCallback(
            lambda _: [each for each in results if each.pending]
        )
    )
    lab.work()
    for each in results:
        assert isinstance(each.error, DatabaseUnavailable)
    assert (idle.value, ended.value) == (None, [])


def test_an_error_in_one_read_does_not_end_the_connection(
    lab: Lab, database: Database
) -> None:
    """
    A damaged page, or too little memory, affects only the read that met it.
    """

    def memory() -> None:
        raise MemoryError

    for hook in (trouble("SQLITE_CORRUPT"), memory):
        lab.hooks[ALL.sql] = hook
        wrong, fine = resultOf(database.read(ALL)), resultOf(database.read(GET, 1))
        lab.work()
        assert isinstance(wrong.error, DatabaseUnavailable)
        assert fine.value == []


def test_what_was_acknowledged_survives_a_power_cut(
    lab: Lab, database: Database
) -> None:
    """
    The log is flushed to the disk, so acknowledged writes survive a power cut; foreign
    keys are enforced.
    """
    pragmas = ["journal_mode", "synchronous", "foreign_keys", "trusted_schema"]
    results = lab.together(
        database, *((Statement(f"PRAGMA {each}"),) for each in pragmas)
    )
    assert [each.value for each in results] == [[("wal",)], [(2,)], [(1,)], [(0,)]]


def test_an_error_of_the_disk_is_logged_now_and_then(
    lab: Lab, database: Database
) -> None:
    """
    A full disk is logged, but not for each statement.
    """

    def failing(code: str, *names: str) -> None:
        lab.hooks["COMMIT"] = trouble(code)
        for each in lab.together(database, *((ADD, name) for name in names)):
            assert isinstance(each.error, DatabaseUnavailable)

    sentence = (
        "database: a statement failed: "
        "the database cannot carry out a statement now (SQLITE_FULL)"
    )
    with logged() as events:
        for _ in range(3):
            failing("SQLITE_FULL", "x")
    assert textsOf(events) == [sentence]
    lab.advance(60)
    with logged() as events:
        failing("SQLITE_FULL", *"abcd")
        failing("SQLITE_BUSY", "x")
    assert textsOf(events) == [
        f"{sentence}; 2 more since the last such line",
        sentence.replace("FULL", "BUSY"),
    ]
    assert database.failures == {"SQLITE_FULL": 7, "SQLITE_BUSY": 1}


# The file.


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("statement", [ADD, GET])
def test_a_file_that_is_taken_away_ends_the_connection(
    lab: Lab, replaced: bool, suffix: str, statement: Statement
) -> None:
    """
    If the file is moved away, nothing is acknowledged that cannot be found later. A
    file that is restored contains everything that was acknowledged before.
    """
    database = lab.open()
    lab.together(database, (ADD, "one"))
    if suffix:
        with closing(connect(lab.path)) as other:
            other.execute("PRAGMA wal_checkpoint")
    file = Path(f"{lab.path}{suffix}")
    old = file.rename(lab.path.with_suffix(".old"))
    if replaced:
        file.write_bytes(b"")
    ask = database.write if statement is ADD else database.read
    failing, lost = resultOf(ask(statement, 1)), resultOf(database.whenLost())
    lab.work()
    assert isinstance(lost.error, DatabaseUnavailable)
    assert isinstance(failing.error, DatabaseUnavailable)
    assert running() == []
    if not suffix and not replaced:
        # A new file beside the log would discard the content of the log.
        error = lab.refused()
        assert isinstance(error, DatabaseRefused)
        assert "put the file back" in str(error)
        assert not file.exists()
        old.rename(file)
    lab.end(lab.open())
    assert lab.names() == ([] if replaced and not suffix else ["one"])


def test_a_new_file_is_for_its_owner(lab: Lab) -> None:
    """
    Only the owner may read a new file; existing permissions are kept.
    """
    database = lab.open()
    lab.together(database, (ADD, "one"))
    for each in lab.path.parent.iterdir():
        assert each.stat().st_mode & 0o777 == 0o600, each
    assert len(list(lab.path.parent.iterdir())) == 3
    lab.end(database)
    assert list(lab.path.parent.iterdir()) == [lab.path]
    lab.path.chmod(0o640)
    lab.end(lab.open())
    assert lab.path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["file:x.db?mode=memory", "a b?c#d%20"])
def test_a_path_is_a_path(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """
    A path is never taken for a URI, or for a database in memory.
    """
    monkeypatch.chdir(tmp_path)
    lab.path = Path(name)
    lab.end(lab.open())
    assert [each.name for each in tmp_path.iterdir()] == [name]


PASSING = ["BUSY", "IOERR", "FULL", "ENOSPC", "EMFILE"]

LASTING = ["CORRUPT", "CANTOPEN", "PERM", "READONLY", "AUTH", "EACCES"]


@pytest.mark.parametrize("code", [*PASSING, *LASTING])
@pytest.mark.parametrize("where", ["foreign_keys", "query_only", "SELECT part"])
def test_the_error_says_whether_a_file_can_be_opened_later(
    lab: Lab, where: str, code: str
) -> None:
    """
    The type of the error says whether opening may succeed later.
    """
    name = code if code in ("ENOSPC", "EMFILE", "EACCES") else f"SQLITE_{code}"
    lab.hooks[where if " " in where else f"PRAGMA {where}"] = trouble(name)
    error = lab.refused()
    assert type(error) is (DatabaseUnavailable if code in PASSING else DatabaseRefused)
    assert name in str(error)
    assert all(each.closed for each in lab.made)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("diary", "give another path"),
        ("", "is not a file"),
        ("none/the.db", "/none, or give another path"),
        ("diary/the.db", "/diary is not a directory: give another path"),
        ("a" * 300, "give a shorter path"),
    ],
)
def test_a_path_without_a_database_is_refused(
    lab: Lab, tmp_path: Path, name: str, text: str
) -> None:
    """
    A path that cannot be a database is refused without a retry, and existing files are
    not changed.
    """
    diary = tmp_path / "diary"
    diary.write_text("Dear diary, " * 1000)
    lab.path = tmp_path / name
    error = lab.refused()
    assert isinstance(error, DatabaseRefused)
    assert str(lab.path) in str(error)
    assert text in str(error)
    assert diary.read_text() == "Dear diary, " * 1000


def test_a_file_system_without_shared_memory_is_refused(lab: Lab) -> None:
    """
    A file system without shared memory is refused, since the write-ahead log needs it.
    """
    lab.hooks["PRAGMA journal_mode"] = lambda: (
        lab.made[0].cursor().execute("SELECT 'delete'")
    )
    error = lab.refused()
    assert isinstance(error, DatabaseRefused)
    assert "local disk" in str(error)


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(lab: Lab) -> None:
    """
    If the file is replaced while it is opened, it is opened again: the writer and the
    readers have the same file.
    """

    def replace() -> None:
        if lab.made:
            lab.path.with_suffix(".x").write_bytes(b"")
            lab.path.with_suffix(".x").rename(lab.path)

    lab.onConnect = replace
    assert isinstance(lab.refused(), DatabaseUnavailable)


@pytest.mark.parametrize("free", [True, False])
def test_the_log_is_waited_for_although_sqlite_does_not(lab: Lab, free: bool) -> None:
    """
    Processes that create a file at the same moment wait for each other, at most as long
    as configured.
    """
    left = [3]

    def hook() -> None:
        left[0] -= 1
        if not free or left[0] > 0:
            trouble("SQLITE_BUSY")()

    lab.hooks["PRAGMA journal_mode"] = hook
    if free:
        lab.end(lab.open())
    else:
        error = lab.refused(connectTimeout=0.5)
        assert isinstance(error, DatabaseUnavailable)
        assert left[0] < 0


# The schema.


def test_opening_waits_for_a_lock_only_to_change_the_schema(lab: Lab) -> None:
    """
    Opening waits for a lock only to change the schema, at most as long as configured,
    so a server can start beside a busy one.
    """
    with closing(connect(lab.path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        opening = resultOf(lab.make(connectTimeout=0.05).initialize())
        lab.work(opening)
        assert isinstance(opening.error, DatabaseUnavailable)
        assert opening.error.code == "SQLITE_BUSY"
        other.execute("ROLLBACK")
        lab.end(lab.open())
        other.execute("BEGIN IMMEDIATE")
        database = lab.open(connectTimeout=0.05)
        other.execute("ROLLBACK")
    lab.end(database)


# Time.


@pytest.mark.parametrize(
    ("where", "then"),
    [
        ("INSERT", trouble("SQLITE_INTERRUPT")),
        # The statement could not be interrupted in time.
        ("INSERT", lambda: None),
        # The statement has waited for a lock.
        ("BEGIN", lambda: None),
    ],
)
def test_a_write_whose_time_is_up_is_not_carried_out(
    lab: Lab, where: str, then: Hook
) -> None:
    """
    A write that exceeds its time limit is interrupted and not committed, and the
    connection continues.
    """
    database = lab.open(statementTimeout=2.0)
    gate = lab.gate(where, then)
    late = resultOf(database.write(ADD, "late"))
    gate.wait()
    behind = resultOf(database.write(ADD, "behind"))
    lab.pump([0.1] * 19)
    assert lab.made[0].interrupts == 0
    lab.pump([0.1] * 3)
    assert lab.made[0].interrupts > 1
    del lab.hooks[where]
    gate.open()
    lab.work(late, behind)
    assert isinstance(late.error, DatabaseUnavailable)
    assert behind.value == [(1,)]
    lab.end(database)
    assert lab.names() == ["behind"]


def test_writes_behind_a_slow_one_stay_in_order(lab: Lab, database: Database) -> None:
    """
    Writes behind a slow one are in the next transaction, before later writes.
    """
    commits = lab.count("COMMIT")
    gate = lab.gate("DELETE")
    answers: list[Any] = []
    database.write(ADD, "first")
    database.write(Statement("DELETE FROM parts"))
    for name in ("a", "b", "c"):
        database.write(ADD, name).addCallback(answers.append)
    given = database.write(ADD, "given up")
    result = resultOf(given)
    gate.wait()
    given.cancel()
    lab.advance(0.05)
    database.write(ADD, "last").addCallback(answers.append)
    gate.open()
    lab.work()
    assert lab.names() == ["first", "a", "b", "c", "last"]
    assert answers == [[(2,)], [(3,)], [(4,)], [(5,)]]
    assert len(commits) == 2
    assert isinstance(result.error, CancelledError)


def test_a_slow_read_does_not_stop_the_others(lab: Lab) -> None:
    """
    Reads behind a slow one use another connection, and reads before it have ended.
    """
    database = lab.open(connections=2)
    gate = lab.gate(ALL.sql)
    before = resultOf(database.read(GET, 1))
    slow = resultOf(database.read(ALL))
    behind = resultOf(database.read(GET, 1))
    gate.wait()
    assert before.pending
    lab.advance(0.05)
    lab.work(before, behind)
    assert lab.find(database, GET, 1) == []
    assert slow.pending
    assert sorted(running()) == [
        "tsrv-sqlite-reader",
        "tsrv-sqlite-reader",
        "tsrv-sqlite-writer",
    ]
    second = resultOf(database.read(ALL))
    lab.advance(0.05)
    waiting = resultOf(database.read(GET, 1))
    lab.advance(0.05)
    # A third reader is not allowed.
    assert len(running()) == 3
    gate.open()
    lab.work(slow, second, waiting)
    lab.end(database)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("PRAGMA", DatabaseUnavailable),
        (GET.sql, DatabaseUnavailable),
        ("BEGIN", DatabaseUnavailable),
        ("COMMIT", OutcomeUnknown),
    ],
)
@pytest.mark.parametrize("closed", [False, True])
def test_a_disk_that_stalls_is_given_up(
    lab: Lab, where: str, expected: type[Exception], closed: bool
) -> None:
    """
    If the disk stalls, the outcome is unknown only for a write that has begun. Closing
    takes no longer than configured. A thread that continues later closes its
    connection.
    """
    # A second reader would stall behind the same gate.
    database = lab.make(connections=1, statementTimeout=2.0, connectTimeout=1.0)
    result = resultOf(database.initialize())
    if where != "PRAGMA":
        lab.work(result)
    gate = lab.gate(where)
    statement = GET if where == GET.sql else ADD
    ask = database.read if statement is GET else database.write
    if where != "PRAGMA":
        result = resultOf(ask(statement, 1))
    lost = resultOf(database.whenLost())
    gate.wait()
    behind = resultOf(ask(statement, 2))
    idle = resultOf(database.whenIdle())
    if closed:
        database.close()
        # The other calls end at once.
        while len(running()) > 1:
            lab.deliver()
    lab.pump([0.1] * 29)
    assert result.pending or where == "PRAGMA"
    assert idle.pending is (where != "PRAGMA")
    lab.pump([0.1] * 13)
    assert idle.value is None
    cancelled = closed and where == "PRAGMA"
    assert isinstance(result.error, CancelledError if cancelled else expected)
    assert isinstance(behind.error, (DatabaseUnavailable, NotInitialized))
    if closed or where == "PRAGMA":
        assert lost.value is None
    else:
        assert str(lost.error) == "the disk does not answer"
    lab.end(database)
    assert len(running()) == 1
    gate.open()
    while running():
        lab.deliver()
    assert all(each.closed for each in lab.made)
    assert files() == []


def test_closing_a_disk_that_stalls_is_given_up(lab: Lab) -> None:
    """
    Closing gives up a stalled disk, so the process can exit.
    """
    database = lab.open(statementTimeout=2.0, connectTimeout=1.0)
    gate = lab.onClose = Gate(lab)
    closed = resultOf(database.close())
    gate.wait()
    lab.pump([0.1] * 29)
    assert closed.pending
    lab.pump([0.1] * 3)
    assert closed.value is None
    assert lab.getDelayedCalls() == []
    gate.open()
    while running():
        lab.deliver()


# Giving up.


@pytest.mark.parametrize("where", ["", "BEGIN", "COMMIT"])
def test_a_cancelled_call_is_never_started(
    lab: Lab, database: Database, where: str
) -> None:
    """
    A queued call that is cancelled is not carried out; the result of a call in progress
    is dropped.
    """
    gate = lab.gate(where or "BEGIN")
    given = database.write(ADD, "given up")
    result = resultOf(given)
    kept = resultOf(database.write(ADD, "kept"))
    if where:
        gate.wait()
    given.cancel()
    gate.open()
    lab.work()
    assert isinstance(result.error, CancelledError)
    before = ["given up"] if where == "COMMIT" else []
    assert kept.value == [(len(before) + 1,)]
    assert lab.names() == [*before, "kept"]


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_read_given_up_around_a_loss_is_not_made_again(lab: Lab, when: str) -> None:
    """
    A read that was cancelled around a loss is not repeated; a wrapper repeats the other
    reads.
    """
    database = lab.make(connections=1, statementTimeout=2.0, connectTimeout=1.0)
    wrapper = QueuingWrapper(
        database, lab, replay=["read"], retryPolicy=lambda attempts: 1.0
    )
    lab.work(resultOf(wrapper.initialize()))
    gate = lab.gate(GET.sql)
    given, kept = wrapper.proxy.read(GET, 1), resultOf(wrapper.proxy.read(GET, 2))
    result = resultOf(given)
    gate.wait()
    begun = lab.count(GET.sql)
    if when == "before":
        given.cancel()
    elif when == "during":
        wrapper.addObserver(given.cancel)
    lab.pump([0.1] * 32)
    assert wrapper.state is State.LOST
    given.cancel()
    assert isinstance(result.error, CancelledError)
    lab.advance(1)
    lab.work(kept)
    assert kept.value == []
    assert begun == [GET.sql]
    gate.open()
    lab.work(resultOf(wrapper.close()))
    while running():
        lab.deliver()


# Opening and closing.


@pytest.mark.parametrize("where", ["PRAGMA", "BEGIN", "PRAGMA query_only"])
@pytest.mark.parametrize("how", ["close", "cancel"])
def test_opening_can_be_given_up(lab: Lab, how: str, where: str) -> None:
    """
    Opening can be cancelled at any moment, and leaves nothing open. It does not wait
    for the schema.
    """
    gate = lab.gate(where)
    database = lab.make()
    opening = database.initialize()
    result = resultOf(opening)
    if where == "PRAGMA query_only":
        lab.deliver()
    gate.wait()
    if how == "cancel":
        opening.cancel()
    closed = resultOf(database.close())
    assert isinstance(result.error, CancelledError)
    assert lab.made[-1].interrupts == 1
    gate.open()
    lab.work(closed)
    assert closed.value is None
    assert not database.initialized
    assert all(each.closed for each in lab.made)
    assert files() == running() == []


def test_a_thread_that_cannot_be_started_may_be_tried_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If a thread cannot be started the attempt is retried, since the system may have room
    later.
    """

    def fail(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        opening = resultOf(lab.make().initialize())
    assert isinstance(opening.error, DatabaseUnavailable)
    assert not lab.path.exists()


# Real time, and several processes.


@asynchronous
async def test_endless_statements_end_and_others_go_on(tmp_path: Path) -> None:
    """
    Endless statements are interrupted and rolled back, and other calls continue;
    closing waits for this.
    """
    from twisted.internet import reactor

    path = tmp_path / "the.db"
    database = make(reactor, path, statementTimeout=0.3, connections=2)
    await database.initialize()
    endless = [
        resultOf(database.write(ADD_ENDLESS)),
        resultOf(database.read(ENDLESS)),
    ]
    behind = database.write(ADD, "behind")
    for _ in range(100):
        assert await database.read(ALL) == []
    assert [each.pending for each in endless] == [True, True]
    assert await behind == [(1,)]
    while endless[1].pending:
        await database.read(GET, 1)
    endless.append(resultOf(database.read(ENDLESS)))
    # Wait until the statement has begun.
    assert await database.read(ALL) == [("behind",)]
    await database.close()
    for each in endless:
        assert isinstance(each.error, DatabaseUnavailable)
        assert each.error.code == "SQLITE_INTERRUPT"
    assert running() == files() == []
