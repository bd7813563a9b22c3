"""
Sessions survive outages of the server and of their database: no acknowledged visit is
lost or counted twice, and no visitor gets the session of another one.

The server and the databases are processes of their own.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred

from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .redis_server import ownRedis as ownRedis
from .redis_server import redis as redis
from .resources import ResourceUsage
from .services import Answer, Service, pause, serving, tried
from .websupport import asynchronous, reservedPort

QUOTA = ["--new-sessions=100000", "--new-sessions-per-peer=100000"]
"""
All visitors of a test have the same address.
"""

KINDS = ["sqlite", "postgresql", "postgresql alone", "redis alone"]
"""
The stores of sessions: a separate database, or the database of the users.
"""


@dataclass(frozen=True)
class Setup:
    """
    One way to store sessions.

    @ivar url: The database of the users.
    @ivar options: Further options of the server.
    @ivar module: The name of the module that is lost with the database server.
    @ivar server: The database server.
    """

    url: str
    options: list[str]
    module: str = "database"
    server: Any = None

    @classmethod
    def make(cls, kind: str, server: Any, directory: Path, patch: Any) -> Setup:
        """
        @param server: The database server, unless the kind is SQLite.
        """
        if server is None:
            return cls(f"sqlite:{directory / 'sessions.db'}", QUOTA)
        if not kind.endswith("alone"):
            return cls(server.url, QUOTA, server=server)
        options = [*QUOTA]
        if kind.startswith("postgresql"):
            # On the command line every user could read the password.
            patch.setenv("TSRV_SESSIONS", f"{server.url}?table=visitors")
        else:
            options.append(f"--sessions={server.url}")
        return cls(f"sqlite:{directory / 'users.db'}", options, "sessions", server)

    def serving(self, directory: Path, port: int | None = None) -> Any:
        """
        Run a server.
        """
        return serving(directory, self.url, *self.options, port=port)


@pytest.fixture(params=KINDS)
def setup(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Setup:
    """
    Each way to store sessions.
    """
    kind: str = request.param
    name = {"p": "database", "r": "redis"}.get(kind[0])
    server = None if name is None else request.getfixturevalue(name)
    return Setup.make(kind, server, tmp_path, monkeypatch)


@pytest.fixture(params=KINDS[1:])
def ownSetup(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Setup:
    """
    Each way with a database server, which is stopped.
    """
    name = {"p": "ownPostgresql", "r": "ownRedis"}[request.param[0]]
    server = request.getfixturevalue(name)
    return Setup.make(request.param, server, tmp_path, monkeypatch)


def done(function: Callable[[], object]) -> Deferred[Any]:
    """
    @return: A Deferred of the result of a function, which may itself return a Deferred.
    """
    result: Deferred[Any] = maybeDeferred(function)
    return result


def together(*work: Coroutine[Any, Any, Any]) -> Deferred[list[Any]]:
    """
    Run coroutines concurrently.

    @return: A Deferred of their results. If one fails, the Deferred fails when all have
        ended.
    """

    def results(outcomes: list[tuple[bool, Any]]) -> list[Any]:
        for succeeded, result in outcomes:
            if not succeeded:
                result.raiseException()
        return [result for _, result in outcomes]

    begun = [Deferred.fromCoroutine(each) for each in work]
    return DeferredList(begun, consumeErrors=True).addCallback(results)


@dataclass
class Visitor:
    """
    A browser, which keeps its cookie.

    @ivar service: The server that it visits.
    @ivar name: The name that it logs in with.
    @ivar visits: The answers to its visits.
    """

    service: Service
    name: str = "Ada"
    cookie: str | None = None
    visits: list[Answer] = field(default_factory=list)

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[bytes | str, bytes | str] | None = None,
        service: Service | None = None,
    ) -> Answer:
        """
        Send a request.

        @param service: The server, if not the usual one.
        """
        service = service or self.service
        sent: dict[bytes | str, bytes | str] = {"Origin": service.origin}
        if self.cookie:
            sent["Cookie"] = f"session={self.cookie}"
        answer = await service.ask(method, path, body, sent | (headers or {}))
        if answer.cookie is not None:
            self.cookie = answer.cookie
        return answer

    async def visit(self, service: Service | None = None) -> Answer:
        """
        Visit the site.
        """
        answer = await self.ask("GET", "/visits", service=service)
        self.visits.append(answer)
        return answer

    async def logIn(self) -> str:
        """
        Log in.

        @return: The new cookie.
        """
        answer = await self.ask("POST", "/login", {"name": self.name})
        assert answer.body == {"name": self.name}, answer
        assert self.cookie is not None
        return self.cookie

    async def me(self, service: Service | None = None) -> tuple[str | None, int]:
        """
        @return: The name and the number of visits in the session.
        """
        answer = await self.ask("GET", "/me", service=service)
        assert answer.status == 200, answer
        return answer.body["name"], answer.body["visits"]

    def count(self, kind: str) -> int:
        """
        @return: The number of visits with this kind of response.
        """
        return sum(each.kind == kind for each in self.visits)

    def check(self, visits: int) -> None:
        """
        Compare the responses with the number of visits in the session.
        """
        kinds = {answer.kind for answer in self.visits}
        assert kinds <= {"200", "unknown", "not now", "0"}, kinds
        numbers = [each.body["visits"] for each in self.visits if each.kind == "200"]
        assert numbers == sorted(set(numbers))
        assert numbers == [] or numbers[-1] <= visits
        acknowledged = self.count("200")
        doubtful = self.count("unknown") + self.count("0")
        assert acknowledged <= visits <= acknowledged + doubtful


@dataclass
class Crowd:
    """
    Visitors who have logged in, and visit the site again and again.

    @ivar seen: For each C{/me}: the name of the visitor, the name in the session, the
        status.
    """

    visitors: list[Visitor]
    seen: Counter[tuple[str, str | None, int]] = field(default_factory=Counter)
    stopping: bool = False

    @classmethod
    async def of(cls, service: Service, count: int) -> Crowd:
        """
        Let visitors log in.
        """
        visitors = [Visitor(service, f"visitor {number}") for number in range(count)]
        await together(*(visitor.logIn() for visitor in visitors))
        return cls(visitors)

    @asynccontextmanager
    async def visiting(self, *, looking: bool = False) -> AsyncIterator[None]:
        """
        Let all visitors visit the site until the end.

        @param looking: Whether they also request C{/me}.
        """
        work = [self._visit(each) for each in self.visitors]
        if looking:
            work += [self._look(each) for each in self.visitors]
        self.stopping = False
        ended = together(*work)
        try:
            yield
        finally:
            self.stopping = True
            await ended

    async def _visit(self, visitor: Visitor) -> None:
        while not self.stopping:
            answer = await visitor.visit()
            await pause(0.005 if answer.status == 200 else 0.05)

    async def _look(self, visitor: Visitor) -> None:
        while not self.stopping:
            answer = await visitor.ask("GET", "/me")
            name = answer.body["name"] if answer.status == 200 else None
            self.seen[visitor.name, name, answer.status] += 1
            await pause(0.005)

    async def until(self, more: int) -> None:
        """
        Wait for further acknowledged visits.
        """
        service = self.visitors[0].service
        wanted = self._acknowledged() + more
        begun = service.now()
        while self._acknowledged() < wanted:
            assert service.now() - begun < 30, service.process.output
            await pause(0.01)

    def _acknowledged(self) -> int:
        return sum(each.count("200") for each in self.visitors)

    async def check(self) -> None:
        """
        Check that each visitor has its own session, and never saw another one.
        """
        found = await together(*(each.me() for each in self.visitors))
        for visitor, (name, visits) in zip(self.visitors, found, strict=True):
            assert name == visitor.name
            visitor.check(visits)
        assert all((name, status) == (who, 200) for who, name, status in self.seen), (
            self.seen
        )


def keysIn(path: Path) -> set[bytes]:
    """
    @return: The keys of the sessions in a file.
    """
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT key FROM sessions").fetchall()
    connection.close()
    return {key for (key,) in rows}


# Concurrent requests, and several servers.


@asynchronous
async def test_two_servers_share_the_sessions(tmp_path: Path, setup: Setup) -> None:
    """
    A visitor may visit one server, the other, or both at the same moment: each request
    gets its own number, and each new visitor a session. Requests during a login change
    neither the session nor the cookie.
    """
    with reservedPort() as port:
        servings = [
            setup.serving(tmp_path / "one"),
            setup.serving(tmp_path / "two", port),
        ]
        one, two = await together(*(each.__aenter__() for each in servings))
        try:
            both = [one, two] * 16
            visitor = Visitor(one)
            await visitor.visit()
            answers = await together(*(visitor.visit(service) for service in both))
            numbers = sorted(answer.body["visits"] for answer in answers)
            assert numbers == list(range(2, 34))
            for number, service in enumerate(both[:4], start=34):
                assert (await visitor.visit(service)).body == {"visits": number}
            cookie = await visitor.logIn()
            assert await visitor.me(two) == ("Ada", 37)
            answer = await visitor.ask("POST", "/logout", service=two)
            assert (answer.status, answer.cookie) == (200, "")
            visitor.cookie = cookie
            assert await visitor.me(one) == (None, 0)
            visitors = [Visitor(service, str(n)) for n, service in enumerate(both)]
            answers = await together(*(each.visit() for each in visitors))
            assert [answer.body for answer in answers] == [{"visits": 1}] * 32
            assert len({each.cookie for each in visitors} - {None}) == 32
            await together(*(each.logIn() for each in visitors))
            found = await together(*(each.me(one) for each in visitors))
            assert found == [(each.name, 1) for each in visitors]
            late = [Visitor(two, cookie=each.cookie) for each in visitors]
            answers = await together(
                *(each.ask("POST", "/login", {"name": "Bob"}) for each in visitors),
                *(each.visit() for each in late),
            )
            assert {answer.status for answer in answers} == {200}
            answers = await together(*(each.visit() for each in late))
            assert {answer.cookie for answer in answers} == {None}
            assert all(each.visits[0].cookie is None for each in late)
            found = await together(*(each.me(two) for each in visitors))
            assert {name for name, _ in found} == {"Bob"}
        finally:
            await together(*(each.__aexit__(None, None, None) for each in servings))


# Outages.


@asynchronous
async def test_a_killed_server_loses_no_session(tmp_path: Path, setup: Setup) -> None:
    """
    If the server is killed, a request without a response is counted or not; all other
    visits are counted.
    """
    with reservedPort() as port:
        async with setup.serving(tmp_path, port) as service:
            await service.ready()
            crowd = await Crowd.of(service, 16)
            async with crowd.visiting():
                await crowd.until(200)
                await service.kill()
        async with setup.serving(tmp_path, port) as service:
            for visitor in crowd.visitors:
                visitor.service = service
            await crowd.check()
            assert sum(each.count("0") for each in crowd.visitors) > 0


@asynchronous
async def test_an_outage_of_the_database_logs_nobody_out(
    tmp_path: Path, ownSetup: Setup
) -> None:
    """
    Requests that arrive before the database wait for it. If the database is killed
    under load, requests that only read wait again; the others report the truth, even
    that the outcome is unknown.
    """
    server, module = ownSetup.server, ownSetup.module
    async with ownSetup.serving(tmp_path) as service:
        strangers = [Visitor(service) for _ in range(20)]
        visiting = together(*(each.visit() for each in strangers))
        await service.until("/startup", tried(module, 1))
        assert not visiting.called
        await done(server.start)
        assert [answer.body for answer in await visiting] == [{"visits": 1}] * 20
        assert len({visitor.cookie for visitor in strangers} - {None}) == 20
        await service.ready()
        crowd = await Crowd.of(service, 12)
        async with crowd.visiting(looking=True):
            await crowd.until(100)
            # Requests in progress then get no response.
            server.pause()
            await service.until("/metrics", inProgress(24))
            await done(server.kill)
            await service.until("/startup", tried(module, 1))
            waiting = together(*(each.me() for each in crowd.visitors))
            await service.until("/metrics", inProgress(36))
            assert not waiting.called
            await done(server.start)
            found = await waiting
            names = [visitor.name for visitor in crowd.visitors]
            assert [name for name, _ in found] == names
            await crowd.until(100)
        await crowd.check()
        assert sum(crowd.seen.values()) > 48
        assert sum(each.count("0") for each in crowd.visitors) == 0


def inProgress(count: int) -> Callable[[Answer], bool]:
    """
    @return: Whether so many requests are in progress.
    """
    name = "tsrv_http_requests_in_progress "

    def met(answer: Answer) -> bool:
        lines = answer.body.splitlines()
        (line,) = (line for line in lines if line.startswith(name))
        return float(line.removeprefix(name)) >= count

    return met


# Attacks.


@asynccontextmanager
async def attacked(
    directory: Path, *options: str
) -> AsyncIterator[tuple[Service, Visitor, Path]]:
    """
    Run a server with one visitor; both must survive.

    @return: The server, the visitor, and the file with the sessions.
    """
    path = directory / "sessions.db"
    url = f"sqlite:{directory / 'users.db'}"
    async with serving(
        directory, url, *QUOTA, f"--sessions=sqlite:{path}", *options
    ) as service:
        await service.ready()
        visitor = Visitor(service)
        await visitor.visit()
        await visitor.logIn()
        yield service, visitor, path
        assert await visitor.me() == ("Ada", 1)
        assert service.process.status is None
        assert "Traceback" not in service.process.output
        assert "Unhandled" not in service.process.output


def tampered(cookie: str) -> list[str]:
    """
    @return: Slightly changed cookies.
    """
    middle = len(cookie) // 2
    other = "A" if cookie[middle] != "A" else "B"
    return [
        f"session={cookie[:middle]}{other}{cookie[middle + 1 :]}",
        f"session={cookie[:-1]}",
        f"session={cookie}A",
        f"session={cookie}.{'A' * 43}",
        f"session={cookie.swapcase()}",
        f'session="{cookie}"',
        f"session={cookie}%00",
        f"session={cookie}; session={token_urlsafe(32)}",
        f"session={token_urlsafe(32)}; session={cookie}",
        f"Session={cookie}",
        f"__Host-session={cookie}",
        f"session={'A' * 12_000}",
        f"session={sha256(cookie.encode()).hexdigest()}",
        "session=' OR 1=1 --",
        "session=",
        "session",
        ";=;=;,",
        "session=\xff\xfe",
    ]


@asynchronous
async def test_a_forged_cookie_opens_nothing(tmp_path: Path) -> None:
    """
    Changed cookies, guessed identifiers and requests from other sites find no session
    and create none, however many there are.
    """
    async with attacked(tmp_path) as (service, visitor, path):
        before = keysIn(path)
        for cookie in tampered(visitor.cookie or ""):
            sent: dict[bytes | str, bytes | str] = {"Cookie": cookie.encode("latin-1")}
            answer = await Visitor(service).ask("GET", "/me", headers=sent)
            assert answer.status == 200, cookie
            assert (answer.body["name"], answer.body["visits"]) == (None, 0), cookie
            assert not answer.cookie, cookie
        for page in ("/me", "/visits"):
            large = Visitor(service, cookie="A" * 102400)
            answer = await large.ask("GET", page)
            assert answer.status in (400, 431), answer
            assert answer.cookie is None

        async def guess(times: int) -> None:
            for _ in range(times):
                guesser = Visitor(service, cookie=token_urlsafe(32))
                assert await guesser.me() == (None, 0)

        # Objects that the first requests create once are not growth.
        await together(*(guess(25) for _ in range(20)))
        earlier = ResourceUsage.of(service.process.transport.pid)
        await together(*(guess(100) for _ in range(20)))
        now = ResourceUsage.of(service.process.transport.pid)
        assert "memory" not in now.grownFrom(earlier, memory=16 * 2**20)
        evil: dict[bytes | str, bytes | str] = {"Origin": "http://evil.example"}
        for page in ("/login", "/logout"):
            answer = await visitor.ask("POST", page, {"name": "Eve"}, evil)
            assert answer.status == 403, answer
            assert answer.cookie is None
        assert keysIn(path) == before


@asynchronous
async def test_a_cookie_is_worthless_after_the_logout(tmp_path: Path) -> None:
    """
    A request that overlaps with the logout does not restore the session.
    """
    async with attacked(tmp_path) as (service, _, path):
        before = keysIn(path)
        for page in ("/me", "/visits", "/visits"):
            visitor = Visitor(service, "Eve")
            await visitor.visit()
            kept = await visitor.logIn()
            late = [Visitor(service, cookie=kept) for _ in range(32)]
            answers = await together(
                *(each.ask("GET", page) for each in late[:16]),
                visitor.ask("POST", "/logout"),
                *(each.ask("GET", page) for each in late[16:]),
            )
            assert {answer.status for answer in answers} == {200}
            assert visitor.cookie == ""
            assert await Visitor(service, cookie=kept).me() == (None, 0)
            assert sha256(kept.encode()).digest() not in keysIn(path)
        assert before <= keysIn(path)


@asynchronous
async def test_the_number_of_new_sessions_is_limited(tmp_path: Path) -> None:
    """
    One client cannot fill the disk.
    """
    async with attacked(tmp_path, "--new-sessions-per-peer=5") as (service, _, path):
        before = keysIn(path)
        answers = await together(*(Visitor(service).visit() for _ in range(100)))
        kinds = Counter(answer.kind for answer in answers)
        # Meanwhile, the quota has made room for some more.
        assert kinds["200"] < 20
        assert kinds["200"] + kinds["429"] == 100
        assert len(keysIn(path) - before) == kinds["200"]
