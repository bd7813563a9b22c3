"""
The session of a request: changes are saved, and the next request finds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast
from weakref import ref

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent, LogLevel, eventAsText
from twisted.python.failure import Failure
from twisted.web.server import Request

from tsrv import QueuingWrapper
from tsrv.sessions import (
    Cookies,
    Limits,
    MemorySessionStore,
    Quota,
    Session,
    SessionError,
    Sessions,
    SessionsUnavailable,
    keyOf,
    makeIdentifier,
)
from tsrv.web.responses import AsyncResource, Response, respond
from tsrv.web.site import Site

from .exchanges import exchange
from .support import Trouble, resultOf
from .visitors import COOKIE, PROXY, Do, LaterStore, Place, Shopper
from .websupport import logged, textsOf

UNAVAILABLE = SessionsUnavailable("not now", 2)


class Page(AsyncResource):
    """
    A page that changes the session as the test says.
    """

    isLeaf = True

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions
        self.do: Do = dict
        self.headers: list[tuple[bytes, bytes]] = []

    async def render_GET(self, request: Request) -> Response:
        do = self.do
        session = await self._sessions.get(request)
        result = do(session)
        if isinstance(result, Deferred):
            result = await result
        body = json.dumps(result).encode()
        return Response(body, b"application/json", headers=self.headers)


class Shop(Place):
    """
    A site with one page.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(Page, **options)
        self.page: Page = self.site.resource

    def visitor(self, cookie: str | None = None) -> Shopper:
        return Shopper(self.site, self.clock, cookie)

    def returning(self, **members: Any) -> Shopper:
        visitor = self.visitor()
        visitor.do(put(**members))
        return visitor

    def fire(self) -> None:
        """
        Let the store carry out its waiting calls.
        """
        self.store.late.clear()
        for each in self.store.waiting:
            if not each.called:
                each.callback(None)


@pytest.fixture
def place() -> Iterator[Shop]:
    """
    A site without a quota.
    """
    place = Shop()
    yield place
    place.close()


def put(**members: Any) -> Do:
    """
    @return: A function that assigns members.
    """
    return lambda session: session.update(members)


def count(session: Session) -> Deferred[int | float]:
    """
    Add 1 to the member C{n}.
    """
    return session.add("n")


def both(first: Do, second: Do) -> Do:
    """
    @return: A function that does one thing, then another.
    """
    return lambda session: (first(session), second(session))[1]


destroy: Do = Session.destroy

regenerate: Do = Session.regenerate


class Begun:
    """
    A request on a site of twisted.web, and its session.
    """

    def __init__(self, place: Shop, cookie: str | None = None, **members: Any) -> None:
        cookie = place.returning(**members).cookie if members else cookie
        sent = [] if cookie is None else [("Cookie", f"__Host-session={cookie}")]
        self.cookie = cookie
        self.request = exchange(*sent, secure=True)
        self.request.setHeader(b"Content-Length", b"11")
        self.transport: Any = self.request.transport
        self._sessions = place.sessions

    def get(self) -> Deferred[Session]:
        return self._sessions.get(self.request)

    @property
    def session(self) -> Session:
        return cast(Session, resultOf(self.get()).value)

    @property
    def body(self) -> bytes:
        return cast(bytes, self.transport.value().partition(b"\r\n\r\n")[2])

    def finish(self, *pieces: bytes) -> None:
        for piece in pieces or [b"12345678901"]:
            self.request.write(piece)
        self.request.finish()
        self.keepCookie()

    def keepCookie(self) -> None:
        found = COOKIE.search(self.transport.value().decode())
        if found is not None:
            self.cookie = found[1]

    @property
    def isCookieSet(self) -> bool:
        return b"Set-Cookie" in self.transport.value()

    def leave(self) -> None:
        self.request.connectionLost(Failure(ConnectionDone()))


# Saving and finding.


def test_a_session_is_found_by_the_next_request(place: Shop) -> None:
    """
    A visitor finds the assigned values at the next request; other visitors do not.
    """
    visitor = place.returning(name="Ada", roles=["a"])
    assert visitor.says(dict) == {"name": "Ada", "roles": ["a"]}
    assert place.visitor().says(dict) == {}


def test_changes_deep_inside_a_value_are_saved(place: Shop) -> None:
    """
    A list or a dictionary in a session may be changed in place.
    """
    visitor = place.returning(a={"b": [1]})
    visitor.do(lambda session: session["a"]["b"].append(2))
    assert visitor.says(dict) == {"a": {"b": [1, 2]}}
    visitor.do(lambda session: session.pop("a"))
    assert visitor.says(dict) == {}


@pytest.mark.parametrize(
    "do", [dict, destroy, lambda session: session.update(a=1) or session.clear()]
)
def test_an_empty_session_is_not_stored(place: Shop, do: Do) -> None:
    """
    Empty sessions are not stored and set no cookie.
    """
    answer = place.visitor().do(do)
    assert "set-cookie" not in answer.headers
    assert "cache-control" not in answer.headers
    assert answer.headers["vary"] == "Cookie"
    assert place.count() == 0


