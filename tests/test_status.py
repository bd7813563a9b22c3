"""
The status page shows everybody what the modules of a program are doing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from importlib.resources import files
from typing import Any, cast

import pytest
from twisted.internet.task import Clock

from tsrv import AsyncModule, Startup, State
from tsrv.starting.report import (
    AttemptReport,
    LossReport,
    ModuleReport,
    PauseReport,
    Report,
)
from tsrv.web.status import Status
from tsrv.web.timeline import duration, piecesOf, windowOf

from .operated import SECRET, Noted, Program
from .support import Refused, Trouble, resultOf
from .websupport import Answer, ask

EVIL = "<script>alert(1)</script>&\"'"


def moduleReport(name: str = "a", **members: Any) -> ModuleReport:
    """
    @return: The part of a report that the timeline needs, for a module that became
        ready after 2 seconds.
    """
    module = {
        "name": name,
        "status": "ready",
        "ready": members.get("status", "ready") == "ready",
        "since": 2.0,
        "begun": 0.0,
        "becameReady": 2.0 if "status" not in members else None,
        "waitedFor": None,
        "attempts": [],
        "losses": [],
        "pauses": [],
        "lazy": False,
    }
    return cast(ModuleReport, {**module, **members})


def reportOf(
    *modules: ModuleReport, now: float, status: str = "starting", **members: Any
) -> Report:
    """
    @return: The part of a report that the timeline needs.
    """
    report = {
        "status": status,
        "now": now,
        "becameReady": None,
        "modules": list(modules),
    }
    return cast(Report, {**report, **members})


def attempt(
    begun: float, ended: float | None = None, kind: str | None = None
) -> AttemptReport:
    """
    @return: The report of an attempt.
    """
    return {"begun": begun, "ended": ended, "kind": kind, "error": kind}


def pause(begun: float, ended: float | None = None) -> PauseReport:
    """
    @return: The report of a pause.
    """
    return {"begun": begun, "ended": ended}


def loss(lost: float, recovered: float | None = None) -> LossReport:
    """
    @return: The report of a loss.
    """
    return {"lost": lost, "recovered": recovered, "kind": "Trouble", "error": "Trouble"}


def bar(
    module: ModuleReport, report: Report, critical: bool = False
) -> list[tuple[str, float, float]]:
    """
    @return: For each part of a module's bar its kind, its begin and its end, in seconds
        from the begin of the timeline.
    """
    window = windowOf(report)
    length = (window.end - window.begin) / 100
    return [
        (kind, round(start * length, 2), round(end * length, 2))
        for kind, start, end, _ in piecesOf(module, window, critical)
    ]


def textOf(html: str) -> str:
    """
    @return: The text of a page.
    """
    html = re.sub(r"<svg.*?</svg>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


class Shown(Program):
    """
    A program with a status page.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(clock)
        self.root = Status(self.startup, clock, **options)

    def fragment(self, **headers: str) -> Answer:
        """
        @return: The current fragment.
        """
        self.clock.advance(1)
        return ask(self.root, "/status", headers=headers)

    def html(self) -> str:
        """
        @return: The current page.
        """
        self.clock.advance(1)
        return ask(self.root).body.decode()

    def text(self) -> str:
        return textOf(self.fragment().body.decode())


@pytest.fixture
def show(clock: Clock) -> Iterator[Callable[..., Shown]]:
    """
    Make programs with a status page, and stop them at the end.
    """
    programs: list[Shown] = []

    def make(**options: Any) -> Shown:
        programs.append(Shown(clock, **options))
        return programs[-1]

    yield make
    for program in programs:
        program.stop()


# The timeline.


