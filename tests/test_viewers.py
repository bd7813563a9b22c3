"""
However many watch, however slowly they read, and however they leave: each is
told the same, and none of them costs more than a little.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.viewers import (
    Source,
    Stream,
    Viewers,
    eventOf,
)

from .support import Trouble, resultOf
from .websupport import Peer, answersIn, ask, asynchronous, serving

GET = b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n"

TURN = 0.25


class Told:
    """
    A source that tells what it is told to.

    @ivar news: What has changed since it was asked last.
    @ivar watched: Whether somebody watches.
    @ivar snapshots: How many have been made.
    """

    def __init__(self) -> None:
        self.news: list[str] = []
        self.all: list[str] = []
        self.watched = False
        self.snapshots = 0
        self.error: Exception | None = None

    def begin(self) -> None:
        assert not self.watched
        self.watched = True

    def end(self) -> None:
        assert self.watched
        self.watched = False

    def snapshot(self) -> bytes:
        self.snapshots += 1
        return eventOf("all", ",".join(self.all))

    def changes(self) -> bytes | None:
        if self.error is not None:
            raise self.error
        if not self.news:
            return None
        news, self.news = self.news, []
        self.all += news
        return eventOf("news", ",".join(news))

    def farewell(self) -> bytes:
        return eventOf("farewell", "0")


def makeSite(
    clock: Clock, most: int = 1000, source: Source | None = None
) -> tuple[Told, Viewers, Site]:
    """
    Make a site that can be watched.
    """
    told = Told()
    viewers = Viewers(source or told, clock, most=most)
    root = AsyncResource()
    root.putChild(b"events", Stream(viewers))
    return told, viewers, Site(root, clock)


def watch(site: Site, clock: Clock) -> Peer:
    """
    Watch, until a snapshot has come.
    """
    peer = Peer(site, clock)
    peer.send(GET)
    clock.advance(TURN)
    return peer


def eventsOf(peer: Peer) -> list[tuple[str, str]]:
    """
    @return: The events that somebody has received, without those that only say
        when to come back.
    """
    _, _, body = peer.received.partition(b"\r\n\r\n")
    return [event for event in parse(dechunk(body)) if event is not None]


def dechunk(body: bytes) -> bytes:
    """
    @return: What was sent in chunks.
    """
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        data += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
    return data


def parse(stream: bytes) -> list[tuple[str, str] | None]:
    """
    @return: The events of a stream.
    """
    assert stream.endswith(b"\n\n")
    events: list[tuple[str, str] | None] = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields["event"], fields["data"]) if "event" in fields else None)
    return events


def leave(clock: Clock, *peers: Peer) -> None:
    """
    Leave.
    """
    for peer in peers:
        peer.leave()


def test_a_viewer_is_told_all_and_then_what_changes(clock: Clock) -> None:
    """
    Whoever comes in the middle sees the same as who was there before.
    """
    told, viewers, site = makeSite(clock)
    told.all = ["a"]
    first = watch(site, clock)
    told.news = ["b"]
    clock.advance(TURN)
    second = watch(site, clock)
    told.news = ["c"]
    clock.advance(TURN)
    assert eventsOf(first) == [("all", "a"), ("news", "b"), ("news", "c")]
    assert eventsOf(second) == [("all", "a,b"), ("news", "c")]
    assert len(viewers) == 2
    leave(clock, first, second)


def test_a_stream_is_what_browsers_and_proxies_take_for_one(clock: Clock) -> None:
    """
    Nothing on the way keeps it, and a browser knows when to come back.
    """
    _, _, site = makeSite(clock)
    peer = watch(site, clock)
    head, _, body = peer.received.partition(b"\r\n\r\n")
    (answer,) = answersIn(head + b"\r\n\r\n")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-accel-buffering"] == "no"
    assert dechunk(body).startswith(b"retry: 2000\n\n")
    leave(clock, peer)


def test_many_changes_are_told_at_once(clock: Clock) -> None:
    """
    However much changes, nobody is told more than four times in a second.
    """
    told, _, site = makeSite(clock)
    peer = watch(site, clock)
    for number in range(100):
        told.news.append(str(number))
        clock.advance(0.01)
    assert [name for name, _ in eventsOf(peer)] == ["all"] + ["news"] * 4
    leave(clock, peer)


def test_a_snapshot_is_made_once_for_all_who_come_together(clock: Clock) -> None:
    """
    After a restart everybody comes back at the same time.
    """
    told, _, site = makeSite(clock)
    peers = [Peer(site, clock) for _ in range(100)]
    for peer in peers:
        peer.send(GET)
    clock.advance(TURN)
    assert told.snapshots == 1
    assert all(eventsOf(peer) == [("all", "")] for peer in peers)
    leave(clock, *peers)


def test_all_are_written_the_same_bytes(clock: Clock) -> None:
    """
    An event takes memory once, and not for each viewer.
    """
    told, _, site = makeSite(clock)
    peers = [watch(site, clock) for _ in range(2)]
    written: list[bytes] = []
    for peer in peers:
        transport: Any = peer.transport
        transport.write = written.append
    told.news = ["a"]
    clock.advance(TURN)
    one, other = written
    assert one is other
    leave(clock, *peers)


def test_no_timer_runs_while_nobody_watches(clock: Clock) -> None:
    """
    A page that nobody looks at costs nothing.
    """
    told, viewers, site = makeSite(clock)
    assert (clock.getDelayedCalls(), told.watched) == ([], False)
    one, other = watch(site, clock), watch(site, clock)
    one.leave()
    assert told.watched
    other.leave()
    assert (clock.getDelayedCalls(), told.watched, len(viewers)) == ([], False, 0)


def test_somebody_watches_again(clock: Clock) -> None:
    """
    That all have left is not the end.
    """
    told, _, site = makeSite(clock)
    watch(site, clock).leave()
    peer = watch(site, clock)
    told.news = ["a"]
    clock.advance(TURN)
    assert eventsOf(peer) == [("all", ""), ("news", "a")]
    leave(clock, peer)


def test_one_who_leaves_before_the_first_snapshot_is_forgotten(clock: Clock) -> None:
    """
    Nothing is written to who is gone.
    """
    told, viewers, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(GET)
    peer.leave()
    clock.advance(TURN)
    assert (len(viewers), told.snapshots) == (0, 0)


def test_silence_is_broken_so_that_who_vanished_is_noticed(clock: Clock) -> None:
    """
    To write is the only way to find out that nobody is there, and to be
    written to the only way to find out that the server is not.
    """
    told, _, site = makeSite(clock)
    peer = watch(site, clock)
    clock.pump([TURN] * 58)
    assert eventsOf(peer) == [("all", "")]
    clock.advance(TURN)
    assert eventsOf(peer) == [("all", ""), ("beat", "0")]
    clock.pump([TURN] * 30)
    told.news = ["a"]
    clock.pump([TURN] * 60)
    assert eventsOf(peer)[2:] == [("news", "a")]
    clock.advance(TURN)
    assert eventsOf(peer)[3:] == [("beat", "0")]
    leave(clock, peer)


def test_a_slow_viewer_is_left_out_until_it_reads_again(clock: Clock) -> None:
    """
    Nothing is kept for who takes nothing; afterwards it sees what all see, and
    nobody else has noticed.
    """
    told, _, site = makeSite(clock)
    slow, quick = watch(site, clock), watch(site, clock)
    producer: Any = slow.transport.producer
    producer.pauseProducing()
    before = len(slow.received)
    for word in "abc":
        told.news = [word]
        clock.advance(TURN)
    assert len(slow.received) == before
    producer.resumeProducing()
    assert len(slow.received) == before
    told.news = ["d"]
    clock.advance(TURN)
    told.news = ["e"]
    clock.advance(TURN)
    assert eventsOf(slow)[1:] == [("all", "a,b,c,d"), ("news", "e")]
    assert eventsOf(quick)[1:] == [("news", word) for word in "abcde"]
    leave(clock, slow, quick)


def test_who_missed_nothing_while_paused_gets_no_snapshot(clock: Clock) -> None:
    """
    A snapshot that fills the buffer is not followed by another one, and
    another one.
    """
    told, _, site = makeSite(clock)
    peer = watch(site, clock)
    producer: Any = peer.transport.producer
    for _ in range(3):
        producer.pauseProducing()
        clock.advance(TURN)
        producer.resumeProducing()
        clock.advance(TURN)
    assert (eventsOf(peer), told.snapshots) == ([("all", "")], 1)
    leave(clock, peer)


def test_who_does_not_read_for_long_is_dropped(clock: Clock) -> None:
    """
    It may be gone for good, and it takes somebody's place.
    """
    _, viewers, site = makeSite(clock)
    slow, quick = watch(site, clock), watch(site, clock)
    producer: Any = slow.transport.producer
    producer.pauseProducing()
    clock.pump([TURN] * 60)
    # The transport says so each time that it is given more.
    producer.pauseProducing()
    clock.pump([TURN] * 60)
    assert not slow.transport.aborted
    clock.advance(TURN)
    assert slow.transport.aborted
    assert slow.closed
    assert not quick.transport.aborted
    assert len(viewers) == 1
    leave(clock, quick)


def test_one_more_than_may_watch_is_told_to_come_back(clock: Clock) -> None:
    """
    The number of viewers has a bound, and a place that is free again is taken.
    """
    _, viewers, site = makeSite(clock, most=2)
    peers = [watch(site, clock) for _ in range(2)]
    refused = watch(site, clock)
    (answer,) = refused.answers
    assert answer.status == 503
    assert answer.headers["retry-after"] == "2"
    assert b"Too many are watching already" in answer.body
    peers.pop().leave()
    peers.append(watch(site, clock))
    assert eventsOf(peers[-1]) == [("all", "")]
    assert len(viewers) == 2
    leave(clock, refused, *peers)


def test_closing_ends_all_streams_at_once(clock: Clock) -> None:
    """
    A server that is being stopped waits for what it is answering; a stream
    would never be answered.
    """
    told, viewers, site = makeSite(clock)
    peers = [watch(site, clock) for _ in range(2)]
    viewers.close()
    for peer in peers:
        assert peer.received.endswith(b"0\r\n\r\n")
        assert eventsOf(peer) == [("all", ""), ("farewell", "0")]
        assert peer.closed
    assert (len(viewers), told.watched) == (0, False)
    viewers.close()
    clock.advance(2)


def test_a_stopping_site_is_empty_once_the_viewers_are_closed(clock: Clock) -> None:
    """
    Whichever is told first, the viewers or the site: it stops.
    """
    for closeFirst in (True, False):
        _, viewers, site = makeSite(clock)
        watch(site, clock)
        if closeFirst:
            viewers.close()
        stopped = resultOf(site.stop(30))
        if not closeFirst:
            assert stopped.pending
            viewers.close()
        clock.advance(0)
        assert stopped.value == 0
        clock.advance(2)


def test_who_does_not_read_the_farewell_is_dropped(clock: Clock) -> None:
    """
    The server does not wait for one who has vanished: neither for one that is
    known to take no more, nor for one that is not.
    """
    _, viewers, site = makeSite(clock)
    paused, silent = watch(site, clock), watch(site, clock)
    producer: Any = paused.transport.producer
    producer.pauseProducing()
    # It would be closed if only all that was written could be sent.
    transport: Any = silent.transport
    transport.loseConnection = lambda: None
    viewers.close()
    assert paused.transport.aborted
    assert eventsOf(paused) == [("all", "")]
    clock.advance(1.9)
    assert not silent.transport.aborted
    clock.advance(0.1)
    assert silent.transport.aborted
    silent.leave()
    clock.advance(0)


def test_who_comes_after_the_closing_is_refused(clock: Clock) -> None:
    """
    It is to come back, and will find the next process.
    """
    told, viewers, site = makeSite(clock)
    viewers.close()
    peer = watch(site, clock)
    (answer,) = peer.answers
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert b"shutting down" in answer.body
    assert not told.watched
    leave(clock, peer)


def test_a_source_that_fails_sends_all_away(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Nobody is left with a picture that does not change any more, and who comes
    back may have more luck.
    """
    told, viewers, site = makeSite(clock)
    peer = watch(site, clock)
    told.error = Trouble("broken")
    clock.advance(TURN)
    assert loggedFailures.pop()["log_failure"].value is told.error
    assert peer.received.endswith(b"0\r\n\r\n")
    assert (len(viewers), told.watched) == (0, False)
    clock.advance(2)
    told.error = None
    peer = watch(site, clock)
    assert eventsOf(peer) == [("all", "")]
    leave(clock, peer)


