"""
Klein's own C{SessionProcurer} keeps its sessions in a store that outlives the
process, and that may answer later.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from klein import Field, Klein, Requirer, SessionProcurer
from klein._session import Authorization
from klein.interfaces import ISession, NoSuchSession, SessionMechanism
from klein.interfaces import ISessionStore as IKleinSessionStore
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from tsrv import (
    NotInitialized,
    QueuingWrapper,
    Unavailable,
)
from tsrv.databases import Settings
from tsrv.databases.sqlite import SQLite
from tsrv.sessions import (
    Changes,
    Limits,
    SessionError,
    SQLSessionStore,
    keyOf,
    makeIdentifier,
    schemaOf,
)
from tsrv.sessions.klein import (
    KleinSession,
    KleinSessionStore,
)

from .processes import ROOT
from .support import Result, resultOf
from .test_sqlite import Reactor
from .websupport import errorsIn, logged, textsOf

Cookie, Header = SessionMechanism.Cookie, SessionMechanism.Header

KINDS = [(True, Cookie), (True, Header), (False, Cookie), (False, Header)]

SECURE, INSECURE = "Klein-Secure-Session", "Klein-INSECURE-Session"


class IUser(Interface):
    """
    Somebody who has logged in.
    """


class IVisitor(Interface):
    """
    Somebody.
    """


@implementer(IUser, IVisitor)
class Somebody:
    """
    Somebody.
    """

    def __init__(self, name: str) -> None:
        self.name = name


async def userOf(session: KleinSession) -> Somebody | None:
    """
    @return: Who has logged in.
    """
    name = (await session.data()).get("user")
    return None if name is None else Somebody(name)


def visitorOf(session: KleinSession) -> Somebody:
    """
    @return: Whoever comes.
    """
    return Somebody("somebody")


class Site:
    """
    A Klein application whose sessions are in a file.

    @ivar store: Where they are.
    @ivar sessions: What Klein asks for them.
    """

    def __init__(self, reactor: Reactor, store: Any, **options: Any) -> None:
        self.reactor = reactor
        self.store = store
        authorizers = {IUser: userOf, IVisitor: visitorOf}
        self.sessions = KleinSessionStore(store, authorizers, **options)
        self._procurer = SessionProcurer(self.sessions)
        requirer = Requirer()
        requirer.prerequisite([ISession])(self.procure)
        app: Any = Klein()
        app.handle_errors(NoSuchSession)(self.none)
        app.handle_errors(Unavailable)(self.notNow)
        app.route("/count")(self.visit)
        app.route("/login", methods=["POST"])(self.login)
        app.route("/logout", methods=["POST"])(self.logout)
        for path, asked in (("/somebody", IVisitor), ("/me", IUser)):
            parameters: dict[str, Any] = {"user": Authorization(asked)}

            def name(user: Somebody) -> str:
                return user.name

            route = app.route(path, endpoint=path)
            requirer.require(route, **parameters)(name)

        def greet(name: str) -> str:
            return f"Hello {name}"

        greeting = app.route("/greet", methods=["POST"])
        requirer.require(greeting, name=Field.text())(greet)
        self.resource = app.resource()

    def procure(self, request: Any) -> Deferred[KleinSession]:
        """
        Have Klein find the session of a request.
        """
        return cast("Deferred[KleinSession]", self._procurer.procureSession(request))

    def none(self, request: Any, failure: Failure) -> str:
        """
        Refuse who has no session.
        """
        request.setResponseCode(403)
        return "no session"

    def notNow(self, request: Any, failure: Failure) -> str:
        """
        Ask to come again.
        """
        request.setResponseCode(503)
        return "not now"

    async def visit(self, request: Any) -> str:
        """
        Count the visits.
        """
        session = await self.procure(request)
        stored = await session.change(Changes(added={"visits": 1}))
        return str(stored.counted["visits"])

    async def login(self, request: Any) -> str:
        """
        Log somebody in under whatever name he likes.
        """
        session = await self.procure(request)
        name = request.args[b"name"][0].decode()
        await session.renew(Changes(assigned={"user": name}))
        request.addCookie(
            SECURE, session.identifier, path="/", secure=True, httpOnly=True
        )
        return session.identifier

    async def logout(self, request: Any) -> str:
        """
        Log somebody out.
        """
        session = await self.procure(request)
        return str(await session.destroy())

    def result(self, deferred: Any) -> Result:
        """
        @return: What becomes of something, when all has been done.
        """
        if isinstance(deferred, Coroutine):
            deferred = Deferred.fromCoroutine(deferred)
        found = resultOf(deferred)
        self.reactor.work()
        return found

    def made(self, *kind: Any) -> KleinSession:
        """
        @return: A new session.
        """
        return cast(KleinSession, self.result(self.sessions.newSession(*kind)).value)

    def load(self, identifier: str, *kind: Any) -> Result:
        """
        Look for a session.
        """
        return self.result(self.sessions.loadSession(identifier, *kind))

    def count(self) -> int:
        """
        @return: How many sessions there are.
        """
        return cast(int, self.result(self.store.length()).value)


class Browser:
    """
    Somebody's browser.

    @ivar cookies: What the site has told it to send.
    @ivar flags: How it has done so, the last time.
    """

    def __init__(self, site: Site) -> None:
        self.cookies: dict[str, str] = {}
        self.flags: list[str] = []
        self._site = site
        self._stub: Any = StubTreq(site.resource)

    def send(self, method: str, url: str, **headers: str) -> Deferred[Any]:
        """
        Make a request, but do not wait.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies and "Cookie" not in named:
            named["Cookie"] = "; ".join("=".join(each) for each in self.cookies.items())
        return cast("Deferred[Any]", self._stub.request(method, url, headers=named))

    def receive(self, asked: Result) -> tuple[int, str]:
        """
        Let all be done that can be, and look at a response.
        """
        self._site.reactor.work()
        self._stub.flush()
        response = asked.value
        for line in response.headers.getRawHeaders("set-cookie", []):
            cookie, *self.flags = line.split("; ")
            name, _, value = cookie.partition("=")
            self.cookies[name] = value
        return response.code, resultOf(self._stub.text_content(response)).value

    def __call__(self, method: str, url: str, **headers: str) -> tuple[int, str]:
        return self.receive(resultOf(self.send(method, url, **headers)))


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """
    Time, and threads that run when the test says so.
    """
    reactor = Reactor()
    yield reactor
    assert reactor.getDelayedCalls() == []
    assert reactor.running == []


