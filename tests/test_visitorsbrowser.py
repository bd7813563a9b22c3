"""
Cookies, pages of other sites and the Back button, in a browser. The server runs in its
own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from .browsing import EVIL, PHONE, TWISTD, Server, Visit, faintTextsOf
from .websupport import reservedPort

if TYPE_CHECKING:
    from playwright.sync_api import Page

REFUSED = "Failed to load resource: the server responded with a status of 403"

FORM = """\
<!DOCTYPE html>
<form method="post" action="{url}{path}">
<input name="name" value="Eve">
<button>Click here</button>
</form>
"""

KEPT = """
addEventListener("pageshow", (event) => {
  if (event.persisted) {
    console.log("kept: " + document.documentElement.textContent);
  }
});
"""


def certified() -> bytes:
    """
    @return: A key, and a self-signed certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.now(UTC), timedelta(days=1)
    ends = (now - day, now + day)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, *ends)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + builder.sign(key, hashes.SHA256()).public_bytes(pem)


def serving(port: int, directory: Path, listen: str, scheme: str) -> Server:
    """
    Start the server as it is installed.
    """
    options = [f"--listen={listen}", "--delay=0", "--database=sqlite:visitors.db"]
    return Server(port, [TWISTD, "-n", "tsrv", *options], directory, "Started", scheme)


@pytest.fixture(scope="module")
def site(browse: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """
    The server. Each window is a separate visitor.
    """
    directory = tmp_path_factory.mktemp("visitors")
    with reservedPort() as port:
        listen = f"tcp:{port}:interface=127.0.0.1"
        server = serving(port, directory, listen, "http")
        yield server
        server.kill()


@pytest.fixture
def secureSite(browse: Any, tmp_path: Path) -> Iterator[Server]:
    """
    The server, over TLS.
    """
    file = tmp_path / "key.pem"
    file.write_bytes(certified())
    with reservedPort() as port:
        listen = f"ssl:{port}:interface=127.0.0.1:privateKey={file}:certKey={file}"
        server = serving(port, tmp_path, listen, "https")
        yield server
        server.kill()


@pytest.fixture
def otherSite() -> Iterator[dict[str, str]]:
    """
    The pages of another site, by path; C{port} is its port.
    """
    pages: dict[str, str] = {}

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *arguments: object) -> None:
            """
            Log nothing.
            """

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        pages["port"] = str(server.server_port)
        serving = Thread(target=partial(server.serve_forever, poll_interval=0.01))
        serving.start()
        yield pages
        server.shutdown()
        serving.join()


def login(page: Page, site: Server, name: str) -> None:
    """
    Log in with the mouse.
    """
    page.goto(f"{site.url}login")
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}me")


def logout(page: Page, site: Server) -> None:
    """
    Log out with the mouse.
    """
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{site.url}login")


def nameOf(page: Page, site: Server) -> Any:
    """
    @return: The name that the server shows for the cookies of the browser.
    """
    answer = page.request.get(f"{site.url}me", headers={"Accept": "application/json"})
    return answer.json()["name"]


def cookieOf(page: Page) -> Any:
    """
    @return: The only cookie of the browser.
    """
    (cookie,) = page.context.cookies()
    return cookie


def test_the_cookie_belongs_to_the_host(secureSite: Server, browse: Any) -> None:
    """
    A browser accepts the cookie with the prefix __Host-, and hides it from scripts. The
    cookie changes at the login, and stops working at the logout.
    """
    site = secureSite

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}login", ignore_https_errors=True)
        assert page.context.cookies() == []
        page.goto(f"{site.url}visits")
        before = cookieOf(page)
        login(page, site, "Ada")
        cookie = cookieOf(page)
        assert cookie["value"] != before["value"]
        assert cookie == {
            "name": "__Host-session",
            "value": cookie["value"],
            "domain": "127.0.0.1",
            "path": "/",
            "expires": -1,
            "httpOnly": True,
            "secure": True,
            "sameSite": "Lax",
        }
        assert page.evaluate("document.cookie") == ""
        assert page.locator("#visits").inner_text() == "1"
        stranger = visit.open(f"{site.url}login", ignore_https_errors=True)
        for sent, expected in ((before, None), (cookie, "Ada")):
            stranger.context.add_cookies([sent])
            assert nameOf(stranger, site) == expected
        logout(page, site)
        assert page.context.cookies() == []
        assert nameOf(stranger, site) is None
        assert visit.complaints == []

    browse(visit)


