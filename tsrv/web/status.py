"""
The status page, for people: what becomes of the modules of a program, live.

The page is complete as it is sent; its script does nothing but put in what the
stream of events brings. All of it is rendered here.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, Protocol

from jinja2 import Environment, FunctionLoader, StrictUndefined
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import CACHED, datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import Request

from ..starting.report import Report
from ..wrapper import State
from .cells import (
    CURVE,
    Cell,
    Headline,
    Picture,
    Sample,
    Window,
)
from .picture import (
    draw,
    drawCurves,
    drawQueues,
)
from .responses import (
    AsyncResource,
    NotFoundResource,
    Response,
)
from .viewers import (
    Stream,
    Viewers,
    eventOf,
)

__all__ = ["Program", "StatusPage", "putStatus"]

_SECURITY: Final = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; "
        b"connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)

_FRESH: Final = 0.25
"""
For how long a page that was rendered is new enough, in seconds.
"""

_FILES: Final = (
    ("status.css", b"text/css; charset=utf-8"),
    ("status.js", b"text/javascript; charset=utf-8"),
    ("status.svg", b"image/svg+xml"),
)
"""
What the page consists of besides itself.
"""


class _Wrapper(Protocol):
    """
    What is asked of a L{QueuingWrapper<tsrv.QueuingWrapper>}.
    """

    @property
    def state(self) -> State:
        """
        Its state.
        """

    @property
    def pending(self) -> int:
        """
        How many calls are waiting.
        """


class Program(Protocol):
    """
    What is asked of a L{Startup<tsrv.startup.Startup>}.
    """

    @property
    def wrappers(self) -> Mapping[str, _Wrapper]:
        """
        The modules by name, in the order of the report.
        """

    def report(self) -> Report:
        """
        @return: What became of them.
        """

    def addObserver(self, observer: Callable[[str], object]) -> None:
        """
        @param observer: What to call when something in the report has changed.
        """

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        """
        @param observer: What to call no more.
        """


def _read(name: str) -> str:
    """
    @return: The text of one of the files beside this module.
    """
    return (files(__package__) / "static" / name).read_text("utf-8")


class _Templates:
    """
    The one way from cells to HTML.
    """

    def __init__(self) -> None:
        environment = Environment(
            loader=FunctionLoader(_read),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._page = environment.get_template("status.html")
        self._live = environment.get_template("live.html")
        self._macros: Any = environment.get_template("cells.html").module

    def cell(self, cell: Cell) -> str:
        """
        @return: One cell.
        """
        macro = getattr(self._macros, type(cell).__name__.lower())
        return str(macro(cell)).strip()

    def live(self, picture: Picture, cells: Mapping[str, Cell], now: float) -> str:
        """
        @param now: The seconds after the start-up began.
        @return: All that changes.
        """
        window = picture.window
        shown = window.shown(now) - window.begin
        return self._live.render(
            names=picture.names,
            cells=cells,
            macros=self._macros,
            begin=window.begin,
            shown=max(shown, 0.001),
            share=round(100 * shown / (window.end - window.begin), 3),
        )

    def page(self, live: str, **context: object) -> str:
        """
        @param live: All that changes.
        @return: The whole page.
        """
        return self._page.render(live=live, **context)


class _Samples:
    """
    The queues during the last minute.

    @ivar count: How many samples have been taken.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._samples: dict[str, deque[Sample]] = {}
        self.count = 0

    def take(self) -> None:
        """
        Take one sample of each queue.
        """
        self.count += 1
        for name, wrapper in self._program.wrappers.items():
            samples = self._samples.get(name)
            if samples is None:
                samples = self._samples[name] = deque(maxlen=CURVE)
            samples.append((wrapper.pending, wrapper.state is State.READY))

    def of(self, name: str) -> Sequence[Sample]:
        """
        @return: Those of one module.
        """
        return self._samples.get(name, ())


