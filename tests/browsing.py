"""
A browser for tests, and a server in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

__all__ = [
    "CHROMIUM",
    "EVIL",
    "OPTIONS",
    "PHONE",
    "ROOT",
    "TWISTD",
    "WIDE",
    "Server",
    "Visit",
    "browse",
    "faintTextsOf",
    "waitFor",
]

ROOT = Path(__file__).parent.parent

EVIL = "<script>alert(1)</script>&\"'"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

TWISTD = os.path.join(os.path.dirname(sys.executable), "twistd")

MISSING = [
    *([] if CHROMIUM else ["no chromium"]),
    *([] if importlib.util.find_spec("playwright") else ["no playwright"]),
]

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

WIDE = {"width": 1180, "height": 760}

PHONE = {"width": 360, "height": 740}

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

CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const c = value / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  // What is behind a page that has no background of its own.
  const sheet = document.documentElement.appendChild(document.createElement("p"));
  sheet.style.backgroundColor = "Canvas";
  const canvas = parse(getComputedStyle(sheet).backgroundColor);
  sheet.remove();
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(
      (node) => node.nodeType === Node.TEXT_NODE && node.data.trim(),
    );
    if (!own || element.closest("noscript, title")) continue;
    let under = element;
    let ground = [0, 0, 0, 0];
    while (under && ground[3] === 0) {
      const [r, g, b, a = 1] = parse(getComputedStyle(under).backgroundColor);
      ground = [r, g, b, a];
      under = under.parentElement;
    }
    if (ground[3] === 0) ground = canvas;
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
    A server on the loopback interface.

    @ivar port: The port of the server.
    @ivar url: The URL of its root.
    """

    def __init__(
        self,
        port: int,
        words: list[str],
        directory: Path,
        sign: str,
        scheme: str = "http",
    ) -> None:
        """
        @param words: The program and its command line.
        @param sign: The text that the program writes when it listens.
        """
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}/"
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
        Send commands to the server, one in a line.
        """
        assert self._process.stdin is not None
        for line in lines:
            print(line, file=self._process.stdin, flush=True)

    def end(self) -> None:
        """
        Close the server's input, and wait until the server exits.
        """
        self._process.communicate(timeout=30)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Visit:
    """
    The windows of a browser in one test.

    @ivar complaints: The lines of the console, and the texts of the dialogs.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    def open(
        self, url: str, size: Any = WIDE, script: str | None = None, **options: Any
    ) -> Page:
        """
        Open a page in a new window, which shares no cookies with others.

        @param size: The width and height of the window, in pixels.
        @param script: A script that runs before the scripts of the page.
        @param options: Further options of the window.
        """
        context = self._browser.new_context(viewport=size, **options)
        if script is not None:
            context.add_init_script(script)
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.goto(url)
        return page

    def end(self) -> None:
        for context in self._browser.contexts:
            context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        # Browsers request an icon even for a page of JSON.
        if not message.location["url"].endswith("/favicon.ico"):
            self.complaints.append(message.text)


@pytest.fixture(scope="session")
def browse() -> Iterator[Callable[[Callable[[Visit], None]], None]]:
    """
    Run a function with a browser, in a thread, because the browser has its own event
    loop.
    """
    if MISSING:
        reason = f"no page is opened: {', '.join(MISSING)}"
        if os.environ.get("TSRV_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    def launch() -> tuple[Playwright, Browser]:
        from playwright.sync_api import sync_playwright

        # coverage cannot trace the greenlets of this thread.
        sys.settrace(None)
        playwright = sync_playwright().start()
        return playwright, playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=list(OPTIONS),
            # Keep pages for the Back button, as real browsers do.
            ignore_default_args=["--disable-back-forward-cache"],
        )

    with ThreadPoolExecutor(1) as threads:
        playwright, browser = threads.submit(launch).result()

        def run(visit: Callable[[Visit], None]) -> None:
            visiting = Visit(browser)
            try:
                visit(visiting)
            finally:
                visiting.end()

        yield lambda visit: threads.submit(run, visit).result()
        threads.submit(browser.close).result()
        threads.submit(playwright.stop).result()


def waitFor(page: Page, condition: str, arg: object = None) -> None:
    """
    Wait until a condition holds. The policy of the page forbids playwright's own way to
    wait.
    """
    page.evaluate(WAIT.replace("CONDITION", condition), arg)


def faintTextsOf(page: Page) -> list[object]:
    """
    @return: The contrast and the text of each element with too little contrast (WCAG
        AA).
    """
    found = page.evaluate(CONTRASTS)
    assert found
    return [each for each in found if each[0] < 4.5]
