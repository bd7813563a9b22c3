"""
What comes from another site is refused, and what comes from our own is not.
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
    addressOf,
    checkOrigin,
    isLocal,
    peerOf,
)
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)

from .exchanges import SOMEBODY, exchange
from .websupport import ask

TOKEN = "what-only-our-own-pages-know"  # noqa: S105

FETCH = "Sec-Fetch-Site"
ORIGIN = "Origin"
CSRF = "X-CSRF-Token"

PROXY = "10.0.0.1"
PROTO = "X-Forwarded-Proto"
FOR = "X-Forwarded-For"

Header = tuple[str, str | bytes]


def passes(
    *headers: Header,
    secure: bool = False,
    token: str | None = None,
    method: bytes = b"POST",
    host: str | None = "example.org",
) -> bool:
    """
    @return: Whether a request is let through.
    """
    hosts: list[Header] = [] if host is None else [("Host", host)]
    request = exchange(*hosts, *headers, method=method)
    try:
        checkOrigin(request, secure, token)
    except CrossSite:
        return False
    return True


class Guarded(AsyncResource):
    """
    A resource that other sites must not use.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Response:
        return self.render_POST(request)

    def render_POST(self, request: Request) -> Response:
        checkOrigin(request, False)
        return text("done")


# Which requests are those of another site.


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"TRACE"])
def test_what_changes_nothing_passes(method: bytes) -> None:
    """
    Links from other sites have to work.
    """
    assert passes((FETCH, "cross-site"), (ORIGIN, "null"), method=method)


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"get", b"Get", b"X", b""]
)
def test_what_may_change_something_does_not(method: bytes) -> None:
    """
    A method that is not known to be safe may be anything, and methods are written
    in capitals.
    """
    assert not passes((FETCH, "cross-site"), method=method)
    assert not passes((ORIGIN, "http://evil.example"), method=method)
    assert not passes(method=method)


@pytest.mark.parametrize(
    ("site", "isOwn"),
    [
        ("same-origin", True),
        ("none", True),
        ("same-site", False),
        ("cross-site", False),
        ("", False),
        ("Same-Origin", False),
        ("same-origin, cross-site", False),
        ("same-origin ", False),
        ("x" * 10_000, False),
    ],
)
def test_what_the_browser_says_of_the_site_counts(site: str, isOwn: bool) -> None:
    """
    No page can make a browser say something else there, so nothing else is asked:
    an origin that a proxy has changed does no harm, and a token saves nobody.
    """
    assert passes((FETCH, site)) == isOwn
    assert passes((FETCH, site), (ORIGIN, "http://other.example")) == isOwn
    assert passes((FETCH, site), (CSRF, TOKEN), token=TOKEN) == isOwn


def test_two_answers_are_none() -> None:
    """
    Who sends a header twice hopes that somebody else reads the other one.
    """
    assert not passes((FETCH, "same-origin"), (FETCH, "cross-site"))
    assert not passes((FETCH, "same-origin"), (FETCH, "same-origin"))
    own = "http://example.org"
    assert not passes((ORIGIN, own), (ORIGIN, own))
    assert not passes((CSRF, TOKEN), (CSRF, TOKEN), token=TOKEN)
    assert not passes(("Host", "example.org"), (ORIGIN, own))


@pytest.mark.parametrize(
    ("origin", "host", "secure", "isOwn"),
    [
        ("http://example.org", "example.org", False, True),
        ("http://example.org", "example.org:80", False, True),
        ("http://example.org:80", "example.org", False, True),
        ("http://Example.ORG", "eXample.org", False, True),
        ("http://example.org:8000", "example.org:8000", False, True),
        ("https://example.org", "example.org", True, True),
        ("https://example.org", "example.org:443", True, True),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443", True, True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False, True),
        ("null", "example.org", False, False),
        ("null", "null", False, False),
        ("", "example.org", False, False),
        ("", "", False, False),
        ("http://", "", False, False),
        ("http://", "example.org", False, False),
        ("http://other.example", "example.org", False, False),
        ("http://example.org.evil.example", "example.org", False, False),
        ("http://evil.example.org", "example.org", False, False),
        ("http://example.org@evil.example", "example.org", False, False),
        ("http://example.org", "evil@example.org", False, False),
        ("http://example.org:8000", "example.org", False, False),
        ("http://example.org", "example.org:8000", False, False),
        ("http://example.org:443", "example.org", True, False),
        ("https://example.org", "example.org", False, False),
        ("http://example.org", "example.org", True, False),
        ("https://example.org:80", "example.org", False, False),
        ("HTTP://example.org", "example.org", False, False),
        ("ftp://example.org", "example.org", False, False),
        ("example.org", "example.org", False, False),
        ("http://example.org/", "example.org", False, False),
        ("http://example.org http://example.org", "example.org", False, False),
        ("http://example.org, null", "example.org", False, False),
        ("http://example.org\0", "example.org\0", False, False),
        ("http://example.org:", "example.org", False, False),
        ("http://example.org:8_0", "example.org", False, False),
        ("http://example.org:123456", "example.org:123456", False, False),
        ("http://" + "x" * 10_000, "x" * 10_000, False, False),
        ("http://example.org", None, False, False),
    ],
)
def test_an_origin_has_to_be_the_one_that_was_asked(
    origin: str, host: str | None, secure: bool, isOwn: bool
) -> None:
    """
    Scheme, host and port: a page over plain HTTP, which somebody on the way may
    have written, and another service of the same host are other sites. A token
    does not make good what the browser has said.
    """
    assert passes((ORIGIN, origin), host=host, secure=secure) == isOwn
    sent: list[Header] = [(ORIGIN, origin), (CSRF, TOKEN)]
    assert passes(*sent, host=host, secure=secure, token=TOKEN) == isOwn


