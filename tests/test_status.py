"""
The status page shows what becomes of a program, says nothing that is not for
everybody, and changes when the program does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv.starting.report import (
    AttemptReport,
    LossReport,
    ModuleReport,
    Report,
)
from tsrv.startup import Startup
from tsrv.web.cells import (
    Bar,
    Curve,
    Facts,
    Headline,
    Held,
    Name,
    Path,
    Piece,
    Queue,
    Standing,
    Story,
)
from tsrv.web.picture import (
    draw,
    drawCurves,
    drawQueues,
)
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.status import (
    StatusPage,
    putStatus,
)

from .support import Module, Refused, Trouble
from .test_viewers import GET as STREAM
from .test_viewers import eventsOf
from .websupport import Peer, ask

GET = STREAM.replace(b"/events", b"/status/events")

EVIL = "<script>alert(1)</script>&\"'"

HIDDEN = "the password of admin@db.internal is wrong"

OPEN = 1e7


def moduleReport(name: str, **members: Any) -> ModuleReport:
    """
    @return: What a report says of a module that needs nothing.
    """
    module: ModuleReport = {
        "name": name,
        "required": True,
        "needs": [],
        "status": "ready",
        "ready": True,
        "since": 0.0,
        "reason": None,
        "note": None,
        "begun": 0.0,
        "becameReady": None,
        "waitedFor": None,
        "attempts": [],
        "attemptCount": 0,
        "nextAttempt": None,
        "losses": [],
        "lossCount": 0,
        "closed": None,
        "closeError": None,
    }
    cast(Any, module).update(members)
    module["attemptCount"] = len(module["attempts"])
    module["lossCount"] = len(module["losses"])
    return module


def attempt(
    begun: float, ended: float | None, kind: str | None = None
) -> AttemptReport:
    """
    @return: What a report says of an attempt.
    """
    error = None if kind is None else HIDDEN
    return {"begun": begun, "ended": ended, "kind": kind, "error": error}


def loss(lost: float, healed: float | None, kind: str | None = None) -> LossReport:
    """
    @return: What a report says of a loss.
    """
    error = None if kind is None else HIDDEN
    return {"lost": lost, "recovered": healed, "kind": kind, "error": error}


def reportOf(
    modules: Sequence[ModuleReport],
    now: float,
    status: str = "starting",
    **members: Any,
) -> Report:
    """
    @return: A report.
    """
    report: Report = {
        "status": status,
        "began": "2026-11-21T01:02:03.000+00:00",
        "now": now,
        "becameReady": None,
        "criticalPath": [],
        "modules": list(modules),
    }
    cast(Any, report).update(members)
    return report


READY = moduleReport(
    "a", becameReady=2.0, since=2.0, attempts=[attempt(0.0, 2.0)], waitedFor=None
)


class Elements(HTMLParser):
    """
    What a page consists of.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))


