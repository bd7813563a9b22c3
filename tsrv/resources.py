"""
The routes.

A resource works with a module, and neither knows nor asks whether it is
wrapped.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from .asyncmodule import NotInitialized
from .web.rendering import AsyncResource, Response, text

__all__ = ["Say", "Speaker", "makeRoot"]


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


def makeRoot(speaker: Speaker) -> AsyncResource:
    """
    @param speaker: What C{/say} asks.
    @return: The root of the site.
    """
    root = AsyncResource()
    root.putChild(b"say", Say(speaker))
    return root