class _Look:
    """
    What is to be seen at one time.

    @ivar picture: The picture.
    @ivar cells: Its cells, and those of the queues.
    @ivar zero: When the start-up began, on the reactor's clock.
    """

    def __init__(
        self,
        program: Program,
        samples: _Samples,
        now: float,
        showErrors: bool,
    ) -> None:
        report = program.report()
        self._program = program
        self._samples = samples
        self._count = -1
        self._curves: dict[str, Cell] = {}
        self.zero = now - report["now"]
        self.picture = draw(report, showErrors=showErrors)
        self.cells: dict[str, Cell] = {}
        self.again()

    def again(self) -> None:
        """
        Look at the queues again.
        """
        names = self.picture.names
        if self._count != self._samples.count:
            self._count = self._samples.count
            self._curves = drawCurves([self._samples.of(name) for name in names])
        wrappers = self._program.wrappers
        queues = drawQueues([wrappers[name].pending for name in names])
        self.cells = {**self.picture.cells, **queues, **self._curves}


class _Feed:
    """
    The program, as those see it who watch.
    """

    def __init__(
        self,
        look: Callable[[], _Look],
        program: Program,
        templates: _Templates,
        reactor: IReactorTime,
    ) -> None:
        """
        @param look: Looks at the program.
        """
        self._lookAtAll = look
        self._program = program
        self._templates = templates
        self._reactor = reactor
        self._look: _Look | None = None
        self._changed = False
        self._page: str | None = None

    def begin(self) -> None:
        """
        @see: L{Source.begin<tsrv.web.viewers.Source.begin>}
        """
        self._begun()
        self._program.addObserver(self._observe)

    def end(self) -> None:
        """
        @see: L{Source.end<tsrv.web.viewers.Source.end>}
        """
        self._program.removeObserver(self._observe)
        self._look = self._page = None

    def snapshot(self) -> bytes:
        """
        @see: L{Source.snapshot<tsrv.web.viewers.Source.snapshot>}
        """
        look = self._begun()
        now = self._reactor.seconds() - look.zero
        if self._page is None:
            live = self._templates.live(look.picture, look.cells, now)
            self._page = json.dumps(live)
        time = _timeOf(look.picture.window, now)
        return eventOf("page", f'{{{time}, "html": {self._page}}}')

    def changes(self) -> bytes | None:
        """
        @see: L{Source.changes<tsrv.web.viewers.Source.changes>}
        """
        look = self._begun()
        before, picture = look.cells, look.picture
        now = self._reactor.seconds() - look.zero
        window = picture.window
        if self._changed or (window.growing and now - window.origin >= window.end):
            self._changed = False
            look = self._look = self._lookAtAll()
        else:
            look.again()
        if look.picture.names != picture.names:
            self._page = None
            return self.snapshot()
        changed = {
            name: cell for name, cell in look.cells.items() if before[name] != cell
        }
        if not changed and look.picture.window == window:
            return None
        self._page = None
        return self._tell(look, changed)

    def farewell(self) -> bytes:
        """
        @see: L{Source.farewell<tsrv.web.viewers.Source.farewell>}
        """
        return self._tell(self._begun(), {"headline": Headline("stopping", "Stopping")})

    def _tell(self, look: _Look, cells: Mapping[str, Cell]) -> bytes:
        now = self._reactor.seconds() - look.zero
        time = _timeOf(look.picture.window, now)
        rendered = {name: self._templates.cell(cell) for name, cell in cells.items()}
        return eventOf("cells", f'{{{time}, "cells": {json.dumps(rendered)}}}')

    def _begun(self) -> _Look:
        if self._look is None:
            self._changed = False
            self._look = self._lookAtAll()
        return self._look

    def _observe(self, name: str) -> None:
        self._changed = True


def _timeOf(window: Window, now: float) -> str:
    """
    @return: What is to be seen of the timeline, as members of a JSON object.
    """
    members = {
        "now": round(now - window.origin, 3),
        "window": [window.begin, window.end],
        "growing": window.growing,
    }
    return json.dumps(members)[1:-1]


