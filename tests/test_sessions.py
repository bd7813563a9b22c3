"""
The session of a request: what a resource does to it is there at the next one,
and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    fail,
    gatherResults,
    succeed,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from tsrv.sessions import (
    Changes,
    Cookies,
    Limits,
    MemorySessionStore,
    Quota,
    Session,
    SessionError,
    Sessions,
    SessionsUnavailable,
    keyOf,
)
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.wrapper import QueuingWrapper

from .exchanges import exchange
from .support import Trouble, resultOf
from .visitors import Do, Visitor
from .websupport import logged, textsOf


class Page(AsyncResource):
    """
    A page that does to the session what the test says.
    """

    isLeaf = True

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions
        self.do: Do = lambda session: None
        self.headers: list[tuple[bytes, bytes]] = []
        self.session: Session | None = None

    def render_GET(self, request: Request) -> Deferred[Response]:
        return Deferred.fromCoroutine(self._get(request))

    async def _get(self, request: Request) -> Response:
        session = self.session = await self._sessions.get(request)
        result = self.do(session)
        if isinstance(result, Deferred):
            result = await result
        body = json.dumps(result).encode()
        return Response(body, b"application/json", headers=self.headers)


class Bench:
    """
    A site with sessions, and its visitors.
    """

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.limits = Limits(idle=100, absolute=1000)
        self.store = MemorySessionStore(self.clock, self.limits)
        self.store.initialize()
        self.page = self.pageFor(self.store, **options)

    def pageFor(self, store: Any, **options: Any) -> Page:
        """
        @return: A page on another store.
        """
        cookies = Cookies(self.clock)
        return Page(Sessions(self.clock, store, cookies, limits=self.limits, **options))

    def visitor(self, page: Resource | None = None) -> Visitor:
        """
        @return: Somebody who was never here.
        """
        return Visitor(self.page if page is None else page)

    def count(self) -> Any:
        """
        @return: How many sessions are stored.
        """
        return resultOf(self.store.length()).value


@pytest.fixture
def bench() -> Iterator[Bench]:
    """
    A site; nothing is left of it.
    """
    bench = Bench()
    yield bench
    bench.store.close()
    assert bench.clock.getDelayedCalls() == []


def put(**members: Any) -> Do:
    """
    @return: What puts something into a session.
    """
    return lambda session: session.update(members)


def show(session: Session) -> Any:
    """
    What is in it.
    """
    return dict(session)


# What is there at the next request.


def test_what_was_put_into_it_is_there_the_next_time(bench: Bench) -> None:
    """
    That is what a session is.
    """
    visitor = bench.visitor()
    visitor.ask(put(name="Ada", roles=["a"]))
    assert visitor.cookie is not None
    assert visitor.says(show) == {"name": "Ada", "roles": ["a"]}
    assert bench.visitor().says(show) == {}


def test_what_is_changed_deep_inside_is_a_change_too(bench: Bench) -> None:
    """
    Nobody remembers to assign a list again that he has appended to.
    """
    visitor = bench.visitor()
    visitor.ask(put(a={"b": [1]}))
    visitor.ask(lambda session: session["a"]["b"].append(2))
    assert visitor.says(show) == {"a": {"b": [1, 2]}}
    visitor.ask(lambda session: session.pop("a"))
    assert visitor.says(show) == {}


def test_nothing_is_kept_for_who_has_stored_nothing(bench: Bench) -> None:
    """
    A row and a cookie for each crawler would be what fills the disk; and a cookie
    asks for consent.
    """
    for do in (show, lambda session: None, lambda s: s.update(a=1) or s.clear()):
        answer = bench.visitor().ask(do)
        assert "set-cookie" not in answer.headers
        assert "cache-control" not in answer.headers
        assert answer.headers["vary"] == "Cookie"
    assert bench.count() == 0


def test_a_cookie_is_sent_once(bench: Bench) -> None:
    """
    With the flags that keep it from others; and what is in the page is nobody
    else's.
    """
    visitor = bench.visitor()
    first = visitor.ask(put(a=1))
    flags = {flag.strip() for flag in visitor.attributes.split(";") if flag}
    assert flags == {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}
    assert first.headers["cache-control"] == "no-store"
    second = visitor.ask(put(a=2))
    assert "set-cookie" not in second.headers
    assert second.headers["cache-control"] == "no-store"
    bench.page.headers = [(b"Cache-Control", b"private, max-age=1")]
    third = visitor.ask(show)
    assert third.headers["cache-control"] == "private, max-age=1"


def test_what_is_stored_is_not_the_identifier(bench: Bench) -> None:
    """
    Nor is it in what a log or a page would show of it.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    assert visitor.cookie is not None
    ((key, _),) = resultOf(bench.store.all()).value
    assert key == keyOf(visitor.cookie)
    session = bench.page.session
    assert session is not None
    assert visitor.cookie not in repr(session) + json.dumps(session.public())
    shown = visitor.says(lambda session: session.public())
    assert shown["data"] == {"a": 1}
    assert shown["isNew"] is False
    assert shown["expires"] - shown["created"] == 100


