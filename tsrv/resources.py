"""
The routes.

A resource works with a module, and neither knows nor asks whether it is
wrapped.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
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

    async def render_GET(self, request: Request) -> Response:
        """
        Ask the module, and pass its answer on.
        """
        try:
            something = await self._speaker.tellMeSomething()
        except NotInitialized as error:
            # Only who is not waited for has nothing to say.
            return text(f"Error:{error}", 500)
        return text(f"I say: {something}")


def makeRoot(speaker: Speaker) -> AsyncResource:
    """
    @param speaker: What C{/say} asks.
    @return: The root of the site.
    """
    root = AsyncResource()
    root.putChild(b"say", Say(speaker))
    return root