@pytest.fixture
def bare(reactor: Reactor, tmp_path: Path) -> Iterator[SQLSessionStore]:
    """
    A store in SQLite that has not been initialised.
    """
    engine = SQLite(
        reactor, f"{tmp_path}/d", [schemaOf()], Settings(), reactor.createWorker
    )
    opened = resultOf(engine.open())
    reactor.work()
    assert opened.value is None
    limits = Limits(idle=1000.0, absolute=5000.0, size=100)
    store = SQLSessionStore(reactor, cast(Any, engine), limits=limits, owned=False)
    yield store
    store.close()
    closed = resultOf(engine.close())
    reactor.work()
    assert closed.value is None


@pytest.fixture
def site(reactor: Reactor, bare: SQLSessionStore) -> Site:
    """
    An application whose store is ready.
    """
    bare.initialize()
    return Site(reactor, bare)


class Faulty:
    """
    A store that fails when the test says so.

    @ivar errors: What its methods fail with, by their names.
    @ivar before: What happens before one is asked.
    @ivar asked: The names of those that were asked.
    """

    def __init__(self, store: Any) -> None:
        self.errors: dict[str, Exception] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.asked: list[str] = []
        self._store = store

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            self.before.pop(name, lambda: None)()
            if name in self.errors:
                return fail(self.errors[name])
            return getattr(self._store, name)(*arguments)

        return call


def changed(identifier: str) -> str:
    """
    @return: An identifier that differs in what follows its first letter.
    """
    return identifier[0] + makeIdentifier()


# What it is.


def test_it_is_what_klein_asks_for(site: Site) -> None:
    """
    Klein finds all that its interfaces promise.
    """
    verifyObject(IKleinSessionStore, site.sessions)
    verifyObject(ISession, site.made(True, Cookie))


