"""
A queue in front of a module, in a program that runs on asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict, TypeVar, Unpack

from twisted.internet.defer import DeferredSemaphore

from ..wrapper import QueuingWrapper as _QueuingWrapper
from .log import logWithLogging
from .looptime import LoopTime

__all__ = ["QueuingWrapper"]

_Module = TypeVar("_Module", covariant=True)


class _Options(TypedDict, total=False):
    limit: int
    timeout: float | None
    retryPolicy: Callable[[int], float] | None
    fatal: type[BaseException] | Iterable[type[BaseException]]
    replay: Iterable[str]
    concurrency: int | None
    attemptTimeout: float | None
    closeTimeout: float | None
    initialize: Callable[[], object] | None
    close: Callable[[], object] | None
    whenLost: Callable[[], object] | None
    whenIdle: Callable[[], object] | None
    ping: Callable[[], object] | None
    pingInterval: float
    settles: bool | None
    alwaysDeferred: bool
    lazy: bool | Callable[[], object]
    attemptSlots: DeferredSemaphore | None
    name: str | None


class QueuingWrapper(_QueuingWrapper[_Module]):
    """
    L{tsrv.QueuingWrapper} on the running loop.
    """

    def __init__(self, module: _Module, **options: Unpack[_Options]) -> None:
        """
        @param module: The module.
        @param options: The options of L{tsrv.QueuingWrapper}.
        """
        logWithLogging()
        super().__init__(module, LoopTime(), **options)