def test_a_cookie_is_sent_once(place: Shop) -> None:
    """
    The cookie is sent when the session is created, in addition to the cookies of the
    page. The page is cached only if it says so.
    """
    visitor = place.visitor()
    first = visitor.do(put(a=1))
    flags = {flag.strip() for flag in visitor.attributes.split(";") if flag}
    assert flags == {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}
    second = visitor.do(put(a=2))
    assert "set-cookie" not in second.headers
    for answer in (first, second):
        assert answer.headers["cache-control"] == "no-store"
    place.page.headers = [(b"Cache-Control", b"private"), (b"Set-Cookie", b"a=b")]
    assert visitor.do(dict).headers["cache-control"] == "private"
    answer = place.visitor().do(put(a=1))
    assert answer.headers["set-cookie"].startswith("a=b, __Host-session=")


def test_the_store_does_not_know_the_identifier(place: Shop) -> None:
    """
    The store has the hash of an identifier, and the log shows no data of a session.
    """
    visitor = place.returning(a="secret")
    assert visitor.cookie is not None
    ((key, _),) = resultOf(place.memory.all()).value
    assert key == keyOf(visitor.cookie)
    assert visitor.says(repr) == "<Session of 1 members>"


def test_an_unknown_identifier_is_never_adopted(place: Shop) -> None:
    """
    An attacker cannot give a visitor an identifier that the attacker knows.
    """
    planted = makeIdentifier()
    visitor = place.visitor(planted)
    assert "set-cookie" not in visitor.do(dict).headers
    visitor.do(put(a=1))
    assert visitor.cookie not in (None, planted)
    assert place.count() == 1


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_a_value_that_cannot_be_json_is_an_error(
    place: Shop, value: object, loggedFailures: list[LogEvent]
) -> None:
    """
    A value that cannot be JSON fails the request, and nothing is stored. The name of a
    member must be a string.
    """
    session: Any = Begun(place).session
    with pytest.raises(TypeError):
        session[1] = 1
    assert place.visitor().do(put(a=value)).status == 500
    assert place.count() == 0
    visitor = place.returning(a=1)
    assert visitor.do(put(a=value)).status == 500
    assert visitor.says(dict) == {"a": 1}
    for event in loggedFailures:
        assert event["log_failure"].check(SessionError)
    loggedFailures.clear()


def test_new_sessions_are_limited() -> None:
    """
    Beyond the quota a new session gets 429; other requests are not affected.
    """
    place = Shop(quota=Quota(Clock(), 2, 100, 60.0))
    first = place.returning(a=1)
    place.returning(a=1)
    refused = place.visitor().do(put(a=1))
    assert (refused.status, refused.headers["retry-after"]) == (429, "60")
    assert "set-cookie" not in refused.headers
    assert place.visitor().do(dict).status == 200
    assert first.do(put(a=2)).status == 200
    assert place.count() == 2
    place.close()


def test_a_session_that_was_not_stored_does_not_count() -> None:
    """
    The quota counts stored sessions, and not attempts: while the store is unavailable,
    each response has the true reason.
    """
    place = Shop(quota=Quota(Clock(), 1, 1, 60.0))
    place.store.errors["create"] = UNAVAILABLE
    for do in (put(a=1), count, count):
        assert place.visitor().do(do).status == 503
    place.store.errors.clear()
    assert [place.visitor().do(count).status for _ in "ab"] == [200, 429]
    place.close()


# How use extends the lifetime.


def test_uses_in_quick_succession_are_written_once(place: Shop) -> None:
    """
    A session lives on while it is used; a use is written at intervals of idle / 20.
    """
    visitor = place.returning(a=1)
    for _ in range(100):
        place.clock.advance(1)
        assert visitor.says(dict) == {"a": 1}
    assert place.store.asked.count("touch") == 20
    place.clock.advance(101)
    assert visitor.says(dict) == {}


def test_a_use_that_is_not_written_fails_no_request(place: Shop) -> None:
    """
    A use that cannot be written does not fail the request.
    """
    visitor = place.returning(a=1)
    place.clock.advance(50)
    place.store.errors["touch"] = UNAVAILABLE
    assert visitor.says(dict) == {"a": 1}


def test_a_session_that_ends_before_it_is_touched_is_new(place: Shop) -> None:
    """
    If the session was destroyed meanwhile, the page may be cached again.
    """
    visitor = place.returning(a=1)
    place.clock.advance(50)
    assert visitor.cookie is not None
    place.store.before["touch"] = partial(place.memory.destroy, visitor.cookie)
    assert "cache-control" not in visitor.do(dict).headers


class Wrapped:
    """
    A site whose store is behind a wrapper, and not ready when the site is made. An
    attempt takes a second.
    """

    def __init__(
        self, limits: Limits, kind: Callable[[Any], LaterStore] = LaterStore
    ) -> None:
        self.clock = Clock()
        memory = MemorySessionStore(self.clock, limits)
        self.wrapper = QueuingWrapper(
            memory,
            self.clock,
            initialize=lambda: deferLater(self.clock, 1, memory.initialize),
        )
        self.store = kind(self.wrapper.proxy)
        cookies = Cookies(self.clock, trustedProxies=[PROXY])
        sessions = Sessions(self.clock, cast(Any, self.store), cookies)
        self.wrapper.initialize()
        self.clock.advance(1)
        self.visitor = Shopper(Site(Page(sessions), self.clock), self.clock)

    def close(self) -> None:
        assert resultOf(self.wrapper.close()).value is None
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []


@pytest.mark.parametrize("idle", [100, 4 * 3600])
def test_the_limits_of_a_wrapped_store_count(idle: float) -> None:
    """
    Behind a wrapper, too, a use is written at intervals of C{idle / 20} of the store.
    """
    site = Wrapped(Limits(idle, None))
    site.visitor.do(put(a=1))
    for _ in range(100):
        site.clock.advance(idle / 100)
        assert site.visitor.says(dict) == {"a": 1}
    assert site.store.asked.count("touch") == 20
    site.clock.advance(idle + 1)
    assert site.visitor.says(dict) == {}
    site.close()


def test_a_store_decides_while_its_limits_are_not_known() -> None:
    """
    If a wrapped store is lost before its limits could be read, the store decides
    whether a use is written. Later its limits count.
    """
    site = Wrapped(Limits(100, None))
    site.visitor.do(put(a=1))
    site.clock.advance(1)
    lost = site.wrapper.reset
    peer = site.visitor.start(lambda _: lost(Trouble("cut off")))
    assert (site.store.asked.count("touch"), peer.answers) == (1, [])
    site.clock.advance(1)
    assert site.visitor.end(peer).status == 200
    assert site.visitor.says(dict) == {"a": 1}
    assert site.store.asked.count("touch") == 1
    site.close()


def test_a_store_without_limits() -> None:
    """
    The default limits count for a store without the attribute C{limits}.
    """

    class Unlimited(LaterStore):
        def __getattr__(self, name: str) -> Any:
            if name == "limits":
                raise AttributeError(name)
            return super().__getattr__(name)

    site = Wrapped(Limits(1800, None), Unlimited)
    site.visitor.do(put(a=1))
    for expected in (0, 1):
        site.clock.advance(89 + expected)
        assert site.visitor.says(dict) == {"a": 1}
        assert site.store.asked.count("touch") == expected
    site.close()


# Concurrent requests.


def test_concurrent_requests_keep_the_changes_of_each_other(place: Shop) -> None:
    """
    A slow request does not undo the changes of a fast one.
    """
    slow = Begun(place, a=1, b=1, c=1)
    slow.session["a"] = 2
    del slow.session["c"]
    visitor = place.visitor(slow.cookie)
    visitor.do(put(b=2, d=1))
    slow.finish()
    assert visitor.says(dict) == {"a": 2, "b": 2, "d": 1}


def test_add_loses_no_count(place: Shop) -> None:
    """
    32 requests that have all read the same number add to it one after another, and no
    count is lost.
    """
    visitor = place.returning(n=0)
    sessions = [Begun(place, visitor.cookie).session for _ in range(32)]
    assert {session["n"] for session in sessions} == {0}
    results = [resultOf(session.add("n")).value for session in sessions]
    assert sorted(results) == list(range(1, 33))
    assert visitor.says(dict) == {"n": 32}


def test_a_counter_that_is_read_while_it_is_counted_loses_nothing(
    place: Shop,
) -> None:
    """
    A number that a resource reads before the store responds is not written back.
    """
    begun = Begun(place, n=1)
    place.store.late.add("set")
    counting = resultOf(begun.session.add("n"))
    assert begun.session["n"] == 1
    place.fire()
    assert counting.value == 2
    begun.finish()
    assert place.visitor(begun.cookie).says(dict) == {"n": 2}


def test_add_saves_earlier_changes(place: Shop) -> None:
    """
    add() saves earlier assignments first. It counts a value that is not a number as 0.
    """

    more = both(put(a=1), lambda session: session.add("n", 2.5))
    visitor = place.visitor()
    assert [visitor.says(more), visitor.says(more)] == [2.5, 5]
    assert visitor.says(dict) == {"a": 1, "n": 5}
    assert visitor.says(both(put(n="x"), count)) == 1
    assert visitor.says(dict) == {"a": 1, "n": 1}


def test_operations_of_one_request_run_in_order(place: Shop) -> None:
    """
    Two counters and a save at once create one session.
    """

    def allAtOnce(session: Session) -> Any:
        return gatherResults([session.add("a"), session.add("b"), session.save()])

    visitor = place.visitor()
    assert visitor.says(allAtOnce) == [1, 1, None]
    assert place.count() == 1
    place.store.late.add("set")
    begun = visitor.start(allAtOnce)
    assert len(place.store.waiting) == 1
    place.fire()
    assert json.loads(visitor.end(begun).body) == [2, 2, None]