@pytest.mark.parametrize(("isConfidential", "mechanism"), KINDS)
def test_a_session_is_found_as_it_was_made(
    site: Site, isConfidential: bool, mechanism: Any
) -> None:
    """
    Over HTTPS or not, in a cookie or in a header: what Klein is told of a session
    is the same afterwards; and in any other way there is none.
    """
    session = site.made(isConfidential, mechanism)
    for kind in KINDS:
        found = site.load(session.identifier, *kind)
        if kind == (isConfidential, mechanism):
            loaded = found.value
            assert loaded.identifier == session.identifier
            assert loaded.isConfidential is isConfidential
            assert loaded.authenticatedBy is mechanism
        else:
            assert isinstance(found.error, NoSuchSession)
    assert site.count() == 1


@pytest.mark.parametrize(("isConfidential", "mechanism"), KINDS)
def test_how_a_session_was_made_cannot_be_changed_by_its_visitor(
    site: Site, isConfidential: bool, mechanism: Any
) -> None:
    """
    Who replaces the letter that says so has the identifier of no session.
    """
    letters = [site.made(*kind).identifier[0] for kind in KINDS]
    session = site.made(isConfidential, mechanism)
    for letter, kind in zip(letters, KINDS, strict=True):
        if kind != (isConfidential, mechanism):
            forged = letter + session.identifier[1:]
            assert isinstance(site.load(forged, *kind).error, NoSuchSession)


def test_identifiers_cannot_be_guessed(site: Site) -> None:
    """
    Each has 256 bits that are made anew, and what is stored does not tell it.
    """
    identifiers = {site.made(True, Cookie).identifier for _ in range(50)}
    assert len(identifiers) == 50
    assert all(re.fullmatch(r"C[A-Za-z0-9_-]{43}", each) for each in identifiers)
    kept = {key for key, _ in site.result(site.store.all()).value}
    assert not kept & {keyOf(each[1:]) for each in identifiers}


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "C",
        "C" + 43 * "é",
        "C" + 43 * "a" + "\n",
        "X" + 43 * "a",
        "C" + 100_000 * "a",
        "\0" + 43 * "a",
        "\ud800" + 43 * "a",
    ],
)
def test_what_is_no_identifier_is_refused_unasked(site: Site, identifier: str) -> None:
    """
    Whatever somebody sends, there is no such session, and the store is spared.
    """
    faulty = Faulty(site.store)
    sessions = KleinSessionStore(cast(Any, faulty))
    for kind in KINDS:
        error = resultOf(sessions.loadSession(identifier, *kind)).error
        assert isinstance(error, NoSuchSession)
        assert str(error) == "There is no such session"
    sessions.sentInsecurely([identifier])
    assert faulty.asked == []


# With Klein.


def test_an_anonymous_visitor_keeps_the_session(site: Site) -> None:
    """
    The first visit makes a session, and the next ones find it.
    """
    browser = Browser(site)
    assert [browser("GET", "https://test/count")[1] for _ in range(3)] == [*"123"]
    assert site.count() == 1
    assert Browser(site)("GET", "https://test/count") == (200, "1")
    assert site.count() == 2


def test_the_cookie_is_as_klein_makes_it(site: Site) -> None:
    """
    Over HTTPS it is one that is sent over HTTPS alone; otherwise another, which
    says that it is not.
    """
    browser = Browser(site)
    browser("GET", "https://test/somebody")
    assert list(browser.cookies) == [SECURE]
    assert set(browser.flags) == {"Max-Age=3600", "Path=/", "Secure", "HttpOnly"}
    browser = Browser(site)
    browser("GET", "http://test/somebody")
    assert list(browser.cookies) == [INSECURE]
    assert set(browser.flags) == {"Max-Age=3600", "Path=/", "HttpOnly"}


def test_over_plain_http_a_session_is_kept_too(site: Site) -> None:
    """
    Klein says of each request over plain HTTP what was sent insecurely: a session
    that was made to be sent so does not end by that, nor is it looked up twice.
    """
    browser = Browser(site)
    assert [browser("GET", "http://test/count")[1] for _ in range(3)] == [*"123"]
    faulty = Faulty(site.store)
    site.sessions._store = cast(Any, faulty)
    assert browser("GET", "http://test/count") == (200, "4")
    assert faulty.asked == ["get", "touch", "set"]


def test_an_unknown_identifier_is_never_adopted(site: Site) -> None:
    """
    Who comes with an identifier that somebody made up gets one of ours.
    """
    browser = Browser(site)
    planted = "C" + makeIdentifier()
    browser.cookies[SECURE] = planted
    assert browser("GET", "https://test/count") == (200, "1")
    assert browser.cookies[SECURE] != planted
    assert isinstance(site.load(planted, True, Cookie).error, NoSuchSession)
    assert site.count() == 1


