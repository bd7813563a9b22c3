"""
Requests that another site may have caused are refused, and proxies are believed only if
they are trusted.
"""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.server import Request

from tsrv.web.origin import (
    CrossSite,
    Proxies,
    checkOrigin,
    isLocal,
    peerOf,
)
from tsrv.web.responses import AsyncResource, Response, text

from .exchanges import SOMEBODY, exchange
from .websupport import ask

TOKEN = "what-only-our-own-pages-know"  # noqa: S105

FETCH, ORIGIN, CSRF = "Sec-Fetch-Site", "Origin", "X-CSRF-Token"
PROTO, FOR = "X-Forwarded-Proto", "X-Forwarded-For"

PROXY = "10.0.0.1"

Header = tuple[str, str | bytes]


def passes(
    *headers: Header,
    secure: bool = False,
    token: str | None = None,
    method: bytes = b"POST",
    host: str | None = "example.org",
) -> bool:
    """
    @return: Whether a request passes the check.
    """
    hosts: list[Header] = [] if host is None else [("Host", host)]
    try:
        checkOrigin(exchange(*hosts, *headers, method=method), secure, token)
    except CrossSite:
        return False
    return True


# Requests of other sites.


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "DELETE", "get", "X"]
)
def test_safe_methods_pass(method: str) -> None:
    """
    Safe methods pass, so that links on other sites work. An unknown method counts as
    unsafe.
    """
    isSafe = method in ("GET", "HEAD", "OPTIONS", "TRACE")
    raw = method.encode()
    assert passes((FETCH, "cross-site"), (ORIGIN, "null"), method=raw) is isSafe
    assert passes((ORIGIN, "http://evil.example"), method=raw) is isSafe
    assert passes(method=raw) is isSafe


# The meaning of each value: True for this site, False against it, None for neither. No
# page can set Sec-Fetch-Site, but with Referrer-Policy: no-referrer its Origin is null.
SITES: dict[str | None, bool | None] = {
    None: None,
    "same-origin": True,
    "none": True,
    "same-site": False,
    "cross-site": False,
    "": False,
    "Same-Origin": False,
    "same-origin, cross-site": False,
    "x" * 10_000: False,
}
ORIGINS: dict[str | None, bool | None] = {
    None: None,
    "http://example.org": True,
    "http://other.example": False,
    "https://example.org": False,
    "http://example.org:8000": False,
    "chrome-extension://abc": False,
    "null": None,
    "": False,
}
TOKENS: dict[str | None, bool | None] = {None: None, TOKEN: True, "guessed": False}


@pytest.mark.parametrize(
    ("site", "origin", "sent"),
    [*product(SITES, ORIGINS, TOKENS)],
    ids=lambda value: ascii(value)[:30],
)
def test_no_header_may_speak_against_the_request(
    site: str | None, origin: str | None, sent: str | None
) -> None:
    """
    If Sec-Fetch-Site or Origin names another site, neither the other header nor the
    token helps. The token counts only if a client sends neither header.
    """
    pairs = ((FETCH, site), (ORIGIN, origin), (CSRF, sent))
    headers = [(name, value) for name, value in pairs if value is not None]
    if site is None and origin is None:
        expected = TOKENS[sent] is True
    else:
        said = {SITES[site], ORIGINS[origin]}
        expected = True in said and False not in said
    assert passes(*headers, token=TOKEN) is expected


def test_a_repeated_header_is_refused() -> None:
    """
    A repeated header is refused, since another server may read the other one.
    """
    own = "http://example.org"
    assert not passes((FETCH, "same-origin"), (FETCH, "same-origin"))
    assert not passes((ORIGIN, own), (ORIGIN, own))
    assert not passes((FETCH, "same-origin"), (ORIGIN, own), (ORIGIN, own))
    assert not passes((FETCH, "same-origin"), (ORIGIN, "null"), (ORIGIN, "null"))
    assert not passes((CSRF, TOKEN), (CSRF, TOKEN), token=TOKEN)
    assert not passes(("Host", "example.org"), (ORIGIN, own))


