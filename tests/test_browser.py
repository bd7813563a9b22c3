"""
The status page in a browser.

The server is a process of its own, whose modules the test controls. No test waits for a
time: each step waits for what the page shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .browsing import (
    EVIL,
    PHONE,
    ROOT,
    WIDE,
    Server,
    Visit,
    faintTextsOf,
    waitFor,
)
from .operated import SECRET
from .websupport import reservedPort

if TYPE_CHECKING:
    from playwright.sync_api import Page

LIVE = "() => document.documentElement.dataset.connection === 'live'"

HEADLINE = "#status .headline"

LOST = "() => document.documentElement.dataset.connection === 'lost'"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """
    Start servers, all on the same port.
    """
    servers = []
    with reservedPort() as port:

        def start(*names: str) -> Server:
            words = ["-m", "tests.statusserver", str(port), *names]
            servers.append(Server(port, words, ROOT, "listening"))
            return servers[-1]

        yield start
        for server in servers:
            server.kill()


def waitForText(page: Page, selector: str, text: str) -> None:
    """
    Wait until an element has a text.
    """
    waitFor(
        page,
        """([selector, text]) => document.querySelector(selector)
        ?.textContent.replace(/\\s+/g, " ").includes(text)""",
        [selector, text],
    )


def row(name: str, cell: str) -> str:
    """
    @return: The selector of a cell of a module.
    """
    return f"tbody tr[data-key={name!r}] .{cell}"


def test_the_page_follows_the_program(serve: Any, browse: Any) -> None:
    """
    The page is refreshed in place: the focus, open details and the scroll position
    stay, and the console of the browser is empty.
    """
    server = serve(*(f"other {number}" for number in range(20)))

    def visit(visit: Visit) -> None:
        page = visit.open(server.url)
        waitFor(page, LIVE)
        server.tell(*["call clock"] * 7)
        waitForText(page, row("clock", "queue"), "7 of 10,000 oldest")
        server.tell("start", "fail configuration")
        waitForText(page, HEADLINE, "Starting")
        waitForText(page, row("configuration", "standing"), "attempt 1 failed: Trouble")
        page.focus("summary")
        page.keyboard.press("Enter")
        page.evaluate("scrollTo(0, 50)")
        server.tell("succeed clock")
        waitForText(page, row("clock", "queue"), "0 of 10,000")
        # The next attempt.
        waitForText(
            page, row("configuration", "standing"), "in progress; last error: Trouble"
        )
        assert page.locator("details[open] summary:focus").count() == 1
        assert page.evaluate("scrollY") == 50
        server.tell("lose clock")
        waitForText(page, row("clock", "standing"), "lost: Trouble")
        assert page.title().startswith("Starting, waiting for ")
        assert SECRET not in page.content()
        assert visit.complaints == []

    browse(visit)


def test_pauses_and_lazy_modules_are_followed(serve: Any, browse: Any) -> None:
    """
    The page follows a pause and the first call of a lazy module in place, and draws
    each bar as the legend does.
    """
    server = serve()
    server.tell("start", "succeed configuration", "succeed clock")
    server.tell("succeed database", "succeed users", "succeed sessions")

    def visit(visit: Visit) -> None:
        page = visit.open(server.url)
        waitFor(page, LIVE)
        waitForText(page, HEADLINE, "Ready")
        waitForText(page, row("mail", "standing"), "lazy not needed yet")
        page.focus(f"{row('database', 'standing')} summary")
        page.keyboard.press("Enter")
        server.tell("pause database", "call database", "lose clock")
        waitForText(page, HEADLINE, "clock is lost and database is paused")
        waitForText(page, row("database", "standing"), "paused calls held for")
        waitForText(page, row("database", "queue"), "1 of 10,000")
        assert page.locator("details[open]").count() == 1
        drawn, legend = (
            page.evaluate(
                """(selector) => [...document.querySelectorAll(selector)].map(
                (each) => each.classList[0] + getComputedStyle(each).stroke)""",
                f"{bar} > :is(line, rect)",
            )
            for bar in ("td .bar", ".legend .bar")
        )
        assert set(drawn) <= set(legend)
        for kind in ("paused", "lost", "lazy", "ready"):
            assert any(each.startswith(kind) for each in drawn)
        server.tell("resume database", "call mail")
        waitForText(page, row("database", "standing"), "ready 1 attempt, paused once")
        waitForText(page, row("mail", "standing"), "attempt 1 is in progress")
        assert visit.complaints == []

    browse(visit)


@pytest.mark.parametrize("script", [True, False], ids=["script", "plain"])
def test_modules_are_paused_with_buttons(script: bool, serve: Any, browse: Any) -> None:
    """
    The buttons work with a script, which keeps the page, and without one.
    """
    server = serve("a/b ü")
    server.tell("start", "succeed configuration", "succeed clock", "succeed a/b ü")

    def visit(visit: Visit) -> None:
        page = visit.open(server.url, java_script_enabled=script)
        path = page.get_by_role("row", name="a/b ü")
        path.get_by_text("Control").click()
        page.get_by_role("button", name="Pause a/b ü").click()
        path.get_by_text("calls held by operator").wait_for()
        page.get_by_role("button", name="Resume a/b ü").click()
        path.get_by_text("calls held").wait_for(state="hidden")
        if script:
            # An error has a page of its own.
            page.evaluate("document.querySelector('button').formAction = 'modules/x/y'")
            page.locator("summary").get_by_text("Control").first.click()
            page.locator("button").first.click()
            page.get_by_text("Route not found").first.wait_for()

    browse(visit)


def test_a_stop_is_distinguished_from_a_loss(serve: Any, browse: Any) -> None:
    """
    If a server was stopping before its connection ended, the page says that it has
    stopped.
    """
    server = serve()
    server.tell("start", "announceStop")

    def visit(visit: Visit) -> None:
        page = visit.open(server.url)
        waitFor(page, LIVE)
        waitForText(page, HEADLINE, "Stopping")
        server.end()
        waitFor(page, LOST)
        assert page.title().startswith("The server has stopped ")
        assert "shows the state at 20" in page.get_by_role("alert").inner_text()

    browse(visit)


def test_the_page_survives_a_restart(serve: Any, browse: Any) -> None:
    """
    The page reports a lost connection, and recovers when the server is back, even with
    other modules. An error page of a proxy is not taken for the server.
    """
    server = serve()
    server.tell("start")

    def visit(visit: Visit) -> None:
        page = visit.open(server.url)
        waitFor(page, LIVE)
        page.evaluate("window.sameDocument = true")
        page.route("**/status", lambda route: route.fulfill(status=502))
        waitFor(page, LOST)
        page.unroute("**/status")
        waitFor(page, LIVE)
        server.end()
        waitFor(page, LOST)
        assert page.get_by_role("alert").is_visible()
        assert page.title().startswith("The server does not answer ")
        assert not page.locator(HEADLINE).is_visible()
        serve(EVIL)
        waitFor(page, LIVE)
        waitForText(page, HEADLINE, "Not started")
        waitForText(page, "tbody tr:nth-child(7) .name", EVIL)
        assert page.evaluate("window.sameDocument")
        # The browser reports failed requests; it ran only the page's own script.
        assert all("ERR_" in each or "502" in each for each in visit.complaints)

    browse(visit)


def test_a_hidden_page_sends_no_request(serve: Any, browse: Any) -> None:
    """
    A hidden tab sends no request, and is up to date as soon as it is shown.
    """
    server = serve()
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""

    def visit(visit: Visit) -> None:
        page = visit.open(server.url)
        waitFor(page, LIVE)
        page.clock.install()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.evaluate(hide, True)
        page.clock.run_for(60_000)
        count = len(requests)
        page.clock.run_for(60_000)
        assert len(requests) == count <= 1
        server.tell("start")
        page.evaluate(hide, False)
        page.clock.run_for(1)
        waitForText(page, HEADLINE, "Starting")

    browse(visit)


def test_the_page_is_readable_on_every_screen(serve: Any, browse: Any) -> None:
    """
    In light and dark, wide and narrow, the page fits the width of the screen, and
    every text stands out from its background (WCAG AA).
    """
    server = serve("a-name-that-is-so-long-that-it-does-not-fit-into-one-line" * 2)
    server.tell("start", "succeed configuration", "fail database", "succeed clock")
    server.tell("pause clock", "call clock")

    def visit(visit: Visit) -> None:
        grounds = set()
        for scheme in ("light", "dark"):
            for size in (WIDE, PHONE):
                page = visit.open(server.url, size, color_scheme=scheme)
                waitFor(page, LIVE)
                widths = page.evaluate(
                    "[document.documentElement.scrollWidth, innerWidth]"
                )
                assert widths[0] <= widths[1]
                assert faintTextsOf(page) == []
                for bar in page.locator("td .bar").all():
                    box = bar.bounding_box()
                    assert box is not None
                    assert box["width"] > 300
                table = page.get_by_role("table", name="The modules and how they")
                assert table.get_by_role("rowheader", name="mail").count() == 1
            grounds.add(
                page.evaluate("getComputedStyle(document.body).backgroundColor")
            )
        assert len(grounds) == 2
        assert visit.complaints == []

    browse(visit)