def test_nothing_is_made_where_klein_makes_nothing(site: Site) -> None:
    """
    A form that was posted without a session, and a client that sends a header with
    an identifier that is none, are refused; no session is made.
    """
    assert Browser(site)("POST", "https://test/logout") == (403, "no session")
    header = {"X_Auth_Token": "H" + makeIdentifier()}
    assert Browser(site)("GET", "https://test/count", **header) == (403, "no session")
    assert site.count() == 0


def test_a_client_with_a_header_needs_no_cookie(site: Site) -> None:
    """
    A session for a program is made by the application, and is found by Klein.
    """
    session = site.made(True, Header)
    browser = Browser(site)
    for count in "12":
        asked = browser("GET", "https://test/count", X_Auth_Token=session.identifier)
        assert asked == (200, count)
    assert browser.cookies == {}


def test_forms_of_klein_know_whose_they_are(site: Site) -> None:
    """
    Klein takes the identifier of the session for the token of a form; a form of
    another site does not have it, and a client with a header needs none.
    """
    browser = Browser(site)
    browser("GET", "https://test/somebody")
    url = "https://test/greet?name=Ada"
    token = f"&__csrf_protection__={browser.cookies[SECURE]}"
    assert browser("POST", url + token) == (200, "Hello Ada")
    assert browser("POST", url)[0] == 403
    assert Browser(site)("POST", url + token) == (403, "no session")
    program = site.made(True, Header)
    header = {"X_Auth_Token": program.identifier}
    assert Browser(site)("POST", url, **header) == (200, "Hello Ada")


def test_so_many_sessions_are_made_as_are_admitted(
    reactor: Reactor, bare: SQLSessionStore
) -> None:
    """
    Each who comes without a session costs a row: the application may say that it is
    enough. Who has one is not concerned.
    """
    left = [1]

    def admit() -> None:
        if not left:
            raise Unavailable("too many")
        left.pop()

    bare.initialize()
    site = Site(reactor, bare, admit=admit)
    browser, stranger = Browser(site), Browser(site)
    assert browser("GET", "https://test/count") == (200, "1")
    assert stranger("GET", "https://test/count") == (503, "not now")
    assert browser("GET", "https://test/count") == (200, "2")
    assert stranger.cookies == {}
    assert site.count() == 1


def test_somebody_logs_in_and_out(site: Site) -> None:
    """
    The whole way: refused, logged in under a new identifier, known, logged out,
    refused; and no identifier from before works afterwards.
    """
    browser = Browser(site)
    assert browser("GET", "https://test/me")[0] == 401
    browser("GET", "https://test/count")
    before = dict(browser.cookies)
    status, identifier = browser("POST", "https://test/login?name=Ada")
    assert status == 200
    assert browser.cookies[SECURE] == identifier != before[SECURE]
    assert browser("GET", "https://test/me") == (200, "Ada")
    assert browser("GET", "https://test/count") == (200, "2")
    within = dict(browser.cookies)

    fixed = Browser(site)
    fixed.cookies = before
    assert fixed("GET", "https://test/me")[0] == 401

    assert browser("POST", "https://test/logout") == (200, "True")
    replaying = Browser(site)
    replaying.cookies = within
    assert replaying("GET", "https://test/me")[0] == 401


def test_a_session_ends_when_the_store_says_so(site: Site) -> None:
    """
    Each visit begins the idle time anew; without one, the session is gone.
    """
    browser = Browser(site)
    assert browser("GET", "https://test/count") == (200, "1")
    for _ in range(3):
        site.reactor.advance(900)
        assert browser("GET", "https://test/somebody") == (200, "somebody")
    assert browser("GET", "https://test/count") == (200, "2")
    site.reactor.advance(1001)
    assert browser("GET", "https://test/count") == (200, "1")


def test_a_damaged_session_is_replaced(site: Site, tmp_path: Path) -> None:
    """
    Whose session cannot be read gets a new one, not an error.
    """
    browser = Browser(site)
    browser("GET", "https://test/count")
    with sqlite3.connect(f"{tmp_path}/d") as connection:
        connection.execute("UPDATE sessions SET data = '{'")
    connection.close()
    assert browser("GET", "https://test/count") == (200, "1")


