"""
SQLite's file cannot be opened, or is moved, replaced, deleted or truncated while it is
in use. The write-ahead log beside the file is never applied to another file, every
acknowledged call is in a file, and no empty database replaces the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from pwd import getpwuid
from shutil import which

import pytest

from tsrv.databases import Database, DatabaseRefused, DatabaseUnavailable, Statement

from .resources import SmallDisk
from .resources import smallDisk as smallDisk
from .sqlitelab import ADD, ALL, Lab, connect, namesIn, running
from .support import resultOf
from .test_sqlite import database as database
from .test_sqlite import lab as lab
from .websupport import errorsIn, logged, textsOf


@pytest.fixture
def backup(lab: Lab, database: Database) -> Path:
    """
    An old copy of a database that has further changes in its write-ahead log.
    """
    path = lab.path.with_suffix(".backup")
    lab.together(database, (ADD, "old"))
    with closing(connect(lab.path)) as source, closing(connect(path)) as copy:
        source.backup(copy)
    lab.together(database, *((ADD, f"new {number}") for number in range(9)))
    return path


USER = getpwuid(os.geteuid()).pw_name

OPEN = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from tsrv.databases import Database, DatabaseRefused

async def main(reactor, path):
    try:
        await Database(reactor, f"sqlite:{path}").initialize()
    except DatabaseRefused as error:
        print(error)

react(lambda *words: Deferred.fromCoroutine(main(*words)), sys.argv[1:])
"""


def refusal(path: Path) -> str:
    """
    @return: The error of a process that is subject to permissions.
    """
    command = [sys.executable, "-c", OPEN, str(path)]
    if os.geteuid() == 0:
        if which("setpriv") is None:
            pytest.skip("the superuser may open any file")
        command = ["setpriv", "--bounding-set=-all", *command]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert ended.stderr == ""
    (line,) = ended.stdout.splitlines()
    return line


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400])
def test_a_file_with_the_wrong_permissions_is_refused(
    tmp_path: Path, mode: int
) -> None:
    """
    Wrong permissions of the file are reported at the start, and not at the first write.
    """
    path = tmp_path / "the.db"
    path.touch(mode)
    path.chmod(mode)
    assert refusal(path) == (
        f"{path} has the mode {mode:03o}, and the user {USER} cannot read and write "
        "it: change its mode or its owner, or give another path"
    )


@pytest.mark.parametrize(("mode", "exists"), [(0o500, 0), (0o500, 1), (0o000, 0)])
def test_a_directory_with_the_wrong_permissions_is_refused(
    tmp_path: Path, mode: int, exists: int
) -> None:
    """
    Wrong permissions of the directory are refused, since SQLite creates more files than
    the database.
    """
    directory = tmp_path / "data"
    directory.mkdir()
    path = directory / "the.db"
    if exists:
        path.touch()
    directory.chmod(mode)
    error = refusal(path)
    directory.chmod(0o700)
    assert error.startswith(f"cannot open {path}: ")
    assert error.endswith(
        f": let the user {USER} create files in the directory {directory}, where "
        "SQLite keeps its write-ahead log, too; or give another path"
    )


def test_a_full_disk_may_have_room_later(lab: Lab, smallDisk: SmallDisk) -> None:
    """
    A full disk is a temporary error, which says what to do.
    """
    smallDisk.fill()
    lab.path = smallDisk.directory / "the.db"
    error = lab.refused()
    assert isinstance(error, DatabaseUnavailable)
    assert str(error).endswith(": make room on the disk")
    smallDisk.free()
    lab.end(lab.open())


def loseByLooking(lab: Lab, database: Database) -> str:
    """
    @return: The reason of the loss, which is found without a call.
    """
    lost = resultOf(database.whenLost())
    lab.advance(2)
    lab.work(lost)
    while running():
        lab.deliver()
    return str(lost.error)


def opening(lab: Lab, database: Database) -> BaseException | None:
    """
    @return: The error of opening the database again.
    """
    result = resultOf(database.initialize())
    lab.work(result)
    return result.error if result.fired[0] is not None else None


def moveAway(lab: Lab) -> Path:
    """
    Move the file.

    @return: The new path of the file.
    """
    return lab.path.rename(lab.path.with_suffix(".old"))


@pytest.mark.parametrize("statement", [None, ADD, ALL])
def test_a_file_that_was_replaced_is_refused(
    lab: Lab, database: Database, backup: Path, statement: Statement | None
) -> None:
    """
    The new file is not changed. The old file can be used with its log, under the name
    in the error.
    """
    old = moveAway(lab)
    backup.rename(lab.path)
    if statement is None:
        assert "was replaced" in loseByLooking(lab, database)
    else:
        ask = database.write if statement is ADD else database.read
        call = resultOf(ask(statement, *("late",) * (statement is ADD)))
        lab.work(call)
        assert isinstance(call.error, DatabaseUnavailable)
    error = opening(lab, database)
    assert isinstance(error, DatabaseRefused)
    replaced = Path(f"{lab.path}.replaced")
    assert str(error) == (
        f"{lab.path} was replaced while it was in use; the last changes of the old "
        f"file are in {replaced}-wal: restart the server to use the new file"
    )
    assert lab.names() == ["old"]
    old.rename(replaced)
    assert namesIn(replaced) == ["old", *(f"new {number}" for number in range(9))]
    # An operator resets the module, which closes the database.
    lab.end(database)
    assert opening(lab, database) is None
    assert lab.find(database, ALL) == [("old",)]


