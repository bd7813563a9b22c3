"""
Calls of foreign code: whatever it returns, raises or is, tsrv goes on.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from threading import get_ident
from types import CoroutineType, GeneratorType, NoneType
from typing import Any, Final, NoReturn, cast
from weakref import ref

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

__all__ = [
    "Results",
    "asDeferred",
    "callForeign",
    "callWithin",
    "cancelForeign",
    "checkReason",
    "checkThread",
    "errorOf",
]

_log = Logger("tsrv.wrapper")

# The types of most results that cannot be awaited.
PLAIN_TYPES: Final = frozenset(
    {NoneType, bool, bytes, dict, float, int, list, set, str, tuple}
)

# Maximum number of failures that are remembered for Deferreds that still exist.
MAX_FAILURES: Final = 100


def asDeferred(result: object) -> Deferred[Any] | None:
    """
    @return: The Deferred of anything that can be awaited; L{None} for other values.
    """
    # To compare types takes a fraction of the time of isinstance().
    kind = type(result)
    if kind in PLAIN_TYPES:
        return None
    if kind is CoroutineType:
        return Deferred.fromCoroutine(cast(Any, result))
    # A stand-in for another object may raise when isinstance() looks at it.
    if issubclass(kind, Deferred):
        return cast(Deferred[Any], result)
    if issubclass(kind, Future):
        return Deferred.fromFuture(cast(Future[Any], result))
    if hasattr(kind, "__await__") or (kind is GeneratorType and isawaitable(result)):
        # What can be entered, too, is awaited or entered by the caller.
        isEntered = hasattr(kind, "__aenter__")
        return None if isEntered else Deferred.fromCoroutine(_wait(result))
    return None


async def _wait(awaitable: Any) -> object:
    return await awaitable


def callForeign(function: Callable[[], object]) -> Deferred[Any]:
    """
    Call a function, and wait for what it returns, if that can be awaited.

    @return: A Deferred that fires with the result or the error.
    """
    try:
        result = function()
        deferred = asDeferred(result)
    except BaseException:
        return fail(Failure())
    return succeed(result) if deferred is None else deferred


def callWithin(
    timeout: float | None,
    reactor: IReactorTime,
    function: Callable[[], object],
    name: str,
) -> Deferred[BaseException | None]:
    """
    Call a function, and wait for its end for a limited time.

    @param timeout: The seconds; L{None} for no limit.
    @param name: The name of the function, for the error.
    @return: A Deferred that fires with the error, if there was one. It never fails.
        Cancelling it cancels what the function returned.
    """
    result = callForeign(function)

    def cancelResult(_: object) -> None:
        cancelForeign(result)

    # The time limit holds for a function that ignores its cancellation, too.
    ended: Deferred[Any] = Deferred(cancelResult)

    def end(value: object) -> None:
        if not ended.called:
            ended.callback(value)

    Results().observe(result, end)

    def timedOut(_: object, timeout: float) -> NoReturn:
        raise TimeoutError(f"{name}() did not end within {timeout:g} s")

    if timeout is not None:
        ended.addTimeout(timeout, reactor, timedOut)
    return ended.addCallbacks(lambda _: None, errorOf)


def cancelForeign(deferred: Deferred[Any]) -> bool:
    """
    Cancel a Deferred. An error of its canceller is logged.

    @return: Whether there was no such error.
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
    return reason if isinstance(reason, BaseException) else RuntimeError(str(reason))


def checkReason(reason: BaseException) -> BaseException:
    """
    @return: The error that a caller gives as a reason, also if it is a failure.
    @raise TypeError: It is no error.
    """
    if not isinstance(reason, BaseException):
        raise TypeError(f"the reason must be an exception, not {reason!r}")
    return errorOf(reason)


def checkThread(what: str) -> None:
    """
    @param what: The name of what was called.
    @raise RuntimeError: This is not the thread of the reactor.
    """
    if threadable.ioThread not in (None, get_ident()):
        raise RuntimeError(
            f"{what}() was called outside of the thread of the reactor: "
            "call it with reactor.callFromThread()"
        )


class Results:
    """
    Results of foreign Deferreds. Such a Deferred keeps its result, because a module may
    return it more than once. Only a failure that comes later is taken away, since it
    would be logged as unhandled; it is remembered as long as the Deferred exists.
    """

    def __init__(self) -> None:
        # By the identities of their Deferreds.
        self._failures: dict[int, tuple[ref[Deferred[Any]], Failure]] = {}

    def observe(
        self, deferred: Deferred[Any], callback: Callable[..., object], *arguments: Any
    ) -> None:
        """
        Call a function with the result, and with more arguments.
        """
        if deferred.called and not deferred.paused:
            callback(self.read(deferred), *arguments)
        else:
            deferred.addBoth(self._fired, deferred, callback, arguments)

    def read(self, deferred: Deferred[Any]) -> object:
        """
        @param deferred: A Deferred that has fired.
        @return: Its result.
        """
        result: object = deferred.result
        if isinstance(result, Failure):
            # This is what "await" does; now the failure counts as handled.
            with suppress(BaseException):
                next(deferred.__await__())
        elif result is None and id(deferred) in self._failures:
            result = self._failures[id(deferred)][1]
        return result

    def takeFailure(self, deferred: Deferred[Any]) -> None:
        """
        Take away the failure with which a Deferred is firing at the moment, after
        others that wait for it.
        """
        deferred.addErrback(self._remember, deferred)

    def abandon(self, deferred: Deferred[Any]) -> None:
        """
        Cancel a Deferred whose result nobody needs.
        """
        self.observe(deferred, _ignore)
        cancelForeign(deferred)

    def _fired(
        self,
        result: object,
        deferred: Deferred[Any],
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
    ) -> object:
        if isinstance(result, Failure):
            self.takeFailure(deferred)
        callback(result, *arguments)
        return result

    def _remember(self, failure: Failure, deferred: Deferred[Any]) -> None:
        key = id(deferred)
        forget = partial(self._forget, key)
        self._failures[key] = ref(deferred, forget), failure
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _forget(self, key: int, _: object) -> None:
        self._failures.pop(key, None)


def _ignore(_: object) -> None:
    pass