def test_a_bar_shows_each_part_of_a_start() -> None:
    """
    A bar shows waiting, attempts, failures, delays and readiness.
    """
    module = moduleReport(
        needs=["b"],
        waitedFor="b",
        begun=2.0,
        since=5.5,
        becameReady=5.5,
        attempts=[attempt(2.0, 3.0, "Trouble"), attempt(4.0, 5.5)],
    )
    report = reportOf(module, now=6.0, status="ready", becameReady=5.5)
    assert bar(module, report, critical=True) == [
        ("waiting", 0, 2),
        ("ready", 5.5, 6),
        ("attempt", 2, 3),
        ("delay", 3, 4),
        ("failure", 3, 3),
        ("attempt", 4, 5.5),
        ("critical", 2, 5.5),
    ]
    waiting = moduleReport(status="waiting", begun=None)
    assert bar(waiting, report, critical=True) == [("waiting", 0, 6)]
    titles = [title for *_, title in piecesOf(module, windowOf(report), True)]
    assert titles == [
        "waiting for b, 2.00 s",
        "ready",
        "attempt, 1.00 s",
        "delay, 1.00 s",
        "failure: Trouble, 0.00 s",
        "attempt, 1.50 s",
        "critical path, 3.50 s",
    ]


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (moduleReport(status="waiting", begun=None), [("waiting", 0, 3.5)]),
        (
            moduleReport(status="initializing", attempts=[attempt(0.0)]),
            [("attempt", 0, 3.5)],
        ),
        (
            moduleReport(status="retrying", attempts=[attempt(0.0, 1.0, "Trouble")]),
            [("attempt", 0, 1), ("delay", 1, 3.5), ("failure", 1, 1)],
        ),
        (moduleReport(status="new", since=None, begun=None), []),
        (
            moduleReport(losses=[loss(3.0)]),
            [("lost", 3, 3.5)],
        ),
    ],
    ids=["waiting", "initializing", "retrying", "new", "lost"],
)
def test_a_bar_grows_until_now(module: ModuleReport, parts: list[Any]) -> None:
    """
    A bar that has not ended is shown up to now, within a window with some room. The
    start-up is over only when everything was ready once.
    """
    report = reportOf(module, moduleReport(status="initializing"), now=3.5)
    assert bar(module, report)[-len(parts) :] == parts
    window = windowOf(report)
    assert (window.title, window.end) == ("Start-up", 4)


@pytest.mark.parametrize(
    ("status", "members", "last"),
    [
        ("failed", {"attempts": [attempt(0.0, 2.0, "Refused")]}, ("ended", 2, 2.5)),
        ("skipped", {"begun": None}, ("ended", 2, 2.5)),
        ("closed", {"becameReady": 1.0}, ("ready", 1, 2)),
    ],
)
def test_the_bar_of_a_module_ends(
    status: str, members: dict[str, Any], last: tuple[str, float, float]
) -> None:
    """
    A module that failed for good looks different from a retried one; a closed one was
    ready until its end.
    """
    module = moduleReport(status=status, **members)
    assert bar(module, reportOf(module, now=9.0))[-1] == last


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        (
            {"pauses": [pause(3.0, 4.0), pause(5.0)], "status": "paused"},
            [("ready", 2, 3), ("ready", 4, 5), ("paused", 3, 4), ("paused", 5, 6)],
        ),
        (
            {"pauses": [pause(-1.0, 1.0), pause(3.0, 3.0)]},
            [("ready", 2, 3), ("ready", 3, 6), ("paused", 0, 1), ("paused", 3, 3)],
        ),
        ({"pauses": [pause(1.0)], "status": "paused"}, [("paused", 1, 6)]),
        (
            {"pauses": [pause(3.0)], "losses": [loss(4.0, 5.0)], "status": "paused"},
            [("ready", 2, 3), ("lost", 4, 5), ("paused", 3, 6)],
        ),
        (
            {"pauses": [pause(4.0, 5.5)], "losses": [loss(3.0, 5.0)]},
            [("ready", 2, 3), ("lost", 3, 5), ("ready", 5.5, 6), ("paused", 4, 5.5)],
        ),
        (
            {"pauses": [pause(3.0, 5.0)], "status": "closed", "since": 5.0},
            [("ready", 2, 3), ("paused", 3, 5)],
        ),
        (
            {
                "pauses": [pause(3.0), pause(5.5)],
                "losses": [loss(4.0)],
                "status": "failed",
                "since": 5.0,
            },
            [("ready", 2, 3), ("lost", 4, 5), ("paused", 3, 5), ("ended", 5, 6)],
        ),
    ],
    ids=["twice", "before", "first", "lost", "whileLost", "closed", "failed"],
)
def test_pauses_have_bars_of_their_own(
    members: dict[str, Any], parts: list[Any]
) -> None:
    """
    A paused module is not shown as ready, and a loss during a pause is shown.
    """
    module = moduleReport(**{"becameReady": 2.0, **members})
    report = reportOf(module, moduleReport(status="initializing"), now=6.0)
    assert bar(module, report) == parts


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        ({"status": "lazy", "since": 0.0, "begun": None}, [("lazy", 0, 6)]),
        ({"status": "closed", "since": 3.0, "begun": None}, [("lazy", 0, 3)]),
        ({"status": "waiting", "since": 0.0, "begun": None}, [("waiting", 0, 6)]),
        (
            {"begun": 1.0, "attempts": [attempt(1.0, 2.0)]},
            [("lazy", 0, 1), ("ready", 2, 6), ("attempt", 1, 2)],
        ),
    ],
    ids=["unused", "closed", "waiting", "used"],
)
def test_a_lazy_module_waits_for_its_first_call(
    members: dict[str, Any], parts: list[Any]
) -> None:
    """
    Before its first call, a lazy module does not seem to wait for another one.
    """
    module = moduleReport(lazy=True, **members)
    report = reportOf(module, moduleReport(status="initializing"), now=6.0)
    assert bar(module, report) == parts


