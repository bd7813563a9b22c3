"""
The cookie of a session goes only to who keeps it safe, and only what was given out
comes back as an identifier.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.server import Request

from tsrv.sessions import Cookies
from tsrv.sessions.signing import SigningKeys
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site

from .exchanges import exchange, setCookies
from .websupport import Peer, ask, errorsIn, logged, textsOf

ID = "0123456789abcdefghijklmnopqrstuvwxyzABCDE-_"
OTHER = "another-identifier-of-the-very-same-length_"

PROXY = "10.0.0.1"

KEYS = SigningKeys(["a-key-that-is-long-enough-to-be-one"])

SECURE = b"__Host-session=" + ID.encode() + b"; Path=/; Secure; HttpOnly; SameSite=Lax"
PLAIN = b"session=" + ID.encode() + b"; Path=/; HttpOnly; SameSite=Lax"
GONE = b"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


def make(**options: Any) -> Cookies:
    """
    @return: Cookies, at the beginning of time.
    """
    return Cookies(Clock(), **options)


def over(*sent: str | bytes, peer: str = "192.0.2.1") -> Request:
    """
    @return: A request over TLS with such C{Cookie} headers.
    """
    return exchange(*[("Cookie", each) for each in sent], secure=True, peer=peer)


def local(*sent: str | bytes) -> Request:
    """
    @return: One over plain HTTP, on this machine.
    """
    cookies = [("Cookie", each) for each in sent]
    return exchange(("Host", "localhost:8000"), *cookies, peer="127.0.0.1")


# Reading.


def test_an_identifier_comes_back() -> None:
    """
    What was written is what is read, among the cookies of others.
    """
    for cookies in (make(), make(keys=KEYS), make(name="id")):
        for asked in (over, local):
            first = asked()
            assert cookies.read(first) is None
            assert cookies.write(first, ID)
            (line,) = setCookies(first)
            pair = line.partition(b";")[0]
            assert cookies.read(asked(pair)) == ID
            assert cookies.read(asked(b"a=b; " + pair + b"; c=d")) == ID
            assert cookies.read(asked(b"a=b;" + pair + b";c")) == ID
            # As HTTP/2 may send them.
            assert cookies.read(asked(b"a=b", pair, b"c=d")) == ID


@pytest.mark.parametrize(
    "sent",
    [
        "",
        ";",
        "__Host-session",
        "__Host-session=",
        f'__Host-session="{ID}"',
        f"__Host-session={ID} ",
        f"__Host-session= {ID}",
        f"__Host-session ={ID}",
        f"__Host-session={ID}=",
        f"__Host-session={ID},x",
        f"__Host-session={ID}.x",
        f"__Host-session={ID}.{'x' * 43}",
        f"__Host-session={ID}\nx",
        f"__Host-session={ID}\0",
        f"__Host-session={ID}\x7f",
        f"__Host-session=\t{ID}",
        f"__Host-session={ID}\xe9".encode(),
        f"__Host-session={ID[:-1]}%5F",
        f"__Host-session={'x' * 129}",
        f"__Host-session={ID}; __Host-session={ID}",
        f"__Host-session={ID}; __Host-session={OTHER}",
        f"__Host-session={ID}; a=b; __Host-session=",
        f"__host-session={ID}",
        f"__HOST-SESSION={ID}",
        f"session={ID}",
        f"__Secure-session={ID}",
        f"x__Host-session={ID}",
        f"a=__Host-session={ID}",
        f"a __Host-session={ID}",
        f"a,__Host-session={ID}",
        f"\xa0__Host-session={ID}".encode("latin-1"),
        f"\x0b__Host-session={ID}",
        f"\x00__Host-session={ID}",
        f"=__Host-session={ID}",
        f"__Host-session={ID}; " + "x" * 100_000,
        "__Host-session=" + "x" * 100_000,
        "a=b;" * 30_000 + f"__Host-session={ID}",
        ";" + " " * 100_000 + f"__Host-session={ID}",
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_what_was_not_given_out_like_that_is_none(sent: str | bytes) -> None:
    """
    Each of these somebody else has made, or changed.
    """
    assert make().read(over(sent)) is None


def test_what_is_in_quotes_is_no_whole() -> None:
    """
    Browsers end a cookie at a semicolon; who reads quotes as if they held one
    together lets another cookie hide ours, or show it to scripts.
    """
    sent = f'a="; __Host-session={ID}; b="'
    assert make().read(over(sent)) == ID
    sent = f'$Version=1; a="x; __Host-session={OTHER}"'
    assert make().read(over(sent)) is None


def test_two_headers_have_two_cookies() -> None:
    """
    Of two cookies of ours one is somebody else's, wherever they are.
    """
    one, other = f"__Host-session={ID}", f"__Host-session={OTHER}"
    assert make().read(over(one, other)) is None
    assert make().read(over(one, one)) is None


def test_cookies_have_a_bound_together() -> None:
    """
    The limit is the most that is looked through, in however many headers.
    """
    cookies, own = make(), f"__Host-session={ID}"
    room = 16 * 1024 - len(own)
    assert cookies.read(over(own, "x" * room)) == ID
    assert cookies.read(over(own, "x" * room, "x")) is None
    assert cookies.read(over(own, *["x" * 1000] * 500)) is None


def test_the_safe_name_counts_over_tls_and_the_plain_one_on_this_machine() -> None:
    """
    A plain cookie can be put in by a sister site or over plain HTTP: over TLS it
    must be nothing.
    """
    cookies = make()
    both = f"session={ID}; __Host-session={OTHER}"
    assert cookies.read(over(both)) == OTHER
    assert cookies.read(local(both)) == ID
    assert cookies.read(over(both, peer="127.0.0.1")) == OTHER
    elsewhere = [("Host", "localhost"), ("Cookie", both)]
    assert cookies.read(exchange(*elsewhere)) is None
    rebound = [("Host", "evil.example"), ("Cookie", both)]
    assert cookies.read(exchange(*rebound, peer="127.0.0.1")) is None


@given(st.lists(st.binary(max_size=300), max_size=4), st.booleans(), st.booleans())
@example([b"__Host-session=" + ID.encode()], True, False)
@example([b"session=" + ID.encode()], False, False)
@example([b"__Host-session=" + ID.encode() + b"." + b"x" * 43], True, True)
def test_whatever_is_sent_there_is_an_answer(
    sent: list[bytes], secure: bool, signed: bool
) -> None:
    """
    Bytes of any kind: an identifier that was given out has only some characters,
    and nothing raises.
    """
    cookies = make(keys=KEYS if signed else None)
    found = cookies.read(over(*sent) if secure else local(*sent))
    assert found is None or re.fullmatch("[A-Za-z0-9_-]{1,128}", found)
    assert found is None or not signed


_NAMES = st.sampled_from(["__Host-session", "session", "a", "__host-session", ""])
_VALUES = st.text('ab-_."= ,\t\x00\xff', max_size=6) | st.just(ID)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), st.sampled_from(["; ", ";"]))
def test_cookies_are_found_as_browsers_send_them(
    pairs: list[tuple[str, str]], between: str
) -> None:
    """
    Compared with the plainest reading of RFC 6265 there is: split at semicolons,
    then at the first sign of equality.
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
    assert make().read(over(sent.encode("latin-1"))) == expected


