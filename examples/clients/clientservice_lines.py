"""
Moving from C{ClientService}: the same endpoint and the same protocol, with a queue.

C{readFrom} waits for a connection of C{ClientService}, and fails at a loss. C{read} is
a call of a module that C{madeBy} makes of the protocol: tsrv queues and repeats it.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any, cast

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from tsrv import OutcomeUnknown, QueuingWrapper, madeBy

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, ConnectionClosed)


class LineClient(LineReceiver):
    MAX_LENGTH = 2**24

    def __init__(self) -> None:
        self._answers: list[Deferred[Any]] = []
        self._lost: Deferred[None] = Deferred()

    def add(self, item: str) -> Deferred[None]:
        return self._ask(["add", item])

    def items(self) -> Deferred[list[str]]:
        return self._ask(["items"])

    def whenLost(self) -> Deferred[None]:
        return self._lost

    def close(self) -> None:
        cast(Any, self.transport).loseConnection()

    def _ask(self, question: list[str]) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self._answers.append(answer)
        self.sendLine(json.dumps(question).encode())
        return answer

    def lineReceived(self, line: bytes) -> None:
        self._answers.pop(0).callback(json.loads(line))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost.callback(None)
        for answer in self._answers:
            answer.errback(reason)


def serve(reactor: Any, endpoint: str) -> ClientService:
    factory = Factory.forProtocol(LineClient)
    return ClientService(clientFromString(reactor, endpoint), factory)


async def readFrom(service: ClientService) -> list[str]:
    client: Any = await service.whenConnected()
    return [*await client.items()]


def wrap(reactor: Any, endpoint: str) -> QueuingWrapper[LineClient]:
    server: Any = clientFromString(reactor, endpoint)
    connect = partial(server.connect, Factory.forProtocol(LineClient))
    return QueuingWrapper(madeBy(connect, LineClient), reactor, replay={"items"})


async def write(client: LineClient, item: str) -> None:
    await client.add(item)


async def read(client: LineClient) -> list[str]:
    return await client.items()
