"""
An aiohttp application that counts in Redis, and accepts requests while Redis is lost.
The module is the client itself. Run C{python hits_aiohttp.py 8000
redis://127.0.0.1:6379}.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from redis.asyncio import Redis

from tsrv import Unavailable
from tsrv.aio import Startup

REDIS: web.AppKey[Any] = web.AppKey("redis")


async def modules(app: web.Application) -> AsyncIterator[None]:
    """
    Start the modules with the application, and close them with it.
    """
    program = Startup()
    wrapper = program.add(
        "redis",
        # One connection keeps calls in order. tsrv retries, so the client does not.
        Redis.from_url(sys.argv[2], single_connection_client=True, retry=None),
        initialize="ping",
        ping="ping",
        pingInterval=0.2,
        close="aclose",
        replay=["get"],
    )
    app[REDIS] = wrapper.proxy
    async with program:
        yield


async def live(request: web.Request) -> web.Response:
    return web.Response(text="alive")


async def hits(request: web.Request) -> web.Response:
    return web.Response(body=await request.app[REDIS].get("hits"))


async def hit(request: web.Request) -> web.Response:
    return web.Response(text=str(await request.app[REDIS].incr("hits")))


@web.middleware
async def unavailable(
    request: web.Request,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """
    Respond with 503 if a call fails because Redis is unavailable.
    """
    try:
        return await handler(request)
    except Unavailable as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error


def main() -> None:
    """
    Serve until SIGTERM.
    """
    logging.basicConfig(level=logging.INFO)
    app = web.Application(middlewares=[unavailable])
    app.cleanup_ctx.append(modules)
    app.add_routes(
        [web.get("/livez", live), web.get("/hits", hits), web.post("/hits", hit)]
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
