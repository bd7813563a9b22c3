"""
The limit on new sessions: for each client, and for all clients together.
"""

from __future__ import annotations

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

from tsrv.sessions import Quota, TooMany
from tsrv.web.origin import Proxies

from .exchanges import exchange

ONE, OTHER = "192.0.2.1", "192.0.2.2"


def isCounted(quota: Quota, peer: str | IAddress) -> bool:
    """
    @return: Whether a client may have another session.
    """
    try:
        quota.count(exchange(peer=peer))
    except TooMany:
        return False
    return True


def test_a_client_gets_so_many_sessions_in_a_window(clock: Clock) -> None:
    """
    In each window a client may have a limited number of new sessions; other clients are
    not affected.
    """
    quota = Quota(clock, 3, 100, 60)
    for _ in range(2):
        assert [isCounted(quota, ONE) for _ in range(4)] == [True, True, True, False]
        assert isCounted(quota, OTHER)
        clock.advance(60)


def test_all_clients_together_get_so_many_sessions(clock: Clock) -> None:
    """
    The limit for all clients holds for a client with many addresses, too; refused
    sessions do not count.
    """
    quota = Quota(clock, 2, 4, 60)
    peers = [f"192.0.2.{number}" for number in range(6)]
    assert [isCounted(quota, each) for each in peers] == [True] * 4 + [False] * 2
    clock.advance(60)
    assert [isCounted(quota, peers[5]) for _ in range(3)] == [True, True, False]


def test_retry_after_is_the_time_until_the_next_window(clock: Clock) -> None:
    """
    Retry-After is the time until the next window, in whole seconds, at least one.
    """
    quota = Quota(clock, 1, 100, 60)
    assert isCounted(quota, ONE)
    for elapsed, expected in ((20.5, b"40"), (39.4, b"1")):
        clock.advance(elapsed)
        with pytest.raises(TooMany) as raised:
            quota.count(exchange(peer=ONE))
        assert raised.value.headers == [(b"Retry-After", expected)]


def test_a_count_can_be_taken_back(clock: Clock) -> None:
    """
    A count that is taken back makes room in its own window, but not in a later one.
    """
    quota = Quota(clock, 1, 1, 60)
    uncount = quota.count(exchange(peer=ONE))
    uncount()
    assert [isCounted(quota, ONE), isCounted(quota, OTHER)] == [True, False]
    clock.advance(60)
    assert isCounted(quota, ONE)
    uncount()
    assert not isCounted(quota, ONE)


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    """
    A window that begins in the future, because the clock was set back, is over.
    """
    clock = Clock()
    clock.advance(1e9)
    quota = Quota(clock, 1, 1, 60)
    assert isCounted(quota, ONE)
    clock.rightNow = 1e6
    assert isCounted(quota, ONE)
    assert not isCounted(quota, ONE)


@pytest.mark.parametrize(
    ("one", "other", "isSame"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (ONE, OTHER, False),
        ("::ffff:192.0.2.1", ONE, True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        (UNIXAddress("/run/a"), UNIXAddress("/run/b"), True),
        (UNIXAddress("/run/a"), ONE, False),
    ],
    ids=str,
)
def test_addresses_of_one_network_are_one_client(
    clock: Clock, one: str | IAddress, other: str | IAddress, isSame: bool
) -> None:
    """
    A household has 2**64 addresses of IPv6, and counts as one client.
    """
    quota = Quota(clock, 1, 100, 60)
    assert isCounted(quota, one)
    assert isCounted(quota, other) is not isSame


def test_the_table_of_clients_is_bounded(clock: Clock) -> None:
    """
    Beyond 10,000 clients the oldest one is dropped.
    """
    quota = Quota(clock, 1, 100_000, 60)
    peers = [f"10.0.{number // 256}.{number % 256}" for number in range(10_001)]
    assert all(isCounted(quota, each) for each in peers)
    assert not isCounted(quota, peers[1])
    assert isCounted(quota, peers[0])


def test_behind_a_proxy_each_client_is_counted(clock: Clock) -> None:
    """
    A trusted proxy names the client of a request; other headers do not count.
    """
    trusting = Quota(clock, 1, 100, 60, peerOf=Proxies([ONE]).peerOf)
    plain = Quota(clock, 1, 100, 60)
    for quota, expected in ((trusting, [True, True]), (plain, [True, False])):
        counted = []
        for client in ("198.51.100.1", "198.51.100.2"):
            try:
                quota.count(exchange(("X-Forwarded-For", client), peer=ONE))
                counted.append(True)
            except TooMany:
                counted.append(False)
        assert counted == expected
