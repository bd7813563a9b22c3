"""
The routes.

A resource works with a module, and neither knows nor asks whether it is
wrapped.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import Request

from .asyncmodule import NotInitialized
from .databases import ConstraintViolated, UniqueViolated
from .demo.openapi import Description
from .demo.userroutes import UsersResource
from .demo.users import Users
from .demo.visitors import (
    Login,
    Logout,
    Me,
    Visits,
)
from .sessions import Sessions
from .startup import Startup
from .web.health import (
    Live,
    Ready,
    StartupPage,
)
from .web.metrics import (
    Metrics,
    Traffic,
)
from .web.problems import KnownErrors
from .web.responses import (
    AsyncResource,
    Response,
    text,
)
from .web.status import putStatus

__all__ = ["KNOWN_ERRORS", "Say", "Speaker", "makeRoot", "putOperations"]


KNOWN_ERRORS: Final[KnownErrors] = {
    UniqueViolated: (HTTPStatus.CONFLICT, "Resource already exists"),
    ConstraintViolated: (HTTPStatus.BAD_REQUEST, "Database constraint violation"),
}
"""
The responses to what the database refuses.
"""


class Speaker(Protocol):
    """
    What L{Say} needs of a module.
    """

    def tellMeSomething(self) -> Deferred[str]:
        """
        @see: L{tsrv.asyncmodule.AsyncModule.tellMeSomething}
        """


class Say(AsyncResource):
    """
    C{/say}: what the module has to say.
    """

    def __init__(self, speaker: Speaker) -> None:
        """
        @param speaker: The module, wrapped or not.
        """
        super().__init__()
        self._speaker = speaker

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Ask the module, and pass its answer on.
        """
        # A coroutine would double what a request costs while it is held.
        return self._speaker.tellMeSomething().addCallbacks(_said, _notSaid)


def _said(something: str) -> Response:
    return text(f"I say: {something}")


def _notSaid(failure: Failure) -> Response:
    # Only who is not waited for has nothing to say.
    failure.trap(NotInitialized)
    return text(f"Error:{failure.value}", 500)


def putOperations(
    root: AsyncResource,
    startup: Startup,
    reactor: IReactorTime,
    traffic: Traffic,
    apart: bool,
) -> None:
    """
    Put the pages for who runs the server on a site.

    @param root: The root of the site.
    @param startup: The modules.
    @param reactor: Provides the time.
    @param traffic: The requests.
    @param apart: Whether the site is for nobody else, so that the messages of
        errors may be seen there.
    """
    root.putChild(b"livez", Live())
    root.putChild(b"readyz", Ready(startup))
    root.putChild(b"startup", StartupPage(startup, showErrors=apart))
    root.putChild(b"metrics", Metrics(startup, reactor, traffic))
    paths = ["/livez", "/readyz", "/startup", "/metrics"]
    links = [(path, path) for path in (paths if apart else ["/say", *paths])]
    putStatus(root, startup, reactor, links=links, showErrors=apart)


def makeRoot(
    speaker: Speaker,
    users: Users | None = None,
    sessions: Sessions | None = None,
) -> AsyncResource:
    """
    @param speaker: What C{/say} asks.
    @param users: The users, if there are any.
    @param sessions: The sessions of visitors, if there are any.
    @return: The root of the site.
    """
    root = AsyncResource()
    root.putChild(b"say", Say(speaker))
    if users is not None:
        root.putChild(b"users", UsersResource(users))
        root.putChild(b"openapi.json", Description())
    if sessions is not None:
        root.putChild(b"visits", Visits(sessions))
        root.putChild(b"me", Me(sessions))
        root.putChild(b"login", Login(sessions))
        root.putChild(b"logout", Logout(sessions))
    return root