def test_an_identifier_that_nobody_has_given_out_is_not_taken(bench: Bench) -> None:
    """
    Else an attacker could give a visitor one that he knows.
    """
    visitor = bench.visitor()
    visitor.cookie = "A" * 43
    assert "set-cookie" not in visitor.ask(show).headers
    visitor.ask(put(a=1))
    assert visitor.cookie not in (None, "A" * 43)
    assert bench.count() == 1


def test_a_session_is_asked_for_as_often_as_one_likes(bench: Bench) -> None:
    """
    Several parts of a page may need it; it is one, and is loaded once.
    """
    asked: list[str] = []
    get = bench.store.get

    def counted(identifier: str) -> Any:
        asked.append(identifier)
        return get(identifier)

    bench.store.get = counted  # type: ignore[method-assign]
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    found: list[Session] = []
    sessions = bench.page._sessions

    class Twice(AsyncResource):
        """
        A page of two parts.
        """

        isLeaf = True

        async def render_GET(self, request: Request) -> Response:
            for _ in range(2):
                found.append(await sessions.get(request))
            return text("")

    visitor.page = Twice()
    visitor.ask()
    assert found[0] is found[1]
    assert len(asked) == 1


# Limits.


def test_reading_often_is_written_seldom(bench: Bench) -> None:
    """
    A write for each request would be what the disk is busy with.
    """
    touched: list[str] = []
    touch = bench.store.touch

    def counted(identifier: str) -> Any:
        touched.append(identifier)
        return touch(identifier)

    bench.store.touch = counted  # type: ignore[method-assign]
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    for _ in range(100):
        bench.clock.advance(1)
        assert visitor.says(show) == {"a": 1}
    assert len(touched) == 20
    bench.clock.advance(101)
    assert visitor.says(show) == {}


def test_a_use_that_is_not_counted_is_no_reason_to_fail(bench: Bench) -> None:
    """
    The page is there, and so is the session.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    bench.clock.advance(50)
    bench.store.touch = lambda identifier: fail(SessionsUnavailable("not now"))  # type: ignore[method-assign]
    assert visitor.says(show) == {"a": 1}


def test_who_leaves_while_it_is_touched_is_out(bench: Bench) -> None:
    """
    Somebody has logged out elsewhere in between.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    bench.clock.advance(50)
    bench.store.touch = lambda identifier: succeed(False)  # type: ignore[method-assign]
    visitor.ask(show)
    session = bench.page.session
    assert session is not None
    assert session.isNew


def test_new_visitors_are_bounded() -> None:
    """
    Each costs a row; who has one goes on.
    """
    bench = Bench(quota=Quota(Clock(), 2, 100, 60.0))
    first = bench.visitor()
    first.ask(put(a=1))
    bench.visitor().ask(put(a=1))
    refused = bench.visitor().ask(put(a=1))
    assert refused.status == 429
    assert "retry-after" in refused.headers
    assert "set-cookie" not in refused.headers
    assert bench.visitor().ask(show).status == 200
    assert first.ask(put(a=2)).status == 200
    assert bench.count() == 2
    bench.store.close()


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_what_json_cannot_say_is_an_error(
    bench: Bench, value: object, loggedFailures: list[LogEvent]
) -> None:
    """
    And nothing is stored of it, whether it is new or a change.
    """
    visitor = bench.visitor()
    assert visitor.ask(put(a=value)).status == 500
    assert bench.count() == 0
    visitor.ask(put(a=1))
    assert visitor.ask(put(a=value)).status == 500
    assert {type(event["log_failure"].value) for event in loggedFailures} == {
        SessionError
    }
    loggedFailures.clear()
    assert visitor.says(show) == {"a": 1}


