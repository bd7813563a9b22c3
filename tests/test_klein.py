"""
Klein's own C{SessionProcurer} keeps its sessions in a store of tsrv.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from klein import Authorization, Klein, Requirer, SessionProcurer
from klein.interfaces import ISession, NoSuchSession, SessionMechanism
from klein.interfaces import ISessionStore as IKleinSessionStore
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from tsrv import QueuingWrapper, Unavailable
from tsrv.sessions import (
    Changes,
    Limits,
    MemorySessionStore,
    makeIdentifier,
)
from tsrv.sessions.klein import KleinSession, KleinSessionStore

from .support import Result, resultOf
from .visitors import LaterStore
from .websupport import errorsIn, logged, textsOf

Cookie, Header = SessionMechanism.Cookie, SessionMechanism.Header

KINDS = [(True, Cookie), (True, Header), (False, Cookie), (False, Header)]

SECURE, INSECURE = "Klein-Secure-Session", "Klein-INSECURE-Session"

UNAVAILABLE = Unavailable("gone fishing")

ENDED = "Ended a session whose identifier was sent over plain HTTP"
NOT_ENDED = (
    "A session whose identifier was sent over plain HTTP could not be ended yet: "
    "gone fishing"
)


class IUser(Interface):
    """
    A user who has logged in.
    """


class IVisitor(Interface):
    """
    Any visitor.
    """


@implementer(IUser, IVisitor)
class Somebody:
    """
    A user with a name.
    """

    def __init__(self, name: str) -> None:
        self.name = name


async def userOf(session: KleinSession) -> Somebody | None:
    """
    @return: The user who has logged in.
    """
    name = (await session.data()).get("user")
    return None if name is None else Somebody(name)


def visitorOf(session: KleinSession) -> Somebody:
    """
    @return: A visitor without a name.
    """
    return Somebody("somebody")


class Site:
    """
    A Klein application.

    @ivar store: The store, which the test can delay.
    @ivar sessions: The sessions of Klein.
    """

    def __init__(self, clock: Clock, store: Any = None, **options: Any) -> None:
        self.clock = clock
        self.memory = store or MemorySessionStore(clock, Limits(1000.0, 5000.0, 100))
        self.store = LaterStore(self.memory)
        later: Any = self.store
        self.authorizers: dict[Any, Any] = {IUser: userOf, IVisitor: visitorOf}
        self.authorizers.update(options.pop("authorizers", {}))
        self.sessions = KleinSessionStore(later, self.authorizers, **options)
        self._procurer = SessionProcurer(self.sessions)
        requirer = Requirer()
        requirer.prerequisite([ISession])(self.procure)
        app: Any = Klein()
        app.handle_errors(NoSuchSession, Unavailable)(self.refuse)
        app.route("/count")(self.visit)
        app.route("/login", methods=["POST"])(self.login)
        app.route("/logout", methods=["POST"])(self.logout)
        for path, asked in (("/somebody", IVisitor), ("/me", IUser)):
            parameters: dict[str, Any] = {"user": Authorization(asked)}

            def name(user: Somebody) -> str:
                return user.name

            requirer.require(app.route(path, endpoint=path), **parameters)(name)

        self.resource = app.resource()

    def procure(self, request: Any) -> Deferred[KleinSession]:
        return cast("Deferred[KleinSession]", self._procurer.procureSession(request))

    def refuse(self, request: Any, failure: Failure) -> str:
        isUnavailable = failure.check(Unavailable)
        request.setResponseCode(503 if isUnavailable else 403)
        return "not now" if isUnavailable else "no session"

    async def visit(self, request: Any) -> str:
        session = await self.procure(request)
        stored = await session.change(Changes(added={"visits": 1}))
        return str(stored.counted["visits"])

    async def login(self, request: Any) -> str:
        session = await self.procure(request)
        name = request.args[b"name"][0].decode()
        identifier = await session.renew(Changes(assigned={"user": name}))
        flags = {"path": "/", "secure": True, "httpOnly": True}
        request.addCookie(SECURE, identifier, **flags)
        return identifier

    async def logout(self, request: Any) -> str:
        session = await self.procure(request)
        return str(await session.destroy())

    def made(self, *kind: Any) -> KleinSession:
        return cast(KleinSession, resultOf(self.sessions.newSession(*kind)).value)

    def load(self, identifier: str, *kind: Any) -> Result:
        return resultOf(self.sessions.loadSession(identifier, *kind))

    def isFound(self, identifier: str, *kind: Any) -> bool:
        (found,) = self.load(identifier, *kind).fired
        assert isinstance(found, KleinSession) or found.check(NoSuchSession)
        return isinstance(found, KleinSession)

    def count(self) -> int:
        return cast(int, resultOf(self.memory.length()).value)


class Browser:
    """
    A browser.

    @ivar cookies: Its cookies.
    @ivar flags: The attributes of the last cookie.
    """

    def __init__(self, site: Site, **cookies: str) -> None:
        self.cookies = {name.replace("_", "-"): each for name, each in cookies.items()}
        self.flags: list[str] = []
        self._stub: Any = StubTreq(site.resource)

    def send(self, method: str, url: str, **headers: str) -> Result:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            named["Cookie"] = "; ".join(map("=".join, self.cookies.items()))
        return resultOf(self._stub.request(method, f"{url}", headers=named))

    def receive(self, asked: Result) -> tuple[int, str]:
        self._stub.flush()
        response = asked.value
        for line in response.headers.getRawHeaders("set-cookie", []):
            cookie, *self.flags = line.split("; ")
            name, _, value = cookie.partition("=")
            self.cookies[name] = value
        return response.code, resultOf(self._stub.text_content(response)).value

    def __call__(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        url = path if ":" in path else f"https://test{path}"
        return self.receive(self.send(method, url, **headers))


@pytest.fixture
def site(clock: Clock) -> Iterator[Site]:
    """
    A Klein application whose store is ready.
    """
    site = Site(clock)
    site.memory.initialize()
    yield site
    site.memory.close()


# Identifiers.


def test_the_classes_provide_the_interfaces_of_klein(site: Site) -> None:
    """
    The classes implement Klein's interfaces.
    """
    verifyObject(IKleinSessionStore, site.sessions)
    verifyObject(ISession, site.made(True, Cookie))


@pytest.mark.parametrize(("isConfidential", "mechanism"), KINDS)
def test_a_session_is_found_as_it_was_created(
    site: Site, isConfidential: bool, mechanism: Any
) -> None:
    """
    An identifier finds its session only as it was created: not by another mechanism,
    and not with another first letter.
    """
    session = site.made(isConfidential, mechanism)
    for kind in KINDS:
        letter = site.made(*kind).identifier[0]
        isOwn = kind == (isConfidential, mechanism)
        assert site.isFound(session.identifier, *kind) is isOwn
        assert site.isFound(letter + session.identifier[1:], *kind) is isOwn
    loaded = site.load(session.identifier, isConfidential, mechanism).value
    assert loaded.isConfidential is isConfidential
    assert loaded.authenticatedBy is mechanism


@pytest.mark.parametrize(
    "identifier",
    ["", "C", "C" + 43 * "é", "C" + 43 * "a" + "\n", "X" + 43 * "a", "\ud800" * 44],
)
def test_the_store_is_not_asked_for_an_invalid_identifier(
    site: Site, identifier: str
) -> None:
    """
    The store is not called for an invalid identifier.
    """
    for kind in KINDS:
        assert not site.isFound(identifier, *kind)
    site.sessions.sentInsecurely([identifier, b"\xff\xfe"])
    assert site.store.asked == []


# With Klein.


@pytest.mark.parametrize(
    ("url", "cookie", "flags"),
    [("https://test", SECURE, {"Secure"}), ("http://test", INSECURE, set[str]())],
)
def test_a_visitor_keeps_the_session(
    site: Site, url: str, cookie: str, flags: set[str]
) -> None:
    """
    The first visit creates a session with Klein's cookie, and the next visits find it.
    """
    browser = Browser(site)
    counts = [browser("GET", f"{url}/count")[1] for _ in range(3)]
    assert counts == ["1", "2", "3"]
    assert list(browser.cookies) == [cookie]
    assert set(browser.flags) == {"Max-Age=3600", "Path=/", "HttpOnly", *flags}
    assert Browser(site)("GET", f"{url}/count") == (200, "1")
    assert site.count() == 2


def test_an_unknown_identifier_is_never_adopted(site: Site) -> None:
    """
    A visitor with an invented identifier gets a new one.
    """
    planted = "C" + makeIdentifier()
    browser = Browser(site, **{SECURE: planted})
    assert browser("GET", "/count") == (200, "1")
    assert browser.cookies[SECURE] != planted
    assert site.count() == 1


def test_a_program_sends_its_session_in_a_header(site: Site) -> None:
    """
    A program may send its session in a header, without a cookie. A form without a
    session and an unknown header create no session.
    """
    assert Browser(site)("POST", "/logout") == (403, "no session")
    header = {"X_Auth_Token": "H" + makeIdentifier()}
    assert Browser(site)("GET", "/count", **header) == (403, "no session")
    assert site.count() == 0
    program = Browser(site)
    header = {"X_Auth_Token": site.made(True, Header).identifier}
    assert program("GET", "/count", **header) == (200, "1")
    assert program.cookies == {}


def test_new_sessions_can_be_refused(clock: Clock) -> None:
    """
    The error of C{admit} refuses a visitor without a session, and no other visitor.
    """
    left = [1]

    def admit() -> None:
        if not left:
            raise UNAVAILABLE
        left.pop()

    site = Site(clock, admit=admit)
    site.memory.initialize()
    browser, stranger = Browser(site), Browser(site)
    assert browser("GET", "/count") == (200, "1")
    assert stranger("GET", "/count") == (503, "not now")
    assert browser("GET", "/count") == (200, "2")
    assert stranger.cookies == {}
    assert site.count() == 1
    site.memory.close()


def test_somebody_logs_in_and_out(site: Site) -> None:
    """
    A login changes the identifier and keeps the data. Earlier identifiers do not work
    after the login, nor after the logout.
    """
    browser = Browser(site)
    assert browser("GET", "/me")[0] == 401
    browser("GET", "/count")
    before = browser.cookies[SECURE]
    status, identifier = browser("POST", "/login?name=Ada")
    assert status == 200
    assert browser.cookies[SECURE] == identifier != before
    assert browser("GET", "/me") == (200, "Ada")
    assert browser("GET", "/count") == (200, "2")
    assert Browser(site, **{SECURE: before})("GET", "/me")[0] == 401
    assert browser("POST", "/logout") == (200, "True")
    assert Browser(site, **{SECURE: identifier})("GET", "/me")[0] == 401


# While the store is not ready.


def test_requests_wait_for_a_store_that_is_not_ready(site: Site) -> None:
    """
    Behind a wrapper, requests wait for the store: no session is lost, a request that
    waits too long gets an error, and the request of a client that disconnects is
    cancelled.
    """
    browser = Browser(site)
    browser("GET", "/count")
    site.memory.close()
    wrapper = QueuingWrapper(site.memory, site.clock, timeout=5.0)
    late = Site(site.clock, wrapper.proxy)
    returning, stranger = Browser(late, **browser.cookies), Browser(late)
    refused = returning.send("GET", "https://test/count")
    site.clock.advance(6)
    assert returning.receive(refused) == (503, "not now")
    asked = [each.send("GET", "https://test/count") for each in (returning, stranger)]
    given: list[Deferred[KleinSession]] = [
        late.sessions.newSession(True, Cookie),
        late.sessions.loadSession("C" + makeIdentifier(), True, Cookie),
    ]
    assert wrapper.pending == 4
    for each in given:
        each.cancel()
        assert isinstance(resultOf(each).error, CancelledError)
    assert wrapper.pending == 2
    wrapper.initialize()
    assert returning.receive(asked[0]) == (200, "2")
    assert stranger.receive(asked[1]) == (200, "1")
    resultOf(wrapper.close())


# Identifiers that were sent insecurely.


def test_a_session_whose_cookie_was_sent_over_plain_http_ends(site: Site) -> None:
    """
    A session whose cookie was sent over plain HTTP ends, and the log does not show its
    identifier.
    """
    browser = Browser(site)
    browser("GET", "/count")
    disclosed = browser.cookies[SECURE]
    with logged() as events:
        assert browser("GET", "http://test/count") == (200, "1")
    assert textsOf(errorsIn(events)) == [ENDED]
    assert disclosed not in repr(events)
    assert not site.isFound(disclosed, True, Cookie)
    assert browser("GET", "/count") == (200, "1")


def test_only_confidential_sessions_end(site: Site) -> None:
    """
    Of all identifiers in a request over plain HTTP, as text or bytes, only those end
    that must be sent over HTTPS.
    """
    made = [site.made(*kind) for kind in KINDS]
    site.sessions.sentInsecurely([each.identifier for each in made])
    for kind, session in zip(KINDS, made, strict=True):
        assert site.isFound(session.identifier, *kind) is not kind[0]
    site.sessions.sentInsecurely([site.made(True, Header).identifier.encode()])
    assert site.count() == 2


def test_a_disclosed_session_is_refused_until_it_is_destroyed(site: Site) -> None:
    """
    While the store is unavailable, a disclosed session is refused; each attempt to load
    it tries again to destroy it. An outage is logged once.
    """
    session = site.made(True, Cookie)
    site.store.errors["destroy"] = UNAVAILABLE
    with logged() as events:
        for _ in range(2):
            site.sessions.sentInsecurely([session.identifier, "C" + makeIdentifier()])
        assert not site.isFound(session.identifier, True, Cookie)
    assert textsOf(errorsIn(events)) == [NOT_ENDED]
    assert site.count() == 1
    site.store.errors.clear()
    assert not site.isFound(session.identifier, True, Cookie)
    assert site.count() == 0
    site.store.errors["destroy"] = UNAVAILABLE
    with logged() as events:
        site.sessions.sentInsecurely(["C" + makeIdentifier()])
    assert textsOf(errorsIn(events)) == [NOT_ENDED]


def test_disclosed_identifiers_are_bounded(site: Site) -> None:
    """
    One request causes at most 8 calls of the store, and at most 1,000 disclosed
    sessions are remembered.
    """
    site.sessions.sentInsecurely(["H" + makeIdentifier() for _ in range(277)])
    assert site.store.asked == ["destroy"] * 8
    made = [site.made(True, Cookie).identifier for _ in range(1001)]
    site.store.errors["destroy"] = UNAVAILABLE
    for each in made:
        site.sessions.sentInsecurely([each])
    assert [site.isFound(made[each], True, Cookie) for each in (0, 1, 1000)] == [
        True,
        False,
        False,
    ]


# Sessions that end.


def test_a_destroyed_session_is_not_created_again(site: Site) -> None:
    """
    A slow request that still has a destroyed session cannot create it again.
    """
    session = site.made(True, Cookie)
    other = site.load(session.identifier, True, Cookie).value
    resultOf(session.change(Changes(assigned={"user": "Ada"})))
    assert [resultOf(session.destroy()).value for _ in range(2)] == [True, False]
    for asked in (
        other.data(),
        other.change(Changes(assigned={"a": 1})),
        other.renew(),
    ):
        assert isinstance(resultOf(asked).error, NoSuchSession)
    assert not site.isFound(session.identifier, True, Cookie)
    assert resultOf(other.authorize([IVisitor, IUser])).value == {}
    assert site.count() == 0


def test_of_two_logins_one_renews(site: Site) -> None:
    """
    Of two simultaneous logins, one renews the session: the old identifier stops
    working. The other request learns that the session has ended, and keeps its
    identifier.
    """
    session = site.made(True, Cookie)
    other = site.load(session.identifier, True, Cookie).value
    old = other.identifier
    changes = Changes(added={"logins": 1})
    assert resultOf(session.renew(changes)).value == session.identifier != old
    assert isinstance(resultOf(other.renew()).error, NoSuchSession)
    assert other.identifier == old
    assert not site.isFound(old, True, Cookie)
    assert site.isFound(session.identifier, True, Cookie)
    assert resultOf(session.data()).value == {"logins": 1}
    assert site.count() == 1


@pytest.mark.parametrize("isCancelled", [False, True])
def test_a_login_that_fails_changes_nothing(site: Site, isCancelled: bool) -> None:
    """
    After a login that fails or is cancelled, the old identifier still works, with the
    old rights.
    """
    session = site.made(True, Cookie)
    old = session.identifier
    site.store.late.add("renew")
    renewing = session.renew(Changes(assigned={"user": "Ada"}))
    if isCancelled:
        renewing.cancel()
    else:
        site.store.waiting[0].errback(UNAVAILABLE)
    assert isinstance(resultOf(renewing).error, (CancelledError, Unavailable))
    assert session.identifier == old
    assert resultOf(session.data()).value == {}
    assert site.count() == 1


# Authorizers.


class IOther(Interface):
    """
    A capability that is granted later.
    """


def test_authorizers_return_in_any_way(clock: Clock) -> None:
    """
    An authorizer may return at once or later. Interfaces that it refuses, or that are
    unknown, are left out. A client that disconnects cancels it; its error refuses only
    this request.
    """
    later: list[Deferred[Somebody]] = []

    def other(session: KleinSession) -> Deferred[Somebody]:
        later.append(Deferred())
        return later[-1]

    site = Site(clock, authorizers={IOther: other})
    site.memory.initialize()
    session = site.made(True, Cookie)
    wanted = [IVisitor, IVisitor, IOther, IUser, IKleinSessionStore]
    asked = resultOf(session.authorize(iter(wanted)))
    assert asked.pending
    somebody = Somebody("later")
    later[0].callback(somebody)
    assert list(asked.value) == [IVisitor, IOther]
    assert asked.value[IOther] is somebody
    authorizing = session.authorize([IOther])
    authorizing.cancel()
    assert later[1].called
    assert isinstance(resultOf(authorizing).error, CancelledError)
    site.store.errors["get"] = UNAVAILABLE
    assert resultOf(session.authorize([IVisitor, IUser])).error is UNAVAILABLE
    site.memory.close()
