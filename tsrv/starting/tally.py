"""
The tally of a program: its modules, counted to derive the status of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ..queuing.history import explain
from ..queuing.modulelog import logReady
from ..wrapper import State
from .launcher import Launcher
from .member import Member
from .program import StartupFailed, Status

__all__ = ["Tally"]

_SERVING_STATES: Final = (State.DRAINING, State.READY)

_FAILED_STATES: Final = (State.FAILED, State.CLOSING, State.CLOSED)


class Tally:
    """
    Counts the modules that decide the status of the program, and reports changes that
    affect other modules to the launcher.

    @ivar failed: The required modules that have failed, in the order of their failures.
    @ivar lastReady: The required module that became ready last.
    @ivar isTabled: Whether the table of the start-up was logged.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.failed: dict[Member, None] = {}
        self.lastReady: Member | None = None
        self.isTabled = False
        self._launcher = launcher
        # Numbers of modules that are not available: optional, required.
        self._unavailable = [0, 0]

    def add(self, member: Member) -> None:
        """
        Count a new module.
        """
        self._unavailable[member.required] += not member.available

    def update(self, member: Member) -> None:
        """
        Count a module whose state may have changed.
        """
        wrapper = member.wrapper
        state = wrapper.state
        if state is not State.FAILED:
            member.startsAnew = False
        ready = state in _SERVING_STATES
        failed = state in _FAILED_STATES and not member.startsAnew
        isUnused = member.lazy and wrapper.history.becameReady is None
        available = ready or (isUnused and not failed)
        wasSettled = member.settled
        if ready and not member.ready:
            if member.required:
                self.lastReady = member
            if self.isTabled:
                _logLate(member)
        member.ready = ready
        hasFailed = failed and not member.failed
        if failed is not member.failed:
            member.failed = failed
            if not failed:
                # The module is being initialised again.
                self.failed.pop(member, None)
            elif member.required:
                self.failed[member] = None
        if available is not member.available:
            member.available = available
            self._unavailable[member.required] += -1 if available else 1
            self._launcher.availableChanged(member)
        if member.settled is not wasSettled:
            self._launcher.settledChanged(member)
        if hasFailed:
            self._launcher.skipDependents(member)

    def begin(self, members: Iterable[Member]) -> None:
        """
        The start-up begins: modules that have failed before are initialised again.
        """
        for member in members:
            if member.wrapper.state is State.FAILED:
                member.startsAnew = member.isWanted = True
                self.update(member)

    def status(self, wasReady: bool) -> Status:
        """
        Return the status of the program while it is not stopping.

        @param wasReady: Whether the program has been ready before.
        """
        unavailableOptional, unavailableRequired = self._unavailable
        if self.failed:
            return Status.FAILED
        if unavailableRequired:
            return Status.UNREADY if wasReady else Status.STARTING
        return Status.DEGRADED if unavailableOptional else Status.READY

    def explainFailure(self) -> Callable[[], StartupFailed]:
        """
        Return a callable that makes the error of the first failed required module.
        """
        member = next(iter(self.failed))
        cause = member.wrapper.lastError
        reason = "it was closed" if cause is None else explain(cause)

        def make() -> StartupFailed:
            error = StartupFailed(member.name, reason)
            error.__cause__ = cause
            return error

        return make


def _logLate(member: Member) -> None:
    """
    Log that a module is ready that was not ready in the table. Its wrapper does not log
    this if the first attempt succeeds.
    """
    wrapper, history = member.wrapper, member.wrapper.history
    if history.attempts.count == 1 and not history.pauses.count:
        (attempt,) = history.attempts
        assert history.becameReady is not None
        seconds = history.becameReady - attempt.begun
        logReady(member.name, "ready", seconds, 1, wrapper.pending)
