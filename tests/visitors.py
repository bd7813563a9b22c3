"""
Visitors of a site in memory: browsers that keep a cookie, and a store that responds
when the test says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tsrv.sessions import (
    Cookies,
    Limits,
    MemorySessionStore,
    Quota,
    Session,
    Sessions,
)
from tsrv.web.site import Site

from .support import resultOf
from .websupport import Answer, Peer

__all__ = ["Do", "LaterStore", "Place", "Shopper", "Visitor"]

Do = Callable[[Session], Any]

PROXY = "192.0.2.1"

COOKIE = re.compile(r"__Host-session=([^;]*)(.*)")


class LaterStore:
    """
    A store that delegates to another one, but later, or fails.

    @ivar late: The names of the methods that wait.
    @ivar waiting: One Deferred for each waiting call; the test fires it.
    @ivar errors: The errors of methods, by their names.
    @ivar before: Functions that run once before a method.
    @ivar asked: The names of the called methods.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self.late: set[str] = set()
        self.waiting: list[Deferred[None]] = []
        self.errors: dict[str, Exception] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        return partial(self._call, name) if callable(attribute) else attribute

    def _call(self, name: str, *arguments: Any) -> Any:
        self.asked.append(name)
        self.before.pop(name, lambda: None)()
        if name in self.errors:
            return fail(self.errors[name])
        method = getattr(self._store, name)
        if name not in self.late:
            return method(*arguments)
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: method(*arguments))


class Visitor:
    """
    A browser, whose requests pass through a proxy with TLS.

    @ivar cookie: The identifier in its cookie.
    @ivar attributes: The attributes of its cookie.
    """

    def __init__(self, site: Any, clock: Clock, cookie: str | None = None) -> None:
        self.site = site
        self.cookie = cookie
        self.attributes = ""
        self._clock = clock

    def begin(
        self,
        path: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
    ) -> Peer:
        sent = {"Host": "test", "X-Forwarded-Proto": "https", **(headers or {})}
        sent["Content-Length"] = str(len(data))
        if self.cookie is not None:
            sent["Cookie"] = f"__Host-session={self.cookie}"
        lines = [f"{method} {path} HTTP/1.1", *map(": ".join, sent.items()), "", ""]
        peer = Peer(self.site, self._clock, PROXY)
        peer.send("\r\n".join(lines).encode() + data)
        return peer

    def end(self, peer: Peer) -> Answer:
        """
        Read the response, and keep its cookie.
        """
        (answer,) = peer.answers
        peer.leave()
        found = COOKIE.match(answer.headers.get("set-cookie", ""))
        if found is not None:
            self.cookie, self.attributes = found[1] or None, found[2]
        return answer

    def ask(self, path: str = "/", **question: Any) -> Answer:
        return self.end(self.begin(path, **question))


class Shopper(Visitor):
    """
    A visitor of a page that changes the session as the test says.
    """

    def start(self, do: Do) -> Peer:
        """
        Begin a request that changes the session, without waiting for the response.
        """
        self.site.resource.do = do
        return self.begin()

    def do(self, do: Do) -> Answer:
        return self.end(self.start(do))

    def says(self, do: Do) -> Any:
        answer = self.do(do)
        assert answer.status == 200, answer
        return json.loads(answer.body)


class Place:
    """
    A site in memory with sessions, which leaves nothing behind.
    """

    def __init__(
        self,
        makeRoot: Callable[[Sessions], Any],
        quota: Quota | None = None,
        store: Any = None,
        knownErrors: Any = None,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.memory = MemorySessionStore(self.clock, Limits(idle=100, absolute=1000))
        self.memory.initialize()
        self.store = LaterStore(store or self.memory)
        cookies = Cookies(self.clock, trustedProxies=[PROXY])
        self.sessions = Sessions(
            self.clock, cast(Any, self.store), cookies, quota=quota
        )
        root = makeRoot(self.sessions)
        self.site: Any = Site(root, self.clock, knownErrors=knownErrors or {})

    def visitor(self, cookie: str | None = None) -> Visitor:
        return Visitor(self.site, self.clock, cookie)

    def count(self) -> Any:
        return resultOf(self.memory.length()).value

    def close(self) -> None:
        self.memory.close()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []
