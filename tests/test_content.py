"""
JSON bodies, queries and conditional requests.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from twisted.internet.task import Clock
from twisted.web.server import Request

from tsrv.web.content import FORM, matchesAny, readBody, readQuery
from tsrv.web.responses import AsyncResource, Response, text
from tsrv.web.site import Site

from .websupport import Answer, Peer, ask

JSON = "application/json"

FORM_UTF_8 = "application/x-www-form-urlencoded; charset=UTF-8"


Code = TypeVar("Code")

Letters = Annotated[
    str, Meta(min_length=1, pattern="^[a-z ]+$", description="small letters")
]


class Tag(Struct):
    """
    An object in an array.
    """

    label: str


class Coded(Struct, Generic[Code], forbid_unknown_fields=True):
    """
    A generic object.
    """

    code: Code
    name: Letters = "a"


class Book(Struct, forbid_unknown_fields=True):
    """
    The body of the requests.
    """

    title: Letters
    pages: int = 0
    tags: list[Tag] = []
    form: Literal["paper", "screen"] = "paper"
    prices: dict[str, int] = {}
    coded: Coded[int] | None = None


class Query(Struct):
    """
    The query of the requests.
    """

    limit: Annotated[int, Meta(ge=1, le=9)] = 5


class Books(AsyncResource):
    """
    A resource that reads bodies and queries.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []
        self.heldBytes: list[int] = []

    def render_POST(self, request: Request) -> Response:
        accepted = [JSON, "a/b+json"]
        book = readBody(request, Book, "Invalid book", accepted, b"Accept-Post")
        self.read.append(book)
        site: Any = request.site
        self.heldBytes.append(site.connections.bodyBytes)
        return text("read")

    def render_PUT(self, request: Request) -> Response:
        accepted = [JSON, FORM]
        self.read.append(readBody(request, Book, "Invalid book", accepted, b"Accept"))
        return text("read")

    def render_GET(self, request: Request) -> Response:
        self.read.append(readQuery(request, Query))
        return text("read")


def post(
    data: bytes,
    contentType: str | list[str] | None = JSON,
    method: str = "POST",
    **more: str,
) -> tuple[Answer, list[Any]]:
    """
    Send a body; return the response and what the resource read.
    """
    resource = Books()
    headers: dict[str, str | list[str]] = dict(more)
    if contentType is not None:
        headers["Content-Type"] = contentType
    return ask(resource, "/", method, headers, data), resource.read


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
def test_a_body_of_an_accepted_type_is_read(contentType: str) -> None:
    """
    The media type is compared without its case and parameters.
    """
    answer, read = post(b'{"title": "a", "tags": [{"label": "\xc3\xa4"}]}', contentType)
    assert answer.status == 200
    assert read == [Book("a", tags=[Tag("ä")])]


@pytest.mark.parametrize(
    "contentType",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/json; charset=utf-8; charset=utf-16",
        "application/jsonp",
        "application/json;a=" + "b" * 300,
        [JSON, JSON],
    ],
)
def test_another_media_type_is_refused(contentType: str | list[str] | None) -> None:
    """
    A form of a foreign page is never taken for JSON; a 415 lists the accepted media
    types.
    """
    answer, read = post(b'{"title": "a"}', contentType)
    assert (answer.status, read) == (415, [])
    assert answer.headers["accept-post"] == "application/json, a/b+json"
    assert "application/json or a/b+json" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity", 200)])
def test_a_compressed_body_is_refused(encoding: str, status: int) -> None:
    """
    A compressed body is refused, because a small one may expand to a huge one.
    """
    answer, _ = post(b'{"title": "a"}', **{"Content-Encoding": encoding})
    assert answer.status == status
    if status == 415:
        assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is truncated"),
        (b"secret", "invalid character at byte 0"),
        (b'{"title":\n secret}', "invalid character at byte 11"),
        (b'{"title": NaN}', "invalid character at byte 10"),
        (b"\xff", "invalid character at byte 0"),
        (b'{"title": "secret\xff"}', "it is not UTF-8"),
        ('{"title": "a"}'.encode("utf-16"), "invalid character at byte 0"),
        (b'{"title": "a"} secret', "trailing characters at byte 16"),
        (b'{"tags": [{"x":' + b"[" * 100_000, "it is nested too deeply"),
    ],
    ids=range(9),
)
def test_a_body_that_is_not_json_is_refused(data: bytes, reason: str) -> None:
    """
    The error for malformed JSON names the place, and does not repeat the body.
    """
    answer, read = post(data)
    assert (answer.status, read) == (400, [])
    assert b"secret" not in answer.body
    assert json.loads(answer.body)["error"] == f"The body is not JSON: {reason}"