@pytest.mark.parametrize(
    ("given_", "token", "isOwn"),
    [
        (TOKEN, TOKEN, True),
        (None, TOKEN, False),
        (TOKEN, None, False),
        (None, None, False),
        ("", "", False),
        ("", TOKEN, False),
        ("", None, False),
        (TOKEN[:-1], TOKEN, False),
        (TOKEN + "x", TOKEN, False),
        (TOKEN.upper(), TOKEN, False),
        ("x" * 100_000, TOKEN, False),
        (b"\xff\x00\xfe", TOKEN, False),
    ],
)
def test_who_says_nothing_needs_the_token(
    given_: str | bytes | None, token: str | None, isOwn: bool
) -> None:
    """
    Old browsers and programs say neither, and a session that has no token must not
    take the lack of one for it.
    """
    headers: list[Header] = [] if given_ is None else [(CSRF, given_)]
    assert passes(*headers, token=token) == isOwn


def test_a_client_is_told_what_to_do() -> None:
    """
    Who writes a program against the site finds its way; nothing of the token is in
    the answer.
    """
    root = Guarded()
    assert ask(root).body == b"done"
    refused = ask(root, method="POST", headers={"X-CSRF-Token": TOKEN})
    assert refused.status == 403
    problem = json.loads(refused.body)
    assert problem["error"] == (
        "The request does not say which site has made it: send Origin, or the "
        "token of the session as X-CSRF-Token"
    )
    refused = ask(root, method="POST", headers={ORIGIN: "http://other.example"})
    assert refused.status == 403
    problem = json.loads(refused.body)
    assert problem["error"] == "The request was made by another site"
    assert ask(root, method="POST", headers={ORIGIN: "http://test"}).status == 200


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FETCH, ORIGIN, CSRF, "Host"]),
            st.binary() | st.sampled_from([b"null", b"http://h", b"h", b"cross-site"]),
        ),
        max_size=5,
    )
)
def test_whatever_is_sent_there_is_an_answer(headers: list[Header]) -> None:
    """
    An error in the check would be one of the server, and might be let pass by who
    catches it.
    """
    request = exchange(*headers, method=b"POST")
    own = request.requestHeaders
    try:
        checkOrigin(request, False, TOKEN)
    except CrossSite:
        return
    fetch = own.getRawHeaders(b"Sec-Fetch-Site")
    origin = own.getRawHeaders(b"Origin")
    token = own.getRawHeaders(b"X-CSRF-Token")
    (first,) = fetch or origin or token or []
    assert first in (b"same-origin", b"none", TOKEN.encode()) or first.startswith(
        b"http://"
    )


# From whom a request comes.


@pytest.mark.parametrize(
    ("peer", "host", "isOurs"),
    [
        *product(
            ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"],
            [
                "localhost",
                "localhost:8000",
                "LocalHost",
                "app.localhost:8000",
                "127.0.0.1",
                "127.0.0.1:8000",
                "127.9.9.9",
                "[::1]",
                "[::1]:8000",
            ],
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
                "0.0.0.0",  # noqa: S104
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
            ["localhost", "127.0.0.1", "[::1]"],
            [False],
        ),
    ],
)
def test_who_is_on_this_machine(peer: str | IAddress, host: str, isOurs: bool) -> None:
    """
    The address alone does not tell: a proxy has one of this machine too, and a
    name of somebody else's may be made to lead here.
    """
    assert isLocal(exchange(("Host", host), peer=peer)) == isOurs


def test_who_names_no_host_or_two_is_nobody_of_ours() -> None:
    """
    Which of them a browser would have meant is not known.
    """
    assert not isLocal(exchange(peer="127.0.0.1"))
    two: list[Header] = [("Host", "localhost"), ("Host", "localhost")]
    assert not isLocal(exchange(*two, peer="127.0.0.1"))


