"""
The status page: the modules of a program, for people.

How it works
============

One template makes the page, which is complete without JavaScript. The changing part,
the I{fragment}, has its own address: the script of the page fetches the fragment once a
second and inserts the differences. If the fragment has not changed, the response has no
body (304).

A request renders the page, but at most once a second, and less often with very many
modules: all requests in between get the same bytes. Without requests, the page costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from platform import python_version
from time import thread_time
from typing import Any, Final
from urllib.parse import quote

from twisted.web.server import Request

from twisted import __version__ as twistedVersion

from .. import __version__
from ..asyncmodule import ReactorTime, timeOfDay
from ..extras import needs
from ..queuing.states import HEALTHY_STATES, State
from ..starting.report import ModuleReport, Report
from ..startup import Startup
from .content import entityTagOf, withETag
from .health import hideMessages
from .modules import OPERATOR, Modules
from .origin import Proxies
from .overview import (
    TROUBLES,
    factsOf,
    headlineOf,
    historyOf,
    rank,
    reasonOf,
    situationOf,
)
from .responses import AsyncResource, Response, text
from .timeline import Window, brief, duration, piecesOf, windowOf

with needs("server"):
    from jinja2 import Environment, StrictUndefined

__all__ = ["Status"]

RENDERING_SECONDS: Final = 1.0
"""
Minimum time for which all clients get the same rendering, in seconds.
"""

RENDERING_SHARE: Final = 0.1
"""
Maximum share of the reactor's time for rendering.
"""

MAX_MODULES: Final = 200
"""
Maximum number of modules on the page: rendering more would block the reactor.
"""

CALM: Final = len(TROUBLES)
"""
The first rank of modules that need no attention.
"""

MAX_HISTORY_EVENTS: Final = 10

VERSIONS: Final = (
    f"tsrv {__version__}, Twisted {twistedVersion}, Python {python_version()}"
)

SECURITY_HEADERS: Final = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; "
        b"connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"X-Content-Type-Options", b"nosniff"),
    # With no-referrer, the forms of the page would be sent without their origin.
    (b"Referrer-Policy", b"same-origin"),
)

HTML: Final = b"text/html; charset=utf-8"

RESETTABLE: Final = (*HEALTHY_STATES, State.INITIALIZING, State.RETRYING, State.LOST)
"""
States in which a module may be reset.
"""

FILES: Final = {
    "status.css": b"text/css; charset=utf-8",
    "status.js": b"text/javascript; charset=utf-8",
    "status.svg": b"image/svg+xml",
}
"""
The files that the page uses, and their media types.
"""

FRAGMENT_MARK: Final = "<!-- fragment -->"
"""
The text before and after the fragment in the template.
"""


class Status(AsyncResource):
    """
    A resource with the page, and its files below it. Mount it at any path.
    """

    def __init__(
        self,
        startup: Startup,
        reactor: ReactorTime,
        *,
        links: Sequence[tuple[str, str]] = (),
        showErrors: bool = False,
        controls: bool = False,
        proxies: Proxies | None = None,
        name: str = "tsrv",
        version: str = "",
    ) -> None:
        """
        @param startup: The modules.
        @param reactor: Provides the time.
        @param links: The address and the name of each page that this page links to.
            Relative addresses start at this page.
        @param showErrors: Whether to show the messages of errors, and not only their
            types. The public must not see messages, which may contain secrets.
        @param controls: Whether the page has buttons that pause, resume and reset
            modules, see L{Modules}. If so, only operators may reach the page.
        @param proxies: The trusted proxies, by default none.
        @param name: The name of the program.
        @param version: The version of the program, if it has one.
        """
        super().__init__()
        page = _Page(startup, reactor, links, showErrors, controls, name, version)
        # The address of the page ends with a slash.
        self._put("", HTML, lambda: page.current()[0], b"no-store")
        self._put("status", HTML, lambda: page.current()[1], b"no-store")
        for file, contentType in FILES.items():
            self._putFile(file, contentType)
        if controls:
            self.putChild(b"modules", Modules(startup, reactor, proxies, page.forget))

    def _putFile(self, file: str, contentType: bytes) -> None:
        body = _Body(_read(file))
        self._put(file, contentType, lambda: body, b"no-cache")

    def _put(
        self, path: str, contentType: bytes, read: Callable[[], _Body], caching: bytes
    ) -> None:
        self.putChild(path.encode("ascii"), _Served(read, contentType, caching))

    def render_GET(self, request: Request) -> Response:
        """
        Redirect to the same address with a slash, to which the page's links are
        relative.
        """
        location = (b"Location", b"./%s/" % request.path.rpartition(b"/")[2])
        return text("", HTTPStatus.TEMPORARY_REDIRECT, [location])


class _Body:
    """
    The body of a response, and its entity tag.
    """

    def __init__(self, text: str) -> None:
        self.content = text.encode("utf-8", "backslashreplace")
        self.tag = entityTagOf(self.content)


class _Served(AsyncResource):
    """
    A resource that sends its body only to clients that do not have it.
    """

    def __init__(
        self, read: Callable[[], _Body], contentType: bytes, cacheControl: bytes
    ) -> None:
        super().__init__()
        self._read = read
        self._contentType = contentType
        self._headers = [*SECURITY_HEADERS, (b"Cache-Control", cacheControl)]

    def render_GET(self, request: Request) -> Response:
        """
        Send the body, or 304 if the client has it.
        """
        body = self._read()
        response = Response(body.content, self._contentType, headers=self._headers)
        return withETag(request, body.tag, response)


class _Page:
    """
    The page, the same for all clients, rendered at most once a second.
    """

    def __init__(
        self,
        startup: Startup,
        reactor: ReactorTime,
        links: Sequence[tuple[str, str]],
        showErrors: bool,
        controls: bool,
        name: str,
        version: str,
    ) -> None:
        self._startup = startup
        self._reactor = reactor
        self._links = links
        self._showErrors = showErrors
        self._controls = controls
        self._name = name
        self._version = version
        env = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True)
        env.filters |= {"duration": duration, "brief": brief}
        self._template = env.from_string(_read("status.html"))
        self._renderedAt = float("-inf")
        self._seconds = RENDERING_SECONDS
        self._rendered = _Body(""), _Body("")

    def current(self) -> tuple[_Body, _Body]:
        """
        @return: The page and the fragment.
        """
        now = self._reactor.seconds()
        if not 0 <= now - self._renderedAt < self._seconds:
            begun = thread_time()
            self._rendered = self._render()
            self._renderedAt = now
            taken = thread_time() - begun
            self._seconds = max(RENDERING_SECONDS, taken / RENDERING_SHARE)
        return self._rendered

    def forget(self) -> None:
        """
        Render the page again for the next request.
        """
        self._renderedAt = float("-inf")

    def _render(self) -> tuple[_Body, _Body]:
        report = self._startup.report()
        if not self._showErrors:
            hideMessages(report)
        wrappers = self._startup.wrappers
        ages = [each.oldest for each in wrappers.values()]
        window = windowOf(report)
        modules = sorted(report["modules"], key=rank)[:MAX_MODULES]
        if len(modules) == len(report["modules"]):
            # Modules that need no attention keep their places.
            modules = sorted(report["modules"], key=lambda m: min(rank(m), CALM))
        missing = [wrappers[name] for name in self._startup.missing()]
        waits = [(w.retryAfter(), w.state is State.INITIALIZING) for w in missing]
        html = self._template.render(
            report=report,
            headline=headlineOf(report),
            situation=situationOf(report, waits),
            facts=list(factsOf(report)),
            queued=sum(each.pending for each in wrappers.values()),
            oldest=max((age for age in ages if age is not None), default=None),
            inProgress=sum(each.inProgress for each in wrappers.values()),
            window=window,
            rows=[self._row(each, report, window) for each in modules],
            links=self._links,
            name=self._name,
            version=self._version,
            versions=VERSIONS,
            time=datetime.fromtimestamp(timeOfDay(self._reactor), UTC),
        )
        head, fragment, foot = html.split(FRAGMENT_MARK)
        return _Body(f"{head}{fragment}{foot}"), _Body(fragment)

    def _row(self, module: ModuleReport, report: Report, window: Window) -> Any:
        name, status = module["name"], module["status"]
        wrapper, critical = self._startup.wrappers[name], name in report["criticalPath"]
        now, due = report["now"], module["nextAttempt"]
        # Before the start, the times of events have no origin.
        hasBegun = report["began"] is not None
        history = historyOf(module) if hasBegun else []
        errors = [error for _, _, error in history if error]
        # A paused module works, so its last error is not the reason.
        isWorking = module["ready"] or status == "paused"
        state = "not started" if status == "new" else status
        held = "calls held" if module["paused"] else ""
        if wrapper.isPausedBy(OPERATOR):
            held += f" by {OPERATOR}"
        if held and hasBegun:
            held += f" for {brief(now - module['pauses'][-1]['begun'])}"
        isAttempting = status == "initializing"
        return {
            **module,
            "needs": [n for n in module["needs"] if n not in module["restartWith"]],
            "critical": critical,
            "attention": TROUBLES[rank(module)] if rank(module) < CALM else "",
            "state": state,
            "why": reasonOf(
                module, state, errors[-1] if errors and not isWorking else None
            ),
            "secondsLeft": wrapper.retryAfter() if isAttempting else None,
            "secondsToRetry": None if due is None else max(0.0, due - now),
            "held": held,
            "actions": self._actionsFor(module) if self._controls else [],
            "path": quote(name, safe=""),
            "queued": wrapper.pending,
            "limit": wrapper.limit,
            "oldest": wrapper.oldest,
            "history": history[-MAX_HISTORY_EVENTS:],
            "pieces": piecesOf(module, window, critical),
        }

    def _actionsFor(self, module: ModuleReport) -> list[str]:
        status, wrapper = module["status"], self._startup.wrappers[module["name"]]
        if status in ("closing", "closed"):
            return []
        pausing = "resume" if wrapper.isPausedBy(OPERATOR) else "pause"
        return [pausing, "reset"] if wrapper.state in RESETTABLE else [pausing]


def _read(name: str) -> str:
    return (files(__package__) / "static" / name).read_text("utf-8")
