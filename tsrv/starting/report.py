"""
The report of a program: data, and a table for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

__all__ = [
    "AttemptReport",
    "LossReport",
    "ModuleReport",
    "PauseReport",
    "Report",
    "describe",
]


class _ErrorReport(TypedDict):
    kind: str | None
    error: str | None


class AttemptReport(_ErrorReport):
    """
    One attempt to initialise a module.

    @ivar begun: The time of its beginning.
    @ivar ended: The time of its end; L{None} while it is in progress.
    @ivar kind: The type of its error; L{None} without an error.
    @ivar error: The error, with its message, in one line.
    """

    begun: float
    ended: float | None


class LossReport(_ErrorReport):
    """
    One loss of a module.

    @ivar lost: The time of the loss.
    @ivar recovered: The time at which the module was ready again, if it was.
    @ivar kind: The type of the error that was the reason, if there was one.
    @ivar error: The error, with its message, in one line.
    """

    lost: float
    recovered: float | None


class PauseReport(TypedDict):
    """
    One pause of a module.

    @ivar begun: The time of its beginning.
    @ivar ended: The time of its end; L{None} while it lasts.
    """

    begun: float
    ended: float | None


class ModuleReport(TypedDict):
    """
    One module of a program.

    @ivar name: Its name.
    @ivar required: Whether the program is not ready without it.
    @ivar needs: The names of the modules that it needs, with C{restartWith}.
    @ivar after: The names of the modules that it starts after, if they exist.
    @ivar restartWith: The names of the modules that it restarts with.
    @ivar lazy: Whether its first call initialises it.
    @ivar status: The value of its L{State<tsrv.State>}; or C{"waiting"} if it waits
        for other modules, C{"skipped"} if a module that it needs has failed, or
        C{"lazy"} before its first call.
    @ivar ready: Whether it gets calls: its state is C{READY} or C{DRAINING}.
    @ivar since: The time of its last change of status.
    @ivar reason: The reason why it is not ready, without any error message.
    @ivar note: The module's own note, see L{IHasNote<tsrv.asyncmodule.IHasNote>}.
    @ivar begun: The time of its first attempt.
    @ivar becameReady: The time at which it was ready for the first time.
    @ivar waitedFor: The last module for which it waited, and which decided when it
        could start.
    @ivar attempts: Its attempts, in order: the first 5 and the last 20.
    @ivar attemptCount: The number of all its attempts, with the one in progress. The
        log, the metrics, systemd and the status page count attempts in the same way.
    @ivar nextAttempt: The time of the next attempt, if one is scheduled.
    @ivar losses: Its losses: the first 5 and the last 20.
    @ivar lossCount: The number of all its losses.
    @ivar paused: Whether it has a holder. This does not depend on its state.
    @ivar pauses: Its pauses: the first 5 and the last 20.
    @ivar pauseCount: The number of all its pauses.
    @ivar inProgress: The number of its calls in progress that tsrv tracks.
    @ivar closed: The time at which it was closed.
    @ivar closeError: The error of its close(), with its message, in one line.
    """

    name: str
    required: bool
    needs: list[str]
    after: list[str]
    restartWith: list[str]
    lazy: bool
    status: str
    ready: bool
    since: float | None
    reason: str | None
    note: str | None
    begun: float | None
    becameReady: float | None
    waitedFor: str | None
    attempts: list[AttemptReport]
    attemptCount: int
    nextAttempt: float | None
    losses: list[LossReport]
    lossCount: int
    paused: bool
    pauses: list[PauseReport]
    pauseCount: int
    inProgress: int
    closed: float | None
    closeError: str | None


class Report(TypedDict):
    """
    One program. All times are in seconds since the start-up began, except C{began}.

    @ivar status: The value of its L{Status<tsrv.startup.Status>}.
    @ivar began: The date and time at which the start-up began, in ISO 8601.
    @ivar now: The time of this report.
    @ivar becameReady: The first time at which every required module was ready.
    @ivar criticalPath: The names of the modules that decided C{becameReady}: each of
        them had to wait for the one before it.
    @ivar modules: The modules, in the order in which they were added.
    """

    status: str
    began: str | None
    now: float
    becameReady: float | None
    criticalPath: list[str]
    modules: list[ModuleReport]


MAX_PATH_MODULES: Final = 20  # Maximum length of a critical path in the table.


def describe(report: Report, maxModules: int | None = None) -> str:
    """
    Format a report as a table for people. Optional modules have their status in
    brackets, and modules of the critical path have an asterisk.

    @param report: The report.
    @param maxModules: Maximum number of modules in the table; L{None} for all. Modules
        of the critical path have priority, then modules that are not ready, then the
        slowest ones.
    @return: The table, in several lines.
    """
    modules, path, status = report["modules"], report["criticalPath"], report["status"]
    critical = set(path)
    omitted = 0 if maxModules is None else len(modules) - maxModules
    if omitted > 0:

        def rank(module: ModuleReport) -> tuple[bool, bool, float]:
            isCritical, took = module["name"] in critical, _secondsTaken(module)
            isQuiet = module["ready"] or module["status"] == "lazy"
            return (not isCritical, isQuiet, -(took or 0.0))

        shown = {module["name"] for module in sorted(modules, key=rank)[:maxModules]}
        modules = [module for module in modules if module["name"] in shown]
    if report["becameReady"] is not None:
        after = f"ready after {_seconds(report['becameReady'])}"
        status = after if status == "ready" else f"{status}, {after}"
    rows = [["  module", "status", "began", "ready", "took", "attempts", "waited for"]]
    rows += [_rowOf(module, module["name"] in critical) for module in modules]
    lines = [status, *_aligned(rows)]
    if omitted > 0:
        lines.append(f"  and {omitted} more")
    if len(path) > MAX_PATH_MODULES:
        path = ["…", *path[-MAX_PATH_MODULES:]]
    if path:
        lines.append(f"* critical path: {' → '.join(path)}")
    return "\n".join(lines)


def _rowOf(module: ModuleReport, isCritical: bool) -> list[str]:
    status = "ready" if module["ready"] else module["status"]
    return [
        f"{'*' if isCritical else ' '} {module['name']}",
        status if module["required"] else f"({status})",
        _seconds(module["begun"]),
        _seconds(module["becameReady"]),
        _seconds(_secondsTaken(module)),
        str(module["attemptCount"]),
        module["waitedFor"] or "",
    ]


def _secondsTaken(module: ModuleReport) -> float | None:
    if module["begun"] is None or module["becameReady"] is None:
        return None
    return module["becameReady"] - module["begun"]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
