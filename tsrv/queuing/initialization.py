"""
Making one module ready, and keeping it so: attempts, retries and losses.

Each attempt is an object of its own, and an answer counts only while its
attempt is the current one. So whatever an abandoned attempt still has to say
changes nothing.

The module, its cancellers and the retry policy are foreign code: each of them may
close the wrapper, give up the initialisation or begin another one while it is
called. So each caller looks afterwards whether something else has overtaken it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .history import History, count, explain
from .states import Event, Lifecycle, State

__all__ = ["Initialization"]

_log = Logger("tsrv.wrapper")


@dataclass(eq=False)
class _Attempt:
    """
    One attempt, and, if it succeeds, the time of being ready that follows.

    @ivar answer: The Deferred of the module's C{initialize()}, until it fires.
    @ivar timer: Ends an attempt that hangs.
    """

    answer: Deferred[Any] | None = None
    timer: IDelayedCall | None = None

    def end(self) -> None:
        answer, self.answer = self.answer, None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if answer is not None:
            answer.cancel()


class Initialization:
    """
    Makes attempts until one succeeds, and begins again when the module is lost.
    Reports every event to the L{Lifecycle}.

    @ivar attempts: The number of attempts since the module was last ready.
    @ivar lastError: The reason why the module is not ready: the error of the last
        attempt, or of the loss.
    """

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
        pending: Callable[[], int],
        ready: Callable[[], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """
        L{QueuingWrapper<tsrv.QueuingWrapper>} explains the options.

        @param pending: Returns the number of queued calls.
        @param ready: Called when the module has become ready.
        @param lost: Called when the module is lost.
        @param failed: Called when there will be no further attempt.
        @param changed: Called last when an attempt has begun, and when the next
            one has been scheduled.
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
        self._pending = pending
        self._ready = ready
        self._lost = lost
        self._failed = failed
        self._changed = changed
        self._attempt: _Attempt | None = None
        self._retryCall: IDelayedCall | None = None
        # Attempts since the module was last ready for longer than the last delay:
        # the delays go on growing if it is lost as soon as it is ready.
        self._policyAttempts = 0
        self._lastDelay = 0.0
        self._readySince = 0.0
        # The time at which the module was lost, or asked for.
        self._unreadySince = 0.0

    def start(self) -> None:
        """
        Make the first attempt.
        """
        self._lifecycle.on(Event.INITIALIZE)
        self.attempts = self._policyAttempts = 0
        self.lastError = None
        self._unreadySince = self._reactor.seconds()
        self._begin()

    def stop(self) -> None:
        """
        Give up whatever is in progress, without reporting anything.
        """
        attempt, self._attempt = self._attempt, None
        if self._retryCall is not None:
            self._retryCall.cancel()
            self._retryCall = None
        if attempt is not None:
            self._history.attemptEnded(CancelledError("given up"))
            attempt.end()

    def fail(self, reason: BaseException) -> None:
        """
        Give up: there will be no further attempt.

        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed.
        """
        self._lifecycle.on(Event.FAIL_FOR_GOOD)
        self.lastError = reason
        self.stop()
        if self._lifecycle.state is not State.FAILED or self.lastError is not reason:
            # The canceller of the attempt has closed the wrapper or begun again.
            return
        _log.error(
            "{module}: failed for good ({error})",
            module=self._name,
            error=explain(reason),
        )
        self._failed()

    def secondsToRetry(self) -> float | None:
        """
        Return the seconds until the next attempt, or L{None} if none is
        scheduled.
        """
        if self._retryCall is None:
            return None
        return max(0.0, self._retryCall.getTime() - self._reactor.seconds())

    # Attempts.

    def _begin(self) -> None:
        self.attempts += 1
        self._policyAttempts += 1
        self._history.attemptBegan()
        attempt = self._attempt = _Attempt()
        if self._timeout is not None:
            attempt.timer = self._reactor.callLater(
                self._timeout, self._timedOut, attempt
            )
        answer = maybeDeferred(self._initialize)
        if self._attempt is not attempt:
            # It was given up while the module was being called.
            answer.addErrback(lambda _: None)
            answer.cancel()
            return
        attempt.answer = answer
        answer.addCallbacks(
            self._succeeded,
            self._failedOnce,
            callbackArgs=(attempt,),
            errbackArgs=(attempt,),
        )
        if attempt.answer is not None:
            self._changed()

    def _succeeded(self, result: object, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        attempt.end()
        try:
            lost = self._watch()
        except BaseException:
            # A module that cannot be watched is not ready.
            self._failedOnce(Failure(), attempt)
            return
        if attempt is not self._attempt:
            if lost is not None:
                lost.addErrback(lambda _: None)
            return
        self._lifecycle.on(Event.SUCCEED)
        self.lastError = None
        self._readySince = self._reactor.seconds()
        self._history.attemptEnded()
        self._history.ready()
        self._logReady()
        if lost is not None:
            lost.addBoth(self._noticeLoss, attempt)
        # It may be lost already.
        if attempt is self._attempt:
            self._ready()

    def _logReady(self) -> None:
        # The first success of a first attempt is not worth a line.
        isRecovered = self._history.losses.count > 0
        if isRecovered or self.attempts > 1:
            _log.info(
                "{module}: {what} after {seconds:.1f} s, {attempts}, {calls} queued",
                module=self._name,
                what="recovered" if isRecovered else "ready",
                seconds=self._readySince - self._unreadySince,
                attempts=count(self.attempts, "attempt"),
                calls=count(self._pending(), "call"),
            )

    def _timedOut(self, attempt: _Attempt) -> None:
        attempt.timer = None
        error = TimeoutError(f"no answer within {self._timeout:g} seconds")
        self._failedOnce(Failure(error), attempt)

    def _failedOnce(self, failure: Failure, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        error = failure.value
        assert error is not None
        self._history.attemptEnded(error)
        attempt.end()
        if self._isOvertaken(State.INITIALIZING):
            return
        self.lastError = error
        if isinstance(error, self._fatal):
            self.fail(error)
        else:
            self._scheduleRetry(error)

    # Retries.

    def _scheduleRetry(self, error: BaseException | None) -> None:
        state = self._lifecycle.state
        try:
            delay = self._retryPolicy(self._policyAttempts)
            if not (isfinite(delay) and delay >= 0):
                raise ValueError(f"not a number of seconds: {delay!r}")
        except BaseException as policyError:
            if self._isOvertaken(state):
                return
            if error is not None:
                _log.error(
                    "{module}: the retry policy ends the attempts ({error})",
                    module=self._name,
                    error=explain(policyError),
                )
            self.fail(policyError if error is None else error)
            return
        if self._isOvertaken(state):
            return
        isLost = state is State.LOST
        if not isLost:
            self._lifecycle.on(Event.FAIL)
        self._lastDelay = delay
        self._retryCall = self._reactor.callLater(delay, self._retry)
        what = "lost" if isLost else "attempt {attempts} failed"
        _log.warn(
            "{module}: " + what + " ({error}); retry in {delay:.1f} s",
            module=self._name,
            attempts=self.attempts,
            delay=delay,
            error=explain(error),
        )
        self._changed()

    def _isOvertaken(self, state: State) -> bool:
        # Foreign code has closed the wrapper, given up or begun again.
        begun = self._attempt is not None or self._retryCall is not None
        return begun or self._lifecycle.state is not state

    def _retry(self) -> None:
        self._retryCall = None
        self._lifecycle.on(Event.RETRY)
        self._begin()

    # Losses.

    def _watch(self) -> Deferred[Any] | None:
        if self._whenLost is None:
            return None
        lost = self._whenLost()
        if type(lost) is CoroutineType:
            lost = Deferred.fromCoroutine(lost)
        if not isinstance(lost, Deferred):
            raise TypeError(f"whenLost() returned {lost!r}, not a Deferred")
        return lost

    def _noticeLoss(self, reason: object, attempt: _Attempt) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        error = reason.value if isinstance(reason, Failure) else None
        now = self._reactor.seconds()
        if now - self._readySince >= self._lastDelay:
            self._policyAttempts = 0
        self.attempts = 0
        self._unreadySince = now
        self.lastError = error
        self._lifecycle.on(Event.LOSE)
        self._history.lost(error)
        self._lost()
        self._scheduleRetry(error)