@pytest.mark.parametrize("isCounted", [False, True])
def test_a_session_that_is_destroyed_meanwhile_stays_so(
    place: Shop, isCounted: bool
) -> None:
    """
    A slow request restores neither a destroyed session nor its cookie, and does not
    remove the next cookie.
    """
    slow = Begun(place, a=1)
    session = slow.session
    if not isCounted:
        session["a"] = 2
    place.visitor(slow.cookie).do(destroy)
    if isCounted:
        assert resultOf(session.add("a")).value == 1
    slow.finish()
    assert not slow.isCookieSet
    assert place.count() == 0


def test_changes_while_a_save_is_in_progress_are_kept(place: Shop) -> None:
    """
    Assignments and changes in place during a save are not lost.
    """

    def change(session: Session) -> Any:
        cart = session.setdefault("cart", [])
        counting = session.add("n")
        session["b"] = 1
        cart.append("tea")
        return counting.addCallback(lambda _: cart.append("milk"))

    visitor = place.visitor()
    for _ in range(2):
        place.store.late.update(("create", "set"))
        begun = visitor.start(change)
        place.fire()
        visitor.end(begun)
    assert visitor.says(dict) == {"cart": ["tea", "milk"] * 2, "n": 2, "b": 1}


def test_changes_of_others_are_seen_after_a_save(place: Shop) -> None:
    """
    After a save the session shows the changes of others, and its own. A value that
    nobody else has changed stays the same object.
    """
    begun = Begun(place, a=1, b=1, c=1, d={"x": 1}, cart=[])
    session = begun.session
    cart = session["cart"]
    session["a"] = 2
    other = Begun(place, begun.cookie)
    other.session.update(b=2, e=1, d={"x": 2})
    del other.session["c"]
    other.finish()
    resultOf(session.save())
    expected = {"a": 2, "b": 2, "d": {"x": 2}, "e": 1, "cart": []}
    assert dict(session) == expected
    cart.append("tea")
    begun.finish()
    expected["cart"] = ["tea"]
    assert place.visitor(begun.cookie).says(dict) == expected


# Renewing and destroying.


def test_regenerate_gives_another_identifier(place: Shop) -> None:
    """
    regenerate() gives the session another identifier; the old one does not work.
    """
    visitor = place.returning(a=1)
    old = visitor.cookie
    visitor.do(both(regenerate, put(name="Ada")))
    assert visitor.cookie != old
    assert visitor.says(dict) == {"a": 1, "name": "Ada"}
    assert place.visitor(old).says(dict) == {}
    assert place.count() == 1


def test_destroy_ends_a_session(place: Shop) -> None:
    """
    After destroy(), the browser removes the cookie, and a kept cookie does not work.
    """
    visitor = place.returning(a=1)
    old = visitor.cookie
    assert "Max-Age=0" in visitor.do(destroy).headers["set-cookie"]
    assert place.count() == 0
    assert place.visitor(old).says(dict) == {}


@pytest.mark.parametrize("method", ["add", "save", "touch", "renew", "create"])
def test_destroy_ends_a_session_that_is_being_saved(place: Shop, method: str) -> None:
    """
    After destroy(), the result of an operation that has begun before restores neither
    the session nor its members.
    """
    begun = Begun(place) if method == "create" else Begun(place, a=1)
    session = begun.session
    place.store.late.update(("create", "set", "renew", "touch"))
    place.clock.advance(50)
    if method == "renew":
        session.regenerate()
    if method in ("save", "create"):
        session["old"] = 1
    saving = resultOf(session.add("n") if method == "add" else session.save())
    assert saving.pending
    session.destroy()
    session["b"] = 2
    place.fire()
    assert not saving.pending
    assert dict(session) == {"b": 2}
    old = begun.cookie
    begun.finish()
    assert begun.cookie != old
    assert place.visitor(begun.cookie).says(dict) == {"b": 2}
    assert place.count() == 1


@pytest.mark.parametrize("regenerates", [False, True])
def test_destroy_ends_a_session_that_another_request_has_ended(
    place: Shop, regenerates: bool
) -> None:
    """
    Members that are assigned after destroy() are kept, also if an operation that has
    begun before finds no session.
    """
    begun = Begun(place, a=1)
    session = begun.session
    place.store.late.update(("renew", "touch"))
    place.clock.advance(50)
    if regenerates:
        session.regenerate()
    session.save()
    session.destroy()
    session["b"] = 2
    place.visitor(begun.cookie).do(destroy)
    place.fire()
    begun.finish()
    assert place.visitor(begun.cookie).says(dict) == {"b": 2}
    assert place.count() == 1