def test_an_old_client_gets_a_stream_that_ends_with_the_connection(
    clock: Clock,
) -> None:
    """
    HTTP/1.0 knows no chunks.
    """
    told, viewers, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(b"GET /events HTTP/1.0\r\n\r\n")
    clock.advance(TURN)
    told.news = ["a"]
    clock.advance(TURN)
    viewers.close()
    head, _, body = peer.received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert parse(body) == [None, ("all", ""), ("news", "a"), ("farewell", "0")]
    assert peer.closed
    clock.advance(2)


def test_head_is_answered_at_once(clock: Clock) -> None:
    """
    Who asks for the headers alone does not watch.
    """
    told, viewers, site = makeSite(clock)
    peer = Peer(site, clock)
    peer.send(GET.replace(b"GET", b"HEAD"))
    (answer,) = peer.answers
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert "content-length" not in answer.headers
    assert (len(viewers), told.watched) == (0, False)
    # The connection is as good as before.
    peer.send(GET)
    clock.advance(TURN)
    assert b"event: all" in peer.received
    leave(clock, peer)


def test_other_methods_are_refused() -> None:
    """
    There is nothing to be posted.
    """
    _, _, site = makeSite(Clock())
    answer = ask(site.resource, "/events", "POST")
    assert answer.status == 405
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]


