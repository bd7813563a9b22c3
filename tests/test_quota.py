"""
Nobody does more than was allowed, and nobody waits for others but for all.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.web.server import Request

from tsrv.sessions import (
    Quota,
    TooMany,
)
from tsrv.web.origin import Proxies
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)

from .exchanges import exchange
from .websupport import ask

ONE, OTHER = "192.0.2.1", "192.0.2.2"


class Limited(AsyncResource):
    """
    A resource that answers so often.
    """

    isLeaf = True

    def __init__(self, quota: Quota) -> None:
        super().__init__()
        self._quota = quota

    def render_GET(self, request: Request) -> Response:
        self._quota.admit(request)
        return text("yes")


def test_a_peer_may_do_it_so_often(clock: Clock) -> None:
    """
    All at once, since that is how a page asks; then as fast as the bucket fills.
    """
    quota = Quota(clock, 3, 100, 60)
    assert [quota.take(ONE) for _ in range(4)] == [None, None, None, 20]
    clock.advance(15)
    assert quota.take(ONE) == 5
    clock.advance(5)
    assert quota.take(ONE) is None
    assert quota.take(ONE) == 20


def test_a_bucket_does_not_overflow(clock: Clock) -> None:
    """
    Who was away for a day may not do at once what was allowed in a day.
    """
    quota = Quota(clock, 2, 100, 60)
    quota.take(ONE)
    clock.advance(86_400)
    assert [quota.take(ONE) for _ in range(3)] == [None, None, 30]


def test_peers_do_not_wait_for_each_other(clock: Clock) -> None:
    """
    One that does too much must not lock out the others.
    """
    quota = Quota(clock, 1, 100, 60)
    assert quota.take(ONE) is None
    assert quota.take(ONE) == 60
    assert quota.take(OTHER) is None


def test_all_together_may_do_it_so_often(clock: Clock) -> None:
    """
    Who has many addresses has a limit too.
    """
    quota = Quota(clock, 2, 4, 60)
    taken = [quota.take(f"192.0.2.{number}") for number in range(5)]
    assert taken == [None, None, None, None, 15]
    clock.advance(15)
    assert quota.take("192.0.2.4") is None


def test_what_is_refused_takes_nothing(clock: Clock) -> None:
    """
    Otherwise who asks again and again would never be let in, and would take from
    the others.
    """
    quota = Quota(clock, 1, 2, 60)
    assert quota.take(ONE) is None
    assert {quota.take(ONE) for _ in range(100)} == {60}
    assert quota.take(OTHER) is None
    # Nothing is left for all: this peer has its own still when there is.
    assert quota.take("192.0.2.3") == 30
    clock.advance(30)
    assert quota.take("192.0.2.3") is None


def test_one_waits_for_both(clock: Clock) -> None:
    """
    The time that is told is the one after which it works.
    """
    quota = Quota(clock, 1, 2, 60)
    quota.take(ONE)
    quota.take(OTHER)
    assert quota.take("192.0.2.3") == 30
    assert quota.take(ONE) == 60


@pytest.mark.parametrize(
    ("one", "other", "isSame"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:0DB8:0::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "unknown", True),
        ("", "192.0.2.1", False),
        ("x" * 100_000, "\0\udcff", True),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_who_is_one_peer(clock: Clock, one: str, other: str, isSame: bool) -> None:
    """
    A household has 2**64 addresses of IPv6, and must not have as many buckets; nor
    may anybody have several names for one address.
    """
    quota = Quota(clock, 1, 100, 60)
    assert quota.take(one) is None
    assert (quota.take(other) is not None) == isSame


def test_the_peers_that_are_remembered_have_a_bound(clock: Clock) -> None:
    """
    A million addresses must not fill the memory; the one forgotten is the one that
    was here least recently.
    """
    quota = Quota(clock, 2, 10_000_000, 1_000_000, mostPeers=3)
    a, b, c, d = (f"192.0.2.{number}" for number in range(4))
    for peer in (a, a, b, b, c, c):
        assert quota.take(peer) is None
    assert quota.take(d) is None
    assert quota.take(b) is not None
    assert quota.take(c) is not None
    assert quota.take(a) is None
    for number in range(1000):
        quota.take(f"198.51.{number // 200}.{number % 200}")
    assert len(quota._peers) == 3


def test_who_does_it_is_not_forgotten(clock: Clock) -> None:
    """
    Least recently used, and not first come: who comes often must not be forgotten
    because of having come early.
    """
    quota = Quota(clock, 2, 100, 1_000_000, mostPeers=2)
    for peer in (ONE, OTHER, ONE, "192.0.2.3"):
        assert quota.take(peer) is None
    assert quota.take(ONE) is not None
    assert quota.take(OTHER) is None


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    """
    The time of a reactor is that of the machine, which may have been wrong by
    years.
    """
    clock = Clock()
    clock.advance(1e9)
    quota = Quota(clock, 1, 1, 60)
    assert quota.take(ONE) is None
    clock.rightNow = 1e6
    assert quota.take(ONE) is None
    assert quota.take(ONE) == 60
    clock.advance(60)
    assert quota.take(ONE) is None


@pytest.mark.parametrize("perPeer", [1, 3, 7, 60])
def test_the_time_that_was_told_is_enough(perPeer: int) -> None:
    """
    Times of today have few digits behind the point left; who comes exactly when he
    was told to must not be sent away for a millionth of a second.
    """
    clock = Clock()
    clock.advance(1_790_000_000.123)
    quota = Quota(clock, perPeer, 100_000, 60)
    waits = 0
    for _ in range(500):
        wait = quota.take(ONE)
        if wait is not None:
            waits += 1
            clock.advance(wait)
            assert quota.take(ONE) is None
    assert waits > 400


@given(
    st.integers(1, 50),
    st.integers(1, 100),
    st.floats(0.01, 1e5),
    st.floats(0, 2e9),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 2)), max_size=100),
)
def test_no_more_than_was_allowed_and_never_a_wrong_time(
    perPeer: int,
    total: int,
    seconds: float,
    start: float,
    takes: list[tuple[int, float]],
) -> None:
    """
    Whatever the order: in each stretch of time no more than a full bucket and what
    flows into it, and who waits as long as was said is let in.
    """
    clock = Clock()
    clock.advance(start)
    quota = Quota(clock, perPeer, total, seconds)
    times: dict[str, list[float]] = {"": []}
    for number, pause in takes:
        clock.advance(pause * seconds / perPeer)
        peer = f"192.0.2.{number}"
        wait = quota.take(peer)
        if wait is not None:
            assert 0 < wait <= seconds
            # To a microsecond: times of today are not more exact.
            clock.advance(wait + 1e-6)
            assert quota.take(peer) is None
        for name in (peer, ""):
            times.setdefault(name, []).append(clock.seconds())
    for name, taken in times.items():
        most = perPeer if name else total
        for first, begin in enumerate(taken):
            for count, end in enumerate(taken[first:], 1):
                assert count <= most + (end - begin) * most / seconds + 0.1


@pytest.mark.parametrize(
    ("perPeer", "total", "seconds", "mostPeers"),
    [
        (0, 1, 1, 1),
        (1, 0, 1, 1),
        (1, 1, 0, 1),
        (1, 1, -1, 1),
        (1, 1, float("inf"), 1),
        (1, 1, float("nan"), 1),
        (1, 1, 1, 0),
    ],
)
def test_options_that_make_no_sense_are_refused(
    clock: Clock, perPeer: int, total: int, seconds: float, mostPeers: int
) -> None:
    """
    A quota of nothing would lock out everybody, and only once somebody comes.
    """
    with pytest.raises(ValueError, match=r"must be"):
        Quota(clock, perPeer, total, seconds, mostPeers=mostPeers)


def test_a_client_is_told_when_to_come_back(clock: Clock) -> None:
    """
    A client that does not know that would try again at once.
    """
    root = Limited(Quota(clock, 1, 100, 60))
    assert ask(root).status == 200
    clock.advance(20.5)
    refused = ask(root)
    assert refused.status == 429
    assert refused.headers["retry-after"] == "40"
    assert b"Too many requests, try again later" in refused.body
    clock.advance(40)
    assert ask(root).status == 200


def test_nobody_is_told_to_come_back_at_once() -> None:
    """
    C{Retry-After} knows whole seconds, and 0 of them is no pause.
    """
    assert TooMany(0.001).headers == [(b"Retry-After", b"1")]


def test_behind_a_proxy_each_client_counts(clock: Clock) -> None:
    """
    Otherwise all the world would share what one peer may do.
    """
    proxies = Proxies(["192.0.2.1"])
    quota = Quota(clock, 1, 100, 60, peerOf=proxies.peerOf)
    for client in ("198.51.100.1", "198.51.100.2"):
        request = exchange(("X-Forwarded-For", client))
        quota.admit(request)
        with pytest.raises(TooMany):
            quota.admit(request)
    # Who is no proxy may say what he likes.
    plain = Quota(clock, 1, 100, 60)
    plain.admit(exchange(("X-Forwarded-For", "198.51.100.1")))
    with pytest.raises(TooMany):
        plain.admit(exchange(("X-Forwarded-For", "198.51.100.2")))
