"""
A Redis server for tests, which they can start, kill and pause.

Import the fixtures by name, C{from .redis_server import redis as redis}. Without the
program C{redis-server}, tests that need it are skipped, unless C{TSRV_DATABASES} is
C{required}.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from socket import create_connection
from typing import Any, cast

import pytest
from hiredis import Reader, ReplyError, pack_command
from twisted.internet.task import Clock

from tsrv.sessions.redis import RedisSessionStore

from .serverprocess import MAX_SECONDS, ServerProcess, required
from .websupport import reservedPort

__all__ = ["Redis", "Timed", "ownRedis", "redis", "storeAt", "using"]

SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    # Everything that was acknowledged survives a kill.
    "appendonly": "yes",
    "appendfsync": "always",
    "databases": "4",
}


class Redis(ServerProcess):
    """
    A server on the loopback interface, which keeps its port while it is down.
    """

    def __init__(self, port: int) -> None:
        self.program = required("Redis", "redis-server")
        super().__init__("Redis", port)

    @property
    def url(self) -> str:
        """
        The URL for clients.
        """
        return f"redis://127.0.0.1:{self.port}"

    def start(self, **settings: str) -> None:
        """
        Start the server, and wait until it responds.

        @param settings: Further settings, with C{_} instead of C{-}.
        """
        lines = [f"port {self.port}"]
        for name, value in {**SETTINGS, **settings}.items():
            lines.append(f'{name.replace("_", "-")} "{value}"')
        # On the command line every user could read a password.
        self.run([self.program, "-"], stdin="\n".join(lines).encode())

    def answers(self) -> bool:
        try:
            self.ask("PING")
        except ReplyError as error:
            # The server requires a password, or is still loading its data.
            return not str(error).startswith("LOADING")
        return True

    def ask(self, *words: str | bytes, password: str | None = None) -> Any:
        """
        Send a command over a new connection, and wait for the reply.

        @raise ReplyError: The reply is an error.
        """
        commands = [words] if password is None else [("AUTH", password), words]
        reader = Reader(notEnoughData=self)
        answer: Any = None
        with create_connection(("127.0.0.1", self.port), MAX_SECONDS) as connection:
            for command in commands:
                connection.sendall(pack_command(cast(Any, command)))
                while (answer := reader.gets()) is self:
                    data = connection.recv(65536)
                    if not data:
                        raise ConnectionError("Redis has closed the connection")
                    reader.feed(data)
                if isinstance(answer, ReplyError):
                    raise answer
        return answer


@cache
def _shared(config: pytest.Config) -> Redis:
    with reservedPort() as port:
        server = Redis(port)
    config.add_cleanup(server.remove)
    server.start(appendonly="no", unixsocket=str(server.directory / "socket"))
    return server


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Redis:
    """
    The server that the tests share, without data. It also listens on C{socket} in its
    directory. Do not stop it.
    """
    server = _shared(request.config)
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    return server


@pytest.fixture
def ownRedis() -> Iterator[Redis]:
    """
    A stopped server for one test.
    """
    with reservedPort() as port:
        server = Redis(port)
        yield server
        server.remove()


class Timed:
    """
    The real reactor, except that the test controls time and timers.
    """

    def __init__(self, clock: Clock) -> None:
        from twisted.internet import reactor

        self._reactor = reactor
        self.seconds = clock.seconds
        self.callLater = clock.callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def storeAt(
    url: str, prefix: str = "tsrv:session:", **options: Any
) -> RedisSessionStore:
    """
    @return: A store on the real reactor.
    """
    from twisted.internet import reactor

    return RedisSessionStore(reactor, url, prefix, **options)


@asynccontextmanager
async def using(
    url: str, prefix: str = "tsrv:session:", **options: Any
) -> AsyncIterator[RedisSessionStore]:
    """
    Use a store on the real reactor.
    """
    store = storeAt(url, prefix, **options)
    try:
        await store.initialize()
        yield store
    finally:
        await store.close()
