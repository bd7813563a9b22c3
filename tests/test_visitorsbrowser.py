"""
Visitors log in and out with a browser: so does this.

The server is a process of its own, as it is installed. What a browser does with a
cookie, with a page of another site, and with its Back button is seen in a browser
only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from .browsing import EVIL, PHONE, TWISTD, WIDE, Server, Visit, faintTextsOf
from .browsing import browse as browse
from .websupport import reservedPort

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = [
    EVIL,
    "</title></h1><img src=x onerror=alert(1)>",
    "&lt;b&gt; {visits} %s \\",
    "Ada Löve · 愛 · עדה",
]

REFUSED = "Failed to load resource: the server responded with a status of 403"

FORM = """\
<!DOCTYPE html>
<title>Win a prize</title>
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

FRAME = """\
<!DOCTYPE html>
<title>Win a prize</title>
<iframe src="{url}me"></iframe>
"""


def serving(port: int, directory: Path, listen: str, scheme: str) -> Server:
    """
    Start the server as it is installed.
    """
    options = [f"--listen={listen}", "--delay=0", "--database=sqlite:visitors.db"]
    words = [TWISTD, "-n", "tsrv", *options]
    return Server(port, words, directory, "Started", scheme)


@pytest.fixture(scope="module")
def site(browse: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """
    The server. Each window is a visitor of its own.
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
    key, file = certify(tmp_path)
    with reservedPort() as port:
        listen = f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={file}"
        server = serving(port, tmp_path, listen, "https")
        yield server
        server.kill()


@pytest.fixture
def otherSite() -> Iterator[dict[str, str]]:
    """
    What another site has at its paths, on a port of its own; C{port} is where.
    """
    pages: dict[str, str] = {}

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *words: object) -> None:
            """
            Nobody wants to know.
            """

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        pages["port"] = str(server.server_port)
        serving = Thread(target=partial(server.serve_forever, poll_interval=0.01))
        serving.start()
        yield pages
        server.shutdown()
        serving.join()


def certify(directory: Path) -> tuple[Path, Path]:
    """
    @return: The files of a key, and of a certificate that it has signed itself.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    keyFile, file = directory / "key.pem", directory / "certificate.pem"
    keyFile.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return keyFile, file


def visitsOf(page: Page, site: Server) -> Any:
    """
    Visit once more.

    @return: How often that has been done.
    """
    page.goto(f"{site.url}visits")
    return json.loads(page.inner_text("body"))["visits"]


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
    @return: Who the server takes the visitor for; asked as a program asks, with
        the cookies that the browser would send.
    """
    answer = page.request.get(f"{site.url}me", headers={"Accept": "application/json"})
    return answer.json()["name"]


def cookieOf(page: Page) -> Any:
    """
    @return: The only cookie that the browser has.
    """
    (cookie,) = page.context.cookies()
    return cookie


def test_a_visitor_needs_a_keyboard_only(site: Server, browse: Any) -> None:
    """
    From the first visit to the logout, with what was done before the login still
    there after it, and nothing for the browser to complain about.
    """

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}visits")
        assert visitsOf(page, site) == 2

        # Who is nobody yet is led to the form.
        page.goto(f"{site.url}me")
        page.wait_for_url(f"{site.url}login")
        page.keyboard.press("Tab")
        assert page.locator(":focus").get_attribute("name") == "name"
        page.keyboard.type("Ada")
        page.keyboard.press("Tab")
        button = page.locator(":focus")
        assert button.inner_text() == "Log in"
        assert button.evaluate("e => getComputedStyle(e).outlineStyle") != "none"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}me")
        assert page.get_by_role("heading").inner_text() == "Hello, Ada"
        assert page.locator("#visits").inner_text() == "2"

        assert visitsOf(page, site) == 3
        page.goto(f"{site.url}me")
        assert page.locator("#visits").inner_text() == "3"
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Log out"
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}login")
        assert visitsOf(page, site) == 1
        assert visit.complaints == []

    browse(visit)


def test_the_cookie_is_of_use_to_nobody_else(site: Server, browse: Any) -> None:
    """
    Scripts cannot read it, other sites cannot use it, and neither who knew it
    before the login nor who has kept it after the logout has anything of it.
    """

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}login")
        assert page.context.cookies() == []
        visitsOf(page, site)
        before = cookieOf(page)
        login(page, site, "Ada")
        cookie = cookieOf(page)
        assert cookie["value"] != before["value"]
        for each in (before, cookie):
            value = each.pop("value")
            assert len(value) == 43
            assert each == {
                "name": "session",
                "domain": "127.0.0.1",
                "path": "/",
                "expires": -1,
                "httpOnly": True,
                "secure": False,
                "sameSite": "Lax",
            }
            each["value"] = value
        assert page.evaluate("document.cookie") == ""

        stranger = visit.open(f"{site.url}login")
        stranger.context.add_cookies([before])
        assert nameOf(stranger, site) is None
        stranger.context.add_cookies([cookie])
        assert nameOf(stranger, site) == "Ada"

        logout(page, site)
        assert page.context.cookies() == []
        assert nameOf(stranger, site) is None
        page.context.add_cookies([cookie])
        page.goto(f"{site.url}me")
        assert page.url == f"{site.url}login"
        assert nameOf(page, site) is None
        assert visit.complaints == []

    browse(visit)


def test_over_tls_the_cookie_is_the_hosts_own(secureSite: Server, browse: Any) -> None:
    """
    A browser drops a cookie with this prefix unless all of it is right.
    """
    site = secureSite

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}visits", ignore_https_errors=True)
        before = cookieOf(page)
        login(page, site, "Ada")
        cookie = cookieOf(page)
        assert cookie.pop("value") != before["value"]
        assert cookie == {
            "name": "__Host-session",
            "domain": "127.0.0.1",
            "path": "/",
            "expires": -1,
            "httpOnly": True,
            "secure": True,
            "sameSite": "Lax",
        }
        assert page.locator("#visits").inner_text() == "1"
        logout(page, site)
        assert page.context.cookies() == []
        assert visit.complaints == []

    browse(visit)


def test_a_name_is_text(site: Server, browse: Any) -> None:
    """
    Whatever it looks like, it is shown as it was entered, and does nothing.
    """

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}login")
        for name in NAMES:
            login(page, site, name)
            assert page.get_by_role("heading").inner_text() == f"Hello, {name}"
            assert page.title() == f"Hello, {name}"
            assert page.locator("img, b, main script").count() == 0
        assert visit.complaints == []

    browse(visit)


def test_another_site_logs_nobody_in_or_out(
    site: Server, otherSite: dict[str, str], browse: Any
) -> None:
    """
    From a port of the same host the cookie is sent, and it is the server that sees
    where the form comes from; from another host it is not even sent. Who has none
    is not made to visit as somebody else either, and nobody clicks a button in a
    frame.
    """
    for path in ("login", "logout"):
        otherSite[f"/{path}"] = FORM.format(url=site.url, path=path)
    otherSite["/frame"] = FRAME.format(url=site.url)

    def submit(page: Page, host: str, path: str) -> Any:
        page.goto(f"http://{host}:{otherSite['port']}/{path}")
        with page.expect_response(f"{site.url}{path}") as found:
            page.get_by_role("button").click()
        page.wait_for_url(f"{site.url}{path}")
        answer = found.value
        assert answer.request.method == "POST"
        assert answer.status == 403
        assert "set-cookie" not in answer.all_headers()
        heading = page.get_by_role("heading").inner_text()
        assert heading == "The request was made by another site"
        return answer.request.all_headers()

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}visits")
        stranger = visit.open(f"{site.url}login")
        login(page, site, "Ada")
        cookie = cookieOf(page)
        for host in ("127.0.0.1", "localhost"):
            for path in ("login", "logout"):
                sent = submit(page, host, path)
                assert ("cookie" in sent) == (host == "127.0.0.1")
                assert cookieOf(page) == cookie
                assert nameOf(page, site) == "Ada"
                submit(stranger, host, path)
                assert stranger.context.cookies() == []
        page.goto(f"{site.url}me")
        assert page.locator("#visits").inner_text() == "1"
        assert len(visit.complaints) == 8
        assert all(each.startswith(REFUSED) for each in visit.complaints)

        page.goto(f"http://127.0.0.1:{otherSite['port']}/frame")
        (frame,) = page.main_frame.child_frames
        assert frame.get_by_role("button").count() == 0
        assert "frame-ancestors 'none'" in visit.complaints[-1]

    browse(visit)


@pytest.mark.parametrize("isKept", [True, False], ids=["kept", "not kept"])
def test_who_goes_back_after_the_logout_sees_nobody(
    site: Server, browse: Any, isKept: bool
) -> None:
    """
    On a computer that is not one's own, neither the page that the browser keeps
    for its Back button nor what it has stored may be shown to the next one.
    """

    def goBack(page: Page, steps: int) -> None:
        # A page that was kept is there first, empty, and then asks for itself.
        with page.expect_navigation(url=f"{site.url}login"):
            # A page that is kept would not answer any more.
            page.evaluate("steps => { setTimeout(() => history.go(-steps)); }", steps)
        assert page.get_by_label("Name").input_value() == ""
        assert "Lovelace" not in page.content()
        assert page.get_by_role("button", name="Log out").count() == 0

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}visits", script=KEPT)
        if not isKept:
            # Nothing is kept of a window which another one can reach.
            with page.expect_popup() as opened:
                page.evaluate("() => { open('about:blank'); }")
            page = opened.value
        for steps in (1, 2):
            login(page, site, "Ada Lovelace")
            logout(page, site)
            goBack(page, steps)
        # Whether it keeps a page is up to the browser.
        assert set(visit.complaints) <= ({"kept: "} if isKept else set())

    browse(visit)


def test_the_pages_are_readable_on_every_screen(site: Server, browse: Any) -> None:
    """
    In light and dark, wide and narrow, with a name that has no end: nothing has to
    be scrolled sideways, and all text stands out from what is behind it.
    """

    def look(page: Page, width: int) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("innerWidth") == width
        for element in page.locator("h1, input, button").all():
            box = element.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        for element in page.locator("input, button").all():
            box = element.bounding_box()
            assert box is not None
            # WCAG 2.5.5: what one can hit with a thumb.
            assert box["height"] >= 44
        assert faintTextsOf(page) == []

    def visit(visit: Visit) -> None:
        grounds = set()
        for scheme in ("light", "dark"):
            for size in (WIDE, PHONE):
                options: Any = {"color_scheme": scheme, "is_mobile": size is PHONE}
                page = visit.open(f"{site.url}login", size, **options)
                look(page, size["width"])
                login(page, site, "W" * 100)
                look(page, size["width"])
            grounds.add(page.screenshot(clip={"x": 0, "y": 0, "width": 9, "height": 9}))
        assert len(grounds) == 2
        assert visit.complaints == []

    browse(visit)


def test_the_pages_are_told_to_who_cannot_see_them(site: Server, browse: Any) -> None:
    """
    Each has a title, a language, one heading, a main part, and a name for what can
    be filled in and pressed.
    """

    def look(page: Page, title: str) -> None:
        assert page.title() == title
        assert page.locator("html").get_attribute("lang") == "en"
        main = page.get_by_role("main")
        assert main.get_by_role("heading", level=1, name=title).count() == 1

    def visit(visit: Visit) -> None:
        page = visit.open(f"{site.url}login")
        look(page, "Log in")
        field = page.get_by_role("textbox", name="Name", exact=True)
        assert field.get_attribute("autocomplete") == "username"
        assert page.get_by_role("button", name="Log in", exact=True).count() == 1
        # Without a name, the browser says what is missing before it sends it.
        page.get_by_role("button").click()
        assert field.evaluate("e => e.validity.valueMissing")
        assert page.url == f"{site.url}login"
        login(page, site, "Ada")
        look(page, "Hello, Ada")
        assert page.get_by_role("button", name="Log out", exact=True).count() == 1
        assert visit.complaints == []

    browse(visit)
