"""
The dashboard and the alerts of the examples ask for metrics that C{/metrics} serves.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from tsrv.web.health import Ready
from tsrv.web.metrics import Metrics
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .operated import Program, countFailures
from .processes import ROOT
from .websupport import Peer

EXAMPLES = ROOT / "examples" / "observability"

DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "dashboard.json").read_text())

RULES: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())[
    "groups"
][0]["rules"]

SCRAPED = {"job": {"tsrv"}, "instance": {"localhost:8000"}}
"""
The labels that Prometheus adds.
"""

VARIABLES = {
    "$__rate_interval": "1m",
    "$job": "tsrv",
    "$instance": "localhost:8000",
}
"""
What Grafana puts in place of its variables.
"""


@pytest.fixture
def scrape(clock: Clock) -> Iterator[str]:
    """
    The metrics of a program that has samples of every one.
    """
    program = Program(clock)
    program.add("database")
    countFailures(program, "database", {"55P03": 1})
    program.start()
    traffic = Traffic(clock)
    root = AsyncResource()
    root.putChild(b"metrics", Metrics(program.startup, traffic))
    root.putChild(b"readyz", Ready(program.startup))
    peer = Peer(Site(root, clock, traffic=traffic), clock)
    peer.send(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n")
    program.succeed("database")
    peer.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
    yield peer.answers[-1].body.decode()
    peer.leave()
    program.stop()


@pytest.fixture
def served(scrape: str) -> dict[str, dict[str, set[str]]]:
    """
    The values of each label of each sample.
    """
    served: dict[str, dict[str, set[str]]] = {"up": dict(SCRAPED)}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            labels = served.setdefault(sample.name, defaultdict(set, SCRAPED))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return served


def queriesOf(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """
    @return: The queries of a dashboard, each with its legend.
    """
    targets = [
        (target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    annotations = [
        (each["expr"], each["titleFormat"]) for each in dashboard["annotations"]["list"]
    ]
    variables = [
        found[1]
        for variable in dashboard["templating"]["list"]
        if (found := re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]))
    ]
    assert len(variables) == 2
    return [*targets, *annotations, *((query, "") for query in variables)]


def problemsOf(
    query: str, shown: str, served: dict[str, dict[str, set[str]]]
) -> list[str]:
    """
    @param shown: The text that shows labels of the result.
    @return: What a query asks for that is not served.
    """
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    problems = []
    known: set[str] = set()
    grouped: list[str] = re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", shown)

    def visit(expression: Any) -> None:
        modifier = getattr(expression, "modifier", None)
        matching = getattr(modifier, "matching", None)
        for each in (modifier, matching):
            grouped.extend(getattr(each, "labels", ()))
        if not isinstance(expression, promql_parser.VectorSelector):
            return
        name = expression.name or ""
        if name not in served:
            problems.append(name)
            return
        known.update(served[name])
        for matcher in expression.matchers.matchers:
            for pattern in matcher.value.split("|"):
                values = served[name].get(matcher.name, ())
                if not any(re.fullmatch(pattern, value) for value in values):
                    problems.append(f"{name}{{{matcher}}}")

    promql_parser.walk(promql_parser.parse(query), visit)
    return problems + [label for label in grouped if label not in known]


def test_the_dashboard_shows_what_is_served(
    served: dict[str, dict[str, set[str]]],
) -> None:
    """
    Every query of the dashboard asks for names, labels and values that C{/metrics} has.
    """
    queries = queriesOf(DASHBOARD)
    assert len(queries) > 25
    for query, legend in queries:
        assert problemsOf(query, legend, served) == [], query


def test_the_alerts_watch_what_is_served(
    served: dict[str, dict[str, set[str]]],
) -> None:
    """
    Every alert depends on names, labels and values that C{/metrics} has.
    """
    for rule in RULES:
        summary = rule["annotations"]["summary"]
        assert problemsOf(rule["expr"], summary, served) == [], rule["alert"]


@pytest.mark.parametrize(
    ("query", "legend", "problems"),
    [
        ("sum(rate(tsrv_reddy[5m]))", "", ["tsrv_reddy"]),
        ("tsrv_ready / on (modul) tsrv_ready", "", ["modul"]),
        ("max by (modul) (tsrv_module_ready)", "{{module}}", ["modul"]),
        ("tsrv_ready", "{{module}}", ["module"]),
        ('tsrv_module_state{state=~"ready|reddy"}', "", ["reddy"]),
        ("max_over_time(tsrv_module_state[1h:1m])", "{{state}}", []),
    ],
)
def test_a_wrong_query_is_found(
    query: str,
    legend: str,
    problems: list[str],
    served: dict[str, dict[str, set[str]]],
) -> None:
    """
    The checks above find a wrong name, label and value, wherever it is.
    """
    found = problemsOf(query, legend, served)
    assert len(found) == len(problems)
    assert all(word in text for word, text in zip(problems, found, strict=True))


def test_the_panels_of_the_dashboard_fit() -> None:
    """
    Grafana can show the dashboard: panels have numbers of their own, none covers
    another, and each asks the data source that the reader chooses.
    """
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def promtool(*words: str, given: str = "") -> str:
    """
    Run C{promtool}, which must find nothing wrong.

    @return: Its output.
    """
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(  # noqa: S603
        [path, *words],
        cwd=EXAMPLES,
        input=given,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_accepts_the_examples() -> None:
    """
    Prometheus reads the configuration and the rules, and each alert fires when its own
    test says.
    """
    printed = promtool("check", "config", "--lint-fatal", "prometheus.yml")
    assert f"{len(RULES)} rules found" in printed
    promtool("test", "rules", "alerts_test.yml")
    tests = yaml.safe_load((EXAMPLES / "alerts_test.yml").read_text())["tests"]
    fired = {
        each["alertname"]
        for test in tests
        for each in test["alert_rule_test"]
        if each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_prometheus_accepts_the_metrics(scrape: str) -> None:
    """
    C{promtool check metrics} has nothing to say about the names of tsrv.
    """
    assert promtool("check", "metrics", given=scrape) == ""


def test_the_documentation_names_all_files_and_alerts() -> None:
    """
    The how-to says what each file is for, and what to do about each alert.
    """
    page = (ROOT / "docs" / "howto" / "observability.md").read_text()
    named = set(re.findall(r"^\| {repo}`examples/observability/(.*?)`", page, re.M))
    assert named == {
        path.name for path in Path(EXAMPLES).iterdir() if path.suffix != ".md"
    }
    alerts = re.findall(r"^\| `(Tsrv\w+)`", page, re.M)
    assert alerts == [rule["alert"] for rule in RULES]
