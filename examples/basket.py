"""
A basket for each visitor, on a plain site of twisted.web.

Run C{python basket.py}, open http://localhost:8001/, and reload the page.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from tsrv.sessions import (
    Cookies,
    Sessions,
    SQLiteSessionStore,
)


class Basket(Resource):
    """
    A page that shows the basket of its visitor.
    """

    isLeaf = True

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self.sessions = sessions

    def render_GET(self, request: Request) -> int:
        """
        Respond when the store has loaded the session.
        """
        ensureDeferred(self.show(request)).addErrback(request.processingFailed)
        return NOT_DONE_YET

    async def show(self, request: Request) -> None:
        """
        Put tea into the basket, and show the basket.
        """
        session = await self.sessions.get(request)
        session.setdefault("items", []).append("tea")
        count = await session.add("visits")
        request.write(f"{count} visits, {session['items']}\n".encode())
        request.finish()


async def main(reactor: Any) -> None:
    """
    Serve the page.
    """
    store = SQLiteSessionStore(reactor, db="sessions.db", table="sessions")
    await store.initialize()
    sessions = Sessions(reactor, store, Cookies(reactor))
    port = reactor.listenTCP(8001, Site(Basket(sessions)), interface="127.0.0.1")
    print(f"http://localhost:{port.getHost().port}/", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(main(reactor)))