def test_a_name_is_a_string(bench: Bench) -> None:
    """
    JSON would make one of everything else, and it would not be found again.
    """

    def number(session: Any) -> None:
        with pytest.raises(TypeError):
            session[1] = 1

    bench.visitor().ask(number)


# Others at the same time.


def test_requests_at_the_same_time_lose_nothing_of_each_other(bench: Bench) -> None:
    """
    A slow one must not undo what a fast one did meanwhile.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1, b=1, c=1))
    waits: Deferred[None] = Deferred()

    def slow(session: Session) -> Any:
        session["a"] = 2
        del session["c"]
        return waits

    begun = visitor.begin(slow)
    visitor.ask(put(b=2, d=1))
    waits.callback(None)
    assert visitor.end(*begun).status == 200
    assert visitor.says(show) == {"a": 2, "b": 2, "d": 1}


def test_counters_lose_nothing(bench: Bench) -> None:
    """
    32 at a time who have all read the same number.
    """
    visitor = bench.visitor()
    visitor.ask(put(visits=0))
    waits: list[Deferred[None]] = []

    def count(session: Session) -> Any:
        before = session["visits"]
        assert before == 0
        waits.append(Deferred())
        return waits[-1].addCallback(lambda _: session.add("visits"))

    begun = [visitor.begin(count) for _ in range(32)]
    for wait in waits:
        wait.callback(None)
    told = [json.loads(visitor.end(*each).body) for each in begun]
    assert sorted(told) == list(range(1, 33))
    assert visitor.says(show) == {"visits": 32}


def test_to_count_saves_what_was_changed_before(bench: Bench) -> None:
    """
    In the order in which it was done.
    """

    def both(session: Session) -> Any:
        session["a"] = 1
        return session.add("visits", 2.5)

    visitor = bench.visitor()
    assert visitor.says(both) == 2.5
    assert visitor.says(both) == 5
    assert visitor.says(show) == {"a": 1, "visits": 5}

    def assigned(session: Session) -> Any:
        session["visits"] = "none"
        return session.add("visits")

    assert visitor.says(assigned) == 1
    assert visitor.says(show) == {"a": 1, "visits": 1}


@pytest.mark.parametrize("how", ["change", "count"])
def test_a_session_that_was_ended_meanwhile_stays_so(bench: Bench, how: str) -> None:
    """
    Who has logged out must not be logged in again by a page that was slow.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    waits: Deferred[None] = Deferred()

    def slow(session: Session) -> Any:
        if how == "change":
            session["a"] = 2
            return waits
        return waits.addCallback(lambda _: session.add("a"))

    begun = visitor.begin(slow)
    assert visitor.cookie is not None
    resultOf(bench.store.destroy(visitor.cookie))
    waits.callback(None)
    answer = visitor.end(*begun)
    assert answer.status == 200
    # The browser may have another one by now, which is not to be taken away.
    assert "set-cookie" not in answer.headers
    assert bench.count() == 0


# Another identifier, and none.


def test_who_logs_in_gets_another_identifier(bench: Bench) -> None:
    """
    Who had known the one before knows nothing any more.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    old = visitor.cookie

    def login(session: Session) -> None:
        session.regenerate()
        session["name"] = "Ada"

    visitor.ask(login)
    assert visitor.cookie != old
    assert visitor.says(show) == {"a": 1, "name": "Ada"}
    attacker = bench.visitor()
    attacker.cookie = old
    assert attacker.says(show) == {}
    assert bench.count() == 1


def test_who_logs_out_leaves_nothing(bench: Bench) -> None:
    """
    The cookie, if somebody has kept it, is of no use.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    old = visitor.cookie
    answer = visitor.ask(lambda session: session.destroy())
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert bench.count() == 0
    visitor.cookie = old
    assert visitor.says(show) == {}
    assert bench.visitor().ask(lambda session: session.destroy()).status == 200


