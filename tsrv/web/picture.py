"""
What the status page shows of a program, as plain data.

How it works
============

A L{Picture} is made of cells, each of which has a name by which the page knows
it. Two cells that are equal look the same, so that to compare two pictures is
to know what has to be sent to who watches.

That is why nothing in a cell changes only because time goes by. What goes on
is drawn without an end, far beyond what can be seen, and the L{Window} says up
to where it is to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..starting.report import (
    AttemptReport,
    LossReport,
    ModuleReport,
    Report,
)
from .cells import (
    CURVE,
    Axis,
    Cell,
    Curve,
    Facts,
    Headline,
    Held,
    Name,
    Path,
    Picture,
    Queue,
    Sample,
    Standing,
    Story,
)
from .timeline import (
    barOf,
    duration,
    storyOf,
    ticksOf,
    windowOf,
)

__all__ = ["draw", "drawCurves", "drawQueues"]

_SENTENCES: Final = {
    "new": "Not started yet",
    "starting": "Starting",
    "ready": "Ready",
    "degraded": "Ready, but without all of its optional modules",
    "unready": "Not ready: a required module was lost",
    "failed": "The start-up failed",
    "stopping": "Stopping",
    "stopped": "Stopped",
}


def draw(report: Report, *, showErrors: bool = False) -> Picture:
    """
    @param report: What became of a program.
    @param showErrors: Whether to show errors in their own words.
    @return: What is to be seen of it.
    """
    modules = report["modules"]
    window = windowOf(report)
    critical = set(report["criticalPath"])
    cells: dict[str, Cell] = {
        "headline": _headlineOf(report),
        "facts": Facts(sum(module["ready"] for module in modules), len(modules)),
        "path": Path(tuple(report["criticalPath"])),
        "axis": Axis(window.title, tuple(ticksOf(window))),
    }
    for number, module in enumerate(modules):
        name = module["name"]
        isCritical = name in critical
        cells[f"m{number}-name"] = Name(
            name, module["required"], tuple(module["needs"]), isCritical
        )
        cells[f"m{number}-standing"] = _standingOf(module, showErrors)
        cells[f"m{number}-bar"] = barOf(module, window, isCritical)
        cells[f"m{number}-story"] = Story(" ".join(storyOf(module)))
    return Picture(window, tuple(module["name"] for module in modules), cells)


def drawQueues(pending: Sequence[int]) -> dict[str, Cell]:
    """
    @param pending: For each module how many calls are waiting.
    @return: The cells of their queues.
    """
    cells: dict[str, Cell] = {"held": Held(sum(pending))}
    for number, each in enumerate(pending):
        cells[f"m{number}-queue"] = Queue(each)
    return cells


def drawCurves(samples: Sequence[Sequence[Sample]]) -> dict[str, Cell]:
    """
    @param samples: For each module the samples of the last minute.
    @return: The cells of their curves.
    """
    return {f"m{number}-curve": _curveOf(each) for number, each in enumerate(samples)}


def _headlineOf(report: Report) -> Headline:
    status = report["status"]
    sentence = _SENTENCES[status]
    if status == "ready" and report["becameReady"] is not None:
        sentence += f", {duration(report['becameReady'])} after the start"
    return Headline(status, sentence)


def _standingOf(module: ModuleReport, showErrors: bool) -> Standing:
    kind = error = None
    if not module["ready"]:
        last = _lastError(module)
        if last is not None:
            kind = last["kind"]
            error = last["error"] if showErrors else None
    reason = module["reason"]
    if kind is not None and reason is not None and kind in reason:
        kind = None
    return Standing(
        module["status"],
        reason or module["note"],
        kind,
        error,
        module["attemptCount"],
        module["lossCount"],
    )


def _lastError(module: ModuleReport) -> AttemptReport | LossReport | None:
    """
    @return: The last thing that went wrong with a module, if it was an error.
    """
    wrong: list[tuple[float, AttemptReport | LossReport]] = [
        (loss["lost"], loss) for loss in module["losses"] if loss["kind"] is not None
    ]
    for attempt in module["attempts"]:
        if attempt["ended"] is not None and attempt["kind"] is not None:
            wrong.append((attempt["ended"], attempt))
    return max(wrong, key=lambda each: each[0])[1] if wrong else None


def _curveOf(samples: Sequence[Sample]) -> Curve:
    first = CURVE - len(samples)
    most = max((pending for pending, _ in samples), default=0)
    line = [f"M{first} {_height(0, most)}"] if most else [f"M0 {_height(0, 0)}"]
    bands: list[tuple[int, int]] = []
    height = _height(0, most)
    for place, (pending, ready) in enumerate(samples, first):
        wanted = _height(pending, most)
        if wanted != height:
            line.append(f"H{place}V{wanted}")
            height = wanted
        if not ready:
            if bands and sum(bands[-1]) == place:
                bands[-1] = (bands[-1][0], bands[-1][1] + 1)
            else:
                bands.append((place, 1))
    line.append(f"H{CURVE}")
    return Curve("".join(line), tuple(bands), most)


def _height(pending: int, most: int) -> str:
    """
    @return: Where a number is drawn; zero is at the bottom.
    """
    return f"{19 - (18 * pending / most if most else 0):.4g}"