def textOf(html: str) -> str:
    """
    @return: What of a page is read aloud.
    """
    html = re.sub(r"<svg.*?</svg>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


class Shown:
    """
    A program with a status page.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.startup = Startup(clock, stayUp=True)
        self.root = AsyncResource()
        self.page: StatusPage = putStatus(self.root, self.startup, clock, **options)
        self.site = Site(self.root, clock)
        self.modules: dict[str, Module] = {}

    def add(self, name: str, **options: Any) -> Any:
        """
        Add a module.
        """
        module = self.modules[name] = Module()
        options.setdefault("retryPolicy", lambda attempts: 1.0)
        return self.startup.add(name, module, **options)

    def start(self) -> None:
        """
        Start, and record the queues.
        """
        self.startup.startService()
        self.page.start()

    def succeed(self, name: str) -> None:
        """
        Let an attempt succeed.
        """
        self.modules[name].attempts[-1].callback(None)

    def fail(self, name: str, error: Exception | None = None) -> None:
        """
        Let it fail.
        """
        self.modules[name].attempts[-1].errback(error or Trouble(HIDDEN))

    def html(self) -> str:
        """
        @return: The page.
        """
        return ask(self.root).body.decode()

    def watch(self) -> Peer:
        """
        Watch.
        """
        peer = Peer(self.site, self.clock)
        peer.send(GET)
        self.clock.advance(0.25)
        return peer

    def end(self) -> None:
        """
        Leave no timer behind.
        """
        self.page.stop()
        self.startup.stopService()
        for module in self.modules.values():
            for closing in module.closings:
                closing.callback(None)
        self.clock.advance(10)


def told(peer: Peer) -> list[tuple[str, Any]]:
    """
    @return: The events that somebody has received.
    """
    return [(name, json.loads(data)) for name, data in eventsOf(peer)]


# The picture.


def test_a_bar_shows_each_part_of_a_start() -> None:
    """
    Waiting, each attempt, the time to the next, and readiness: that is what
    one wants to know of a start-up that took long.
    """
    module = moduleReport(
        "b",
        needs=["a"],
        waitedFor="a",
        begun=2.0,
        since=5.5,
        becameReady=5.5,
        attempts=[attempt(2.0, 3.0, "Trouble"), attempt(4.0, 5.5)],
    )
    picture = draw(reportOf([READY, module], 6.0, "ready", becameReady=5.5))
    assert picture.cells["m1-bar"] == Bar(
        (
            Piece("waiting", 0.0, 2.0),
            Piece("ready", 5.5, 0.44),
            Piece("delay", 3.0, 1.0),
            Piece("attempt", 2.0, 1.0),
            Piece("attempt", 4.0, 1.5),
        ),
        (3.0,),
        None,
    )
    assert picture.cells["m1-story"] == Story(
        "Waited 2.00 s for a. 2 attempts; the last failure was Trouble. "
        "Became ready 5.50 s after the start."
    )


def test_what_goes_on_is_drawn_without_an_end() -> None:
    """
    A bar grows by what is shown of it, and need not be sent again.
    """
    waiting = moduleReport("b", status="waiting", ready=False, begun=None)
    trying = moduleReport(
        "c", status="initializing", ready=False, attempts=[attempt(0.0, None)]
    )
    retrying = moduleReport(
        "d", status="retrying", ready=False, attempts=[attempt(0.0, 1.0, "Trouble")]
    )
    modules = [waiting, trying, retrying]
    early, late = (draw(reportOf(modules, now)) for now in (3.1, 3.9))
    assert early == late
    assert early.cells["m0-bar"] == Bar((Piece("waiting", 0, OPEN),), (), None)
    assert early.cells["m1-bar"] == Bar((Piece("attempt", 0, OPEN),), (), None)
    tried = (Piece("attempt", 0, 1), Piece("delay", 1, OPEN - 1))
    assert early.cells["m2-bar"] == Bar(tried, (1.0,), None)
    assert early.cells["m0-story"] == Story("Has been waiting.")
    assert (early.window.shown(3.1), early.window.shown(3.9)) == (3.1, 3.9)
    assert early.window.shown(1000) == early.window.end == 4.0


def test_nothing_is_drawn_of_what_was_not_started() -> None:
    """
    The page is there before the program.
    """
    module = moduleReport("a", status="new", ready=False, since=None, begun=None)
    picture = draw(reportOf([module], 0.0, "new", began=None))
    assert picture.cells["m0-bar"] == Bar((), (), None)
    assert picture.cells["m0-story"] == Story("Not begun.")
    assert picture.cells["headline"] == Headline("new", "Not started yet")


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_the_end_of_all_attempts_is_shown(status: str) -> None:
    """
    What has failed for good looks different from what is being tried.
    """
    module = moduleReport(
        "a",
        status=status,
        ready=False,
        since=2.0,
        attempts=[attempt(0.0, 2.0, "Refused")],
    )
    picture = draw(reportOf([module], 9.0, "failed"))
    bar = cast(Bar, picture.cells["m0-bar"])
    assert bar.pieces[-1] == Piece("ended", 2.0, 0.16)
    assert not picture.window.growing
    assert picture.window.end == pytest.approx(2.16)


def test_a_closed_module_was_ready_until_then() -> None:
    """
    While a program is being stopped one sees what has been closed.
    """
    module = moduleReport(
        "a",
        status="closed",
        ready=False,
        since=2.1,
        becameReady=2.0,
        closed=2.05,
        attempts=[attempt(0.0, 2.0)],
    )
    picture = draw(reportOf([module], 9.0, "stopping", becameReady=2.0))
    bar = cast(Bar, picture.cells["m0-bar"])
    assert Piece("ready", 2.0, 0.05) in bar.pieces
    skipped = moduleReport("b", status="closed", ready=False, since=None, closed=2.05)
    assert draw(reportOf([skipped], 9.0, "stopping")).cells["m0-bar"] == Bar(
        (), (), None
    )
    unsettled = moduleReport("c", ready=True, closed=2.05, becameReady=1.0)
    bar = cast(Bar, draw(reportOf([unsettled], 9.0, "stopping")).cells["m0-bar"])
    assert Piece("ready", 1.0, 0.08) in bar.pieces


def test_the_critical_path_is_marked_by_words_and_by_a_line() -> None:
    """
    Colour alone does not tell everybody.
    """
    report = reportOf([READY], 3.0, "ready", becameReady=2.0, criticalPath=["a"])
    cells = draw(report).cells
    assert cells["path"] == Path(("a",))
    assert cells["m0-name"] == Name("a", True, (), True)
    assert cast(Bar, cells["m0-bar"]).critical == Piece("critical", 0.0, 2.0)
    assert cells["headline"] == Headline("ready", "Ready, 2.00 s after the start")
    unbegun = moduleReport("b", begun=None)
    report = reportOf([unbegun], 3.0, "ready", criticalPath=["b"])
    assert cast(Bar, draw(report).cells["m0-bar"]).critical is None


def test_the_start_up_is_shown_to_a_little_more_than_its_end() -> None:
    """
    Afterwards nothing moves any more, however long the program runs.
    """
    early, late = (
        draw(reportOf([READY], now, "ready", becameReady=2.0)) for now in (3.0, 1e6)
    )
    assert early == late
    assert (early.window.begin, early.window.end) == (0.0, pytest.approx(2.16))
    assert not early.window.growing
    assert early.window.shown(1e6) == early.window.end


def test_a_start_in_no_time_has_a_window_too() -> None:
    """
    Nothing is divided by zero.
    """
    module = moduleReport("a", becameReady=0.0, attempts=[attempt(0.0, 0.0)])
    picture = draw(reportOf([module], 0.0, "ready", becameReady=0.0))
    assert picture.window.end == 0.1
    pieces = (Piece("ready", 0.0, 0.1), Piece("attempt", 0.0, 0.0))
    assert picture.cells["m0-bar"] == Bar(pieces, (), None)


def lossesOf(
    *losses: LossReport, now: float = 10_000.0, status: str = "ready"
) -> Report:
    """
    @return: The report of a module that was lost.
    """
    module = moduleReport(
        "a",
        status="lost" if losses[-1]["recovered"] is None else "ready",
        ready=losses[-1]["recovered"] is not None,
        since=2.0,
        becameReady=2.0,
        attempts=[attempt(0.0, 2.0)],
        losses=list(losses),
    )
    return reportOf([module, moduleReport("b")], now, status, becameReady=2.0)


def test_a_later_loss_is_shown_in_place_of_the_start_up() -> None:
    """
    After days the start-up is not what one has come to see, and there is no
    room for both.
    """
    report = lossesOf(loss(5000.0, 5002.0, "Trouble"), now=5003.0)
    report["modules"][0]["attempts"].append(attempt(5001.0, 5002.0))
    picture = draw(report)
    window = picture.window
    assert (window.origin, window.begin, window.end) == (5000.0, -5.0, 3.5)
    assert not window.growing
    assert window.title == "Timeline since the loss of a, 1 h 23 min after the start"
    assert picture.cells["m0-bar"] == Bar(
        (
            Piece("ready", -5.0, 5.0),
            Piece("lost", 0.0, 2.0),
            Piece("ready", 2.0, 1.5),
            Piece("attempt", 1.0, 1.0),
        ),
        (),
        None,
    )
    assert cast(Story, picture.cells["m0-story"]).text.endswith(
        "Lost once, at last 1 h 23 min after the start, "
        "and ready again 1 h 23 min after it."
    )


def test_a_loss_that_lasts_is_shown_up_to_now() -> None:
    """
    What goes on goes on in the picture.
    """
    picture = draw(lossesOf(loss(100.0, None), now=107.0, status="unready"))
    assert picture.window.growing
    assert (picture.window.end, picture.window.shown(107.0)) == (8.0, 7.0)
    bar = cast(Bar, picture.cells["m0-bar"])
    assert bar.pieces[-1] == Piece("lost", 0.0, OPEN)
    assert cast(Story, picture.cells["m0-story"]).text.endswith(
        "Lost once, at last 1 min 40 s after the start."
    )


def test_of_many_losses_the_last_are_shown() -> None:
    """
    Those that belong together are shown together, and those long before are
    not.
    """
    losses = [loss(50.0, 51.0), loss(200.0, 201.0), loss(204.0, 205.0)]
    report = lossesOf(*losses)
    other = moduleReport("b", losses=[loss(206.0, 207.0)])
    report["modules"][1] = other
    window = draw(report).window
    assert (window.origin, window.end) == (200.0, 9.75)
    assert "the loss of a, b, 3 min 20 s after" in window.title
    assert "Lost 3 times" in cast(Story, draw(report).cells["m0-story"]).text


def test_a_loss_during_the_start_up_belongs_to_it() -> None:
    """
    The start-up is not over before all has been ready.
    """
    module = moduleReport(
        "a", becameReady=1.0, attempts=[attempt(0.0, 1.0)], losses=[loss(2.0, 4.0)]
    )
    lost = moduleReport("b", becameReady=None, losses=[loss(2.0, None)])
    window = draw(reportOf([module, lost], 4.0, "failed")).window
    assert (window.origin, window.end) == (0.0, pytest.approx(4.32))


@pytest.mark.parametrize("status", ["failed", "stopping"])
def test_what_goes_on_is_seen_whatever_becomes_of_the_program(status: str) -> None:
    """
    A module that is still being initialised when the program has failed, or is
    going to stop, has a bar that grows.
    """
    module = moduleReport(
        "a", status="initializing", ready=False, attempts=[attempt(0.0, None)]
    )
    window = draw(reportOf([module], 4.0, status)).window
    assert window.growing
    assert window.end > 4.0


@pytest.mark.parametrize(
    ("now", "end", "labels"),
    [
        (0.05, 1.0, ["0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1 s"]),
        (11.0, 12.0, ["0 s", "2 s", "4 s", "6 s", "8 s", "10 s", "12 s"]),
        (61.0, 75.0, ["0 s", "15 s", "30 s", "45 s", "60 s", "75 s"]),
        (500.0, 600.0, ["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]),
        (3600.0, 7200.0, ["0 min", "30 min", "60 min", "90 min", "120 min"]),
        (8000.0, 14400.0, ["0 h", "1 h", "2 h", "3 h", "4 h"]),
        (1e6, 1843200.0, ["0 h", "96 h", "192 h", "288 h", "384 h", "480 h"]),
    ],
)
def test_the_axis_fits_whatever_it_takes(
    now: float, end: float, labels: list[str]
) -> None:
    """
    A start-up takes from a moment to days; there are never so many labels that
    they cannot be read.
    """
    module = moduleReport("a", status="initializing", ready=False)
    picture = draw(reportOf([module], now))
    assert picture.window.end == end
    ticks = cast(Any, picture.cells["axis"]).ticks
    assert [tick.label for tick in ticks] == labels
    assert ticks[0].at == 0.0


def test_the_axis_has_its_zero_where_something_was_lost() -> None:
    """
    Ticks are at round numbers, before and after.
    """
    axis: Any = draw(lossesOf(loss(100.0, None), now=103.0)).cells["axis"]
    assert [tick.label for tick in axis.ticks] == ["-4 s", "-2 s", "0 s", "2 s", "4 s"]
    assert axis.ticks[2].at == 55.56


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.004, "0.00 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")],
)
def test_times_are_told_in_fitting_units(seconds: float, words: str) -> None:
    """
    Nobody reads 180,000 seconds.
    """
    module = moduleReport("a", begun=seconds, attempts=[attempt(seconds, None)])
    story = draw(reportOf([module], seconds)).cells["m0-story"]
    assert story == Story(f"Begun {words} after the start.")


def test_the_last_error_is_told_by_its_type() -> None:
    """
    Its message may say what is not for everybody; who may see it says so.
    """
    module = moduleReport(
        "a",
        status="lost",
        ready=False,
        reason="lost",
        attempts=[attempt(0.0, 1.0, "Refused"), attempt(1.0, None)],
        losses=[loss(3.0, None, "Trouble"), loss(2.0, None)],
    )
    report = reportOf([module], 4.0)
    standing = draw(report).cells["m0-standing"]
    assert standing == Standing("lost", "lost", "Trouble", None, 2, 2)
    shown = cast(Standing, draw(report, showErrors=True).cells["m0-standing"])
    assert shown.error == HIDDEN


def test_an_error_that_is_in_the_reason_is_not_told_twice() -> None:
    """
    Once is enough.
    """
    module = moduleReport(
        "a",
        ready=False,
        reason="attempt 1 failed (Trouble)",
        attempts=[attempt(0.0, 1.0, "Trouble")],
    )
    standing = draw(reportOf([module], 4.0)).cells["m0-standing"]
    assert standing == Standing("ready", "attempt 1 failed (Trouble)", None, None, 1, 0)


def test_a_note_on_a_module_that_is_ready_is_shown() -> None:
    """
    What works on stale settings is seen to.
    """
    module = moduleReport("a", note="stale since yesterday")
    standing = draw(reportOf([module], 4.0)).cells["m0-standing"]
    assert standing == Standing("ready", "stale since yesterday", None, None, 0, 0)


def test_a_curve_is_as_high_as_the_longest_queue() -> None:
    """
    The newest sample is on the right, and times at which the module was not
    ready are marked.
    """
    samples = [(0, False), (5, False), (10, False), (10, True), (0, True), (0, False)]
    (cell,) = drawCurves([samples]).values()
    assert cell == Curve("M54 19H55V10H56V1H58V19H60", ((54, 3), (59, 1)), 10)


def test_a_curve_of_nothing_does_not_move() -> None:
    """
    What has nothing to show is not sent every second.
    """
    few, many = ([(0, True)] * count for count in (3, 60))
    assert drawCurves([few, many, []]) == {
        f"m{number}-curve": Curve("M0 19H60", (), 0) for number in range(3)
    }


def test_queues_are_counted() -> None:
    """
    One number for each, and one for all.
    """
    assert drawQueues([3, 0]) == {
        "held": Held(3),
        "m0-queue": Queue(3),
        "m1-queue": Queue(0),
    }
    cells = draw(reportOf([READY, moduleReport("b", ready=False)], 0.0)).cells
    assert cells["facts"] == Facts(1, 2)


# The page.


def test_the_page_is_complete_without_a_script(clock: Clock) -> None:
    """
    A still page is better than an empty one.
    """
    shown = Shown(clock, links=[("/say", "Say something")])
    shown.add("configuration")
    database = shown.add("database", needs=["configuration"], required=False)
    shown.start()
    clock.advance(2.5)
    shown.fail("configuration")
    database.proxy.read("x").addErrback(lambda failure: None)
    page = shown.html()
    text = textOf(page)
    for words in (
        "Starting",
        "0 of 2 modules ready",
        "1 call waiting",
        "Timeline of the start-up",
        "configuration",
        "retrying attempt 1 failed (Trouble)",
        "database optional needs configuration",
        "waiting needs configuration",
        "1 attempt; the last failure was Trouble.",
        "Say something",
    ):
        assert words in text
    (bar, _) = (
        attributes
        for tag, attributes in Elements(page).all
        if tag == "svg" and attributes.get("class") == "bar"
    )
    # Three seconds are shown, of which half of one is still to come.
    assert bar["viewbox"] == "0.0 0 2.5 1"
    assert bar["width"] == "83.333%"
    shown.end()


def test_nothing_secret_is_on_the_page(clock: Clock) -> None:
    """
    Errors in the words of the modules are for those who operate the server.
    """
    for showErrors in (False, True):
        shown = Shown(clock, showErrors=showErrors)
        shown.add("a")
        shown.add("b", fatal=Refused)
        shown.start()
        shown.fail("a")
        shown.fail("b", Refused(HIDDEN))
        peer = shown.watch()
        assert (HIDDEN in unescape(shown.html())) is showErrors
        assert (HIDDEN in str(told(peer))) is showErrors
        assert "Trouble" in shown.html()
        shown.end()


def test_whatever_a_module_is_called_is_escaped(clock: Clock) -> None:
    """
    Names may come from a configuration file.
    """

    class Evil(Exception):
        pass

    Evil.__name__ = EVIL
    shown = Shown(clock, links=[(f"/{EVIL}", EVIL)])
    shown.add(EVIL)
    shown.add("b", needs=[EVIL])
    shown.start()
    peer = shown.watch()
    shown.fail(EVIL, Evil())
    clock.advance(0.25)
    (_, page), (_, cells) = told(peer)
    for html in (shown.html(), page["html"], *cells["cells"].values()):
        assert "<script>alert" not in html
        scripts = [each for tag, each in Elements(html).all if tag == "script"]
        assert all(each["src"] == "status.js" for each in scripts)
    assert f"{EVIL} critical" not in textOf(page["html"])
    assert EVIL in textOf(page["html"])
    # Nor does it end the event.
    assert "needs &lt;script&gt;" in page["html"]
    shown.end()


def test_the_page_allows_nothing_but_itself(clock: Clock) -> None:
    """
    If something did get in, the browser would not run it.
    """
    shown = Shown(clock)
    shown.add("a")
    answer = ask(shown.root)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    page = answer.body.decode()
    for tag, attributes in Elements(page).all:
        assert tag != "style"
        assert not [name for name in attributes if name.startswith(("on", "style"))]
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert not [each for each in addresses if "//" in each]


def test_what_the_page_refers_to_is_there(clock: Clock) -> None:
    """
    Nothing is fetched from elsewhere, and nothing twice.
    """
    shown = Shown(clock)
    for name, contentType in (
        ("status.css", "text/css; charset=utf-8"),
        ("status.js", "text/javascript; charset=utf-8"),
        ("status.svg", "image/svg+xml"),
    ):
        assert f'"{name}"' in shown.html()
        answer = ask(shown.root, f"/{name}")
        assert answer.status == 200
        assert answer.body
        assert answer.headers["content-type"] == contentType
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        again = ask(shown.root, f"/{name}", headers={"If-None-Match": tag})
        assert (again.status, again.body) == (304, b"")
        changed = ask(shown.root, f"/{name}", headers={"If-None-Match": '"old"'})
        assert (changed.status, changed.body) == (200, answer.body)


def test_there_is_nothing_else(clock: Clock) -> None:
    """
    Only the stream is below the page.
    """
    shown = Shown(clock)
    for path in ("/status", "/status/", "/status/other", "/status.html"):
        assert ask(shown.root, path).status == 404
    assert ask(shown.root, method="HEAD").body == b""
    assert ask(shown.root, method="POST").status == 405


def test_every_picture_has_its_words(clock: Clock) -> None:
    """
    Who does not see the bars is told what they show, in a table that is one
    however it is laid out, and the headline tells when it changes.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.start()
    elements = Elements(shown.html()).all
    assert all(each["aria-hidden"] for tag, each in elements if tag == "svg")
    table = [each for tag, each in elements if tag in ("table", "tr", "th", "td")]
    assert table
    assert all("role" in each for each in table)
    live = [each for _, each in elements if each.get("role") == "status"]
    assert [each.get("id") or each["data-cell"] for each in live] == [
        "connection",
        "headline",
    ]
    assert "Begun 0.00 s after the start." in textOf(shown.html())
    shown.end()


# The stream.


def test_a_viewer_gets_the_page_and_then_the_cells_that_changed(clock: Clock) -> None:
    """
    What has not changed is not sent again.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.add("b")
    shown.start()
    clock.advance(0.1)
    peer = shown.watch()
    shown.succeed("a")
    clock.advance(0.25)
    (first, page), (second, cells) = told(peer)
    assert (first, second) == ("page", "cells")
    assert page["now"] == 0.35
    assert page["window"] == [0.0, 1.0]
    assert page["growing"] is True
    assert 'data-cell="m0-bar"' in page["html"]
    assert cells["now"] == 0.6
    assert set(cells["cells"]) == {"facts", "m0-standing", "m0-bar", "m0-story"}
    assert 'class="ready"' in cells["cells"]["m0-bar"]
    assert textOf(cells["cells"]["facts"]) == "1 of 2 modules ready"
    shown.end()


def test_queues_are_watched(clock: Clock) -> None:
    """
    Nobody tells that a call was queued, so they are looked at.
    """
    shown = Shown(clock)
    wrapper = shown.add("a")
    shown.start()
    peer = shown.watch()
    calls = [wrapper.proxy.read(number) for number in range(3)]
    clock.advance(0.25)
    shown.succeed("a")
    clock.advance(0.25)
    _, (_, held), (_, answered) = told(peer)
    assert held["cells"] == {"held": "3 calls waiting", "m0-queue": "3"}
    assert answered["cells"]["m0-queue"] == "0"
    for each in calls:
        each.addErrback(lambda failure: None)
    shown.end()


def test_curves_are_sent_once_in_a_second(clock: Clock) -> None:
    """
    They show the last minute, and begin before anybody watches.
    """
    shown = Shown(clock)
    wrapper = shown.add("a", queueTimeout=None)
    shown.start()
    call = wrapper.proxy.read("x")
    clock.pump([0.5] * 140)
    peer = shown.watch()
    clock.pump([0.25] * 8)
    (_, page), *more = told(peer)
    assert 'class="line" d="M0 19H0V1H60"' in page["html"]
    assert "peak 1" in page["html"]
    # It looks as before: nothing is sent.
    assert more == []
    shown.succeed("a")
    clock.pump([0.25] * 8)
    curves = [cells["cells"].get("m0-curve") for _, cells in told(peer)[1:]]
    assert ['V1H59V19H60"' in curve for curve in curves if curve] == [True, False]
    call.addErrback(lambda failure: None)
    shown.end()


def test_a_window_that_is_too_short_grows(clock: Clock) -> None:
    """
    Time goes by in the page itself, until there is no more room.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.startup.startService()
    peer = shown.watch()
    clock.pump([0.25] * 2)
    assert len(told(peer)) == 1
    clock.advance(0.25)
    _, (_, cells) = told(peer)
    assert cells["window"] == [0.0, 2.0]
    assert set(cells["cells"]) == {"axis"}
    shown.end()


def test_modules_that_are_added_while_somebody_watches_are_shown(
    clock: Clock,
) -> None:
    """
    A page that does not know of them is given all anew.
    """
    shown = Shown(clock)
    shown.add("a")
    peer = shown.watch()
    shown.add("b")
    shown.start()
    clock.advance(0.25)
    assert [name for name, _ in told(peer)] == ["page", "page"]
    assert 'data-cell="m1-bar"' in told(peer)[1][1]["html"]
    shown.end()


def test_who_comes_between_two_turns_sees_what_the_others_see(clock: Clock) -> None:
    """
    What changes afterwards is told in relation to that.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.start()
    first = shown.watch()
    second = shown.watch()
    third = shown.watch()
    pages = [told(each)[0][1]["html"] for each in (first, second, third)]
    assert pages[0] == pages[1] == pages[2]
    shown.end()


def test_a_page_is_rendered_once_for_all_who_load_it_together(clock: Clock) -> None:
    """
    Who loads it again and again does not keep the reactor; and who loads it a
    moment later sees what is then.
    """
    shown = Shown(clock)
    clock.advance(10.8)
    page = shown.html()
    clock.advance(0.2)
    assert shown.html() == page
    clock.advance(0.1)
    assert shown.html() != page


def test_the_last_event_says_that_the_program_is_stopping(clock: Clock) -> None:
    """
    The streams end before anything is closed, so that nobody waits for them;
    the page shows why.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.start()
    peer = shown.watch()
    shown.page.stop()
    name, cells = told(peer)[-1]
    assert name == "cells"
    assert textOf(cells["cells"]["headline"]) == "Stopping"
    assert peer.closed
    assert shown.html()
    shown.end()


def test_a_program_that_is_not_watched_is_not_observed(clock: Clock) -> None:
    """
    Nothing is left behind, neither a timer nor an observer.
    """
    shown = Shown(clock)
    shown.add("a")
    shown.start()
    shown.page.start()
    observers = shown.startup._observers._observers
    peer = shown.watch()
    assert len(observers) == 1
    peer.leave()
    assert (len(observers), len(clock.getDelayedCalls())) == (0, 1)
    shown.page.stop()
    shown.page.stop()
    assert clock.getDelayedCalls() == []
    shown.end()


def test_queues_that_cannot_be_looked_at_are_reported(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error in a timer would otherwise be seen only when it is too late.
    """

    class Broken:
        @property
        def wrappers(self) -> Any:
            raise Trouble("broken")

    page = StatusPage(cast(Any, Broken()), clock)
    page.start()
    (event,) = loggedFailures
    assert event["log_failure"].check(Trouble)
    loggedFailures.clear()
    page.stop()