@pytest.mark.parametrize(
    ("trusted", "peer", "isTrusted"),
    [
        ([], PROXY, False),
        ([PROXY], PROXY, True),
        ([PROXY], "10.0.0.2", False),
        (["10.0.0.0/8"], "10.9.9.9", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["192.0.2.9", "10.0.0.0/8"], PROXY, True),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8"], PROXY, False),
        (["fe80::/10"], "fe80::1%eth0", True),
        ([PROXY], f"::ffff:{PROXY}", True),
        (["unix"], UNIXAddress("/run/tsrv"), True),
        (["unix"], PROXY, False),
        ([PROXY], UNIXAddress("/run/tsrv"), False),
        (["unix", PROXY], PROXY, True),
        (["0.0.0.0/0"], "not an address", False),
    ],
    ids=str,
)
def test_only_named_proxies_are_believed(
    trusted: list[str], peer: str | IAddress, isTrusted: bool
) -> None:
    """
    Everybody can send such headers.
    """
    if peer == "not an address":
        peer = IPv4Address("TCP", peer, 1)
    proxies = Proxies(trusted)
    request = exchange((PROTO, "https"), (FOR, "198.51.100.1"), peer=peer)
    assert proxies.isSecure(request) == isTrusted
    assert (proxies.peerOf(request) == "198.51.100.1") == isTrusted
    if not isTrusted:
        assert proxies.peerOf(request) == peerOf(request)


@pytest.mark.parametrize(
    ("said", "overTLS", "isSecure"),
    [
        (["https"], False, True),
        (["HTTPS"], False, True),
        (["https, https"], False, True),
        (["https", " https "], False, True),
        (["http"], False, False),
        (["https, http"], False, False),
        (["https", "http"], False, False),
        (["http, https"], False, False),
        ([""], False, False),
        (["https,"], False, False),
        (["httpss"], False, False),
        (["\xa0https".encode("latin-1")], False, False),
        (["wss"], False, False),
        ([], False, False),
        ([], True, True),
        (["http"], True, False),
        (["https"], True, True),
    ],
)
def test_what_a_proxy_was_asked_over(
    said: list[str | bytes], overTLS: bool, isSecure: bool
) -> None:
    """
    The browser's own part of the way is what counts for it; and where a proxy adds
    to what a client has sent, that must not help the client.
    """
    headers: list[Header] = [(PROTO, each) for each in said]
    request = exchange(*headers, peer=PROXY, secure=overTLS)
    assert Proxies([PROXY]).isSecure(request) == isSecure


@pytest.mark.parametrize("said", ["https", "http"])
def test_others_change_nothing_about_a_connection(said: str) -> None:
    """
    A client over TLS that says otherwise would only harm itself; one without it
    would get cookies for an attacker on the way.
    """
    proxies = Proxies([PROXY])
    assert proxies.isSecure(exchange((PROTO, said), secure=True))
    assert not proxies.isSecure(exchange((PROTO, said)))


@pytest.mark.parametrize(
    ("said", "peer"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 10.0.0.2, 10.0.0.3"], "198.51.100.1"),
        (["10.0.0.3"], "10.0.0.3"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["unknown"], PROXY),
        (["198.51.100.1, unknown"], PROXY),
        (["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        ([""], PROXY),
        ([","], PROXY),
        (["[]"], PROXY),
        (["[::1"], PROXY),
        (["198.51.100.1:"], PROXY),
        ([b"\xff\x00"], PROXY),
        (["198.51.100.1, " + "10.0.0.2, " * 1000 + "10.0.0.3"], "10.0.0.2"),
        (["1" * 100_000], PROXY),
        ([], PROXY),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_client_behind_proxies(said: list[str | bytes], peer: str) -> None:
    """
    The last one that a trusted proxy has named: what stands before it, the client
    may have invented, to count as somebody else.
    """
    headers: list[Header] = [(FOR, each) for each in said]
    assert Proxies(["10.0.0.0/8"]).peerOf(exchange(*headers, peer=PROXY)) == peer


def test_a_socket_that_is_a_file_has_no_address() -> None:
    """
    A proxy on the same machine often comes over one; then only it can tell from
    where a request is.
    """
    proxies, peer = Proxies(["unix"]), UNIXAddress("/run/tsrv")
    assert proxies.peerOf(exchange(peer=peer)) == ""
    assert proxies.peerOf(exchange((FOR, "192.0.2.9"), peer=peer)) == "192.0.2.9"


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        (["proxy.example"], "no trusted proxy: 'proxy.example' does not appear to be"),
        (["10.0.0.1/8"], "no trusted proxy: 10.0.0.1/8 has host bits set"),
        ([""], "no trusted proxy"),
        (PROXY, "trusted proxies are a sequence, not one text"),
    ],
)
def test_what_is_no_proxy_is_refused(trusted: list[str] | str, message: str) -> None:
    """
    One that is only mistyped would be found out by visitors who cannot log in.
    """
    with pytest.raises(ValueError, match=message):
        Proxies(trusted)


def test_an_address_has_one_form() -> None:
    """
    On a socket for both kinds of addresses those of IPv4 are written as of IPv6.
    """
    assert addressOf("::ffff:192.0.2.1") == addressOf("192.0.2.1") is not None
    assert addressOf("192.0.2.1 ") is None
    assert addressOf("localhost") is None
