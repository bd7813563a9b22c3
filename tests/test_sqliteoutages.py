"""
SQLite's file is locked, replaced or on a full disk, or its servers are killed: no
acknowledged write is lost, and none is carried out twice.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .resources import SmallDisk
from .resources import smallDisk as smallDisk
from .services import pause, serving
from .userload import Load, underTwoServers
from .websupport import asynchronous


def emailsInFile(path: Path) -> list[str]:
    """
    @return: The addresses in an SQLite file, which must not be damaged.
    """
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT email FROM users").fetchall()
    connection.close()
    return [email for (email,) in rows]


@asynchronous
async def test_two_servers_share_one_file(tmp_path: Path) -> None:
    """
    Two servers may share one file, although SQLite has one writer at a time.
    """
    path = tmp_path / "users.db"
    load = await underTwoServers(tmp_path, f"sqlite:{path}")
    load.check(emailsInFile(path))


@asynchronous
async def test_a_file_that_is_moved_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    """
    If the file is moved for a moment, clients wait, or learn that their write was not
    carried out. The log has one line about the loss, and no traceback.
    """
    path = tmp_path / "users.db"
    async with serving(tmp_path, f"sqlite:{path}") as service:
        await service.ready()
        load = Load([service])
        done = load.start(4, 1)
        await load.until(20)
        moved = path.rename(tmp_path / "moved.db")
        await service.ready(False)
        moved.rename(path)
        await load.until(20)
        load.stopping = True
        await done
        assert service.process.status is None
        load.check(emailsInFile(path))
    assert service.process.output.count("database: lost (") == 1
    assert "Traceback" not in service.process.output


@asynchronous
async def test_a_disk_that_is_full_loses_nothing(
    tmp_path: Path, smallDisk: SmallDisk
) -> None:
    """
    On a full disk a write fails, and is not acknowledged; writes succeed when there is
    room again.
    """
    path = smallDisk.directory / "users.db"
    async with serving(tmp_path, f"sqlite:{path}") as service:
        await service.ready()
        load = Load([service])
        done = load.start(4, 1)
        await load.until(20)
        smallDisk.fill()
        while not load.count("not now"):
            await pause(0.01)
        assert (await service.ask("GET", "/users/1")).status == 200
        smallDisk.free()
        await load.until(20)
        load.stopping = True
        await done
        assert service.process.status is None
        load.check(emailsInFile(path))


@asynchronous
async def test_a_path_that_is_not_a_database_is_reported_once(tmp_path: Path) -> None:
    """
    If the path is not a database, one line of the log names the path and says what to
    do; the file is not changed.
    """
    path = tmp_path / "users.db"
    path.write_text("no database, but somebody's letter\n" * 1000)
    async with serving(tmp_path, f"sqlite:{path}") as service:
        assert await service.process.ended == 1
        log = service.process.output
        assert log.count("database is required, and failed") == 1
        assert log.count(": failed for good (") == 1
        assert log.count("database: failed for good (") == 1
        assert str(path) in log
        assert "Traceback" not in log
    assert path.read_text().startswith("no database")


@asynchronous
async def test_acknowledged_writes_survive_the_end_of_the_server(
    tmp_path: Path,
) -> None:
    """
    Acknowledged writes survive if the server is killed during a write; after SIGTERM
    requests in progress finish.
    """
    path = tmp_path / "users.db"
    for name, signal in (("killed", "KILL"), ("stopped", "TERM")):
        async with serving(tmp_path / name, f"sqlite:{path}") as service:
            await service.ready()
            load = Load([service], name=name)
            done = load.start(8)
            await load.until(100)
            service.process.transport.signalProcess(signal)
            status = await service.process.ended
            load.stopping = True
            await done
            assert signal == "KILL" or status == 0
            found = emailsInFile(path)
            load.check([each for each in found if each.endswith(name)])
