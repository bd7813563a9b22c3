"""
Start-up, watch and shutdown of many modules that need each other.

How it works
============

Each module has a wrapper, and L{Startup} observes all wrappers. For every
module the L{Launcher<tsrv.starting.launcher.Launcher>} counts the needed
modules that are not ready. When the count becomes zero, the module is
initialised; when a needed module has failed for good, the module is skipped.
So an event costs time in proportion to the modules that depend on it, and
never a look at all others. A L{Shutdown<tsrv.starting.shutdown.Shutdown>}
closes the modules in reverse order.

L{Startup} itself keeps the status of the program as a whole, which is derived
from the number of required and of optional modules that are not ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, Unpack, overload

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .errors import Closed
from .queuing.history import explain
from .queuing.observers import Observers
from .queuing.waiters import Waiters
from .starting.exit import stopWithStatus
from .starting.graph import GraphError, checkGraph
from .starting.launcher import Launcher
from .starting.member import Member, ModuleOptions, WrapperOptions, wrapModule
from .starting.program import Skipped, StartupFailed, Status
from .starting.report import ModuleReport, Report, describe
from .starting.shutdown import Shutdown
from .wrapper import QueuingWrapper, State

__all__ = ["GraphError", "Skipped", "Startup", "StartupFailed", "Status", "describe"]

_log = Logger("tsrv.startup")

_Module = TypeVar("_Module")

MAX_WAITERS: Final = 10_000
"""
Maximum number of Deferreds that wait for the program.
"""

MAX_LOGGED_MODULES: Final = 50
"""
Maximum number of modules in the table in the log.
"""

_FINAL_STATUSES: Final = (Status.STOPPING, Status.STOPPED)

_makeClosed: Final = partial(Closed, "the program is stopping")

_READY_STATES: Final = (State.DRAINING, State.READY)

_FAILED_STATES: Final = (State.FAILED, State.CLOSING, State.CLOSED)


class Startup(Service):
    """
    All modules of a program: starts them in the order of their needs, watches
    them, reports on them, and closes them in reverse order.

    @ivar wrappers: The wrappers by the names of their modules, in the order in
        which they were added.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        replacements: Mapping[str, object] | None = None,
        stayUp: bool = False,
        stopProgram: Callable[[int], object] | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param replacements: Fakes that replace modules, by name, for tests. A
            replaced module that is added by its factory is never made. A fake
            without C{initialize()} is ready at once.
        @param stayUp: Whether the program keeps running, to report the failure
            of a required module, instead of stopping.
        @param stopProgram: Stops the program with an exit status; by default it
            stops the reactor.
        """
        self._reactor = reactor
        self._replacements = dict(replacements or {})
        self._stayUp = stayUp
        self._stopProgram = stopProgram or partial(stopWithStatus, reactor)
        self._wrappers: dict[str, QueuingWrapper[Any]] = {}
        self.wrappers: Mapping[str, QueuingWrapper[Any]]
        self.wrappers = MappingProxyType(self._wrappers)
        self._members: dict[str, Member] = {}
        self._status = Status.NEW
        self._began: float | None = None
        self._becameReady: float | None = None
        self._criticalPath: list[str] = []
        self._closing = False
        # Numbers of modules that are not ready: optional ones, required ones.
        self._unready = [0, 0]
        # The required modules that have failed, in the order of their failures.
        self._failed: dict[Member, None] = {}
        self._lastReady: Member | None = None
        self._launcher = Launcher(reactor)
        self._waiters = Waiters(MAX_WAITERS, "for the program to become ready")
        self._stopWaiters = Waiters(MAX_WAITERS, "for the program to stop")
        self._observers: Observers[[str]] = Observers()

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
        required: bool = True,
        timeout: float | None = None,
        **options: Unpack[WrapperOptions],
    ) -> QueuingWrapper[Any]:
        """
        Add a module. Its proxy can be used at once.

        @param name: The name of the module in C{needs}, errors and reports.
        @param module: The module, or a class, function or C{partial} that makes
            it. A factory is not called if the module is replaced.
        @param needs: The names of the modules that must be ready before this one
            is initialised. They may be added later.
        @param required: Whether the program is not ready without the module.
        @param timeout: Seconds from when its needs are ready within which the
            module must become ready, with all attempts; L{None} for no limit.
            Afterwards the module has failed for good.
        @param options: The options of L{QueuingWrapper}. Its C{timeout} is
            C{queueTimeout} here, and C{initialize}, C{close} and C{whenLost} may
            be names of methods of the module.
        @return: The wrapper.
        @raise GraphError: The name is in use.
        @raise RuntimeError: The start-up has begun.
        @raise TypeError: An option does not exist or has the wrong type.
        @raise ValueError: The name or an option has an invalid value.
        """
        if self._status is not Status.NEW:
            raise RuntimeError(f"{name!r} was added after the start-up began")
        if name in self._members:
            raise GraphError(f"two modules have the name {name!r}", [name])
        if isinstance(needs, str):
            raise TypeError("needs must be a collection of names, not one name")
        replaced = name in self._replacements
        if replaced:
            module = self._replacements[name]
        wrapper = wrapModule(self._reactor, name, module, options, replaced)
        member = Member(name, wrapper, list(dict.fromkeys(needs)), required, timeout)
        wrapper.addObserver(partial(self._stateChanged, member))
        self._members[name] = member
        self._wrappers[name] = wrapper
        self._unready[required] += 1
        return wrapper

    def check(self) -> None:
        """
        Check the needs of all modules.

        @raise GraphError: A needed module does not exist, modules need each
            other, or a replacement is for no module.
        """
        checkGraph({name: each.needs for name, each in self._members.items()})
        for name in self._replacements:
            if name not in self._members:
                raise GraphError(f"{name!r} is replaced, but was never added", [name])

    @property
    def status(self) -> Status:
        """
        The L{Status} of the program.
        """
        return self._status

    @property
    def ready(self) -> bool:
        """
        Whether every required module is ready, and the program is not stopping.
        """
        return self._status in (Status.READY, Status.DEGRADED)

    @property
    def elapsed(self) -> float:
        """
        Seconds since the start-up began; 0 before.
        """
        return 0.0 if self._began is None else self._reactor.seconds() - self._began

    def missing(self) -> list[str]:
        """
        Return the names of the required modules that are not ready.
        """
        members = self._members.values()
        return [each.name for each in members if each.required and not each.ready]

    def whenReady(self) -> Deferred[None]:
        """
        Wait until every required module is ready.

        @return: A Deferred that fails with L{StartupFailed} when a required
            module has failed for good, and with L{Closed} when the program
            stops.
        """
        if self.ready:
            return succeed(None)
        if self._status is Status.FAILED:
            return fail(self._makeStartupFailed())
        if self._status in _FINAL_STATUSES:
            return fail(_makeClosed())
        return self._waiters.wait()

    def addObserver(self, observer: Callable[[str], object]) -> None:
        """
        Register an observer.

        @param observer: Called with the name of a module after each change of
            its status, and with C{""} after each change of L{status}.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        """
        Unregister an observer.
        """
        self._observers.remove(observer)

    def report(self) -> Report:
        """
        Return the history and the state of all modules, as data that JSON can
        express. L{describe} formats it as a table.
        """
        began = None
        if self._began is not None:
            date = datetime.fromtimestamp(self._began, UTC)
            began = date.isoformat(timespec="milliseconds")
        return {
            "status": self._status.value,
            "began": began,
            "now": round(self.elapsed, 6),
            "becameReady": self._becameReady,
            "criticalPath": list(self._criticalPath),
            "modules": list(map(self.reportModule, self._members)),
        }

    def reportModule(self, name: str) -> ModuleReport:
        """
        Return the entry of one module in L{report}.

        @raise KeyError: No module has this name.
        """
        return self._members[name].report(self._began, self._reactor.seconds())

    def privilegedStartService(self) -> None:
        """
        Check the needs of all modules, before anything starts.

        @raise GraphError: As L{check} does.
        """
        self.check()

    def startService(self) -> None:
        """
        Initialise all modules, each when the modules that it needs are ready.

        @raise GraphError: As L{check} does; nothing has been started.
        @raise RuntimeError: The start-up has begun before.
        """
        self.check()
        if self._status is not Status.NEW:
            raise RuntimeError("the modules of a program are started only once")
        super().startService()
        self._began = self._reactor.seconds()
        self._setStatus(Status.STARTING)
        self._launcher.begin(self._members)
        self._updateStatus()

    def _stateChanged(self, member: Member) -> None:
        state = member.wrapper.state
        ready, failed = state in _READY_STATES, state in _FAILED_STATES
        if ready or failed:
            member.stopTimer()
        if ready is not member.ready:
            member.ready = ready
            self._unready[member.required] += -1 if ready else 1
            if ready and member.required:
                self._lastReady = member
            self._launcher.readyChanged(member)
        if failed is not member.failed:
            member.failed = failed
            if not failed:
                # It is initialised once more.
                self._failed.pop(member, None)
            else:
                if member.required:
                    self._failed[member] = None
                self._launcher.skipDependents(member)
        self._observers.notify(member.name)
        self._launcher.work()
        self._updateStatus()

    def _updateStatus(self) -> None:
        if self._status is Status.NEW or self._status in _FINAL_STATUSES:
            return
        unreadyOptional, unreadyRequired = self._unready
        if self._failed:
            self._setStatus(Status.FAILED)
        elif unreadyRequired:
            isFirst = self._becameReady is None
            self._setStatus(Status.STARTING if isFirst else Status.UNREADY)
        else:
            self._setStatus(Status.DEGRADED if unreadyOptional else Status.READY)

    def _setStatus(self, status: Status) -> None:
        if status is self._status:
            return
        self._status = status
        if self.ready:
            if self._becameReady is None:
                self._becameReadyFirst()
            self._waiters.succeed()
        elif status is Status.FAILED:
            self._requiredModuleFailed()
        self._observers.notify("")

    def _becameReadyFirst(self) -> None:
        self._becameReady = round(self.elapsed, 6)
        member = self._lastReady
        while member is not None:
            self._criticalPath.append(member.name)
            member = member.waitedFor
        self._criticalPath.reverse()
        table = describe(self.report(), MAX_LOGGED_MODULES)
        _log.info("Start-up: {table}", table=table)

    def _requiredModuleFailed(self) -> None:
        error = self._makeStartupFailed()
        # The wrapper has logged the error of an attempt.
        isLogged = error.__cause__ is not None
        _log.critical(
            "{name} is required, and failed{reason}; {outcome}",
            name=error.name,
            reason="" if isLogged else f": {error.reason}",
            outcome="staying up to report it" if self._stayUp else "stopping",
        )
        if not self._stayUp:
            self._stopProgram(1)
        self._waiters.fail(self._makeStartupFailed)

    def _makeStartupFailed(self) -> StartupFailed:
        member = next(iter(self._failed))
        cause = member.wrapper.lastError
        reason = "it was closed" if cause is None else explain(cause)
        error = StartupFailed(member.name, reason)
        error.__cause__ = cause
        return error

    def announceStop(self) -> None:
        """
        Report the program as stopping. Its modules keep working until
        L{stopService}, so that calls in progress can finish.
        """
        if self._status not in _FINAL_STATUSES:
            self._setStatus(Status.STOPPING)
            self._waiters.fail(_makeClosed)

    def stopService(self) -> Deferred[None]:
        """
        Close all modules, each when its dependents are closed. It may be called
        at any time, and repeatedly.

        @return: A Deferred that fires when all modules are closed. It fails with
            an L{ExceptionGroup} of the errors of closing; an error keeps no
            other module from being closed. Cancelling it cancels the waiting
            alone.
        """
        if self._status is Status.STOPPED:
            return succeed(None)
        stopped = self._stopWaiters.wait()
        if not self._closing:
            if self.running:
                super().stopService()
            self._closing = True
            self._launcher.stop()
            for member in self._members.values():
                member.stopTimer()
            self.announceStop()
            Shutdown(self._reactor, self._members.values(), self._stopped).begin()
        return stopped

    def _stopped(self) -> None:
        self._setStatus(Status.STOPPED)
        members = self._members.values()
        errors = [each.closeError for each in members if each.closeError is not None]
        if errors:
            group = BaseExceptionGroup("modules failed to close", errors)
            self._stopWaiters.fail(lambda: group)
        else:
            self._stopWaiters.succeed()