# While the store is not ready.


def test_requests_wait_for_a_store_that_is_not_ready(
    reactor: Reactor, bare: SQLSessionStore
) -> None:
    """
    Who comes while the program starts is answered when the store is there, and
    keeps the session that he had.
    """
    bare.initialize()
    browser = Browser(Site(reactor, bare))
    browser("GET", "https://test/count")
    bare.close()

    wrapper = QueuingWrapper(bare, reactor)
    site = Site(reactor, wrapper.proxy)
    late = Browser(site)
    late.cookies = browser.cookies
    stranger = Browser(site)
    asked = [
        resultOf(each.send("GET", "https://test/count")) for each in (late, stranger)
    ]
    reactor.work()
    assert [each.pending for each in asked] == [True, True]
    wrapper.initialize()
    assert late.receive(asked[0]) == (200, "2")
    assert stranger.receive(asked[1]) == (200, "1")
    site.result(wrapper.close())


def test_who_has_waited_too_long_is_told_so(
    reactor: Reactor, bare: SQLSessionStore
) -> None:
    """
    A store that does not come up is no visitor without a session: nobody gets a
    new one for that.
    """
    wrapper = QueuingWrapper(bare, reactor, timeout=5.0)
    site = Site(reactor, wrapper.proxy)
    browser = Browser(site)
    browser.cookies[SECURE] = "C" + makeIdentifier()
    asked = resultOf(browser.send("GET", "https://test/count"))
    reactor.advance(6)
    assert browser.receive(asked) == (503, "not now")
    assert browser.flags == []
    site.result(wrapper.close())


def test_a_visitor_who_leaves_waits_no_longer(
    reactor: Reactor, bare: SQLSessionStore
) -> None:
    """
    What Klein gives up does not stay in the queue.
    """
    wrapper = QueuingWrapper(bare, reactor)
    sessions = KleinSessionStore(wrapper.proxy)
    loading = sessions.loadSession("C" + makeIdentifier(), True, Cookie)
    making = sessions.newSession(True, Cookie)
    assert wrapper.pending == 2
    for each in (loading, making):
        each.cancel()
        assert isinstance(resultOf(each).error, CancelledError)
    assert wrapper.pending == 0
    wrapper.close()


def test_a_bare_store_that_is_not_ready_says_so(
    reactor: Reactor, bare: SQLSessionStore
) -> None:
    """
    It is not mistaken for one that has no such session.
    """
    sessions = KleinSessionStore(bare)
    loading = sessions.loadSession("C" + makeIdentifier(), True, Cookie)
    assert isinstance(resultOf(loading).error, NotInitialized)


# What was sent insecurely.


def test_a_session_whose_cookie_was_sent_over_plain_http_ends(site: Site) -> None:
    """
    Whoever listened has it by now; neither he nor its visitor can use it.
    """
    browser = Browser(site)
    browser("GET", "https://test/count")
    disclosed = browser.cookies[SECURE]
    with logged() as events:
        assert browser("GET", "http://test/count") == (200, "1")
    (text,) = textsOf(errorsIn(events))
    assert text == "Ended a session whose identifier was sent over plain HTTP"
    assert disclosed not in repr(events)
    assert isinstance(site.load(disclosed, True, Cookie).error, NoSuchSession)
    assert browser("GET", "https://test/count") == (200, "1")


def test_only_what_was_to_be_kept_secret_ends(site: Site) -> None:
    """
    Of all identifiers that a request over plain HTTP brings, those of sessions over
    HTTPS end, in whichever way they are sent; the others were made for that.
    """
    made = [site.made(*kind) for kind in KINDS]
    site.sessions.sentInsecurely([each.identifier for each in made])
    site.reactor.work()
    for kind, session in zip(KINDS, made, strict=True):
        loaded = site.load(session.identifier, *kind).fired[0]
        assert isinstance(loaded, KleinSession) is not kind[0]


def test_identifiers_may_be_bytes(site: Site) -> None:
    """
    Klein's interface says text, but bytes are what it has; and they may be none of
    any text.
    """
    session = site.made(True, Cookie)
    site.sessions.sentInsecurely([b"\xff\xfe", session.identifier.encode()])
    site.reactor.work()
    assert site.count() == 0


