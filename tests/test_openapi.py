"""
The OpenAPI description of the server is correct.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jsonschema_rs
import pytest
import schemathesis
from twisted.internet.task import Clock
from twisted.web.resource import Resource

from tsrv import AsyncModule, Startup, Unavailable
from tsrv.databases import Database
from tsrv.demo.openapi import describe
from tsrv.demo.users import SCHEMA, Users
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.sessions import Cookies, MemorySessionStore, Quota, Sessions
from tsrv.web.operations import Operations
from tsrv.web.responses import AsyncResource, NotFoundResource
from tsrv.web.site import Site

from .processes import running
from .support import Empty
from .visitors import Place, Visitor
from .websupport import Answer, Teller, ask, asynchronous, serving

SETTINGS = """
# The same on each run, with nothing left behind.
headers = {{ Origin = "{origin}" }}

[generation]
deterministic = true
max-examples = 3

# What is valid may still be refused under a condition of the client's own.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "404", "409", "412"]
"""

HTML = {"Accept": "text/html"}

SAME_ORIGIN = {"Origin": "https://test"}

FORM = {"Content-Type": "application/x-www-form-urlencoded", **SAME_ORIGIN, **HTML}

JSON = {"Content-Type": "application/json", **SAME_ORIGIN}


def rootOf(
    users: Any, sessions: Any, startup: Startup, reactor: Any, clock: Any = None
) -> AsyncResource:
    """
    Return the root of a site with all routes of the server.
    """
    root = makeRoot(clock or Teller(), users, sessions)
    proxies = sessions.cookies.proxies
    operations = Operations(startup, reactor, operatorsOnly=True, proxies=proxies)
    operations.putOn(root)
    return root


def rootInMemory(sessions: Any = None) -> AsyncResource:
    """
    Return the root of a site with all routes, and a module that is not ready.
    """
    clock = Clock()
    startup = Startup(clock)
    startup.add("mail", Teller())
    sessions = sessions or Sessions(clock, Empty(), Cookies(clock))  # type: ignore[arg-type]
    return rootOf(Empty(), sessions, startup, clock)


@pytest.fixture
def root() -> AsyncResource:
    """
    The root of a site with all routes.
    """
    return rootInMemory()


def routesBelow(resource: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """
    Find the routes of a site, and the methods of each.
    """
    if any(hasattr(resource, f"render_{method}") for method in ("GET", "POST")):
        assert resource.route == path or path not in ("", "/{id}")
        yield path or "/", set(resource.supportedMethods())
    for name, child in resource.children.items():
        yield from routesBelow(child, f"{path}/{name.decode()}")
    if not resource.isLeaf:
        child = resource.getChild(b"1", None)
        if not isinstance(child, NotFoundResource):
            yield from routesBelow(child, child.route)


def test_the_description_is_valid(root: AsyncResource) -> None:
    """
    The description is valid OpenAPI 3.1, is served unchanged, and has no unused part.
    """
    answer = ask(root, "/openapi.json")
    assert (answer.status, json.loads(answer.body)) == (200, describe(root))
    schemathesis.openapi.from_dict(describe(root)).validate()
    for kind, parts in describe(root)["components"].items():
        if kind != "securitySchemes":
            for name in parts:
                assert f'"#/components/{kind}/{name}"' in answer.body.decode()


def test_every_route_is_described(root: AsyncResource) -> None:
    """
    The description has all routes and methods of the server, and no others.
    """
    described: dict[str, set[str]] = {}
    for path, operations in describe(root)["paths"].items():
        # One resource serves all actions on modules.
        route = "/modules" if path.startswith("/modules/") else path
        described[route] = {each.upper() for each in operations} - {"PARAMETERS"}
    found = dict(routesBelow(root))
    assert described == {
        path: methods - {"HEAD", "OPTIONS"} for path, methods in found.items()
    }
    for path in describe(root)["paths"]:
        answer = ask(root, path.replace("{id}", "1").replace("{name}", "mail"), "BREW")
        assert answer.status == 405, path


def test_a_site_describes_what_it_has() -> None:
    """
    Operator pages on a site of their own have their own server in the description. If
    they are on the public site, actions on modules are absent.
    """
    root = makeRoot(Teller())
    paths = describe(root)["paths"]
    elsewhere = {path for path, item in paths.items() if "servers" in item}
    assert set(paths) - elsewhere == {"/say", "/openapi.json"}
    assert {"/", "/livez", "/metrics", "/modules/{name}/pause"} < elsewhere
    Operations(Startup(Clock()), Clock()).putOn(root)
    described = describe(root)["paths"]
    assert elsewhere - set(described) == {
        f"/modules/{{name}}/{action}" for action in ("pause", "resume", "reset")
    }
    assert not any("servers" in item for item in described.values())


class Witness:
    """
    Compares responses with the description.
    """

    def __init__(self, root: Resource) -> None:
        self._description = describe(root)

    def compare(self, answer: Answer, method: str, route: str) -> None:
        """
        Check that a response agrees with the description.
        """
        operation = self._description["paths"][route][method.lower()]
        assert str(answer.status) in operation["responses"], (route, answer)
        response = operation["responses"][str(answer.status)]
        if "$ref" in response:
            response = self._description["components"]["responses"][str(answer.status)]
        names = {each.lower() for each in response["headers"]}
        for name in ("etag", "link", "location", "retry-after", "set-cookie"):
            assert name in names or name not in answer.headers, (route, name)
        if "content-type" not in answer.headers:
            assert "content" not in response
            return
        mediaType = answer.headers["content-type"].partition(";")[0]
        if not answer.body and "content" not in response:
            return
        schema = response["content"][mediaType]["schema"]
        if mediaType.endswith("json"):
            whole = {**schema, "components": self._description["components"]}
            jsonschema_rs.validator_for(whole).validate(json.loads(answer.body))


@pytest.mark.parametrize(
    ("method", "path", "headers", "data", "status"),
    [
        ("GET", "/visits", {}, b"", 200),
        ("GET", "/visits", HTML, b"", 200),
        ("GET", "/me", {}, b"", 200),
        ("GET", "/me", HTML, b"", 303),
        ("GET", "/login", {}, b"", 200),
        ("GET", "/login", HTML, b"", 200),
        ("POST", "/login", JSON, b'{"name": "Ada"}', 200),
        ("POST", "/login", JSON, b'{"name": ""}', 400),
        ("POST", "/login", FORM, urlencode({"name": "Ada"}).encode(), 303),
        ("POST", "/login", FORM, b"name=", 400),
        ("POST", "/login", {"Content-Type": "text/plain", **SAME_ORIGIN}, b"x", 415),
        ("POST", "/login", {}, b"", 403),
        ("POST", "/login", JSON, b"x" * 5000, 413),
        ("POST", "/logout", SAME_ORIGIN, b"", 200),
        ("POST", "/logout", FORM, b"", 303),
        ("GET", "/", {}, b"", 200),
        ("GET", "/status", {}, b"", 200),
        ("GET", "/status.css", {}, b"", 200),
        ("GET", "/livez", {}, b"", 200),
        ("GET", "/readyz", {}, b"", 503),
        ("GET", "/readyz", HTML, b"", 503),
        ("GET", "/startup", {}, b"", 200),
        ("GET", "/metrics", {}, b"", 200),
        ("GET", "/metrics", {"Accept": "application/openmetrics-text"}, b"", 200),
        ("POST", "/modules/mail/pause", SAME_ORIGIN, b"", 200),
        ("POST", "/modules/mail/pause", {**SAME_ORIGIN, **HTML}, b"", 303),
        ("POST", "/modules/mail/pause?wait=x", SAME_ORIGIN, b"", 400),
        ("POST", "/modules/mail/resume", SAME_ORIGIN, b"", 200),
        ("POST", "/modules/mail/reset", SAME_ORIGIN, b"", 409),
        ("POST", "/modules/fax/reset", SAME_ORIGIN, b"", 404),
        ("POST", "/modules/mail/reset", {}, b"", 403),
    ],
)
def test_a_response_is_as_described(
    method: str, path: str, headers: dict[str, str], data: bytes, status: int
) -> None:
    """
    Pages, redirects and refusals have the status, type, headers and body of the
    description.
    """
    place = Place(rootInMemory)
    answer = place.visitor().ask(path, method=method, headers=headers, data=data)
    assert answer.status == status
    route = path.partition("?")[0]
    if route.startswith("/modules/"):
        route = f"/modules/{{name}}/{route.rpartition('/')[2]}"
    Witness(place.site.resource).compare(answer, method, route)
    place.close()


@pytest.mark.parametrize("route", ["/visits", "/me", "/login"])
def test_a_lack_of_sessions_is_as_described(route: str) -> None:
    """
    If no session is available, the response agrees with the description, and says when
    to retry.
    """
    quota = Quota(Clock(), 1, 1, 60.0)
    place = Place(rootInMemory, quota)
    witness = Witness(place.site.resource)

    def check(visitor: Visitor, status: int) -> None:
        answer = visitor.ask(route)
        witness.compare(answer, "GET", route)
        assert (answer.status, "retry-after" in answer.headers) == (status, True)

    known = place.visitor()
    known.ask("/visits")
    if route != "/me":
        # This request stores nothing.
        check(place.visitor(), 429)
    fault = Unavailable("no store", 7)
    place.store.errors = dict.fromkeys(("add", "create", "get", "set"), fault)
    check(known, 503)
    place.close()


@pytest.mark.parametrize("program", ["schemathesis"])
@asynchronous
async def test_responses_are_as_described(tmp_path: Path, program: str) -> None:
    """
    Every request, valid or not, gets a response that agrees with the description.
    """
    from twisted.internet import reactor

    database = Database(reactor, f"sqlite:{tmp_path}/users.db", [SCHEMA])
    clock = AsyncModule(reactor, 0)
    store = MemorySessionStore(reactor)
    sessions = Sessions(reactor, store, Cookies(reactor))
    startup = Startup(reactor)
    for name, module in (("mail", clock), ("database", database), ("store", store)):
        startup.add(name, module)
    startup.startService()
    await startup.whenReady()
    try:
        root = rootOf(Users(database), sessions, startup, reactor, clock)
        site = Site(root, reactor, maxBodyBytes=2**20, knownErrors=KNOWN_ERRORS)
        async with serving(site) as served:
            (tmp_path / "schemathesis.toml").write_text(
                SETTINGS.format(origin=served.url)
            )
            url = f"{served.url}/openapi.json"
            arguments = ["run", url, "--checks=all", "--no-color"]
            async with running(tmp_path, *arguments, program=program) as search:
                status = await search.ended
                assert status == 0, search.output + search.errors
            assert "24 selected / 24 total" in search.output
    finally:
        await startup.stopService()
