"""
C{/metrics} is correct, and in the formats that Prometheus reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parseOpenMetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parseText
from twisted.internet.task import Clock

import tsrv
import twisted
from tsrv.queuing.histogram import SECONDS
from tsrv.web.metrics import Metrics
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .operated import Program, countFailures
from .support import Refused, resultOf
from .websupport import Peer, ask

TEXT = "text/plain; version=0.0.4; charset=utf-8"

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

ODD = 'odd "näme"\\n\\'

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""
The Accept header of Prometheus 3.
"""


class Measured(Program):
    """
    A program with metrics.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.traffic = Traffic(clock)
        self.metrics = Metrics(self.startup, self.traffic)

    def families(self, accept: str = "text/plain") -> dict[str, Metric]:
        return familiesIn(ask(self.metrics, headers={"Accept": accept}).body, accept)

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """
        @return: The values of the samples with these labels, by the remaining label.
        """
        found = {}
        for family in self.families().values():
            for sample in family.samples:
                rest = dict(sample.labels)
                if sample.name == name and all(
                    rest.pop(label, None) == value for label, value in labels.items()
                ):
                    found[",".join(rest.values())] = sample.value
        return found

    def connect(self) -> Peer:
        root = AsyncResource()
        root.putChild(b"metrics", self.metrics)
        return Peer(Site(root, self.clock, traffic=self.traffic), self.clock)

    def value(self, name: str, **labels: str) -> float:
        """
        @return: The value of the sample with exactly these labels.
        """
        return self.values(name, **labels)[""]


def req(path: str) -> bytes:
    """
    @return: A request.
    """
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


@pytest.fixture
def program(clock: Clock) -> Iterator[Measured]:
    """
    A program with metrics, which is stopped at the end.
    """
    program = Measured(clock)
    yield program
    program.stop()


def familiesIn(body: bytes, accept: str = "text/plain") -> dict[str, Metric]:
    """
    Parse metrics with the parsers of prometheus-client.
    """
    parse: Any = parseText if accept == "text/plain" else parseOpenMetrics
    families: list[Metric] = list(parse(body.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return dict(zip(names, families, strict=True))


@pytest.fixture
def busy(program: Measured) -> Measured:
    """
    A program that has samples of every metric.
    """
    wrapper = program.add("database", limit=2)
    program.add(ODD, "database", required=False)
    for n in range(3):
        resultOf(wrapper.proxy.write(n))
    program.start()
    program.clock.advance(2)
    program.fail("database")
    countFailures(program, "database", {"55P03": 3})
    peer = program.connect()
    peer.send(req("/metrics") + req("/x") + b"nonsense\r\n")
    peer.leave()
    return program


# The formats.


@pytest.mark.parametrize(
    ("accept", "contentType"),
    [
        (None, TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("image/png", TEXT),
        ("Application/OpenMetrics-Text; version=1.0.0", OPEN_METRICS),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", OPEN_METRICS),
        (["text/plain;q=0.5", "application/openmetrics-text"], OPEN_METRICS),
        ("application/openmetrics-text;q=0.5,text/plain", TEXT),
        ("application/openmetrics-text;q=0,*/*", TEXT),
        (PROMETHEUS, OPEN_METRICS),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", TEXT),
        # These headers break the negotiation of prometheus-client.
        ("application/openmetrics-text;version=x", TEXT),
        ("nonsense", TEXT),
    ],
)
def test_the_client_chooses_the_format(
    accept: str | list[str] | None, contentType: str, program: Measured
) -> None:
    """
    The format is the one that the client prefers, and text in doubt.
    """
    headers = None if accept is None else {"Accept": accept}
    answer = ask(program.metrics, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, contentType)
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body.endswith(b"# EOF\n") == (contentType == OPEN_METRICS)


def test_both_formats_are_equal(busy: Measured) -> None:
    """
    Both formats have the same samples, also for unusual names of modules.
    """

    def samples(accept: str) -> set[tuple[str, str, float]]:
        return {
            (sample.name, repr(sorted(sample.labels.items())), sample.value)
            for family in busy.families(accept).values()
            for sample in family.samples
            if sample.name.startswith("tsrv_")
        }

    assert samples("text/plain") == samples("application/openmetrics-text")
    assert set(busy.values("tsrv_module_ready")) == {"database", ODD}


NAMES = {
    "tsrv_build": "info",
    "tsrv_program": "info",
    "tsrv_ready": "gauge",
    "tsrv_startup_duration_seconds": "gauge",
    "tsrv_module_state": "gauge",
    "tsrv_module_required": "gauge",
    "tsrv_module_ready": "gauge",
    "tsrv_module_queue_length": "gauge",
    "tsrv_module_oldest_command_age_seconds": "gauge",
    "tsrv_module_calls_in_progress": "gauge",
    "tsrv_module_outcome_unknown": "counter",
    "tsrv_module_paused": "gauge",
    "tsrv_module_pauses": "counter",
    "tsrv_module_attempts": "counter",
    "tsrv_module_losses": "counter",
    "tsrv_module_queue_duration_seconds": "histogram",
    "tsrv_module_attempt_duration_seconds": "histogram",
    "tsrv_module_commands": "counter",
    "tsrv_module_failures": "counter",
    "tsrv_http_requests_in_progress": "gauge",
    "tsrv_http_requests": "counter",
    "tsrv_http_request_duration_seconds": "histogram",
}
"""
The types of the metrics. C{promtool check metrics} has no complaint about them.
"""


def test_the_names_are_stable(busy: Measured) -> None:
    """
    Dashboards depend on names and types. Each metric has samples, a help text, and a
    unit if its name ends with one.
    """
    families = busy.families("application/openmetrics-text")
    ours = {name: each for name, each in families.items() if name.startswith("tsrv_")}
    assert {name: each.type for name, each in ours.items()} == NAMES
    for name, family in ours.items():
        assert family.samples or name == "tsrv_startup_duration_seconds"
        assert family.documentation.endswith(".")
        assert (family.unit == "seconds") == name.endswith("_seconds")
    assert "process_cpu_seconds" in families


# The numbers.


def test_the_states_of_the_modules_are_shown(program: Measured) -> None:
    """
    Each module is in exactly one state; the program is ready if the required modules
    are.
    """
    program.add("database")
    program.add("cache", "database", required=False)

    def now() -> tuple[float | str, ...]:
        states = []
        for name in ("database", "cache"):
            values = program.values("tsrv_module_state", module=name)
            assert sorted(values.values()) == [0.0] * (len(values) - 1) + [1.0]
            states.append(max(values, key=lambda state: values[state]))
        ready = program.values("tsrv_module_ready")
        return *states, *ready.values(), program.value("tsrv_ready")

    assert now() == ("new", "new", 0, 0, 0)
    program.start()
    assert now() == ("initializing", "waiting", 0, 0, 0)
    samples = program.families()["tsrv_startup_duration_seconds"].samples
    assert samples == []
    program.clock.advance(3)
    program.succeed("database")
    assert now() == ("ready", "initializing", 1, 0, 1)
    assert program.value("tsrv_startup_duration_seconds") == 3
    program.fail("cache", Refused)
    assert now() == ("ready", "failed", 1, 0, 1)
    program.lose("database")
    assert now() == ("lost", "failed", 0, 0, 0)
    assert program.values("tsrv_module_losses_total") == {"database": 1, "cache": 0}
    assert program.values("tsrv_module_required") == {"database": 1, "cache": 0}
    program.stop()
    assert now() == ("closed", "closed", 0, 0, 0)


def test_pauses_are_shown(program: Measured) -> None:
    """
    A pause is shown while it lasts, and counted once, with all its holders. Calls in
    progress and calls with an unknown outcome are shown.
    """
    wrapper = program.add("database")
    mail = program.add("mail", lazy=True)
    program.start()
    program.succeed("database")

    def now() -> tuple[str, float, float, float]:
        state = program.values("tsrv_module_state", module="database")
        return (
            max(state, key=lambda each: state[each]),
            program.value("tsrv_module_paused", module="database"),
            program.value("tsrv_module_pauses_total", module="database"),
            program.value("tsrv_module_calls_in_progress", module="database"),
        )

    results = [resultOf(wrapper.proxy.write(n)) for n in range(2)]
    assert now() == ("ready", 0, 0, 2)
    program.pause("database", "Alice")
    program.pause("database", "Bob")
    program.resume("database", "Alice")
    assert now() == ("paused", 1, 1, 2)
    assert program.value("tsrv_ready") == 0
    program.modules["database"].answers[0].callback(None)
    program.lose("database")
    program.clock.advance(0)
    assert now() == ("lost", 1, 1, 0)
    unknown = program.values("tsrv_module_outcome_unknown_total")
    assert unknown == {"database": 1, "mail": 0}
    assert [result.pending for result in results] == [False] * 2
    program.resume("database", "Bob")
    program.pause("database")
    assert now() == ("lost", 1, 2, 0)
    assert program.value("tsrv_module_state", module="mail", state="lazy") == 1
    resultOf(mail.proxy.read(1))
    assert program.value("tsrv_module_state", module="mail", state="lazy") == 0


def test_the_outcomes_of_queued_calls_are_shown(program: Measured) -> None:
    """
    Every queued call is counted once, with its outcome and its time in the queue.
    """
    wrapper = program.add("database", limit=4, queueTimeout=10)
    results = [resultOf(wrapper.proxy.write(n)) for n in range(2)]
    program.clock.advance(4)
    cancelled = wrapper.proxy.write(2)
    results += [resultOf(cancelled)]
    results += [resultOf(wrapper.proxy.write(n)) for n in (3, 4)]
    program.start()

    def outcomes() -> dict[str, float]:
        values = program.values("tsrv_module_commands_total", module="database")
        assert len(values) == 5
        return {outcome: count for outcome, count in values.items() if count}

    def queue() -> tuple[float, float]:
        return (
            program.value("tsrv_module_queue_length", module="database"),
            program.value("tsrv_module_oldest_command_age_seconds", module="database"),
        )

    assert (outcomes(), queue()) == ({"rejected": 1}, (4, 4))
    cancelled.cancel()
    program.clock.advance(6)
    ended: dict[str, float] = {"rejected": 1, "cancelled": 1, "expired": 2}
    assert (outcomes(), queue()) == (ended, (1, 6))
    program.clock.advance(1)
    program.succeed("database")
    program.clock.advance(0)
    assert (outcomes(), queue()) == ({**ended, "started": 1}, (0, 0))
    buckets = program.values(
        "tsrv_module_queue_duration_seconds_bucket", module="database"
    )
    assert list(buckets) == [*map(str, SECONDS), "+Inf"]
    assert [buckets[each] for each in ("0.001", "5.0", "10.0", "+Inf")] == [1, 1, 4, 4]
    program.modules["database"].answers[0].callback(None)
    assert [result.pending for result in results] == [False] * 5


def test_attempts_are_shown(program: Measured) -> None:
    """
    Attempts are counted, with their durations.
    """
    program.add("database", retryPolicy=lambda attempts: 1.0)
    program.start()
    program.clock.advance(2)
    program.fail("database")
    program.clock.advance(1)
    program.clock.advance(40)
    program.succeed("database")
    name = "tsrv_module_attempt_duration_seconds"
    assert program.value("tsrv_module_attempts_total", module="database") == 2
    assert program.value(f"{name}_sum", module="database") == 42
    assert program.value(f"{name}_count", module="database") == 2
    buckets = program.values(f"{name}_bucket", module="database")
    assert [buckets[bound] for bound in ("1.0", "2.5", "30.0", "60.0")] == [0, 1, 1, 2]


def test_failures_are_shown(program: Measured) -> None:
    """
    Failures are counted by code, up to a maximum number of codes. A module whose counts
    cannot be read does not hide the others.
    """
    for name in ("database", "broken", "greedy"):
        program.add(name)
    for name, failures in (
        ("database", {"55P03": 3, "other": 1}),
        ("broken", None),
        ("greedy", dict.fromkeys(map(str, range(1_000)), 1)),
    ):
        countFailures(program, name, failures)
    name = "tsrv_module_failures_total"
    assert program.values(name, module="database") == {"55P03": 3, "other": 1}
    assert program.values(name, module="broken") == {}
    assert len(program.values(name, module="greedy")) == 33


def test_requests_are_shown(program: Measured) -> None:
    """
    Requests are counted by route, method and status, with their durations; the
    scrape itself is in progress.
    """
    peer = program.connect()
    peer.send(req("/x") * 2 + req("/metrics") * 2 + b"nonsense\r\n")
    families = familiesIn(peer.answers[-2].body)
    (inProgress,) = families["tsrv_http_requests_in_progress"].samples
    assert inProgress.value == 1
    for name in (
        "tsrv_http_requests_total",
        "tsrv_http_request_duration_seconds_count",
    ):
        assert program.values(name, method="GET", route="/metrics") == {"200": 2}
        assert program.values(name, method="GET", route="(unknown)") == {"404": 2}
    counts = program.values("tsrv_http_requests_total", route="(refused)", status="400")
    assert counts == {"(unknown)": 1}
    peer.leave()


def test_versions_are_shown(program: Measured) -> None:
    """
    Versions are shown, so that an upgrade can be observed. Without request counts,
    metrics of requests are absent.
    """
    families = familiesIn(ask(Metrics(program.startup)).body)
    assert not [name for name in families if name.startswith("tsrv_http_")]
    (sample,) = families["tsrv_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == tsrv.__version__
    assert sample.labels["twisted"] == twisted.__version__
