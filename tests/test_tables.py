"""
The tables of the documentation are complete: their rows are made from the code, or
compared with it here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.server import Request

from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    Startup,
    State,
    Unavailable,
)
from tsrv.demo.openapi import describe
from tsrv.resources import makeRoot
from tsrv.server import Server
from tsrv.server.optiontable import OPTIONS
from tsrv.sessions import Limits
from tsrv.web.metrics import Metrics
from tsrv.web.responses import AsyncResource, Response
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .processes import ROOT
from .test_reference import documented
from .websupport import Teller, ask

ERRORS: list[tuple[str, Exception]] = [
    ("QueueFull", QueueFull("")),
    ("QueueTimeout", QueueTimeout("", None, 30.0, State.RETRYING, 3)),
    ("InitializationFailed", InitializationFailed("")),
    ("Closed", Closed("")),
    ("any other `Unavailable`", Unavailable("")),
    ("OutcomeUnknown", OutcomeUnknown("set")),
]


def page(name: str) -> str:
    """
    @return: The text of a page of the documentation.
    """
    return (ROOT / "docs" / name).read_text()


def arguments(text: str, directive: str) -> list[str]:
    """
    @return: The arguments of all directives with this name.
    """
    found = re.findall(rf"^```\{{{directive}\}} (.*)$", text, re.M)
    return " ".join(found).split()


def rows(text: str, *heads: str) -> list[list[str]]:
    """
    @return: The cells of all tables whose first column has one of these headings.
    """
    cells = [
        [cell.strip() for cell in row.strip("|").split(" | ")]
        for head in heads
        for table in re.findall(rf"^\| {head} \|.*\n\|-.*\n((?:\|.*\n)+)", text, re.M)
        for row in table.splitlines()
    ]
    assert cells
    return cells


def test_every_option_is_in_a_table() -> None:
    """
    Each option of the server is in one table of its page.
    """
    shown = arguments(page("reference/options.md"), "options")
    assert sorted(shown) == sorted(option.name for option in OPTIONS)


def test_every_metric_is_in_a_table() -> None:
    """
    Each metric is in one table of its page, and has a help text.
    """
    prefixes = arguments(page("reference/metrics.md"), "metrics")
    startup = Startup(Clock())
    answer = ask(Metrics(startup, Traffic(Clock())))
    helps = re.findall(r"^# HELP (\w+) (.*)$", answer.body.decode(), re.M)
    assert len(helps) > 20
    for name, text in helps:
        assert text, name
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


def test_every_route_is_in_a_table() -> None:
    """
    Each group of routes of the description in OpenAPI has a table on the page.
    """
    text = page("reference/routes.md")
    description = describe(makeRoot(Teller()))
    assert sorted(arguments(text, "routes")) == sorted(
        tag["name"] for tag in description["tags"]
    )
    refused = re.findall(r"\b[45]\d\d\b", description["info"]["description"])
    limits = {row[0] for row in rows(text.split("## Limits")[1], "status")}
    assert limits == set(refused)


def test_every_error_is_in_a_table() -> None:
    """
    Each public error is in one table of its page.
    """
    known = {
        path
        for path, found in documented()
        if inspect.isclass(found) and issubclass(found, Exception)
    }
    text = page("reference/errors.md")
    assert set(re.findall(r"\{py:exc\}`~([\w.]+)`", text)) == known


class Failing(AsyncResource):
    """
    A resource that fails.
    """

    isLeaf = True

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def render_GET(self, request: Request) -> Response:
        raise self._error


@pytest.mark.parametrize(("reason", "error"), ERRORS)
def test_the_response_to_an_error(reason: str, error: Exception) -> None:
    """
    The page of errors has the text of each 503, and says which responses have
    Retry-After.
    """
    shown = {
        row[2].strip("`"): row[1].strip("`")
        for row in rows(page("reference/errors.md"), "status")
        if row[0] == "503"
    }
    answer = ask(Failing(error))
    assert answer.status == 503
    assert json.loads(answer.body)["error"] == shown[reason.strip("`")]
    assert ("retry-after" in answer.headers) is isinstance(error, Unavailable)


def optionsOf(function: Callable[..., Any]) -> dict[str, Any]:
    """
    @return: The keyword-only parameters of a function, with their defaults.
    """
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind == 3}


def test_the_options_of_a_server_of_your_own() -> None:
    """
    The page lists every option of C{Server} and of its site, with its default.
    """
    expected = {**optionsOf(Server.__init__), **optionsOf(Site.__init__)}
    expected |= {"environment": "os.environ", "knownErrors": {}}
    shown = {}
    for names, defaults, *_ in rows(page("reference/options.md"), "option"):
        values = [value.strip("`") for value in defaults.split(", ")]
        for name, value in zip(names.split(", "), values, strict=True):
            isText = name == "`environment`"
            shown[name.strip("`")] = value if isText else eval(value)  # noqa: S307
    assert shown == expected


def test_the_limits_of_sessions() -> None:
    """
    The page lists every limit with its default.
    """
    shown = {
        row[0].strip("`"): float(row[1].strip("`"))
        for row in rows(page("howto/sessions.md"), "limit")
    }
    assert shown == {each.name: each.default for each in fields(Limits)}
