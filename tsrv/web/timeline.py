"""
The timeline of the status page: the period that it shows, and the bars of the
modules.

The timeline shows the start-up until all modules have settled. After a later loss,
pause or first call of a lazy module, it shows that event instead, because the start-up
does not matter days later. All times are seconds after the beginning of the start-up;
all positions are percentages of the period.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, floor
from typing import Final

from ..starting.report import ModuleReport, Report

__all__ = ["Window", "brief", "duration", "piecesOf", "windowOf"]

SECONDS_BEFORE_EVENT: Final = 5.0

MAX_TICKS: Final = 6

TICK_SECONDS: Final = (
    *(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200),
    *(86400, 604800, 2592000, 31536000),
)
"""
Possible intervals between two ticks, in seconds.
"""

ENDED: Final = frozenset({"skipped", "failed", "closing", "closed"})
"""
Statuses after which a module makes no further attempt.
"""

SETTLED: Final = ENDED | {"lazy"}
"""
Statuses in which a module may stay for ever without being ready.
"""


@dataclass(frozen=True, slots=True)
class Window:
    """
    The period that the timeline shows.

    @ivar title: The name of the period.
    @ivar origin: The time with the label 0.
    @ivar begin: The beginning of the period.
    @ivar end: The end of the period, which may be in the future.
    @ivar until: The end of the bars that are still growing.
    @ivar tickSeconds: Seconds between two ticks of the axis.
    """

    title: str
    origin: float
    begin: float
    end: float
    until: float
    tickSeconds: float

    def percent(self, seconds: float) -> float:
        """
        @param seconds: A time.
        @return: The position of the time.
        """
        return round(100 * (seconds - self.begin) / (self.end - self.begin), 3)

    def ticks(self) -> list[tuple[float, str]]:
        """
        @return: The position and the label of each tick.
        """
        first = ceil((self.begin - self.origin) / self.tickSeconds)
        last = floor((self.end - self.origin) / self.tickSeconds + 1e-6)
        seconds = [number * self.tickSeconds for number in range(first, last + 1)]
        units = ((60, 1, "s"), (3600, 60, "min"), (float("inf"), 3600, "h"))
        unit, name = next(each[1:] for each in units if self.tickSeconds < each[0])
        return [
            (self.percent(self.origin + each), f"{each / unit:.6g} {name}")
            for each in seconds
        ]


def windowOf(report: Report) -> Window:
    """
    @param report: The report of a start-up.
    @return: The period to show.
    """
    modules, became = report["modules"], report["becameReady"]
    events = [
        event
        for module in modules
        for event in _events(module)
        if became is not None and event[0] >= became
    ]
    title, origin, begin = "Start-up", 0.0, 0.0
    if events:
        ongoing = [event for event in events if event[2] is None]
        origin, text, _ = min(ongoing) if ongoing else max(events)
        title = f"{text}, {duration(origin)} after the start"
        begin = max(0.0, origin - SECONDS_BEFORE_EVENT)
    growing = not all(each["ready"] or each["status"] in SETTLED for each in modules)
    ends = [event[2] or 0.0 for event in events]
    settled = max([origin, *ends, *(module["since"] or 0.0 for module in modules)])
    last = report["now"] if growing else settled
    # When all modules have settled, a margin shows their final statuses.
    length = max(last - begin, 0.1) * (1 if growing else 1.08)
    step = next(each for each in TICK_SECONDS if length / each <= MAX_TICKS)
    end = origin + step * ceil((begin + length - origin) / step)
    return Window(title, origin, begin, end, last if growing else end, step)


def _events(module: ModuleReport) -> Iterator[tuple[float, str, float | None]]:
    """
    @return: The beginning, title and end of events that may be long after the start.
    """
    for loss in module["losses"]:
        yield loss["lost"], f"Loss of {module['name']}", loss["recovered"]
    for pause in module["pauses"]:
        yield pause["begun"], f"Pause of {module['name']}", pause["ended"]
    if module["lazy"] and module["begun"] is not None:
        yield module["begun"], f"First call of {module['name']}", module["becameReady"]


def piecesOf(
    module: ModuleReport, window: Window, critical: bool
) -> list[tuple[str, float, float, str]]:
    """
    @param module: The report of a module.
    @param window: The period to show.
    @param critical: Whether the module is on the critical path.
    @return: The parts of the module's bar, in drawing order: the kind, start, end and
        description of each part.
    """
    stretches = list(_stretches(module))
    if critical and module["begun"] is not None:
        end = module["becameReady"]
        stretches.append(("critical", module["begun"], end, " path"))
    pieces = []
    for kind, start, end, note in stretches:
        visibleStart = max(start, window.begin)
        visibleEnd = window.until if end is None else end
        if visibleStart <= visibleEnd:
            took = f", {duration(end - start)}" if end is not None else ""
            left, right = window.percent(visibleStart), window.percent(visibleEnd)
            pieces.append((kind, left, right, f"{kind}{note}{took}"))
    return pieces


def _stretches(
    module: ModuleReport,
) -> Iterator[tuple[str, float, float | None, str]]:
    """
    @return: The kind, the beginning, the end (L{None} for a part in progress) and a
        note of each part of a module's history.
    """
    status, since = module["status"], module["since"]
    if since is None:
        return
    end = since if status in ENDED else None
    begun = module["begun"]
    if begun != 0:
        # A module without attempts has waited until it was skipped or closed.
        waitedFor = f" for {module['waitedFor']}" if module["waitedFor"] else ""
        isLazy = module["lazy"] and status != "waiting"
        kind, note = ("lazy", "") if isLazy else ("waiting", waitedFor)
        yield kind, 0.0, end if begun is None else begun, note
    ready = module["becameReady"]
    for loss in module["losses"]:
        if ready is not None:
            yield from _readyParts(module, ready, loss["lost"])
        ready = loss["recovered"]
        because = f" ({loss['kind']})" if loss["kind"] else ""
        yield "lost", loss["lost"], end if ready is None else ready, because
    if ready is not None:
        yield from _readyParts(module, ready, end)
    for pause in module["pauses"]:
        begun, ended = pause["begun"], pause["ended"]
        yield "paused", begun, end if ended is None else ended, ""
    attempts = module["attempts"]
    for attempt, following in zip_longest(attempts, attempts[1:]):
        begun, ended = attempt["begun"], attempt["ended"]
        yield "attempt", begun, end if ended is None else ended, ""
        if ended is not None and attempt["kind"] is not None:
            yield "delay", ended, end if following is None else following["begun"], ""
            yield "failure", ended, ended, f": {attempt['kind']}"
    if end is not None and status in ("failed", "skipped"):
        yield "ended", end, None, ""


def _readyParts(
    module: ModuleReport, begin: float, end: float | None
) -> Iterator[tuple[str, float, float | None, str]]:
    """
    @return: The parts between two times during which the module was not paused.
    """
    for pause in module["pauses"]:
        begun, ended = pause["begun"], pause["ended"]
        if end is not None and begun >= end:
            break
        if begun > begin:
            yield "ready", begin, begun, ""
        if ended is None:
            return
        begin = max(begin, ended)
    if end is None or begin < end:
        yield "ready", begin, end, ""


def brief(seconds: float) -> str:
    """
    @param seconds: A duration that is still growing.
    @return: The duration in suitable units, without digits that change too quickly.
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return duration(seconds)


def duration(seconds: float) -> str:
    """
    @param seconds: A duration.
    @return: The duration in suitable units.
    """
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
