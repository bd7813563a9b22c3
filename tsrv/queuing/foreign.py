"""
Calls of foreign code. tsrv keeps working whatever that code returns or raises.
"""

from __future__ import annotations

import sys
from asyncio import Future
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from threading import get_ident
from types import CoroutineType, GeneratorType, NoneType
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from .awaiting import runningLoop
from .needsasyncio import NeedsAsyncio, explain
from .tasks import fromFuture, isOfCoroutine, runCoroutine

__all__ = [
    "abandon",
    "abandonCoroutine",
    "asDeferred",
    "callForeign",
    "callOnLoop",
    "callToEnd",
    "callWithin",
    "cancelForeign",
    "checkReason",
    "checkThread",
    "errorOf",
    "isEnterable",
    "isTaken",
    "observe",
    "readResult",
    "takeFailure",
]

_log = Logger("tsrv.wrapper")

# The types of most results that cannot be awaited.
PLAIN_TYPES: Final = frozenset(
    {NoneType, bool, bytes, dict, float, int, list, set, str, tuple}
)

# The types of most results that cannot be entered.
NEVER_ENTERED: Final = PLAIN_TYPES | {CoroutineType, Deferred}


def asDeferred(result: object) -> Deferred[Any] | None:
    """
    @return: A Deferred for anything that can be awaited; L{None} for other values.
    """
    # Comparing types takes a fraction of the time of isinstance().
    kind = type(result)
    if kind in PLAIN_TYPES:
        return None
    if kind is CoroutineType:
        return runCoroutine(cast(Any, result))
    # A proxy of another object may raise in isinstance().
    if issubclass(kind, Deferred):
        return cast(Deferred[Any], result)
    if kind is Future or (issubclass(kind, Future) and runningLoop() is None):
        future = cast(Future[Any], result)
        # A task refuses a future of another loop, which might never be done.
        if runningLoop() in (None, future.get_loop()):
            return fromFuture(future)
    if hasattr(kind, "__await__") or (kind is GeneratorType and isawaitable(result)):
        return runCoroutine(_wait(result))
    return None


def isEnterable(result: object) -> bool:
    """
    @return: Whether this can be awaited or entered (C{async with}). Then the caller
        decides whether it awaits or enters the result of its call.
    """
    kind = type(result)
    if kind in NEVER_ENTERED or issubclass(kind, Deferred):
        return False
    return hasattr(kind, "__await__") and hasattr(kind, "__aenter__")


async def _wait(awaitable: Any) -> object:
    return await awaitable


def callForeign(function: Callable[[], object]) -> Deferred[Any]:
    """
    Call a function, and wait for its result, if the result can be awaited.

    @return: A Deferred that fires with the result or the error.
    """
    try:
        result = function()
        deferred = asDeferred(result)
    except BaseException:
        return fail(explain(Failure()))
    return succeed(result) if deferred is None else deferred


def callOnLoop(reactor: Any, function: Callable[[], object]) -> Deferred[Any]:
    """
    Call a function that may need asyncio: now, or when the loop of the asyncio reactor
    is running.

    @return: A Deferred that fires with the result or the error, which is
        L{NeedsAsyncio} if the function needs asyncio under another reactor.
    """
    if runningLoop() is not None or not IReactorCore.providedBy(reactor):
        return callForeign(function)
    module = sys.modules.get("twisted.internet.asyncioreactor")
    if module is not None and isinstance(reactor, module.AsyncioSelectorReactor):
        # The reactor calls its start-up functions before its loop runs.
        return deferLater(reactor, 0, callForeign, function)
    return callForeign(partial(_refuseFuture, function))


def _refuseFuture(function: Callable[[], object]) -> object:
    result = function()
    if issubclass(type(result), Future) and not cast(Future[Any], result).done():
        # The loop of this future is not running.
        cast(Future[Any], result).cancel()
        raise NeedsAsyncio
    return result


def callToEnd(function: Callable[[], object]) -> Deferred[BaseException | None]:
    """
    Call a function, and wait for its end.

    @return: A Deferred that fires with the error, if there was one. It never fails.
        Cancelling it cancels the Deferred of the function, and ends the waiting.
    """
    result = callForeign(function)

    def cancelResult(_: object) -> None:
        cancelForeign(result)

    ended: Deferred[Any] = Deferred(cancelResult)

    def end(value: object) -> None:
        if not ended.called:
            ended.callback(value)

    observe(result, end)
    return ended.addCallbacks(lambda _: None, errorOf)


