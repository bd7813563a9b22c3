"""
An HTTP API as a module: the login is the initialisation, and a refused token is a
loss.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.web.client import Agent, HTTPConnectionPool, ResponseFailed
from twisted.web.http_headers import Headers

from tsrv import OutcomeUnknown, QueuingWrapper


class Refused(Exception):
    """
    The answer is not 200.
    """


# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, ConnectionClosed, ResponseFailed)
# One that fails with one of these was not.
REFUSED = (ConnectError, Refused)


class Api:
    def __init__(self, reactor: Any, url: str) -> None:
        self._url = url
        self._pool = HTTPConnectionPool(reactor)
        self._client = HTTPClient(Agent(reactor, pool=self._pool))
        self._token = ""

    async def initialize(self) -> None:
        self._token = await self._ask("POST", "login", json={"password": "secret"})

    async def ping(self) -> None:
        await self._ask("GET", "ping")

    async def close(self) -> None:
        await self._pool.closeCachedConnections()

    async def add(self, item: str) -> None:
        await self._ask("POST", "items", json=item)

    async def items(self) -> list[str]:
        items: list[str] = await self._ask("GET", "items")
        return items

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        headers = Headers({"Authorization": [f"Bearer {self._token}"]})
        url = f"{self._url}/{path}"
        response = await self._client.request(method, url, headers=headers, **options)
        answer = await response.json()
        if response.code != 200:
            raise Refused(answer)
        return answer


def wrap(reactor: Any, url: str) -> QueuingWrapper[Api]:
    api = Api(reactor, url)
    # Requests may use several connections: one after the other, they keep the order.
    return QueuingWrapper(api, reactor, ping=api.ping, replay={"items"}, concurrency=1)


async def write(api: Api, item: str) -> None:
    await api.add(item)


async def read(api: Api) -> list[str]:
    return await api.items()
