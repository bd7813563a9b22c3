"""
The cookie of a session: how it is read and written.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.server import Request

from tsrv.sessions import Cookies

from .exchanges import exchange, setCookies
from .websupport import errorsIn, logged, textsOf

ID = "0123456789abcdefghijklmnopqrstuvwxyzABCDE-_"
OTHER = "another-identifier-of-the-very-same-length_"

SECURE = b"__Host-session=" + ID.encode() + b"; Path=/; Secure; HttpOnly; SameSite=Lax"
PLAIN = b"session=" + ID.encode() + b"; Path=/; HttpOnly; SameSite=Lax"
GONE = b"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


def make(**options: Any) -> Cookies:
    """
    @return: Cookies with a clock of their own.
    """
    return Cookies(Clock(), **options)


def secure(*sent: str | bytes, peer: str = "192.0.2.1") -> Request:
    """
    @return: A request over TLS with such C{Cookie} headers.
    """
    return exchange(*[("Cookie", each) for each in sent], secure=True, peer=peer)


def local(*sent: str | bytes) -> Request:
    """
    @return: A request over plain HTTP on this machine.
    """
    cookies = [("Cookie", each) for each in sent]
    return exchange(("Host", "localhost:8000"), *cookies, peer="127.0.0.1")


def refuses(cookies: Cookies, request: Request) -> bool:
    """
    @return: Whether no cookie is read from a request, nor written to its response.
    """
    done = [
        cookies.canWrite(request),
        cookies.write(request, ID),
        cookies.expire(request),
    ]
    return cookies.read(request) is None and not any(done) and request.cookies == []


# Reading.


@pytest.mark.parametrize("name", ["session", "id", "a.b*c|d^e$"])
@pytest.mark.parametrize("asked", [secure, local])
def test_a_written_identifier_is_found(name: str, asked: Any) -> None:
    """
    A written cookie is found among the cookies of other applications.
    """
    cookies = make(name=name)
    first = asked()
    assert cookies.read(first) is None
    assert cookies.canWrite(first)
    assert cookies.write(first, ID)
    pair = setCookies(first)[0].partition(b";")[0]
    assert cookies.read(asked(pair)) == ID
    assert cookies.read(asked(b"a=b; " + pair + b"; c=d")) == ID
    assert cookies.read(asked(b"a=b;" + pair + b";c")) == ID
    # HTTP/2 may split cookies like this.
    assert cookies.read(asked(b"a=b", pair, b"c=d")) == ID
    assert cookies.read(asked(pair, pair)) is None
    if "." in name:
        assert cookies.read(asked(pair.replace(b".", b"x"))) is None


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "__Host-session=",
        f'__Host-session="{ID}"',
        f"__Host-session={ID} ",
        f"__Host-session ={ID}",
        f"__Host-session={ID}.x",
        f"__Host-session={ID}\nx",
        f"__Host-session={ID}\xe9".encode(),
        f"__Host-session={'x' * 129}",
        f"__Host-session={ID}; __Host-session={ID}",
        f"__Host-session={ID}; a=b; __Host-session=",
        f"__host-session={ID}",
        f"session={ID}",
        f"x__Host-session={ID}",
        f"\xa0__Host-session={ID}".encode("latin-1"),
        f'$Version=1; a="x; __Host-session={ID}"',
        f"__Host-session={ID}; " + "x" * 100_000,
        "a=b;" * 30_000 + f"__Host-session={ID}",
        ";" + " " * 100_000 + f"__Host-session={ID}",
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_cookie_that_tsrv_would_not_write_is_not_read(sent: str | bytes) -> None:
    """
    A cookie that tsrv would not write is not read: somebody else has made, changed or
    duplicated it.
    """
    assert make().read(secure(sent)) is None


def test_the_headers_have_a_limit_together() -> None:
    """
    At most 16 KiB of cookies are searched, in all headers together.
    """
    cookies, own = make(), f"__Host-session={ID}"
    room = 16 * 1024 - len(own)
    assert cookies.read(secure(own, "x" * room)) == ID
    assert cookies.read(secure(own, "x" * room, "x")) is None


def test_the_name_depends_on_tls_and_on_the_host() -> None:
    """
    Over TLS the prefixed name counts, and on this machine the plain one. Over plain
    HTTP from elsewhere, or for a host name that another site may have chosen, neither
    counts.
    """
    cookies = make()
    sent = f"session={ID}; __Host-session={OTHER}"
    assert cookies.read(secure(sent)) == OTHER
    assert cookies.read(secure(sent, peer="127.0.0.1")) == OTHER
    assert cookies.read(local(sent)) == ID
    assert refuses(cookies, exchange(("Host", "localhost"), ("Cookie", sent)))
    rebound = [("Host", "evil.example"), ("Cookie", sent)]
    assert refuses(cookies, exchange(*rebound, peer="127.0.0.1"))
    forwarded = [("Host", "localhost"), ("Forwarded", "for=x"), ("Cookie", sent)]
    assert refuses(cookies, exchange(*forwarded, peer="127.0.0.1"))


_NAMES = st.sampled_from(["__Host-session", "session", "a", "__host-session", ""])
_VALUES = st.text('ab-_."= ,\t\x00\xff', max_size=6) | st.just(ID)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), st.sampled_from(["; ", ";"]))
def test_cookies_are_found_as_browsers_send_them(
    pairs: list[tuple[str, str]], between: str
) -> None:
    """
    Cookies are split at semicolons, then at the first equals sign (RFC 6265).
    """
    sent = between.join(f"{name}={value}" for name, value in pairs)
    own = []
    for each in sent.split(";"):
        name, equal, value = each.lstrip(" \t").partition("=")
        if name == "__Host-session" and equal:
            own.append(value)
    expected = None
    if len(own) == 1 and re.fullmatch("[A-Za-z0-9_-]{1,128}", own[0]):
        expected = own[0]
    assert make().read(secure(sent.encode("latin-1"))) == expected


# Writing.


@pytest.mark.parametrize("sameSite", ["Strict", "Lax", "None"])
def test_the_cookie_has_all_attributes_that_protect_it(sameSite: str) -> None:
    """
    Over TLS the cookie is Secure and has the prefix. On this machine it is plain, and
    Lax instead of None, which browsers accept over TLS only.
    """
    plain = "Lax" if sameSite == "None" else sameSite
    for asked, cookie, expected in ((secure, SECURE, sameSite), (local, PLAIN, plain)):
        request = asked()
        with logged() as events:
            assert make(sameSite=sameSite).write(request, ID)
        assert events == []
        assert setCookies(request) == [cookie.replace(b"Lax", expected.encode())]


def test_a_cookie_that_a_browser_would_drop_is_logged() -> None:
    """
    A cookie that a browser would drop is logged at most once a minute. The line says
    what to do, and shows no secret.
    """
    clock = Clock()
    cookies = Cookies(clock)
    with logged() as events:
        for _ in range(60):
            assert refuses(cookies, exchange(("Host", "secret"), ("Cookie", "secret")))
            clock.advance(1)
        assert len(events) == 1
        assert refuses(cookies, exchange(peer=UNIXAddress("/run/tsrv")))
        # A clock that is set back does not suppress the log line.
        clock.rightNow = 0
        assert refuses(cookies, exchange())
    first, second, third = textsOf(errorsIn(events))
    assert first == third
    assert first == (
        "No session cookie was sent to 192.0.2.1: browsers drop it without TLS. "
        "Listen with TLS; behind a proxy that terminates TLS, let the proxy set "
        "X-Forwarded-Proto, and name its address among the trusted proxies. Plain "
        "HTTP works on localhost alone, for development."
    )
    assert "to a UNIX socket:" in second


@pytest.mark.parametrize(
    "identifier", ["", "x" * 129, "a b", "a;b", "a\r\nX: y", "é", '"a"', "a.b", "a\n"]
)
def test_an_invalid_identifier_is_not_written(identifier: str) -> None:
    """
    An invalid identifier is not written, so it cannot add attributes or headers.
    """
    request = secure()
    with pytest.raises(ValueError, match="an identifier has"):
        make().write(request, identifier)
    assert setCookies(request) == []


@pytest.mark.parametrize("asked", [secure, local])
def test_a_response_has_one_session_cookie(asked: Any) -> None:
    """
    A response has one session cookie, the one of the last call; other cookies are kept.
    """
    cookies = make()
    expected = SECURE if asked is secure else PLAIN
    request = asked()
    request.addCookie(b"a", b"b")
    request.addCookie(b"my-session", b"c")
    cookies.write(request, OTHER)
    cookies.expire(request)
    cookies.write(request, ID)
    assert setCookies(request) == [b"a=b", b"my-session=c", expected]
    request = asked()
    cookies.write(request, ID)
    cookies.expire(request)
    # Browsers remove a cookie only if its attributes are the same as when it was set.
    assert setCookies(request) == [expected.replace(ID.encode(), b"") + GONE]


@pytest.mark.parametrize("how", ["begun", "finished", "disconnected"])
@pytest.mark.parametrize("asked", [secure, local])
def test_a_response_that_is_sent_gets_no_cookie(asked: Any, how: str) -> None:
    """
    After the headers are sent, and after the client has disconnected, the caller learns
    that no cookie is sent, and nothing is logged.
    """
    request = asked()
    if how == "disconnected":
        request.connectionLost(Failure(ConnectionError()))
    else:
        setCookies(request)
        if how == "finished":
            request.finish()
    with logged() as events:
        assert refuses(make(), request)
    assert events == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"name": name}, "a token") for name in ("", "a b", "a=b", "a\n", "ä")),
        ({"name": "x" * 65}, "must be a token"),
        ({"name": "__Host-session"}, "must not begin with __"),
        ({"name": "__secure-session"}, "must not begin with __"),
        ({"sameSite": "lax"}, "sameSite must be Strict, Lax or None, not 'lax'"),
        ({"trustedProxies": ["proxy"]}, "invalid trusted proxy"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    """
    Invalid options are refused: browsers would silently drop such a cookie.
    """
    with pytest.raises(ValueError, match=message):
        make(**options)
