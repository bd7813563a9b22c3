"""
A queue in front of a module that takes its time to become ready.

A database client has to connect before it can answer its first query. Until then a
program can refuse the query, or write C{if db.connected} everywhere. L{QueuingWrapper}
is another way: it queues the query, and runs it as soon as the client is ready.

It connects four parts. They do not know each other, except that the initialisation
reports its events to the lifecycle:

  - L{Lifecycle<tsrv.queuing.states.Lifecycle>}: the state, and which events are
    legal in it. Read its module first: it explains the effect of each state on calls.

  - L{Initialization<tsrv.queuing.initialization.Initialization>}: attempts until one
    succeeds, and again when the module is lost.

  - L{CommandQueue<tsrv.queuing.queue.CommandQueue>}: the calls. It queues them, starts
    them, passes them to the module or refuses them, as the wrapper orders.

  - L{ProxySwitch<tsrv.queuing.proxy.ProxySwitch>}: the proxy that callers hold. While
    the module is ready its methods are the module's own bound methods. At other times
    they are callables that queue (L{Methods<tsrv.queuing.methods.Methods>}).

Every call ends exactly once. A call that is never handed to the module ends with the
reason: C{QueueFull}, C{QueueTimeout}, C{InitializationFailed}, C{Closed}, or
C{CancelledError} if its caller gave up. A call that is handed to the module ends with
the module's own result. If the module is lost or closed during the call, the call is
made again if it is safe to run twice (C{replay}); otherwise it ends with
C{OutcomeUnknown}, unless the module still answers.

So tsrv tracks the calls that are made while the module is ready. Calls are not tracked
if the module promises to end each of them itself, or cannot be lost: tsrv takes no part
in such a call, which costs what a direct call costs.

The module, its cancellers, the retry policy, observers and callbacks may do anything
while they are called, even close the wrapper. So each method here changes the state and
the queue first and calls foreign code last, or checks the state again afterwards.

The pattern (State, Command and Proxy together) comes from Mario Casciaro, I{Node.js
Design Patterns}, "Asynchronously initialized modules".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from types import NoneType
from typing import Final, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from .asyncmodule import ISettlesCalls, State
from .queuing import refusals
from .queuing.awaiting import fired
from .queuing.foreign import callOnLoop, checkReason
from .queuing.history import History
from .queuing.holds import Holds
from .queuing.initialization import Initialization
from .queuing.inspection import Inspection
from .queuing.lazy import FirstCall
from .queuing.methods import Methods
from .queuing.module import lifecycleMethod, secondsLeft
from .queuing.modulelog import ModuleLog
from .queuing.needsasyncio import NeedsAsyncio
from .queuing.observers import Observers
from .queuing.options import checkCount, checkNames, checkType, errorTypes
from .queuing.proxy import ProxySwitch
from .queuing.queue import CommandQueue
from .queuing.retry import jitteredBackoff
from .queuing.states import HEALTHY_STATES, Event, IllegalTransition, Lifecycle
from .queuing.stats import Stats
from .queuing.waiters import Waiters

__all__ = ["IllegalTransition", "QueuingWrapper", "State", "Stats"]

_Module = TypeVar("_Module", covariant=True)

MIN_WAITER_LIMIT: Final = 10_000  # Maximum number of waiters, if C{limit} is lower.


class QueuingWrapper(Inspection, Generic[_Module]):
    """
    A queue in front of any object that needs initialising. Callers need not wait: the
    wrapper queues their calls until the module is ready, runs them in order, and then
    passes further calls to the module directly.

    @ivar module: The module.
    @ivar proxy: The object that callers use in place of the module. It has the
        module's public methods and its type.
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
        whenIdle: Callable[[], object] | None = None,
        ping: Callable[[], object] | None = None,
        pingInterval: float = 10.0,
        settles: bool | None = None,
        alwaysDeferred: bool = False,
        lazy: bool | Callable[[], object] = False,
        attemptSlots: DeferredSemaphore | None = None,
        name: str | None = None,
    ) -> None:
        """
        @param module: The module.
        @param reactor: Provides the time.
        @param limit: Maximum number of queued calls; further calls fail at once with
            L{QueueFull}.
        @param timeout: The seconds after which a queued call fails with
            L{QueueTimeout}; L{None} for no limit.
        @param retryPolicy: Takes the number of attempts so far, and returns the
            seconds until the next; by default L{jitteredBackoff}. If it raises,
            there is no further attempt.
        @param fatal: The types of errors of C{initialize()} after which a retry is
            useless.
        @param replay: The names of methods that are safe to run twice: a call of
            one of them that is in progress at a loss is made again.
        @param concurrency: Maximum number of calls in progress while the queue is
            drained; L{None} for no limit.
        @param attemptTimeout: The seconds after which an attempt counts as failed;
            L{None} for no limit.
        @param closeTimeout: The seconds that closing the module may take; L{None}
            for no limit.
        @param initialize: Initialises the module; by default its C{initialize()}.
        @param close: Closes the module; by default its C{close()}, if it has one.
        @param whenLost: Returns a Deferred that fires when the module stops
            working; by default its C{whenLost()}, if it has one.
        @param whenIdle: Returns a Deferred that fires when the module works on no
            call; by default its C{whenIdle()}, if it has one.
        @param ping: Called while the module is ready. If it fails, or does not end
            within C{pingInterval}, the module is lost.
        @param pingInterval: The seconds from the end of one ping to the next.
        @param settles: Whether the module promises to end each of its calls itself, so
            that tsrv need not track them. By default, whether the module provides
            L{ISettlesCalls<tsrv.asyncmodule.ISettlesCalls>} or cannot be lost.
        @param alwaysDeferred: Whether the proxy's methods return a Deferred in every
            state, even if the module's own methods return a plain value.
        @param lazy: Whether the first call initialises the module; or a callable for
            the first call to run instead.
        @param attemptSlots: Limits the number of attempts in progress of all wrappers
            that share this semaphore.
        @param name: The name of the module in errors and in the log; by default
            the name of its type.
        @raise TypeError: The module is a class or has no C{initialize()} and none is
            given, or an option has the wrong type.
        @raise ValueError: A number is out of range, or C{replay} names something
            that is not a method of the module.
        """
        self.name = module.__class__.__name__ if name is None else name
        if isinstance(module, type):
            raise TypeError(f"{module.__name__} is a class: pass an instance of it")
        checkCount("limit", limit, 0)
        checkType("name", name, str, NoneType)
        checkType("settles", settles, bool, NoneType)
        checkType("attemptSlots", attemptSlots, DeferredSemaphore, NoneType)
        replayed = frozenset(checkNames("replay", replay))
        initialize, initializers = lifecycleMethod(module, "initialize", initialize)
        close, closers = lifecycleMethod(module, "close", close)
        whenLost, watchers = lifecycleMethod(module, "whenLost", whenLost)
        whenIdle, idlers = lifecycleMethod(module, "whenIdle", whenIdle)
        if initialize is None:
            raise TypeError(f"{self.name} has no initialize(): pass initialize=")
        self.module: _Module = module
        self.limit = limit
        self.history = History(reactor)
        self._log = ModuleLog(reactor, self.name, lambda: self._queue.pending)
        self._observers: Observers[[]] = Observers()
        waiterLimit = max(limit, MIN_WAITER_LIMIT)
        self._waiters = Waiters(waiterLimit, f"for {self.name} to become ready")
        self._closers = Waiters(waiterLimit, f"for {self.name} to be closed")
        self._lifecycle = Lifecycle(reactor)
        self._initialization = Initialization(
            reactor,
            self._lifecycle,
            self.history,
            self._log,
            self.name,
            initialize=partial(callOnLoop, reactor, initialize),
            whenLost=whenLost,
            close=close,
            closeTimeout=closeTimeout,
            ping=ping,
            pingInterval=pingInterval,
            retryPolicy=retryPolicy or jitteredBackoff(),
            fatal=(NeedsAsyncio, *errorTypes("fatal", fatal)),
            timeout=attemptTimeout,
            slots=attemptSlots,
            secondsLeft=partial(secondsLeft, module),
            ready=self._becameReady,
            lost=self._becameLost,
            failed=self._failedForGood,
            changed=self._observers.notify,
        )
        losable = settles is False or whenLost is not None or ping is not None
        self._queue = CommandQueue(
            reactor,
            limit=limit,
            timeout=timeout,
            concurrency=concurrency,
            losable=losable,
            lossReason=lambda: self.lastError,
            suspect=self._initialization.suspect,
            waited=self.history.queueSeconds,
            makeQueueFull=partial(refusals.queueFull, self),
            makeQueueTimeout=partial(refusals.queueTimeout, self),
            makeOutcomeUnknown=partial(refusals.outcomeUnknown, self),
            drained=self._drained,
        )
        self._holds = Holds(self.name, self.history, self._queue.running, whenIdle)
        firstCall = None
        if lazy is not False:
            action = self.initialize if lazy is True else lazy
            firstCall = FirstCall(self, action).callQueued
        if settles is None:
            settles = ISettlesCalls.implementedBy(module.__class__)
        lifecycle = dict.fromkeys(initializers, self.initialize)
        lifecycle |= dict.fromkeys(closers, self.close)
        self._methods = Methods(
            module,
            self._queue,
            replay=replayed,
            tracked=losable and not settles,
            alwaysDeferred=alwaysDeferred,
            lifecycle=lifecycle,
            queued=firstCall,
            native=getattr(reactor, "isNative", False),
        )
        self._proxySwitch = ProxySwitch(
            module,
            hidden=watchers | idlers,
            describe=self._describe,
            whileWaiting=self._methods.whileWaiting,
            whileReady=self._methods.whileReady,
        )
        self.proxy: _Module = cast(_Module, self._proxySwitch.proxy)
        for each in replayed:
            if each in lifecycle or not self._proxySwitch.mayHave(each):
                raise ValueError(f"replay: {self.name} has no method {each!r}")

    def initialize(self) -> Deferred[None]:
        """
        Make the module ready, with as many attempts as necessary.

        Several callers share one initialisation, and cancelling one of their
        Deferreds does not affect the others: only L{close} and L{fail} stop the
        initialisation. It may be called again after a failure for good.

        @return: A Deferred that fires when the module is ready. It fails with
            L{InitializationFailed} if no retry will help, with L{Closed} if the
            wrapper is closed, and with L{QueueFull} if too many callers wait.
        """
        self._queue.home.check("initialize")
        if self.state not in (State.NEW, State.FAILED):
            return self.whenInitialized()
        waiter = self._waiters.wait()
        self._queue.queueCalls()
        self._initialization.start()
        return waiter

    def whenInitialized(self) -> Deferred[None]:
        """
        Wait until the module is ready, without initialising it.

        @return: A Deferred with the same result as L{initialize}.
        """
        if self.state in HEALTHY_STATES:
            return fired()
        if self.state is State.FAILED:
            return fired(refusals.initializationFailed(self.name, self.lastError))
        if self.state in (State.CLOSING, State.CLOSED):
            return fired(refusals.closed(self.name))
        return self._waiters.wait()

    def fail(self, reason: BaseException) -> None:
        """
        Stop the initialisation, as if an attempt had failed for good: queued calls,
        waiters and later calls fail with L{InitializationFailed}. The wrapper may be
        initialised again.

        @param reason: The reason; it becomes the C{__cause__}.
        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed; nothing has changed.
        """
        self._queue.home.check("fail")
        self._initialization.fail(checkReason(reason))

    def reset(self, reason: BaseException) -> None:
        """
        Treat the module as lost, for example because it needs another password: close
        it, and initialise it again at once. An attempt in progress is cancelled first;
        a scheduled attempt begins now.

        @param reason: The reason; it becomes L{lastError}.
        @raise IllegalTransition: The module was never initialised, has failed for good,
            or is closed; nothing has changed.
        """
        self._queue.home.check("reset")
        self._initialization.reset(checkReason(reason))

    def pause(self, by: object = None) -> Deferred[None]:
        """
        Hold the calls of the module, for example while its server is restarted. They
        are queued until L{resume}. If the module is not ready, its attempts continue,
        and it is paused when one succeeds.

        @param by: The holder. The module is resumed when all its holders have resumed
            it.
        @return: A Deferred that fires when all calls in progress have ended: the calls
            that tsrv tracks, and the calls that only the module knows of (C{whenIdle}).
            It fails with L{Closed} if the wrapper is closed, with C{CancelledError} if
            the module is resumed first, and with the error of C{whenIdle}; the module
            is still paused after this error.
        """
        self._queue.home.check("pause")
        if self.state in (State.CLOSING, State.CLOSED):
            return fired(refusals.closed(self.name))
        isNew = by not in self._holds
        isFirst = self._holds.add(by)
        if isFirst and self.state in (State.DRAINING, State.READY):
            self._lifecycle.on(Event.PAUSE)
            self._proxySwitch.toWaiting()
            self._queue.queueCalls()
        idle = self._holds.whenIdle(self.state is State.PAUSED)
        if isNew:
            self._log.paused(by)
        if isFirst:
            self._observers.notify()
        return idle

    def resume(self, by: object = None) -> None:
        """
        End a pause: run the queued calls. Without a pause this does nothing.

        @param by: The holder, as for L{pause}.
        """
        self._queue.home.check("resume")
        if not self._holds.remove(by):
            return
        self._log.resumed()
        if self.state is State.PAUSED:
            self._lifecycle.on(Event.RESUME)
        self._holds.resumed()
        self._observers.notify()
        if self.state is State.DRAINING:
            self._queue.drain()

    @asynccontextmanager
    async def pausing(self) -> AsyncIterator[None]:
        """
        Pause the module for the time of an C{async with}. The block begins when the
        calls in progress have ended.
        """
        by = object()
        try:
            await self.pause(by)
            yield
        finally:
            self.resume(by)

    def close(self) -> Deferred[None]:
        """
        Fail all queued calls with L{Closed}, close the module, and start no further
        calls. Calls in progress end with the module's own result, or with
        C{OutcomeUnknown}. A module that was never initialised is not closed. This may
        be called in every state, and repeatedly.

        @return: A Deferred that fires when everything is closed. It fails with the
            error of the module's C{close()}. Cancelling it only ends the waiting.
        """
        self._queue.home.check("close")
        if self.state is State.CLOSED:
            return fired()
        waiter = self._closers.wait()
        if self.state is not State.CLOSING:
            Deferred.fromCoroutine(self._close())
        return waiter

    async def _close(self) -> None:
        makeClosed = partial(refusals.closed, self.name)
        self._lifecycle.on(Event.CLOSE)
        self._proxySwitch.toWaiting()
        waiters = self._waiters.takeAll()
        self._initialization.stop()
        refused = self._queue.refuseCalls(makeClosed)
        waiters.fail(makeClosed)
        self._holds.clear(makeClosed)
        self._observers.notify()
        error = await self._initialization.closeModule()
        await refused
        await self._queue.running.abandon()
        self._lifecycle.on(Event.CLOSED)
        if error is None:
            self._closers.succeed()
        else:
            self._log.closingFailed(error, isReset=False)
            self._closers.fail(lambda: error)
        self._observers.notify()

    # Reports of the initialisation and the queue.

    def _becameReady(self) -> None:
        self._methods.update()
        if self.state is State.DRAINING and self._holds:
            self._lifecycle.on(Event.PAUSE)
        if self.state in HEALTHY_STATES:
            self._waiters.succeed()
            self._observers.notify()
        if self.state is State.DRAINING:
            self._queue.drain()

    def _drained(self) -> None:
        # Looking up names runs foreign code.
        toReady = self._proxySwitch.prepare()
        if self.state is not State.DRAINING:
            return
        if self.pending:
            self._queue.drainSoon()
            return
        self._lifecycle.on(Event.DRAINED)
        self._queue.passCalls()
        toReady()
        self._observers.notify()

    def _becameLost(self) -> None:
        self._proxySwitch.toWaiting()
        self._queue.interrupt(self.lastError)
        self._holds.moduleLost()

    def _failedForGood(self) -> None:
        # A callback may initialise the module again; later waiters wait for that.
        waiters = self._waiters.takeAll()
        makeError = partial(refusals.initializationFailed, self.name, self.lastError)
        self._queue.refuseCalls(makeError)
        waiters.fail(makeError)
        self._observers.notify()
