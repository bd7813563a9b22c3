"""
Several server processes share one port, one database, and the visitors.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from twisted.web.client import HTTPConnectionPool

from .databases import database as database
from .processes import ROOT, Process, spawned
from .restarts import Load, Starter
from .services import Service
from .userload import FIRST
from .websupport import asynchronous

CLIENTS = 12

REQUESTS = 12 * CLIENTS


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """
    The URL of an empty database.
    """
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/shared.db"
    url: str = request.getfixturevalue("database").url
    return url


async def stop(process: Process) -> None:
    """
    Stop a server gracefully.
    """
    process.terminate()
    assert await process.ended == 0
    assert process.errors == ""


async def served(servers: list[Process]) -> None:
    """
    Wait until each server has answered every kind of request.
    """
    for server in servers:
        for line in ("GET /visits", "POST /users", "GET /users/1"):
            await server.whenWritten(f'"{line} HTTP/1.1" 20')


@asynchronous
async def test_processes_share_a_port_and_all_data(tmp_path: Path, url: str) -> None:
    """
    Two servers accept connections from one socket, and each is stopped and replaced
    under load: no request fails, every user is created once, and the visits of a
    visitor are counted across both servers.
    """
    from twisted.internet import reactor

    (tmp_path / "url").write_text(url)
    words = [f"--database-file={tmp_path / 'url'}", "--access-log=on"]
    async with AsyncExitStack() as stack:
        servers = Starter(stack, tmp_path)
        running = [await servers.start(*words) for _ in range(2)]
        pool = HTTPConnectionPool(reactor, persistent=False)
        service = Service(running[0], f"http://127.0.0.1:{servers.port}", pool)
        assert (await service.ask("POST", "/users", FIRST)).status == 201
        command = ["-m", "tests.mixedload"]
        command += [f"--port={servers.port}", f"--clients={CLIENTS}"]
        load = Load(await stack.enter_async_context(spawned(ROOT, *command)))
        await served(running)
        for _ in range(2):
            # The other server serves all clients meanwhile.
            await stop(running.pop(0))
            await load.tell("answered", REQUESTS)
            running.append(await servers.start(*words))
            await served(running)
            await load.tell("answered", REQUESTS)
        report = await load.tell("stop")
        last = await service.ask("POST", "/users", {**FIRST, "email": "last@x"})
        for process in running:
            await stop(process)
    assert report["errors"] == {}
    assert report["answered"] == report["begun"]
    # The identifiers have no gap: no user was created twice, or in vain.
    assert last.body["id"] == report["created"] + 2