def test_a_new_one_may_begin_where_one_ends(bench: Bench) -> None:
    """
    To say goodbye on the next page, for instance.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    old = visitor.cookie

    def change(session: Session) -> None:
        session.destroy()
        session["said"] = "goodbye"

    visitor.ask(change)
    assert visitor.cookie not in (None, old)
    assert visitor.says(show) == {"said": "goodbye"}
    assert bench.count() == 1


def test_a_token_is_of_one_session(bench: Bench) -> None:
    """
    What somebody gets for himself does not open the session of another, and it is
    the same for all requests that ask at a time; it is nothing that belongs to the
    page.
    """
    one, other = bench.visitor(), bench.visitor()
    assert one.says(lambda session: session.knownToken) is None
    assert bench.count() == 0
    token = one.says(lambda session: session.token)
    theirs = other.says(lambda session: session.token)
    assert token != theirs
    for _ in range(2):
        assert one.says(lambda session: session.token) == token
    assert one.says(lambda session: session.knownToken) == token
    assert one.says(lambda session: [len(session), list(session)]) == [0, []]
    assert one.cookie is not None
    assert one.cookie not in token
    one.ask(lambda session: session.regenerate())
    assert one.says(lambda session: session.token) != token


# Requests that overtake each other.


def test_a_slow_request_brings_nobody_back(bench: Bench) -> None:
    """
    Who has logged out while it was being rendered is not logged in by it, though
    it gives the session another identifier.
    """
    visitor = bench.visitor()
    visitor.ask(put(name="Ada"))
    waits: Deferred[None] = Deferred()

    def slow(session: Session) -> Any:
        session.regenerate()
        return waits

    begun = visitor.begin(slow)
    visitor.ask(lambda session: session.destroy())
    waits.callback(None)
    answer = visitor.end(*begun)
    assert "set-cookie" not in answer.headers
    assert bench.count() == 0


def test_who_logs_in_while_he_is_logged_out_has_only_what_is_new(
    bench: Bench,
) -> None:
    """
    Whatever was in the session before is gone with it.
    """
    visitor = bench.visitor()
    visitor.ask(put(before="old"))
    waits: Deferred[None] = Deferred()

    def slow(session: Session) -> Any:
        session.regenerate()
        session["name"] = "Ada"
        return waits

    begun = visitor.begin(slow)
    assert visitor.cookie is not None
    resultOf(bench.store.destroy(visitor.cookie))
    waits.callback(None)
    visitor.end(*begun)
    assert visitor.says(show) == {"name": "Ada"}
    assert bench.count() == 1


def test_another_identifier_loses_no_count(bench: Bench) -> None:
    """
    What others have added since the session was loaded is in the new one.
    """
    visitor = bench.visitor()
    visitor.ask(put(n=1))
    waits: Deferred[None] = Deferred()

    def slow(session: Session) -> Any:
        session.regenerate()
        return waits

    begun = visitor.begin(slow)
    for _ in range(2):
        visitor.ask(lambda session: session.add("n"))
    waits.callback(None)
    visitor.end(*begun)
    assert visitor.says(show) == {"n": 3}


def test_of_many_who_renew_one_session_one_does(bench: Bench) -> None:
    """
    To log in ten times at once with one cookie makes one session, and not ten that
    nobody has admitted.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    waits: list[Deferred[None]] = []

    def slow(session: Session) -> Any:
        session.regenerate()
        waits.append(Deferred())
        return waits[-1]

    begun = [visitor.begin(slow) for _ in range(10)]
    for wait in waits:
        wait.callback(None)
    for each in begun:
        visitor.end(*each)
    assert bench.count() == 1


