"""
Tables of the reference that are made from the code, so they cannot be out of date.

  - C{{options} NAME ...}: the options of C{twistd tsrv} with these names.
  - C{{metrics} PREFIX ...}: the metrics whose names begin with one of these prefixes.
  - C{{routes} TAG}: the operations of C{/openapi.json} that have this tag.

Each directive writes a Markdown table and lets MyST parse it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from docutils import nodes
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers
from zope.interface import implementer

from tsrv import Startup
from tsrv.asyncmodule import ICountsFailures
from tsrv.demo.openapi import describe
from tsrv.resources import makeRoot
from tsrv.server.optiontable import OPTIONS
from tsrv.web.metrics import Metrics
from tsrv.web.operations import Operations
from tsrv.web.traffic import Traffic

__all__ = ["metricsOf", "operationsOf", "setup"]

COMMON_STATUSES = ("500", "503")
"""
Statuses that every operation may have; the tables leave them out.
"""


def table(head: str, rows: list[list[str]]) -> str:
    """
    @return: A table in Markdown.
    """
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(texts: list[str] | tuple[str, ...]) -> str:
    """
    @return: The texts as code, separated by commas.
    """
    return ", ".join(f"`{text}`" for text in texts)


class TableDirective(SphinxDirective, ABC):
    """
    A directive that becomes a table. Its arguments select the rows.
    """

    required_arguments = 1
    optional_arguments = 100
    final_argument_whitespace = False

    @abstractmethod
    def write(self) -> str:
        """
        @return: The table in Markdown.
        """

    def run(self) -> list[nodes.Node]:
        """
        Parse the table.
        """
        made = list(self.parse_text_to_nodes(self.write()))
        for node in made:
            for each in node.findall(nodes.table):
                each["classes"].append("from-code")
        return made


class OptionsDirective(TableDirective):
    """
    C{{options}}. C{{option}`--listen`} refers to a row.
    """

    def write(self) -> str:
        byName = {option.name: option for option in OPTIONS}
        rows = []
        for name in self.arguments:
            if name not in byName:
                raise self.error(f"tsrv has no option --{name}")
            option = byName[name]
            default = re.sub(r"--\S+", r"`\g<0>`", option.shownDefault)
            if option.default:
                default = f"`{option.default}`"
            value = "" if option.parse is None else "="
            rows.append([f"`--{name}{value}`", default, option.meaning])
        return table("option, default, meaning", rows)

    def run(self) -> list[nodes.Node]:
        made = super().run()
        domain = cast(StandardDomain, self.env.get_domain("std"))
        body = next(each for node in made for each in node.findall(nodes.tbody))
        for name, row in zip(self.arguments, body.findall(nodes.row), strict=True):
            anchor = f"option-{name}"
            row["ids"].append(anchor)
            domain.add_program_option(None, f"--{name}", self.env.docname, anchor)
        return made


@implementer(ICountsFailures)
class _Module:
    """
    A module whose calls have failed.
    """

    failures: ClassVar = {"55P03": 1}

    def initialize(self) -> None: ...


def metricsOf() -> Iterator[Metric]:
    """
    Scrape a program with one module that has failed once, one finished request and one
    refused request.

    @return: Each metric, with its samples.
    """
    startup = Startup(Clock())
    startup.add("database", _Module())
    traffic = Traffic(Clock())
    traffic.requestEnded("/say", b"GET", 200, None)
    traffic.requestRefused(400)
    accept = Headers({"Accept": ["application/openmetrics-text"]})
    request: Any = SimpleNamespace(requestHeaders=accept)
    response = Metrics(startup, traffic).render_GET(request)
    parse: Any = text_string_to_metric_families
    metrics: Iterator[Metric] = parse(response.body.decode())
    return metrics


class MetricsDirective(TableDirective):
    """
    C{{metrics}}.
    """

    def write(self) -> str:
        rows = []
        for metric in metricsOf():
            if not metric.name.startswith(tuple(self.arguments)):
                continue
            if not metric.documentation:
                raise self.error(f"{metric.name} has no help text")
            labels = dict.fromkeys(
                label for sample in metric.samples for label in sample.labels
            )
            labels.pop("le", None)
            suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
            rows.append(
                [
                    f"`{metric.name}{suffix}`",
                    metric.type,
                    code([*labels]),
                    metric.documentation,
                ]
            )
        if not rows:
            raise self.error(f"no metric begins with {self.arguments}")
        return table("metric, type, labels, meaning", rows)


def operationsOf() -> dict[str, Any]:
    """
    @return: The paths of the description in OpenAPI, with all operator pages.
    """
    unused: Any = None
    # The description needs no users and no sessions, but their routes.
    routes: Any = object()
    root = makeRoot(unused, routes, routes)
    Operations(Startup(Clock()), Clock(), operatorsOnly=True).putOn(root)
    paths: dict[str, Any] = describe(root)["paths"]
    return paths


class RoutesDirective(TableDirective):
    """
    C{{routes}}.
    """

    optional_arguments = 0

    def write(self) -> str:
        rows = []
        for path, item in operationsOf().items():
            for method, operation in item.items():
                if method == "parameters" or self.arguments[0] not in operation["tags"]:
                    continue
                responses = operation["responses"]
                types = [
                    mediaType
                    for status, response in responses.items()
                    if status.startswith("2")
                    for mediaType in response.get("content", ())
                ]
                statuses = [each for each in responses if each not in COMMON_STATUSES]
                rows.append(
                    [
                        f"`{method.upper()} {path}`",
                        operation["summary"],
                        code([*dict.fromkeys(types)]),
                        ", ".join(sorted(statuses)),
                    ]
                )
        if not rows:
            raise self.error(f"no operation has the tag {self.arguments[0]}")
        return table("request, meaning, media types, statuses", rows)


DIRECTIVES: dict[str, type[TableDirective]] = {
    "options": OptionsDirective,
    "metrics": MetricsDirective,
    "routes": RoutesDirective,
}


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive)
    app.add_css_file("tables.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
