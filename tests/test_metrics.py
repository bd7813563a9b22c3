"""
C{/metrics} is true, and in the formats that Prometheus reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parseOpenMetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parseText
from twisted.internet.task import Clock

from tsrv.queuing.histogram import SECONDS
from tsrv.startup import Startup
from tsrv.web.metrics import Metrics
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site
from tsrv.web.traffic import Traffic

from .support import Module, Refused, Trouble, resultOf
from .websupport import Peer, ask

TEXT = "text/plain; version=0.0.4; charset=utf-8"

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

FORMATS = pytest.mark.parametrize(
    "accept", ["text/plain", "application/openmetrics-text"]
)

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""
The Accept header of Prometheus 3.
"""


class Program:
    """
    A program with metrics.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.startup = Startup(clock, stayUp=True)
        self.traffic = Traffic(clock)
        self.metrics = Metrics(self.startup, clock, self.traffic)

    def add(self, name: str, **options: Any) -> tuple[Module, Any]:
        """
        @return: A module, and its wrapper.
        """
        module = Module()
        options.setdefault("retryPolicy", lambda attempts: 1.0)
        wrapper = self.startup.add(name, module, **options)
        return module, wrapper

    def start(self) -> None:
        """
        Start the modules.
        """
        self.startup.startService()
        self.clock.advance(0)

    def stop(self) -> None:
        """
        Stop the modules; they are closed at once.
        """
        stopped = resultOf(self.startup.stopService())
        # In the opposite order: the first one closes last.
        for wrapper in reversed(list(self.startup.wrappers.values())):
            self.clock.advance(0)
            module = wrapper.module
            assert isinstance(module, Module)
            for closing in module.closings:
                closing.callback(None)
        self.clock.advance(0)
        assert stopped.value is None

    def families(self, accept: str = "text/plain") -> dict[str, Metric]:
        """
        @return: The metrics by name.
        """
        return familiesIn(ask(self.metrics, headers={"Accept": accept}).body, accept)

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """
        @return: The values of the samples with these labels, by their other label.
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

    def value(self, name: str, **labels: str) -> float:
        """
        @return: The value of the sample with exactly these labels.
        """
        return self.values(name, **labels)[""]


def familiesIn(body: bytes, accept: str) -> dict[str, Metric]:
    """
    Parse metrics with the parsers of prometheus-client.
    """
    parse: Any = parseText if accept == "text/plain" else parseOpenMetrics
    families: list[Metric] = list(parse(body.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return dict(zip(names, families, strict=True))


def busy(clock: Clock) -> Program:
    """
    @return: A program that has samples of every metric.
    """
    program = Program(clock)
    database, wrapper = program.add("database", limit=2)
    program.add('odd "näme"\\n\\', required=False, needs=["database"])
    for n in range(3):
        resultOf(wrapper.proxy.write(n))
    program.start()
    clock.advance(2)
    database.attempts[0].errback(Trouble("Not yet"))
    root = AsyncResource()
    root.putChild(b"metrics", program.metrics)
    peer = Peer(Site(root, clock, traffic=program.traffic), clock)
    peer.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
    peer.send(b"GET /x HTTP/1.1\r\nHost: test\r\n\r\nnonsense\r\n")
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
        # These break the negotiation of prometheus-client.
        ("application/openmetrics-text;version=x", TEXT),
        ("nonsense", TEXT),
    ],
)
def test_the_client_chooses_the_format(
    accept: str | list[str] | None, contentType: str, clock: Clock
) -> None:
    """
    The format is the one that the client prefers, and text in doubt.
    """
    headers = None if accept is None else {"Accept": accept}
    answer = ask(Program(clock).metrics, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, contentType)
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body.endswith(b"# EOF\n") == (contentType == OPEN_METRICS)


def test_both_formats_are_equal(clock: Clock) -> None:
    """
    Both formats have the same samples, whatever the name of a module.
    """
    program = busy(clock)

    def samples(accept: str) -> set[tuple[str, str, float]]:
        return {
            (sample.name, repr(sorted(sample.labels.items())), sample.value)
            for family in program.families(accept).values()
            for sample in family.samples
            if sample.name.startswith("tsrv_")
        }

    assert samples("text/plain") == samples("application/openmetrics-text")
    assert set(program.values("tsrv_module_ready")) == {"database", 'odd "näme"\\n\\'}
    program.stop()


# The names, as promtool checks them.

TYPES = "counter", "gauge", "histogram", "summary", "untyped"

UNITS = {
    "amperes": ["milliamperes", "amps"],
    "bytes": ["bits", "kilobytes", "kibibytes", "megabytes", "mebibytes"],
    "celsius": ["fahrenheit", "kelvins"],
    "meters": ["kilometers", "miles", "inches"],
    "ratio": ["percent", "percents", "percentage"],
    "seconds": ["milliseconds", "microseconds", "minutes", "hours", "days", "weeks"],
}

ABBREVIATIONS = frozenset(
    ["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h"]
)