def test_a_late_request_does_not_take_the_new_cookie_away(bench: Bench) -> None:
    """
    A page has many parts, which are asked for with the cookie of before.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    old = visitor.cookie
    visitor.ask(lambda session: session.regenerate())
    new, visitor.cookie = visitor.cookie, old
    for do in (show, put(b=1), lambda session: session.add("n")):
        assert "set-cookie" not in visitor.ask(do).headers
    assert bench.count() == 1
    visitor.cookie = new
    assert visitor.says(show) == {"a": 1}
    # Some day it is an identifier like any other.
    bench.clock.advance(60)
    visitor.cookie = old
    assert "set-cookie" in visitor.ask(put(b=1)).headers


# What goes wrong half way.


@pytest.mark.parametrize("what", ["renew", "destroy"])
def test_what_failed_is_tried_again_and_not_forgotten(bench: Bench, what: str) -> None:
    """
    Else new rights would be stored under the old identifier, or who has been told
    that he is out would not be.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))
    old = visitor.cookie
    works = getattr(bench.store, what)
    setattr(bench.store, what, lambda *_: fail(SessionsUnavailable("not now")))

    def change(session: Session) -> Any:
        if what == "renew":
            session.regenerate()
            session["role"] = "root"
        else:
            session.destroy()

        def again(failure: Failure) -> None:
            failure.trap(SessionsUnavailable)
            setattr(bench.store, what, works)

        return session.save().addErrback(again)

    assert visitor.ask(change).status == 200
    kept = bench.visitor()
    kept.cookie = old
    assert kept.says(show) == {}
    assert visitor.says(show) == ({"a": 1, "role": "root"} if what == "renew" else {})


def test_nothing_is_lost_while_something_is_being_saved(bench: Bench) -> None:
    """
    Neither what is assigned meanwhile nor what is changed deep inside of what was
    there before.
    """

    def change(session: Session) -> Any:
        cart = session.setdefault("cart", [])
        counting = session.add("n")
        session["b"] = 1
        cart.append("tea")
        return counting.addCallback(lambda _: cart.append("milk"))

    visitor = bench.visitor()
    for _ in range(2):
        visitor.ask(change)
    assert visitor.says(show) == {"cart": ["tea", "milk"] * 2, "n": 2, "b": 1}