@pytest.mark.parametrize(
    ("data", "pointer", "detail"),
    [
        (b'"secret"', "", "Expected object, got string"),
        (b"{}", "/title", "is missing"),
        (b'{"title": 1}', "/title", "Expected string, got integer"),
        (b'{"title": ""}', "/title", "Expected string of length >= 1"),
        (b'{"title": "SECRET"}', "/title", "Expected small letters"),
        (b'{"title": "a", "secret": 1}', "", "has members other than title and pages"),
        (b'{"title": "a", "pages": 1e999}', "/pages", "Number out of range"),
        (b'{"title": "a", "pages": %s}' % (b"1" * 5000), "/pages", "Integer value out"),
        (b'{"title": "a", "tags": [{}]}', "/tags/0/label", "is missing"),
        (b'{"title": "a", "tags": [{"label": 1}]}', "/tags/0/label", "Expected string"),
        (
            b'{"title": "a", "coded": {"code": 1, "secret": 1}}',
            "/coded",
            "has an unknown member",
        ),
        (b'{"title": "a", "prices": {"secret": "x"}}', "/prices", "Expected integer"),
        (
            b'{"title": "a", "coded": {"code": 1, "name": "SECRET"}}',
            "/coded/name",
            "is invalid",
        ),
        (b'{"title": "a", "form": "secret"}', "/form", "is invalid"),
    ],
)
def test_an_invalid_body_is_refused(data: bytes, pointer: str, detail: str) -> None:
    """
    The error for an invalid body names the JSON pointer and the reason, and does not
    repeat the body.
    """
    answer, read = post(data)
    members = json.loads(answer.body)
    assert (answer.status, read) == (400, [])
    assert members["error"] == "Invalid book"
    (error,) = members["errors"]
    assert error["pointer"] == pointer
    assert error["detail"].startswith(detail)
    assert b"secret" not in answer.body.lower()


@given(st.binary())
def test_no_body_is_an_internal_error(data: bytes) -> None:
    """
    No body causes an internal error.
    """
    answer, _ = post(data)
    assert answer.status in (200, 400)


@pytest.mark.parametrize("contentType", [FORM, FORM_UTF_8])
def test_a_form_is_read(contentType: str) -> None:
    """
    A form has the fields of the same struct; other fields are ignored.
    """
    data = b"title=a+b%63&pages=7&colour=red&colour=%FF"
    answer, read = post(data, contentType, "PUT")
    assert (answer.status, read) == (200, [Book("a bc", 7)])


@pytest.mark.parametrize(
    ("data", "pointer", "detail"),
    [
        (b"", "/title", "is missing"),
        (b"title=", "/title", "Expected string of length >= 1"),
        (b"title=a&title=b", "/title", "is repeated"),
        (b"title=%FF", "/title", "is not UTF-8"),
        (b"title=\xff", "/title", "is not UTF-8"),
        (b"title=A", "/title", "Expected small letters"),
        (b"title=a&pages=x", "/pages", "Expected integer, got string"),
    ],
)
def test_an_invalid_form_is_refused(data: bytes, pointer: str, detail: str) -> None:
    """
    A form is checked like JSON.
    """
    answer, read = post(data, FORM, "PUT")
    (error,) = json.loads(answer.body)["errors"]
    assert (answer.status, read) == (400, [])
    assert error == {"pointer": pointer, "detail": detail}


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_form_is_refused(encoding: str) -> None:
    """
    A compressed form is not taken for an empty one.
    """
    answer, read = post(b"title=a", FORM, "PUT", **{"Content-Encoding": encoding})
    assert (answer.status, read) == (415, [])


def test_a_body_is_released_when_it_was_read(clock: Clock) -> None:
    """
    A held request keeps the parsed body only.
    """
    resource = Books()
    site = Site(resource, clock)
    peer = Peer(site, clock)
    body = b'{"title": "%s"}' % (b"x" * 10_000)
    peer.send(
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    assert resource.heldBytes == [0]
    peer.leave()


@pytest.mark.parametrize(
    ("query", "limit"), [("", 5), ("?limit=7", 7), ("?limit=1&other=%ff", 1)]
)
def test_a_query_is_read(query: str, limit: int) -> None:
    """
    Parameters have defaults, and unknown parameters are ignored.
    """
    resource = Books()
    assert ask(resource, f"/{query}").status == 200
    assert resource.read == [Query(limit)]


@pytest.mark.parametrize(
    "value", ["0", "10", "-1", "%2B1", "", "secret", "1&limit=2", "9" * 5000, "%D9%A1"]
)
def test_an_invalid_query_is_refused(value: str) -> None:
    """
    The error for an invalid query names the parameter, and does not repeat its value.
    """
    answer = ask(Books(), f"/?limit={value}")
    (error,) = json.loads(answer.body)["errors"]
    assert (answer.status, error["parameter"]) == (400, "limit")
    assert error["detail"].startswith(
        ("Expected integer", "Integer value", "is repeated")
    )
    assert b"secret" not in answer.body


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
def test_entity_tags_are_compared(condition: str, weakly: bool, strongly: bool) -> None:
    """
    A weak tag matches only in a weak comparison; a malformed list matches nothing.
    """
    for weak, expected in ((True, weakly), (False, strongly)):
        assert matchesAny([condition.encode()], '"1"', weakly=weak) is expected


def test_entity_tags_may_be_in_several_headers() -> None:
    """
    Several headers mean the same as one header with a list.
    """
    assert matchesAny([b'"0"', b'"1"'], '"1"', weakly=True)
    assert matchesAny([b"", b'"1"'], '"1"', weakly=False)


@given(st.binary(max_size=200))
def test_no_condition_raises(condition: bytes) -> None:
    """
    No condition raises: each one matches or does not match.
    """
    assert matchesAny([condition], '"1"', weakly=True) in (True, False)
