"""
A site with sessions, and its server.
"""

from __future__ import annotations

from typing import Any, assert_type

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.resource import IResource
from twisted.web.server import Request

from tsrv import QueuingWrapper, Startup
from tsrv.server import Server
from tsrv.sessions import (
    Cookies,
    ISessionStore,
    MemorySessionStore,
    Session,
    Sessions,
    SQLiteSessionStore,
)
from tsrv.web.message import Response
from tsrv.web.operations import Operations
from tsrv.web.responses import AsyncResource, text


class Visits(AsyncResource):
    """
    A resource with a session.
    """

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    async def render_GET(self, request: Request) -> Response:
        session = await self._sessions.get(request)
        assert_type(session, Session)
        assert_type(session.add("visits"), Deferred[int | float])
        session["name"] = "Ada"
        session[1] = "Ada"  # type: ignore[index]  # pyright: ignore[reportArgumentType]
        return text(f"{await session.add('visits')} visits")


def test(clock: Clock, root: Visits) -> None:
    """
    Pyright does not know that these classes implement interfaces of zope.
    """
    wrapper = QueuingWrapper(SQLiteSessionStore(clock), clock)
    Sessions(clock, MemorySessionStore(clock), Cookies(clock))
    Sessions(clock, wrapper.proxy, Cookies(clock))
    startup = Startup(clock)
    Server(clock, startup, root, ["tcp:80"])
    Operations(startup, clock)
    AsyncResource().putChild(b"", root)


def serve(reactor: Any, store: ISessionStore, root: IResource) -> None:
    Sessions(reactor, store, Cookies(reactor))
    Sessions(reactor, store)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    server = Server(reactor, Startup(reactor), root, ["tcp:80"], accessLog=True)
    assert_type(server.run(), Deferred[None])
    Server(reactor, Startup(reactor), root, ["tcp:80"], acessLog=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
