"""
A server with C{/say} on aiohttp, without an access log: the least code for the response
of L{benchmarks.support.sayserver}.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import datetime
from importlib import import_module
from time import process_time, time
from typing import Any, Final

from benchmarks.support.processes import MAX_PROCESS_SECONDS

__all__: list[str] = []

# Type checkers do not need aiohttp.
_web: Final[Any] = import_module("aiohttp.web")


async def _tellMeSomething() -> str:
    """
    Return the time in the next turn of the loop, as
    L{AsyncModule<tsrv.asyncmodule.AsyncModule>} does.
    """
    await asyncio.sleep(0)
    now = datetime.fromtimestamp(time()).astimezone()
    return f"Current time is: {now.isoformat(' ', 'seconds')}"


async def _say(request: object) -> Any:
    return _web.Response(text=f"I say: {await _tellMeSomething()}")


async def _main() -> None:
    application = _web.Application()
    application.router.add_get("/say", _say)
    runner = _web.AppRunner(application, access_log=None)
    await runner.setup()
    await _web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    port = runner.addresses[0][1]
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while await lines.readline():
        print(json.dumps({"port": port, "cpu": process_time()}), flush=True)
    await runner.cleanup()


if __name__ == "__main__":
    signal.alarm(MAX_PROCESS_SECONDS)
    asyncio.run(_main())