class _Page(AsyncResource):
    """
    The page.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        """
        @param render: Renders it.
        """
        super().__init__()
        self._render = render

    def render_GET(self, request: Request) -> Response:
        """
        Show what is to be seen now.
        """
        headers = [*_SECURITY, (b"Cache-Control", b"no-store")]
        return Response(self._render(), b"text/html; charset=utf-8", headers=headers)


class _File(AsyncResource):
    """
    Something that the page consists of.
    """

    def __init__(self, body: bytes, contentType: bytes) -> None:
        """
        @param body: Its content.
        @param contentType: The type of that.
        """
        super().__init__()
        self._body = body
        self._contentType = contentType
        self._tag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode("ascii")

    def render_GET(self, request: Request) -> Response:
        """
        Send it to who does not have it.
        """
        cached = request.setETag(self._tag) is CACHED
        headers = [*_SECURITY, (b"Cache-Control", b"no-cache")]
        body = b"" if cached else self._body
        return Response(body, self._contentType, request.code, headers)


class _Below(AsyncResource):
    """
    Where the stream is; there is nothing to be seen of it alone.
    """

    def render(self, request: Request) -> int:
        """
        @see: L{twisted.web.resource.IResource.render}
        """
        return NotFoundResource().render(request)


class StatusPage:
    """
    The status page of a program.

    @ivar viewers: Those who watch it.
    """

    _log = Logger()

    def __init__(
        self,
        program: Program,
        reactor: IReactorTime,
        *,
        links: Sequence[tuple[str, str]] = (),
        showErrors: bool = False,
        most: int = 1000,
    ) -> None:
        """
        @param program: What is shown.
        @param reactor: Provides the time; the program's too.
        @param links: Where else to look: for each page its address and its
            name.
        @param showErrors: Whether to show errors in the words of the modules,
            which is not for everybody.
        @param most: How many may watch at the same time.
        """
        self._program = program
        self._reactor = reactor
        self._links = links
        self._showErrors = showErrors
        self._templates = _Templates()
        self._samples = _Samples(program)
        self._sampling = LoopingCall(self._samples.take)
        self._sampling.clock = reactor
        self._rendered = b""
        self._renderedAt = float("-inf")
        feed = _Feed(self._look, program, self._templates, reactor)
        self.viewers = Viewers(feed, reactor, most=most)

    def start(self) -> None:
        """
        Begin to record the length of the queues, once in a second.
        """
        if not self._sampling.running:
            self._sampling.start(1.0).addErrback(self._broke)

    def stop(self) -> None:
        """
        End the streams at once, so that they keep nobody waiting, and record
        nothing any more.
        """
        if self._sampling.running:
            self._sampling.stop()
        self.viewers.close()

    def put(self, root: Resource) -> None:
        """
        @param root: The root of a site; the page is shown for C{/}.
        """
        below = _Below()
        below.putChild(b"events", Stream(self.viewers))
        root.putChild(b"", _Page(self._render))
        root.putChild(b"status", below)
        for name, contentType in _FILES:
            resource = _File(_read(name).encode(), contentType)
            root.putChild(name.encode("ascii"), resource)

    def _render(self) -> bytes:
        """
        Render the page; or take the one that was rendered a moment ago, so that
        who loads it again and again does not keep the reactor.
        """
        now = self._reactor.seconds()
        if not 0 <= now - self._renderedAt < _FRESH:
            look = self._look()
            live = self._templates.live(look.picture, look.cells, now - look.zero)
            date = datetimeToString(now).decode("ascii")
            page = self._templates.page(live, links=self._links, date=date)
            self._rendered = page.encode()
            self._renderedAt = now
        return self._rendered

    def _look(self) -> _Look:
        now = self._reactor.seconds()
        return _Look(self._program, self._samples, now, self._showErrors)

    def _broke(self, failure: Failure) -> None:
        self._log.failure("The queues are not recorded any more", failure=failure)


def putStatus(
    root: Resource,
    program: Program,
    reactor: IReactorTime,
    *,
    links: Sequence[tuple[str, str]] = (),
    showErrors: bool = False,
    most: int = 1000,
) -> StatusPage:
    """
    Show the status page at the root of a site.

    @param root: The root.
    @param program: What is shown.
    @param reactor: Provides the time; the program's too.
    @param links: Where else to look: for each page its address and its name.
    @param showErrors: Whether to show errors in the words of the modules, which
        is not for everybody.
    @param most: How many may watch at the same time.
    @return: The page, which is to be started and stopped with the server.
    """
    page = StatusPage(program, reactor, links=links, showErrors=showErrors, most=most)
    page.put(root)
    return page
