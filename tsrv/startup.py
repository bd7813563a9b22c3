"""
Start-up, watch and shutdown of many modules that need each other.

Each module has a wrapper, and L{Startup} observes all wrappers. Every change of a
module goes through these parts:

  - L{Tally<tsrv.starting.tally.Tally>} counts the module for its dependents and for
    the program: the status of the program follows from the numbers of required and of
    optional modules that are not ready.
  - L{Restarts<tsrv.starting.restarts.Restarts>} pauses the modules that restart with a
    lost module, and restarts them when the lost module has recovered.
  - L{Launcher<tsrv.starting.launcher.Launcher>} initialises a module when all modules
    that it waits for are ready, and skips it when a module that it needs has failed for
    good.

So a change takes time in proportion to the number of dependents, not of all modules.
L{Progress<tsrv.starting.progress.Progress>} keeps the status of the program.
L{Shutdown<tsrv.starting.shutdown.Shutdown>} closes the modules in reverse order.

Observers, callbacks and the callable that stops the program may do anything while they
are called. So each method here changes the counts first and calls foreign code last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, Unpack, overload

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore

from .asyncmodule import ReactorTime
from .queuing.awaiting import fired
from .queuing.home import homeOf
from .queuing.observers import Observers
from .queuing.options import checkArguments, checkCount, checkNames
from .queuing.waiters import Waiters
from .starting.exit import stopWithStatus
from .starting.graph import GraphError, UnknownModule, logUnknownNames
from .starting.launcher import Launcher
from .starting.member import Member, checkMembers, connect
from .starting.options import ModuleOptions, WrapperOptions, wrapModule
from .starting.program import Restarted, Skipped, StartupFailed, Status
from .starting.progress import MAX_WAITERS, Progress
from .starting.report import ModuleReport, Report, describe
from .starting.reporting import reportMember, reportProgram
from .starting.restarts import Restarts
from .starting.shutdown import Shutdown
from .starting.tally import Tally
from .wrapper import QueuingWrapper

__all__ = [
    "GraphError",
    "Restarted",
    "Skipped",
    "Startup",
    "StartupFailed",
    "Status",
    "UnknownModule",
    "describe",
]

_Module = TypeVar("_Module")

MAX_LOGGED_MODULES: Final = 50  # Maximum number of modules in the table in the log.


class Startup(Service):
    """
    A service that has all modules of a program. It starts them in the order of their
    needs, watches them, reports on them, and closes them in reverse order::

        startup = Startup(reactor)
        database = startup.add("database", Database(reactor))
        startup.add("prices", Prices(database.proxy), needs=["database"])
        startup.setServiceParent(application)

    When a required module fails for good, the program stops with exit status 1. Modules
    that need a failed one are skipped: calls to them fail at once.

    @ivar wrappers: The wrappers by the names of their modules, in the order in which
        the modules were added.
    """

    def __init__(
        self,
        reactor: ReactorTime,
        *,
        replacements: Mapping[str, object] | None = None,
        stayUp: bool = False,
        stopProgram: Callable[[int], object] | None = None,
        concurrency: int | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param replacements: Fakes that replace modules in tests, by name. The factory
            of a replaced module is never called. A fake without C{initialize()} is
            ready at once, and so is a mock.
        @param stayUp: Whether the program keeps running when a required module has
            failed for good, to report the failure.
        @param stopProgram: Takes an exit status, and stops the program with it; by
            default it stops the reactor.
        @param concurrency: Maximum number of modules that are initialised at the same
            time, also after losses; L{None} for no limit. A module counts while its
            C{initialize()} waits for another module: name that one in C{needs}.
        @raise TypeError: C{stopProgram} is not callable.
        @raise ValueError: C{concurrency} is not a positive integer.
        """
        if stopProgram is not None:
            checkArguments("stopProgram", stopProgram, 1)
        self._attemptSlots: DeferredSemaphore | None = None
        if concurrency is not None:
            checkCount("concurrency", concurrency, 1)
            self._attemptSlots = DeferredSemaphore(concurrency)
        self._reactor = reactor
        self._closing = False
        self._replacements = dict(replacements or {})
        self._wrappers: dict[str, QueuingWrapper[Any]] = {}
        self.wrappers: Mapping[str, QueuingWrapper[Any]]
        self.wrappers = MappingProxyType(self._wrappers)
        self._members: dict[str, Member] = {}
        self._launcher = Launcher(reactor, self._stateChanged)
        self._restarts = Restarts(reactor, self._launcher)
        self._tally = Tally(self._launcher)
        self._observers: Observers[[str]] = Observers()
        if stopProgram is None:
            stopProgram = partial(stopWithStatus, reactor)
        self._progress = Progress(
            reactor,
            self._tally,
            changed=partial(self._observers.notify, ""),
            describe=lambda: describe(self.report(), MAX_LOGGED_MODULES),
            stopProgram=None if stayUp else stopProgram,
        )
        self._stopWaiters = Waiters(MAX_WAITERS, "for the program to stop")

    @overload
    def add(
        self, name: str, module: Callable[[], _Module], **options: Unpack[ModuleOptions]
    ) -> QueuingWrapper[_Module]: ...

    @overload
    def add(
        self, name: str, module: _Module, **options: Unpack[ModuleOptions]
    ) -> QueuingWrapper[_Module]: ...

    def add(
        self,
        name: str,
        module: Any,
        *,
        needs: Iterable[str] = (),
        after: Iterable[str] = (),
        restartWith: Iterable[str] = (),
        required: bool = True,
        lazy: bool = False,
        timeout: float | None = None,
        **options: Unpack[WrapperOptions],
    ) -> QueuingWrapper[Any]:
        """
        Add a module. Its proxy can be used at once. The modules in C{needs}, C{after}
        and C{restartWith} may be added later.

        @param name: The name of the module in C{needs}, errors and reports.
        @param module: The module, or its factory: a class, function or C{partial}
            that makes it.
        @param needs: Names of the modules that must be ready before this one is
            initialised. It is closed before them.
        @param after: Names of modules that this one starts after, if they exist: when
            each of them is ready, failed, skipped or closed. It is closed before them.
        @param restartWith: Names of modules that it needs, and whose loss restarts it:
            it is paused until the lost module is ready again and this one was closed
            and initialised again. The same goes for modules that restart with it.
        @param required: Whether the program needs the module to be ready (the default).
        @param lazy: Whether its first call initialises it. Until it has been ready
            once, neither the program nor other modules wait for it.
        @param timeout: Seconds from the beginning of its first attempt within which the
            module must become ready; L{None} for no limit. Then it fails for good.
        @param options: The options of L{QueuingWrapper}, without C{name} and
            C{attemptSlots}. Its C{timeout} is C{queueTimeout} here.
        @return: The wrapper.
        @raise GraphError: The name is in use.
        @raise RuntimeError: The start-up has begun.
        @raise TypeError: An option does not exist or has the wrong type.
        @raise ValueError: The name or an option has an invalid value.
        """
        self._checkNew(name)
        restarts = checkNames("restartWith", restartWith)
        needed = list(dict.fromkeys([*checkNames("needs", needs), *restarts]))
        predecessors = checkNames("after", after)
        replaced = name in self._replacements
        wrapper = wrapModule(
            self._reactor,
            name,
            self._replacements[name] if replaced else module,
            options,
            isReplacement=replaced,
            isRestarted=bool(restarts),
            attemptSlots=self._attemptSlots,
            lazy=(lambda: self._launcher.want(self._members[name])) if lazy else False,
        )
        # A factory may have added the same name, or begun the start-up.
        self._checkNew(name)
        member = Member(
            name,
            wrapper,
            needed,
            predecessors,
            restarts,
            bool(required),
            timeout,
            bool(lazy),
        )
        wrapper.addObserver(partial(self._stateChanged, member))
        self._members[name] = member
        self._wrappers[name] = wrapper
        self._tally.add(member)
        return wrapper

    def _checkNew(self, name: str) -> None:
        if self.status is not Status.NEW:
            raise RuntimeError(f"{name!r} was added after the start-up began")
        if name in self._members:
            raise GraphError(f"two modules have the name {name!r}", [name])

    def check(self) -> None:
        """
        Check the relations of all modules.

        @raise GraphError: A needed module does not exist, modules wait for each other,
            or a replacement has the name of no module.
        """
        checkMembers(self._members)
        for name in self._replacements:
            if name not in self._members:
                raise GraphError(f"{name!r} is replaced, but was never added", [name])

    @property
    def status(self) -> Status:
        """
        The L{Status} of the program.
        """
        return self._progress.status

    @property
    def ready(self) -> bool:
        """
        Whether every required module is ready, and the program is not stopping.
        """
        return self._progress.isReady

    @property
    def elapsed(self) -> float:
        """
        Seconds since the start-up began; 0 before.
        """
        return self._progress.elapsed

    def missing(self) -> list[str]:
        """
        Return the names of the required modules that are not ready.
        """
        members = self._members.values()
        return [each.name for each in members if each.required and not each.available]

    def whenReady(self) -> Deferred[None]:
        """
        Wait until every required module is ready.

        @return: A Deferred that fires when they are ready. It fails with
            L{StartupFailed} when a required module has failed for good, and with
            L{Closed} when the program stops.
        """
        return self._progress.whenReady()

    def pause(self, name: str, by: object = None) -> Deferred[None]:
        """
        Pause a module until L{resume}, as L{QueuingWrapper.pause} does.

        @param name: The name of the module.
        @param by: The holder.
        @return: A Deferred that fires when no call of the module is in progress.
        @raise UnknownModule: No module has this name.
        """
        return self._find(name).wrapper.pause(by)

    def resume(self, name: str, by: object = None) -> None:
        """
        End the pause of one holder, as L{QueuingWrapper.resume} does.

        @param name: The name of the module.
        @param by: The holder.
        @raise UnknownModule: No module has this name.
        """
        self._find(name).wrapper.resume(by)

    def pausing(self, name: str) -> AbstractAsyncContextManager[None]:
        """
        Pause a module during an C{async with}, for a planned restart::

            async with startup.pausing("database"):  # when no call is in progress
                await restartDatabase()
                startup.reset("database", Exception("planned restart"))

        @param name: The name of the module.
        @raise UnknownModule: No module has this name.
        """
        return self._find(name).wrapper.pausing()

    def reset(self, name: str, reason: BaseException) -> None:
        """
        Close a module and initialise it again, as L{QueuingWrapper.reset} does. The
        modules that restart with it are restarted afterwards.

        @param name: The name of the module.
        @param reason: The reason; the report shows it as the reason of a loss.
        @raise IllegalTransition: The module is new, has failed, or is closed.
        @raise UnknownModule: No module has this name.
        """
        self._find(name).wrapper.reset(reason)

    def _find(self, name: str) -> Member:
        try:
            return self._members[name]
        except KeyError:
            raise UnknownModule(name, self._members) from None

    def addObserver(self, observer: Callable[[str], object]) -> None:
        """
        Register an observer.

        @param observer: Called with the name of a module after each change of its
            status, and with the empty string after each change of L{status}.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        """
        Unregister an observer. An unknown one is ignored.

        @param observer: The observer.
        """
        self._observers.remove(observer)

    def report(self) -> Report:
        """
        Return the states and the history of all modules, as data for JSON.
        L{describe} formats it as a table.
        """
        modules = [self.reportModule(name) for name in self._members]
        return reportProgram(self._progress, modules)

    def reportModule(self, name: str) -> ModuleReport:
        """
        Return the entry of one module in L{report}.

        @param name: The name of the module.
        @raise UnknownModule: No module has this name.
        """
        now = self._reactor.seconds()
        return reportMember(self._find(name), self._progress.began, now)

    def privilegedStartService(self) -> None:
        """
        Call L{check}, before any service starts.
        """
        self.check()

    def startService(self) -> None:
        """
        Initialise all modules, each when the modules that it waits for are ready.

        @raise GraphError: As for L{check}; no module is started.
        @raise RuntimeError: The start-up has begun before.
        """
        homeOf(self._reactor).check("startService")
        self.check()
        if self.status is not Status.NEW:
            raise RuntimeError("the modules of a program are started only once")
        super().startService()
        members = self._members.values()
        logUnknownNames({each.name: each.after for each in members})
        self._connect()
        self._progress.begin()
        self._launcher.begin(members)
        self._progress.update()

    def _connect(self) -> None:
        self._tally.begin(self._members.values())
        connect(self._members)

    def _stateChanged(self, member: Member) -> None:
        self._tally.update(member)
        self._launcher.checkTime(member)
        self._restarts.update(member)
        self._observers.notify(member.name)
        self._launcher.work()
        self._restarts.work()
        self._progress.update()

    def announceStop(self) -> None:
        """
        Set L{status} to C{STOPPING}. The modules keep working until L{stopService}, so
        that calls in progress can finish.
        """
        self._progress.announceStop()

    def stopService(self) -> Deferred[None]:
        """
        Close all modules, each after its dependents. This may be called at any time,
        and repeatedly.

        @return: A Deferred that fires when all modules are closed. If some failed to
            close, it fails with an L{ExceptionGroup} of their errors. Cancelling it
            only ends the wait.
        """
        homeOf(self._reactor).check("stopService")
        if self.status is Status.STOPPED:
            return fired()
        stopped = self._stopWaiters.wait()
        if not self._closing:
            if self.running:
                super().stopService()
            self._closing = True
            self._launcher.stop()
            self._restarts.stop()
            if self._progress.began is None:
                # Foreign code may have initialised modules itself.
                with suppress(GraphError):
                    checkMembers(self._members)
                    self._connect()
            for member in self._members.values():
                member.stopTimer()
            self.announceStop()
            Shutdown(self._reactor, self._members.values(), self._stopped).begin()
        return stopped

    def _stopped(self) -> None:
        self._progress.stopped()
        members = self._members.values()
        errors = [each.closeError for each in members if each.closeError is not None]
        if errors:
            group = BaseExceptionGroup("modules failed to close", errors)
            self._stopWaiters.fail(lambda: group)
        else:
            self._stopWaiters.succeed()