def test_a_new_session_may_begin_where_one_ends(place: Shop) -> None:
    """
    Members that are assigned or added to after destroy() become a new session.
    """
    for do in (put(n=1), count):
        visitor = place.returning(a=1)
        old = visitor.cookie
        visitor.do(both(destroy, do))
        assert visitor.cookie not in (None, old)
        assert list(visitor.says(dict)) == ["n"]
    assert place.count() == 2


def test_the_token_changes_with_the_identifier(place: Shop) -> None:
    """
    Each session has its own token. Reading the token of a new session stores the
    session.
    """
    one, other = place.visitor(), place.visitor()
    first, second = one.says(lambda session: [session.token, session.token])
    assert first == second == one.says(lambda session: session.token)
    assert one.says(lambda session: [len(session), list(session)]) == [0, []]
    assert first != other.says(lambda session: session.token)
    assert one.cookie is not None
    assert one.cookie not in first
    renewed = one.says(both(regenerate, lambda session: session.token))
    assert renewed == one.says(lambda session: session.token) != first


def test_nothing_is_saved_for_a_client_that_left_before_its_session_was_found(
    place: Shop,
) -> None:
    """
    If the client disconnects while its session is loaded, no save begins.
    """
    begun = Begun(place, a=1)
    place.store.late.add("get")
    finding = resultOf(begun.get())
    begun.leave()
    place.fire()
    finding.value["a"] = 2
    begun.request.write(b"late")
    assert place.visitor(begun.cookie).says(dict) == {"a": 1}


def test_a_login_is_not_saved_for_a_client_that_left(place: Shop) -> None:
    """
    If the client disconnects before it can get the new identifier, nothing is saved
    under the old one, also if the resource writes when it is told so.
    """
    begun = Begun(place, a=1)

    def logIn(reason: object) -> None:
        begun.session.regenerate()
        begun.session["name"] = "Ada"
        begun.request.write(b"late")

    begun.request.notifyFinish().addErrback(logIn)
    assert begun.session == {"a": 1}
    begun.leave()
    assert place.visitor(begun.cookie).says(dict) == {"a": 1}


# Requests that overlap.


def test_a_slow_login_does_not_undo_a_logout(place: Shop) -> None:
    """
    If the session was destroyed meanwhile, renewing it creates none, and its data are
    gone.
    """
    slow = Begun(place, before="old")
    login = Begun(place, slow.cookie)
    for each in (slow, login):
        each.session.regenerate()
    login.session["name"] = "Ada"
    place.visitor(slow.cookie).do(destroy)
    slow.finish()
    assert not slow.isCookieSet
    assert place.count() == 0
    assert resultOf(login.session.save()).value is None
    assert place.count() == 1
    login.finish()
    assert place.visitor(login.cookie).says(dict) == {"name": "Ada"}


def test_renewing_keeps_the_counts_of_others(place: Shop) -> None:
    """
    Counts of other requests during a renewal are kept.
    """
    slow = Begun(place, n=1)
    slow.session.regenerate()
    place.visitor(slow.cookie).do(count)
    slow.finish()
    assert place.visitor(slow.cookie).says(both(regenerate, count)) == 3


def test_of_many_logins_at_once_one_renews(place: Shop) -> None:
    """
    Of ten simultaneous logins with one cookie, one renews the session.
    """
    visitor = place.returning(a=1)
    logins = [Begun(place, visitor.cookie) for _ in range(10)]
    for each in logins:
        each.session.regenerate()
    for each in logins:
        each.finish()
    assert [each.isCookieSet for each in logins] == [True] + [False] * 9
    assert place.count() == 1


def test_a_late_request_does_not_replace_the_new_cookie(place: Shop) -> None:
    """
    For a minute after a login, a request with the old cookie stores nothing, unless it
    is another login.
    """
    visitor = place.returning(a=1)
    late = place.visitor(visitor.cookie)
    visitor.do(regenerate)
    for do in (dict, put(b=1), count):
        assert "set-cookie" not in late.do(do).headers
    assert place.count() == 1

    def login(session: Session) -> Any:
        session["b"] = 1
        return session.save().addCallback(lambda _: session.regenerate())

    for do in (login, both(regenerate, put(b=1))):
        assert "set-cookie" in place.visitor(late.cookie).do(do).headers
    place.clock.advance(60)
    assert "set-cookie" in late.do(put(b=1)).headers


@pytest.mark.parametrize("isEarly", [False, True])
def test_a_late_request_to_another_server_does_not_replace_the_new_cookie(
    place: Shop, isEarly: bool
) -> None:
    """
    The store remembers the login for all servers, so a late request to another one does
    not replace the new cookie, whether it has read the session before the login or not.
    """
    visitor = place.returning(a=1)
    other = Shop(store=place.memory)
    late = other.visitor(visitor.cookie)
    other.store.late.add("set" if isEarly else "get")
    peer = late.start(both(put(b=1), count))
    visitor.do(both(put(name="Ada"), regenerate))
    other.fire()
    answer = late.end(peer)
    assert answer.status == 200
    assert "set-cookie" not in answer.headers
    assert visitor.says(dict) == {"a": 1, "name": "Ada"}
    assert place.count() == 1
    other.close()