# Signatures.


def test_a_signed_identifier_is_read_only_with_its_signature() -> None:
    """
    A signature keeps all that was not given out away from the store.
    """
    cookies = make(keys=KEYS)
    request = over()
    assert cookies.write(request, ID)
    pair = setCookies(request)[0].partition(b";")[0].decode()
    name, value = pair.split("=")
    identifier, signature = value.split(".")
    assert identifier == ID
    assert cookies.read(over(pair)) == ID
    for tampered in (
        ID,
        f"{ID}.",
        f"{ID}.{signature[:-1]}",
        f"{ID}.{signature}x",
        f"{ID}.{signature}=",
        f"{ID}.{signature}.{signature}",
        f"{ID}.{signature[::-1]}",
        f"{ID}.{signature.swapcase()}",
        f"{OTHER}.{signature}",
        f"{ID[:-1]}.{signature}",
        f".{signature}",
        signature,
    ):
        assert cookies.read(over(f"{name}={tampered}")) is None, tampered
    # What is not signed is not taken for what is, nor the other way about.
    assert make().read(over(pair)) is None


def test_a_signature_is_for_one_cookie_alone() -> None:
    """
    Two sites with the same keys: what one has given out is nothing to the other.
    """
    request = over()
    make(keys=KEYS, name="shop").write(request, ID)
    value = setCookies(request)[0].partition(b";")[0].decode().partition("=")[2]
    assert make(keys=KEYS, name="shop").read(over(f"__Host-shop={value}")) == ID
    assert make(keys=KEYS, name="mail").read(over(f"__Host-mail={value}")) is None


def test_keys_can_be_changed() -> None:
    """
    With the old key still there, nobody is logged out; without it, all are.
    """
    old, new = "o" * 32, "n" * 32
    request = over()
    make(keys=SigningKeys([old])).write(request, ID)
    pair = setCookies(request)[0].partition(b";")[0]
    assert make(keys=SigningKeys([new, old])).read(over(pair)) == ID
    assert make(keys=SigningKeys([new])).read(over(pair)) is None