def test_a_visitor_needs_a_keyboard_only(site: Server, browse: Any) -> None:
    """
    The forms can be used with the keyboard, and a name is text.
    """

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}me")
        page.wait_for_url(f"{site.url}login")
        page.keyboard.press("Tab")
        assert page.locator(":focus").get_attribute("name") == "name"
        page.keyboard.type(EVIL)
        page.keyboard.press("Tab")
        button = page.locator(":focus")
        assert button.inner_text() == "Log in"
        assert button.evaluate("e => getComputedStyle(e).outlineStyle") != "none"
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}me")
        assert page.get_by_role("heading").inner_text() == f"Hello, {EVIL}"
        assert page.title() == f"Hello, {EVIL}"
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Log out"
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}login")
        assert visit.complaints == []

    browse(visit)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_visitor_needs_no_script_and_no_large_screen(
    site: Server, browse: Any, scheme: Any
) -> None:
    """
    Without a script, links lead around the site, each page fits a phone, and every text
    has enough contrast (WCAG AA).
    """

    def visit(visit: Visit) -> None:
        # The browser checks colours with a script of its own.
        for script in (True, False):
            page = visit.open(
                site.url, PHONE, color_scheme=scheme, java_script_enabled=script
            )
            for name, heading in (("visits", "Visits"), ("log in", "Log in")):
                page.get_by_role("navigation").get_by_role("link", name=name).click()
                assert page.get_by_role("heading", level=1).inner_text() == heading
                if script:
                    assert faintTextsOf(page) == []
                    width = page.evaluate("document.documentElement.scrollWidth")
                    assert width <= PHONE["width"]
            page.get_by_label("Name").fill(" ")
            page.get_by_role("button", name="Log in").click()
            field = page.get_by_label("Name")
            assert field.get_attribute("aria-invalid") == "true"
            described = page.locator(f"#{field.get_attribute('aria-describedby')}")
            assert "Expected at least one visible" in described.inner_text()
            if script:
                assert faintTextsOf(page) == []
            field.fill("Ada")
            field.press("Enter")
            page.wait_for_url(f"{site.url}me")
            page.get_by_role("link", name="status").click()
            page.wait_for_url(site.url)
            page.get_by_role("link", name="me", exact=True).click()
            page.wait_for_url(f"{site.url}me")
            if script:
                assert faintTextsOf(page) == []
        assert all("400" in each for each in visit.complaints)

    browse(visit)


def test_another_site_logs_nobody_in_or_out(
    site: Server, otherSite: dict[str, str], browse: Any
) -> None:
    """
    A form of another port or host is refused, and so is a frame.
    """
    for path in ("login", "logout"):
        otherSite[f"/{path}"] = FORM.format(url=site.url, path=path)
    otherSite["/frame"] = f'<iframe src="{site.url}me"></iframe>'

    def submit(page: Page, host: str, path: str) -> Any:
        page.goto(f"http://{host}:{otherSite['port']}/{path}")
        with page.expect_response(f"{site.url}{path}") as found:
            page.get_by_role("button").click()
        page.wait_for_url(f"{site.url}{path}")
        assert found.value.status == 403
        heading = page.get_by_role("heading").inner_text()
        assert heading == "The request was made by another site"
        return found.value.request.all_headers()

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}login")
        stranger = visit.open(f"{site.url}login")
        login(page, site, "Ada")
        cookie = cookieOf(page)
        for host in ("127.0.0.1", "localhost"):
            for path in ("login", "logout"):
                # For a cookie, another port is the same site.
                sent = submit(page, host, path)
                assert ("cookie" in sent) == (host == "127.0.0.1")
                assert cookieOf(page) == cookie
                assert nameOf(page, site) == "Ada"
                submit(stranger, host, path)
                assert stranger.context.cookies() == []
        assert len(visit.complaints) == 8
        assert all(each.startswith(REFUSED) for each in visit.complaints)
        page.goto(f"http://127.0.0.1:{otherSite['port']}/frame")
        (frame,) = page.main_frame.child_frames
        assert frame.get_by_role("button").count() == 0
        assert "frame-ancestors 'none'" in visit.complaints[-1]

    browse(visit)


@pytest.mark.parametrize("isKept", [True, False], ids=["kept", "not kept"])
def test_the_back_button_shows_nobody_after_the_logout(
    site: Server, browse: Any, isKept: bool
) -> None:
    """
    After the logout the Back button shows the form, whether the browser keeps pages or
    not.
    """

    def goBack(page: Page, steps: int) -> None:
        # A kept page is empty, and then reloads itself.
        with page.expect_navigation(url=f"{site.url}login"):
            page.evaluate("steps => { setTimeout(() => history.go(-steps)); }", steps)
        assert page.get_by_label("Name").input_value() == ""
        assert "Lovelace" not in page.content()

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}visits", script=KEPT)
        if not isKept:
            # Browsers do not keep a page that another window can reach.
            with page.expect_popup() as opened:
                page.evaluate("() => { open('about:blank'); }")
            page = opened.value
        for steps in (1, 2):
            login(page, site, "Ada Lovelace")
            logout(page, site)
            goBack(page, steps)
        # The browser decides whether to keep a page.
        assert set(visit.complaints) <= ({"kept: "} if isKept else set())

    browse(visit)
