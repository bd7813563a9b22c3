"""
A queue in front of a module that takes time to become ready.

L{QueuingWrapper} connects four parts. They do not know each other, except that the
initialisation reports its events to the lifecycle:

  - L{Lifecycle<tsrv.queuing.states.Lifecycle>}: the state, and which events are legal
    in it. Read its module first.
  - L{Initialization<tsrv.queuing.initialization.Initialization>}: attempts until one
    succeeds, and again when the module is lost.
  - L{CommandQueue<tsrv.queuing.queue.CommandQueue>}: the calls. It queues them, starts
    them, passes them to the module or refuses them, as the wrapper orders.
  - L{ProxySwitch<tsrv.queuing.proxy.ProxySwitch>}: the proxy that callers hold. While
    the module is ready, its methods are the module's own bound methods. At other times
    they are callables that queue (L{Methods<tsrv.queuing.methods.Methods>}).

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

from .asyncmodule import ISettlesCalls, ReactorTime, State
from .queuing import refusals
from .queuing.awaiting import fired
from .queuing.foreign import callOnLoop, checkReason
from .queuing.history import History
from .queuing.holds import Holds
from .queuing.initialization import Initialization
from .queuing.inspection import Inspection
from .queuing.lazy import FirstCall
from .queuing.methods import Methods
from .queuing.module import lifecycleMethod, namedMethod, provides, secondsLeft
from .queuing.modulelog import ModuleLog
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
    A queue in front of any object that needs initialising. It queues calls until the
    module is ready, starts them in order, and then passes calls straight to the module.

    Every call ends exactly once. A call that is never started ends with the reason:
    L{QueueFull}, L{QueueTimeout}, L{InitializationFailed}, L{Closed}, or
    C{CancelledError} if its caller cancelled it. A call that is started ends with the
    module's own result. If the module is lost or closed first, the call is made again
    if its method is safe to run twice (C{replay}), and otherwise ends with
    L{OutcomeUnknown}, unless the module still returns a result.

    So tsrv tracks all calls of a module that can be lost: one with C{whenLost} or
    C{ping}. It does not track the calls of other modules while they are ready, nor of a
    module that ends its calls itself (C{settles}): these calls cost what direct calls
    cost; a Deferred more if C{async def}. On the asyncio reactor all calls are tracked.

    A method of the proxy returns a Deferred, but in C{READY} it returns what the
    module's method returns, unless it is C{async def}. C{async with} and C{async for}
    accept a call in every state. Special methods such as C{__len__} are not proxied.
    Look up a method for each call: one that was looked up in C{READY} may bypass the
    queue later. Use wrapper and proxy in the thread of the reactor.

    @ivar module: The module.
    @ivar proxy: The object that callers use in place of the module. It has the
        module's public methods and its type.
    @ivar name: The name of the module in errors and in the log.
    @ivar limit: Maximum number of queued calls.
    @ivar history: Its attempts, losses and pauses, and histograms of durations.
    """

    def __init__(
        self,
        module: _Module,
        reactor: ReactorTime,
        *,
        limit: int = 10_000,
        timeout: float | None = 30.0,
        retryPolicy: Callable[[int], float] | None = None,
        fatal: type[BaseException] | Iterable[type[BaseException]] = (),
        replay: Iterable[str] = (),
        concurrency: int | None = None,
        attemptTimeout: float | None = None,
        closeTimeout: float | None = 10.0,
        initialize: Callable[[], object] | str | None = None,
        close: Callable[[], object] | str | None = None,
        whenLost: Callable[[], object] | str | None = None,
        whenIdle: Callable[[], object] | str | None = None,
        ping: Callable[[], object] | str | None = None,
        pingInterval: float = 10.0,
        settles: bool | None = None,
        alwaysDeferred: bool = False,
        lazy: bool | Callable[[], object] = False,
        attemptSlots: DeferredSemaphore | None = None,
        name: str | None = None,
    ) -> None:
        """
        @param module: Any object. The wrapper does not change it.
        @param reactor: Provides the time.
        @param limit: Maximum number of queued calls; a further call fails at once with
            L{QueueFull}. Calls that are made again after a loss may exceed it.
        @param timeout: Seconds after which a queued call fails with L{QueueTimeout};
            L{None} for no limit. C{proxy.method().addTimeout(2, reactor)} gives one
            call a deadline: a call that is still queued then is never started.
        @param retryPolicy: Takes the number of attempts so far, and returns the seconds
            until the next; by default L{jitteredBackoff()<jitteredBackoff>}. If it
            raises, there is no further attempt.
        @param fatal: Types of errors of C{initialize()} that no retry cures: queued
            calls fail at once with L{InitializationFailed}.
        @param replay: Names of methods that are safe to run twice: their calls in
            progress at a loss are made again. These calls are always tracked.
        @param concurrency: Maximum number of calls in progress while the queue is
            drained; L{None} for no limit. With 1, a method that calls its own proxy
            during the drain waits for itself.
        @param attemptTimeout: Seconds after which an attempt is cancelled, and counts
            as failed; L{None} for no limit.
        @param closeTimeout: Seconds that C{close} may take; L{None} for no limit.
        @param initialize: Initialises the module; by default its C{initialize()}. This
            and the next four options may also be names of methods of the module.
        @param close: Closes the module; by default its C{close()}, if it has one.
        @param whenLost: Returns a Deferred that fires when the module stops working; by
            default its C{whenLost()}, if it has one.
        @param whenIdle: Returns a Deferred that fires when no call is in progress; by
            default its C{whenIdle()}, if it has one.
        @param ping: Called while the module is ready, and at once after a tracked call
            has failed. If it fails or takes longer than C{pingInterval}, the module is
            closed and initialised again. For modules that do not report their losses.
        @param pingInterval: Seconds from the end of one ping to the next.
        @param settles: Whether the module ends each of its calls itself, even if it is
            lost; by default, whether it implements
            L{ISettlesCalls<tsrv.asyncmodule.ISettlesCalls>}. With L{False}, all calls
            are tracked.
        @param alwaysDeferred: Whether methods return a Deferred in every state.
        @param lazy: Whether the first call initialises the module; or a callable that
            the first call runs instead.
        @param attemptSlots: Limits the attempts in progress of wrappers that share it.
        @param name: Its name in errors and in the log; by default the name of its type.
        @raise TypeError: The module is a class, or has no C{initialize()} and none is
            given; or an option has the wrong type.
        @raise ValueError: A number is out of range, or C{replay} has a name that is not
            a method of the module.
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
            ping=namedMethod(module, ping),
            pingInterval=pingInterval,
            retryPolicy=retryPolicy or jitteredBackoff(),
            fatal=errorTypes("fatal", fatal),
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
            suspect=self._initialization.suspect if ping is not None else None,
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
            settles = provides(module, ISettlesCalls)
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
        Make the module ready, with as many attempts as necessary. Several callers share
        one initialisation, which only L{close} and L{fail} stop. After a failure for
        good, a further call starts anew.

        @return: A Deferred that fires when the module is ready. It fails with
            L{InitializationFailed} if no retry will help, with L{Closed} if the wrapper
            is closed, and with L{QueueFull} if too many callers wait. Cancelling it
            only ends the wait.
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
        Wait until the module is ready. This does not initialise it.

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
        later calls and the Deferreds of L{initialize} fail with
        L{InitializationFailed}. The module may be initialised again.

        @param reason: The reason; it becomes the C{__cause__} of these errors.
        @raise IllegalTransition: The module is ready, has failed already, or is closed;
            nothing has changed.
        """
        self._queue.home.check("fail")
        self._initialization.fail(checkReason(reason))

    def reset(self, reason: BaseException) -> None:
        """
        Treat the module as lost, for example because it needs another password: close
        it, and initialise it again at once. Meanwhile its calls are queued. An attempt
        in progress is cancelled first; a scheduled attempt begins now.

        @param reason: The reason; it becomes L{lastError}.
        @raise IllegalTransition: The module was never initialised, has failed for good,
            or is closed; nothing has changed.
        """
        self._queue.home.check("reset")
        self._initialization.reset(checkReason(reason))

    def pause(self, by: object = None) -> Deferred[None]:
        """
        Queue the calls of the module until L{resume}, for example while its server is
        restarted. If the module is not ready, its attempts continue, and it is paused
        when one succeeds. Queued calls still fail after C{timeout}.

        @param by: The holder: any hashable object. The module is resumed when all its
            holders have resumed it. The log names a holder that is a string.
        @return: A Deferred that fires when no call is in progress: it waits for the
            calls that tsrv tracks, and for C{whenIdle}. It fails with L{Closed} if the
            wrapper is closed, with C{CancelledError} if the module is resumed first,
            and with the error of C{whenIdle}; then the module is still paused.
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
        End the pause of one holder. After the last one, the queued calls run.

        @param by: The holder, as for L{pause}. One that has not paused the module is
            ignored.
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
        Pause the module during an C{async with}. The block begins when the calls in
        progress have ended, however long that takes.
        """
        by = object()
        try:
            await self.pause(by)
            yield
        finally:
            self.resume(by)

    def close(self) -> Deferred[None]:
        """
        Close the module. Queued calls and later calls fail with L{Closed}; tracked
        calls in progress end with the module's own result, or with L{OutcomeUnknown}.
        The C{close()} of a module that was never initialised is not called. This may be
        called in every state, and repeatedly.

        @return: A Deferred that fires when everything is closed. It fails with the
            error of the module's C{close()}. Cancelling it only ends the wait.
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
        # A callback may initialise the module again; later waiters wait for this.
        waiters = self._waiters.takeAll()
        makeError = partial(refusals.initializationFailed, self.name, self.lastError)
        self._queue.refuseCalls(makeError)
        waiters.fail(makeError)
        self._observers.notify()
