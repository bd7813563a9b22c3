"""
The operator pages can be mounted together or one by one, on any site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site as TwistedSite

import tsrv
from tsrv.web.health import Live, Ready, StartupPage
from tsrv.web.metrics import Metrics
from tsrv.web.operations import Operations
from tsrv.web.status import Status

from .operated import SECRET, Program
from .operated import program as program
from .websupport import Answer, Data, Peer

PAGES = {
    "": "Ready",
    "livez": "alive",
    "readyz": "ready",
    "startup": '"status": "ready"',
    "metrics": "tsrv_ready 1.0",
}
"""
The pages, and a text on each page of a ready program.
"""


def askPlain(resource: IResource, path: str, clock: Clock) -> Answer:
    """
    Make one request to a site of twisted.web.
    """
    peer = Peer(TwistedSite(resource, reactor=clock), clock)
    peer.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    (answer,) = peer.answers
    peer.leave()
    return answer


def linksIn(answer: Answer) -> list[str]:
    """
    @return: The addresses in a page.
    """
    return re.findall(r'(?:src|href)="([^"#]*)"', answer.body.decode())


@pytest.fixture
def ready(program: Program) -> Program:
    """
    A program that is ready.
    """
    program.add("a")
    program.start()
    program.succeed("a")
    return program


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda program: Live(), "alive"),
        (lambda program: Ready(program.startup), "ready"),
        (lambda program: StartupPage(program.startup), '"status": "ready"'),
        (lambda program: Metrics(program.startup), "tsrv_ready 1.0"),
        (lambda program: Status(program.startup, program.clock), "Ready"),
        (lambda program: Operations(program.startup, program.clock), "Ready"),
    ],
    ids=["live", "ready", "startup", "metrics", "status", "operations"],
)
def test_each_page_works_alone(
    make: Callable[[Program], Any], text: str, ready: Program
) -> None:
    """
    Each page works on a site of twisted.web, as its root or anywhere below it. Its
    links lead to existing pages.
    """
    page = make(ready)
    inner, outer = Resource(), Resource()
    inner.putChild(b"page", page)
    outer.putChild(b"internal", inner)
    answer = askPlain(outer, "/internal/page", ready.clock)
    path = "/internal/page"
    if answer.status == 307:
        path = urljoin(path, answer.headers["location"])
        answer = askPlain(outer, path, ready.clock)
    assert (answer.status, text in answer.body.decode()) == (200, True)
    for link in linksIn(answer):
        assert askPlain(outer, urljoin(path, link), ready.clock).status == 200, link
    alone = askPlain(page, "/", ready.clock)
    assert (alone.status, text in alone.body.decode()) == (200, True)


@pytest.mark.parametrize("prefix", ["/", "/internal/"])
def test_all_pages_are_mounted_together(prefix: str, ready: Program) -> None:
    """
    One object mounts all pages, at the root of an application or below it. The status
    page links to the other pages, and to pages of the application.
    """
    root = Resource()
    root.putChild(b"say", Data(b"something", "text/plain"))
    operations = Operations(ready.startup, ready.clock, links=[("/say", "Say")])
    if prefix == "/":
        operations.putOn(root)
    else:
        root.putChild(b"internal", operations)
    for name, text in PAGES.items():
        answer = askPlain(root, prefix + name, ready.clock)
        assert (answer.status, text in answer.body.decode()) == (200, True)
    links = linksIn(askPlain(root, prefix, ready.clock))
    paths = {urljoin(prefix, link) for link in links}
    assert paths > {"/say", *(prefix + name for name in PAGES if name)}
    assert {askPlain(root, path, ready.clock).status for path in paths} == {200}


def test_a_redirect_stays_on_the_site(ready: Program) -> None:
    """
    The address without the slash redirects to the page, behind any proxy, and never to
    another site.
    """
    root = Resource()
    root.putChild(b"a:b", Status(ready.startup, ready.clock))
    location = askPlain(root, "/a:b", ready.clock).headers["location"]
    assert urljoin("https://example.com/behind/a:b", location) == (
        "https://example.com/behind/a:b/"
    )
    assert askPlain(root, "/a:b/unknown", ready.clock).status == 404


def test_only_operators_see_messages(ready: Program) -> None:
    """
    Pages that the public can reach show only the types of errors.
    """
    ready.lose("a")
    for operatorsOnly in (False, True):
        page = Operations(ready.startup, ready.clock, operatorsOnly=operatorsOnly)
        for path in ("/", "/status", "/startup"):
            text = askPlain(page, path, ready.clock).body.decode()
            assert (SECRET in text, "Trouble" in text) == (operatorsOnly, True)


def test_the_program_has_a_name(ready: Program) -> None:
    """
    The name and the version of the program are on the status page and in the metrics.
    """
    named = Operations(ready.startup, ready.clock, name="<shop>", version="7.1")
    for page, shown, labels in (
        (named, "&lt;shop&gt;", '{name="<shop>",version="7.1"}'),
        (Operations(ready.startup, ready.clock), "tsrv", '{name="tsrv",version=""}'),
    ):
        html = askPlain(page, "/", ready.clock).body.decode()
        assert f"<h1>{shown}</h1>" in html
        assert re.search(f"<title>Ready . {shown}</title>", html)
        assert ("7.1" in html) is (page is named)
        metrics = askPlain(page, "/metrics", ready.clock).body.decode()
        assert f"tsrv_program_info{labels} 1.0" in metrics
        assert f'version="{tsrv.__version__}"' in metrics
