"""
A queue in front of a module that takes its time to become ready.

A database client has to connect before it can answer its first query. Until then a
program can refuse the query, or write C{if db.connected} everywhere. L{QueuingWrapper}
is another way: it takes the query at once, queues it, and runs it as soon as the
client is ready.

It connects four parts that do not know each other; only the initialisation reports
every event to the lifecycle:

  - L{Lifecycle<tsrv.queuing.states.Lifecycle>}: the state, and which events are
    legal in it. Its module explains what each state means for a call; read it first.

  - L{Initialization<tsrv.queuing.initialization.Initialization>}: attempts until one
    succeeds, and again when the module is lost.

  - L{CommandQueue<tsrv.queuing.queue.CommandQueue>}: the calls. They are queued,
    started, passed to the module or refused, as the wrapper says.

  - L{ProxySwitch<tsrv.queuing.proxy.ProxySwitch>}: the proxy that callers hold. While
    the module is ready its methods are the module's own bound methods. At other times
    they are callables that queue (L{Methods<tsrv.queuing.methods.Methods>}).

Every call ends exactly once. A call that is never handed to the module ends with the
reason: C{QueueFull}, C{QueueTimeout}, C{InitializationFailed}, C{Closed}, or
C{CancelledError} if its caller gave up. A call that is handed to the module ends with
the module's own result. If the module is lost or closed while working on it, the call
is made again if it is safe to run twice (C{replay}); otherwise it ends with
C{OutcomeUnknown}, unless the module still answers.

There is one compromise. While the module is ready, tsrv does not see the calls, because
that would cost something. So a call made then, of a method that is not named in
C{replay}, is the module's to end.

The module, its cancellers, the retry policy, observers and callbacks may do anything
while they are called, even close the wrapper. So each method here changes the state
and the queue first and calls foreign code last, or looks at the state again afterwards.

The pattern (State, Command and Proxy together) comes from Mario Casciaro, I{Node.js
Design Patterns}, "Asynchronously initialized modules".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .asyncmodule import State
from .errors import Closed, InitializationFailed, QueueFull, QueueTimeout
from .queuing.history import History, count, explain
from .queuing.initialization import Initialization
from .queuing.methods import Methods
from .queuing.module import closeWithin, lifecycleMethod, secondsLeft
from .queuing.observers import Observers
from .queuing.options import checkCallable, checkCount, checkSeconds, errorTypes
from .queuing.proxy import ProxySwitch
from .queuing.queue import CommandQueue, Stats
from .queuing.retry import jitteredBackoff
from .queuing.states import Event, IllegalTransition, Lifecycle
from .queuing.waiters import Waiters

__all__ = ["IllegalTransition", "QueuingWrapper", "State", "Stats"]

_log = Logger("tsrv.wrapper")

_Module = TypeVar("_Module", covariant=True)

# Maximum number of waiters for the module, if C{limit} is lower.
MIN_WAITER_LIMIT: Final = 10_000


class QueuingWrapper(Generic[_Module]):
    """
    A queue in front of any object that needs initialising. It takes every call at
    once, queues it until the module is ready, runs the queued calls in order, and
    gets out of the way.

    @ivar module: The module.
    @ivar proxy: The object that callers use in place of the module: it has the
        module's public methods, and its type.
    @ivar limit: Maximum number of queued calls.
    @ivar history: The attempts and losses so far, and how long they took and the
        calls waited.
    """

    def __init__(
        self,
        module: _Module,
        reactor: IReactorTime,
        *,
        limit: int = 10_000,
        timeout: float | None = 30.0,
        retryPolicy: Callable[[int], float] | None = None,
        fatal: type[BaseException] | Iterable[type[BaseException]] = (),
        replay: Iterable[str] = (),
        concurrency: int | None = None,
        attemptTimeout: float | None = None,
        closeTimeout: float | None = 10.0,
        initialize: Callable[[], object] | None = None,
        close: Callable[[], object] | None = None,
        whenLost: Callable[[], object] | None = None,
        name: str | None = None,
    ) -> None:
        """
        @param module: The module.
        @param reactor: Provides the time.
        @param limit: Maximum number of queued calls; one more fails at once with
            L{QueueFull}.
        @param timeout: The seconds after which a queued call fails with
            L{QueueTimeout}; L{None} for no limit.
        @param retryPolicy: Takes the number of attempts so far, and returns the
            seconds until the next; by default L{jitteredBackoff}. If it raises,
            there is no further attempt.
        @param fatal: The types of errors of C{initialize()} that no retry will
            help against.
        @param replay: The names of methods that are safe to run twice: a call of
            one of them that is in progress at a loss is made again.
        @param concurrency: Maximum number of calls in progress while the queue is
            drained; L{None} for any number.
        @param attemptTimeout: The seconds after which an attempt counts as failed;
            L{None} for no limit.
        @param closeTimeout: The seconds that closing the module may take; L{None}
            for no limit.
        @param initialize: Initialises the module; by default its C{initialize()}.
        @param close: Closes the module; by default its C{close()}, if it has one.
        @param whenLost: Returns a Deferred that fires when the module stops
            working; by default its C{whenLost()}, if it has one.
        @param name: The name of the module in errors and in the log; by default
            the name of its type.
        @raise TypeError: The module has no C{initialize()} and none is given, or
            an option has the wrong type.
        @raise ValueError: A number is out of range, or C{replay} names something
            that is not a method of the module.
        """
        checkCount("limit", limit, 0)
        if concurrency is not None:
            checkCount("concurrency", concurrency, 1)
        checkSeconds("timeout", timeout)
        checkSeconds("attemptTimeout", attemptTimeout)
        checkSeconds("closeTimeout", closeTimeout)
        checkCallable("retryPolicy", retryPolicy)
        if isinstance(replay, str):
            raise TypeError("replay must be a collection of names, not one name")

        self.module: _Module = module
        self.history = History(reactor)
        self._name = type(module).__name__ if name is None else name
        self._reactor = reactor
        self.limit: Final = limit
        self._closeTimeout = closeTimeout
        initialize, initializers = lifecycleMethod(module, "initialize", initialize)
        close, closers = lifecycleMethod(module, "close", close)
        whenLost, watchers = lifecycleMethod(module, "whenLost", whenLost)
        if initialize is None:
            raise TypeError(f"{self._name} has no initialize(): pass initialize=")
        self._closeModule = close

        self._observers: Observers[[]] = Observers()
        waiterLimit = max(limit, MIN_WAITER_LIMIT)
        self._waiters = Waiters(waiterLimit, f"for {self._name} to become ready")
        self._closers = Waiters(waiterLimit, f"for {self._name} to be closed")
        self._lifecycle = Lifecycle(reactor)
        self._initialization = Initialization(
            reactor,
            self._lifecycle,
            self.history,
            self._name,
            initialize=initialize,
            whenLost=whenLost,
            retryPolicy=jitteredBackoff() if retryPolicy is None else retryPolicy,
            fatal=errorTypes("fatal", fatal),
            timeout=attemptTimeout,
            pending=lambda: self._queue.pending,
            ready=self._becameReady,
            lost=self._becameLost,
            failed=self._failedForGood,
            changed=self._observers.notify,
        )
        self._queue = CommandQueue(
            reactor,
            limit=limit,
            timeout=timeout,
            concurrency=concurrency,
            losable=whenLost is not None,
            waited=self.history.queueSeconds,
            makeQueueFull=self._makeQueueFull,
            makeQueueTimeout=self._makeQueueTimeout,
            drained=self._drained,
        )
        # A caller who initialises or closes the proxy means the wrapper.
        lifecycle = dict.fromkeys(initializers, self.initialize)
        lifecycle |= dict.fromkeys(closers, self.close)
        replayed = frozenset(replay)
        self._methods = Methods(module, self._queue, replayed, lifecycle)
        self._proxySwitch = ProxySwitch(
            module,
            hidden=watchers,
            describe=self._describe,
            replacementFor=self._methods.replacementFor,
        )
        self.proxy: _Module = cast(_Module, self._proxySwitch.proxy)
        for each in replayed:
            if each in lifecycle or not self._proxySwitch.mayHave(each):
                raise ValueError(f"replay: {self._name} has no method {each!r}")

    def __repr__(self) -> str:
        return f"<QueuingWrapper of {self._name}: {self._describe()}>"

    @property
    def state(self) -> State:
        """
        The L{State} now.
        """
        return self._lifecycle.state

    @property
    def since(self) -> float:
        """
        The time at which that state was entered, by the reactor, in seconds.
        """
        return self._lifecycle.since

    @property
    def pending(self) -> int:
        """
        The number of queued calls.
        """
        return self._queue.pending

    @property
    def oldest(self) -> float | None:
        """
        The age of the oldest queued call, in seconds; L{None} if no call is queued.
        """
        return self._queue.oldest

    @property
    def stats(self) -> Stats:
        """
        Counters of the calls that went through the queue.
        """
        return self._queue.stats

    @property
    def attempts(self) -> int:
        """
        The number of attempts since the module was last ready.
        """
        return self._initialization.attempts

    @property
    def lastError(self) -> BaseException | None:
        """
        The reason why the module is not ready: the error of the last attempt, or
        of the loss.
        """
        return self._initialization.lastError

    def retryAfter(self) -> float | None:
        """
        @return: The seconds until the next attempt begins, or the present one ends,
            if they are known.
        """
        if self.state is State.INITIALIZING:
            return secondsLeft(self.module)
        return self._initialization.secondsToRetry()

    def addObserver(self, observer: Callable[[], object]) -> None:
        """
        Register an observer, which is called without arguments after each change of
        L{state}. It may do anything to the wrapper.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[], object]) -> None:
        """
        Unregister an observer. An unknown one is ignored.
        """
        self._observers.remove(observer)

    def initialize(self) -> Deferred[None]:
        """
        Make the module ready; keep trying until it is.

        Several calls share one initialisation, and cancelling one of their
        Deferreds does not affect the others: only L{close} and L{fail} give the
        initialisation up. After it has failed for good it may be called again.

        @return: A Deferred that fires when the module is ready. It fails with
            L{InitializationFailed} if no retry will help, with L{Closed} if the
            wrapper is closed, and with L{QueueFull} if too many are waiting.
        """
        if self.state not in (State.NEW, State.FAILED):
            return self.whenInitialized()
        waiter = self._waiters.wait()
        self._queue.queueCalls()
        self._initialization.start()
        return waiter

    def whenInitialized(self) -> Deferred[None]:
        """
        Wait for the module, without starting anything.

        @return: A Deferred that fires as the one of L{initialize} does.
        """
        if self.state in (State.DRAINING, State.READY):
            return succeed(None)
        if self.state is State.FAILED:
            return fail(self._makeFailed(self.lastError))
        if self.state in (State.CLOSING, State.CLOSED):
            return fail(self._makeClosed())
        return self._waiters.wait()

    def fail(self, reason: BaseException) -> None:
        """
        Give the initialisation up, as if an attempt had failed for good: queued
        calls, waiters and later calls get L{InitializationFailed}. The wrapper may
        be initialised again.

        @param reason: Why; it becomes the C{__cause__}.
        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed; nothing has changed.
        """
        self._initialization.fail(reason)

    def close(self) -> Deferred[None]:
        """
        End all queued calls with L{Closed}, close the module, and run nothing
        afterwards. Calls in progress end as the module ends them, or else with
        C{OutcomeUnknown}. A module that was never initialised is not closed. This is
        legal in every state, and any number of times.

        @return: A Deferred that fires when everything is closed; it fails with the
            error of the module's own closing. Cancelling it only ends the waiting.
        """
        if self.state is State.CLOSED:
            return succeed(None)
        waiter = self._closers.wait()
        if self.state is not State.CLOSING:
            Deferred.fromCoroutine(self._close())
        return waiter

    async def _close(self) -> None:
        touched = self.history.attempts.count > 0
        self._lifecycle.on(Event.CLOSE)
        self._proxySwitch.toWaiting()
        waiters = self._waiters.takeAll()
        self._initialization.stop()
        refused = self._queue.refuseCalls(self._makeClosed)
        waiters.fail(self._makeClosed)
        self._observers.notify()
        close, error = self._closeModule, None
        if touched and close is not None:
            error = await closeWithin(self._closeTimeout, self._reactor, close)
        await self._queue.running.abandon()
        await refused
        self._lifecycle.on(Event.CLOSED)
        if error is None:
            self._closers.succeed()
        else:
            _log.error(
                "{module}: failed to close ({error})",
                module=self._name,
                error=explain(error),
            )
            self._closers.fail(lambda: error)
        self._observers.notify()

    # Reports of the initialisation and the queue.

    def _becameReady(self) -> None:
        self._methods.update()
        if self.state is State.DRAINING:
            self._waiters.succeed()
            self._observers.notify()
        if self.state is State.DRAINING:
            self._queue.drain()

    def _drained(self) -> None:
        self._lifecycle.on(Event.DRAINED)
        self._queue.passCalls()
        self._proxySwitch.toReady()
        if self.state is not State.READY:
            # Reading the module's attributes made it go away.
            self._proxySwitch.toWaiting()
        self._observers.notify()

    def _becameLost(self) -> None:
        self._proxySwitch.toWaiting()
        self._queue.interrupt()

    def _failedForGood(self) -> None:
        # A callback may initialise again: later waiters wait for that attempt.
        waiters = self._waiters.takeAll()
        makeError = partial(self._makeFailed, self.lastError)
        self._queue.refuseCalls(makeError)
        waiters.fail(makeError)
        self._observers.notify()

    def _describe(self) -> str:
        waiting = f", {self.pending} waiting" if self.pending else ""
        return f"{self.state.value}{waiting}"

    def _makeQueueFull(self) -> QueueFull:
        return QueueFull(
            f"{self.limit} calls are waiting for {self._name} already",
            self.retryAfter(),
        )

    def _makeQueueTimeout(self, waited: float) -> QueueTimeout:
        error = QueueTimeout(
            f"waited {waited:.1f} s for {self._name}, which is "
            f"{self.state.value} after {count(self.attempts, 'attempt')}",
            self.retryAfter(),
            waited,
            self.state,
            self.attempts,
        )
        error.__cause__ = self.lastError
        return error

    def _makeFailed(self, cause: BaseException | None) -> InitializationFailed:
        error = InitializationFailed(f"{self._name} failed to initialize, for good")
        error.__cause__ = cause
        return error

    def _makeClosed(self) -> Closed:
        return Closed(f"{self._name} is closed")
