"""
A coroutine, or a Deferred, becomes a response.

A resource answers with L{Response}s, or raises; everything that has to be
right about the exchange itself is here: that a client that leaves cancels what
was done for it, that an error never reaches the client as it is, and that
nothing is written twice or to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from .problems import (
    MethodNotAllowed,
    NotFound,
    problemOf,
)
from .requestid import (
    identified,
    idOf,
)

__all__ = [
    "OTHER",
    "AsyncResource",
    "Missing",
    "Response",
    "respond",
    "text",
    "writeProblem",
]

_log = Logger()

OTHER: Final = "(other)"
"""
The route of what has none.
"""


@dataclass(slots=True)
class Response:
    """
    A response whose body is known as a whole.

    @ivar body: The body.
    @ivar contentType: The C{Content-Type} of the body.
    @ivar status: The status.
    @ivar headers: Further headers.
    """

    body: bytes
    contentType: bytes
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


def text(body: str, status: int = 200) -> Response:
    """
    @param body: A text.
    @param status: The status of the response.
    @return: A response with that text.
    """
    return Response(body.encode(), b"text/plain; charset=utf-8", status)


def respond(request: Request, render: Callable[[Request], Any]) -> int:
    """
    Answer a request later. A client that leaves meanwhile cancels what is done
    for it.

    @param request: The request.
    @param render: Answers the L{Response} to it, or a coroutine or Deferred of
        one. What it raises becomes a response too, or, if it has begun to
        write one itself, the end of the connection.
    @return: L{NOT_DONE_YET}
    """
    exchange = _Exchange(request)
    # As notifyFinish() does, but with the exchange itself in place of a Deferred
    # that would do nothing but call it, and cost 600 bytes while a request is
    # held and a twentieth of what a ready one takes.
    cast(list[Any], request.notifications).append(exchange)
    exchange.begin(maybeDeferred(render, request))
    return NOT_DONE_YET


_OF_A_BODY: Final = (
    b"Cache-Control",
    b"Content-Disposition",
    b"Content-Encoding",
    b"Content-Language",
    b"Content-Length",
    b"Content-Type",
    b"ETag",
    b"Last-Modified",
    b"Link",
    b"Location",
    b"Set-Cookie",
)


def writeProblem(request: Request, failure: Failure) -> None:
    """
    Answer with an error in place of a response that has been prepared, but not
    begun.

    @param request: The request.
    @param failure: The error.
    """
    for name in _OF_A_BODY:
        request.responseHeaders.removeHeader(name)
    request.cookies.clear()
    # This is the turn of whoever has failed, and not of this request.
    with identified(idOf(request)):
        _Exchange(request).fail(failure)


class _Exchange:
    """
    One request and the response to it.
    """

    __slots__ = ("_answer", "_gone", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._answer: Deferred[Any] | None = None
        self._gone = False

    def begin(self, answer: Deferred[Response]) -> None:
        """
        Write the response when it is there.
        """
        self._answer = answer
        # One callback that does it all: what is added to a Deferred is kept for
        # as long as a request is held.
        answer.addBoth(self._answered)
        if self._gone:
            # It left while it was being rendered for.
            answer.cancel()

    def callback(self, result: None) -> None:
        """
        The response has been sent.
        """

    def errback(self, reason: Failure) -> None:
        """
        The client has closed the connection.
        """
        self._gone = True
        if self._answer is not None:
            # This is the turn of the connection.
            with identified(idOf(self._request)):
                self._answer.cancel()

    def _answered(self, result: Response | Failure) -> None:
        """
        The response is there, or an error.
        """
        try:
            if not isinstance(result, Failure):
                self._write(result)
                return
        except Exception:
            result = Failure()
        # This is the turn of whoever has answered, and not of this request.
        with identified(idOf(self._request)):
            self.fail(result)

    def fail(self, failure: Failure) -> None:
        """
        Answer with an error.
        """
        try:
            self._writeProblem(failure)
        except Exception:
            self._abort(Failure())

    def _write(self, response: Response) -> None:
        if self._gone:
            return
        request = self._request
        headers = request.responseHeaders
        if response.status != 200:
            request.setResponseCode(response.status)
        for name, value in response.headers:
            headers.addRawHeader(name, value)
        if response.status not in NO_BODY_CODES:
            headers.setRawHeaders(b"Content-Type", [response.contentType])
            headers.setRawHeaders(b"Content-Length", [b"%d" % len(response.body)])
        request.write(response.body)
        request.finish()

    def _writeProblem(self, failure: Failure) -> None:
        if self._gone:
            # To be cancelled is what was asked of it.
            if not failure.check(CancelledError):
                _log.debug(
                    "After the client left: {kind}: {error}",
                    kind=type(failure.value).__name__,
                    error=failure.value,
                )
            return
        # A part of it may be held until a session is saved.
        if self._request.startedWriting or getattr(self._request, "heldBytes", 0):
            self._abort(failure)
            return
        problem = problemOf(failure, self._request)
        # Several lines of it count as one.
        accept = self._request.requestHeaders.getRawHeaders(b"Accept")
        sent = problem.encode(b",".join(accept) if accept else None)
        headers = [(b"Vary", b"Accept"), *problem.headers, *sent.headers]
        self._write(Response(sent.body, sent.contentType, problem.status, headers))

    def _abort(self, failure: Failure) -> None:
        """
        The response has begun, and cannot be made good any more.
        """
        _log.failure("A response broke off", failure=failure)
        cast(ITCPTransport, self._request.transport).abortConnection()


class AsyncResource(Resource):
    """
    A resource whose C{render_METHOD} methods are C{async def} (or answer a
    Deferred), and answer a L{Response}.

    @cvar route: The pattern of the paths under which it is found, such as
        C{/users/{id}}, never a path that a client sent. Resources that are put
        under each other get it from L{place}; one that a C{getChild} answers
        has to have its own.
    """

    route: str = OTHER

    def render(self, request: Request) -> int:
        """
        @see: L{twisted.web.resource.IResource.render}
        """
        method = request.method.decode("latin-1")
        render = getattr(self, f"render_{method}", None)
        if render is None or (method == "HEAD" and not hasattr(self, "render_GET")):
            render = self._refuse
        return respond(request, render)

    def putChild(self, path: bytes, child: IResource) -> None:
        """
        @see: L{twisted.web.resource.Resource.putChild}
        """
        super().putChild(path, child)
        if self.route != OTHER:
            self._placeChild(path, child)

    def place(self, route: str) -> None:
        """
        Say where this resource is found, and with it all that is put under it.
        What has a route keeps it: what is put in several places has that of
        the first.

        @param route: The route.
        """
        if self.route == OTHER:
            self.route = route
            for path, child in self.children.items():
                self._placeChild(path, child)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """
        @see: L{twisted.web.resource.Resource.getChild}
        """
        return Missing()

    def _placeChild(self, path: bytes, child: object) -> None:
        if isinstance(child, AsyncResource):
            name = path.decode("utf-8", "backslashreplace")
            child.place(f"{self.route.rstrip('/')}/{name}")

    def _allowed(self) -> list[str]:
        """
        @return: The methods that this resource knows.
        """
        prefix = "render_"
        names = [name for name in dir(self) if name.startswith(prefix)]
        methods = [name.removeprefix(prefix) for name in names]
        if "GET" not in methods:
            # Every Resource has a render_HEAD, which relies on render_GET.
            methods.remove("HEAD")
        return methods

    def _refuse(self, request: Request) -> Response:
        raise MethodNotAllowed(self._allowed())


class Missing(AsyncResource):
    """
    What is found where nothing is.
    """

    route = "(unknown)"

    def render(self, request: Request) -> int:
        """
        @see: L{twisted.web.resource.IResource.render}
        """
        return respond(request, self._refuse)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """
        @see: L{twisted.web.resource.Resource.getChild}
        """
        return self

    def _refuse(self, request: Request) -> Response:
        raise NotFound()
