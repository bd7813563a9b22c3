"""
The report of a program, made from its modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from ..queuing.history import explain
from ..queuing.module import noteOf
from ..wrapper import State
from .member import Member
from .progress import Progress
from .report import ModuleReport, Report

__all__ = ["reportMember", "reportProgram"]

MAX_NAMED_MODULES: Final = 3  # Maximum number of other modules that a reason names.


def reportProgram(progress: Progress, modules: Sequence[ModuleReport]) -> Report:
    """
    Return the report of a program.
    """
    began = None
    if progress.beganAt is not None:
        date = datetime.fromtimestamp(progress.beganAt, UTC)
        began = date.isoformat(timespec="milliseconds")
    return {
        "status": progress.status.value,
        "began": began,
        "now": round(progress.elapsed, 6),
        "becameReady": progress.becameReady,
        "criticalPath": list(progress.criticalPath),
        "modules": list(modules),
    }


def reportMember(member: Member, began: float | None, now: float) -> ModuleReport:
    """
    Return the entry of a module.

    @param began: The time at which the start-up began, if it has begun.
    """
    origin = began or 0.0

    def after(seconds: float | None) -> float | None:
        if seconds is None or began is None:
            return None
        return round(seconds - began, 6)

    wrapper, history = member.wrapper, member.wrapper.history
    attempts = list(history.attempts)
    state, since = wrapper.state, wrapper.since
    status = _statusOf(member, began is not None)
    if began is not None and state is State.NEW:
        since = began
    isScheduled = state in (State.RETRYING, State.LOST)
    delay = wrapper.retryAfter() if isScheduled else None
    waitedFor, closeError = member.waitedFor, member.closeError
    return {
        "name": member.name,
        "required": member.required,
        "needs": list(member.needs),
        "after": list(member.after),
        "restartWith": list(member.restartWith),
        "lazy": member.lazy,
        "status": status,
        "ready": member.ready,
        "since": after(since),
        "reason": _reasonOf(member, status),
        "note": noteOf(wrapper.module) if member.ready else None,
        "begun": after(attempts[0].begun) if attempts else None,
        "becameReady": after(history.becameReady),
        "waitedFor": None if waitedFor is None else waitedFor.name,
        "attempts": [
            {
                "begun": round(each.begun - origin, 6),
                "ended": after(each.ended),
                "kind": each.kind,
                "error": each.error,
            }
            for each in attempts
        ],
        "attemptCount": history.attempts.count,
        "nextAttempt": None if delay is None else after(now + delay),
        "losses": [
            {
                "lost": round(each.lost - origin, 6),
                "recovered": after(each.recovered),
                "kind": each.kind,
                "error": each.error,
            }
            for each in history.losses
        ],
        "lossCount": history.losses.count,
        "paused": wrapper.paused,
        "pauses": [
            {"begun": round(each.begun - origin, 6), "ended": after(each.ended)}
            for each in history.pauses
        ],
        "pauseCount": history.pauses.count,
        "inProgress": wrapper.inProgress,
        "closed": after(since) if state is State.CLOSED else None,
        "closeError": None if closeError is None else explain(closeError),
    }


def _statusOf(member: Member, hasBegun: bool) -> str:
    state = member.wrapper.state
    if member.skipped is not None:
        return "skipped"
    if hasBegun and state is State.NEW:
        return "waiting" if member.isWanted else "lazy"
    return state.value


def _reasonOf(member: Member, status: str) -> str | None:
    """
    Return why a module is not ready, without any error message.
    """
    if member.ready:
        return None
    if status == "waiting":
        return _waitingFor(member)
    if status == "lazy":
        return "not needed yet"
    if member.skipped is not None:
        return f"needs {member.skipped.need}, which failed"
    wrapper = member.wrapper
    error = wrapper.lastError
    because = "" if error is None else f" ({type(error).__name__})"
    attempt = f"attempt {wrapper.history.attempts.count}"
    return {
        State.NEW: "not started",
        State.INITIALIZING: f"{attempt} is in progress"
        if _isAttempting(member)
        else "waits for other modules' attempts",
        State.RETRYING: f"{attempt} failed{because}",
        State.PAUSED: _pausedBy(member),
        State.LOST: f"lost{because}",
        State.FAILED: f"failed for good{because}",
        State.CLOSING: "is being closed",
        State.CLOSED: "closed",
    }.get(wrapper.state)


def _isAttempting(member: Member) -> bool:
    # The history records an attempt once the attempt has its slot.
    attempts = list(member.wrapper.history.attempts)
    return bool(attempts) and attempts[-1].ended is None


def _pausedBy(member: Member) -> str:
    if not member.isHeld:
        return "paused"
    names = [each.name for each in member.heldFor]
    verb = "is" if len(names) == 1 else "are"
    return f"restarts when {_named(names)} {verb} ready again" if names else "restarts"


def _waitingFor(member: Member) -> str:
    missing = [each.name for each in member.dependencies if not each.available]
    if missing:
        return f"needs {_named(missing)}"
    earlier = [each.name for each in member.predecessors if not each.settled]
    return f"starts after {_named(earlier)}" if earlier else "starts next"


def _named(names: list[str]) -> str:
    named = ", ".join(names[:MAX_NAMED_MODULES])
    more = len(names) - MAX_NAMED_MODULES
    return named + (f" and {more} more" if more > 0 else "")