def problemsOf(families: Iterable[Metric]) -> list[str]:
    """
    @return: The complaints of C{promtool check metrics}, by its rules.
    """
    problems = []
    for family in families:
        kind = family.type
        name = family.name + ("_total" if kind == "counter" else "")
        words = name.split("_")
        labels = {label for sample in family.samples for label in sample.labels}
        if kind == "histogram":
            labels.discard("le")
        wrong = {
            "no help": not family.documentation.strip(),
            "no type": kind in ("unknown", "untyped"),
            "_total": kind != "counter" and words[-1] == "total",
            "unit": any(set(words) & set(others) for others in UNITS.values()),
            "abbreviated": set(words) & ABBREVIATIONS,
            "reserved": kind not in ("histogram", "summary")
            and words[-1] in ("count", "sum", "bucket"),
            "label": labels & {"le", "quantile"},
            "type in the name": set(words) & set(TYPES),
            "colon": ":" in name,
            "case": any(
                not re.fullmatch(r"[a-z][a-z0-9_:]*", each) for each in (name, *labels)
            ),
        }
        problems += [f"{name}: {what}" for what, true in wrong.items() if true]
    return problems


@FORMATS
def test_names_follow_the_rules(accept: str, clock: Clock) -> None:
    """
    Names, types, units and help texts follow the rules of Prometheus.
    """
    program = busy(clock)
    families = program.families(accept)
    assert problemsOf(families.values()) == []
    ours = {name for name in families if name.startswith("tsrv_")}
    assert len(ours) == 16
    for name, family in families.items():
        if name in ours:
            assert family.samples or name == "tsrv_startup_duration_seconds"
            assert family.documentation.endswith(".")
        if name in ours and accept != "text/plain":
            assert (family.unit == "seconds") == name.endswith("_seconds")
    program.stop()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tsrv_calls_total", "gauge"),
        ("tsrv_wait_ms", "gauge"),
        ("tsrv_wait_milliseconds", "histogram"),
        ("tsrv_calls_count", "gauge"),
        ("tsrv_calls_counter", "counter"),
        ("tsrv:calls", "gauge"),
        ("tsrvCalls", "gauge"),
        ("tsrv_calls", "unknown"),
    ],
)
def test_a_wrong_name_would_be_found(name: str, kind: str) -> None:
    """
    The check of the names finds every mistake.
    """
    assert len(problemsOf([Metric(name, "A help.", kind)])) == 1


# The numbers.


def stateOf(program: Program, name: str) -> str:
    """
    @return: The state of a module; it has exactly one.
    """
    states = program.values("tsrv_module_state", module=name)
    (state,) = [state for state, value in states.items() if value]
    assert set(states.values()) == {0, 1}
    return state


def test_the_states_of_the_modules_are_shown(clock: Clock) -> None:
    """
    Each module is in one state, and the program is ready if the required ones are.
    """
    program = Program(clock)
    database, _ = program.add("database")
    cache, _ = program.add("cache", required=False, needs=["database"], fatal=Refused)

    def now() -> tuple[str, str, float, float, float]:
        return (
            stateOf(program, "database"),
            stateOf(program, "cache"),
            program.value("tsrv_module_ready", module="database"),
            program.value("tsrv_module_ready", module="cache"),
            program.value("tsrv_ready"),
        )

    assert now()[2:] == (0, 0, 0)
    program.start()
    assert now() == ("initializing", "waiting", 0, 0, 0)
    assert "tsrv_startup_duration_seconds" not in [
        sample.name
        for family in program.families().values()
        for sample in family.samples
    ]
    clock.advance(3)
    database.attempts[0].callback(None)
    clock.advance(0)
    assert now() == ("ready", "initializing", 1, 0, 1)
    assert program.value("tsrv_startup_duration_seconds") == 3
    cache.attempts[0].errback(Refused("For good"))
    clock.advance(0)
    assert now() == ("ready", "failed", 1, 0, 1)
    database.watches[0].callback(None)
    clock.advance(0)
    assert now()[0::2] == ("lost", 0, 0)
    assert program.value("tsrv_module_losses_total", module="database") == 1
    assert program.value("tsrv_module_losses_total", module="cache") == 0
    required = program.values("tsrv_module_required")
    assert required == {"database": 1, "cache": 0}
    program.stop()
    assert now()[0::2] == ("closed", 0, 0)


