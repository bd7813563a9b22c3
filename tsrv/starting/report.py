"""
What became of the modules of a program, as data and as a table for people.

All times are seconds after the start-up began.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TypedDict

__all__ = [
    "AttemptReport",
    "LossReport",
    "ModuleReport",
    "Report",
    "describe",
    "isoTime",
    "rounded",
]


class AttemptReport(TypedDict):
    """
    One attempt to initialise a module.

    @ivar begun: When it began.
    @ivar ended: When it ended; L{None} while it is in progress.
    @ivar kind: The type of its error; L{None} if there was none (yet).
    @ivar error: That error, in the words of the module.
    """

    begun: float
    ended: float | None
    kind: str | None
    error: str | None


class LossReport(TypedDict):
    """
    One time at which a module was ready no longer.

    @ivar lost: When it was lost.
    @ivar healed: When it was ready again; L{None} if it has not been.
    @ivar kind: The type of the error that it was lost with, if there was one.
    @ivar error: That error, in the words of the module.
    """

    lost: float
    healed: float | None
    kind: str | None
    error: str | None


class ModuleReport(TypedDict):
    """
    One module.

    @ivar name: What it was added as.
    @ivar required: Whether the program is not ready without it.
    @ivar needs: The modules that have to be ready before it is initialised.
    @ivar status: The value of its L{State<tsrv.State>}; or C{"waiting"}, for
        those modules, or C{"skipped"}, because of one of them.
    @ivar ready: Whether it is ready now.
    @ivar since: When its status became what it is; L{None} before the start.
    @ivar reason: Why it is not ready, in a few words that tell nothing of the
        inside of any module; L{None} if it is.
    @ivar note: What there is to know of it although it is ready.
    @ivar begun: When its initialisation began, if it has.
    @ivar becameReady: When it was ready for the first time, if it has been.
    @ivar waitedFor: Which of C{needs} was ready last, and so decided when this
        one could begin.
    @ivar attempts: The attempts to initialise it, in order. Of many, some in
        the middle are left out.
    @ivar attemptCount: How many there were.
    @ivar nextAttempt: When the next one is going to begin, if it is known.
    @ivar losses: The times at which it was lost, in order. Of many, some in the
        middle are left out.
    @ivar lossCount: How many there were.
    @ivar closed: When it was closed, if it has been.
    @ivar closeError: What its closing failed with, in its own words.
    """

    name: str
    required: bool
    needs: list[str]
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
    closed: float | None
    closeError: str | None


class Report(TypedDict):
    """
    A whole program.

    @ivar status: The value of its L{Status<tsrv.startup.Status>}.
    @ivar began: The time at which the start-up began, as ISO 8601 has it; it is
        L{None} if it has not.
    @ivar now: When this report was made.
    @ivar becameReady: When every required module was ready for the first time.
    @ivar criticalPath: The names of the modules that decided when that was:
        each could not begin before the one in front of it was ready.
    @ivar modules: The modules, in the order in which they were added.
    """

    status: str
    began: str | None
    now: float
    becameReady: float | None
    criticalPath: list[str]
    modules: list[ModuleReport]


def rounded(seconds: float | None) -> float | None:
    """
    @return: A time without the digits that mean nothing.
    """
    return None if seconds is None else round(seconds, 6)


def isoTime(seconds: float) -> str:
    """
    @param seconds: A time, by a reactor's clock.
    @return: It as ISO 8601 has it, for UTC.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


_LONGEST: Final = 20
"""
How many modules of a critical path are named.
"""

_HEADINGS: Final = ("module", "status", "began", "ready", "took", "tries", "waited for")


def describe(report: Report, most: int | None = None) -> str:
    """
    @param report: A report.
    @param most: How many modules to list, if there are more: before others
        those on the critical path, then those that are not ready, then those
        that took longest; L{None} for all.
    @return: It as a short table for people. What is optional is in brackets.
    """
    critical = set(report["criticalPath"])
    modules = report["modules"]
    left = 0 if most is None else len(modules) - most
    if left > 0:
        first = sorted(
            modules,
            key=lambda module: (
                module["name"] not in critical,
                module["ready"],
                -(_taken(module) or 0.0),
            ),
        )[:most]
        shown = {module["name"] for module in first}
        modules = [module for module in modules if module["name"] in shown]
    rows = [
        (
            f"{'*' if module['name'] in critical else ' '} {module['name']}",
            _status(module),
            _seconds(module["begun"]),
            _seconds(module["becameReady"]),
            _seconds(_taken(module)),
            str(module["attemptCount"]),
            module["waitedFor"] or "",
        )
        for module in modules
    ]
    ready = report["becameReady"]
    status = report["status"]
    if ready is not None:
        after = f"ready after {_seconds(ready)}"
        status = after if status == "ready" else f"{status}, {after}"
    lines = [status, *_columns([(f"  {_HEADINGS[0]}", *_HEADINGS[1:]), *rows])]
    if left > 0:
        lines.append(f"  and {left} more")
    if critical:
        lines.append(f"* {_chain(report['criticalPath'])}")
    return "\n".join(lines)


def _chain(path: Sequence[str]) -> str:
    """
    @return: The critical path; of a long one, its end, which is what was waited
        for last.
    """
    shown = path if len(path) <= _LONGEST else ["…", *path[-_LONGEST:]]
    return f"critical path: {' → '.join(shown)}"


def _status(module: ModuleReport) -> str:
    """
    @return: The status, in brackets if it is not that of a required module.
    """
    status = "ready" if module["ready"] else module["status"]
    return status if module["required"] else f"({status})"


def _taken(module: ModuleReport) -> float | None:
    if module["begun"] is None or module["becameReady"] is None:
        return None
    return module["becameReady"] - module["begun"]


def _seconds(seconds: float | None) -> str:
    # A tenth of a millisecond is for who measures something else.
    return "-" if seconds is None else f"{seconds:.3f} s"


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """
    Put rows of cells under each other.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
