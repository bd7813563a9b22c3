"""
The pages of visitors: visits, a login, and a logout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from tsrv.resources import makeRoot
from tsrv.sessions import Cookies, MemorySessionStore, Sessions, makeIdentifier
from tsrv.sessions.signing import SigningKeys

from .support import resultOf
from .visitors import Visitor
from .websupport import Answer, Teller

JSON = {"Content-Type": "application/json", "Origin": "https://test"}
FORM = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Sec-Fetch-Site": "same-origin",
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
}
PAGE = {"Accept": FORM["Accept"]}


class Place:
    """
    A site in memory.
    """

    def __init__(self, keys: SigningKeys | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.store = MemorySessionStore(self.clock)
        self.store.initialize()
        cookies = Cookies(self.clock, keys=keys)
        sessions = Sessions(self.clock, self.store, cookies)
        self.root = makeRoot(Teller(), sessions=sessions)

    def visitor(self) -> Visitor:
        """
        @return: Somebody who was never here.
        """
        return Visitor(self.root)

    def count(self) -> Any:
        """
        @return: How many sessions are stored.
        """
        return resultOf(self.store.length()).value


@pytest.fixture
def place() -> Iterator[Place]:
    """
    A site; nothing is left of it.
    """
    place = Place()
    yield place
    place.store.close()
    assert place.clock.getDelayedCalls() == []


def membersOf(answer: Answer) -> Any:
    """
    @return: The JSON of an answer.
    """
    assert answer.status == 200, answer
    return json.loads(answer.body)


def login(visitor: Visitor, name: str = "Ada", **headers: str) -> Answer:
    """
    Log in, as a program does.
    """
    data = json.dumps({"name": name}).encode()
    question: dict[str, Any] = {"headers": {**JSON, **headers}, "data": data}
    return visitor.ask(path="/login", method="POST", **question)


def test_visits_are_counted_for_each_visitor(place: Place) -> None:
    """
    What one does is not seen by another.
    """
    one, other = place.visitor(), place.visitor()
    counts = [membersOf(one.ask(path="/visits"))["visits"] for _ in range(3)]
    assert counts == [1, 2, 3]
    assert membersOf(other.ask(path="/visits")) == {"visits": 1}
    assert place.count() == 2


def test_who_logs_in_is_known(place: Place) -> None:
    """
    With another identifier, and with the visits from before.
    """
    visitor = place.visitor()
    visitor.ask(path="/visits")
    before = visitor.cookie
    assert membersOf(login(visitor)) == {"name": "Ada"}
    assert visitor.cookie not in (None, before)
    me = membersOf(visitor.ask(path="/me"))
    assert (me["name"], me["visits"]) == ("Ada", 1)
    assert place.count() == 1


def test_who_accepts_nonsense_is_a_program(place: Place) -> None:
    """
    A header that cannot be read is no reason to fail.
    """
    for accept in ("/", "text", ""):
        answer = place.visitor().ask(path="/me", headers={"Accept": accept})
        assert membersOf(answer)["name"] is None
        assert answer.headers["vary"] == "Accept, Cookie"


def test_who_logs_out_is_not(place: Place) -> None:
    """
    Whoever has kept the cookie is nobody either.
    """
    visitor = place.visitor()
    login(visitor)
    kept = visitor.cookie
    headers = {"Origin": "https://test"}
    answer = visitor.ask(path="/logout", method="POST", headers=headers)
    assert membersOf(answer) == {"name": None}
    assert visitor.cookie is None
    visitor.cookie = kept
    assert membersOf(visitor.ask(path="/me"))["name"] is None
    assert place.count() == 0


def test_a_browser_is_led_through(place: Place) -> None:
    """
    By redirects that find what was done before them.
    """
    visitor = place.visitor()
    first = visitor.ask(path="/me", headers=PAGE)
    assert (first.status, first.headers["location"]) == (303, "/login")
    form = visitor.ask(path="/login", headers=PAGE)
    assert b'<form method="post" action="/login">' in form.body
    assert "set-cookie" not in form.headers
    answer = visitor.ask(
        path="/login", method="POST", headers=FORM, data=b"name=%3Cb%3EAda+L&x=y"
    )
    assert (answer.status, answer.headers["location"]) == (303, "/me")
    page = visitor.ask(path="/me", headers=PAGE)
    assert b"<h1>Hello, &lt;b&gt;Ada L</h1>" in page.body
    assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert page.headers["cache-control"] == "no-store"
    answer = visitor.ask(path="/logout", method="POST", headers=FORM)
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert visitor.ask(path="/me", headers=PAGE).status == 303


@pytest.mark.parametrize("how", ["logout", "login"])
def test_who_was_not_told_may_log_in_again(place: Place, how: str) -> None:
    """
    Where an answer is lost, the browser comes back with the cookie of before.
    """
    visitor = place.visitor()
    login(visitor)
    kept = visitor.cookie
    if how == "logout":
        headers = {"Origin": "https://test"}
        visitor.ask(path="/logout", method="POST", headers=headers)
    else:
        login(visitor, "Lovelace")
    visitor.cookie = kept
    login(visitor, "Ada again")
    assert visitor.cookie not in (None, kept)
    assert membersOf(visitor.ask(path="/me"))["name"] == "Ada again"


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
def test_nobody_is_logged_in_or_out_by_another_site(
    place: Place, path: str, headers: dict[str, str]
) -> None:
    """
    Somebody who is logged in as the attacker tells him all that he enters.
    """
    visitor = place.visitor()
    login(visitor)
    cookie = visitor.cookie
    membersOf(visitor.ask(path="/me"))
    answer = visitor.ask(
        path=path,
        method="POST",
        headers={"Content-Type": "application/json", **headers},
        data=b'{"name": "Eve"}',
    )
    assert answer.status == 403
    assert visitor.cookie == cookie
    assert membersOf(visitor.ask(path="/me"))["name"] == "Ada"


def test_a_program_may_send_the_token(place: Place) -> None:
    """
    Where there is no browser, there is no Origin.
    """
    visitor = place.visitor()
    token = membersOf(visitor.ask(path="/login"))["token"]
    answer = visitor.ask(
        path="/login",
        method="POST",
        headers={"Content-Type": "application/json", "X-CSRF-Token": token},
        data=b'{"name": "Ada"}',
    )
    assert membersOf(answer) == {"name": "Ada"}
    me = membersOf(visitor.ask(path="/me"))
    assert me["token"] not in (None, token)
    headers = {"X-CSRF-Token": me["token"]}
    answer = visitor.ask(path="/logout", method="POST", headers=headers)
    assert membersOf(answer) == {"name": None}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{}", 400),
        (b'{"name": ""}', 400),
        (b'{"name": " "}', 400),
        (b'{"name": "a\\u0000"}', 400),
        (b'{"name": 1}', 400),
        (b'{"name": "' + b"a" * 101 + b'"}', 400),
        (b"[]", 400),
        (b"secret", 400),
    ],
    ids=range(8),
)
def test_a_name_has_to_be_one(place: Place, data: bytes, status: int) -> None:
    """
    Nothing is stored of what is none, and nothing of it is repeated.
    """
    visitor = place.visitor()
    answer = visitor.ask(path="/login", method="POST", headers=JSON, data=data)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert place.count() == 0


def test_a_form_has_to_be_one(place: Place) -> None:
    """
    Of any size and shape.
    """
    visitor = place.visitor()
    for data in (b"", b"name=", b"\xff", b"&".join([b"name=a"] * 100)):
        answer = visitor.ask(path="/login", method="POST", headers=FORM, data=data)
        assert answer.status == 400
    assert place.count() == 0


def test_random_identifiers_are_nobodys(place: Place) -> None:
    """
    10,000 guesses find nothing, and leave nothing.
    """
    login(place.visitor())
    visitor = place.visitor()
    for _ in range(10_000):
        visitor.cookie = makeIdentifier()
        answer = visitor.ask(path="/me")
        assert membersOf(answer) == {"name": None, "visits": 0, "token": None}
    assert place.count() == 1


@pytest.mark.parametrize(
    "cookie", ["x" * 15_000, "", "a b", 'a"b', "../../etc", "é" * 43, "A" * 42]
)
def test_a_cookie_that_is_none_is_nobodys(place: Place, cookie: str) -> None:
    """
    Whatever somebody sends, it is answered.
    """
    visitor = place.visitor()
    visitor.cookie = cookie
    assert membersOf(visitor.ask(path="/me"))["name"] is None
    assert place.count() == 0


def test_a_cookie_that_was_changed_is_nobodys() -> None:
    """
    With keys, whoever has read the store or guesses has nothing to send.
    """
    place = Place(SigningKeys(["k" * 40]))
    visitor = place.visitor()
    login(visitor)
    assert membersOf(visitor.ask(path="/me"))["name"] == "Ada"
    signed = visitor.cookie
    assert signed is not None
    for wrong in (signed[:-1], signed.partition(".")[0], f"{signed}A", signed[1:]):
        visitor.cookie = wrong
        assert membersOf(visitor.ask(path="/me"))["name"] is None
    place.store.close()
