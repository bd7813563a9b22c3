"""
People look at the status page with a browser: so does this.

The server is a process of its own, whose modules do as they are told. Nothing
waits for a time: each step follows what is to be seen on the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .browsing import (
    EVIL,
    PHONE,
    ROOT,
    TWISTD,
    WIDE,
    Server,
    Visit,
    faintTextsOf,
    waitFor,
)
from .browsing import browse as browse
from .websupport import reservedPort

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The number of a module in the order in which they are listed.
CLOCK = 1

LIVE = "() => document.documentElement.dataset.connection === 'live'"

INTERVALS = """
window.intervals = [];
const original = window.setInterval;
window.setInterval = (call, delay) => {
  window.intervals.push(delay);
  return original(call, delay);
};
"""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """
    Start servers, all on the same port.
    """
    servers = []
    with reservedPort() as port:

        def start(*names: str) -> Server:
            words = ["-m", "tests._shown", str(port), *names]
            server = Server(port, words, ROOT, "listening")
            servers.append(server)
            return server

        yield start
        for server in servers:
            server.kill()


@pytest.fixture
def tsrv(tmp_path: Path) -> Iterator[Server]:
    """
    The server as it is installed.
    """
    with reservedPort() as port:
        listen = f"tcp:{port}:interface=127.0.0.1"
        words = [TWISTD, "-n", "tsrv", "--listen", listen, "--delay", "5"]
        server = Server(port, words, tmp_path, "Started")
        yield server
        server.kill()


def look(visit: Visit, server: Server, size: Any = WIDE, **options: Any) -> Page:
    """
    Open the status page, and wait until it follows what happens.
    """
    page = visit.open(server.url, size, INTERVALS, **options)
    if options.get("java_script_enabled", True):
        waitFor(page, LIVE)
    return page


def waitForText(page: Page, cell: str, text: str) -> None:
    """
    Wait until a cell says something.
    """
    waitFor(
        page,
        """([cell, text]) => document.querySelector(`[data-cell=${cell}]`)
        ?.textContent.replace(/\\s+/g, " ").includes(text)""",
        [cell, text],
    )


def waitForTime(page: Page, seconds: float) -> None:
    """
    Wait until so much of the timeline is shown.
    """
    waitFor(
        page,
        """(seconds) =>
        document.querySelector("svg.bar").viewBox.baseVal.width >= seconds""",
        seconds,
    )


def lengthOf(page: Page, number: int) -> float:
    """
    @return: How long a bar is, in pixels.
    """
    box = page.locator(f"[data-cell=m{number}-bar]").bounding_box()
    assert box is not None
    return float(box["width"])


def test_the_page_shows_how_the_server_starts(serve: Any, browse: Any) -> None:
    """
    The bars grow, the queue's number rises and falls, the critical path is
    marked, and the browser finds nothing to complain about.
    """
    server = serve()

    def visit(visit: Visit) -> None:
        with ExitStack() as stack:
            page = look(visit, server)
            waitForText(page, "headline", "Not started yet")
            server.tell("start")
            waitForText(page, "headline", "Starting")
            waitForTime(page, 0.2)
            before = lengthOf(page, 0)
            with server.silent():
                # It is the page itself that lets time go by.
                waitForTime(page, 0.6)
            assert lengthOf(page, 0) > before

            asking = [stack.enter_context(server.say()) for _ in range(7)]
            waitForText(page, f"m{CLOCK}-queue", "7")
            asking += [stack.enter_context(server.say()) for _ in range(5)]
            waitForText(page, f"m{CLOCK}-queue", "12")
            waitForText(page, "held", "12")

            server.tell("succeed configuration")
            waitForText(page, "m0-standing", "ready")
            waitForTime(page, 1.3)
            server.tell("fail database")
            waitForText(page, "m2-standing", "Trouble")
            assert page.locator("[data-cell=m2-bar] .failure").count() == 1
            waitForText(page, "m2-standing", "initializing")
            # The curve has seen the queue.
            waitForText(page, f"m{CLOCK}-curve", "peak 12")
            waitForTime(page, 2.2)
            server.tell("succeed clock")
            waitForText(page, f"m{CLOCK}-queue", "0")
            for each in asking:
                assert b"all is well" in each.makefile("rb").read()
            waitForTime(page, 2.8)
            server.tell("succeed database")
            waitForText(page, "m3-standing", "initializing")
            waitForTime(page, 3.3)
            assert page.locator(".mark").count() == 0
            server.tell("succeed sessions")
            waitForText(page, "m4-standing", "ready")
            waitForTime(page, 3.6)
            server.tell("succeed users")
            waitForText(page, "headline", "Ready, ")
            waitForText(page, "path", "configuration → database → users")
            assert page.locator(".mark").count() == 3
            assert page.locator(".bar .critical").count() == 3
            waitFor(page, "() => document.title.startsWith('Ready, ')")
            assert "not for everybody" not in page.content()
            assert visit.complaints == []
            path = os.environ.get("TSRV_SCREENSHOT")
            if path:
                page.locator("body").screenshot(path=path)
            # Nothing grows any more.
            share = page.locator("[data-cell=m0-bar]").get_attribute("width")
            assert share == "100%"

            server.tell("lose users")
            waitForText(page, "headline", "a required module was lost")
            waitForText(page, "axis", "since the loss of users")
            assert page.locator("[data-cell=m3-bar] .lost").count() == 1
            assert visit.complaints == []

    browse(visit)


def test_the_real_server_has_the_page(tsrv: Server, browse: Any) -> None:
    """
    The installed server shows its own clock.
    """

    def visit(visit: Visit) -> None:
        with ExitStack() as stack:
            page = look(visit, tsrv)
            waitForText(page, "headline", "Starting")
            asking = [stack.enter_context(tsrv.say()) for _ in range(3)]
            waitForText(page, "held", "3 calls")
            waitForText(page, "headline", "Ready, 5.")
            waitForText(page, "held", "0 calls")
            for each in asking:
                assert b"I say: Current time is" in each.makefile("rb").read()
            assert visit.complaints == []

    browse(visit)


def test_the_page_survives_a_restart(serve: Any, browse: Any) -> None:
    """
    It says that what is to be seen may be old, and when the server is back,
    with other modules even, it goes on by itself.
    """
    server = serve()
    server.tell("start")

    def visit(visit: Visit) -> None:
        page = look(visit, server)
        waitForText(page, "headline", "Starting")
        page.evaluate("window.sameDocument = true")
        server.end()
        waitFor(page, "() => document.documentElement.dataset.connection === 'lost'")
        notice = page.locator("#connection").inner_text()
        assert notice.startswith("Not connected, last seen at ")
        # It was told why.
        waitForText(page, "headline", "Stopping")
        again = serve(EVIL)
        waitFor(page, LIVE)
        waitForText(page, "headline", "Not started yet")
        waitForText(page, "m5-name", EVIL)
        again.tell("start")
        waitForText(page, "m5-standing", "initializing")
        assert page.evaluate("window.sameDocument")
        # That nobody listened it may say; it has not run what it was sent.
        assert all("ERR_" in each for each in visit.complaints)

    browse(visit)


def test_the_page_asks_again_after_it_was_refused(serve: Any, browse: Any) -> None:
    """
    Where there are too many viewers, or the server is just being stopped, the
    answer is an error, after which a browser alone would give up.
    """
    server = serve()

    def visit(visit: Visit) -> None:
        page = look(visit, server)
        page.route("**/status/events", lambda route: route.fulfill(status=503))
        with page.expect_response(lambda response: response.status == 503):
            server.end()
            serve()
        page.unroute("**/status/events")
        waitFor(page, LIVE)

    browse(visit)


def test_the_page_is_readable_on_every_screen(serve: Any, browse: Any) -> None:
    """
    In light and dark, wide and narrow: nothing has to be scrolled sideways,
    and all text stands out from what is behind it (WCAG AA).
    """
    server = serve("a-name-that-is-so-long-that-it-does-not-fit-into-one-line" * 2)
    server.tell("start", "succeed configuration", "fail database")

    def visit(visit: Visit) -> None:
        grounds = set()
        for scheme in ("light", "dark"):
            for size in (WIDE, PHONE):
                page = look(visit, server, size, color_scheme=scheme)
                widths = page.evaluate(
                    "[document.documentElement.scrollWidth, innerWidth]"
                )
                assert widths[0] <= widths[1]
                assert faintTextsOf(page) == []
                for number in range(6):
                    assert lengthOf(page, number) > 0
                track = page.locator(".track").first.bounding_box()
                assert track is not None
                assert track["width"] > 300
            grounds.add(
                page.evaluate("getComputedStyle(document.body).backgroundColor")
            )
        assert len(grounds) == 2
        assert visit.complaints == []

    browse(visit)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_is_a_table_to_a_screen_reader(
    serve: Any, browse: Any, size: Any
) -> None:
    """
    However it is laid out, its rows have headers, and its bars are told.
    """
    server = serve()
    server.tell("start")

    def visit(visit: Visit) -> None:
        page = look(visit, server, size)
        waitForText(page, "headline", "Starting")
        table = page.get_by_role("table", name="The modules, and how they started")
        assert table.get_by_role("row").count() == 6
        assert table.get_by_role("columnheader", name="Queue").count() == 1
        assert table.get_by_role("rowheader", name="clock").count() == 1
        told = table.get_by_role("cell", name="Begun 0.00 s after the start.")
        assert told.count() == 2
        assert page.get_by_role("status").count() == 2

    browse(visit)


def test_the_page_is_used_with_a_keyboard(serve: Any, browse: Any) -> None:
    """
    The first key leads past the links, and one sees where one is.
    """
    server = serve()

    def visit(visit: Visit) -> None:
        page = look(visit, server)
        page.keyboard.press("Tab")
        skip = page.locator(":focus")
        assert skip.inner_text() == "Skip to the modules"
        assert skip.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        waitFor(page, "() => document.activeElement.getBoundingClientRect().top >= 0")
        page.keyboard.press("Enter")
        waitFor(page, "() => document.activeElement.id === 'live'")
        page.keyboard.press("Shift+Tab")
        assert page.locator(":focus").inner_text() == "/metrics"

    browse(visit)


def test_the_page_needs_no_script(serve: Any, browse: Any) -> None:
    """
    Without one it is a still picture, and says so.
    """
    server = serve()
    server.tell("start", "succeed configuration")

    def visit(visit: Visit) -> None:
        page = look(visit, server, java_script_enabled=False)
        text = page.inner_text("body")
        assert "As of " in text
        assert "still picture" in text
        assert "1 of 5 modules ready" in text
        assert lengthOf(page, 0) > 0

    browse(visit)


def test_those_who_like_it_calm_see_fewer_steps(serve: Any, browse: Any) -> None:
    """
    Who asked for less motion gets one step in a second, and not ten.
    """
    server = serve()
    server.tell("start")

    def visit(visit: Visit) -> None:
        for motion, interval, other in (
            ("no-preference", 100, 1000),
            ("reduce", 1000, 100),
        ):
            page = look(visit, server, reduced_motion=motion)
            waitFor(page, "() => intervals.length > 1")
            intervals = page.evaluate("intervals")
            assert interval in intervals
            assert other not in intervals

    browse(visit)