# Writing.


def test_the_cookie_is_as_safe_as_can_be() -> None:
    """
    Each word of it keeps something away, and a browser drops it if the prefix does
    not fit the rest.
    """
    request = over()
    assert make().canWrite(request)
    assert make().write(request, ID)
    assert setCookies(request) == [SECURE]


def test_on_this_machine_it_is_plain() -> None:
    """
    For development: browsers drop the other one there.
    """
    request = local()
    assert make().canWrite(request)
    with logged() as events:
        assert make().write(request, ID)
    assert errorsIn(events) == []
    assert setCookies(request) == [PLAIN]


@pytest.mark.parametrize(
    ("sameSite", "plain"),
    [("Strict", b"Strict"), ("Lax", b"Lax"), ("None", b"Lax")],
)
def test_other_sites_may_be_let_in_or_kept_out(sameSite: str, plain: bytes) -> None:
    """
    A page within pages of other sites needs it; browsers drop that without TLS.
    """
    cookies = make(sameSite=sameSite)
    request = over()
    cookies.write(request, ID)
    assert setCookies(request)[0].endswith(b"; SameSite=" + sameSite.encode())
    request = local()
    cookies.write(request, ID)
    assert setCookies(request)[0].endswith(b"; SameSite=" + plain)


def test_a_proxy_that_was_named_is_believed() -> None:
    """
    Most sites have their TLS there; anybody else who says so gets no cookie.
    """
    cookies = make(trustedProxies=[PROXY])
    said = [("X-Forwarded-Proto", "https"), ("Cookie", f"__Host-session={ID}")]
    request = exchange(*said, peer=PROXY)
    assert cookies.read(request) == ID
    assert cookies.write(request, ID)
    assert setCookies(request) == [SECURE]
    for other in (exchange(*said), exchange(("Cookie", ID), peer=PROXY)):
        assert cookies.read(other) is None
        assert not cookies.canWrite(other)
        assert not cookies.expire(other)
        assert not cookies.write(other, ID)
        assert setCookies(other) == []


def test_where_a_browser_would_drop_it_the_log_says_what_to_do() -> None:
    """
    A site on which nobody stays logged in, and nothing says why, is the worst that
    can be.
    """
    clock = Clock()
    cookies = Cookies(clock)
    with logged() as events:
        request = exchange(("Host", "secret.example"), ("Cookie", "secret"))
        assert not cookies.canWrite(request)
        assert not cookies.expire(request)
        assert errorsIn(events) == []
        assert not cookies.write(request, ID)
    assert setCookies(request) == []
    assert textsOf(errorsIn(events)) == [
        "No session cookie was sent with 1 response(s), the last one to 192.0.2.1: "
        "browsers would drop it, since this is not TLS. Listen with TLS; or, if this "
        "is behind a proxy that does, let it set X-Forwarded-Proto, and name its "
        "address among the trusted proxies. Plain HTTP is only for development, on "
        "localhost."
    ]
    (event,) = events
    assert event["log_level"].name == "error"


def test_the_log_is_not_filled_with_it() -> None:
    """
    Each visitor makes it happen again, and the log has other things to say.
    """
    clock = Clock()
    cookies = Cookies(clock)
    with logged() as events:
        for _ in range(59):
            for _ in range(100):
                cookies.write(exchange(), ID)
            clock.advance(1)
        assert len(events) == 1
        clock.advance(1)
        cookies.write(exchange(peer=UNIXAddress("/run/tsrv")), ID)
        assert len(events) == 2
        # The next minute has begun only then.
        clock.advance(59)
        cookies.write(exchange(), ID)
        assert len(events) == 2
        # A clock that is set back keeps nobody from knowing.
        clock.rightNow = 0
        cookies.write(exchange(), ID)
    first, second, third = textsOf(events)
    assert "with 1 response(s), the last one to 192.0.2.1:" in first
    assert "with 5900 response(s), the last one to a UNIX socket:" in second
    assert "with 2 response(s)" in third


@pytest.mark.parametrize(
    "identifier", ["", "x" * 129, "a b", "a;b", "a\r\nX: y", "é", '"a"', "a.b", "a\n"]
)
def test_what_is_no_identifier_is_not_written(identifier: str) -> None:
    """
    It could not be read again, or would be more than a cookie.
    """
    request = over()
    with pytest.raises(ValueError, match="an identifier has"):
        make().write(request, identifier)
    assert setCookies(request) == []


def test_logout_lets_the_browser_forget() -> None:
    """
    Both ways to say so, since some clients know only one; and all that the cookie
    was given out with, since a browser takes it for another one otherwise.
    """
    request = over()
    assert make().expire(request)
    value = b"__Host-session=; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert setCookies(request) == [value + GONE]
    request = local()
    assert make().expire(request)
    assert setCookies(request) == [b"session=; Path=/; HttpOnly; SameSite=Lax" + GONE]


