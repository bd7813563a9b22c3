"""
The health of a program, for operators and their tools: whether the program is alive,
whether it is ready, and the report of its start-up.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from operator import itemgetter
from typing import Final

from twisted.web.server import Request

from ..starting.report import ModuleReport, Report
from ..startup import Startup
from .problems import HTTPError, retryAfter
from .responses import AsyncResource, Response, text

__all__ = ["Live", "Ready", "StartupPage", "hideMessages", "missingSince"]

NOT_CACHED: Final = [(b"Cache-Control", b"no-store")]

MAX_LISTED_MODULES: Final = 100
"""
Maximum number of missing modules in the list of an error.
"""

MAX_NAMED_MODULES: Final = 3
"""
Maximum number of missing modules in the message of the error.
"""


class Live(AsyncResource):
    """
    C{/livez}: responds with 200 while the reactor runs. The response does not depend
    on modules, because restarting the process does not repair a module that hangs.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Response:
        """
        Report that the process is alive.
        """
        return text("alive\n", headers=NOT_CACHED)


class Ready(AsyncResource):
    """
    C{/readyz}: responds with 200 while every required module is ready and the program
    is not stopping; otherwise with 503, C{Retry-After}, and the missing modules: their
    names, the reasons, and for how many seconds they have been missing.
    """

    isLeaf = True

    def __init__(self, startup: Startup) -> None:
        """
        @param startup: The modules.
        """
        super().__init__()
        self._startup = startup

    def render_GET(self, request: Request) -> Response:
        """
        Report that the program is ready.

        @raise HTTPError: Modules are missing, or the program is stopping.
        """
        startup, status = self._startup, self._startup.status.value
        if startup.ready:
            return text(f"{status}\n", headers=NOT_CACHED)
        names = startup.missing()
        listed = names[:MAX_LISTED_MODULES]
        now = startup.elapsed
        missing = [_missing(startup.reportModule(each), now) for each in listed]
        reasons = [
            f"{each['module']} ({each['reason']})"
            for each in missing[:MAX_NAMED_MODULES]
        ]
        if len(names) > len(reasons):
            reasons.append(f"{len(names) - len(reasons)} more")
        message = f"{status}: {', '.join(reasons)}" if reasons else status
        waits = [startup.wrappers[each].retryAfter() or 0.0 for each in listed]
        headers = [*NOT_CACHED, retryAfter(max(waits, default=None))]
        error = HTTPError(
            message, HTTPStatus.SERVICE_UNAVAILABLE, headers, text=f"{message}\n"
        )
        error.members = {"state": status, "missing": missing}
        raise error


def _missing(module: ModuleReport, now: float) -> dict[str, object]:
    return {
        "module": module["name"],
        "state": module["status"],
        "reason": module["reason"],
        "seconds": round(now - missingSince(module), 3),
    }


def missingSince(module: ModuleReport) -> float:
    """
    Find the beginning of the time in which a module is not ready.

    @param module: The report of a module that is not ready.
    @return: Seconds after the beginning of the start-up.
    """
    became, since = module["becameReady"], module["since"]
    if since is None:
        return 0.0
    episodes = [(each["lost"], each["recovered"]) for each in module["losses"]]
    episodes += [(each["begun"], each["ended"]) for each in module["pauses"]]
    # Pauses and losses of a module may overlap.
    for begun, ended in sorted(episodes, key=itemgetter(0), reverse=True):
        if ended is None or ended >= since:
            since = min(since, begun)
    wasReady = became is not None and became <= since
    # A lazy module is not missing before its first call.
    return since if wasReady or module["lazy"] else 0.0


class StartupPage(AsyncResource):
    """
    C{/startup}: the report of the start-up, as JSON.
    """

    isLeaf = True

    def __init__(self, startup: Startup, showErrors: bool = False) -> None:
        """
        @param startup: The modules.
        @param showErrors: Whether to show the messages of errors, and not only their
            types. The public must not see messages, which may contain secrets.
        """
        super().__init__()
        self._startup = startup
        self._showErrors = showErrors

    def render_GET(self, request: Request) -> Response:
        """
        Send the report.
        """
        report = self._startup.report()
        if not self._showErrors:
            hideMessages(report)
        body = json.dumps(report, indent=1, ensure_ascii=False)
        content = body.encode("utf-8", "backslashreplace")
        return Response(content, b"application/json", headers=NOT_CACHED)


def hideMessages(report: Report) -> None:
    """
    Remove the messages of errors from a report, but keep the types of errors.

    @param report: The report, which is changed in place.
    """
    for module in report["modules"]:
        module["closeError"] = None
        for attempt in module["attempts"]:
            attempt["error"] = None
        for loss in module["losses"]:
            loss["error"] = None
