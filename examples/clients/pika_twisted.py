"""
RabbitMQ with pika's adapter for Twisted: publish with confirms, and consume.

A channel is lost alone or with its connection; C{on_closed} reports both. pika ends
the calls that wait for the channel with its own error.
"""

from __future__ import annotations

from typing import Any

from pika import BasicProperties, DeliveryMode, URLParameters
from pika.adapters.twisted_connection import TwistedProtocolConnection
from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionClosed

from tsrv import OutcomeUnknown, QueuingWrapper, jitteredBackoff

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, AMQPError, ConnectionClosed)

PERSISTENT = BasicProperties(delivery_mode=DeliveryMode.Persistent)


class Queue:
    def __init__(self, reactor: Any, url: str) -> None:
        self._reactor, self._parameters = reactor, URLParameters(url)
        self._connection: Any = None

    async def initialize(self) -> None:
        await self.close()
        host, port = self._parameters.host, self._parameters.port
        self._connection = connection = TwistedProtocolConnection(self._parameters)
        await connectProtocol(TCP4ClientEndpoint(self._reactor, host, port), connection)
        await connection.ready
        self._channel = await connection.channel()
        await self._channel.confirm_delivery()
        await self._channel.queue_declare("items", durable=True)
        self._oneReader = DeferredLock()

    def whenLost(self) -> Deferred[Any]:
        closed: Deferred[Any] = self._channel.on_closed
        return closed

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or connection.transport is None:
            return
        if connection.is_open:
            await connection.close()
        else:
            connection.transport.abortConnection()

    async def publish(self, body: bytes) -> None:
        # It returns when RabbitMQ has the message on its disk.
        await self._channel.basic_publish("", "items", body, PERSISTENT, mandatory=True)

    async def browse(self) -> list[bytes]:
        # Consume all messages, and put them back.
        channel = self._channel
        async with self._oneReader:
            first = await channel.basic_get("items")
            if first is None:
                return []
            messages, consumer = await channel.basic_consume("items")
            rest = [await messages.get() for _ in range(first.method.message_count)]
            await channel.basic_cancel(consumer)
            # In place of basic_ack().
            channel.basic_nack(0, multiple=True)
            return [message.body for message in (first, *rest)]


def wrap(reactor: Any, url: str) -> QueuingWrapper[Queue]:
    return QueuingWrapper(
        Queue(reactor, url),
        reactor,
        name="rabbitmq",
        replay={"browse"},
        # RabbitMQ may take longer to start than the 30 s of the default.
        timeout=120.0,
        retryPolicy=jitteredBackoff(maxDelay=2.0),
    )


async def write(queue: Queue, item: str) -> None:
    await queue.publish(item.encode())


async def read(queue: Queue) -> list[str]:
    return [body.decode() for body in await queue.browse()]
