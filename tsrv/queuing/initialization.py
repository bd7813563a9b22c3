"""
Making one module ready, and keeping it so: attempts, retries and losses.

Each attempt is an object of its own, and an answer counts only while its
attempt is the current one. So what an abandoned attempt still has to say
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .history import (
    History,
    explain,
)
from .states import (
    Event,
    Lifecycle,
    State,
)

__all__ = ["Initialization"]


class _Attempt:
    """
    One attempt, and, if it succeeds, the time of being ready that follows.

    @ivar answer: The Deferred of the module's C{initialize()}, while it has
        not fired.
    @ivar bound: The timer that ends an attempt that hangs.
    """

    def __init__(self) -> None:
        self.answer: Deferred[Any] | None = None
        self.bound: IDelayedCall | None = None

    def settled(self) -> None:
        """
        The attempt has ended.
        """
        self.answer = None
        if self.bound is not None:
            self.bound.cancel()
            self.bound = None

    def abandon(self) -> None:
        """
        Nobody waits for the attempt any more.
        """
        answer = self.answer
        self.settled()
        if answer is not None:
            answer.cancel()


class Initialization:
    """
    Makes attempts until one succeeds, and begins again when the module is
    lost. It tells the L{Lifecycle} of every event.

    @ivar attempts: How many attempts there have been since the module was last
        ready for longer than a moment.
    @ivar lastError: Why the module is not ready: the error of the last
        attempt, or of the loss; L{None} where there is none.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        lifecycle: Lifecycle,
        history: History,
        name: str,
        *,
        initialize: Callable[[], object],
        whenLost: Callable[[], object] | None,
        retryPolicy: Callable[[int], float],
        fatal: tuple[type[BaseException], ...],
        timeout: float | None,
        ready: Callable[[], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param lifecycle: The states.
        @param history: Is told of every attempt and every loss.
        @param name: What the module is called in the log.
        @param initialize: Initialises the module.
        @param whenLost: Answers a Deferred that fires when the module is lost.
        @param retryPolicy: Takes the number of attempts so far, and answers
            the seconds to the next.
        @param fatal: The types of errors that no retry will cure.
        @param timeout: How long one attempt may take, in seconds.
        @param ready: Called when the module has become ready.
        @param lost: Called when it is ready no longer.
        @param failed: Called when there will be no further attempt.
        @param changed: Called last when an attempt has begun, and when one has
            been put off.
        """
        self.attempts = 0
        self.lastError: BaseException | None = None
        self._reactor = reactor
        self._lifecycle = lifecycle
        self._history = history
        self._name = name
        self._initialize = initialize
        self._whenLost = whenLost
        self._retryPolicy = retryPolicy
        self._fatal = fatal
        self._timeout = timeout
        self._ready = ready
        self._lost = lost
        self._failed = failed
        self._changed = changed
        self._attempt: _Attempt | None = None
        self._retryCall: IDelayedCall | None = None
        self._delay = 0.0
        self._readySince = 0.0

    def start(self) -> None:
        """
        Make the first attempt.
        """
        self._lifecycle.on(Event.INITIALIZE)
        self.attempts = 0
        self.lastError = None
        self._try()

    def stop(self) -> None:
        """
        Give up whatever is in progress, without a word.
        """
        attempt, self._attempt = self._attempt, None
        if self._retryCall is not None:
            self._retryCall.cancel()
            self._retryCall = None
        if attempt is not None:
            self._history.attemptEnded(CancelledError("given up"))
            attempt.abandon()

    def fail(self, reason: BaseException) -> None:
        """
        Give up, for a reason that is not the module's own.

        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed.
        """
        self._lifecycle.on(Event.FAIL_FOR_GOOD)
        # The module, when its attempt is cancelled, may ask why, have the
        # wrapper closed, or have it initialised again, to whatever end.
        self.lastError = reason
        self.stop()
        if self._lifecycle.state is State.FAILED and self.lastError is reason:
            self._concede(reason)

    def secondsToRetry(self) -> float | None:
        """
        @return: The seconds that are left until the next attempt, or L{None}
            if none is scheduled.
        """
        if self._retryCall is None:
            return None
        return max(0.0, self._retryCall.getTime() - self._reactor.seconds())

    # Attempts.

    def _try(self) -> None:
        self.attempts += 1
        self._history.attemptBegan()
        attempt = self._attempt = _Attempt()
        if self._timeout is not None:
            attempt.bound = self._reactor.callLater(
                self._timeout, self._overdue, attempt
            )
        answer = maybeDeferred(self._initialize)
        if self._attempt is attempt:
            attempt.answer = answer
            answer.addCallbacks(
                self._succeeded,
                self._unsuccessful,
                callbackArgs=(attempt,),
                errbackArgs=(attempt,),
            )
            if attempt.answer is not None:
                self._changed()
        else:
            # It was given up while the module was being called.
            answer.addErrback(lambda _: None)
            answer.cancel()

    def _overdue(self, attempt: _Attempt) -> None:
        """
        An attempt has taken too long.
        """
        attempt.bound = None
        self._attempt = None
        error = TimeoutError(f"no answer within {self._timeout:g} seconds")
        self._history.attemptEnded(error)
        attempt.abandon()
        self._conclude(error)

    def _succeeded(self, result: object, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        attempt.settled()
        try:
            lost = self._watch()
        except BaseException:
            # A module that cannot be watched is none that is ready.
            self._unsuccessful(Failure(), attempt)
            return
        if attempt is not self._attempt:
            # The module had the wrapper closed.
            return
        self._lifecycle.on(Event.SUCCEED)
        self.lastError = None
        self._readySince = self._reactor.seconds()
        self._history.attemptEnded()
        self._history.readied()
        if lost is not None:
            lost.addBoth(self._noticeLoss, attempt)
        # It may be lost already.
        if attempt is self._attempt:
            self._ready()

    def _unsuccessful(self, failure: Failure, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        attempt.settled()
        self._attempt = None
        error = failure.value
        assert error is not None
        self._history.attemptEnded(error)
        self._conclude(error)

    def _conclude(self, error: BaseException) -> None:
        """
        An attempt has come to nothing: try again after a while, or give up.
        """
        if self._isOvertaken():
            return
        self.lastError = error
        if isinstance(error, self._fatal):
            self._giveUp(error)
            return
        delay = self._nextDelay()
        if self._isOvertaken():
            return
        if isinstance(delay, BaseException):
            self._giveUp(error)
            return
        self._lifecycle.on(Event.FAIL)
        self._tryAfter(delay)
        self._log.warn(
            "{module} failed to initialize (attempt {attempts}), next attempt in "
            "{delay:.1f} s: {error}",
            module=self._name,
            attempts=self.attempts,
            delay=delay,
            error=explain(error),
        )
        self._changed()

    def _isOvertaken(self) -> bool:
        """
        @return: Whether the policy, or the module when it was cancelled, had
            the wrapper closed, the initialisation given up, or another one
            begun.
        """
        return (
            self._lifecycle.state is not State.INITIALIZING or self._attempt is not None
        )

    def _giveUp(self, error: BaseException) -> None:
        """
        No retry will cure it.
        """
        self._lifecycle.on(Event.FAIL_FOR_GOOD)
        self._concede(error)

    def _concede(self, error: BaseException) -> None:
        """
        There will be no further attempt.
        """
        self.lastError = error
        self._log.error(
            "{module} failed to initialize, and will not be tried again: {error}",
            module=self._name,
            error=explain(error),
        )
        self._failed()

    def _nextDelay(self) -> float | BaseException:
        """
        Ask the retry policy, which is not ours and may be wrong.

        @return: The delay in seconds, or why there is to be no further
            attempt.
        """
        try:
            delay = self._retryPolicy(self.attempts)
            if not (isfinite(delay) and delay >= 0):
                raise ValueError(f"not a number of seconds: {delay!r}")
        except BaseException as error:
            self._log.error(
                "The retry policy of {module} ends its attempts: {error}",
                module=self._name,
                error=explain(error),
            )
            return error
        return delay

    def _tryAfter(self, delay: float) -> None:
        self._delay = delay
        self._retryCall = self._reactor.callLater(delay, self._tryAgain)

    def _tryAgain(self) -> None:
        self._retryCall = None
        self._lifecycle.on(Event.RETRY)
        self._try()

    # Losses.

    def _watch(self) -> Deferred[Any] | None:
        """
        Ask the module to tell when it is lost.
        """
        if self._whenLost is None:
            return None
        lost = self._whenLost()
        if type(lost) is CoroutineType:
            lost = Deferred.fromCoroutine(lost)
        if not isinstance(lost, Deferred):
            raise TypeError(f"whenLost() answered {lost!r}, not a Deferred")
        return lost

    def _noticeLoss(self, reason: object, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        error = reason.value if isinstance(reason, Failure) else None
        # What is lost as soon as it is ready was not cured by being ready for a
        # moment: it goes on with its backoff.
        if self._reactor.seconds() - self._readySince >= self._delay:
            self.attempts = 0
        self.lastError = error
        self._lifecycle.on(Event.LOSE)
        self._history.lost(error)
        self._lost()
        delay = self._nextDelay()
        if self._lifecycle.state is not State.LOST or self._retryCall is not None:
            # The policy had the wrapper closed, or the initialisation given up;
            # and the next one may have come to a loss as well.
            return
        if isinstance(delay, BaseException):
            self._giveUp(delay if error is None else error)
            return
        self._tryAfter(delay)
        self._log.warn(
            "{module} was lost, next attempt in {delay:.1f} s: {error}",
            module=self._name,
            delay=delay,
            error=explain(error),
        )
        self._changed()