def test_the_timeline_of_a_settled_program_does_not_change() -> None:
    """
    The timeline of the start-up stays readable, however long the program runs. A lazy
    module that was never called does not extend it.
    """
    lazy = moduleReport("b", status="lazy", lazy=True, begun=None, since=0.0)
    windows = {
        windowOf(
            reportOf(moduleReport(), lazy, now=now, status="ready", becameReady=2.0)
        )
        for now in (3.0, 1e6)
    }
    assert [(window.begin, window.end) for window in windows] == [(0, 2.5)]


@pytest.mark.parametrize(
    ("losses", "now", "origin", "end"),
    [
        ([loss(5000.0, 5002.0)], 9000.0, 5000, 5004),
        ([loss(100.0)], 107.0, 100, 108),
        ([loss(3.0, 4.0)], 9000.0, 3, 5),
        ([loss(50.0, 51.0), loss(200.0, 201.0)], 9000.0, 200, 202),
        ([loss(50.0), loss(200.0, 201.0)], 300.0, 50, 350),
    ],
    ids=["recovered", "ongoing", "early", "last", "oldest"],
)
def test_a_loss_is_shown_instead_of_the_start_up(
    losses: list[LossReport], now: float, origin: float, end: float
) -> None:
    """
    The timeline shows the current loss, or else the last one.
    """
    recovered = [each["recovered"] for each in losses]
    status = "lost" if None in recovered else "ready"
    since = max(filter(None, recovered), default=0.0)
    module = moduleReport(
        status=status, since=since, becameReady=2.0, losses=losses, begun=0.0
    )
    report = reportOf(
        module, moduleReport("b"), now=now, status="ready", becameReady=2.0
    )
    window = windowOf(report)
    assert (window.origin, window.end) == (origin, end)
    assert window.begin == max(0, origin - 5)
    assert window.title == f"Loss of a, {duration(origin)} after the start"
    pieces = piecesOf(module, window, critical=True)
    assert "lost" in [kind for kind, *_ in pieces]
    assert all(0 <= start <= end <= 100 for _, start, end, _ in pieces)


@pytest.mark.parametrize(
    ("members", "now", "title", "end"),
    [
        (
            {"status": "paused", "since": 100.0, "pauses": [pause(100.0)]},
            7300.0,
            "Pause of a, 1 min 40 s after the start",
            7300,
        ),
        (
            {"pauses": [pause(100.0, 101.0)], "since": 101.0},
            9000.0,
            "Pause of a, 1 min 40 s after the start",
            102,
        ),
        (
            {
                "pauses": [pause(100.0, 101.0)],
                "losses": [loss(99.0, 101.0)],
                "since": 101.0,
            },
            9000.0,
            "Pause of a, 1 min 40 s after the start",
            102,
        ),
        (
            {
                "status": "lost",
                "since": 99.0,
                "pauses": [pause(100.0, 101.0)],
                "losses": [loss(99.0)],
            },
            101.0,
            "Loss of a, 1 min 39 s after the start",
            101,
        ),
        (
            {"lazy": True, "begun": 100.0, "becameReady": 101.0, "since": 101.0},
            9000.0,
            "First call of a, 1 min 40 s after the start",
            102,
        ),
        (
            {
                "lazy": True,
                "status": "retrying",
                "begun": 100.0,
                "becameReady": None,
                "since": 103.0,
            },
            104.0,
            "First call of a, 1 min 40 s after the start",
            104,
        ),
        (
            {
                "lazy": True,
                "status": "lazy",
                "begun": None,
                "becameReady": None,
                "since": 0.0,
                "pauses": [pause(100.0)],
            },
            9000.0,
            "Pause of a, 1 min 40 s after the start",
            101,
        ),
        (
            {"pauses": [pause(100.0, 110.0)]},
            9000.0,
            "Pause of a, 1 min 40 s after the start",
            115,
        ),
    ],
    ids=[
        "ongoing",
        "resumed",
        "later",
        "lost",
        "lazy",
        "retrying",
        "unused",
        "resumedUnused",
    ],
)
def test_later_events_are_shown_instead_of_the_start_up(
    members: dict[str, Any], now: float, title: str, end: float
) -> None:
    """
    The timeline shows the last pause, the last loss, or the first call of a lazy
    module.
    """
    module = moduleReport(**{"becameReady": 2.0, **members})
    window = windowOf(
        reportOf(module, moduleReport("b"), now=now, status="ready", becameReady=2.0)
    )
    assert (window.title, window.end) == (title, end)
    assert window.begin == window.origin - 5


