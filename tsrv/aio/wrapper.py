"""
A queue in front of a module, in a program that runs on asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, Unpack

from twisted.internet.defer import DeferredSemaphore

from ..starting.options import CommonOptions
from ..wrapper import QueuingWrapper as _QueuingWrapper
from .log import logWithLogging
from .looptime import LoopTime

__all__ = ["QueuingWrapper"]

_Module = TypeVar("_Module", covariant=True)


class _Options(CommonOptions, total=False):
    timeout: float | None
    lazy: bool | Callable[[], object]
    attemptSlots: DeferredSemaphore | None
    name: str | None


class QueuingWrapper(_QueuingWrapper[_Module]):
    """
    L{tsrv.QueuingWrapper} on the running loop::

        database = QueuingWrapper(Database(), lazy=True).proxy
        rows = await database.fetch("SELECT 1")  # queued until the database is ready

    In C{READY} a method of the proxy is the module's own, unless its calls are tracked:
    then a coroutine starts when it is awaited. A queued call starts in its turn, even
    if nobody awaits it. A module whose methods return Deferreds needs
    C{alwaysDeferred=True}. A wrapper belongs to the loop in which it was used first.
    """

    def __init__(self, module: _Module, **options: Unpack[_Options]) -> None:
        """
        @param module: The module.
        @param options: The options of L{tsrv.QueuingWrapper}.
        """
        logWithLogging()
        super().__init__(module, LoopTime(), **options)
