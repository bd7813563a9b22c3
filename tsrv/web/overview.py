"""
Describes a report in words, for the status page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Final

from ..starting.report import ModuleReport, Report
from .health import missingSince
from .timeline import brief, duration

__all__ = [
    "TROUBLES",
    "factsOf",
    "headlineOf",
    "historyOf",
    "rank",
    "reasonOf",
    "situationOf",
]

MAX_NAMES_IN_HEADLINE: Final = 3

MAX_PATH_MODULES: Final = 20

HEADLINES: Final = {
    "new": "Not started",
    "starting": "Starting, waiting for {names}",
    "ready": "Ready",
    "degraded": "Ready, but {states}",
    "unready": "Not ready: {states}",
    "failed": "Failed because of {names}",
    "stopping": "Stopping",
    "stopped": "Stopped",
}

TROUBLES: Final = ("failed", "lost", "retrying", "paused")
"""
The statuses that need attention, in the order of their urgency.
"""


def rank(module: ModuleReport) -> int:
    """
    @return: How urgently a module needs attention; 0 is the most urgent. Modules of the
        same rank keep their order.
    """
    status = "lost" if _isLost(module) else module["status"]
    if status in TROUBLES:
        return TROUBLES.index(status)
    return len(TROUBLES) + (module["ready"] or status == "lazy")


def _isLost(module: ModuleReport) -> bool:
    # During the attempts after a loss, the status of the module is not "lost".
    losses = module["losses"]
    isOpen = bool(losses) and losses[-1]["recovered"] is None
    return isOpen and module["status"] not in ("failed", "closing", "closed")


def headlineOf(report: Report) -> str:
    """
    @return: The state of the program, and the modules that are the cause.
    """
    status = report["status"]
    causes = _causesOf(report)
    named = causes[:MAX_NAMES_IN_HEADLINE]
    names, states = [each["name"] for each in named], list(map(_stateOf, named))
    if more := len(causes) - len(named):
        names.append(f"{more} more")
        states.append(f"{more} more")
    return HEADLINES[status].format(names=_listed(names), states=_listed(states))


def _causesOf(report: Report) -> list[ModuleReport]:
    causes = [
        module
        for module in report["modules"]
        if not module["ready"]
        and module["status"] not in ("lazy", "waiting", "skipped")
    ]
    names = {module["name"] for module in causes}
    # If a module restarts with another module, the other one is the cause.
    causes = [each for each in causes if names.isdisjoint(each["restartWith"])]
    if report["status"] == "failed":
        causes = [module for module in causes if module["status"] == "failed"]
    elif report["status"] != "degraded":
        causes = [module for module in causes if module["required"]]
    return causes if report["status"] == "starting" else sorted(causes, key=rank)


def _stateOf(module: ModuleReport) -> str:
    name, status = module["name"], module["status"]
    if _isLost(module):
        return f"{name} is lost"
    if status == "failed":
        return f"{name} has failed"
    return f"{name} is {status}"


def _listed(texts: Sequence[str]) -> str:
    *texts, last = texts or ["its modules"]
    return f"{', '.join(texts)} and {last}" if texts else last


def situationOf(
    report: Report, waits: Sequence[tuple[float | None, bool]]
) -> str | None:
    """
    Describe how long the program has not been ready, and how long that will last.

    @param waits: For each required module that is not ready: the remaining seconds, if
        known, and whether the module will then be ready.
    @return: The description; L{None} unless the program is starting or unready.
    """
    status, now = report["status"], report["now"]
    if status == "starting":
        text = f"starting for {brief(now)}"
    elif status == "unready":
        since = [missingSince(each) for each in _causesOf(report)]
        text = f"not ready for {brief(now - min(since, default=now))}"
    else:
        return None
    known = [seconds for seconds, _ in waits if seconds is not None]
    if not known:
        return text
    isExact = all(isReady and seconds is not None for seconds, isReady in waits)
    about = "about" if isExact else "at least"
    return f"{text}, {about} {brief(max(known))} left"


def factsOf(report: Report) -> Iterator[str]:
    """
    @return: Further facts about the program.
    """
    modules, path = report["modules"], report["criticalPath"]
    ready = sum(module["ready"] for module in modules)
    unused = sum(module["status"] == "lazy" for module in modules)
    noun = "module" if len(modules) == 1 else "modules"
    text = f"{ready} of {len(modules)} {noun} ready"
    yield f"{text}, {unused} not needed yet" if unused else text
    if report["becameReady"] is not None:
        yield f"became ready after {duration(report['becameReady'])}"
    if path:
        shown = path[-MAX_PATH_MODULES:]
        yield "critical path: " + " → ".join(["…"] * (path != shown) + shown)
    ended = [
        (loss["recovered"], loss["lost"], module["name"])
        for module in modules
        for loss in module["losses"][-1:]
        if loss["recovered"] is not None
    ]
    if ended and report["began"] is not None:
        recovered, lost, name = max(ended)
        at = datetime.fromisoformat(report["began"]) + timedelta(seconds=recovered)
        took = duration(recovered - lost)
        yield f"last loss: {name}, for {took} until {at.astimezone(UTC):%F %T} UTC"


def reasonOf(module: ModuleReport, state: str, lastError: str | None) -> str:
    """
    Describe why a module is not ready.

    @param lastError: The last error; the reason may name the type of the error.
    """
    reason = module["reason"] or module["note"] or ""
    if lastError is None:
        return "" if reason == state else reason
    shortened = re.sub(r" \([^()]*\)$", "", reason)
    if shortened == state:
        return lastError
    if shortened == reason:
        return f"{reason}; last error: {lastError}"
    return f"{shortened}: {lastError}"


def historyOf(module: ModuleReport) -> list[tuple[float, str, str | None]]:
    """
    @return: The time, the description and the error of each event of a module.
    """
    events = []
    for attempt in module["attempts"]:
        begun, ended = attempt["begun"], attempt["ended"]
        error = attempt["error"] or attempt["kind"]
        text = "attempt in progress"
        if ended is not None:
            result = f"failed: {error}" if error else "succeeded"
            text = f"attempt {result} after {duration(ended - begun)}"
        events.append((begun, text, error))
    for loss in module["losses"]:
        lost, recovered = loss["lost"], loss["recovered"]
        error = loss["error"] or loss["kind"]
        text = f"lost: {error}" if error else "lost"
        if recovered is not None:
            text += f"; recovered after {duration(recovered - lost)}"
        events.append((lost, text, error))
    for pause in module["pauses"]:
        begun, ended = pause["begun"], pause["ended"]
        text = "paused" if ended is None else f"paused for {duration(ended - begun)}"
        events.append((begun, text, None))
    return sorted(events, key=itemgetter(0))
