"""
Clients that read and write users while databases and servers fail.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from .services import Answer, Service, pause, serving
from .websupport import reservedPort

__all__ = ["FIRST", "Load", "underTwoServers"]

FIRST = {"name": "Ada", "email": "first@x"}


@dataclass
class Load:
    """
    Many clients that read and write.

    @ivar read: The responses to reads.
    @ivar written: The responses to writes, for each address.
    """

    services: list[Service]
    name: str = "user"
    read: list[Answer] = field(default_factory=list)
    written: dict[str, Answer] = field(default_factory=dict)
    stopping: bool = False

    async def write(self, client: int) -> None:
        """
        Create one user after another.
        """
        number = 0
        while not self.stopping:
            email = f"{client}.{number}@{self.name}"
            service = self.services[(client + number) % len(self.services)]
            user = {"name": "Ada", "email": email}
            self.written[email] = await service.ask("POST", "/users", user)
            number += 1
            await self._pause(self.written[email])

    async def look(self, client: int) -> None:
        """
        Read the first user repeatedly.
        """
        while not self.stopping:
            self.read.append(await self.services[0].ask("GET", "/users/1"))
            await self._pause(self.read[-1])

    async def _pause(self, answer: Answer) -> None:
        # A refused client retries a little later.
        await pause(0.005 if answer.status < 300 else 0.05)

    def start(self, writers: int, readers: int = 0) -> Deferred[Any]:
        """
        Start.

        @return: A Deferred that fires when all clients have stopped.
        """
        work = [self.write(client) for client in range(writers)]
        work += [self.look(client) for client in range(readers)]
        return gatherResults([Deferred.fromCoroutine(each) for each in work])

    async def until(self, more: int) -> None:
        """
        Wait until this many further users were acknowledged.
        """
        wanted = self.count("201") + more
        begun = self.services[0].now()
        while self.count("201") < wanted:
            assert self.services[0].now() - begun < 30, self.services[0].process.output
            await pause(0.01)

    def count(self, kind: str) -> int:
        """
        @return: The number of writes with this kind of response.
        """
        return sum(answer.kind == kind for answer in self.written.values())

    def check(self, found: list[str]) -> None:
        """
        Compare the addresses in a database with the responses.
        """
        there = set(found)
        assert len(there) == len(found)
        for email, answer in self.written.items():
            if answer.kind == "201":
                assert email in there
            elif answer.kind == "not now":
                assert email not in there
            else:
                assert answer.kind in ("unknown", "0"), answer


async def underTwoServers(directory: Path, url: str) -> Load:
    """
    Run two servers under load; kill and restart one of them.
    """
    with reservedPort() as port:
        async with serving(directory / "one", url) as one, AsyncExitStack() as stack:
            killed = serving(directory / "two", url, port=port)
            two = await stack.enter_async_context(killed)
            load = Load([one, two])
            done = load.start(16)
            await load.until(200)
            await two.kill()
            async with serving(directory / "two", url, port=port):
                await load.until(200)
                load.stopping = True
                await done
                # The clients of that server use the server that replaced it.
                await two.pool.closeCachedConnections()
        assert load.count("201") >= 400
    return load
