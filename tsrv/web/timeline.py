"""
What of a program is drawn over time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from ..starting.report import (
    ModuleReport,
    Report,
)
from .cells import (
    Bar,
    Piece,
    Tick,
    Window,
)

__all__ = ["barOf", "duration", "storyOf", "ticksOf", "windowOf"]

_FAR: Final = 1e7
"""
Where something ends that has not ended, in seconds: four months.
"""

_BEFORE: Final = 5.0
"""
How much is shown of the time before a loss, in seconds.
"""

_APART: Final = 10.0
"""
Losses with less than this between them are shown together, in seconds.
"""

_MOST_TICKS: Final = 6

_STEPS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400),
)
"""
What may be between two ticks of the axis, in seconds.
"""

_ENDS: Final = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50),
    *(60, 75, 90, 120, 150, 180, 240, 300, 420, 600, 900, 1200, 1800, 2700, 3600),
)
"""
Where a window may end while it is growing, in seconds. Those after the last
one are twice as long as the one before.
"""

_UNSETTLED: Final = frozenset(
    {"waiting", "initializing", "retrying", "draining", "lost"}
)
"""
What the status of a module will not be for ever.
"""

_RESTING: Final = frozenset({"new", "stopped"})
"""
Statuses of a program in which nothing becomes of its modules.
"""

_ENDED: Final = frozenset({"skipped", "failed", "closing", "closed"})
"""
What a module that is one of these was before, it is not any more.
"""


def windowOf(report: Report) -> Window:
    """
    Show the start-up, from its beginning until all is settled; and after that
    the last time at which something was lost.
    """
    growing = report["status"] not in _RESTING and any(
        module["status"] in _UNSETTLED for module in report["modules"]
    )
    episode = _lastEpisode(report)
    if episode is None:
        end = (
            _endAfter(report["now"])
            if growing
            else max(0.1, round(1.08 * _lastEvent(report), 3))
        )
        return Window(0.0, 0.0, end, growing, "Timeline of the start-up")
    lost, healed, names = episode
    begin = -min(_BEFORE, round(lost, 3))
    end = (
        _endAfter(report["now"] - lost)
        if growing
        else round(1.25 * (healed - lost) + 1, 3)
    )
    return Window(
        lost,
        begin,
        end,
        growing,
        f"Timeline since the loss of {', '.join(names)}, "
        f"{duration(lost)} after the start",
    )


def _lastEpisode(report: Report) -> tuple[float, float, list[str]] | None:
    """
    @return: From when to when something was lost the last time after the
        program had been ready, and what; L{None} if nothing has been.
    """
    if report["becameReady"] is None:
        return None
    losses = [
        (loss["lost"], loss["recovered"], module["name"])
        for module in report["modules"]
        for loss in module["losses"]
        if loss["lost"] >= report["becameReady"]
    ]
    if not losses:
        return None
    losses.sort(key=lambda loss: loss[0])
    begun = until = -_FAR
    names: list[str] = []
    for lost, healed, name in losses:
        if lost - until >= _APART:
            begun, names = lost, []
        if name not in names:
            names.append(name)
        until = max(until, report["now"] if healed is None else healed)
    return begun, until, names


def _lastEvent(report: Report) -> float:
    """
    @return: When the last thing happened that belongs to a start-up.
    """
    times = [0.0]
    for module in report["modules"]:
        for attempt in module["attempts"]:
            times += [attempt["begun"], attempt["ended"] or 0.0]
        times += [loss["recovered"] or loss["lost"] for loss in module["losses"]]
        times.append(module["becameReady"] or 0.0)
    return max(times)


def _endAfter(now: float) -> float:
    """
    @return: Where a window ends that grows, and has grown up to now.
    """
    for end in _ENDS:
        if now < end:
            return float(end)
    last = float(_ENDS[-1])
    while last <= now:
        last *= 2
    return last


def ticksOf(window: Window) -> list[Tick]:
    """
    Return the labels of the axis.
    """
    length = window.end - window.begin
    step = float(_STEPS[-1])
    for each in _STEPS:
        if length / each <= _MOST_TICKS:
            step = float(each)
            break
    while length / step > _MOST_TICKS:
        step *= 2
    ticks = []
    number = -int(-window.begin // step)
    while number * step <= window.end:
        seconds = number * step
        at = round(100 * (seconds - window.begin) / length, 2)
        ticks.append(Tick(at, _label(seconds, step)))
        number += 1
    return ticks


def _label(seconds: float, step: float) -> str:
    """
    @return: What is written at a tick.
    """
    if step < 60:
        return f"{seconds:.6g} s"
    if step < 3600:
        return f"{seconds / 60:.6g} min"
    return f"{seconds / 3600:.6g} h"


# The bars.


def barOf(module: ModuleReport, window: Window, critical: bool) -> Bar:
    """
    Return the bar of a module.
    """
    pieces = []
    for kind, start, end in _stretchesOf(module):
        piece = _pieceOf(kind, start, end, window)
        if piece is not None:
            pieces.append(piece)
    failures = tuple(
        round(attempt["ended"] - window.origin, 3)
        for attempt in module["attempts"]
        if attempt["ended"] is not None
        and attempt["kind"] is not None
        and window.begin <= attempt["ended"] - window.origin <= window.end
    )
    held = None
    if critical and module["begun"] is not None:
        held = _pieceOf("critical", module["begun"], module["becameReady"], window)
    return Bar(tuple(pieces), failures, held)


def _pieceOf(
    kind: str, start: float, end: float | None, window: Window
) -> Piece | None:
    """
    @return: A piece of a bar, as far as it can be seen.
    """
    first = max(start - window.origin, window.begin)
    last = _FAR if end is None else end - window.origin
    if not window.growing:
        last = min(last, window.end)
    if last < first or last < window.begin:
        return None
    return Piece(kind, round(first, 3), round(last - first, 3))


def _stretchesOf(
    module: ModuleReport,
) -> list[tuple[str, float, float | None]]:
    """
    @return: What a module was, from when, and until when; what overlaps is to
        be drawn in this order.
    """
    status, since = module["status"], module["since"]
    if since is None:
        return []
    end = since if status in _ENDED else None
    if module["closed"] is not None:
        end = module["closed"] if end is None else min(end, module["closed"])
    stretches: list[tuple[str, float, float | None]] = []
    begun = module["begun"]
    if begun != 0:
        # What was never begun has been waiting, for as long as it was not ended.
        stretches.append(("waiting", 0.0, end if begun is None else begun))
    ready = module["becameReady"]
    for loss in module["losses"]:
        if ready is not None:
            stretches.append(("ready", ready, loss["lost"]))
        ready = loss["recovered"]
        stretches.append(("lost", loss["lost"], end if ready is None else ready))
    if ready is not None:
        stretches.append(("ready", ready, end))
    attempts = module["attempts"]
    for attempt, following in pairwise(attempts):
        if attempt["ended"] is not None and attempt["kind"] is not None:
            stretches.append(("delay", attempt["ended"], following["begun"]))
    for attempt in attempts:
        ended = end if attempt["ended"] is None else attempt["ended"]
        stretches.append(("attempt", attempt["begun"], ended))
    last = attempts[-1] if attempts else None
    if last is not None and last["kind"] is not None and last["ended"] is not None:
        # Until the next one, of which nothing is known yet.
        stretches.append(("delay", last["ended"], end))
    if end is not None and status in ("failed", "skipped"):
        stretches.append(("ended", end, None))
    return stretches


def storyOf(module: ModuleReport) -> list[str]:
    """
    @return: What the bar of a module shows, in sentences.
    """
    begun, ready = module["begun"], module["becameReady"]
    waitedFor = module["waitedFor"]
    story = []
    if begun is None:
        story.append("Not begun." if module["since"] is None else "Has been waiting.")
    elif waitedFor is not None:
        story.append(f"Waited {duration(begun)} for {waitedFor}.")
    else:
        story.append(f"Begun {duration(begun)} after the start.")
    kinds = [each["kind"] for each in module["attempts"] if each["kind"] is not None]
    if kinds:
        tried = module["attemptCount"]
        attempts = "1 attempt" if tried == 1 else f"{tried} attempts"
        story.append(f"{attempts}; the last failure was {kinds[-1]}.")
    if ready is not None:
        story.append(f"Became ready {duration(ready)} after the start.")
    if module["losses"]:
        last = module["losses"][-1]
        times = "once" if module["lossCount"] == 1 else f"{module['lossCount']} times"
        story.append(f"Lost {times}, at last {duration(last['lost'])} after the start")
        if last["recovered"] is None:
            story[-1] += "."
        else:
            story[-1] += f", and ready again {duration(last['recovered'])} after it."
    return story


def duration(seconds: float) -> str:
    """
    @return: How long something took, for people.
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