def test_there_is_one_cookie_of_ours_in_a_response() -> None:
    """
    The last word counts; of two, which one a browser keeps is its own affair.
    Cookies of others stay.
    """
    cookies = make()
    for asked in (over, local):
        request = asked()
        request.addCookie(b"a", b"b")
        request.addCookie(b"my-session", b"c")
        cookies.write(request, OTHER)
        cookies.expire(request)
        cookies.write(request, OTHER)
        cookies.write(request, ID)
        own = SECURE if asked is over else PLAIN
        assert setCookies(request) == [b"a=b", b"my-session=c", own]
        request = asked()
        cookies.write(request, ID)
        cookies.expire(request)
        (line,) = setCookies(request)
        assert line.endswith(GONE)


def test_after_the_headers_there_is_no_cookie() -> None:
    """
    Who asks is told that it is too late, instead of believing that it is done. It
    is no fault of how the site is served.
    """
    cookies = make()
    for request in (over(), exchange()):
        with logged() as events:
            assert setCookies(request) == []
            request.finish()
            assert not cookies.canWrite(request)
            assert not cookies.write(request, ID)
            assert not cookies.expire(request)
            assert cookies.read(request) is None
        assert events == []
    request = over()
    request.write(b"x")
    assert not cookies.canWrite(request)
    assert not cookies.write(request, ID)
    assert not cookies.expire(request)
    assert request.cookies == []


def test_a_client_that_has_left_gets_none() -> None:
    """
    What it came over is not known any more: a visitor over TLS must not be taken
    for one without, and blamed on how the site is served.
    """
    cookies = make()
    requests = [over(f"session={ID}; __Host-session={ID}"), local(f"session={ID}")]
    for request in requests:
        request.connectionLost(Failure(ConnectionError()))
        with logged() as events:
            assert cookies.read(request) is None
            assert not cookies.canWrite(request)
            assert not cookies.write(request, ID)
            assert not cookies.expire(request)
        assert events == []
        assert request.cookies == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "must be a token, not ''"),
        ({"name": "a b"}, "must be a token, not 'a b'"),
        ({"name": "a=b"}, "must be a token"),
        ({"name": "a;b"}, "must be a token"),
        ({"name": "a\n"}, "must be a token"),
        ({"name": "ä"}, "must be a token"),
        ({"name": "x" * 65}, "must be a token"),
        ({"name": "__Host-session"}, "must not begin with __"),
        ({"name": "__secure-session"}, "must not begin with __"),
        ({"sameSite": "lax"}, "sameSite must be Strict, Lax or None, not 'lax'"),
        ({"sameSite": ""}, "sameSite must be"),
        ({"trustedProxies": ["proxy"]}, "no trusted proxy"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str
) -> None:
    """
    Browsers would drop the cookie without a word.
    """
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_any_other_name_will_do() -> None:
    """
    A name may have signs in it that mean something elsewhere.
    """
    cookies = make(name="a.b*c|d^e$")
    request = over()
    cookies.write(request, ID)
    pair = setCookies(request)[0].partition(b";")[0]
    assert pair == b"__Host-a.b*c|d^e$=" + ID.encode()
    assert cookies.read(over(pair)) == ID
    assert cookies.read(over(pair.replace(b".", b"x"))) is None


# With real servers.


class Remembers(AsyncResource):
    """
    A resource that gives a visitor an identifier, and says which one it has.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.cookies = make(keys=KEYS)

    def render_GET(self, request: Request) -> Response:
        found = self.cookies.read(request)
        if found is None:
            self.cookies.write(request, ID)
        return text(str(found))


def test_a_visitor_is_known_again() -> None:
    """
    Through a real client and a real server, which have their own idea of headers.
    """
    root = Remembers()
    first = ask(root, headers={"Host": "localhost"})
    assert first.body == b"None"
    pair = first.headers["set-cookie"].partition(";")[0]
    second = ask(root, headers={"Host": "localhost", "Cookie": f"a=b; {pair}"})
    assert second.body == ID.encode()
    assert "set-cookie" not in second.headers


def test_a_cookie_of_100_kb_does_no_harm(clock: Clock) -> None:
    """
    The site refuses it before anybody looks; who serves with another one is as
    safe.
    """
    value = b"x" * 100_000
    begin = b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: session="
    peer = Peer(Site(Remembers(), clock), clock)
    peer.send(begin + value + b"\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [431]
    peer.leave()
    assert make().read(local(b"session=" + value)) is None