def test_what_others_did_is_seen_after_saving(bench: Bench) -> None:
    """
    But for what was changed here since.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1, b=1, c=1, d={"x": 1}))
    seen: list[Any] = []

    def change(session: Session) -> Any:
        session["a"] = 2
        other = bench.visitor()
        other.cookie = visitor.cookie

        def elsewhere(theirs: Session) -> None:
            theirs["b"] = 2
            theirs["e"] = 1
            theirs["d"]["x"] = 2
            del theirs["c"]

        before = bench.page.do
        other.ask(elsewhere)
        bench.page.do = before
        return session.save().addCallback(lambda _: seen.append(dict(session)))

    visitor.ask(change)
    assert seen == [{"a": 2, "b": 2, "d": {"x": 2}, "e": 1}]


@pytest.mark.parametrize("stored", [True, False])
def test_a_count_that_is_too_large_is_told_in_the_same_way(
    bench: Bench, stored: bool, loggedFailures: list[LogEvent]
) -> None:
    """
    Whether the store adds, or whoever makes the session.
    """
    visitor = bench.visitor()
    if stored:
        visitor.ask(put(n=10**400))

    def count(session: Session) -> Any:
        if not stored:
            session["n"] = 10**400
        return session.add("n", 0.5)

    assert visitor.ask(count).status == 500
    assert loggedFailures.pop()["log_failure"].check(SessionError)


def test_two_counts_at_once_make_one_session(bench: Bench) -> None:
    """
    What is done for one request is done in order.
    """

    def both(session: Session) -> Any:
        return gatherResults([session.add("a"), session.add("b"), session.save()])

    visitor = bench.visitor()
    assert visitor.says(both) == [1, 1, None]
    assert bench.count() == 1
    assert visitor.says(both) == [2, 2, None]


def test_each_who_asks_for_a_session_may_give_up_alone(bench: Bench) -> None:
    """
    And when nobody waits any more, nothing is looked for.
    """
    looking: list[Deferred[Any]] = []
    given: list[object] = []

    def look(identifier: str) -> Deferred[Any]:
        looking.append(Deferred(given.append))
        return looking[-1]

    bench.store.get = look  # type: ignore[method-assign]
    sessions = bench.page._sessions
    answers: list[Deferred[Session]] = []

    class Two(AsyncResource):
        """
        A page of two parts.
        """

        isLeaf = True

        def render_GET(self, request: Request) -> Deferred[Response]:
            answers.extend(sessions.get(request) for _ in range(2))
            return Deferred()

    for cancelled in (1, 2):
        answers.clear()
        given.clear()
        visitor = bench.visitor(Two())
        visitor.cookie = "A" * 43
        visitor.begin()
        results = [resultOf(answer) for answer in answers]
        for answer in answers[:cancelled]:
            answer.cancel()
        assert isinstance(results[0].error, CancelledError)
        if cancelled == 1:
            looking[-1].callback(None)
            assert isinstance(results[1].value, Session)
            assert given == []
        else:
            assert len(given) == 1


def test_a_waiter_may_be_given_up_by_another(bench: Bench) -> None:
    """
    From its own callback, too.
    """
    sessions = bench.page._sessions
    for how in ("found", "failed"):
        looking: Deferred[Any] = Deferred()
        bench.store.get = lambda identifier, d=looking: d  # type: ignore[method-assign,misc]
        answers: list[Deferred[Session]] = []
        results: list[Any] = []

        class Three(AsyncResource):
            """
            A page of three parts.
            """

            isLeaf = True

            def render_GET(
                self,
                request: Request,
                answers: list[Deferred[Session]] = answers,
                results: list[Any] = results,
            ) -> Deferred[Response]:
                answers.extend(sessions.get(request) for _ in range(3))

                def giveUp(result: Any) -> None:
                    answers[1].cancel()

                answers[0].addBoth(giveUp)
                results.extend(resultOf(answer) for answer in answers)
                return Deferred()

        visitor = bench.visitor(Three())
        visitor.cookie = "A" * 43
        visitor.begin()
        if how == "found":
            looking.callback(None)
            assert isinstance(results[2].value, Session)
        else:
            looking.errback(SessionsUnavailable("not now"))
            assert isinstance(results[2].error, SessionsUnavailable)
        assert isinstance(results[1].error, CancelledError)


def test_only_so_many_identifiers_are_remembered(bench: Bench) -> None:
    """
    Of those that were given up a moment ago, the latest.
    """
    sessions = bench.page._sessions
    for number in range(10_001):
        sessions.remember(str(number))
    assert not sessions.wasRenewed("0")
    assert sessions.wasRenewed("1")
    assert sessions.wasRenewed("10000")
    bench.clock.advance(60)
    assert not sessions.wasRenewed("10000")


def held(bench: Bench, *names: str) -> list[Deferred[None]]:
    """
    Have the store answer when the test says so.

    @param names: What is to be answered then.
    @return: What is to be fired, in order.
    """
    waiting: list[Deferred[None]] = []

    def later(works: Any) -> Any:
        def wait(*arguments: Any) -> Any:
            waiting.append(Deferred())
            return waiting[-1].addCallback(lambda _: works(*arguments))

        return wait

    for name in names:
        setattr(bench.store, name, later(getattr(bench.store, name)))
    return waiting


def asked(bench: Bench, identifier: str | None = None) -> tuple[Any, Any]:
    """
    @return: A request of its own, and its session.
    """
    headers = []
    if identifier is not None:
        headers.append(("Cookie", f"__Host-session={identifier}"))
    request = exchange(*headers, secure=True)
    return request, resultOf(bench.page._sessions.get(request)).value


def test_what_is_changed_while_it_is_saved_is_saved_the_next_time(
    bench: Bench,
) -> None:
    """
    What was sent to the store and what is there may differ by then.
    """
    visitor = bench.visitor()
    visitor.ask(put(cart=[], a=1))
    _, session = asked(bench, visitor.cookie)
    waiting = held(bench, "set")
    cart = session["cart"]
    counting = resultOf(session.add("n"))
    session["a"] = 2
    cart.append("tea")
    waiting[0].callback(None)
    assert counting.value == 1
    assert dict(session) == {"cart": ["tea"], "a": 2, "n": 1}
    saving = resultOf(session.save())
    session["a"] = 3
    waiting[1].callback(None)
    assert saving.value is None
    again = resultOf(session.save())
    waiting[2].callback(None)
    assert again.value is None
    assert visitor.says(show) == {"cart": ["tea"], "a": 3, "n": 1}


def test_a_new_session_has_one_token(bench: Bench) -> None:
    """
    However often it is asked for.
    """
    visitor = bench.visitor()
    both = visitor.says(lambda session: [session.token, session.token])
    assert both[0] == both[1] == visitor.says(lambda session: session.token)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("how", ["new", "regenerate"])
def test_who_leaves_while_he_gets_a_cookie(bench: Bench, how: str, when: str) -> None:
    """
    Nobody else is to find what was stored for him.
    """
    visitor = bench.visitor()
    if how == "regenerate":
        visitor.ask(put(a=1))
    request, session = asked(bench, visitor.cookie)
    waiting = held(bench, "create", "renew")
    if how == "regenerate":
        session.regenerate()
    session["a"] = 2
    if when == "before":
        request.connectionLost(Failure(ConnectionDone()))
        assert resultOf(session.save()).value is None
        assert waiting == []
        assert visitor.says(show) == ({"a": 1} if how == "regenerate" else {})
    else:
        saving = resultOf(session.save())
        request.connectionLost(Failure(ConnectionDone()))
        waiting[0].callback(None)
        assert saving.value is None
        assert bench.count() == 0


# A store that answers later, or not.


def test_who_comes_too_early_waits(bench: Bench) -> None:
    """
    As with every other module; and then gets his own session.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))

    class Late(MemorySessionStore):
        """
        A store that takes a while.
        """

        def initialize(self) -> Deferred[None]:
            return started

    started: Deferred[None] = Deferred()
    late = Late(bench.clock, bench.limits)
    late.__dict__.update(
        {
            name: value
            for name, value in bench.store.__dict__.items()
            if name not in ("initialized", "_sweep")
        }
    )
    wrapper = QueuingWrapper(late, bench.clock)
    visitor.page = bench.pageFor(wrapper.proxy)
    begun = visitor.begin(show)
    wrapper.initialize()
    MemorySessionStore.initialize(late)
    started.callback(None)
    assert json.loads(visitor.end(*begun).body) == {"a": 1}
    resultOf(wrapper.close())


@pytest.mark.parametrize("what", ["get", "set", "create", "destroy", "add"])
def test_a_store_that_cannot_be_asked_is_503(bench: Bench, what: str) -> None:
    """
    With nothing of the page that was made of it; and no cookie is lost.
    """
    visitor = bench.visitor()
    if what != "create":
        visitor.ask(put(a=1))
    cookie = visitor.cookie

    def refuse(*arguments: Any, **options: Any) -> Any:
        return fail(SessionsUnavailable("not now", 2))

    setattr(bench.store, "set" if what == "add" else what, refuse)
    do: Mapping[str, Do] = {
        "destroy": lambda session: session.destroy(),
        "add": lambda session: session.add("a"),
    }
    bench.page.headers = [(b"ETag", b'"1"')]
    answer = visitor.ask(do.get(what, put(a=2)))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "2"
    assert "set-cookie" not in answer.headers
    assert "etag" not in answer.headers
    assert visitor.cookie == cookie


def test_who_asked_for_it_meanwhile_fails_too(bench: Bench) -> None:
    """
    And may ask again.
    """
    answers = [Deferred[Any](), Deferred[Any]()]
    waiting = list(answers)
    bench.store.get = lambda identifier: waiting.pop(0)  # type: ignore[method-assign]
    sessions = bench.page._sessions
    results: list[Any] = []

    class Both(AsyncResource):
        """
        A page of two parts.
        """

        isLeaf = True

        def render_GET(self, request: Request) -> Deferred[Response]:
            results.extend(resultOf(sessions.get(request)) for _ in range(3))
            return Deferred()

    visitor = bench.visitor(Both())
    visitor.cookie = "A" * 43
    visitor.begin()
    answers[0].errback(SessionsUnavailable("not now"))
    assert [type(each.error) for each in results] == [SessionsUnavailable] * 3


# Resources that know nothing of tsrv.


class Plain(Resource):
    """
    A resource as anybody writes one.
    """

    isLeaf = True

    def __init__(self, sessions: Sessions, do: Callable[[Request, Session], Any]):
        super().__init__()
        self._sessions = sessions
        self._do = do

    def render_GET(self, request: Request) -> int:
        found = self._sessions.get(request)
        found.addCallback(lambda session: self._do(request, session))
        return NOT_DONE_YET