@pytest.mark.parametrize(
    ("origin", "host", "secure", "isOwn"),
    [
        ("http://example.org", "example.org", False, True),
        ("http://Example.org", "eXample.org:80", False, True),
        ("http://example.org:80", "example.org", False, True),
        ("http://example.org:8000", "example.org:8000", False, True),
        ("https://example.org", "example.org:443", True, True),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443", True, True),
        ("null", "null", False, False),
        ("http://", "", False, False),
        ("http://other.example", "example.org", False, False),
        ("http://example.org@evil.example", "example.org", False, False),
        ("http://example.org", "evil@example.org", False, False),
        ("http://example.org", "example.org:8000", False, False),
        ("https://example.org", "example.org", False, False),
        ("http://example.org", "example.org", True, False),
        ("HTTP://example.org", "example.org", False, False),
        ("ftp://example.org", "example.org", False, False),
        ("example.org", "example.org", False, False),
        ("http://example.org/", "example.org", False, False),
        ("http://example.org\0", "example.org\0", False, False),
        ("http://example.org:", "example.org", False, False),
        ("http://example.org:123456", "example.org:123456", False, False),
        ("http://" + "x" * 10_000, "x" * 10_000, False, False),
        ("http://example.org", None, False, False),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_origin_must_be_that_of_the_site(
    origin: str, host: str | None, secure: bool, isOwn: bool
) -> None:
    """
    Scheme, host and port of the origin must match the site; a token does not help.
    """
    sent: list[Header] = [(ORIGIN, origin), (CSRF, TOKEN)]
    assert passes(sent[0], host=host, secure=secure) is isOwn
    assert passes(*sent, host=host, secure=secure, token=TOKEN) is isOwn


@pytest.mark.parametrize(
    ("sent", "token", "isOwn"),
    [
        (TOKEN, TOKEN, True),
        (None, TOKEN, False),
        (TOKEN, None, False),
        (None, None, False),
        ("", "", False),
        ("", None, False),
        (TOKEN[:-1], TOKEN, False),
        (TOKEN.upper(), TOKEN, False),
        (b"\xff\x00\xfe", TOKEN, False),
    ],
)
def test_a_client_that_says_nothing_needs_the_token(
    sent: str | bytes | None, token: str | None, isOwn: bool
) -> None:
    """
    A client without these headers needs the token. A session without a token does not
    accept a missing one.
    """
    headers: list[Header] = [] if sent is None else [(CSRF, sent)]
    assert passes(*headers, token=token) is isOwn


class Guarded(AsyncResource):
    """
    A resource that checks the origin.
    """

    isLeaf = True

    def render_POST(self, request: Request) -> Response:
        checkOrigin(request, False)
        return text("done")


def test_a_refusal_says_what_to_send() -> None:
    """
    The 403 says what to send, and does not repeat a token.
    """
    for headers, error in (
        (
            {CSRF: TOKEN},
            "The request does not say which site has made it: send Origin, or the "
            "token of the session as X-CSRF-Token",
        ),
        ({ORIGIN: "http://other.example"}, "The request was made by another site"),
    ):
        refused = ask(Guarded(), method="POST", headers=headers)
        assert refused.status == 403
        assert json.loads(refused.body)["error"] == error
    assert ask(Guarded(), method="POST", headers={ORIGIN: "http://test"}).status == 200


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FETCH, ORIGIN, CSRF, "Host"]),
            st.binary() | st.sampled_from([b"null", b"http://h", b"h", b"cross-site"]),
        ),
        max_size=5,
    )
)
def test_any_header_passes_or_is_refused(headers: list[Header]) -> None:
    """
    Any header passes or is refused; the check never fails in another way.
    """
    request = exchange(*headers, method=b"POST")
    try:
        checkOrigin(request, False, TOKEN)
    except CrossSite:
        return
    values = map(request.requestHeaders.getRawHeaders, (FETCH, ORIGIN, CSRF))
    (first,) = next(filter(None, values))
    assert first in ("same-origin", "none", TOKEN) or first.startswith("http://")


# The origin of a request.


