"""
A real Redis that refuses commands, is of the wrong kind, or falls silent.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hiredis import ReplyError
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock

from tsrv.errors import Unavailable
from tsrv.sessions import Changes, SessionsUnavailable, makeIdentifier
from tsrv.sessions.redis import RedisSessionStore, SessionsRefused
from tsrv.web.requestid import withRequestId

from .databases import errorOf
from .networks import relaying
from .postgresql_server import inThread
from .processes import ROOT
from .redis_server import Redis, Timed, storeAt, using
from .redis_server import ownRedis as ownRedis
from .redis_server import redis as redis
from .services import pause
from .websupport import asynchronous, reservedPort, written

ONE = makeIdentifier()

ADD = Changes(added={"n": 1})

RIGHTS = ["+@read", "+@write", "+@scripting", "+@connection", "~tsrv:session:*"]
"""
The rights that the documentation asks for.
"""


def test_the_documentation_names_the_rights() -> None:
    """
    The how-to about sessions asks for the rights that these tests give.
    """
    page = (ROOT / "docs" / "howto" / "sessions.md").read_text()
    *rights, keys = RIGHTS
    assert f"`{' '.join(rights)}`" in page
    assert f"`{keys}`" in page


def addUser(server: Redis, *rights: str) -> str:
    """
    Give a user these rights only.

    @return: The URL for this user.
    """
    server.ask("ACL", "SETUSER", "al", "reset", "on", ">x", *rights)
    return server.url.replace("://", "://al:x@")


# Servers of the wrong kind.


@asynchronous
async def test_a_cluster_is_refused(ownRedis: Redis) -> None:
    """
    A cluster is refused, also if the user may not query the type of the server, or if
    the cluster does not serve yet.
    """
    ownRedis.start(cluster_enabled="yes", databases="1")
    url = addUser(ownRedis, *RIGHTS)
    for isServing in (False, True):
        if isServing:
            ownRedis.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            while b"cluster_state:ok" not in ownRedis.ask("CLUSTER", "INFO"):
                await pause(0.01)
        for each in (ownRedis.url, url):
            with pytest.raises(SessionsRefused, match="cluster is not supported"):
                async with using(each):
                    pass


@pytest.mark.parametrize(("login", "path"), [("", ""), (":x@", ""), ("", "/1")])
@asynchronous
async def test_a_sentinel_is_refused(
    redis: Redis, tmp_path: Path, login: str, path: str
) -> None:
    """
    A Sentinel is refused; the error says so, whatever else is wrong with the URL.
    """
    with reservedPort() as port:
        settings = tmp_path / "sentinel.conf"
        settings.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
        process = subprocess.Popen(  # noqa: S603
            [redis.program, str(settings), "--sentinel"], stdout=subprocess.DEVNULL
        )
        try:
            error: BaseException = SessionsUnavailable("")
            # At first it does not listen yet.
            while isinstance(error, SessionsUnavailable):
                await pause(0.01)
                store = storeAt(f"redis://{login}127.0.0.1:{port}{path}")
                error = await errorOf(store.initialize())
                await store.close()
            assert isinstance(error, SessionsRefused)
            assert "a Redis Sentinel keeps no sessions" in str(error)
        finally:
            process.kill()
            process.wait()


# Commands that are refused.


@asynchronous
async def test_lost_rights_are_logged_and_can_be_restored(ownRedis: Redis) -> None:
    """
    Without the rights, reads and changes fail as unavailable, with one line in the log.
    They succeed as soon as the rights are restored.
    """
    ownRedis.start()
    url = addUser(ownRedis, *RIGHTS)
    async with using(url) as store:
        await store.create(ONE, {})
        addUser(ownRedis, "+ping")
        calls: list[Any] = [store.get, lambda one: store.set(one, ADD), store.destroy]
        with written() as lines:
            for number in range(9):
                with (
                    withRequestId(f"r{number}"),
                    pytest.raises(SessionsUnavailable, match="too few permissions"),
                ):
                    await calls[number % 3](ONE)
            for admin in (store.length, store.clear):
                with pytest.raises(SessionsUnavailable, match="too few permissions"):
                    await admin()
        (line,) = lines
        assert ",r0] sessions: a command failed: Redis refused a command: " in line
        assert line.endswith("(NOPERM)")
        assert store.failures == {"NOPERM": 11}
        assert store.initialized
        addUser(ownRedis, *RIGHTS)
        changed = await store.set(ONE, ADD)
        assert changed is not None


@asynchronous
async def test_a_store_that_was_ready_waits_for_its_rights(ownRedis: Redis) -> None:
    """
    Without its rights, a store that was ready before fails with an error that a retry
    may cure; a new store is refused.
    """
    ownRedis.start()
    url = addUser(ownRedis, *RIGHTS)
    async with using(url) as store:
        await store.create(ONE, {})
        lost = store.whenLost()
        ownRedis.ask("ACL", "DELUSER", "al")
        with pytest.raises(Unavailable):
            await lost
        for words in ("check the user", "too few permissions"):
            with pytest.raises(SessionsUnavailable, match=words):
                await store.initialize()
            with pytest.raises(SessionsRefused, match=words):
                async with using(url):
                    pass
            addUser(ownRedis)
        addUser(ownRedis, *RIGHTS)
        await store.initialize()
        assert await store.get(ONE) is not None


def refuseMemory(server: Redis, isRefused: bool) -> None:
    """
    Fill the memory.
    """
    server.ask("CONFIG", "SET", "maxmemory", str(int(isRefused)))


def refuseDisk(server: Redis, isRefused: bool) -> None:
    """
    Make a snapshot fail: a file cannot replace a directory.
    """
    obstacle = server.directory / "dump.rdb"
    if isRefused:
        obstacle.mkdir()
    else:
        obstacle.rmdir()
    server.ask("CONFIG", "SET", "save", "3600 1000000")
    server.ask("BGSAVE")
    while b"rdb_bgsave_in_progress:1" in server.ask("INFO", "persistence"):
        pass


def refuseReplicas(server: Redis, isRefused: bool) -> None:
    """
    Require more replicas than there are.
    """
    server.ask("CONFIG", "SET", "min-replicas-to-write", str(int(isRefused)))


@pytest.mark.parametrize(
    ("code", "refuse"),
    [("OOM", refuseMemory), ("MISCONF", refuseDisk), ("NOREPLICAS", refuseReplicas)],
)
@asynchronous
async def test_refused_changes_are_counted_and_logged(
    ownRedis: Redis, code: str, refuse: Any
) -> None:
    """
    One line has the error code and the id of the first request; reads succeed, and
    nothing is lost.
    """
    ownRedis.start()
    async with using(ownRedis.url) as store:
        made = await store.create(ONE, {"n": 1})
        refuse(ownRedis, True)
        with written() as lines:
            for number in range(3):
                with withRequestId(f"r{number}"):
                    for change in (
                        store.create(makeIdentifier(), {}),
                        store.set(ONE, ADD),
                    ):
                        with pytest.raises(SessionsUnavailable) as caught:
                            await change
                        assert caught.value.code == code
                        assert caught.value.retryAfter is not None
        (line,) = lines
        assert ",r0] sessions: a command failed: " in line
        assert line.endswith(f"({code})")
        assert store.failures == {code: 6}
        assert await store.get(ONE) == made
        refuse(ownRedis, False)
        assert await store.set(ONE, ADD) is not None
        assert store.failures == {code: 6}


@asynchronous
async def test_an_idle_store_reports_a_full_disk(ownRedis: Redis) -> None:
    """
    The PING of an idle store detects a full disk before a visitor has to wait. The log
    line belongs to no request.
    """
    clock = Clock()
    ownRedis.start()
    store = RedisSessionStore(Timed(clock), ownRedis.url)
    with withRequestId("lazy"):
        await store.initialize()
        refuseDisk(ownRedis, True)
        with written() as lines:
            clock.pump([1.0] * 3)
            # Replies arrive in order.
            assert await store.get(ONE) is None
    (line,) = lines
    assert "lazy" not in line
    assert line.endswith("it cannot write to its disk (MISCONF)")
    assert store.failures == {"MISCONF": 1}
    await store.close()


@asynchronous
async def test_a_busy_redis_is_lost_once(ownRedis: Redis) -> None:
    """
    A loss has its error code in its reason, and does not count as a failure as well.
    """
    ownRedis.start(lua_time_limit="1")
    async with using(ownRedis.url) as store:
        lost = store.whenLost()
        script = inThread(ownRedis.ask, "EVAL", "while true do end", "0")
        with written() as lines:
            while store.initialized:
                with suppress(Unavailable):
                    await store.get(ONE)
            with pytest.raises(Unavailable, match=r"a script keeps it busy \(BUSY\)"):
                await lost
            with pytest.raises(SessionsUnavailable, match="keeps it busy"):
                await store.initialize()
        assert (lines, store.failures) == ([], {})
        ownRedis.ask("SCRIPT", "KILL")
        with pytest.raises(ReplyError):
            await script
        await store.initialize()


# Silence.


@asynchronous
async def test_a_silent_network_is_noticed_within_ten_seconds(redis: Redis) -> None:
    """
    If the network falls silent, each idle store is lost within ten seconds, and
    recovers afterwards.
    """
    clock = Clock()
    async with relaying(redis.port) as relay:
        url = f"redis://127.0.0.1:{relay.port}"
        stores = [RedisSessionStore(Timed(clock), url) for _ in range(3)]
        await gatherResults([store.initialize() for store in stores])
        for _ in range(10):
            clock.advance(1.0)
            assert await stores[0].get(ONE) is None
        lost = [store.whenLost() for store in stores]
        relay.silence()
        clock.pump([1.0] * 10)
        for each in lost:
            with pytest.raises(Unavailable, match="no answer in 5 s"):
                await each
        assert not any(store.initialized for store in stores)
        relay.resume()
        await gatherResults([store.initialize() for store in stores])
        assert await stores[0].get(ONE) is None
        await gatherResults([store.close() for store in stores])
