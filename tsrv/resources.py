"""
The routes of the demo server.

A resource calls a module in the same way whether the module is wrapped or not.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from .asyncmodule import NotInitialized
from .databases import ConstraintViolated, UniqueViolated
from .demo.openapi import Description
from .demo.pages import Pages
from .demo.userroutes import UsersResource
from .demo.users import Users
from .demo.visitors import Login, Logout, Me, Visits
from .sessions import Sessions
from .web.problems import KnownErrors
from .web.responses import AsyncResource, Response, text

__all__ = ["KNOWN_ERRORS", "Clock", "Say", "makeRoot"]

KNOWN_ERRORS: Final[KnownErrors] = {
    UniqueViolated: (HTTPStatus.CONFLICT, "Resource already exists"),
    ConstraintViolated: (HTTPStatus.BAD_REQUEST, "Database constraint violation"),
}
"""
The status and the message of the response to each error of a database.
"""


class Clock(Protocol):
    """
    The interface of a clock, such as L{AsyncModule<tsrv.asyncmodule.AsyncModule>}.
    """

    def tellMeSomething(self) -> Deferred[str]:
        """
        Return a Deferred of a text with the time.
        """


class Say(AsyncResource):
    """
    C{/say}: the text of the clock.
    """

    def __init__(self, clock: Clock) -> None:
        """
        @param clock: The clock, wrapped or not.
        """
        super().__init__()
        self._clock = clock

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Respond with the text of the clock.
        """
        # With a coroutine, a queued request would cost twice as much.
        return self._clock.tellMeSomething().addCallbacks(_makeResponse, _makeError)


def _makeResponse(something: str) -> Response:
    return text(f"I say: {something}")


def _makeError(failure: Failure) -> Response:
    # Only a clock without a queue raises this error.
    failure.trap(NotInitialized)
    return text(f"Error:{failure.value}", 500)


def makeRoot(
    clock: Clock, users: Users | None = None, sessions: Sessions | None = None
) -> AsyncResource:
    """
    Make the root resource of the site.

    @param clock: The clock, wrapped or not.
    @param users: The users; L{None} for a site without C{/users}.
    @param sessions: The sessions of visitors; L{None} for a site without C{/visits},
        C{/me}, C{/login} and C{/logout}.
    @return: The resource.
    """
    root = AsyncResource()
    root.putChild(b"say", Say(clock))
    root.putChild(b"openapi.json", Description(root))
    if users is not None:
        root.putChild(b"users", UsersResource(users))
    if sessions is not None:
        pages = Pages(root)
        root.putChild(b"visits", Visits(sessions, pages))
        root.putChild(b"me", Me(sessions, pages))
        root.putChild(b"login", Login(sessions, pages))
        root.putChild(b"logout", Logout(sessions, pages))
    return root
