"""
Turns the result of a resource, a coroutine or a Deferred into a response.

A resource returns a L{Response}, or raises an exception. This module handles the
exchange: it cancels the work if the client disconnects, hides exceptions from
clients, writes each response once, and writes nothing to a closed connection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import Interface

from ..queuing.foreign import cancelForeign
from ..queuing.history import explain
from .message import Response, text
from .problems import HTTPError, responseTo
from .requestid import requestIdOf, withRequestId

__all__ = [
    "NO_ROUTE",
    "AsyncResource",
    "IBegun",
    "NotFoundResource",
    "Response",
    "abort",
    "respond",
    "text",
    "writeProblem",
]

_log = Logger("tsrv.web")

NO_ROUTE: Final = "(other)"
"""
The route of resources without a route of their own.
"""

_RESPONSE_HEADERS: Final = (
    b"Cache-Control Content-Disposition Content-Encoding Content-Language"
    b" Content-Length Content-Security-Policy Content-Type ETag Last-Modified Link"
    b" Location Retry-After Set-Cookie X-Content-Type-Options"
).split()
"""
Headers of a prepared response that an error does not inherit.
"""

_PHRASES: Final = {each.value: each.phrase.encode("ascii") for each in HTTPStatus}
"""
Reason phrases. Twisted does not know all of them.
"""

routeNotFound: Final = partial(
    HTTPError, "Route not found", HTTPStatus.NOT_FOUND, text="Not found"
)
"""
Makes the error for an unknown path.
"""

_RENDERERS: Final = {
    name.encode("ascii"): f"render_{name}"
    for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
"""
Names of methods. Python finds an attribute faster by a string that already exists.
"""


class IBegun(Interface):
    """
    Marks a request whose response has begun, although no byte is sent yet: an error
    then aborts the connection. Set it with C{request.setComponent(IBegun, True)}.
    """


def respond(request: Request, render: Callable[[Request], Any]) -> int:
    """
    Send the response to a request when the response is available. If the client
    disconnects before, cancel the work. Any resource of twisted.web can use this
    function::

        def render_GET(self, request):
            return respond(request, self._show)

    @param request: The request.
    @param render: Called with the request; returns the L{Response}, or a coroutine or
        Deferred of one. An exception becomes a response too; if C{render} has begun
        to write one itself, the connection is aborted.
    @return: C{NOT_DONE_YET}, for the caller to return.
    """
    exchange = _Exchange(request)
    # notifyFinish() does the same with a Deferred, which costs 600 bytes for each
    # waiting request and 5 % of the time of a ready one.
    cast(list[Any], request.notifications).append(exchange)
    exchange.begin(maybeDeferred(render, request))
    return NOT_DONE_YET


def writeProblem(request: Request, failure: Failure) -> None:
    """
    Send an error in place of a response that is prepared but has not begun.

    @param request: The request.
    @param failure: The error.
    """
    headers = request.responseHeaders
    for name in _RESPONSE_HEADERS:
        headers.removeHeader(name)
    # The response to an error has its own Vary: Accept.
    varying = headers.getRawHeaders(b"Vary", [])
    headers.setRawHeaders(b"Vary", [each for each in varying if each != b"Accept"])
    request.cookies.clear()
    _Exchange(request).fail(failure)


def abort(request: Request, failure: Failure) -> None:
    """
    Abort the connection of a request whose response has begun, and log the error.

    @param request: The request.
    @param failure: The error.
    """
    _log.failure("A response was aborted", failure=failure)
    cast(ITCPTransport, request.transport).abortConnection()


class _Exchange:
    """
    One request and its response. The request calls C{callback} or C{errback} when
    it ends.
    """

    __slots__ = ("_clientLeft", "_request", "_result")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._result: Deferred[Any] | None = None
        self._clientLeft = False

    def begin(self, result: Deferred[Response]) -> None:
        self._result = result
        # One callback for all results, because each costs memory while requests wait.
        result.addBoth(self._finish)
        if self._clientLeft:
            # The client disconnected during the call of render().
            cancelForeign(result)

    def callback(self, result: None) -> None:
        pass

    def errback(self, reason: Failure) -> None:
        self._clientLeft = True
        if self._result is not None:
            with withRequestId(requestIdOf(self._request)):
                cancelForeign(self._result)

    def _finish(self, result: Response | Failure) -> None:
        try:
            if not isinstance(result, Failure):
                self._write(result)
                return
        except BaseException:
            result = Failure()
        self.fail(result)

    def fail(self, failure: Failure) -> None:
        # The current context belongs to the code that fired the Deferred.
        with withRequestId(requestIdOf(self._request)):
            try:
                self._writeProblem(failure)
            except BaseException:
                abort(self._request, Failure())

    def _write(self, response: Response) -> None:
        if self._clientLeft:
            return
        request = self._request
        headers = request.responseHeaders
        if response.status != 200:
            status = response.status
            request.setResponseCode(status, _PHRASES.get(status))
        for name, value in response.headers:
            headers.addRawHeader(name, value)
        # Requests on a site of tsrv write a whole response at half the cost.
        send = getattr(request, "send", None)
        if send is not None and send(response):
            return
        if response.status not in NO_BODY_CODES:
            headers.setRawHeaders(b"Content-Type", [response.contentType])
            headers.setRawHeaders(b"Content-Length", [b"%d" % len(response.body)])
        request.write(response.body)
        request.finish()

    def _writeProblem(self, failure: Failure) -> None:
        request = self._request
        if self._clientLeft:
            # CancelledError is the result of errback().
            if not failure.check(CancelledError):
                _log.debug(
                    "After the client disconnected: {error}",
                    error=explain(failure.value),
                )
        elif request.startedWriting or request.getComponent(IBegun):
            abort(request, failure)
        else:
            self._write(responseTo(failure, request))


class AsyncResource(Resource):
    """
    A resource whose methods return a L{Response}, a Deferred or a coroutine of one, or
    raise an exception such as L{HTTPError}::

        class Say(AsyncResource):
            isLeaf = True

            async def render_GET(self, request):
                return text(await clock.tellMeSomething())

    @cvar route: The pattern of the paths of this resource for metrics, such as
        C{/users/{id}}; never a path that a client has sent. C{putChild} sets the routes
        of children; a resource that C{getChild} returns must define its own route.
    """

    route: str = NO_ROUTE

    def __init__(self) -> None:
        # Twisted's __init__ has no types, so strict type checkers refuse to call it.
        super().__init__()

    def render(self, request: Request) -> int:
        """
        Call the C{render_METHOD} for the method of the request.
        """
        method = request.method
        name = _RENDERERS.get(method) or f"render_{method.decode('latin-1')}"
        render = getattr(self, name, None)
        if render is None or (method == b"HEAD" and not hasattr(self, "render_GET")):
            render = self._refuse
        return respond(request, render)

    def putChild(self, path: bytes, child: IResource | Resource) -> None:
        """
        Add a child, and set its route.

        @param path: The part of the path that leads to the child.
        @param child: The child.
        """
        super().putChild(path, child)
        if self.route != NO_ROUTE:
            self._setRouteOf(child, path)

    def setRoute(self, route: str) -> None:
        """
        Set the route of this resource and of its children, unless they have one. So a
        resource in several places has the route of the first place.

        @param route: The route, such as C{/users}.
        """
        if self.route == NO_ROUTE:
            self.route = route
            for path, child in self.children.items():
                self._setRouteOf(child, path)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """
        Return a L{NotFoundResource}. Override this method for children with variable
        paths.

        @param path: The part of the path that leads to the child.
        @param request: The request.
        """
        return NotFoundResource()

    def _setRouteOf(self, child: object, path: bytes) -> None:
        if isinstance(child, AsyncResource):
            name = path.decode("utf-8", "backslashreplace")
            child.setRoute(f"{self.route.rstrip('/')}/{name}")

    def supportedMethods(self) -> list[str]:
        """
        Return the names of the methods that this resource supports, such as C{GET}.
        The response to any other method is 405; without any method, it is 404.
        """
        prefix = "render_"
        names = [name for name in dir(self) if name.startswith(prefix)]
        methods = [name.removeprefix(prefix) for name in names]
        if "GET" not in methods:
            # Every Resource has a render_HEAD, which calls render_GET.
            methods.remove("HEAD")
        return methods

    def _refuse(self, request: Request) -> Response:
        names = ", ".join(self.supportedMethods())
        if not names:
            raise routeNotFound()
        raise HTTPError(
            f"Method not allowed, only {names}",
            HTTPStatus.METHOD_NOT_ALLOWED,
            [(b"Allow", names.encode("ascii"))],
        )


class NotFoundResource(AsyncResource):
    """
    Responds to every request with 404.
    """

    route = "(unknown)"
    isLeaf = True