# Errors in the middle.


@pytest.mark.parametrize("method", ["renew", "destroy"])
def test_changes_are_saved_after_an_outage(place: Shop, method: str) -> None:
    """
    After a short outage, new rights are not stored under the old identifier, and a
    logout is still carried out.
    """
    visitor = place.returning(a=1)
    old = visitor.cookie
    place.store.errors[method] = UNAVAILABLE

    def change(session: Session) -> Any:
        if method == "renew":
            session.regenerate()
            session["role"] = "root"
        else:
            session.destroy()
        return session.save().addErrback(lambda _: place.store.errors.clear())

    assert visitor.do(change).status == 200
    assert place.visitor(old).says(dict) == {}
    assert visitor.says(dict) == ({"a": 1, "role": "root"} if method == "renew" else {})


def test_new_rights_are_not_stored_under_the_old_identifier(place: Shop) -> None:
    """
    A counter that is added to after regenerate() is stored in the renewed session.
    """
    visitor = place.returning(a=1)
    place.store.errors["renew"] = UNAVAILABLE
    more = both(put(role="root"), count)
    assert visitor.do(both(regenerate, more)).status == 503
    assert visitor.says(dict) == {"a": 1}


@pytest.mark.parametrize("status", [400, 429, 500, 503])
@pytest.mark.parametrize("isSaving", [False, True])
@pytest.mark.parametrize("isNew", [False, True])
def test_a_request_that_must_be_repeated_saves_nothing(
    place: Shop, status: int, isSaving: bool, isNew: bool
) -> None:
    """
    A response with status 429 or 5xx means that the request was not carried out:
    unsaved changes are dropped. Operations in progress continue.
    """
    begun = Begun(place) if isNew else Begun(place, a=1)
    session = begun.session
    place.store.late.update(("create", "set", "renew", "touch", "destroy"))
    if isSaving:
        session["b"] = 2
        session.save()
    session["c"] = 3
    session.regenerate()
    begun.request.setResponseCode(status)
    place.clock.advance(50)
    begun.finish()
    place.fire()
    begun.keepCookie()
    assert begun.transport.value().startswith(b"HTTP/1.1 %d " % status)
    saved = {"b": 2} if isSaving else {}
    if status == 400:
        saved["c"] = 3
    found = place.visitor(begun.cookie).says(dict)
    assert found == ({} if isNew else {"a": 1}) | saved
    assert place.count() == bool(found)


def test_what_an_error_has_dropped_is_not_saved_later(place: Shop) -> None:
    """
    If the resource goes on after an error was sent, save() finds nothing to save.
    """
    begun = Begun(place, a=1)
    session = begun.session
    session["b"] = 2
    session.regenerate()
    begun.request.setResponseCode(503)
    begun.finish()
    assert resultOf(session.save()).value is None
    assert place.visitor(begun.cookie).says(dict) == {"a": 1}


def test_the_response_waits_for_a_count(place: Shop) -> None:
    """
    The response is sent when a count that has begun is saved.
    """
    begun = Begun(place, a=1)
    place.store.late.add("set")
    counting = resultOf(begun.session.add("n"))
    begun.finish()
    assert (counting.pending, begun.transport.value()) == (True, b"")
    place.fire()
    assert counting.value == 1
    assert begun.transport.value().startswith(b"HTTP/1.1 200 ")


def test_a_logout_that_must_be_repeated_is_not_carried_out(place: Shop) -> None:
    """
    A logout that is answered with 429 or 5xx was not carried out; the client may repeat
    it.
    """
    begun = Begun(place, a=1)
    begun.session.destroy()
    begun.request.setResponseCode(503)
    begun.finish()
    assert not begun.isCookieSet
    assert place.visitor(begun.cookie).says(dict) == {"a": 1}


@pytest.mark.parametrize("members", [{}, {"n": 5}])
def test_a_count_that_failed_is_not_saved_later(
    place: Shop, members: dict[str, int]
) -> None:
    """
    A failed count is not saved later, since its caller got an error; other changes are
    retried.
    """
    place.store.errors["create"] = UNAVAILABLE
    visitor = place.visitor()

    def carryOn(session: Session) -> Any:
        session.update(a=1, **members)
        return count(session).addErrback(lambda _: place.store.errors.clear())

    assert visitor.do(carryOn).status == 200
    assert visitor.says(dict) == {"a": 1, **members}


def test_a_finished_request_leaves_no_garbage(place: Shop) -> None:
    """
    A finished request leaves no reference cycle with its session.
    """
    visitor = place.returning(a=1)
    sessions: list[ref[Session]] = []
    visitor.do(lambda session: sessions.append(ref(session)))
    assert sessions[0]() is None