@asynchronous
async def test_the_system_keeps_little_for_a_viewer() -> None:
    """
    Left to itself it would keep megabytes for each who reads slowly.
    """
    from twisted.internet import reactor

    told, viewers, site = makeSite(reactor)  # type: ignore[arg-type]
    async with serving(site) as served:
        wire = await served.connect(GET)
        await wire.whenReceived(b"event: all")
        (channel,) = site._channels
        handle: Any = channel.transport.getHandle()  # type: ignore[attr-defined]
        # Linux doubles what it is asked for, for its own needs.
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 64 * 1024
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        told.news = ["a"]
        await wire.whenReceived(b"event: news")
        wire.leave()
        await wire.whenClosed()
    assert len(viewers) == 0


@asynchronous
async def test_one_who_never_reads_is_kept_little_for() -> None:
    """
    With a real connection too: the transport asks for a pause, and nothing
    more is written until it has sent what it has.
    """
    from twisted.internet import reactor

    told, viewers, site = makeSite(reactor)  # type: ignore[arg-type]
    async with serving(site) as served:
        slow, quick = await served.connect(GET), await served.connect(GET)
        await slow.whenReceived(b"event: all")
        transport: Any = slow.transport
        transport.pauseProducing()
        word = "x" * 1_000_000
        for number in range(6):
            told.news = [f"<{number}>{word}"]
            await quick.whenReceived(b"<%d>" % number)
        kept = sum(
            len(channel.transport.dataBuffer) + channel.transport._tempDataLen  # type: ignore[attr-defined]
            for channel in site._channels
        )
        assert kept < 2_500_000
        told.all = ["late"]
        told.news = ["r"]
        transport.resumeProducing()
        await slow.whenReceived(b"data: late")
        assert slow.received.count(b"event: news") < 6
    assert len(viewers) == 0
