"""
The start-up of a program: many modules, which need each other.

How it works
============

Each module gets a wrapper, and the wrappers tell what happens to them. A
L{Startup} keeps, for every module, the number of those it needs that are not
ready. Where that number becomes zero the module is initialised; where one of
them has failed for good, it is skipped. So to start a module, and to notice
that one is ready, takes time in proportion to what needs it, and never a look
at all the others.

What one event leads to is not done in it but put into a list, which is worked
off in slices: a chain of ten thousand modules that are ready at once neither
exhausts the stack nor keeps the reactor.

The module C{tsrv.starting.report} says what has been, in words and numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, Unpack, overload

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .queuing.history import explain
from .queuing.observers import Observers
from .queuing.slices import SlicedWork
from .queuing.waiters import Waiters
from .starting.exit import stopWithStatus
from .starting.graph import (
    GraphError,
    checkGraph,
)
from .starting.member import (
    Member,
    WrapperOptions,
    wrapModule,
)
from .starting.program import (
    Skipped,
    StartupFailed,
    Status,
)
from .starting.report import (
    ModuleReport,
    Report,
    describe,
    isoTime,
    rounded,
)
from .starting.shutdown import Shutdown
from .wrapper import (
    Closed,
    QueuingWrapper,
    State,
)

__all__ = ["GraphError", "Skipped", "Startup", "StartupFailed", "Status", "describe"]

_Module = TypeVar("_Module")

_WAITERS: Final = 10_000
"""
How many may wait for a program.
"""

_LAST: Final = (Status.STOPPING, Status.STOPPED)
"""
After these there is no other.
"""

_CLOSED: Final = "it was closed"

_ROWS: Final = 50
"""
How many modules are listed in the log.
"""


class Startup(Service):
    """
    All the modules of one program: started as what they need allows, watched,
    reported on, and closed in the opposite order.

    @ivar wrappers: The wrappers of the modules by their names, in the order in
        which they were added.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        replacements: Mapping[str, object] | None = None,
        stayUp: bool = False,
        leave: Callable[[int], object] | None = None,
    ) -> None:
        """
        @param reactor: Provides the time.
        @param replacements: What takes the place of modules, by their names;
            for tests. The module that would be there otherwise is not even
            made, if it is added by what makes it. A replacement without
            C{initialize()} is ready at once.
        @param stayUp: Whether the program goes on, and reports, when a required
            module has failed for good.
        @param leave: Ends the program with an exit status when it does not; by
            default by stopping the reactor.
        """
        self.wrappers: Mapping[str, QueuingWrapper[Any]]
        self._reactor = reactor
        self._replacements = dict(replacements or {})
        self._stayUp = stayUp
        self._leave = partial(stopWithStatus, reactor) if leave is None else leave
        self._wrappers: dict[str, QueuingWrapper[Any]] = {}
        self.wrappers = MappingProxyType(self._wrappers)
        self._members: dict[str, Member] = {}
        self._status = Status.NEW
        self._began: float | None = None
        self._becameReady: float | None = None
        self._criticalPath: list[str] = []
        self._closing = False
        # How many modules are not what they should be.
        self._unready = 0
        self._unreadyOptional = 0
        self._failed: dict[str, None] = {}
        self._lastReady: Member | None = None
        self._todo: deque[Callable[[], None]] = deque()
        self._work = SlicedWork(reactor, self._step)
        self._waiters = Waiters(_WAITERS, "for the program to become ready")
        self._stoppers = Waiters(_WAITERS, "for the program to stop")
        self._observers: Observers[[str]] = Observers()

    # What there is to be started.

    @overload
    def add(
        self,
        name: str,
        module: Callable[[], _Module],
        *,
        needs: Iterable[str] = (),
        required: bool = True,
        timeout: float | None = None,
        **options: Unpack[WrapperOptions],
    ) -> QueuingWrapper[_Module]: ...

    @overload
    def add(
        self,
        name: str,
        module: _Module,
        *,
        needs: Iterable[str] = (),
        required: bool = True,
        timeout: float | None = None,
        **options: Unpack[WrapperOptions],
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

        @param name: What it is called: in C{needs}, in errors, in reports.
        @param module: The module; or a class, function or C{partial} that makes
            it, which is not called where the module is replaced.
        @param needs: The names of the modules that have to be ready before this
            one is initialised; they may be added later.
        @param required: Whether the program is not ready without it.
        @param timeout: How long it may take to become ready for the first time,
            with all attempts, from when those that it needs are ready, in
            seconds; L{None} for any time. Then it has failed for good.
        @param options: Those of L{QueuingWrapper}; but what is C{timeout} there
            is C{queueTimeout} here, and C{initialize}, C{close} and
            C{whenLost} may also be the names of the module's methods.
        @return: The wrapper.
        @raise GraphError: There is a module of that name already.
        @raise RuntimeError: The start-up has begun.
        @raise TypeError: An option is something else than described.
        @raise ValueError: The name or an option makes no sense.
        """
        if self._status is not Status.NEW:
            raise RuntimeError(f"{name!r} is added after the start-up began")
        if name in self._members:
            raise GraphError(f"there are two modules {name!r}", [name])
        replaced = name in self._replacements
        if replaced:
            module = self._replacements[name]
        wrapper = wrapModule(self._reactor, name, module, options, replaced)
        member = Member(name, wrapper, needs, required, timeout)
        wrapper.addObserver(partial(self._changed, member))
        self._members[name] = member
        self._wrappers[name] = wrapper
        if required:
            self._unready += 1
        else:
            self._unreadyOptional += 1
        return wrapper

    def check(self) -> None:
        """
        Look for what is wrong with what the modules are said to need.

        @raise GraphError: There is something; the message has the path to it.
        """
        checkGraph({name: each.needs for name, each in self._members.items()})
        for name in self._replacements:
            if name not in self._members:
                raise GraphError(f"{name!r} is replaced, but was never added", [name])

    # What is to be seen.

    @property
    def status(self) -> Status:
        """
        The L{Status} now.
        """
        return self._status

    @property
    def ready(self) -> bool:
        """
        Whether every required module is ready, and the program is to go on.
        """
        return self._status in (Status.READY, Status.DEGRADED)

    @property
    def elapsed(self) -> float:
        """
        The seconds since the start-up began; 0 before.
        """
        return 0.0 if self._began is None else self._reactor.seconds() - self._began

    def missing(self) -> list[str]:
        """
        @return: The names of the required modules that are not ready.
        """
        return [
            name
            for name, each in self._members.items()
            if each.required and not each.ready
        ]

    def whenReady(self) -> Deferred[None]:
        """
        Wait until every required module is ready.

        @return: A Deferred that fails with L{StartupFailed} if one of them has
            failed for good, and with L{Closed} if the program stops.
        """
        if self.ready:
            return succeed(None)
        if self._status is Status.FAILED:
            return fail(self._makeFailed())
        if self._status in _LAST:
            return fail(_makeClosed())
        return self._waiters.wait()

    def addObserver(self, observer: Callable[[str], object]) -> None:
        """
        Have something called after each change of a module's status, with the
        name of the module, and after each change of L{status}, with C{""}.
        """
        self._observers.add(observer)

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        """
        Have it called no more.
        """
        self._observers.remove(observer)

    def report(self) -> Report:
        """
        @return: What has been, and what is, as data that JSON can express.
            L{describe} makes a table of it.
        """
        return {
            "status": self._status.value,
            "began": None if self._began is None else isoTime(self._began),
            "now": round(self.elapsed, 6),
            "becameReady": rounded(self._becameReady),
            "criticalPath": list(self._criticalPath),
            "modules": [self.reportModule(name) for name in self._members],
        }

    def reportModule(self, name: str) -> ModuleReport:
        """
        @param name: The name of a module.
        @return: What there is of it in L{report}.
        @raise KeyError: There is no such module.
        """
        return self._members[name].report(self._began, self._reactor.seconds())

    # Starting.

    def privilegedStartService(self) -> None:
        """
        @see: L{twisted.application.service.IService.privilegedStartService}
        @raise GraphError: What the modules are said to need cannot be.
        """
        self.check()

    def startService(self) -> None:
        """
        Initialise all modules, each when those that it needs are ready.

        @raise GraphError: What the modules are said to need cannot be; nothing
            has been started.
        @raise RuntimeError: The start-up has begun before.
        """
        self.check()
        if self._status is not Status.NEW:
            raise RuntimeError("the modules of a program are started only once")
        super().startService()
        self._began = self._reactor.seconds()
        self._setStatus(Status.STARTING)
        for member in self._members.values():
            for need in member.needs:
                needed = self._members[need]
                member.suppliers.append(needed)
                needed.dependents.append(member)
                if not needed.ready:
                    member.unmet += 1
            self._later(self._consider, member)
        self._work.now()
        self._look()

    def _consider(self, member: Member) -> None:
        """
        Start a module, or skip it, or leave it as it is.
        """
        if self._closing or member.started:
            return
        if member.unmet == 0:
            self._start(member)
            return
        gone = next((each.name for each in member.suppliers if each.gone), None)
        if gone is not None and member.skippedFor is None:
            member.skippedFor = gone
            # Who has initialised it by hand has to see to it.
            if member.wrapper.state is State.NEW:
                member.wrapper.fail(Skipped(member.name, gone))

    def _start(self, member: Member) -> None:
        member.started = True
        member.skippedFor = None
        # It may have been initialised by hand before.
        if member.timeout is not None and not member.ready:
            member.timer = self._reactor.callLater(
                member.timeout, self._overdue, member
            )
        member.wrapper.initialize().addErrback(_told)

    def _overdue(self, member: Member) -> None:
        """
        A module has taken too long.
        """
        member.timer = None
        last = member.wrapper.lastError
        message = f"not ready within {member.timeout:g} seconds"
        if last is not None:
            message += f", because of {explain(last)}"
        error = TimeoutError(message)
        error.__cause__ = last
        member.wrapper.fail(error)

    # What the wrappers tell.

    def _changed(self, member: Member) -> None:
        """
        A module is in another state.
        """
        state = member.wrapper.state
        ready = state in (State.DRAINING, State.READY)
        gone = state in (State.FAILED, State.CLOSING, State.CLOSED)
        if ready or gone:
            member.stopTimer()
        if ready is not member.ready:
            self._setReady(member, ready)
        if gone is not member.gone:
            self._setGone(member, gone)
        self._observers.notify(member.name)
        self._work.now()
        self._look()

    def _setReady(self, member: Member, ready: bool) -> None:
        """
        A module has become ready, or is not any more.
        """
        member.ready = ready
        change = -1 if ready else 1
        if member.required:
            self._unready += change
            if ready:
                self._lastReady = member
        else:
            self._unreadyOptional += change
        for dependent in member.dependents:
            dependent.unmet += change
            if dependent.unmet == 0 and not dependent.started:
                dependent.waitedFor = member
                self._later(self._consider, dependent)

    def _setGone(self, member: Member, gone: bool) -> None:
        """
        A module has failed for good, or was closed; or it is tried once more.
        """
        member.gone = gone
        if not gone:
            self._failed.pop(member.name, None)
            return
        if member.required:
            self._failed[member.name] = None
        for dependent in member.dependents:
            if not dependent.started:
                self._later(self._consider, dependent)

    def _later(self, action: Callable[[Member], None], member: Member) -> None:
        self._todo.append(partial(action, member))

    def _step(self) -> bool:
        if not self._todo:
            return False
        self._todo.popleft()()
        return True

    def _look(self) -> None:
        """
        Find out what is to be said of the program as a whole.
        """
        if self._began is None or self._status in _LAST:
            return
        if self._failed:
            self._setStatus(Status.FAILED)
        elif self._unready:
            first = self._becameReady is None
            self._setStatus(Status.STARTING if first else Status.UNREADY)
        elif self._unreadyOptional:
            self._setStatus(Status.DEGRADED)
        else:
            self._setStatus(Status.READY)

    def _setStatus(self, status: Status) -> None:
        if status is self._status:
            return
        self._status = status
        if self.ready:
            if self._becameReady is None:
                self._firstReady()
            self._waiters.succeed()
        elif status is Status.FAILED:
            self._failedForGood()
        self._observers.notify("")

    def _firstReady(self) -> None:
        """
        All required modules are ready for the first time.
        """
        self._becameReady = self.elapsed
        member = self._lastReady
        while member is not None:
            self._criticalPath.append(member.name)
            member = member.waitedFor
        self._criticalPath.reverse()
        self._log.info("Start-up: {report}", report=describe(self.report(), _ROWS))

    def _failedForGood(self) -> None:
        """
        The program cannot do what it is there for.
        """
        name = next(iter(self._failed))
        # Why an attempt failed has been told.
        told = self._wrappers[name].lastError is not None
        self._log.critical(
            "{name} is required, and failed{reason}; {outcome}",
            name=name,
            reason="" if told else f": {_CLOSED}",
            outcome="staying up to report it" if self._stayUp else "stopping",
        )
        if not self._stayUp:
            self._leave(1)
        self._waiters.fail(self._makeFailed)

    def _makeFailed(self) -> StartupFailed:
        name = next(iter(self._failed))
        cause = self._wrappers[name].lastError
        reason = _CLOSED if cause is None else explain(cause)
        error = StartupFailed(name, reason)
        error.__cause__ = cause
        return error

    # Stopping.

    def announceStop(self) -> None:
        """
        Tell whoever asks that the program is going to stop: from now on it is
        not ready. Its modules go on until L{stopService}, for the sake of what
        has been begun.
        """
        if self._status not in _LAST:
            self._setStatus(Status.STOPPING)
            self._waiters.fail(_makeClosed)

    def stopService(self) -> Deferred[None]:
        """
        Close all modules, each when those that need it are closed. It is right
        at any time, and may be called again.

        @return: A Deferred that fires when all are closed. It fails with an
            L{ExceptionGroup} of what went wrong, if anything did; nothing of
            that keeps another module from being closed. Cancelling it gives up
            the waiting alone.
        """
        if self._status is Status.STOPPED:
            return succeed(None)
        stopped = self._stoppers.wait()
        if not self._closing:
            self._stop()
        return stopped

    def _stop(self) -> None:
        if self.running:
            super().stopService()
        self._closing = True
        self._todo.clear()
        for member in self._members.values():
            member.stopTimer()
        self.announceStop()
        Shutdown(self._reactor, self._members.values(), self._stopped).begin()

    def _stopped(self) -> None:
        self._setStatus(Status.STOPPED)
        errors = [
            each.closeError
            for each in self._members.values()
            if each.closeError is not None
        ]
        error = (
            BaseExceptionGroup("modules failed to close", errors) if errors else None
        )
        if error is None:
            self._stoppers.succeed()
        else:
            self._stoppers.fail(lambda: error)


def _makeClosed() -> Closed:
    return Closed("the program is stopping")


def _told(failure: object) -> None:
    """
    The wrapper has told what became of it.
    """
