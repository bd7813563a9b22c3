"""
Sessions outlive the servers and the databases that they pass through: of what was
acknowledged nothing is lost, nothing is counted twice, and nobody gets what is
somebody else's.

The server is a real one, in a process of its own, and so is where it keeps the
sessions.
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

from .census import Census
from .databases import PostgreSQL
from .databases import database as database
from .databases import ownPostgresql as ownPostgresql
from .redis_server import Redis
from .redis_server import ownRedis as ownRedis
from .redis_server import redis as redis
from .services import Answer, Service, pause, serving, tried
from .websupport import asynchronous, reservedPort

QUOTA = ["--new-sessions=100000", "--new-sessions-per-peer=100000"]
"""
All visitors of a test come from the same address.
"""


@dataclass(frozen=True)
class Place:
    """
    Where the sessions of a server are.

    @ivar url: Where its database is.
    @ivar words: Its other options.
    @ivar name: The module that tells whether they can be had.
    @ivar server: The server that they are on, if there is one.
    """

    url: str
    words: list[str] = field(default_factory=lambda: list(QUOTA))
    name: str = "sessions"
    server: Any = None

    def serving(self, directory: Path, port: int | None = None) -> Any:
        """
        Run a server that has its sessions there.
        """
        return serving(directory, self.url, *self.words, port=port)


def _placeOf(
    kind: str, server: Any, url: str, directory: Path, patch: pytest.MonkeyPatch
) -> Place:
    if not kind.endswith("alone"):
        return Place(url, name="database", server=server)
    if kind.startswith("postgresql"):
        # On the command line everybody could read the password.
        patch.setenv("TSRV_SESSIONS", f"{url}?table=visitors")
        words = QUOTA
    else:
        words = [*QUOTA, f"--sessions={url}"]
    # What it has besides is not what is tested.
    return Place(f"sqlite:{directory / 'users.db'}", list(words), server=server)


PLACES = ["sqlite", "postgresql", "postgresql alone", "redis alone"]
"""
Kinds of places. Sessions have their own, alone, or are where the users are.
"""


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """
    Each place where sessions can be.
    """
    kind: str = request.param
    name = {"p": "database", "r": "redis"}.get(kind[0])
    server = None if name is None else request.getfixturevalue(name)
    url = f"sqlite:{tmp_path / 'sessions.db'}" if server is None else server.url
    return _placeOf(kind, server, url, tmp_path, monkeypatch)


@pytest.fixture(params=[kind for kind in PLACES if kind[0] != "s"])
def ownPlace(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """
    Each place that is on a server, which does not run yet.
    """
    kind: str = request.param
    name = {"p": "ownPostgresql", "r": "ownRedis"}[kind[0]]
    server: PostgreSQL | Redis = request.getfixturevalue(name)
    return _placeOf(kind, server, server.url, tmp_path, monkeypatch)


def done(function: Callable[[], object]) -> Deferred[Any]:
    """
    @return: A Deferred that fires when something was done, whether that waits or
        not.
    """
    result: Deferred[Any] = maybeDeferred(function)
    return result


def together(*work: Coroutine[Any, Any, Any]) -> Deferred[list[Any]]:
    """
    Do several things at the same time.

    @return: A Deferred of what came of each. If one fails, it fails when all have
        ended: nothing goes on behind the back of the test.
    """
    begun = [Deferred.fromCoroutine(each) for each in work]
    return DeferredList(begun, consumeErrors=True).addCallback(_allOf)


def _allOf(results: list[tuple[bool, Any]]) -> list[Any]:
    for succeeded, result in results:
        if not succeeded:
            result.raiseException()
    return [result for _, result in results]


@dataclass
class Visitor:
    """
    A browser that keeps its cookie.

    @ivar service: The server that it asks.
    @ivar name: With what it logs in.
    @ivar cookie: The cookie.
    @ivar visits: What came of its visits.
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
        Make a request.

        @param service: Another server than its own.
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
        Come once more.
        """
        answer = await self.ask("GET", "/visits", service=service)
        self.visits.append(answer)
        return answer

    async def logIn(self) -> None:
        """
        Tell its name.
        """
        answer = await self.ask("POST", "/login", {"name": self.name})
        assert answer.body == {"name": self.name}, answer

    async def me(self, service: Service | None = None) -> tuple[str | None, int]:
        """
        @return: Its name, and how often it came, as the server knows it.
        """
        answer = await self.ask("GET", "/me", service=service)
        assert answer.status == 200, answer
        return answer.body["name"], answer.body["visits"]

    def count(self, kind: str) -> int:
        """
        @return: How many visits were answered so.
        """
        return sum(each.kind == kind for each in self.visits)

    def check(self, visits: int) -> None:
        """
        See that what is there is what was said.

        @param visits: How often it came, as the server knows it.
        """
        kinds = {answer.kind for answer in self.visits}
        assert kinds <= {"200", "unknown", "not now", "0"}, kinds
        said = [each.body["visits"] for each in self.visits if each.kind == "200"]
        # One after the other, each was told another number.
        assert said == sorted(set(said))
        assert said == [] or said[-1] <= visits
        surely = self.count("200")
        assert surely <= visits <= surely + self.count("unknown") + self.count("0")


@dataclass
class Crowd:
    """
    Many visitors who have logged in, and come again and again.

    @ivar seen: Whom each was taken for, with the status.
    """

    visitors: list[Visitor]
    seen: Counter[tuple[str, str | None, int]] = field(default_factory=Counter)
    stopping: bool = False

    @classmethod
    async def of(cls, service: Service, count: int) -> Crowd:
        """
        Have so many log in.
        """
        visitors = [Visitor(service, f"visitor {number}") for number in range(count)]
        await together(*(visitor.logIn() for visitor in visitors))
        return cls(visitors)

    @asynccontextmanager
    async def coming(self, *, looking: bool = False) -> AsyncIterator[None]:
        """
        Let them come, until the end.

        @param looking: Whether they look at the same time who they are.
        """
        work = [self._come(each) for each in self.visitors]
        if looking:
            work += [self._look(each) for each in self.visitors]
        self.stopping = False
        ended = together(*work)
        try:
            yield
        finally:
            self.stopping = True
            await ended

    async def _come(self, visitor: Visitor) -> None:
        while not self.stopping:
            answer = await visitor.visit()
            # Who is told that it is not possible comes back a little later.
            await pause(0.005 if answer.status == 200 else 0.05)

    async def _look(self, visitor: Visitor) -> None:
        while not self.stopping:
            answer = await visitor.ask("GET", "/me")
            name = answer.body["name"] if answer.status == 200 else None
            self.seen[visitor.name, name, answer.status] += 1
            await pause(0.005)

    async def until(self, more: int) -> None:
        """
        Wait until so many more visits were acknowledged.
        """
        service = self.visitors[0].service
        wanted = self.visited + more
        begun = service.now()
        while self.visited < wanted:
            assert service.now() - begun < 30, service.process.output
            await pause(0.01)

    @property
    def visited(self) -> int:
        """
        How many visits were acknowledged.
        """
        return sum(each.count("200") for each in self.visitors)

    async def check(self) -> None:
        """
        See that each has what is his own, and that nobody was taken for anybody
        else, or for nobody, at any time.
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
    @return: Under what sessions are kept in a file.
    """
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT key FROM sessions").fetchall()
    connection.close()
    return {key for (key,) in rows}


# Many at a time, and several servers.


@asynchronous
async def test_of_visits_at_the_same_moment_each_is_counted(
    tmp_path: Path, place: Place
) -> None:
    """
    A page whose parts are fetched at the same time must not lose what these do to
    the session, nor tell two of them the same number.
    """
    async with place.serving(tmp_path) as service:
        visitor = Visitor(service)
        assert (await visitor.visit()).body == {"visits": 1}
        answers = await together(*(visitor.visit() for _ in range(32)))
        assert {answer.status for answer in answers} == {200}
        said = sorted(answer.body["visits"] for answer in answers)
        assert said == list(range(2, 34))
        assert await visitor.me() == (None, 33)


@asynchronous
async def test_strangers_at_the_same_moment_are_strangers(
    tmp_path: Path, place: Place
) -> None:
    """
    Each who comes without a cookie gets one of his own.
    """
    async with place.serving(tmp_path) as service:
        visitors = [Visitor(service, f"visitor {number}") for number in range(32)]
        answers = await together(*(visitor.visit() for visitor in visitors))
        assert [answer.body for answer in answers] == [{"visits": 1}] * 32
        assert len({visitor.cookie for visitor in visitors} - {None}) == 32
        await together(*(visitor.logIn() for visitor in visitors))
        found = await together(*(visitor.me() for visitor in visitors))
        assert found == [(visitor.name, 1) for visitor in visitors]


@asynchronous
async def test_two_servers_have_the_same_sessions(tmp_path: Path, place: Place) -> None:
    """
    Behind a balancer one visitor asks now this server and now that one, or both at
    the same moment; they are also begun at the same moment.
    """
    with reservedPort() as port:
        servings = [
            place.serving(tmp_path / "one"),
            place.serving(tmp_path / "two", port),
        ]
        one, two = await together(*(each.__aenter__() for each in servings))
        try:
            both = [one, two] * 16
            visitor = Visitor(one)
            await visitor.visit()
            answers = await together(*(visitor.visit(service) for service in both))
            assert {answer.status for answer in answers} == {200}
            said = sorted(answer.body["visits"] for answer in answers)
            assert said == list(range(2, 34))
            for number, service in enumerate(both, start=34):
                assert (await visitor.visit(service)).body == {"visits": number}
            await visitor.logIn()
            assert await visitor.me(two) == ("Ada", 65)
            cookie = visitor.cookie
            answer = await visitor.ask("POST", "/logout", service=two)
            assert (answer.status, answer.cookie) == (200, "")
            visitor.cookie = cookie
            assert await visitor.me(one) == (None, 0)
        finally:
            await together(*(each.__aexit__(None, None, None) for each in servings))


# Outages.


@asynchronous
async def test_a_server_that_is_killed_loses_no_session(
    tmp_path: Path, place: Place
) -> None:
    """
    Twice, while many come. Of what was acknowledged all is there, and nothing is
    there that nobody asked for.
    """
    with reservedPort() as port:
        crowd = None
        for _ in range(2):
            async with place.serving(tmp_path, port) as service:
                await service.ready()
                if crowd is None:
                    crowd = await Crowd.of(service, 16)
                for visitor in crowd.visitors:
                    visitor.service = service
                await crowd.check()
                async with crowd.coming():
                    await crowd.until(200)
                    await service.kill()
        assert crowd is not None
        async with place.serving(tmp_path, port) as service:
            for visitor in crowd.visitors:
                visitor.service = service
            await crowd.check()
            # At least one was asked for that got no answer.
            assert sum(each.count("0") for each in crowd.visitors) > 0


@asynchronous
async def test_a_database_that_is_killed_logs_nobody_out(
    tmp_path: Path, ownPlace: Place
) -> None:
    """
    Who looks who he is does not notice; who changes something is told the truth,
    even that nobody knows it.
    """
    place = ownPlace
    server = place.server
    await done(server.start)
    async with place.serving(tmp_path) as service:
        await service.ready()
        crowd = await Crowd.of(service, 12)
        async with crowd.coming(looking=True):
            for attempts in (1, 2):
                await crowd.until(100)
                # What is under way then has no answer.
                server.pause()
                await service.until("/metrics", inProgress(24))
                await done(server.kill)
                await service.until("/startup", tried(place.name, attempts))
                waiting = together(*(each.me() for each in crowd.visitors))
                # With those who look and come, all wait.
                await service.until("/metrics", inProgress(36))
                assert not waiting.called
                await done(server.start)
                found = await waiting
                assert [name for name, _ in found] == [
                    visitor.name for visitor in crowd.visitors
                ]
        await crowd.check()
        assert sum(crowd.seen.values()) > 48
        assert sum(each.count("0") for each in crowd.visitors) == 0


def inProgress(count: int) -> Callable[[Answer], bool]:
    """
    @return: Whether so many requests wait for an answer.
    """

    def met(answer: Answer) -> bool:
        (line,) = (
            line
            for line in answer.body.splitlines()
            if line.startswith("tsrv_http_requests_in_progress ")
        )
        return float(line.split(" ")[1]) >= count

    return met


@asynchronous
async def test_a_database_that_comes_late_is_waited_for(
    tmp_path: Path, ownPlace: Place
) -> None:
    """
    Who comes while it is not there yet is answered as if it had been, whether he
    was here before or not.
    """
    place = ownPlace
    await done(place.server.start)
    async with place.serving(tmp_path) as service:
        regular = Visitor(service)
        await regular.visit()
        await regular.logIn()
    await done(place.server.kill)
    async with place.serving(tmp_path) as service:
        regular.service = service
        strangers = [Visitor(service) for _ in range(20)]
        visiting = together(*(each.visit() for each in [*strangers, regular]))
        looking = together(*(regular.me() for _ in range(20)))
        failed = f"{place.name} failed to initialize (attempt 2)"
        await service.process.whenWritten(failed)
        assert not visiting.called
        assert not looking.called
        await done(place.server.start)
        answers = await visiting
        assert [answer.body for answer in answers] == [{"visits": 1}] * 20 + [
            {"visits": 2}
        ]
        assert {name for name, _ in await looking} == {"Ada"}
        assert len({visitor.cookie for visitor in strangers} - {None}) == 20


# Who means harm.


@asynccontextmanager
async def attacked(
    directory: Path, *words: str
) -> AsyncIterator[tuple[Service, Visitor, Path]]:
    """
    Run a server with one visitor, who is somebody; it has survived, and nothing
    that it could not deal with was logged.

    @return: The server, the visitor, and where the sessions are.
    """
    path = directory / "sessions.db"
    words = *QUOTA, f"--sessions=sqlite:{path}", *words
    url = f"sqlite:{directory / 'users.db'}"
    async with serving(directory, url, *words) as service:
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
    @return: Cookies that are nearly the same.
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
async def test_a_cookie_that_was_changed_is_nobody(tmp_path: Path) -> None:
    """
    A changed cookie opens no session, and keeps no row.
    """
    async with attacked(tmp_path) as (service, visitor, path):
        other = Visitor(service, "Eve")
        await other.logIn()
        before = keysIn(path)
        assert visitor.cookie is not None
        cookies = tampered(visitor.cookie)
        for cookie in cookies:
            sent: dict[bytes | str, bytes | str] = {"Cookie": cookie.encode("latin-1")}
            answer = await Visitor(service).ask("GET", "/me", headers=sent)
            assert answer.status == 200, cookie
            assert (answer.body["name"], answer.body["visits"]) == (None, 0), cookie
            assert not answer.cookie, cookie
        assert keysIn(path) == before


@asynchronous
async def test_a_cookie_of_100_KB_is_refused(tmp_path: Path) -> None:
    """
    It is more than any browser sends.
    """
    async with attacked(tmp_path) as (service, _, path):
        before = keysIn(path)
        for path_ in ("/me", "/visits"):
            sent: dict[bytes | str, bytes | str] = {"Cookie": f"session={'A' * 102400}"}
            answer = await Visitor(service).ask("GET", path_, headers=sent)
            assert answer.status in (400, 431), answer
            assert answer.cookie is None
        assert keysIn(path) == before


@asynchronous
async def test_identifiers_that_were_guessed_cost_nothing(tmp_path: Path) -> None:
    """
    Thousands of them find nobody, are not remembered, and keep no row.
    """
    async with attacked(tmp_path) as (service, _, path):
        pid = service.process.transport.pid
        before = keysIn(path)

        async def guess(times: int) -> None:
            for _ in range(times):
                guessed = token_urlsafe(32)
                guesser = Visitor(service, cookie=guessed)
                assert await guesser.me() == (None, 0)
                # It may be told to forget it, and is given no other.
                assert guesser.cookie in ("", guessed)

        # What is made once, with the first ones, is no growth.
        await together(*(guess(25) for _ in range(20)))
        census = Census.of(pid)
        await together(*(guess(100) for _ in range(20)))
        assert "memory" not in Census.of(pid).grownFrom(census, memory=16 * 2**20)
        assert keysIn(path) == before


@asynchronous
async def test_an_identifier_of_somebody_elses_choice_is_not_taken(
    tmp_path: Path,
) -> None:
    """
    Who makes others use an identifier that he knows would be logged in with them.
    """
    async with attacked(tmp_path) as (service, _, path):
        chosen = "A" * 43
        victim = Visitor(service, "Eve", chosen)
        assert (await victim.visit()).body == {"visits": 1}
        assert victim.cookie not in (None, "", chosen)
        await victim.logIn()
        assert await Visitor(service, cookie=chosen).me() == (None, 0)
        assert sha256(chosen.encode()).digest() not in keysIn(path)
        # One that the attacker was given himself is of no more use to him.
        attacker = Visitor(service)
        await attacker.visit()
        given = attacker.cookie
        victim = Visitor(service, "Eve", given)
        await victim.logIn()
        assert victim.cookie not in (None, "", given)
        assert await victim.me() == ("Eve", 1)
        assert await attacker.me() == (None, 0)


@asynchronous
async def test_who_has_logged_out_cannot_be_played_again(tmp_path: Path) -> None:
    """
    A cookie that somebody has kept is worth nothing after the logout, whoever has
    it and however many ask with it at that moment.
    """
    async with attacked(tmp_path) as (service, _, path):
        before = keysIn(path)
        visitor = Visitor(service, "Eve")
        await visitor.visit()
        await visitor.logIn()
        kept = visitor.cookie
        replays = [Visitor(service, cookie=kept) for _ in range(32)]
        leaving = visitor.ask("POST", "/logout")
        left, *answers = await together(
            leaving, *(each.ask("GET", "/me") for each in replays)
        )
        assert (left.status, left.cookie) == (200, "")
        assert {answer.status for answer in answers} == {200}
        assert keysIn(path) == before
        assert await Visitor(service, cookie=kept).me() == (None, 0)
        again = Visitor(service, cookie=kept)
        assert (await again.visit()).body == {"visits": 1}
        assert (await again.me())[0] is None
        after = keysIn(path)
        assert before <= after
        assert len(after - before) <= 1
        assert sha256(str(kept).encode()).digest() not in after


@asynchronous
async def test_a_visit_that_is_overtaken_by_the_logout_revives_nothing(
    tmp_path: Path,
) -> None:
    """
    A session that ends while others still change it stays ended.
    """
    async with attacked(tmp_path) as (service, _, path):
        before = keysIn(path)
        for _ in range(5):
            visitor = Visitor(service, "Eve")
            await visitor.visit()
            await visitor.logIn()
            kept = visitor.cookie
            late = [Visitor(service, cookie=kept) for _ in range(32)]
            await together(
                *(each.visit() for each in late[:16]),
                visitor.ask("POST", "/logout"),
                *(each.visit() for each in late[16:]),
            )
            assert await Visitor(service, cookie=kept).me() == (None, 0)
            assert sha256(str(kept).encode()).digest() not in keysIn(path)
        # Who came too late with it is a stranger who comes for the first time.
        assert before <= keysIn(path)


@asynchronous
async def test_other_sites_log_nobody_in_or_out(tmp_path: Path) -> None:
    """
    A browser sends the cookie also with what another site makes it post.
    """
    async with attacked(tmp_path) as (_, visitor, path):
        before = keysIn(path)
        evil: dict[bytes | str, bytes | str] = {"Origin": "http://evil.example"}
        for body, path_ in (({"name": "Eve"}, "/login"), (None, "/logout")):
            answer = await visitor.ask("POST", path_, body, evil)
            assert answer.status == 403, answer
            assert answer.cookie is None
        assert keysIn(path) == before


@asynchronous
async def test_nobody_fills_the_disk_with_new_sessions(tmp_path: Path) -> None:
    """
    Each visit without a cookie costs a row.
    """
    words = ["--new-sessions-per-peer=5"]
    async with attacked(tmp_path, *words) as (service, _, path):
        before = keysIn(path)
        answers = await together(*(Visitor(service).visit() for _ in range(100)))
        kinds = Counter(answer.kind for answer in answers)
        assert set(kinds) == {"200", "429"}
        # In the time that it took there was room for some more.
        assert kinds["200"] < 20
        assert len(keysIn(path) - before) == kinds["200"]