def test_a_disclosed_session_cannot_be_used_before_it_has_ended(site: Site) -> None:
    """
    While the database cannot be had, the session stays there; but not for those who
    come here, and it ends as soon as one of them does when the database is back.
    """
    faulty = Faulty(site.store)
    sessions = site.sessions
    session = site.made(True, Cookie)
    sessions._store = cast(Any, faulty)
    faulty.errors["destroy"] = Unavailable("gone fishing")
    with logged() as events:
        for _ in range(2):
            sessions.sentInsecurely([session.identifier, "C" + makeIdentifier()])
        assert isinstance(
            site.load(session.identifier, True, Cookie).error, NoSuchSession
        )
    (text,) = textsOf(errorsIn(events))
    assert text == (
        "A session whose identifier was sent over plain HTTP could not be ended yet: "
        "gone fishing"
    )
    assert site.count() == 1
    faulty.errors.clear()
    assert isinstance(site.load(session.identifier, True, Cookie).error, NoSuchSession)
    site.reactor.work()
    assert site.count() == 0
    # The next outage is told again.
    faulty.errors["destroy"] = Unavailable("gone again")
    with logged() as events:
        sessions.sentInsecurely(["C" + makeIdentifier()])
    assert len(errorsIn(events)) == 1


def test_one_that_is_being_ended_is_not_ended_twice(site: Site) -> None:
    """
    A page with many pictures makes many requests, all with the same cookie.
    """
    faulty = Faulty(site.store)
    session = site.made(True, Cookie)
    sessions = KleinSessionStore(cast(Any, faulty))
    for _ in range(20):
        sessions.sentInsecurely([session.identifier] * 2)
    loading = site.result(sessions.loadSession(session.identifier, True, Cookie))
    assert isinstance(loading.error, NoSuchSession)
    assert faulty.asked == ["destroy"]


def test_nobody_keeps_the_store_busy_with_what_he_made_up() -> None:
    """
    A request may have hundreds of headers; and what is to be remembered during an
    outage has a bound, of which those that came last are in.
    """
    waiting: list[Deferred[bool]] = []

    class Slow:
        def destroy(self, identifier: str) -> Deferred[bool]:
            waiting.append(Deferred())
            return waiting[-1]

    sessions = KleinSessionStore(cast(Any, Slow()))
    sessions.sentInsecurely(["H" + makeIdentifier() for _ in range(277)])
    assert len(waiting) == 8
    last = ""
    for _ in range(1100):
        last = "C" + makeIdentifier()
        sessions.sentInsecurely([last])
    assert len(sessions._disclosed) == 1000
    refused = resultOf(sessions.loadSession(last, True, Cookie)).error
    assert isinstance(refused, NoSuchSession)
    with logged() as events:
        for number, each in enumerate(waiting):
            if number % 2:
                each.callback(False)
            else:
                each.errback(Unavailable("no"))
    assert 0 < len(sessions._disclosed) <= 500
    assert set(textsOf(errorsIn(events))) == {
        "A session whose identifier was sent over plain HTTP could not be ended yet: no"
    }


def test_what_is_tried_again_costs_no_other_its_place() -> None:
    """
    When as many are remembered as may be, one of them can be tried again, and is
    the last to be forgotten then.
    """

    class Gone:
        def destroy(self, identifier: str) -> Deferred[bool]:
            return fail(Unavailable("gone"))

    sessions = KleinSessionStore(cast(Any, Gone()))
    identifiers = ["C" + makeIdentifier() for _ in range(1002)]
    for each in identifiers[:1000]:
        sessions.sentInsecurely([each])
    first, second, third = list(sessions._disclosed)[:3]
    sessions.sentInsecurely([identifiers[1]])
    assert first in sessions._disclosed
    assert len(sessions._disclosed) == 1000
    for each in identifiers[1000:]:
        sessions.sentInsecurely([each])
    assert len(sessions._disclosed) == 1000
    assert second in sessions._disclosed
    assert not {first, third} & set(sessions._disclosed)


# What is in a session.


def test_what_is_in_a_session_is_the_callers_own(site: Site) -> None:
    """
    What somebody does to what he was given does not change the session behind the
    back of the store.
    """
    session = site.made(True, Cookie)
    changes = Changes(assigned={"cart": ["tea"]})
    stored = site.result(session.change(changes)).value
    assert stored.data == {"cart": ["tea"]}
    stored.data["cart"].append("milk")
    site.result(session.data()).value["cart"].append("salt")
    assert site.result(session.data()).value == {"cart": ["tea"]}


