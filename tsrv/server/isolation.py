"""
Keeps the context of a request out of what the reactor runs later.

With C{--reactor=asyncio}, Twisted's timers and sockets are callbacks of asyncio, which
run in a copy of the context in which they were scheduled; and all timers share one. So
a request that starts a timer would lend its id to everybody's timers from then on, and
a connection that it opens would keep it. Neither Twisted nor asyncio has a public way
to prevent that, so this module replaces methods of the event loop. Coroutines and
queued calls have contexts of their own, and keep the id.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor

from ..queuing.awaiting import runningLoop

__all__ = ["isolateCallbacks"]


def isolateCallbacks(reactor: Any) -> None:
    """
    Run what the reactor schedules after its start in a context without request.

    @param reactor: The reactor; other kinds than that of asyncio need nothing.
    """
    if not isinstance(reactor, AsyncioSelectorReactor):
        return
    if runningLoop() is None:
        # asyncio's loop runs only after the start.
        reactor.callWhenRunning(reactor.callLater, 0, _isolate, reactor)
    else:
        _isolate(reactor)


def _isolate(reactor: Any) -> None:
    loop, context = get_running_loop(), copy_context()

    def isolated(schedule: Callable[..., Any]) -> Callable[..., Any]:
        def scheduleOutside(*arguments: Any, **options: Any) -> Any:
            if any(getattr(each, "__self__", None) is reactor for each in arguments):
                # A context cannot be entered twice.
                return context.copy().run(schedule, *arguments, **options)
            return schedule(*arguments, **options)

        return scheduleOutside

    for name in ("call_at", "add_reader", "add_writer"):
        setattr(loop, name, isolated(getattr(loop, name)))
