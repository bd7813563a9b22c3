"""
C{/metrics} tells the truth, in the words that Prometheus expects.
"""

from __future__ import annotations

import re
import subprocess
import sys
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
from tsrv.web.responses import (
    AsyncResource,
    text,
)
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
What a Prometheus 3 sends.
"""


class Program:
    """
    A program of which there are metrics.

    @ivar clock: The clock of the program.
    @ivar startup: Its modules.
    @ivar traffic: Its requests.
    @ivar metrics: The resource.
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
        @return: What is shown, by the names of the families.
        """
        return familiesIn(ask(self.metrics, headers={"Accept": accept}).body, accept)

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """
        @return: What the samples of a name with these labels are, by their one
            other label.
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
        @return: What the sample with just these labels is.
        """
        return self.values(name, **labels)[""]


def familiesIn(body: bytes, accept: str) -> dict[str, Metric]:
    """
    Read what was written, by the strictest reader there is.
    """
    parse: Any = parseText if accept == "text/plain" else parseOpenMetrics
    families: list[Metric] = list(parse(body.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return dict(zip(names, families, strict=True))


def busy(clock: Clock) -> Program:
    """
    @return: A program of which there is something of everything.
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
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("text/plain", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("image/png", TEXT),
        ("application/openmetrics-text", OPEN_METRICS),
        ("Application/OpenMetrics-Text; version=1.0.0", OPEN_METRICS),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", OPEN_METRICS),
        ("application/openmetrics-text;q=0.5,text/plain", TEXT),
        ("application/openmetrics-text;q=0,*/*", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text; Q=0.000 ;x=y", TEXT),
        (PROMETHEUS, OPEN_METRICS),
        # Another version cannot be promised.
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", TEXT),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", TEXT),
        # These break the negotiation that comes with prometheus-client.
        ("application/openmetrics-text;version=x", TEXT),
        ("text/plain;version=x", TEXT),
        ("nonsense", TEXT),
        ("application/openmetrics-text," + "a/b," * 400, TEXT),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(
    accept: str | None, contentType: str, clock: Clock
) -> None:
    """
    A scraper reads what the content type says, and gives up otherwise; and a
    strange header is no reason for an error.
    """
    headers = None if accept is None else {"Accept": accept}
    answer = ask(Program(clock).metrics, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, contentType)
    assert answer.headers["vary"] == "Accept"
    assert answer.body.endswith(b"# EOF\n") == (contentType == OPEN_METRICS)


def test_several_accept_headers_are_one(clock: Clock) -> None:
    """
    A proxy may put each format into a line of its own.
    """
    lines = ["text/plain;q=0.5", "application/openmetrics-text"]
    answer = ask(Program(clock).metrics, headers={"Accept": lines})
    assert answer.headers["content-type"] == OPEN_METRICS


def test_head_has_no_body(clock: Clock) -> None:
    """
    Who probes the page may do so like any other.
    """
    answer = ask(Program(clock).metrics, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_both_formats_say_the_same(clock: Clock) -> None:
    """
    Which one is read must not matter.
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

ABBREVIATIONS = (
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "b",
    "kb",
    "mb",
    "gb",
    "tb",
    "pb",
    "m",
    "h",
)


def problemsOf(families: Iterable[Metric]) -> list[str]:
    """
    @return: What C{promtool check metrics} would say, by the rules of its
        C{promlint}.
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
            "abbreviated": set(words) & set(ABBREVIATIONS),
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
def test_promtool_has_nothing_to_say(accept: str, clock: Clock) -> None:
    """
    Names that break the rules break dashboards that rely on these.
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
    A check that finds nothing is worth nothing unless it can.
    """
    assert len(problemsOf([Metric(name, "A help.", kind)])) == 1


@FORMATS
def test_a_name_of_a_module_may_have_any_letters(accept: str, clock: Clock) -> None:
    """
    A quote or the end of a line in a label would cut it, and all after it.
    """
    program = busy(clock)
    family = program.families(accept)["tsrv_module_ready"]
    names = {sample.labels["module"] for sample in family.samples}
    assert names == {"database", 'odd "näme"\\n\\'}
    program.stop()


# The numbers.


def stateOf(program: Program, name: str) -> str:
    """
    @return: The one state that a module is in.
    """
    states = program.values("tsrv_module_state", module=name)
    (state,) = [state for state, value in states.items() if value]
    assert set(states.values()) == {0, 1}
    return state


def test_the_states_of_the_modules_are_shown(clock: Clock) -> None:
    """
    Whether an alarm rings is decided by these.
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


def test_what_becomes_of_commands_is_shown(clock: Clock) -> None:
    """
    Every call that was queued is in one of the numbers, and all together are
    those that were made.
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
    How often, and for how long, a module is tried is what is wrong with it.
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
    By route, method and status, with how long they took; the one that asks is
    in progress itself.
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


def test_where_requests_are_not_counted_none_are_shown(clock: Clock) -> None:
    """
    Zeros would say that there were none.
    """
    metrics = Metrics(Startup(clock), clock)
    families = familiesIn(ask(metrics).body, "text/plain")
    assert "tsrv_ready" in families
    assert not [name for name in families if name.startswith("tsrv_http_")]


def test_what_is_running_is_shown(clock: Clock) -> None:
    """
    After an upgrade one looks whether it has reached every machine.
    """
    import tsrv
    import twisted

    (sample,) = Program(clock).families()["tsrv_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == tsrv.__version__
    assert sample.labels["twisted"] == twisted.__version__


def test_two_programs_have_nothing_in_common(clock: Clock) -> None:
    """
    The registry that prometheus-client has for everybody would mix them up, and
    refuse the second.
    """
    one, other = Program(clock), Program(clock)
    one.add("one")
    other.add("other")
    assert set(one.values("tsrv_module_ready")) == {"one"}
    assert set(other.values("tsrv_module_ready")) == {"other"}


# What it costs others.


@FORMATS
def test_much_is_written_in_several_turns(accept: str, clock: Clock) -> None:
    """
    A thousand modules have more than fifty thousand numbers, which take the
    better part of a second to write: nobody else would be served meanwhile.
    """
    program = Program(clock)
    for n in range(100):
        program.add(f"m{n}")

    class Pages(AsyncResource):
        async def render_GET(self, request: object) -> Any:
            return text("fine")

    root = AsyncResource()
    root.putChild(b"metrics", program.metrics)
    root.putChild(b"page", Pages())
    site = Site(root, clock)
    peer, other = Peer(site, clock), Peer(site, clock)
    request = f"GET /metrics HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n"
    peer.send(request.encode())
    assert peer.received == b""
    other.send(b"GET /page HTTP/1.1\r\nHost: test\r\n\r\n")
    assert [answer.body for answer in other.answers] == [b"fine"]
    clock.advance(0)
    (answer,) = peer.answers
    families = familiesIn(answer.body, accept)
    assert len(families["tsrv_module_ready"].samples) == 100
    assert len(families["tsrv_module_state"].samples) == 1100
    buckets = families["tsrv_module_queue_duration_seconds"].samples
    assert len(buckets) == 100 * (len(SECONDS) + 3)
    assert answer.body.count(b"# HELP tsrv_module_state ") == 1
    assert answer.body.count(b"# EOF\n") == (accept != "text/plain")
    peer.leave()
    other.leave()


def test_who_leaves_while_it_is_written_is_not_written_for(clock: Clock) -> None:
    """
    A scraper that gave up must not cost anything more.
    """
    program = Program(clock)
    for n in range(100):
        program.add(f"m{n}")
    peer = Peer(Site(program.metrics, clock), clock)
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert len(clock.getDelayedCalls()) == 1
    peer.leave()
    assert clock.getDelayedCalls() == []
    assert peer.received == b""


def run(program: str) -> str:
    """
    Run a few lines in an interpreter of their own.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_no_reactor_is_installed_by_the_import() -> None:
    """
    A program that chooses its reactor has to be the first to do so; what
    prometheus-client has for Twisted does not wait.
    """
    program = "import sys, tsrv.web.metrics; print(*sys.modules)"
    modules = run(program).split()
    assert "prometheus_client" in modules
    assert "twisted.internet.reactor" not in modules
    assert "prometheus_client.twisted" not in modules


def test_a_site_needs_no_prometheus() -> None:
    """
    To serve is one thing, and to be measured another.
    """
    modules = run("import sys, tsrv.web.site; print(*sys.modules)").split()
    assert "tsrv.web.traffic" in modules
    assert "prometheus_client" not in modules
