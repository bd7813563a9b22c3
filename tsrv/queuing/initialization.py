"""
Making one module ready, and keeping it ready: attempts, retries and losses.

Each attempt is an object of its own, and its answer counts only while it is the current
attempt. So a late answer of a cancelled attempt changes nothing. An attempt stays
current while the module is ready.

A module is lost when its C{whenLost()} fires, when a ping fails, or when it is reset.
In the last two cases the module itself has not noticed a loss, so it is closed before
it is initialised again.

The module, its cancellers and the retry policy are foreign code: each of them may close
the wrapper, or end the initialisation and begin another one, while it is called. So the
code here checks after each such call whether its attempt is still the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from math import isfinite

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .attempt import OneAttempt
from .foreign import abandon, callForeign, callWithin, errorOf, observe
from .history import History
from .modulelog import ModuleLog
from .needsasyncio import NeedsAsyncio, explain
from .options import checkArguments, checkInterval, checkSeconds
from .ping import Ping
from .states import (
    HEALTHY_STATES,
    TRANSITIONS,
    Event,
    IllegalTransition,
    Lifecycle,
    State,
)
from .watch import StaleWatch, Watch

__all__ = ["Initialization"]


class Initialization:
    """
    Makes attempts until one succeeds, and begins again when the module is lost. Reports
    every event to the L{Lifecycle}.

    @ivar attempts: The number of attempts since the module was last ready.
    @ivar lastError: The reason why the module is not ready: the error of the last
        attempt, or of the loss.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        lifecycle: Lifecycle,
        history: History,
        log: ModuleLog,
        name: str,
        *,
        initialize: Callable[[], object],
        whenLost: Callable[[], object] | None,
        close: Callable[[], object] | None,
        closeTimeout: float | None,
        ping: Callable[[], object] | None,
        pingInterval: float,
        retryPolicy: Callable[[int], float],
        fatal: tuple[type[BaseException], ...],
        timeout: float | None,
        slots: DeferredSemaphore | None,
        secondsLeft: Callable[[], float | None],
        ready: Callable[[], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """
        L{QueuingWrapper<tsrv.QueuingWrapper>} explains the options.

        @param secondsLeft: Returns the seconds that the attempt in progress will
            still take, if they are known.
        @param ready: Called when the module has become ready.
        @param lost: Called when the module is lost.
        @param failed: Called when there will be no further attempt.
        @param changed: Called last when an attempt has begun or waits for its turn,
            and when the next one has been scheduled.
        """
        checkSeconds("attemptTimeout", timeout)
        checkSeconds("closeTimeout", closeTimeout)
        checkInterval("pingInterval", pingInterval)
        checkArguments("retryPolicy", retryPolicy, 1)
        self.attempts = 0
        self.lastError: BaseException | None = None
        self._closing: Deferred[BaseException | None] | None = None
        self._reactor = reactor
        self._lifecycle = lifecycle
        self._history = history
        self._log = log
        self._name = name
        self._initialize = initialize
        self._watch = Watch(whenLost, self._noticeLoss)
        self._close = close
        self._closeTimeout = closeTimeout
        self._ping: Ping | None = None
        self._pingInterval = pingInterval
        # Whether a ping failed soon after the module had recovered.
        self._backsOff = False
        if ping is not None:
            pingFailed = partial(self.reset, isPing=True)
            self._ping = Ping(reactor, ping, pingInterval, pingFailed)
        self._retryPolicy = retryPolicy
        self._fatal = (NeedsAsyncio, StaleWatch, *fatal)
        self._timeout = timeout
        self._slots = slots
        self._secondsLeft = secondsLeft
        self._ready = ready
        self._lost = lost
        self._failed = failed
        self._changed = changed
        self._context = copy_context()
        self._attempt: OneAttempt | None = None
        self._retryCall: IDelayedCall | None = None
        # Attempts since the module was last ready for longer than the last delay:
        # if each loss follows at once, the delays continue to grow.
        self._policyAttempts = 0
        self._lastDelay = 0.0
        self._readySince = 0.0
        # The time of the loss, or of the call of initialize().
        self._unreadySince = 0.0

    def start(self) -> None:
        """
        Make the first attempt.
        """
        self._lifecycle.on(Event.INITIALIZE)
        self.attempts = self._policyAttempts = 0
        self.lastError = None
        self._log.begin()
        self._unreadySince = self._reactor.seconds()
        self._begin()

    def stop(self, reason: BaseException | None = None) -> None:
        """
        Cancel the attempt, the retry and the ping, without reporting an event.
        """
        attempt, self._attempt = self._attempt, None
        if self._retryCall is not None:
            self._retryCall.cancel()
            self._retryCall = None
        if attempt is not None:
            self._history.attemptEnded(CancelledError() if reason is None else reason)
            attempt.end()
        if self._ping is not None:
            self._ping.stop()

    def reset(self, reason: BaseException, isPing: bool = False) -> None:
        """
        Close the module, and initialise it again: without a delay, unless a ping has
        failed within one interval after the module had recovered.

        @param isPing: Whether the reason is the error of a ping.
        @raise IllegalTransition: The module was never initialised, has failed for good,
            or is closed; nothing has changed.
        """
        state = self._lifecycle.state
        secondsReady = self._reactor.seconds() - self._readySince
        isAgain = self._history.losses.count > 0 and secondsReady < self._pingInterval
        self._backsOff = isPing and isAgain
        if state in (State.RETRYING, State.LOST):
            self.lastError = reason
            self._log.reset(reason)
            # After the close() of an earlier reset, the next attempt begins anyway.
            if self._closing is None:
                self.stop()
                self._retry()
            return
        if state not in (*HEALTHY_STATES, State.INITIALIZING):
            raise IllegalTransition(state, Event.LOSE, f"reset() of {self._name}")
        # From here on, foreign code may reset the module again, or close it.
        closing = None
        if self._closing is None:
            closing = Deferred[BaseException | None]()
            self._closing = closing.addCallback(self._closed)
        if state is State.INITIALIZING:
            self._lifecycle.on(Event.FAIL)
            self.lastError = reason
            self.stop(reason)
        else:
            self._lose(reason)
        if not isPing:
            self._log.reset(reason)
        elif not self._backsOff:
            self._log.lost(reason, 0.0, "ping failed: ")
        # Observers learn of the loss before close() is called, which may end calls.
        self._changed()
        if closing is not None:
            self._callClose().addCallback(closing.callback)

    def closeModule(self) -> Deferred[BaseException | None]:
        """
        Close the module, if it was ever initialised.

        @return: A Deferred that fires with the error, if there was one.
        """
        # A reset may have begun to close it.
        return self._callClose() if self._closing is None else self._closing

    def _callClose(self) -> Deferred[BaseException | None]:
        if self._close is None or not self._history.attempts.count:
            closed: Deferred[BaseException | None] = succeed(None)
        else:
            closed = callWithin(self._closeTimeout, self._reactor, self._close, "close")
        return closed.addCallback(self._endWatch)

    def _endWatch(self, error: BaseException | None) -> BaseException | None:
        self._watch.end()
        return error

    def _closed(self, error: BaseException | None) -> BaseException | None:
        self._closing = None
        if error is not None:
            self._log.closingFailed(error, isReset=True)
        if self._attempt is not None:
            self._waitForTurn(self._attempt)
        elif self._lifecycle.state in (State.RETRYING, State.LOST):
            if isinstance(self.lastError, NeedsAsyncio):
                # A ping has shown that the module needs asyncio.
                self.fail(self.lastError)
            elif self._backsOff:
                self._scheduleRetry(self.lastError, "ping failed: ")
            else:
                self._retry()
        return error

    def fail(self, reason: BaseException) -> None:
        """
        End the attempts: there will be no further one.

        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed.
        """
        state, event = self._lifecycle.state, Event.FAIL_FOR_GOOD
        if event not in TRANSITIONS[state]:
            raise IllegalTransition(state, event, f"fail() of {self._name}")
        self._lifecycle.on(event)
        self.lastError = reason
        self.stop(reason)
        if self._lifecycle.state is not State.FAILED or self.lastError is not reason:
            # The canceller of the attempt has closed the wrapper or begun again.
            return
        self._log.failed(reason)
        self._failed()

    def retryAfter(self) -> float | None:
        """
        @return: The seconds until the next attempt begins, or the attempt in progress
            ends, if they are known.
        """
        if self._lifecycle.state is State.INITIALIZING:
            return self._secondsLeft()
        if self._retryCall is None:
            return None
        return max(0.0, self._retryCall.getTime() - self._reactor.seconds())

    def suspect(self, succeeded: Callable[[], object] | None = None) -> bool:
        """
        A call has failed. Ping the module, which may be lost.

        @param succeeded: Called when the ping has succeeded.
        @return: Whether C{succeeded} will be called, unless the module is lost.
        """
        return self._ping is not None and self._ping.now(succeeded)

    # Attempts.

    def _begin(self) -> None:
        attempt = self._attempt = OneAttempt()
        if self._closing is None:
            self._waitForTurn(attempt)
        else:
            self._changed()

    def _waitForTurn(self, attempt: OneAttempt) -> None:
        if self._slots is None:
            self._run(attempt)
            return
        attempt.turn = turn = self._slots.acquire()
        turn.addCallbacks(self._gotTurn, lambda _: None, callbackArgs=(attempt,))
        if attempt.turn is not None:
            self._changed()

    def _gotTurn(self, slots: DeferredSemaphore, attempt: OneAttempt) -> None:
        attempt.turn = None
        # The next module's attempt begins when the end of this one is complete.
        attempt.release = partial(self._reactor.callLater, 0, slots.release)
        self._run(attempt)

    def _run(self, attempt: OneAttempt) -> None:
        # An attempt serves all callers, so it does not run in the context of one.
        self._context.copy().run(self._call, attempt)

    def _call(self, attempt: OneAttempt) -> None:
        self.attempts += 1
        self._policyAttempts += 1
        self._history.attemptBegan()
        if self._timeout is not None:
            attempt.timer = self._reactor.callLater(
                self._timeout, self._timedOut, attempt
            )
        answer = callForeign(self._initialize)
        if self._attempt is not attempt:
            # The attempt was cancelled while the module was being called.
            abandon(answer)
            return
        attempt.answer = answer
        observe(answer, self._answered, attempt)
        if attempt.answer is not None:
            self._changed()

    def _answered(self, result: object, attempt: OneAttempt) -> None:
        if attempt is not self._attempt:
            return
        attempt.answer = None
        if isinstance(result, Failure):
            self._failedOnce(result, attempt)
        else:
            self._succeeded(attempt)

    def _succeeded(self, attempt: OneAttempt) -> None:
        attempt.end()
        try:
            beginWatch = self._watch.ask()
        except BaseException:
            # A module that cannot be watched is not ready.
            self._failedOnce(explain(Failure()), attempt)
            return
        if attempt is not self._attempt:
            beginWatch()
            return
        self._lifecycle.on(Event.SUCCEED)
        self.lastError = None
        self._readySince = self._reactor.seconds()
        self._history.attemptEnded()
        self._history.ready()
        self._log.ready(
            self._readySince - self._unreadySince,
            self.attempts,
            isRecovered=self._history.losses.count > 0,
        )
        beginWatch()
        # The module may be lost already.
        if attempt is self._attempt:
            if self._ping is not None:
                self._ping.start()
            self._ready()

    def _timedOut(self, attempt: OneAttempt) -> None:
        attempt.timer = None
        error = TimeoutError(f"initialize() did not end within {self._timeout:g} s")
        self._failedOnce(Failure(error), attempt)

    def _failedOnce(self, failure: Failure, attempt: OneAttempt) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        error = errorOf(failure)
        self._history.attemptEnded(error)
        attempt.end()
        if self._isOvertaken(State.INITIALIZING):
            return
        self.lastError = error
        if isinstance(error, self._fatal):
            self.fail(error)
            return
        self._log.mistake(failure)
        self._scheduleRetry(error)

    # Retries.

    def _scheduleRetry(self, error: BaseException | None, source: str = "") -> None:
        state = self._lifecycle.state
        try:
            given = self._retryPolicy(self._policyAttempts)
            if not (isfinite(given) and given >= 0):
                raise ValueError(
                    f"the retry policy returned {given!r}, not seconds >= 0"
                )
            # The delay may be a Decimal, for example.
            delay = float(given)
        except BaseException as policyError:
            if self._isOvertaken(state):
                return
            if error is not None:
                self._log.policyFailed(policyError)
            self.fail(policyError if error is None else error)
            return
        if self._isOvertaken(state):
            return
        if state is not State.LOST:
            self._lifecycle.on(Event.FAIL)
        self._lastDelay = delay
        self._retryCall = self._reactor.callLater(delay, self._retry)
        if state is State.LOST:
            self._log.lost(error, delay, source)
        else:
            self._log.attemptFailed(self._history.attempts.count, error, delay)
        self._changed()

    def _isOvertaken(self, state: State) -> bool:
        # Foreign code has closed the wrapper, ended the attempts or begun again.
        begun = (self._attempt, self._retryCall, self._closing) != (None, None, None)
        return begun or self._lifecycle.state is not state

    def _retry(self) -> None:
        self._retryCall = None
        self._lifecycle.on(Event.RETRY)
        self._begin()

    # Losses.

    def _noticeLoss(self, error: BaseException | None) -> None:
        if self._lifecycle.state not in HEALTHY_STATES:
            return
        self._lose(error)
        if self._isOvertaken(State.LOST):
            return
        if isinstance(error, NeedsAsyncio):
            self.fail(error)
        else:
            self._scheduleRetry(error)

    def _lose(self, error: BaseException | None) -> None:
        self._attempt = None
        ping = None if self._ping is None else self._ping.detach()
        now = self._reactor.seconds()
        if now - self._readySince >= self._lastDelay:
            self._policyAttempts = 0
        self.attempts = 0
        self._unreadySince = now
        self.lastError = error
        self._lifecycle.on(Event.LOSE)
        self._history.lost(error)
        self._lost()
        if ping is not None:
            ping.cancel()
