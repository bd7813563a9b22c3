"""
A request on a site of tsrv. It has an id, its body is in memory, and its errors are
problem details.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.error import ConnectionAborted
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.server import Request

from .channel import Channel
from .connections import Connections
from .message import Response
from .requestid import currentRequestId, requestIdOf
from .responses import NO_ROUTE, AsyncResource, respond
from .traffic import Traffic

__all__ = ["Body", "SiteRequest"]

_log = Logger("tsrv.web")


class Body(BytesIO):
    """
    The body of a request, a file in memory. Until the body is closed, its length counts
    in C{bodyBytes} of the site's connections.
    """

    def __init__(self, connections: Connections) -> None:
        """
        @param connections: The connections of the site.
        """
        super().__init__()
        self._connections = connections

    def write(self, data: Any) -> int:
        """
        Add a part.
        """
        self._connections.bodyBytes += len(data)
        return super().write(data)

    def close(self) -> None:
        """
        Release the memory.
        """
        if not self.closed:
            self._connections.bodyBytes -= self.getbuffer().nbytes
        super().close()


class SiteRequest(Request):
    """
    A request on a L{Site<tsrv.web.site.Site>}.

    A request is in progress from the call of its resource until its response is
    complete or its connection is lost.

    @ivar requestId: The id of the request; L{None} until C{process} is called.
    @ivar route: The route of its resource, see L{AsyncResource}.
    @ivar startTime: Time at which the request began to be in progress, in seconds of
        the reactor; L{None} before.
    """

    channel: Any
    site: Any

    requestId: str | None = None
    route = NO_ROUTE
    startTime: float | None = None
    _isSimple = False

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """
        Parse a form, and process the request.
        """
        if not self.channel.site.parsesForms:
            # Twisted takes the position for the length of the form. Its own option came
            # with Twisted 25.5.
            assert self.content is not None
            self.content.seek(0)
        try:
            super().requestReceived(command, path, version)
        except ValueError:
            # Twisted could not parse the Content-Type, so the body is not a form.
            assert self.content is not None
            self.content.seek(0)
            self.process()
        except Exception:
            # Twisted's parser of forms fails for some forms. Errors of process() do not
            # get here.
            self.channel._respondToBadRequestAndDisconnect()

    def process(self) -> None:
        """
        Find the resource, and let it respond.
        """
        # A context manager would cost a tenth of the time of a small request.
        token = currentRequestId.set(requestIdOf(self))
        try:
            if self.path == b"*" or not isinstance(self.channel, Channel):
                super().process()
            else:
                self._process(self.channel)
        finally:
            currentRequestId.reset(token)

    def _process(self, channel: Channel) -> None:
        """
        Do the work of Twisted's C{process()} at half the cost: all requests of one tick
        share a date, and only resources that are not of tsrv may have an encoder.
        """
        self.site = channel.site
        self.responseHeaders.setRawHeaders(b"Date", channel.connections.date())
        self.prepath = []
        self.postpath = list(map(unquote_to_bytes, self.path[1:].split(b"/")))
        try:
            resource = self.site.getResourceFor(self)
            if not isinstance(resource, AsyncResource):
                getEncoder = getattr(resource, "getEncoder", None)
                # Twisted has no public way to set the encoder of a request.
                self._encoder = None if getEncoder is None else getEncoder(self)
            self.render(resource)
        except BaseException:
            self.processingFailed(Failure())

    def render(self, resrc: object) -> None:
        """
        Count the request as in progress, and let the resource respond.
        """
        if isinstance(resrc, AsyncResource):
            self.route = resrc.route
            self._isSimple = self.method != b"HEAD" and isinstance(
                self.channel, Channel
            )
        traffic: Traffic = self.site.traffic
        # A resource may delegate to another one, so this may be the second call; and
        # the client may have disconnected during the lookup of the resource.
        if self.startTime is None and self.channel is not None:
            traffic.inProgress += 1
            self.startTime = traffic.seconds()
        super().render(resrc)

    def send(self, response: Response) -> bool:
        """
        Write a whole response with one call, and finish.

        @param response: The response; its status and headers are already set.
        @return: Whether this is possible. For some responses, with cookies for example,
            the request's own C{write()} has more to do than to write.
        """
        if (
            not self._isSimple
            or self.startedWriting
            or self.cookies
            or self.etag is not None
            or self.lastModified is not None
            or response.status in NO_BODY_CODES
            or "write" in self.__dict__
            # Twisted removes line breaks from headers.
            or b"\r" in response.contentType
            or b"\n" in response.contentType
        ):
            return False
        body = response.body
        headers = self.responseHeaders
        headers.removeHeader(b"Content-Type")
        headers.removeHeader(b"Content-Length")
        self.startedWriting = 1
        self.sentLength = len(body)
        self.channel.writeHeaders(
            self.clientproto,
            b"%d" % self.code,
            self.code_message,
            headers,
            b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (response.contentType, len(body), body),
        )
        self.finish()
        return True

    def connectionLost(self, reason: Failure) -> None:
        """
        Count a request whose connection is lost before its response is complete.
        """
        if self.startTime is not None:
            status = "aborted" if reason.check(ConnectionAborted) else "gone"
            self.site.requestEnded(self, status)
        super().connectionLost(reason)

    def processingFailed(self, reason: Failure) -> Failure:
        """
        Send the response to an error outside of L{respond}: in the lookup of the
        resource, or in a resource that is not an L{AsyncResource}.
        """
        if self.finished or self.channel is None:
            _log.failure("A request failed after its response", failure=reason)
        else:
            # maybeDeferred() turns a Failure into a failed Deferred.
            respond(self, lambda _: reason)
        return reason