@pytest.mark.parametrize("method", ["get", "set", "create", "destroy", "add"])
def test_an_unavailable_store_is_503(place: Shop, method: str) -> None:
    """
    If the store is unavailable, the response is 503 without content of the page, and
    the browser keeps its cookie.
    """
    visitor = place.visitor() if method == "create" else place.returning(a=1)
    cookie = visitor.cookie
    place.store.errors["set" if method == "add" else method] = UNAVAILABLE
    place.page.headers = [(b"ETag", b'"1"'), (b"Set-Cookie", b"a=b")]
    dos: dict[str, Do] = {"destroy": destroy, "add": count}
    answer = visitor.do(dos.get(method, put(a=2)))
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert not {"set-cookie", "etag"} & answer.headers.keys()
    assert visitor.cookie == cookie


def test_requests_wait_for_a_store_that_is_not_ready(place: Shop) -> None:
    """
    Behind a wrapper, a request waits until the store is ready.
    """
    cookie = place.returning(a=1).cookie
    place.memory.close()
    wrapper = QueuingWrapper(place.memory, place.clock)
    begun = Begun(Shop(store=wrapper.proxy), cookie)
    asked = resultOf(begun.get())
    assert asked.pending
    wrapper.initialize()
    assert dict(asked.value) == {"a": 1}
    resultOf(wrapper.close())


@pytest.mark.parametrize("isLogin", [False, True])
@pytest.mark.parametrize("isSaving", [False, True])
def test_a_client_that_disconnects_gets_no_session(
    place: Shop, isLogin: bool, isSaving: bool
) -> None:
    """
    If the client disconnects, nothing is stored under an identifier that no browser has
    received.
    """
    begun = Begun(place, a=1) if isLogin else Begun(place)
    session = begun.session
    place.store.late.update(("create", "renew"))
    if isLogin:
        session.regenerate()
    session["a"] = 2
    if isSaving:
        session.save()
    begun.leave()
    saving = resultOf(session.save())
    place.fire()
    assert saving.value is None
    # No browser has the identifier of the renewed session.
    assert place.count() == int(isLogin and not isSaving)


# Loading.


def load(place: Shop) -> list[Deferred[Session]]:
    """
    Let three parts of a page request the session, which the store does not return yet.
    """
    place.store.late.add("get")
    begun = Begun(place, a=1)
    return [begun.get() for _ in range(3)]


def test_a_session_is_loaded_once_for_a_request(place: Shop) -> None:
    """
    All parts of a page share one lookup; the callback of one part may cancel another.
    """
    asked = load(place)
    asked[0].addBoth(lambda _: asked[1].cancel())
    results = [resultOf(each) for each in asked]
    place.fire()
    assert place.store.asked.count("get") == 1
    assert results[2].value["a"] == 1
    assert isinstance(results[1].error, CancelledError)


def test_each_part_may_give_up_alone(place: Shop) -> None:
    """
    Cancelling one call does not affect the others; the last one cancels the call of the
    store.
    """
    asked = load(place)
    results = [resultOf(each) for each in asked]
    for each in asked:
        assert not place.store.waiting[0].called
        each.cancel()
    assert place.store.waiting[0].called
    assert all(isinstance(each.error, CancelledError) for each in results)


def test_a_request_asks_again_after_an_error(place: Shop) -> None:
    """
    All parts get the error of the store; the next call looks up the session again.
    """
    begun = Begun(place, a=1)
    place.store.late.add("get")
    results = [resultOf(begun.get()) for _ in range(3)]
    place.store.waiting[0].errback(UNAVAILABLE)
    assert [each.error for each in results] == [UNAVAILABLE] * 3
    place.store.late.clear()
    assert begun.session is begun.session


# Sending a response.


def test_nothing_is_sent_before_the_session_is_saved(place: Shop) -> None:
    """
    A response waits until the session is saved; its parts are sent in order.
    """
    begun = Begun(place)
    begun.session["a"] = 1
    place.store.late.add("create")
    begun.finish(b"one ", b"two ", b"six")
    assert begun.transport.value() == b""
    place.fire()
    assert begun.body == b"one two six"
    assert b"Set-Cookie: __Host-session=" in begun.transport.value()


def test_changes_after_the_response_has_begun_are_saved(place: Shop) -> None:
    """
    Changes after the begin of the response are saved before the following bytes are
    sent.
    """
    begun = Begun(place, a=1)
    session = begun.session
    place.store.late.add("set")
    session["a"] = 2
    begun.request.write(b"begun ")
    session["a"] = 3
    begun.request.write(b"ended")
    session["b"] = 4
    begun.request.finish()
    for number in range(2):
        assert begun.transport.value() == b""
        place.store.waiting[number].callback(None)
    assert begun.body == b"begun ended"
    assert place.visitor(begun.cookie).says(dict) == {"a": 3, "b": 4}


