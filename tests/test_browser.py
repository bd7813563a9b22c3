"""
People look at the status page with a browser: so does this.

The server is a process of its own, whose modules do as they are told. Nothing
waits for a time: each step follows what is to be seen on the page.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest

from .websupport import reservedPort

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent

EVIL = "<script>alert(1)</script>&\"'"

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

MISSING = [
    *([] if CHROMIUM else ["no chromium"]),
    *([] if importlib.util.find_spec("playwright") else ["no playwright"]),
]

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

WIDE = {"width": 1180, "height": 760}

PHONE = {"width": 360, "height": 740}

# The number of a module in the order in which they are listed.
CLOCK = 1

LIVE = "() => document.documentElement.dataset.connection === 'live'"

WAIT = """(arg) => new Promise((resolve, reject) => {
  const holds = CONDITION;
  const late = setTimeout(() => reject(new Error(document.body.innerText)), 60000);
  const look = () => {
    if (holds(arg)) {
      clearTimeout(late);
      resolve();
    } else {
      requestAnimationFrame(look);
    }
  };
  look();
})"""

INTERVALS = """
window.intervals = [];
const original = window.setInterval;
window.setInterval = (call, delay) => {
  window.intervals.push(delay);
  return original(call, delay);
};
"""

CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const c = value / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(
      (node) => node.nodeType === Node.TEXT_NODE && node.data.trim(),
    );
    if (!own || element.closest("noscript")) continue;
    let under = element;
    let ground = [0, 0, 0, 0];
    while (under && ground[3] === 0) {
      const [r, g, b, a = 1] = parse(getComputedStyle(under).backgroundColor);
      ground = [r, g, b, a];
      under = under.parentElement;
    }
    const style = getComputedStyle(element);
    const svg = element.namespaceURI.endsWith("svg");
    const [r, g, b] = parse(svg ? style.fill : style.color);
    const both = [luminance([r, g, b]), luminance(ground.slice(0, 3))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    found.push([ratio, element.textContent.trim()]);
  }
  return found;
}"""


class Server:
    """
    The server.
    """

    def __init__(self, port: int, words: list[str], directory: Path, sign: str) -> None:
        """
        @param words: The program, and its command line.
        @param sign: What it writes when it listens.
        """
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, *words],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if sign in line:
                return
        raise AssertionError(f"the server ended before it wrote {sign!r}")

    def tell(self, *lines: str) -> None:
        """
        Tell it what to do.
        """
        assert self._process.stdin is not None
        for line in lines:
            print(line, file=self._process.stdin, flush=True)

    def say(self) -> socket.socket:
        """
        Ask for C{/say}.
        """
        asking = socket.create_connection(("127.0.0.1", self.port), 30)
        asking.sendall(SAY)
        return asking

    @contextmanager
    def silent(self) -> Iterator[None]:
        """
        Let it do nothing for a while.
        """
        self._process.send_signal(SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(SIGCONT)

    def end(self) -> None:
        """
        End it as it is meant to.
        """
        self._process.communicate(timeout=30)

    def terminate(self) -> None:
        """
        Ask it to stop, and wait until it has.
        """
        self._process.terminate()
        self._process.communicate(timeout=30)

    def kill(self) -> None:
        """
        End it at once.
        """
        self._process.kill()
        self._process.communicate()


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
    twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
    with reservedPort() as port:
        listen = f"tcp:{port}:interface=127.0.0.1"
        words = [twistd, "-n", "tsrv", "--listen", listen, "--delay", "5"]
        server = Server(port, words, tmp_path, "Started")
        yield server
        server.kill()


class Visit:
    """
    What one does with a browser.

    @ivar complaints: What the browser has written to its console, or would
        have asked.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    def open(self, server: Server, size: Any = WIDE, **options: Any) -> Page:
        """
        Open the page, in a window of its own.
        """
        context = self._browser.new_context(viewport=size, **options)
        context.add_init_script(INTERVALS)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.goto(server.url)
        if options.get("java_script_enabled", True):
            waitFor(page, LIVE)
        return page


@pytest.fixture
def browse() -> Callable[[Callable[[Visit], None]], None]:
    """
    Do something with a browser. It brings a loop of its own, which wants a
    thread of its own beside the reactor.
    """
    if MISSING:
        reason = f"the status page is not opened: {', '.join(MISSING)}"
        if os.environ.get("TSRV_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    def run(visit: Callable[[Visit], None]) -> None:
        from playwright.sync_api import sync_playwright

        # Nothing that is measured runs in this thread, and what measures the
        # coverage does not know of the greenlets in it.
        sys.settrace(None)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=list(OPTIONS)
            )
            try:
                visit(Visit(browser))
            finally:
                browser.close()

    def inThread(visit: Callable[[Visit], None]) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(run, visit).result()

    return inThread


def waitFor(page: Page, condition: str, arg: object = None) -> None:
    """
    Wait until a condition holds. What playwright has for that is forbidden by
    the policy of the page.
    """
    page.evaluate(WAIT.replace("CONDITION", condition), arg)


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
            page = visit.open(server)
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
    What is installed shows its own clock, and does not wait for its viewers
    when it is stopped.
    """

    def visit(visit: Visit) -> None:
        with ExitStack() as stack:
            page = visit.open(tsrv)
            waitForText(page, "headline", "Starting")
            asking = [stack.enter_context(tsrv.say()) for _ in range(3)]
            waitForText(page, "held", "3 calls")
            waitForText(page, "headline", "Ready, 5.")
            waitForText(page, "held", "0 calls")
            for each in asking:
                assert b"I say: Current time is" in each.makefile("rb").read()
            assert visit.complaints == []
            tsrv.terminate()
            waitForText(page, "headline", "Stopping")

    browse(visit)


def test_the_page_survives_a_restart(serve: Any, browse: Any) -> None:
    """
    It says that what is to be seen may be old, and when the server is back,
    with other modules even, it goes on by itself.
    """
    server = serve()
    server.tell("start")

    def visit(visit: Visit) -> None:
        page = visit.open(server)
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
        page = visit.open(server)
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
                page = visit.open(server, size, color_scheme=scheme)
                widths = page.evaluate(
                    "[document.documentElement.scrollWidth, innerWidth]"
                )
                assert widths[0] <= widths[1]
                faint = [each for each in page.evaluate(CONTRASTS) if each[0] < 4.5]
                assert faint == []
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
        page = visit.open(server, size)
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
        page = visit.open(server)
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
        page = visit.open(server, java_script_enabled=False)
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
            page = visit.open(server, reduced_motion=motion)
            waitFor(page, "() => intervals.length > 1")
            intervals = page.evaluate("intervals")
            assert interval in intervals
            assert other not in intervals

    browse(visit)