def test_what_two_requests_do_comes_together(site: Site) -> None:
    """
    Each has a session of its own for the same visitor, and sees what the other did.
    """
    first = site.made(True, Cookie)
    second = site.load(first.identifier, True, Cookie).value
    changing = [
        resultOf(each.change(Changes(assigned={name: 1}, added={"visits": 1})))
        for each, name in ((first, "a"), (second, "b"))
    ]
    site.reactor.work()
    assert [each.value.counted for each in changing] == [{"visits": 1}, {"visits": 2}]
    expected = {"a": 1, "b": 1, "visits": 2}
    for each in (first, second):
        assert site.result(each.data()).value == expected


def test_what_cannot_be_stored_is_refused(site: Site) -> None:
    """
    It is said why, and the session stays as it is.
    """
    session = site.made(True, Cookie)
    for value in ("x" * 200, object()):
        changes = Changes(assigned={"x": value})
        for asked in (session.change(changes), session.renew(changes)):
            assert isinstance(site.result(asked).error, SessionError)
    assert site.result(session.data()).value == {}
    assert site.count() == 1


def test_a_session_that_was_destroyed_meanwhile_is_not_made_again(site: Site) -> None:
    """
    A slow request that still holds it cannot bring it back, by nothing that it
    does; and has no rights any more.
    """
    session = site.made(True, Cookie)
    other = site.load(session.identifier, True, Cookie).value
    site.result(session.change(Changes(assigned={"user": "Ada"})))
    assert site.result(session.destroy()).value is True
    assert site.result(session.destroy()).value is False
    for asked in (
        other.data(),
        other.change(Changes(assigned={"a": 1})),
        other.renew(),
        site.sessions.loadSession(session.identifier, True, Cookie),
    ):
        assert isinstance(site.result(asked).error, NoSuchSession)
    assert site.result(other.authorize([IVisitor, IUser])).value == {}
    assert site.count() == 0


def test_a_session_that_ends_while_it_is_looked_up_is_not_found(site: Site) -> None:
    """
    Between the first look and the second somebody may have logged out.
    """
    session = site.made(True, Cookie)
    faulty = Faulty(site.store)
    site.sessions._store = cast(Any, faulty)
    faulty.before["touch"] = lambda: site.result(session.destroy())
    loading = site.load(session.identifier, True, Cookie)
    assert isinstance(loading.error, NoSuchSession)


# Another identifier.


def test_a_session_with_another_identifier_is_the_same_session(site: Site) -> None:
    """
    What was in it is there, with what was to be changed; what it may be sent over is
    the same; and the old identifier is worth nothing.
    """
    session = site.made(False, Header)
    old = session.identifier
    site.result(session.change(Changes(assigned={"a": 1, "b": 2})))
    changes = Changes(assigned={"user": "Ada"}, removed=frozenset({"b"}))
    assert site.result(session.renew(changes)).value is None
    assert session.identifier != old
    assert isinstance(site.load(old, False, Header).error, NoSuchSession)
    loaded = site.load(session.identifier, False, Header).value
    for each in (session, loaded):
        assert site.result(each.data()).value == {"a": 1, "user": "Ada"}
    assert site.result(session.renew()).value is None
    assert site.result(session.data()).value == {"a": 1, "user": "Ada"}
    assert site.count() == 1


def test_who_logs_out_while_he_logs_in_is_logged_out(site: Site) -> None:
    """
    A session that ends while it gets another identifier has ended under both.
    """
    session = site.made(True, Cookie)
    old = session.identifier
    other = site.load(old, True, Cookie).value
    faulty = Faulty(site.store)
    session._store = cast(Any, faulty)
    faulty.before["destroy"] = lambda: site.result(other.destroy())
    assert isinstance(site.result(session.renew()).error, NoSuchSession)
    assert session.identifier == old
    assert site.count() == 0


def test_two_who_log_in_at_the_same_time_have_one_session(site: Site) -> None:
    """
    Of two requests that both want another identifier one gets it; the other learns
    that there is no such session any more.
    """
    session = site.made(True, Cookie)
    sessions = [session, site.load(session.identifier, True, Cookie).value]
    changing = [resultOf(each.renew(Changes(added={"logins": 1}))) for each in sessions]
    site.reactor.work()
    winner, loser = (each.fired[0] for each in changing)
    assert winner is None
    assert isinstance(loser.value, NoSuchSession)
    assert site.result(session.data()).value == {"logins": 1}
    assert site.count() == 1