def test_a_file_that_was_replaced_before_the_end_is_left_as_it_is(
    lab: Lab, database: Database, backup: Path
) -> None:
    """
    If the file was replaced before a close, the next server does not find the old log
    beside the new file, and the log of the server says so.
    """
    backup.rename(lab.path)
    with logged() as events:
        lab.end(database)
    (text,) = textsOf(errorsIn(events))
    assert text.startswith(f"{lab.path} was replaced while it was in use; the last ")
    assert lab.names() == ["old"]
    assert Path(f"{lab.path}.replaced-wal").exists()


def test_logs_that_were_moved_away_are_kept(lab: Lab) -> None:
    """
    A file may be replaced more than once, and every old log is kept.
    """
    for _ in range(3):
        database = lab.open()
        lab.together(database, (ADD, "a"))
        lab.path.with_suffix(".new").write_bytes(b"")
        lab.path.with_suffix(".new").rename(lab.path)
        lab.end(database)
    logs = sorted(path.name for path in lab.path.parent.glob("*-wal"))
    assert logs == [f"the.db.replaced{number}-wal" for number in ("", 1, 2)]


def test_a_file_that_was_moved_is_waited_for(
    lab: Lab, database: Database, backup: Path
) -> None:
    """
    A moved file is waited for: no empty database replaces it, and when it is restored
    it has everything that was acknowledged.
    """
    old = moveAway(lab)
    reason = loseByLooking(lab, database)
    assert reason == f"{lab.path} was moved while it was in use: put it back"
    for _ in range(2):
        error = opening(lab, database)
        assert isinstance(error, DatabaseUnavailable)
        # This is logged once.
        assert str(error) == reason
    assert not lab.path.exists()
    old.rename(lab.path)
    assert opening(lab, database) is None
    assert len(lab.find(database, ALL)) == 10


@pytest.mark.parametrize("everything", [False, True])
def test_no_empty_database_takes_the_place_of_a_deleted_one(
    lab: Lab, database: Database, backup: Path, everything: bool
) -> None:
    """
    A deleted file is not replaced by an empty database. The old log is not applied to a
    restored backup, even if the backup has the inode number of the old file.
    """
    for suffix in ("", "-wal", "-shm") if everything else ("",):
        Path(f"{lab.path}{suffix}").unlink()
    reason = loseByLooking(lab, database)
    assert reason == (
        f"{lab.path} was deleted while it was in use: put a backup in its place, or "
        "restart the server to begin with an empty database"
    )
    for _ in range(2):
        error = opening(lab, database)
        assert isinstance(error, DatabaseUnavailable)
        assert str(error) == reason
    assert not lab.path.exists()
    lab.path.write_bytes(backup.read_bytes())
    assert opening(lab, database) is None
    assert lab.find(database, ALL) == [("old",)]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_that_was_deleted_is_made_anew(
    lab: Lab, database: Database, backup: Path, suffix: str
) -> None:
    """
    If the write-ahead log is deleted, the file is opened again, with everything that
    was acknowledged.
    """
    Path(f"{lab.path}{suffix}").unlink()
    assert f"{suffix} was moved or deleted" in loseByLooking(lab, database)
    assert opening(lab, database) is None
    assert len(lab.find(database, ALL)) == 10
    lab.end(database)
    assert len(lab.names()) == 10


def test_a_file_that_was_truncated_is_waited_for(
    lab: Lab, database: Database, backup: Path
) -> None:
    """
    If the file is truncated, its log is moved away, so that it is not applied to a
    backup, even if the backup is written into the same file.
    """
    os.truncate(lab.path, 0)
    reason = loseByLooking(lab, database)
    assert reason == (
        f"{lab.path} was truncated while it was in use: put a backup in its place"
    )
    for _ in range(2):
        error = opening(lab, database)
        assert isinstance(error, DatabaseUnavailable)
        assert str(error) == reason
    lab.path.write_bytes(backup.read_bytes())
    assert opening(lab, database) is None
    assert lab.find(database, ALL) == [("old",)]


@pytest.mark.parametrize("content", [b"", b"no database" * 999])
def test_a_file_that_is_overwritten_is_unavailable(
    lab: Lab, database: Database, content: bytes
) -> None:
    """
    If the file is overwritten, calls fail with a temporary error, with one line in the
    log; they succeed again when the file is valid.
    """
    lab.together(database, *((ADD, f"{number}" * 999) for number in range(99)))
    with closing(connect(lab.path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = lab.path.read_bytes()
    with lab.path.open("r+b") as file:
        file.truncate(4096)
        file.seek(4096)
        file.write(content)
    with logged() as events:
        for _ in range(3):
            call = resultOf(database.read(ALL))
            lab.work(call)
            assert isinstance(call.error, DatabaseUnavailable)
    assert len(events) == 1
    lab.path.write_bytes(before)
    assert len(lab.find(database, ALL)) == 99


@pytest.mark.parametrize("link", ["before", "after"])
def test_a_link_to_another_file_is_another_file(
    lab: Lab, database: Database, backup: Path, link: str
) -> None:
    """
    A symbolic link to another file counts as a replacement, whether the path was a link
    before or not.
    """
    lab.end(database)
    first = lab.path
    if link == "before":
        lab.path = lab.path.with_suffix(".link")
        lab.path.symlink_to(first)
    database = lab.open()
    lab.together(database, (ADD, "more"))
    linking = lab.path.with_suffix(".new")
    linking.symlink_to(backup)
    linking.rename(lab.path)
    assert "was replaced" in loseByLooking(lab, database)
    assert isinstance(opening(lab, database), DatabaseRefused)
    assert namesIn(backup) == ["old"]
    if link == "before":
        assert namesIn(first)[-1] == "more"
