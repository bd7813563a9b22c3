"""
The heart: a queue in front of a module that takes its time to become ready.

How it works
============

A L{QueuingWrapper} has four parts, of which none knows another; only the
initialisation tells the table of states what has happened.

  - L{Lifecycle<tsrv.queuing.states.Lifecycle>} says which state the module is in, and
    which changes of state are legal. All that happens to a wrapper begins with
    an event that its table accepts.

  - L{Initialization<tsrv.queuing.initialization.Initialization>} makes attempts until
    one succeeds, and begins again when the module is lost.

  - L{CommandQueue<tsrv.queuing.queue.CommandQueue>} owns the calls. It holds them,
    starts them in order, lets them pass, or refuses them, as it is told on a
    change of state. It alone ends a queued call.

  - L{Faces<tsrv.queuing.proxy.Faces>} is what callers hold. While the module is ready
    the proxy's methods are the module's own, and nothing of tsrv is in the
    way.

The wrapper connects them, and closes.

The pattern (State, Command and Proxy together) is that of Mario Casciaro,
I{Node.js Design Patterns}, "Asynchronously initialized modules".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .asyncmodule import ISettlesCalls
from .errors import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    Unavailable,
)
from .queuing.callables import isAsync
from .queuing.closing import closeWithin
from .queuing.command import Method
from .queuing.history import (
    History,
    explain,
)
from .queuing.initialization import Initialization
from .queuing.module import (
    lifecycleMethod,
    secondsLeft,
)
from .queuing.observers import Observers
from .queuing.options import (
    checkCallable,
    checkCount,
    checkSeconds,
    errorTypes,
)
from .queuing.proxy import Faces
from .queuing.queue import CommandQueue
from .queuing.retry import jitteredBackoff
from .queuing.states import (
    Event,
    IllegalTransition,
    Lifecycle,
    State,
)
from .queuing.stats import Stats
from .queuing.waiters import Waiters

__all__ = [
    "Closed",
    "IllegalTransition",
    "InitializationFailed",
    "OutcomeUnknown",
    "QueueFull",
    "QueueTimeout",
    "QueuingWrapper",
    "State",
    "Stats",
    "Unavailable",
    "jitteredBackoff",
]

_Module = TypeVar("_Module", covariant=True)

_WAITERS: Final = 10_000
"""
How many may wait for a module, or for its end, if C{limit} is less.
"""


class QueuingWrapper(Generic[_Module]):
    """
    Put around an asynchronously initialised module: takes every call at once,
    holds it until the module is ready, runs what was held in order, and steps
    out of the way.

    The module is any object. It need not know that it is wrapped.

    @ivar module: The module itself.
    @ivar proxy: What callers use in its place: it has the module's public
        methods, and its type.
    @ivar history: The attempts and losses so far, and how long they and the
        commands took.
    """

    _log = Logger()

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
        @param limit: How many commands may wait; one more fails at once with
            L{QueueFull}.
        @param timeout: How long a command may wait for its start, in seconds,
            before it fails with L{QueueTimeout}; L{None} for any time.
        @param retryPolicy: Takes the number of attempts so far, and answers
            the seconds to the next; by default L{jitteredBackoff}. If it
            raises, there is no next attempt.
        @param fatal: The types of errors of C{initialize()} that no retry will
            cure.
        @param replay: The names of methods that are safe to run twice: a call
            of one of them that is in progress at a loss is made again.
        @param concurrency: How many commands may be in progress while what was
            held is being run; L{None} for any number.
        @param attemptTimeout: How long one attempt may take, in seconds, before
            it is given up and counts as failed; L{None} for any time.
        @param closeTimeout: How long the module's own closing may take, in
            seconds; L{None} for any time.
        @param initialize: Initialises the module; by default its
            C{initialize()}.
        @param close: Closes the module; by default its C{close()}, where it
            has one.
        @param whenLost: Answers a Deferred that fires when the module, once
            ready, no longer is; by default its C{whenLost()}, where it has
            one.
        @param name: What the module is called in errors and in the log; by
            default the name of its type.
        @raise TypeError: There is nothing to initialise the module with, or
            an option is something else than described here.
        @raise ValueError: A number makes no sense, or C{replay} names what is
            no method of the module.
        """
        checkCount("limit", limit, 0)
        if concurrency is not None:
            checkCount("concurrency", concurrency, 1)
        checkSeconds("timeout", timeout)
        checkSeconds("attemptTimeout", attemptTimeout)
        checkSeconds("closeTimeout", closeTimeout)
        checkCallable("retryPolicy", retryPolicy)
        checkCallable("initialize", initialize)
        checkCallable("close", close)
        checkCallable("whenLost", whenLost)
        fatalTypes = errorTypes("fatal", fatal)
        if isinstance(replay, str):
            raise TypeError("replay must be a collection of names, not one name")

        self.module: _Module = module
        self._name = type(module).__name__ if name is None else name
        self._reactor = reactor
        self._limit = limit
        self._closeTimeout = closeTimeout
        self._replay = frozenset(replay)
        initializer = lifecycleMethod(module, "initialize", initialize)
        closer = lifecycleMethod(module, "close", close)
        watcher = lifecycleMethod(module, "whenLost", whenLost)
        if initializer.call is None:
            raise TypeError(
                f"{self._name} has no initialize(): say with initialize= "
                "what makes it ready"
            )
        self._closeModule = closer.call

        self.history = History(reactor)
        self._observers: Observers[[]] = Observers()
        self._lifecycle = Lifecycle(reactor)
        self._initialization = Initialization(
            reactor,
            self._lifecycle,
            self.history,
            self._name,
            initialize=initializer.call,
            whenLost=watcher.call,
            retryPolicy=jitteredBackoff() if retryPolicy is None else retryPolicy,
            fatal=fatalTypes,
            timeout=attemptTimeout,
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
            losable=watcher.call is not None,
            answering=ISettlesCalls.implementedBy(type(module)),
            waited=self.history.queueSeconds,
            makeQueueFull=self._makeQueueFull,
            makeQueueTimeout=self._makeQueueTimeout,
            drained=self._drained,
        )
        self._methods: dict[str, Method] = {}
        # Who initialises or closes the module by the proxy means the wrapper.
        self._ownMethods: dict[str, Callable[[], Deferred[None]]] = {
            **dict.fromkeys(initializer.names, self.initialize),
            **dict.fromkeys(closer.names, self.close),
        }
        self._faces = Faces(
            module,
            withheld=watcher.names,
            describe=self._describe,
            methodWaiting=self._methodWaiting,
            methodReady=self._methodReady,
        )
        for each in self._replay:
            if not self._faces.announces(each) or each in self._ownMethods:
                raise ValueError(f"replay: {self._name} has no method {each!r}")
        self.proxy: _Module = cast(_Module, self._faces.proxy)

        most = max(limit, _WAITERS)
        self._waiters = Waiters(most, f"for {self._name} to become ready")
        self._closers = Waiters(most, f"for {self._name} to be closed")

    def __repr__(self) -> str:
        return f"<QueuingWrapper of {self._name}: {self._describe()}>"

    # What is to be seen.

    @property
    def state(self) -> State:
        """
        The L{State} now.
        """
        return self._lifecycle.state

    @property
    def since(self) -> float:
        """
        When that state was entered, by the reactor's time, in seconds.
        """
        return self._lifecycle.since

    @property
    def pending(self) -> int:
        """
        How many commands are waiting.
        """
        return self._queue.pending

    @property
    def oldest(self) -> float | None:
        """
        For how many seconds the oldest of them has been waiting; L{None} where
        none waits to be started.
        """
        return self._queue.oldest

    @property
    def stats(self) -> Stats:
        """
        What became of the calls that went through the queue.
        """
        return self._queue.stats

    @property
    def attempts(self) -> int:
        """
        How many times the initialisation has been tried since the module was
        last ready.
        """
        return self._initialization.attempts

    @property
    def lastError(self) -> BaseException | None:
        """
        Why the module is not ready: the error of the last attempt, or of the
        loss; L{None} if there was none, or the module is ready.
        """
        return self._initialization.lastError

    def retryAfter(self) -> float | None:
        """
        @return: The seconds until it is worth asking again, where they are
            known: those that are left until the next attempt, or those that
            the attempt in progress will still take.
        """
        if self.state is State.INITIALIZING:
            return secondsLeft(self.module)
        return self._initialization.secondsToRetry()

    def addObserver(self, observer: Callable[[], object]) -> None:
        """
        Have something called after each change of L{state}, when all that
        belongs to it has been done; so it may do to the wrapper what it likes.

        @param observer: Is called without arguments; it looks for itself.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[], object]) -> None:
        """
        Have it called no more.
        """
        self._observers.remove(observer)

    def _describe(self) -> str:
        """
        The state in a few words, for people.
        """
        waiting = f", {self.pending} waiting" if self.pending else ""
        return f"{self.state.value}{waiting}"

    # What is to be done.

    def initialize(self) -> Deferred[None]:
        """
        Make the module ready; keep trying until it is.

        Several calls share one initialisation, and cancelling one of their
        Deferreds does not disturb the others: only L{close} gives the
        initialisation up. After it has failed for good it may be called again.

        @return: A Deferred that fires when the module is ready. It fails with
            L{InitializationFailed} on an error that no retry will cure, with
            L{Closed} if the wrapper is closed, and with L{QueueFull} if
            more wait than a program can mean to.
        """
        if self.state not in (State.NEW, State.FAILED):
            return self.whenInitialized()
        waiter = self._waiters.wait()
        self._queue.hold()
        self._initialization.start()
        return waiter

    def whenInitialized(self) -> Deferred[None]:
        """
        Wait for the module, without asking for it.

        @return: A Deferred as that of L{initialize}. While the module is being
            initialised again after a loss, it fires when that is done.
        """
        state = self.state
        if state in (State.DRAINING, State.READY):
            return succeed(None)
        if state is State.FAILED:
            return fail(self._makeInitializationFailed(self.lastError))
        if state in (State.CLOSING, State.CLOSED):
            return fail(self._makeClosed())
        return self._waiters.wait()

    def fail(self, reason: BaseException) -> None:
        """
        Give the initialisation up, as if an attempt had failed for good: who
        waits, and who calls from now on, gets L{InitializationFailed}. It may
        be initialised again; if the module does so while its attempt is being
        cancelled, who waits goes on waiting.

        @param reason: Why; it becomes the C{__cause__}.
        @raise IllegalTransition: The module is ready, or has failed already, or
            is closed; nothing has changed.
        """
        self._initialization.fail(reason)

    def close(self) -> Deferred[None]:
        """
        End all waiting commands with L{Closed}, close the module, and let
        nothing run afterwards. Commands that the module is at work on end as
        the module ends them, or else with L{OutcomeUnknown}. A module that
        nobody has ever asked for need not be closed.

        It is right in every state, and may be called any number of times.

        @return: A Deferred that fires when all this is done; it fails with
            what the module's own closing fails with. Cancelling it gives up
            the waiting, not the closing.
        """
        if self.state is State.CLOSED:
            return succeed(None)
        waiter = self._closers.wait()
        if self.state is not State.CLOSING:
            Deferred.fromCoroutine(self._close())
        return waiter

    # What the initialisation and the queue tell.

    def _becameReady(self) -> None:
        """
        The module can work; what has been waiting comes first.
        """
        # To look for the methods, and to tell who waits, is to run foreign code:
        # it may use further methods, lose the module, or close the wrapper.
        for method in list(self._methods.values()):
            self._connect(method)
        if self.state is State.DRAINING:
            self._waiters.succeed()
            self._observers.notify()
        if self.state is State.DRAINING:
            self._queue.drain()

    def _drained(self) -> None:
        """
        The last waiting command has been started.
        """
        self._lifecycle.on(Event.DRAINED)
        self._queue.letPass()
        self._faces.showReady()
        if self.state is not State.READY:
            # To look at the module was what made it go away.
            self._faces.showWaiting()
        self._observers.notify()

    def _becameLost(self) -> None:
        """
        The module is ready no longer, and will be initialised again.
        """
        self._faces.showWaiting()
        self._queue.interrupt()

    def _failedForGood(self) -> None:
        """
        The module will not become ready, unless it is asked again.
        """
        # In a callback it may be asked again: then others are waiting, for
        # another attempt, and the reason is another one.
        waiters = self._waiters.takeAll()
        makeError = partial(self._makeInitializationFailed, self.lastError)
        self._queue.refuse(makeError)
        waiters.fail(makeError)
        self._observers.notify()

    # Methods.

    def _methodWaiting(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """
        What to call for a public method while the module is not ready.
        """
        if name in self._ownMethods:
            return self._ownMethods[name]
        return self._method(name, own).hold

    def _methodReady(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """
        What to call for it while the module is ready.
        """
        if name in self._ownMethods:
            return self._ownMethods[name]
        if name in self._replay or isAsync(own):
            return self._method(name, own).direct
        return own

    def _method(self, name: str, own: Callable[..., Any]) -> Method:
        """
        A method as its commands need it; the same for all of them.
        """
        method = self._methods.get(name)
        if method is None:
            method = self._queue.makeMethod(name, own, name in self._replay)
            self._methods[name] = method
            if self.state in (State.DRAINING, State.READY):
                self._connect(method)
        return method

    def _connect(self, method: Method) -> None:
        """
        Find the module's own method anew: initialising the module may have
        changed it.
        """
        try:
            own = getattr(self.module, method.name)
        except BaseException as error:
            own = partial(fail, error)
        self._queue.connect(method, own)

    # The end.

    async def _close(self) -> None:
        begun = self.history.attemptCount > 0
        self._lifecycle.on(Event.CLOSE)
        self._faces.showWaiting()
        waiters = self._waiters.takeAll()
        self._initialization.stop()
        swept = self._queue.refuse(self._makeClosed)
        waiters.fail(self._makeClosed)
        self._observers.notify()
        error = None
        if begun and self._closeModule is not None:
            error = await closeWithin(
                self._closeTimeout, self._reactor, self._closeModule
            )
        await self._queue.abandon()
        await swept
        self._lifecycle.on(Event.CLOSED)
        if error is not None:
            self._log.error(
                "{module} failed to close: {error}",
                module=self._name,
                error=explain(error),
            )
        if error is None:
            self._closers.succeed()
        else:
            self._closers.fail(lambda: error)
        self._observers.notify()

    # Errors.

    def _makeQueueFull(self) -> QueueFull:
        return QueueFull(
            f"{self._limit} calls are waiting for {self._name} already",
            self.retryAfter(),
        )

    def _makeQueueTimeout(self, waited: float) -> QueueTimeout:
        error = QueueTimeout(
            f"waited {waited:.1f} s for {self._name}, which is "
            f"{self.state.value} after {self.attempts} attempts",
            self.retryAfter(),
            waited,
            self.state,
            self.attempts,
        )
        error.__cause__ = self.lastError
        return error

    def _makeInitializationFailed(
        self, cause: BaseException | None
    ) -> InitializationFailed:
        error = InitializationFailed(f"{self._name} failed to initialize, for good")
        error.__cause__ = cause
        return error

    def _makeClosed(self) -> Closed:
        return Closed(f"{self._name} is closed")