@pytest.mark.parametrize("how", ["new", "login", "unavailable"])
def test_a_save_that_fails_after_the_first_byte_aborts_the_response(
    place: Shop, how: str, loggedFailures: list[LogEvent]
) -> None:
    """
    If a save fails after the first byte, the response is aborted, so that it is not
    taken for complete. After the first byte no session can be created or renewed.
    """
    begun = Begun(place) if how == "new" else Begun(place, a=1)
    session = begun.session
    begun.request.write(b"begun ")
    if how == "login":
        session.regenerate()
    if how == "unavailable":
        place.store.errors["set"] = UNAVAILABLE
    session["a"] = 2
    begun.finish(b"ended")
    assert begun.transport.disconnected
    assert begun.body == b"begun "
    error = SessionsUnavailable if how == "unavailable" else SessionError
    assert loggedFailures.pop()["log_failure"].check(error)
    left = {} if how == "new" else {"a": 1}
    assert place.visitor(begun.cookie).says(dict) == left


def test_a_session_that_cannot_be_saved_is_the_response(place: Shop) -> None:
    """
    If the session cannot be saved, the response of the resource is replaced by the
    error.
    """
    begun = Begun(place, a=1)
    begun.session["a"] = 2
    place.store.errors["set"] = UNAVAILABLE
    begun.finish(b"one ", b"two")
    assert begun.transport.value().startswith(b"HTTP/1.1 503 ")
    assert b"one" not in begun.body


def test_a_deferred_response_is_not_mixed_with_an_error(
    place: Shop, loggedFailures: list[LogEvent]
) -> None:
    """
    If a resource fails after it has written a part of a deferred response, the response
    is aborted.
    """

    def render(request: Request) -> Response:
        with pytest.raises(TypeError):
            request.write("text")
        request.write(b"PARTIAL")
        raise Trouble("half way")

    begun = Begun(place)
    begun.session["a"] = 1
    place.store.late.add("create")
    respond(begun.request, render)
    assert (begun.transport.disconnected, begun.transport.value()) == (True, b"")
    begun.leave()
    place.fire()
    assert loggedFailures.pop()["log_failure"].check(Trouble)


@pytest.mark.parametrize(
    ("error", "text", "level"),
    [
        (Trouble("the disk is full"), "Trouble: the disk is full", LogLevel.warn),
        (UNAVAILABLE, "not now", LogLevel.debug),
    ],
)
def test_a_client_that_disconnects_is_sent_nothing(
    place: Shop, error: Exception, text: str, level: Any
) -> None:
    """
    After the client has disconnected, a save in progress continues and no further one
    begins. A failure is logged as a warning, unless it is one of many in an outage.
    """
    first = Begun(place, a=1)
    second = Begun(place, first.cookie)
    place.store.late.add("set")
    for begun, value in ((first, 1), (second, 2)):
        begun.session["b"] = value
        begun.request.write(b"begun ")
        begun.leave()
        begun.session["c"] = 1
        begun.finish(b"ended")
    with logged() as events:
        place.store.waiting[0].errback(error)
        place.store.waiting[1].callback(None)
    (event,) = (each for each in events if each["log_namespace"] == "tsrv.sessions")
    assert eventAsText(event, False, False, False).endswith(f"were not saved: {text}")
    assert event["log_level"] is level
    assert second.transport.value() == b""
    assert place.visitor(first.cookie).says(dict) == {"a": 1, "b": 2}


def test_a_deferred_response_is_bounded(
    place: Shop, loggedFailures: list[LogEvent]
) -> None:
    """
    A deferred response has a maximum size, so that an outage of the store does not fill
    the memory.
    """
    begun = Begun(place)
    begun.session["a"] = 1
    place.store.late.add("create")
    piece = b"x" * (1024 * 1024)
    for _ in range(64):
        begun.request.write(piece)
    assert not begun.transport.disconnected
    begun.request.write(b"x")
    assert begun.transport.disconnected
    begun.leave()
    place.fire()
    assert loggedFailures.pop()["log_failure"].check(MemoryError)


def test_a_response_that_cannot_be_sent_is_aborted(
    place: Shop, loggedFailures: list[LogEvent]
) -> None:
    """
    A response that Twisted refuses to send is aborted, so that its client does not wait
    for ever.
    """
    begun = Begun(place, a=1)
    begun.session["a"] = 2
    begun.request.cookies.append(object())  # type: ignore[arg-type]
    begun.request.write(b"one")
    assert begun.transport.disconnected
    assert loggedFailures.pop()["log_failure"].check(AttributeError)


def test_without_a_cookie_nothing_is_stored(place: Shop) -> None:
    """
    Without a secure cookie, over plain HTTP, no session is created; this is logged
    once.
    """
    place.page.do = lambda session: (
        session.update(a=1) or gatherResults([session.save(), session.save()])
    )
    with logged() as events:
        answer = place.visitor().ask(headers={"X-Forwarded-Proto": "http"})
    assert answer.status == 200
    assert "set-cookie" not in answer.headers
    assert place.count() == 0
    assert len(textsOf(events)) == 1
