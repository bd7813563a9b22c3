"""
A Starlette application that accepts requests while its database is lost. C{/livez}
answers at once; C{/items} waits until PostgreSQL is ready. A FastAPI application uses
the same lifespan. Run C{python items_starlette.py 8000 postgresql://...}.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from items import Items
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from tsrv import Unavailable
from tsrv.aio import Startup


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """
    Start the modules with the application, and close them with it.
    """
    # A failure must not cancel the task of the framework; /readyz reports it.
    app.state.program = program = Startup(stayUp=True)
    app.state.items = program.add("items", Items(sys.argv[2]), replay=["names"]).proxy
    async with program:
        yield


async def live(request: Request) -> PlainTextResponse:
    return PlainTextResponse("alive")


async def ready(request: Request) -> JSONResponse:
    missing = request.app.state.program.missing()
    return JSONResponse({"missing": missing}, 503 if missing else 200)


async def names(request: Request) -> JSONResponse:
    return JSONResponse(await request.app.state.items.names())


async def add(request: Request) -> PlainTextResponse:
    await request.app.state.items.add((await request.body()).decode())
    return PlainTextResponse("added", 201)


async def unavailable(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse(str(error), 503, {"Retry-After": "1"})


routes = [
    Route("/livez", live),
    Route("/readyz", ready),
    Route("/items", names),
    Route("/items", add, methods=["POST"]),
]
app = Starlette(
    routes=routes, lifespan=lifespan, exception_handlers={Unavailable: unavailable}
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    # uvicorn raises the signal again after the shutdown: exit with status 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    uvicorn.run(app, port=int(sys.argv[1]))