def callWithin(
    timeout: float | None,
    reactor: IReactorTime,
    function: Callable[[], object],
    name: str,
) -> Deferred[BaseException | None]:
    """
    Call a function, and wait for its end for a limited time, as L{callToEnd} does.

    @param timeout: The seconds; L{None} for no limit.
    @param name: The name of the function, for the error.
    """

    def timedOut(_: object, timeout: float) -> TimeoutError:
        return TimeoutError(f"{name}() did not end within {timeout:g} s")

    ended = callToEnd(function)
    if timeout is not None:
        ended.addTimeout(timeout, reactor, timedOut)
    return ended


def cancelForeign(deferred: Deferred[Any]) -> bool:
    """
    Cancel a Deferred. An error of its canceller is logged.

    @return: Whether the canceller raised no error.
    """
    try:
        deferred.cancel()
    except BaseException:
        _log.failure("the canceller of a module's Deferred raised an error")
        return False
    return True


def errorOf(reason: object) -> BaseException:
    """
    @param reason: A failure, or an error.
    @return: The error. Twisted lets a Deferred fail with anything, such as a string.
    """
    if isinstance(reason, Failure):
        reason = reason.value
    if isinstance(reason, BaseException):
        return reason
    try:
        return RuntimeError(str(reason))
    except BaseException:
        return RuntimeError("(a reason that cannot be printed)")


def checkReason(reason: BaseException) -> BaseException:
    """
    @return: The error that a caller gives as a reason, taken out of a failure.
    @raise TypeError: The reason is not an error.
    """
    if not isinstance(reason, BaseException):
        raise TypeError(f"the reason must be an exception, not {reason!r}")
    return errorOf(reason)


def checkThread(what: str) -> None:
    """
    @param what: The name of the called function.
    @raise RuntimeError: This is not the thread of the reactor.
    """
    if threadable.ioThread not in (None, get_ident()):
        raise RuntimeError(
            f"{what}() was called outside of the thread of the reactor: "
            "call it with reactor.callFromThread()"
        )


# Results of foreign Deferreds. Such a Deferred keeps its result, because a module may
# return the same one more than once. Only a failure is taken out of a Deferred that
# fires later, since Twisted would log it as unhandled. The failure becomes an attribute
# of the Deferred. A table of failures would keep both alive for ever, since the frames
# of a failure often refer to the Deferred.
_TAKEN: Final = "_failureTakenByTsrv"


def observe(
    deferred: Deferred[Any], callback: Callable[..., object], *arguments: Any
) -> None:
    """
    Call a function with the result of a foreign Deferred, and with more arguments.
    """
    if deferred.called and not deferred.paused:
        callback(readResult(deferred), *arguments)
    else:
        deferred.addBoth(_fired, deferred, callback, arguments)


def abandon(deferred: Deferred[Any]) -> None:
    """
    Cancel a foreign Deferred whose result nobody needs.
    """
    observe(deferred, _ignore)
    cancelForeign(deferred)


def abandonCoroutine(deferred: object) -> None:
    """
    Cancel a coroutine whose result nobody needs. It might run for ever.
    """
    if isOfCoroutine(deferred):
        abandon(cast(Deferred[Any], deferred))


def readResult(deferred: Deferred[Any]) -> object:
    """
    @param deferred: A foreign Deferred that has fired.
    @return: Its result.
    """
    result: object = deferred.result
    if isinstance(result, Failure):
        # "await" does the same; now the failure counts as handled.
        with suppress(BaseException):
            next(deferred.__await__())
    elif result is None:
        result = getattr(deferred, _TAKEN, None)
    return result


def isTaken(deferred: Deferred[Any]) -> bool:
    """
    @return: Whether the failure of a Deferred was taken away.
    """
    return hasattr(deferred, _TAKEN)


def takeFailure(deferred: Deferred[Any]) -> None:
    """
    Take away the failure with which a Deferred is firing at the moment, after its
    other callbacks have seen it.
    """
    deferred.addErrback(_remember, deferred)


def _fired(
    result: object,
    deferred: Deferred[Any],
    callback: Callable[..., object],
    arguments: tuple[Any, ...],
) -> object:
    if isinstance(result, Failure):
        takeFailure(deferred)
    callback(result, *arguments)
    return result


def _remember(failure: Failure, deferred: Deferred[Any]) -> None:
    setattr(deferred, _TAKEN, failure)


def _ignore(_: object) -> None:
    pass