def test_the_outcomes_of_queued_calls_are_shown(clock: Clock) -> None:
    """
    Every queued call is counted once, with its outcome and its time in the queue.
    """
    program = Program(clock)
    module, wrapper = program.add("database", limit=4, queueTimeout=10)
    proxy = wrapper.proxy
    results = [resultOf(proxy.write(n)) for n in range(2)]
    clock.advance(4)
    given = proxy.write(2)
    results += [resultOf(given), resultOf(proxy.write(3)), resultOf(proxy.write(4))]
    program.start()

    def commands() -> dict[str, float]:
        return program.values("tsrv_module_commands_total", module="database")

    def gauges() -> list[float]:
        names = "queue_length", "oldest_command_age_seconds"
        return [program.value(f"tsrv_module_{n}", module="database") for n in names]

    none = dict.fromkeys(("started", "expired", "cancelled", "failed"), 0.0)
    assert commands() == {**none, "rejected": 1}
    assert gauges() == [4, 4]
    given.cancel()
    clock.advance(6)
    assert commands() == {**none, "rejected": 1, "cancelled": 1, "expired": 2}
    assert gauges() == [1, 6]
    clock.advance(1)
    module.attempts[0].callback(None)
    clock.advance(0)
    assert commands() == {
        "rejected": 1,
        "cancelled": 1,
        "expired": 2,
        "started": 1,
        "failed": 0,
    }
    assert gauges() == [0, 0]
    buckets = program.values(
        "tsrv_module_queue_duration_seconds_bucket", module="database"
    )
    assert list(buckets) == [*map(str, SECONDS), "+Inf"]
    assert [buckets[bound] for bound in ("0.001", "5.0", "10.0", "+Inf")] == [
        1,
        1,
        4,
        4,
    ]
    for result in results[:2] + results[4:]:
        assert result.error is not None
    program.stop()
    assert results[2].error is not None
    assert results[3].error is not None


def test_attempts_are_shown(clock: Clock) -> None:
    """
    Attempts are counted, with their durations.
    """
    program = Program(clock)
    module, _ = program.add("database")
    program.start()
    clock.advance(2)
    module.attempts[0].errback(Trouble("Not yet"))
    clock.advance(1)
    clock.advance(40)
    module.attempts[1].callback(None)
    clock.advance(0)
    name = "tsrv_module_attempt_duration_seconds"
    assert program.value("tsrv_module_attempts_total", module="database") == 2
    assert program.value(f"{name}_sum", module="database") == 42
    assert program.value(f"{name}_count", module="database") == 2
    buckets = program.values(f"{name}_bucket", module="database")
    assert [buckets[bound] for bound in ("1.0", "2.5", "30.0", "60.0")] == [0, 1, 1, 2]
    program.stop()


def test_requests_are_shown(clock: Clock) -> None:
    """
    Requests are counted by route, method and status, with their durations; the
    scrape itself is in progress.
    """
    program = Program(clock)
    root = AsyncResource()
    root.putChild(b"metrics", program.metrics)
    peer = Peer(Site(root, clock, traffic=program.traffic), clock)
    peer.send(b"GET /x HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
    peer.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
    shown = peer.answers[-1].body
    refused = Peer(Site(root, clock, traffic=program.traffic), clock)
    refused.send(b"nonsense\r\n")
    families = familiesIn(shown, "text/plain")
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
    refused.leave()


def test_requests_that_are_not_counted_are_not_shown(clock: Clock) -> None:
    """
    Without counts of requests there are no metrics of requests.
    """
    metrics = Metrics(Startup(clock), clock)
    families = familiesIn(ask(metrics).body, "text/plain")
    assert "tsrv_ready" in families
    assert not [name for name in families if name.startswith("tsrv_http_")]


def test_versions_are_shown(clock: Clock) -> None:
    """
    The versions are shown, so that an upgrade can be followed.
    """
    import tsrv
    import twisted

    (sample,) = Program(clock).families()["tsrv_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == tsrv.__version__
    assert sample.labels["twisted"] == twisted.__version__


def test_programs_have_separate_metrics(clock: Clock) -> None:
    """
    Two programs in one process have separate metrics.
    """
    one, other = Program(clock), Program(clock)
    one.add("one")
    other.add("other")
    assert set(one.values("tsrv_module_ready")) == {"one"}
    assert set(other.values("tsrv_module_ready")) == {"other"}


@FORMATS
def test_a_long_scrape_takes_turns_with_others(accept: str, clock: Clock) -> None:
    """
    While many metrics are written, other requests are served; a client that
    disconnects meanwhile ends it.
    """

    class SlowClock(Clock):
        def seconds(self) -> float:
            self.advance(0.011)
            return super().seconds()

        def advance(self, amount: float) -> None:
            self.rightNow += amount

    program = Program(clock)
    for n in range(100):
        program.add(f"m{n}")
    slow = SlowClock()
    root = AsyncResource()
    root.putChild(b"metrics", Metrics(program.startup, slow))
    site = Site(root, clock)
    request = f"GET /metrics HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n"
    peer, leaving = Peer(site, clock), Peer(site, clock)
    peer.send(request.encode())
    leaving.send(request.encode())
    assert (peer.received, len(slow.getDelayedCalls())) == (b"", 2)
    leaving.leave()
    assert len(slow.getDelayedCalls()) == 1
    Clock.advance(slow, 0)
    assert slow.getDelayedCalls() == []
    (answer,) = peer.answers
    families = familiesIn(answer.body, accept)
    assert len(families["tsrv_module_state"].samples) == 1100
    buckets = families["tsrv_module_queue_duration_seconds"].samples
    assert len(buckets) == 100 * (len(SECONDS) + 3)
    assert answer.body.count(b"# EOF\n") == (accept != "text/plain")
    peer.leave()
