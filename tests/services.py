"""
A real server in its own process, with an HTTP client, for the tests of outages.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.task import deferLater
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseFailed,
)

from .processes import running
from .websupport import reservedPort

__all__ = ["Answer", "Service", "pause", "serving", "tried"]

UNKNOWN = "The request was interrupted: it may have been carried out, or not"

LOST = (ConnectError, ConnectionLost, RequestTransmissionFailed, ResponseFailed)

_COOKIE = re.compile("session=([^;]*);")


def pause(seconds: float) -> Deferred[None]:
    """
    Wait before the next poll.
    """
    from twisted.internet import reactor

    return deferLater(cast(Any, reactor), seconds)


@dataclass
class Answer:
    """
    A response.

    @ivar status: Status, or 0 if the connection was lost.
    @ivar retry: Whether the response has C{Retry-After}.
    @ivar cookie: Value of the session cookie that the response sets; empty if it
        deletes the cookie, L{None} if it sets none.
    """

    status: int
    retry: bool = False
    body: Any = None
    cookie: str | None = None

    @property
    def kind(self) -> str:
        """
        C{"not now"} or C{"unknown"} for 503, otherwise the status.
        """
        if self.status != 503:
            return str(self.status)
        if self.retry:
            return "not now"
        assert self.body["error"] == UNKNOWN
        return "unknown"


@dataclass
class Service:
    """
    A running server.

    @ivar origin: The origin of the site, as browsers send it.
    """

    process: Any
    origin: str
    pool: HTTPConnectionPool

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[bytes | str, bytes | str] | None = None,
    ) -> Answer:
        from twisted.internet import reactor

        options: dict[str, Any] = {} if body is None else {"json": body}
        url = f"{self.origin}{path}"
        # A client that is used again would keep cookies.
        client = HTTPClient(Agent(reactor, pool=self.pool))
        try:
            response = await client.request(
                method, url, headers=headers, allow_redirects=False, **options
            )
            data = await response.content()
        except LOST:
            return Answer(0)
        isJSON = "json" in response.headers.getRawHeaders("Content-Type", [""])[0]
        cookies = response.headers.getRawHeaders("Set-Cookie", [])
        found = [each[1] for each in map(_COOKIE.match, cookies) if each is not None]
        return Answer(
            response.code,
            response.headers.hasHeader("Retry-After"),
            json.loads(data) if isJSON else data.decode(),
            *found,
        )

    async def until(self, path: str, met: Callable[[Answer], bool]) -> Answer:
        """
        Make a request until a response meets a condition.
        """
        begun = self.now()
        while self.now() - begun < 30:
            answer = await self.ask("GET", path)
            if met(answer):
                return answer
            await pause(0.02)
        raise AssertionError(f"{path} is {answer}: {self.process.output}")

    def now(self) -> float:
        from twisted.internet import reactor

        return float(cast(Any, reactor).seconds())

    async def ready(self, is_: bool = True) -> None:
        await self.until("/readyz", lambda answer: (answer.status == 200) is is_)

    def kill(self) -> Awaitable[int]:
        self.process.transport.signalProcess("KILL")
        ended: Awaitable[int] = self.process.ended
        return ended


@asynccontextmanager
async def serving(
    directory: Path, url: str, *words: str, port: int | None = None
) -> AsyncIterator[Service]:
    """
    Run a server.

    @param url: The URL of the server's database.
    """
    from twisted.internet import reactor

    directory.mkdir(exist_ok=True)
    (directory / "url").write_text(url)
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = 100
    pool.retryAutomatically = False
    with reservedPort() as free:
        port = port or free
        command = ["-n", "--pidfile=", "tsrv", "--delay=0"]
        command.append(f"--listen=tcp:{port}:interface=127.0.0.1:backlog=1024")
        command.append(f"--database-file={directory / 'url'}")
        async with running(directory, *command, *words) as process:
            await process.whenWritten("Started")
            try:
                yield Service(process, f"http://127.0.0.1:{port}", pool)
            finally:
                await pool.closeCachedConnections()
                if process.status is None:
                    process.terminate()
                    await process.ended


def tried(name: str, times: int) -> Callable[[Answer], bool]:
    """
    @return: A condition for C{/startup}: the last attempts of a module have failed.
    """

    def met(answer: Answer) -> bool:
        (module,) = (each for each in answer.body["modules"] if each["name"] == name)
        latest = [each["kind"] is not None for each in module["attempts"]][-times:]
        return not module["ready"] and latest == [True] * times

    return met
