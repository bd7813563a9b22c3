"""
The pages of visitors: visits, login and logout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from twisted.internet.task import Clock

from tsrv import QueuingWrapper, Unavailable
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.sessions import MemorySessionStore, Quota

from .visitors import Place, Visitor
from .websupport import Answer, Data, Teller

JSON = {"Content-Type": "application/json", "Origin": "https://test"}
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Sec-Fetch-Site": "same-origin",
    **PAGE,
}


@pytest.fixture
def place() -> Iterator[Place]:
    """
    The demo site, in memory.
    """
    place = Place(
        lambda sessions: makeRoot(Teller(), sessions=sessions), knownErrors=KNOWN_ERRORS
    )
    yield place
    place.close()


def membersOf(answer: Answer) -> Any:
    """
    @return: The JSON of a response.
    """
    assert answer.status == 200, answer
    return json.loads(answer.body)


def login(visitor: Visitor, name: str = "Ada", **headers: str) -> Answer:
    """
    Log in as a program does.
    """
    data = json.dumps({"name": name}).encode()
    return visitor.ask("/login", method="POST", headers={**JSON, **headers}, data=data)


def nameOf(visitor: Visitor) -> Any:
    """
    @return: The name that the site has stored.
    """
    return membersOf(visitor.ask("/me"))["name"]


def test_visits_are_counted_for_each_visitor(place: Place) -> None:
    """
    Each visitor sees only its own visits.
    """
    one, other = place.visitor(), place.visitor()
    counts = [membersOf(one.ask("/visits"))["visits"] for _ in range(3)]
    assert counts == [1, 2, 3]
    assert membersOf(other.ask("/visits")) == {"visits": 1}
    assert place.count() == 2


def test_a_login_changes_the_identifier_and_keeps_the_visits(place: Place) -> None:
    """
    After a login, the earlier cookie does not work.
    """
    visitor = place.visitor()
    visitor.ask("/visits")
    before = visitor.cookie
    assert membersOf(login(visitor)) == {"name": "Ada"}
    assert visitor.cookie not in (None, before)
    me = membersOf(visitor.ask("/me"))
    assert (me["name"], me["visits"]) == ("Ada", 1)
    assert nameOf(place.visitor(before)) is None
    assert place.count() == 1


def test_a_logout_ends_the_session(place: Place) -> None:
    """
    After the logout, a kept cookie does not work.
    """
    visitor = place.visitor()
    login(visitor)
    kept = visitor.cookie
    answer = visitor.ask("/logout", method="POST", headers={"Origin": "https://test"})
    assert membersOf(answer) == {"name": None}
    assert visitor.cookie is None
    assert nameOf(place.visitor(kept)) is None
    assert place.count() == 0


def test_a_browser_gets_pages(place: Place) -> None:
    """
    Redirects lead a browser through login and logout, and a name is shown as text.
    """
    visitor = place.visitor()
    first = visitor.ask("/me", headers=PAGE)
    assert (first.status, first.headers["location"]) == (303, "/login")
    form = visitor.ask("/login", headers=PAGE)
    assert b'<form method="post" action="/login">' in form.body
    assert "set-cookie" not in form.headers
    data = urlencode({"name": "<b>Ada L", "x": "y"}).encode()
    answer = visitor.ask("/login", method="POST", headers=FORM, data=data)
    assert (answer.status, answer.headers["location"]) == (303, "/me")
    page = visitor.ask("/me", headers=PAGE)
    assert b"<h1>Hello, &lt;b&gt;Ada L</h1>" in page.body
    assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert page.headers["cache-control"] == "no-store"
    answer = visitor.ask("/logout", method="POST", headers=FORM)
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert visitor.ask("/me", headers=PAGE).status == 303


def test_pages_link_to_each_other(place: Place) -> None:
    """
    Every page of the site can be reached from each page, without links to missing
    pages. The login page says that there is no password.
    """
    visitor = place.visitor()
    login(visitor)
    for isSeparate in (True, False):
        if not isSeparate:
            place.site.resource.putChild(b"", Data(b"status", "text/html"))
        for path in ("/visits", "/me", "/login"):
            page = visitor.ask(path, headers=PAGE)
            assert (page.status, page.headers["vary"][:6]) == (200, "Accept")
            links = set(re.findall(r'<a href="([^"]+)"', page.body.decode()))
            assert links == {"/say", "/visits", "/me", "/login"} | (
                set() if isSeparate else {"/"}
            )
            assert f'<a href="{path}" aria-current="page">' in page.body.decode()
            assert ("without passwords" in page.body.decode()) == (path == "/login")


def test_visits_are_a_page_for_browsers(place: Place) -> None:
    """
    A visit by a browser counts like a visit by a program.
    """
    visitor = place.visitor()
    visitor.ask("/visits")
    page = visitor.ask("/visits", headers=PAGE)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b'<output id="visits">2</output>' in page.body


def test_a_browser_gets_the_form_again(place: Place) -> None:
    """
    After an invalid name, the form shows the reason, and does not repeat the name.
    """
    data = urlencode({"name": "\u2800secret"}).encode()
    answer = place.visitor().ask("/login", method="POST", headers=FORM, data=data)
    page = answer.body.decode()
    assert (answer.status, answer.headers["vary"][:6]) == (400, "Accept")
    assert '<form method="post" action="/login">' in page
    assert "Expected at least one visible character" in page
    assert "secret" not in page
    assert place.count() == 0


@pytest.mark.parametrize("accept", ["/", "text", ""])
def test_a_client_that_prefers_no_page_gets_json(place: Place, accept: str) -> None:
    """
    A client that does not prefer a page gets JSON. An unreadable Accept header does not
    fail the request.
    """
    answer = place.visitor().ask("/me", headers={"Accept": accept})
    assert membersOf(answer) == {"name": None, "visits": 0, "token": None}
    assert answer.headers["vary"] == "Accept, Cookie"


@pytest.mark.parametrize("isLoggedOut", [True, False])
def test_a_browser_that_missed_its_new_cookie_may_log_in(
    place: Place, isLoggedOut: bool
) -> None:
    """
    A browser that lost the response to its login may log in with the earlier cookie.
    """
    visitor = place.visitor()
    login(visitor)
    kept = visitor.cookie
    if isLoggedOut:
        visitor.ask("/logout", method="POST", headers={"Origin": "https://test"})
    else:
        login(visitor, "Lovelace")
    visitor.cookie = kept
    login(visitor, "Ada again")
    assert visitor.cookie not in (None, kept)
    assert nameOf(visitor) == "Ada again"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://test"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
        {"X-CSRF-Token": "wrong"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_another_site_logs_nobody_in_or_out(
    place: Place, path: str, headers: dict[str, str]
) -> None:
    """
    A post from another site is refused.
    """
    visitor = place.visitor()
    login(visitor)
    cookie = visitor.cookie
    sent = {"Content-Type": "application/json", **headers}
    answer = visitor.ask(path, method="POST", headers=sent, data=b'{"name": "Eve"}')
    assert answer.status == 403
    assert visitor.cookie == cookie
    assert nameOf(visitor) == "Ada"


def test_a_login_without_a_cookie_is_refused(place: Place) -> None:
    """
    If the cookie cannot be set, the login fails and says so.
    """
    plain = {**JSON, "X-Forwarded-Proto": "http", "Origin": "http://test"}
    data = b'{"name": "Ada"}'
    answer = place.visitor().ask("/login", method="POST", headers=plain, data=data)
    assert (answer.status, b"needs HTTPS" in answer.body) == (403, True)
    assert place.count() == 0


def test_a_program_may_send_the_token(place: Place) -> None:
    """
    A program that sends no Origin gets a token from /login or /me.
    """
    visitor = place.visitor()
    token = membersOf(visitor.ask("/login"))["token"]
    sent = {"Content-Type": "application/json", "X-CSRF-Token": token}
    answer = visitor.ask("/login", method="POST", headers=sent, data=b'{"name": "Ada"}')
    assert membersOf(answer) == {"name": "Ada"}
    changed = membersOf(visitor.ask("/me"))["token"]
    assert changed not in (None, token)
    sent = {"X-CSRF-Token": changed}
    answer = visitor.ask("/logout", method="POST", headers=sent)
    assert membersOf(answer) == {"name": None}


@pytest.mark.parametrize(
    ("headers", "data", "reason"),
    [
        (JSON, b"{}", {"pointer": "/name", "detail": "is missing"}),
        (JSON, b'{"name": ""}', "Expected string of length >= 1"),
        (JSON, b'{"name": " "}', "Expected at least one visible character"),
        (JSON, b'{"name": "a\\u0000"}', "Expected at least one visible character"),
        (JSON, b'{"name": "' + b"a" * 101 + b'"}', "Expected string of length <="),
        (JSON, b'{"name": 1}', "/name"),
        (JSON, b"[]", "Invalid name"),
        (JSON, b"secret", "The body is not JSON"),
        (FORM, b"", "is missing"),
        (FORM, b"name=", "Expected string of length >= 1"),
        (FORM, b"name=%E2%81%A6", "Expected at least one visible character"),
        (FORM, b"a&" * 2000, "is missing"),
        (FORM, b"name=%FF", "is not UTF-8"),
    ],
    ids=range(13),
)
def test_an_invalid_name_is_refused(
    place: Place, headers: dict[str, str], data: bytes, reason: object
) -> None:
    """
    The 400 names the reason, and does not repeat the name; nothing is stored.
    """
    sent = {**headers, "Accept": "application/json"}
    answer = place.visitor().ask("/login", method="POST", headers=sent, data=data)
    problem = json.loads(answer.body)
    assert answer.status == 400
    if isinstance(reason, str):
        assert reason in answer.body.decode()
    else:
        assert problem["errors"] == [reason]
    assert "secret" not in answer.body.decode()
    assert place.count() == 0


def test_a_body_of_another_type_is_refused(place: Place) -> None:
    """
    A name is accepted as a form or as JSON, and in no other type.
    """
    sent = {"Content-Type": "text/plain", "Origin": "https://test"}
    answer = place.visitor().ask("/login", method="POST", headers=sent, data=b"Ada")
    assert (answer.status, answer.headers["accept-post"]) == (
        415,
        "application/json, application/x-www-form-urlencoded",
    )


def test_a_visit_waits_once_for_a_store_that_is_down() -> None:
    """
    A visit waits for the store only once: after the queue timeout it gets 503. If the
    store then recovers, the visit has not been counted, and may be repeated.
    """
    clock = Clock()
    memory = MemorySessionStore(clock)
    wrapper = QueuingWrapper(memory, clock, timeout=30.0)
    place = Place(
        lambda sessions: makeRoot(Teller(), sessions=sessions),
        Quota(clock, 1, 1, 60.0),
        wrapper.proxy,
    )
    visitor = place.visitor()
    peer = visitor.begin("/visits")
    clock.advance(29.9)
    assert peer.answers == []
    clock.advance(0.1)
    answer = visitor.end(peer)
    assert (answer.status, visitor.cookie) == (503, None)
    assert "retry-after" in answer.headers
    wrapper.initialize()
    assert memory.rows == {}
    assert membersOf(visitor.ask("/visits")) == {"visits": 1}
    wrapper.close()
    place.close()


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "text/html"])
@pytest.mark.parametrize(
    ("isFull", "line"),
    [
        (False, b"HTTP/1.1 503 Service Unavailable"),
        (True, b"HTTP/1.1 429 Too Many Requests"),
    ],
)
def test_a_session_that_cannot_be_stored_is_one_problem(
    accept: str, isFull: bool, line: bytes
) -> None:
    """
    If the visit cannot be counted, and then the session cannot be saved, there is one
    response, with one of each header.
    """
    quota = Quota(Clock(), 1, 1, 60.0) if isFull else None
    place = Place(lambda sessions: makeRoot(Teller(), sessions=sessions), quota)
    if isFull:
        place.visitor().ask("/visits")
    else:
        fault = Unavailable("no store", 7)
        place.store.errors = dict.fromkeys(("add", "create", "get", "set"), fault)
    peer = place.visitor().begin("/visits", headers={"Accept": accept})
    peer.leave()
    place.close()
    statusLine, *lines = peer.received.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert statusLine == line
    names = [each.split(b": ")[0].lower() for each in lines]
    assert sorted(set(names)) == sorted(names)
    assert {b"retry-after", b"vary", b"x-content-type-options"} <= set(names)