@pytest.mark.parametrize(
    ("peer", "host", "expected"),
    [
        *product(
            ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"],
            ["LocalHost:8000", "app.localhost", "127.9.9.9:8000", "[::1]"],
            [True],
        ),
        *product(
            ["127.0.0.1"],
            [
                "example.org",
                "localhost.example.org",
                "notlocalhost",
                "localhost@example.org",
                "127.0.0.1.example.org",
                "192.0.2.1",
                "::1",
                "[::2]",
                "[]",
                "localhost:port",
                "localhost ",
                "",
                "x" * 100_000,
            ],
            [False],
        ),
        *product(
            [SOMEBODY, "2001:db8::1", "::ffff:192.0.2.1", UNIXAddress("/x")],
            ["localhost", "[::1]"],
            [False],
        ),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_local_request_has_a_local_peer_and_name(
    peer: str | IAddress, host: str, expected: bool
) -> None:
    """
    A local request has a local address and a local host name: a proxy also has a local
    address, and another site may point its name to this machine.
    """
    assert isLocal(exchange(("Host", host), peer=peer)) is expected
    assert not isLocal(exchange(("Host", host), ("Host", host), peer=peer))
    assert not isLocal(exchange(peer=peer))


@pytest.mark.parametrize(
    ("trusted", "peer", "isTrusted"),
    [
        ([], PROXY, False),
        ([PROXY], PROXY, True),
        ([PROXY], "10.0.0.2", False),
        (["192.0.2.9", "10.0.0.0/8"], "10.9.9.9", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8"], PROXY, False),
        (["fe80::/10"], "fe80::1%eth0", True),
        ([PROXY], f"::ffff:{PROXY}", True),
        (["unix"], UNIXAddress("/run/tsrv"), True),
        (["unix"], PROXY, False),
        ([PROXY], UNIXAddress("/run/tsrv"), False),
        (["0.0.0.0/0"], IPv4Address("TCP", "not an address", 1), False),
    ],
    ids=str,
)
def test_only_trusted_proxies_are_believed(
    trusted: list[str], peer: str | IAddress, isTrusted: bool
) -> None:
    """
    Headers of proxies are believed only if the proxy is trusted, since anybody can send
    them.
    """
    proxies = Proxies(trusted)
    request = exchange((PROTO, "https"), (FOR, "198.51.100.1"), peer=peer)
    assert proxies.isSecure(request) is isTrusted
    expected = "198.51.100.1" if isTrusted else peerOf(request)
    assert proxies.peerOf(request) == expected
    # Over TLS, a stranger cannot pretend to use plain HTTP.
    request = exchange((PROTO, "http"), peer=peer, secure=True)
    assert proxies.isSecure(request) is not isTrusted


@pytest.mark.parametrize(
    ("protos", "isSecure"),
    [
        (["https"], True),
        (["HTTPS, https ", "https"], True),
        (["http"], False),
        (["http", "https"], False),
        ([""], False),
        (["https,"], False),
        (["httpss"], False),
        (["\xa0https".encode("latin-1")], False),
        ([], False),
    ],
)
def test_each_hop_must_use_tls(protos: list[str | bytes], isSecure: bool) -> None:
    """
    A client cannot pretend to use TLS with a header to which the proxy appends.
    """
    headers: list[Header] = [(PROTO, each) for each in protos]
    assert Proxies([PROXY]).isSecure(exchange(*headers, peer=PROXY)) is isSecure


@pytest.mark.parametrize(
    ("hops", "peer"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 10.0.0.2, 10.0.0.3"], "198.51.100.1"),
        (["10.0.0.3"], "10.0.0.3"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, unknown"], PROXY),
        (["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        (["198.51.100.1, fe80::1%forged"], PROXY),
        ([","], PROXY),
        (["[]"], PROXY),
        (["198.51.100.1:"], PROXY),
        ([b"\xff\x00"], PROXY),
        (["198.51.100.1, " + "10.0.0.2, " * 1000 + "10.0.0.3"], "10.0.0.2"),
        ([], PROXY),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_client_is_the_last_hop_that_is_no_proxy(
    hops: list[str | bytes], peer: str
) -> None:
    """
    The client is the last hop that is not a proxy; the addresses before it may be
    invented.
    """
    headers: list[Header] = [(FOR, each) for each in hops]
    assert Proxies(["10.0.0.0/8"]).peerOf(exchange(*headers, peer=PROXY)) == peer


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        (["proxy.example"], "invalid trusted proxy: 'proxy.example' does not appear"),
        (["10.0.0.1/8"], "invalid trusted proxy: 10.0.0.1/8 has host bits set"),
        (PROXY, "trusted proxies must be a list of texts, not one text"),
    ],
)
def test_an_invalid_proxy_is_refused(trusted: list[str] | str, message: str) -> None:
    """
    A typing error in the option is reported at once, and not by visitors who cannot log
    in.
    """
    with pytest.raises(ValueError, match=message):
        Proxies(trusted)