def test_a_plain_resource_has_it_too(bench: Bench) -> None:
    """
    What it writes is held until it has been saved, and comes in order.
    """
    saving: list[Deferred[Any]] = []
    create = bench.store.create

    def slow(*arguments: Any) -> Any:
        saving.append(Deferred())
        return saving[-1].addCallback(lambda _: create(*arguments))

    bench.store.create = slow  # type: ignore[method-assign,assignment]

    def do(request: Request, session: Session) -> None:
        session["a"] = 1
        request.write(b"one ")
        request.write(b"two ")
        request.write(b"three")
        request.finish()

    visitor = bench.visitor(Plain(bench.page._sessions, do))
    stub, asked = visitor.begin()
    assert asked.pending
    saving[0].callback(None)
    answer = visitor.end(stub, asked)
    assert answer.body == b"one two three"
    assert visitor.cookie is not None
    assert bench.count() == 1


def test_what_changes_after_the_response_has_begun_is_saved_too(
    bench: Bench,
) -> None:
    """
    Before its last byte; only a cookie can no longer be set.
    """
    visitor = bench.visitor()
    visitor.ask(put(a=1))

    def do(request: Request, session: Session) -> None:
        session["a"] = 2
        request.write(b"begun ")
        session["a"] = 3
        request.write(b"ended")
        session["b"] = 4
        request.finish()

    visitor.page = Plain(bench.page._sessions, do)
    assert visitor.ask().body == b"begun ended"
    visitor.page = bench.page
    assert visitor.says(show) == {"a": 3, "b": 4}


@pytest.mark.parametrize("how", ["new", "regenerate"])
def test_a_cookie_that_is_too_late_ends_the_response(
    bench: Bench, how: str, loggedFailures: list[LogEvent]
) -> None:
    """
    Nobody is to believe that it was stored.
    """
    visitor = bench.visitor()
    if how == "regenerate":
        visitor.ask(put(a=1))

    def do(request: Request, session: Session) -> None:
        request.write(b"begun ")
        if how == "regenerate":
            session.regenerate()
        session["a"] = 2
        request.finish()

    page = bench.page
    visitor.page = Plain(page._sessions, do)
    stub: Any
    stub, asked = visitor.begin()
    stub.flush()
    broken = resultOf(stub.content(asked.value))
    assert "ResponseFailed" in str(type(broken.error))
    (event,) = loggedFailures
    assert event["log_failure"].check(SessionError)
    loggedFailures.clear()
    visitor.page = page
    assert visitor.says(show) == ({"a": 1} if how == "regenerate" else {})


def test_what_was_written_is_not_mixed_with_an_error(
    bench: Bench, loggedFailures: list[LogEvent]
) -> None:
    """
    The bytes behind what was announced would be taken for the next response.
    """
    saving: list[Deferred[Any]] = []

    def slow(*arguments: Any) -> Any:
        saving.append(Deferred())
        return saving[-1]

    bench.store.create = slow  # type: ignore[method-assign,assignment]
    sessions = bench.page._sessions

    class Partly(AsyncResource):
        """
        A page that fails half way.
        """

        isLeaf = True

        async def render_GET(self, request: Request) -> Response:
            session = await sessions.get(request)
            session["a"] = 1
            with pytest.raises(TypeError):
                request.write("text")
            request.write(b"PARTIAL")
            raise Trouble("half way")

    visitor = bench.visitor(Partly())
    _, asked = visitor.begin()
    assert "ResponseNeverReceived" in str(type(asked.error))
    (event,) = loggedFailures
    assert event["log_failure"].check(Trouble)
    loggedFailures.clear()


def test_where_no_cookie_can_be_set_nothing_is_stored(bench: Bench) -> None:
    """
    Nobody would ever find it again; who runs the server is told what to do.
    """
    visitor = bench.visitor()
    stub: Any = StubTreq(bench.page)
    bench.page.do = lambda session: (
        session.update(a=1) or gatherResults([session.save(), session.save()])
    )
    with logged() as events:
        asked = resultOf(stub.get("http://test/"))
        stub.flush()
    assert asked.value.code == 200
    assert not asked.value.headers.hasHeader("Set-Cookie")
    assert bench.count() == 0
    assert len(textsOf(events)) == 1
    assert visitor.cookie is None


def test_changes_say_what_was_done() -> None:
    """
    One that does nothing is none.
    """
    assert not Changes()
    assert Changes({"a": None})
    assert Changes(added={"a": 0})
    assert Changes(removed=frozenset("a"))
