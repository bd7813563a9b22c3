"""
A worker without a web framework. It stores the lines of its standard input in Redis, in
order, and accepts lines while Redis is lost. Run C{python worker.py
redis://127.0.0.1:6379}.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tsrv import OutcomeUnknown, Unavailable
from tsrv.aio import Startup


async def main() -> None:
    """
    Work until the input ends, or until SIGTERM.
    """
    program = Startup()
    redis = program.add(
        "redis",
        # One connection keeps calls in order. tsrv retries, so the client does not.
        Redis.from_url(sys.argv[1], single_connection_client=True, retry=None),
        initialize="ping",
        ping="ping",
        pingInterval=0.2,
        close="aclose",
        # Maximum time to store the remaining lines after SIGTERM.
        queueTimeout=10.0,
    ).proxy

    async def store(line: str) -> None:
        try:
            await redis.rpush("lines", line)
        except Unavailable as error:
            print(f"not stored: {line} ({error})", flush=True)
        except (OutcomeUnknown, RedisError) as error:
            print(f"perhaps stored: {line} ({error})", flush=True)
        else:
            print(f"stored: {line}", flush=True)

    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, transport.close)
    async with program, asyncio.TaskGroup() as tasks:
        async for line in lines:
            tasks.create_task(store(line.decode().strip()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
