"""
One stream of events, and all who watch it.

How it works
============

While somebody watches, the source is asked a few times in a second what has
changed. What it answers is encoded once, and the same bytes are written to
everybody; so a second costs the source the same, be there one viewer or a
thousand, and however much has changed.

A viewer begins with a snapshot, at the next of these turns: however many come
at once, it is made once. One whose connection takes no more is left out until
it does, and then begins with a snapshot again: nothing is ever kept for
anybody but what the transport has taken, and the transport asks for a pause
before that is much. Who does not read for long is dropped.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import toChunk
from twisted.web.server import Request
from zope.interface import implementer

from .problems import HTTPError
from .responses import (
    AsyncResource,
    Response,
)

__all__ = ["Source", "Stream", "Viewers", "eventOf"]

_INTERVAL: Final = 0.25
"""
How long changes are gathered, in seconds.
"""

_BEAT: Final = 15.0
"""
After how long something is sent when there is nothing to tell, in seconds: by
that the server finds out who has vanished, and the viewers that the server
has not.
"""

_PATIENCE: Final = 30.0
"""
How long a viewer may take no more, in seconds.
"""

_FAREWELL: Final = 2.0
"""
How long a viewer may take for the last that it is sent, in seconds.
"""

_RETRY: Final = 2
"""
After how long a viewer is to come back, in seconds.
"""

_BUFFER: Final = 64 * 1024
"""
How much of a stream the system may keep for one viewer, in bytes. Left to
itself Linux may keep sixty times as much.
"""


class _Refused(HTTPError):
    """
    There is no stream for one more viewer.
    """

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers = ((b"Retry-After", b"%d" % _RETRY),)


class Source(Protocol):
    """
    What is watched.
    """

    def begin(self) -> None:
        """
        Somebody begins to watch, and nobody did before.
        """

    def end(self) -> None:
        """
        Nobody watches any more.
        """

    def snapshot(self) -> bytes:
        """
        @return: An event that tells all, as it was when C{changes} was asked
            last.
        """

    def changes(self) -> bytes | None:
        """
        @return: An event that tells what has changed since the last one, if
            anything has.
        """

    def farewell(self) -> bytes:
        """
        @return: The last event.
        """


def eventOf(name: str, data: str) -> bytes:
    """
    @param name: What the event is called.
    @param data: What it tells, in one line.
    @return: The event, as it is written.
    """
    return f"event: {name}\ndata: {data}\n\n".encode()


_HEADERS: Final = (
    (b"Content-Type", b"text/event-stream"),
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
    # A proxy that gathers what it passes on would keep everybody waiting.
    (b"X-Accel-Buffering", b"no"),
)

_FIRST: Final = b"retry: %d\n\n" % (_RETRY * 1000)


class _Encoded:
    """
    An event, ready to be sent to anybody.

    @ivar data: The event.
    @ivar chunk: The same as a chunk of a response.
    """

    __slots__ = ("chunk", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.chunk = b"".join(toChunk(data))


_BEATING: Final = _Encoded(eventOf("beat", "0"))


@implementer(IPushProducer)
class _Viewer:
    """
    One who watches.

    @ivar pausedSince: Since when its connection takes no more.
    @ivar behind: Whether it has missed something; at first, everything.
    """

    __slots__ = ("_clock", "_request", "behind", "pausedSince")

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self.pausedSince: float | None = None
        self.behind = True

    def begin(self) -> None:
        """
        Begin the response.
        """
        request = self._request
        _limitBuffers(request.transport)
        request.registerProducer(self, True)
        request.write(_FIRST)

    def write(self, event: _Encoded) -> None:
        """
        Send something.
        """
        request = self._request
        if request.chunked:
            # As Request.write() does, but for the bytes that are the same for
            # all: as long as a connection takes what it is given at once, even
            # the transport makes no copy of them.
            request.sentLength += len(event.data)
            cast(Any, request.channel).write(event.chunk)
        else:
            request.write(event.data)

    def finish(self, farewell: _Encoded | None) -> None:
        """
        Send the last, if there is something to be sent; end the response, and
        the connection with it.
        """
        request = self._request
        if self.pausedSince is not None:
            self.drop()
            return
        request.unregisterProducer()
        cast(Any, request.channel).persistent = False
        if farewell is not None:
            self.write(farewell)
        request.finish()

    def drop(self) -> None:
        """
        Break the connection off.
        """
        cast(ITCPTransport, self._request.transport).abortConnection()

    # IPushProducer

    def pauseProducing(self) -> None:
        if self.pausedSince is None:
            self.pausedSince = self._clock.seconds()

    def resumeProducing(self) -> None:
        # What it has missed it is sent with the next turn: were it sent now, a
        # long snapshot that fills the buffer would be followed by another one
        # as soon as it has gone.
        self.pausedSince = None

    def stopProducing(self) -> None:
        """
        The connection was lost; the request tells who has to know.
        """


class Viewers:
    """
    All who watch.
    """

    _log = Logger()

    def __init__(
        self, source: Source, reactor: IReactorTime, *, most: int = 1000
    ) -> None:
        """
        @param source: What is watched.
        @param reactor: Provides the time.
        @param most: How many may watch; one more is told to come back later.
        """
        self._source = source
        self._reactor = reactor
        self._most = most
        self._viewers: dict[_Viewer, None] = {}
        self._closed = False
        self._sent = 0.0
        self._snapshot: _Encoded | None = None
        self._loop = LoopingCall(self._turn)
        self._loop.clock = reactor

    def __len__(self) -> int:
        """
        @return: How many watch.
        """
        return len(self._viewers)

    def admit(self, request: Request) -> Deferred[Response]:
        """
        Let somebody watch.

        @param request: The request, to which nothing has been answered yet.
        @return: A Deferred that never fires, since the response is written as
            things happen; to cancel it is to let the viewer go.
        @raise HTTPError: There are too many, or the server is being stopped.
        """
        if self._closed:
            raise _Refused("The service is shutting down")
        if len(self._viewers) >= self._most:
            raise _Refused("Too many are watching already")
        if request.method == b"HEAD":
            _setHeaders(request)
            request.finish()
            return Deferred()
        if not self._viewers:
            self._source.begin()
            self._sent = self._reactor.seconds()
            self._loop.start(_INTERVAL, now=False).addErrback(self._broke)
        viewer = _Viewer(request, self._reactor)
        self._viewers[viewer] = None
        _setHeaders(request)
        viewer.begin()
        return Deferred(lambda _: self._discard(viewer))

    def close(self) -> None:
        """
        Send everybody away. Who comes afterwards is refused.
        """
        if self._closed:
            return
        self._closed = True
        if self._viewers:
            self._sendAway(_Encoded(self._source.farewell()))

    def _turn(self) -> None:
        """
        Tell what has changed.
        """
        now = self._reactor.seconds()
        changes = self._source.changes()
        # It tells what time it is, even where nothing has changed.
        self._snapshot = None
        event: _Encoded | None = None
        if changes is not None:
            event = _Encoded(changes)
        elif now - self._sent >= _BEAT:
            event = _BEATING
        if event is not None:
            self._sent = now
        for viewer in list(self._viewers):
            if viewer.pausedSince is not None:
                viewer.behind = viewer.behind or event is not None
                if now - viewer.pausedSince > _PATIENCE:
                    self._discard(viewer)
                    viewer.drop()
            elif viewer.behind:
                viewer.behind = False
                viewer.write(self._takeSnapshot())
            elif event is not None:
                viewer.write(event)

    def _broke(self, failure: Failure) -> None:
        """
        The source cannot tell what has changed. Who comes back gets a snapshot,
        which may do better.
        """
        self._log.failure("The viewers cannot be told anything", failure=failure)
        self._sendAway(None)

    def _sendAway(self, farewell: _Encoded | None) -> None:
        viewers = list(self._viewers)
        for viewer in viewers:
            self._discard(viewer)
            viewer.finish(farewell)
        self._reactor.callLater(_FAREWELL, _dropAll, viewers)

    def _takeSnapshot(self) -> _Encoded:
        """
        @return: A snapshot; the same for all who need one before the next turn.
        """
        if self._snapshot is None:
            self._snapshot = _Encoded(self._source.snapshot())
        return self._snapshot

    def _discard(self, viewer: _Viewer) -> None:
        if viewer in self._viewers:
            del self._viewers[viewer]
            if not self._viewers:
                if self._loop.running:
                    self._loop.stop()
                self._snapshot = None
                self._source.end()


def _dropAll(viewers: list[_Viewer]) -> None:
    """
    Those that have read it all are gone; for the others there is no more time.
    """
    for viewer in viewers:
        viewer.drop()


def _setHeaders(request: Request) -> None:
    for name, value in _HEADERS:
        request.responseHeaders.setRawHeaders(name, [value])


def _limitBuffers(transport: Any) -> None:
    """
    Let the system keep little for a viewer, and find out if it has vanished.
    """
    # Below TLS there is the connection itself.
    below = getattr(transport, "transport", transport)
    if ITCPTransport.providedBy(below):
        with suppress(OSError, AttributeError):
            below.setTcpKeepAlive(True)
            handle = cast(Any, below).getHandle()
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


class Stream(AsyncResource):
    """
    Where to watch.
    """

    def __init__(self, viewers: Viewers) -> None:
        """
        @param viewers: All who watch.
        """
        super().__init__()
        self._viewers = viewers

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Watch.
        """
        return self._viewers.admit(request)
