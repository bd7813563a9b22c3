"""
Makes C{docs/status.png}, the status page while a server starts, with Chromium:

    python -m tests.screenshot
"""

from __future__ import annotations

from playwright.sync_api import sync_playwright

from .browsing import CHROMIUM, OPTIONS, ROOT, Server
from .websupport import reservedPort

__all__: list[str] = []


def _main() -> None:
    with reservedPort() as port, sync_playwright() as playwright:
        words = ["-m", "tests.statusserver", str(port)]
        server = Server(port, words, ROOT, "listening")
        try:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=list(OPTIONS)
            )
            page = browser.new_page(viewport={"width": 1180, "height": 760})
            page.goto(server.url)
            server.tell("start", *["call clock"] * 12, "call users")
            page.wait_for_timeout(1000)
            server.tell("succeed configuration")
            page.wait_for_timeout(500)
            server.tell("fail database")
            page.wait_for_timeout(3000)
            page.screenshot(path=ROOT / "docs" / "status.png", full_page=True)
            browser.close()
        finally:
            server.kill()


if __name__ == "__main__":
    _main()
