"""
RabbitMQ with aio-pika: publish with confirms, and consume.

C{connect_robust()} would reconnect by itself, and hold calls without a limit. This
module uses C{connect()} instead: tsrv reconnects. At a loss, aio-pika fails calls some
time before C{closed()} returns; C{ping=} finds the loss at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aio_pika import DeliveryMode, Message, connect
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from tsrv import OutcomeUnknown, QueuingWrapper, jitteredBackoff

# A write that fails with one of these may have been carried out.
UNCERTAIN = (OutcomeUnknown, AMQPError, ChannelInvalidStateError, OSError)


class Queue:
    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None

    async def initialize(self) -> None:
        await self.close()
        self._connection = await connect(self._url)
        self._channel = await self._connection.channel()
        self._queue = await self._channel.declare_queue("items", durable=True)
        self._oneReader = asyncio.Lock()

    async def whenLost(self) -> None:
        await self._channel.closed()

    async def ping(self) -> None:
        await self._channel.declare_queue("items", passive=True)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def publish(self, body: bytes) -> None:
        # It returns when RabbitMQ has the message on its disk.
        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT)
        await self._channel.default_exchange.publish(message, "items")

    async def browse(self) -> list[bytes]:
        # Consume all messages, and put them back.
        queue = self._queue
        async with self._oneReader:
            first = await queue.get(fail=False)
            if first is None:
                return []
            async with queue.iterator() as consumed:
                rest = [await anext(consumed) for _ in range(first.message_count)]
            messages = [first, *rest]
            # In place of ack().
            await messages[-1].nack(multiple=True)
            return [message.body for message in messages]


def wrap(reactor: Any, url: str) -> QueuingWrapper[Queue]:
    queue = Queue(url)
    return QueuingWrapper(
        queue,
        reactor,
        name="rabbitmq",
        ping=queue.ping,
        replay={"browse"},
        # aio-pika may pass on confirms in another order than the queue has.
        concurrency=1,
        # RabbitMQ may take longer to start than the 30 s of the default.
        timeout=120.0,
        retryPolicy=jitteredBackoff(maxDelay=2.0),
    )


async def write(queue: Queue, item: str) -> None:
    await queue.publish(item.encode())


async def read(queue: Queue) -> list[str]:
    return [body.decode() for body in await queue.browse()]
