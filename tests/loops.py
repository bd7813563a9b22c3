"""
Tests on asyncio loops of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any

from twisted.internet.defer import Deferred

from .turning import LeapingLoop

__all__ = ["asFuture", "onLoop", "onRealLoop", "settle"]

_Test = Callable[..., Coroutine[Any, Any, None]]


def onLoop(test: _Test) -> Callable[..., None]:
    """
    Run a test in a task of a loop of its own, in which time does not pass but leaps. No
    task may be left when it ends.
    """
    return _runIn(LeapingLoop, test)


def onRealLoop(test: _Test) -> Callable[..., None]:
    """
    Like L{onLoop}, in real time, for a test with processes, threads or connections.
    """
    return _runIn(asyncio.new_event_loop, test)


def _runIn(
    makeLoop: Callable[[], asyncio.AbstractEventLoop], test: _Test
) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        async def main() -> None:
            await test(*arguments, **keywords)
            await settle()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=makeLoop) as runner:
            runner.run(main())

    return run


async def settle() -> None:
    """
    Let the loop do what is due.
    """
    for _ in range(10):
        await asyncio.sleep(0)


def asFuture(deferred: Deferred[Any]) -> Awaitable[Any]:
    """
    @return: The Deferred, as a test can await it.
    """
    return deferred.asFuture(asyncio.get_running_loop())
