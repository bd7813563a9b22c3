"""
Keeps the context of a request out of later callbacks of the reactor.

With C{--reactor=asyncio}, Twisted's timers and sockets are callbacks of asyncio. A
callback runs in a copy of the context in which it was scheduled, and all timers share
one callback. So if a request started a timer, all later timers would log the id of that
request, and so would every connection that the request opened. Neither Twisted nor
asyncio has a public way to prevent this, so the module replaces methods of the event
loop. Coroutines and queued calls have their own contexts, and keep the id.
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
    Run all callbacks that a running reactor schedules in a context without a request.

    @param reactor: The reactor; only a reactor on asyncio changes.
    """
    if not isinstance(reactor, AsyncioSelectorReactor):
        return
    if runningLoop() is None:
        # The loop of asyncio does not run before the reactor does.
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