@pytest.mark.parametrize(
    ("now", "end", "labels"),
    [
        (0.0, 0.1, ["0 s", "0.02 s", "0.04 s", "0.06 s", "0.08 s", "0.1 s"]),
        (0.9, 1.0, ["0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1 s"]),
        (11.0, 12.0, ["0 s", "2 s", "4 s", "6 s", "8 s", "10 s", "12 s"]),
        (61.0, 75.0, ["0 s", "15 s", "30 s", "45 s", "60 s", "75 s"]),
        (500.0, 600.0, ["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]),
        (8000.0, 9000.0, ["0 min", "30 min", "60 min", "90 min", "120 min", "150 min"]),
        (1e6, 1209600.0, ["0 h", "168 h", "336 h"]),
    ],
)
def test_the_axis_fits_any_duration(now: float, end: float, labels: list[str]) -> None:
    """
    The axis has at most six intervals between round numbers.
    """
    window = windowOf(reportOf(moduleReport(status="initializing"), now=now))
    assert window.end == pytest.approx(end)
    assert [label for _, label in window.ticks()] == labels
    assert window.ticks()[0][0] == 0


def test_the_axis_counts_from_a_loss() -> None:
    """
    Zero is the time of the first loss among the lost modules.
    """
    module = moduleReport(status="lost", losses=[loss(100.0)], becameReady=2.0)
    other = moduleReport("b", status="lost", losses=[loss(101.0)])
    window = windowOf(reportOf(module, other, now=103.0, becameReady=2.0))
    labels = [label for _, label in window.ticks()]
    assert labels == ["-4 s", "-2 s", "0 s", "2 s", "4 s"]
    assert window.ticks()[2][0] == 55.556


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")],
)
def test_durations_have_fitting_units(seconds: float, text: str) -> None:
    """
    A duration has at most two units: nobody reads 180,000 seconds.
    """
    assert duration(seconds) == text


# The page.


def test_the_page_is_complete_without_a_script(show: Any) -> None:
    """
    Without a script, the page shows everything that is known of each module.
    """
    shown = show(links=[("/say", "Say something")])
    shown.add("configuration")
    database = shown.add("database", "configuration", required=False, limit=50)
    shown.add("users", "configuration")
    shown.start()
    database.proxy.read("x").addErrback(lambda failure: None)
    shown.clock.advance(2)
    shown.fail("configuration")
    text = textOf(shown.html())
    for words in (
        "Starting, waiting for configuration starting for 3.0 s, at least 4.0 s left; "
        "1 call queued, the oldest for 3.0 s 0 of 3 modules ready",
        "Start-up",
        "retrying attempt 1 failed: Trouble next attempt in 4.0 s",
        "1 attempt 0.00 s: attempt failed: Trouble after 2.00 s",
        "database optional needs configuration",
        "waiting needs configuration",
        "1 of 50 oldest 3.0 s",
        "Say something",
        "1970-01-01 00:00:03 UTC , up for 3.0 s",
    ):
        assert words in text


def test_the_headline_is_true_at_every_time(show: Any) -> None:
    """
    At any time the headline names the modules that are the cause.
    """
    shown = show()
    for name in "abcd":
        shown.add(name)
    shown.add("optional", required=False)

    def headline() -> str:
        (found,) = re.findall(r'<p class="headline" role.*?</p>', shown.html())
        assert f"<title>{textOf(found)} " in shown.html()
        return textOf(found)

    assert headline() == "Not started"
    shown.start()
    assert headline() == "Starting, waiting for a, b, c and 1 more"
    shown.succeed("a", "b", "c")
    assert headline() == "Starting, waiting for d"
    shown.succeed("d")
    assert headline() == "Ready, but optional is initializing"
    shown.succeed("optional")
    assert headline() == "Ready"
    shown.lose("b")
    assert headline() == "Not ready: b is lost"
    shown.clock.advance(5)
    shown.fail("b", Refused)
    assert headline() == "Failed because of b"
    shown.startup.announceStop()
    assert headline() == "Stopping"


def namesIn(html: str) -> list[str]:
    """
    @return: The names of the modules on a page, in order.
    """
    return re.findall(r'class="name">([^<]*)<', html)


def test_what_needs_attention_comes_first(show: Any) -> None:
    """
    Failed modules come first, then lost, retried and paused ones. The others keep their
    order, whether they are ready or not.
    """
    shown = show()
    for name in ("ready", "slow", "paused", "retried", "lost", "failed"):
        shown.add(name, required=name != "failed")
    shown.start()
    shown.succeed("ready", "paused", "lost")
    shown.fail("failed", Refused)
    shown.fail("retried")
    shown.pause("paused")
    shown.lose("lost")
    order = ["failed", "lost", "retried", "paused", "ready", "slow"]
    assert namesIn(shown.html()) == order
    shown.clock.advance(3)
    # The attempts of a lost module do not change its rank.
    assert "lost initializing attempt" in shown.text()
    assert namesIn(shown.html())[:2] == order[:2]
    assert re.findall(r'class="(\w*)" data-key', shown.html())[:2] == ["failed", "lost"]


def test_the_expected_time_is_shown(show: Any) -> None:
    """
    The page shows the duration of the start-up, and the time that it will still take,
    as far as the modules can predict it.
    """
    shown = show()
    shown.startup.add("clock", AsyncModule(shown.clock, 10.0))
    shown.start()
    text = shown.text()
    assert "starting for 1.0 s, about 9.0 s left; 0 calls" in text
    assert "clock initializing attempt 1 is in progress about 9.0 s left" in text
    shown = show()
    shown.startup.add("clock", AsyncModule(shown.clock, 100.0))
    shown.add("unknown")
    shown.start()
    assert "starting for 1.0 s, at least 1 min 39 s left; 0 calls" in shown.text()
    shown.clock.advance(100)
    assert "starting for 1 min 42 s; 0 calls" in shown.text()
    shown.succeed("unknown")
    assert "Ready 0 calls queued 2 of 2" in shown.text()


def test_after_a_recovery_the_page_says_what_is_true_now(show: Any) -> None:
    """
    The last loss is shown with its end, but neither in the headline nor in the queue.
    """
    shown = show()
    shown.add("a")
    shown.start()
    shown.succeed("a")
    shown.clock.advance(1)
    shown.lose("a")
    resultOf(shown.startup.wrappers["a"].proxy.read(1))
    text = shown.text()
    assert "Not ready: a is lost not ready for 1.0 s, at least 4.0 s left;" in text
    assert "lost Trouble next attempt in 4.0 s" in text
    assert "last loss" not in text
    shown.clock.advance(4)
    shown.succeed("a")
    shown.modules["a"].answers[-1].callback(None)
    text = shown.text()
    assert text.startswith("Ready 0 calls queued 1 of 1 module ready became ready")
    assert "last loss: a, for 5.00 s until 1970-01-01 00:00:06 UTC" in text


def test_a_full_queue_is_shown(show: Any) -> None:
    """
    A full queue, which accepts no further call, is marked.
    """
    shown = show()
    wrapper = shown.add("a", limit=2, queueTimeout=None)
    shown.start()
    resultOf(wrapper.proxy.read(1))
    assert "1 of 2 oldest 1.0 s" in shown.text()
    resultOf(wrapper.proxy.read(2))
    assert "2 of 2 full oldest 2.0 s" in shown.text()
    shown.succeed("a")


def test_the_legend_is_complete(show: Any) -> None:
    """
    The legend has every lamp and every bar that the page can draw.
    """
    legend = show().html().partition('<ul class="legend">')[2]
    lamps = set(" ".join(re.findall(r'class="lamp ([\w ]+)"', legend)).split())
    assert lamps == {state.value for state in State} | {"waiting", "skipped", "lazy"}
    kinds = set(re.findall(r'<(?:line|rect) class="(\w+)"', legend))
    template = (files("tsrv.web") / "static" / "status.css").read_text()
    drawn = set(re.findall(r"\.bar \.(\w+)", template)) | {"ended"}
    assert kinds == drawn


def test_the_history_of_a_module_is_shown(show: Any) -> None:
    """
    The last attempts and losses are listed in order, and the critical path is marked.
    """
    shown = show()
    shown.add("a")
    shown.start()
    shown.clock.advance(1)
    shown.fail("a", ValueError)
    shown.clock.advance(6)
    shown.succeed("a")
    assert "became ready after 7.00 s critical path: a" in shown.text()
    assert "a ◆ critical path ready 2 attempts" in shown.text()
    shown.lose("a")
    shown.clock.advance(5)
    assert "is in progress; last error: Trouble" in shown.text()
    shown.succeed("a")
    text = shown.text()
    assert "last error" not in text
    assert (
        "3 attempts, lost once "
        "0.00 s: attempt failed: ValueError after 1.00 s "
        "7.00 s: attempt succeeded after 0.00 s "
        "9.00 s: lost: Trouble; recovered after 6.00 s "
    ) in text
    for _ in range(10):
        shown.modules["a"].watches[-1].callback(None)
        shown.clock.advance(5)
        shown.succeed("a")
    html = shown.html()
    assert "attempts, lost 11 times" in textOf(html)
    assert re.search(r"\d s: lost; recovered", html)
    assert len(re.findall(r"<li>[^<]* s: ", html)) == 10


def test_a_paused_module_is_shown(show: Any) -> None:
    """
    The page shows how long the calls of a module are held, until the last holder has
    resumed it, and the numbers of queued calls and of calls in progress. Old errors are
    not shown meanwhile.
    """
    shown = show()
    wrapper = shown.add("database", queueTimeout=None)
    shown.start()
    shown.fail("database")
    shown.clock.advance(5)
    shown.succeed("database")
    resultOf(wrapper.proxy.read(1))
    shown.pause("database", "Alice")
    shown.pause("database", "Bob")
    for number in range(3):
        resultOf(wrapper.proxy.read(number))
    shown.clock.advance(19)
    shown.resume("database", "Alice")
    text = shown.text()
    for words in (
        "Not ready: database is paused not ready for 20 s; "
        "3 calls queued, the oldest for 20 s, 1 in progress 0 of 1 module ready",
        "paused calls held for 20 s 2 attempts, paused once",
        "5.00 s: paused 3 of 10,000 oldest 20 s 1 in progress",
        "Pause of database, 5.00 s after the start",
    ):
        assert words in text
    assert "last error" not in text
    assert "paused paused" not in text
    assert 'class="lamp paused"' in shown.fragment().body.decode()
    shown.clock.advance(7200)
    assert "calls held for 2 h 0 min" in shown.text()
    shown.resume("database", "Bob")
    shown.clock.advance(0)
    text = shown.text()
    assert "Ready 0 calls queued, 4 in progress 1 of 1 module ready" in text
    assert "calls held" not in text
    assert "5.00 s: paused for 2 h 0 min" in text


def test_a_module_may_be_paused_before_the_start(show: Any) -> None:
    """
    A module that was paused before the start is shown as paused from then on.
    """
    shown = show()
    shown.add("a")
    shown.clock.advance(1000)
    shown.pause("a")
    assert "a not started calls held 0 of 10,000" in shown.text()
    shown.clock.advance(99)
    shown.start()
    text = shown.text()
    assert "calls held for 1 min 41 s 1 attempt, paused once -100.00 s: paused" in text


def test_a_pause_and_a_loss_are_shown_together(show: Any) -> None:
    """
    A module that is lost during a pause needs help first, and is paused when it has
    recovered. After a thousand pauses, the history on the page is short.
    """
    shown = show()
    shown.add("a")
    shown.start()
    shown.succeed("a")
    for _ in range(1000):
        shown.pause("a")
        shown.resume("a")
    shown.pause("a")
    shown.clock.advance(1)
    shown.startup.reset("a", Trouble(SECRET))
    shown.modules["a"].closings[-1].callback(None)
    shown.fail("a")
    text = shown.text()
    assert "Not ready: a is lost" in text
    assert "retrying attempt 2 failed: Trouble calls held for" in text
    assert "next attempt in 4.0 s 2 attempts, lost once, paused 1001 times" in text
    assert "1.00 s: lost: Trouble" in text
    assert len(re.findall(r"<li>[^<]* s: ", shown.html())) == 10
    shown.clock.advance(4)
    shown.succeed("a")
    assert "Not ready: a is paused" in shown.text()


def test_relations_of_modules_are_shown(show: Any) -> None:
    """
    The page shows which modules a module restarts with, and which it starts after.
    While a module is held for another one, that one is the cause.
    """
    shown = show()
    shown.add(EVIL)
    shown.add("cache", EVIL, restartWith=[EVIL], after=["clock"])
    shown.add("other", "cache", after=[EVIL])
    shown.start()
    shown.succeed(EVIL, "cache", "other")
    text = shown.text()
    assert f"critical path restarts with {EVIL} starts after clock" in text
    assert f"critical path needs cache starts after {EVIL} ready" in text
    shown.lose(EVIL)
    text = shown.text()
    assert f"Not ready: {EVIL} is lost not ready for 1.0 s" in text
    assert "1 of 3 modules ready" in text
    assert f"paused restarts when {EVIL} is ready again calls held for 1.0 s" in text
    assert "<script>alert" not in shown.html()


def test_a_lazy_module_is_not_missing(show: Any) -> None:
    """
    Before its first call, a lazy module neither makes the program wait nor comes first
    on the page.
    """
    shown = show()
    shown.add("a")
    mail = shown.add("mail", "a", lazy=True)
    shown.start()
    text = shown.text()
    assert "waiting for a starting for 1.0 s; 0 calls" in text
    assert "0 of 2 modules ready, 1 not needed yet" in text
    shown.succeed("a")
    text = shown.text()
    assert "Ready 0 calls queued 1 of 2 modules ready, 1 not needed yet" in text
    assert "mail needs a lazy not needed yet 0 of 10,000" in text
    fragment = shown.fragment(**{"If-None-Match": shown.fragment().headers["etag"]})
    assert fragment.status == 304
    shown.clock.advance(100)
    resultOf(mail.proxy.read(1))
    assert "initializing attempt 1 is in progress" in shown.text()
    shown.succeed("mail")
    text = shown.text()
    assert "Ready 0 calls queued, 1 in progress 2 of 2 modules ready" in text
    assert "First call of mail, 1 min 44 s after the start" in text


def test_a_module_that_waits_for_its_turn_is_shown(clock: Clock, show: Any) -> None:
    """
    If the number of simultaneous attempts is limited, the page shows which modules
    wait.
    """
    shown = show()
    shown.startup = Startup(clock, concurrency=1, stayUp=True)
    shown.root = Status(shown.startup, clock)
    shown.add("a")
    shown.add("b")
    shown.start()
    text = shown.text()
    assert "Starting, waiting for a and b" in text
    assert "a initializing attempt 1 is in progress" in text
    assert "b initializing waits for other modules' attempts 0 of" in text


def test_messages_are_shown_only_where_they_may_be(show: Any) -> None:
    """
    The public sees the types of errors; operators also see their messages.
    """
    for showErrors in (False, True):
        shown = show(showErrors=showErrors)
        shown.add("a")
        shown.add("b")
        shown.start()
        shown.fail("a")
        shown.fail("b", Refused)
        for html in (shown.html(), shown.fragment().body.decode()):
            assert (SECRET in unescape(html)) is showErrors
            assert "Trouble" in html


def test_everything_is_escaped(show: Any) -> None:
    """
    A name, a note or an error may be any text, and cannot become markup.
    """

    class Evil(Exception):
        pass

    Evil.__name__ = EVIL
    shown = show(links=[(f"/{EVIL}", EVIL)], showErrors=True)
    shown.add(EVIL)
    shown.add("b", EVIL)
    shown.startup.add("noted", Noted(), initialize=lambda: None)
    shown.start()
    shown.modules[EVIL].attempts[-1].errback(Evil(f"{EVIL} <!-- fragment -->"))
    for html in (shown.html(), shown.fragment().body.decode()):
        assert re.findall(r"<script[^>]*", html) == [
            '<script src="status.js" defer'
        ] * ("<head>" in html)
        assert f"needs {EVIL}" in textOf(html)
        assert r"noted ready caf\udce9" in textOf(html)


def test_the_page_allows_only_its_own_files(show: Any) -> None:
    """
    The policy forbids everything that the page does not need.
    """
    shown = show()
    shown.add("a")
    for answer in (ask(shown.root), ask(shown.root, "/status")):
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; style-src 'self'; script-src 'self'; "
            "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
    page = ask(shown.root).body.decode()
    assert not re.search(r"<style|<[^>]* (on\w+|style)=", page)
    assert page.count("<svg") == len(re.findall(r'<svg[^>]* aria-hidden="true"', page))
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert not [each for each in addresses if "//" in each]


@pytest.mark.parametrize(
    ("name", "contentType"),
    [
        ("status.css", "text/css; charset=utf-8"),
        ("status.js", "text/javascript; charset=utf-8"),
        ("status.svg", "image/svg+xml"),
    ],
)
def test_the_files_of_the_page_are_sent_once(
    name: str, contentType: str, show: Any
) -> None:
    """
    A client that has the current version of a file gets 304.
    """
    shown = show()
    assert f'"{name}"' in shown.html()
    answer = ask(shown.root, f"/{name}")
    assert (answer.status, bool(answer.body)) == (200, True)
    assert answer.headers["content-type"] == contentType
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    again = ask(shown.root, f"/{name}", headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    changed = ask(shown.root, f"/{name}", headers={"If-None-Match": '"old"'})
    assert (changed.status, changed.body) == (200, answer.body)


# The fragment.


def test_an_unchanged_fragment_is_not_sent_again(show: Any) -> None:
    """
    A page whose fragment is current gets 304 until something changes.
    """
    shown = show()
    shown.add("a")
    shown.start()
    shown.succeed("a")
    first = shown.fragment()
    tag = first.headers["etag"]
    again = shown.fragment(**{"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    shown.lose("a")
    changed = shown.fragment(**{"If-None-Match": tag})
    assert (changed.status, changed.headers["etag"] == tag) == (200, False)


def test_one_rendering_serves_everybody_for_a_second(show: Any) -> None:
    """
    The page is rendered on request, at most once a second, without a timer; a clock
    that is set back does not keep an old page.
    """
    shown = show()
    shown.add("a")
    first = ask(shown.root).body
    # The script replaces the content of one element of the page.
    fragment = ask(shown.root, "/status").body
    assert b'<main id="status">' + fragment + b"</main>" in first
    shown.start()
    shown.clock.advance(0.9)
    assert ask(shown.root).body == first
    assert "Not started" in textOf(ask(shown.root, "/status").body.decode())
    shown.clock.advance(0.1)
    assert "Starting" in textOf(ask(shown.root, "/status").body.decode())
    shown.succeed("a")
    shown.clock.rightNow -= 0.5
    assert "Ready" in textOf(ask(shown.root, "/status").body.decode())
    assert shown.clock.getDelayedCalls() == []


def test_of_very_many_modules_some_are_shown(show: Any) -> None:
    """
    The page shows at most 200 modules, starting with modules that are not ready, and
    shortens a long critical path.
    """
    shown = show()
    for number in range(300):
        shown.add(f"m{number}", *([f"m{number - 1}"] if number else []))
    shown.start()
    shown.succeed(*(f"m{number}" for number in range(300)))
    html = shown.html()
    text = textOf(html)
    assert "300 of 300 modules ready" in text
    assert "shown: 200 modules" in text
    assert html.count('scope="row"') == 200
    assert "critical path: … → m280 → m281" in text
    shown.lose("m299")
    # A large page is rendered less often.
    shown.clock.advance(60)
    assert 'class="name">m299<' in shown.html()


def test_of_very_many_modules_lazy_ones_are_shown_last(show: Any) -> None:
    """
    A lazy module that was never called does not need attention.
    """
    shown = show()
    for number in range(200):
        shown.add(f"lazy{number}", lazy=True)
    shown.add("a")
    shown.start()
    assert 'class="name">a<' in shown.html()