def test_a_login_that_fails_leaves_nobody_logged_in(site: Site) -> None:
    """
    If the store fails in between, the old identifier stands for what it did before,
    and the new one for nothing.
    """
    session = site.made(True, Cookie)
    old = session.identifier
    faulty = Faulty(site.store)
    faulty.before["destroy"] = lambda: faulty.errors.update(destroy=Unavailable("no"))
    session._store = cast(Any, faulty)
    changes = Changes(assigned={"user": "Ada"})
    assert isinstance(site.result(session.renew(changes)).error, Unavailable)
    assert session.identifier == old
    assert site.result(session.data()).value == {}
    assert faulty.asked == ["get", "create", "destroy", "destroy", "get"]


def test_a_login_can_be_given_up(site: Site) -> None:
    """
    Who leaves while the old identifier is being taken away is not logged in, and
    leaves nothing behind.
    """
    session = site.made(True, Cookie)

    class Waiting(Faulty):
        def destroy(self, identifier: str) -> Deferred[bool]:
            self.destroy = self._store.destroy  # type: ignore[method-assign]
            return Deferred()

    session._store = cast(Any, Waiting(site.store))
    renewing = session.renew(Changes(assigned={"user": "Ada"}))
    site.reactor.work()
    assert site.count() == 2
    renewing.cancel()
    assert isinstance(resultOf(renewing).error, CancelledError)
    site.reactor.work()
    assert site.count() == 1
    assert site.result(session.data()).value == {}


# Who may do what.


def test_authorizers_may_answer_in_any_way(site: Site) -> None:
    """
    At once, later, or as a coroutine; what they refuse is not in the answer, nor
    what nobody has heard of.
    """

    class IOther(Interface):
        pass

    class IRefused(Interface):
        pass

    later: Deferred[Somebody] = Deferred()
    site.sessions._authorizers.update(
        {IOther: lambda session: later, IRefused: lambda session: succeed(None)}
    )
    session = site.made(True, Cookie)
    wanted = [IVisitor, IVisitor, IOther, IRefused, IUser, IKleinSessionStore]
    asked = resultOf(session.authorize(iter(wanted)))
    assert asked.pending
    somebody = Somebody("later")
    later.callback(somebody)
    site.reactor.work()
    assert list(asked.value) == [IVisitor, IOther]
    assert asked.value[IOther] is somebody


def test_an_authorizer_that_fails_is_no_refusal(site: Site) -> None:
    """
    A database that cannot be had is not said to be a visitor without rights.
    """
    session = site.made(True, Cookie)
    session._store = cast(Any, faulty := Faulty(site.store))
    faulty.errors["get"] = Unavailable("no")
    asked = site.result(session.authorize([IVisitor, IUser]))
    assert isinstance(asked.error, Unavailable)


def test_an_authorizer_can_be_given_up(site: Site) -> None:
    """
    Who leaves takes with him what is asked on his behalf.
    """
    given: list[object] = []
    asked: Deferred[object] = Deferred(given.append)
    site.sessions._authorizers[IUser] = lambda session: asked
    authorizing = site.made(True, Cookie).authorize([IUser])
    authorizing.cancel()
    assert given == [asked]
    assert isinstance(resultOf(authorizing).error, CancelledError)


# Without Klein.


def test_klein_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Who does not have it learns how to have it, and can use all the rest.
    """
    monkeypatch.setitem(sys.modules, "klein", None)
    monkeypatch.setitem(sys.modules, "klein.interfaces", None)
    monkeypatch.delitem(sys.modules, "tsrv.sessions.klein")
    with pytest.raises(ImportError, match=re.escape("pip install 'tsrv[klein]'")):
        import_module("tsrv.sessions.klein")


@pytest.mark.parametrize("module", ["tsrv", "tsrv.tap", "tsrv.sessions"])
def test_nothing_else_imports_klein(module: str) -> None:
    """
    It installs the reactor, which is for the user to choose.
    """
    code = f"import {module}, sys; sys.exit('klein' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)  # noqa: S603
