"""
What clients send is read, or refused without a word of it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.web.server import Request

from tsrv.web.content import (
    Invalid,
    PreconditionFailed,
    matchesAny,
    readJSON,
)
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site

from .websupport import Answer, Peer, ask

JSON = "application/json"


class Reads(AsyncResource):
    """
    A resource that reads what is sent.

    @ivar read: What it has read.
    @ivar held: How many bytes of bodies its site had then.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []
        self.held: list[int] = []

    def render_POST(self, request: Request) -> Response:
        self.read.append(readJSON(request, [JSON, "a/b+json"], b"Accept-Post"))
        self.held.append(getattr(request.site, "contents", -1))
        return text("read")


def post(
    data: bytes, contentType: str | list[str] | None = JSON, **more: str
) -> tuple[Answer, list[Any]]:
    """
    Send something.

    @return: The answer, and what was read.
    """
    resource = Reads()
    headers: dict[str, str | list[str]] = dict(more)
    if contentType is not None:
        headers["Content-Type"] = contentType
    return ask(resource, "/", "POST", headers, data), resource.read


@pytest.mark.parametrize(
    "contentType",
    [
        JSON,
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; version=1",
        "a/b+json",
    ],
)
def test_json_is_read(contentType: str) -> None:
    """
    However it is announced.
    """
    answer, read = post('{"a": [1, "ä"]}'.encode(), contentType)
    assert answer.status == 200
    assert read == [{"a": [1, "ä"]}]


@pytest.mark.parametrize(
    "contentType",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/json; charset=us-ascii",
        "application/json; charset=utf-8; charset=utf-16",
        "application/jsonp",
        "application/json;a=" + "b" * 300,
        [JSON, JSON],
    ],
)
def test_what_is_no_json_by_its_own_word_is_not_read(
    contentType: str | list[str] | None,
) -> None:
    """
    A form that some page makes a browser send must not be taken for a request
    by the user; and what is accepted is told.
    """
    answer, read = post(b"{}", contentType)
    assert (answer.status, read) == (415, [])
    assert answer.headers["accept-post"] == "application/json, a/b+json"
    assert "application/json or a/b+json" in json.loads(answer.body)["error"]


def test_what_is_compressed_is_not_read() -> None:
    """
    A small body may be a very large one.
    """
    answer, read = post(b"{}", **{"Content-Encoding": "gzip"})
    assert (answer.status, read) == (415, [])
    assert answer.headers["accept-encoding"] == "identity"
    assert json.loads(answer.body)["error"] == "The body must not be encoded"
    answer, read = post(b"{}", **{"Content-Encoding": "identity"})
    assert (answer.status, read) == (200, [{}])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it cannot be understood at line 1, column 1"),
        (b"secret", "it cannot be understood at line 1, column 1"),
        (b'{"a":\n secret}', "it cannot be understood at line 2, column 2"),
        (b'{"secret": 1, "secret": 2}', "an object has two members of one name"),
        (b"NaN", "NaN and Infinity are no numbers"),
        (b"[-Infinity]", "NaN and Infinity are no numbers"),
        (b"\xff", "it is not UTF-8"),
        ("{}".encode("utf-16"), "it is not UTF-8"),
        (b"\xef\xbb\xbf{}", "it cannot be understood at line 1, column 1"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"1" * 5_000, "a number is too long"),
        (b"[-1e999]", "a number is too large"),
        (b"1" * 400 + b".5", "a number is too large"),
    ],
    ids=range(13),
)
def test_what_cannot_be_read_is_not_repeated(data: bytes, why: str) -> None:
    """
    It may be a secret that was sent to the wrong place.
    """
    answer, read = post(data)
    assert (answer.status, read) == (400, [])
    assert json.loads(answer.body)["error"] == f"The body is not JSON: {why}"


def test_numbers_are_read_as_they_are() -> None:
    """
    What is too large for one must not change the others.
    """
    answer, read = post(b"[1.5, -2e3, 1e-999, 7]")
    assert (answer.status, read) == (200, [[1.5, -2000.0, 0.0, 7]])


@given(st.binary())
def test_anything_may_be_sent(data: bytes) -> None:
    """
    Nothing that is sent is an error of the server.
    """
    answer, _ = post(data)
    assert answer.status in (200, 400)


def test_a_body_that_was_read_is_not_kept(clock: Clock) -> None:
    """
    A request that is held then has what was made of it, and nothing else.
    """
    resource = Reads()
    site = Site(resource, clock)
    peer = Peer(site, clock)
    body = b'"' + b"x" * 10_000 + b'"'
    peer.send(
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10002\r\n\r\n" + body
    )
    assert resource.held == [0]
    assert site.contents == 0
    peer.leave()


def test_what_is_wrong_is_told_part_by_part() -> None:
    """
    A program can show each of it where it was entered.
    """
    wrong = [{"pointer": "/email", "detail": "has to be there"}]

    class Wrong(AsyncResource):
        isLeaf = True

        async def render_POST(self, request: Request) -> Response:
            raise Invalid("The user is not as it has to be", iter(wrong))

    answer = ask(Wrong(), method="POST")
    members = json.loads(answer.body)
    assert (answer.status, members["errors"]) == (400, wrong)
    assert members["error"] == "The user is not as it has to be"


def test_what_has_changed_meanwhile_is_not_changed() -> None:
    """
    It is not the same error as a request that is wrong: to look again helps.
    """

    class Changed(AsyncResource):
        isLeaf = True

        async def render_PUT(self, request: Request) -> Response:
            raise PreconditionFailed

    answer = ask(Changed(), method="PUT")
    assert answer.status == 412
    assert json.loads(answer.body)["error"] == "It has been changed since"


# Entity tags.


@pytest.mark.parametrize(
    ("condition", "weakly", "strongly"),
    [
        ('"1"', True, True),
        ("*", True, True),
        (" * ", True, True),
        ('W/"1"', True, False),
        ('"0", "1"', True, True),
        ('"0",W/"1" , "2"', True, False),
        ('"a,b", "1"', True, True),
        ('"0"', False, False),
        ('"11"', False, False),
        ("1", False, False),
        ("", False, False),
        (",", False, False),
        ('"0",, ,"1"', True, True),
        (', "0" ,', False, False),
        ('"1', False, False),
        ('w/"1"', False, False),
        ('"0" "1"', False, False),
        ('x, "1"', False, False),
        ('"0",' * 2000 + '"1"', False, False),
    ],
    ids=range(19),
)
def test_tags_are_compared(condition: str, weakly: bool, strongly: bool) -> None:
    """
    To change something under a condition takes what is surely the same.
    """
    for weak, expected in ((True, weakly), (False, strongly)):
        assert matchesAny([condition.encode()], '"1"', weakly=weak) is expected


def test_tags_may_be_in_several_headers() -> None:
    """
    Several lines of a header mean the same as one.
    """
    assert matchesAny([b'"0"', b'"1"'], '"1"', weakly=True)
    assert matchesAny([b"", b'"1"'], '"1"', weakly=False)


@given(st.binary(max_size=200))
def test_no_condition_breaks_anything(condition: bytes) -> None:
    """
    What cannot be understood matches nothing.
    """
    assert matchesAny([condition], '"1"', weakly=True) in (True, False)
