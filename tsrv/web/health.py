"""
What is to be known of a program by who runs it: whether it is alive, whether it
is ready, and how its start-up went.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Final, Protocol

from twisted.web.server import Request

from ..starting.program import Status
from ..starting.report import (
    ModuleReport,
    Report,
)
from ..wrapper import QueuingWrapper
from .problems import HTTPError
from .responses import (
    AsyncResource,
    Response,
)

__all__ = ["Live", "Ready", "Reported", "StartupPage"]

_UNCACHED: Final = [(b"Cache-Control", b"no-store")]

_MOST: Final = 100
"""
How many of the modules that are missing are listed.
"""


class Reported(Protocol):
    """
    What the pages need of a L{Startup<tsrv.startup.Startup>}.
    """

    @property
    def status(self) -> Status:
        """
        What is to be said of the program.
        """

    @property
    def ready(self) -> bool:
        """
        Whether every required module is ready.
        """

    @property
    def elapsed(self) -> float:
        """
        The seconds since the start-up began.
        """

    @property
    def wrappers(self) -> Mapping[str, QueuingWrapper[Any]]:
        """
        The wrappers of the modules, by their names.
        """

    def missing(self) -> list[str]:
        """
        The names of the required modules that are not ready.
        """

    def report(self) -> Report:
        """
        What has been, and what is.
        """

    def reportModule(self, name: str) -> ModuleReport:
        """
        The same, of one module.
        """


class _NotReady(HTTPError):
    """
    A module is missing, or the program is stopping.
    """

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        # What probes show is this, and nothing beside it.
        self.text = sentence


class Live(AsyncResource):
    """
    C{/livez}: whether the reactor turns. It asks no module: one that hangs is
    not cured by killing the process.
    """

    def render_GET(self, request: Request) -> Response:
        """
        Say so.
        """
        return _line("alive")


class Ready(AsyncResource):
    """
    C{/readyz}: whether every required module is ready, and if not, which one
    is not, why, and for how long.
    """

    def __init__(self, startup: Reported) -> None:
        """
        @param startup: The modules.
        """
        super().__init__()
        self._startup = startup

    def render_GET(self, request: Request) -> Response:
        """
        Say so, or what is missing.
        """
        if self._startup.ready:
            return _line(self._startup.status.value)
        state, now = self._startup.status.value, self._startup.elapsed
        names = self._startup.missing()
        missing = [
            _missing(self._startup.reportModule(name), now) for name in names[:_MOST]
        ]
        reasons = [f"{each['module']} ({each['reason']})" for each in missing[:3]]
        if len(names) > len(reasons):
            reasons.append(f"{len(names) - len(reasons)} more")
        error = _NotReady(f"{state}: {', '.join(reasons)}" if reasons else state)
        error.members = {"state": state, "missing": missing}
        waits = (self._startup.wrappers[name].retryAfter() for name in names[:_MOST])
        longest = max((seconds for seconds in waits if seconds is not None), default=0)
        error.headers = [*_UNCACHED, (b"Retry-After", b"%d" % max(1, ceil(longest)))]
        raise error


def _line(words: str) -> Response:
    return Response(
        f"{words}\n".encode(), b"text/plain; charset=utf-8", headers=_UNCACHED
    )


def _missing(module: ModuleReport, now: float) -> dict[str, object]:
    """
    @return: What to say of a module that is not ready.
    """
    since: float | None = 0.0
    if module["becameReady"] is not None:
        losses = module["losses"]
        lost = bool(losses) and losses[-1]["recovered"] is None
        since = losses[-1]["lost"] if lost else module["since"]
    return {
        "module": module["name"],
        "state": module["status"],
        "reason": module["reason"],
        "seconds": round(now - (since or 0.0), 3),
    }


class StartupPage(AsyncResource):
    """
    C{/startup}: the report, as JSON.
    """

    def __init__(self, startup: Reported, showErrors: bool = False) -> None:
        """
        @param startup: The modules.
        @param showErrors: Whether the messages of errors are shown, and not
            only their types.
        """
        super().__init__()
        self._startup = startup
        self._showErrors = showErrors

    def render_GET(self, request: Request) -> Response:
        """
        Report.
        """
        report = self._startup.report()
        if not self._showErrors:
            hideMessages(report)
        body = json.dumps(report, indent=1, ensure_ascii=False)
        return Response(body.encode(), b"application/json", headers=_UNCACHED)


def hideMessages(report: Report) -> None:
    """
    Remove the messages of errors from a report, so that only their types remain.

    @param report: The report, which is changed.
    """
    for module in report["modules"]:
        module["closeError"] = None
        for attempt in module["attempts"]:
            attempt["error"] = None
        for loss in module["losses"]:
            loss["error"] = None
