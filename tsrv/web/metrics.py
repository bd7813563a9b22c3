"""
C{/metrics}: the numbers of a program, for Prometheus and what speaks its
language.

They are taken from where they are when somebody asks; nothing is done for it
meanwhile. The names follow the rules of C{promtool check metrics}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from platform import python_version
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as generateText
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import (
    generate_latest as generateOpenMetrics,
)
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.server import Request

from twisted import __version__ as twistedVersion

from .. import __version__
from ..queuing.histogram import Histogram
from ..starting.report import Report
from ..startup import Startup
from ..wrapper import (
    QueuingWrapper,
    State,
)
from .accept import preferredType
from .responses import (
    AsyncResource,
    Response,
)
from .traffic import Traffic

__all__ = ["Metrics", "Traffic"]

_PIECE: Final = 500
"""
How many samples are written in one turn of the reactor: that takes some
milliseconds.
"""

_STATES: Final = (*(state.value for state in State), "waiting", "skipped")
"""
What the status of a module can be.
"""

_OUTCOMES: Final = ("started", "rejected", "expired", "cancelled", "failed")
"""
What becomes of commands.
"""

_HTTP: Final = ("route", "method", "status")


class Metrics(AsyncResource):
    """
    C{/metrics}.

    Of many modules there is much to be written: no other request has to wait
    until all of it is.
    """

    isLeaf = True

    def __init__(
        self, startup: Startup, reactor: IReactorTime, traffic: Traffic | None = None
    ) -> None:
        """
        @param startup: The modules.
        @param reactor: Lets others have their turn while much is written.
        @param traffic: The requests to be shown, if they are counted.
        """
        super().__init__()
        self._reactor = reactor
        self._registry = CollectorRegistry()
        self._registry.register(_Modules(startup))
        if traffic is not None:
            self._registry.register(_Requests(traffic))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def render_GET(self, request: Request) -> Response:
        """
        Take the numbers, and write them in the format that is asked for.
        """
        accept = request.requestHeaders.getRawHeaders(b"Accept")
        chosen = _TEXT
        if accept is not None and _prefersOpenMetrics(b",".join(accept)):
            chosen = _OPEN_METRICS
        pieces = []
        written = 0
        for piece in _pieces(self._registry):
            if written >= _PIECE:
                written = 0
                await deferLater(self._reactor, 0)
            pieces.append(chosen.write(piece))
            written += len(piece.samples)
        pieces.append(chosen.end)
        headers = [(b"Vary", b"Accept"), (b"Cache-Control", b"no-store")]
        return Response(b"".join(pieces), chosen.contentType, headers=headers)


@dataclass(frozen=True)
class _Format:
    """
    A format of metrics.

    @ivar contentType: Its C{Content-Type}.
    @ivar encode: Writes all that a collector has.
    @ivar end: What has to be written last.
    """

    contentType: bytes
    encode: Callable[[Collector], bytes]
    end: bytes = b""

    def write(self, piece: _Piece) -> bytes:
        """
        @return: A piece, without the end that each would have on its own.
        """
        text = self.encode(piece).removesuffix(self.end)
        while not piece.first and text.startswith(b"#"):
            # What a family is, is said once.
            text = text.partition(b"\n")[2]
        return text


_TEXT: Final = _Format(CONTENT_TYPE_PLAIN_0_0_4.encode("ascii"), generateText)

_OPEN_METRICS: Final = _Format(
    CONTENT_TYPE_LATEST.encode("ascii"), generateOpenMetrics, b"# EOF\n"
)


class _Piece(Collector):
    """
    Some samples of a family.

    @ivar first: Whether they are the first ones.
    @ivar samples: The samples.
    """

    def __init__(self, family: Metric, start: int) -> None:
        self.first = start == 0
        self.samples = family.samples[start : start + _PIECE]
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """
        @see: L{Collector.collect}
        """
        part = copy(self._family)
        part.samples = self.samples
        return (part,)


def _pieces(collector: Collector) -> Iterator[_Piece]:
    """
    Cut what a collector has into pieces that don't take long to be written.
    """
    for family in collector.collect():
        for start in range(0, len(family.samples) or 1, _PIECE):
            yield _Piece(family, start)


def _prefersOpenMetrics(accept: bytes) -> bool:
    """
    @param accept: An C{Accept} header.
    @return: Whether the client prefers OpenMetrics 1.0 to text.
    """
    # Clients that do not care get the plain text, which more of them can read.
    offered = ["application/openmetrics-text;version=1.0.0", "text/plain;version=0.0.4"]
    return preferredType(accept, offered) == offered[0]


class _Modules(Collector):
    """
    The program, and each of its modules.
    """

    def __init__(self, startup: Startup) -> None:
        self._startup = startup

    def collect(self) -> Iterable[Metric]:
        """
        @see: L{Collector.collect}
        """
        report = self._startup.report()
        yield InfoMetricFamily(
            "tsrv_build",
            "What is running.",
            {
                "version": __version__,
                "twisted": twistedVersion,
                "python": python_version(),
            },
        )
        yield GaugeMetricFamily(
            "tsrv_ready",
            "Whether every required module is ready, and the program does not stop.",
            float(self._startup.ready),
        )
        took = GaugeMetricFamily(
            "tsrv_startup_duration_seconds",
            "How long it took until every required module was ready.",
            labels=(),
            unit="seconds",
        )
        if report["becameReady"] is not None:
            took.add_metric((), report["becameReady"])
        yield took
        yield from _states(report)
        yield from _queues(self._startup.wrappers)
        yield from _histories(self._startup.wrappers)


def _states(report: Report) -> Iterator[Metric]:
    """
    What the modules are.
    """
    state = GaugeMetricFamily(
        "tsrv_module_state",
        "Whether the module is in this state; it is in one of them.",
        labels=("module", "state"),
    )
    ready = GaugeMetricFamily(
        "tsrv_module_ready", "Whether the module is ready.", labels=("module",)
    )
    required = GaugeMetricFamily(
        "tsrv_module_required",
        "Whether the program is not ready without the module.",
        labels=("module",),
    )
    for module in report["modules"]:
        name = module["name"]
        for each in _STATES:
            state.add_metric((name, each), float(module["status"] == each))
        ready.add_metric((name,), float(module["ready"]))
        required.add_metric((name,), float(module["required"]))
    return iter((state, ready, required))


def _queues(wrappers: Mapping[str, QueuingWrapper[Any]]) -> Iterator[Metric]:
    """
    What waits for the modules, and what became of it.
    """
    length = GaugeMetricFamily(
        "tsrv_module_queue_length", "Commands that wait.", labels=("module",)
    )
    age = GaugeMetricFamily(
        "tsrv_module_oldest_command_age_seconds",
        "For how long the oldest command has been waiting; 0 if there is none.",
        labels=("module",),
        unit="seconds",
    )
    commands = CounterMetricFamily(
        "tsrv_module_commands",
        "Commands that wait no longer, by what became of them: calls that were "
        "made while the module was ready are not among them.",
        labels=("module", "outcome"),
    )
    for name, wrapper in wrappers.items():
        stats = wrapper.stats
        length.add_metric((name,), stats.pending)
        age.add_metric((name,), wrapper.oldest or 0.0)
        for outcome in _OUTCOMES:
            commands.add_metric((name, outcome), getattr(stats, outcome))
    return iter((length, age, commands))


def _histories(wrappers: Mapping[str, QueuingWrapper[Any]]) -> Iterator[Metric]:
    """
    What the modules have been through.
    """
    attempts = CounterMetricFamily(
        "tsrv_module_attempts",
        "Attempts to initialise the module, with the one in progress.",
        labels=("module",),
    )
    losses = CounterMetricFamily(
        "tsrv_module_losses",
        "How many times the module was ready no longer.",
        labels=("module",),
    )
    for name, wrapper in wrappers.items():
        attempts.add_metric((name,), wrapper.history.attempts.count)
        losses.add_metric((name,), wrapper.history.losses.count)
    yield attempts
    yield losses
    waited = HistogramMetricFamily(
        "tsrv_module_queue_duration_seconds",
        "How long commands waited, until they were started or ended otherwise.",
        labels=("module",),
        unit="seconds",
    )
    for name, wrapper in wrappers.items():
        _addHistogram(waited, (name,), wrapper.history.queueSeconds)
    yield waited
    attempted = HistogramMetricFamily(
        "tsrv_module_attempt_duration_seconds",
        "How long attempts to initialise the module took, good or bad.",
        labels=("module",),
        unit="seconds",
    )
    for name, wrapper in wrappers.items():
        _addHistogram(attempted, (name,), wrapper.history.attemptSeconds)
    yield attempted


class _Requests(Collector):
    """
    The requests over HTTP.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def collect(self) -> Iterable[Metric]:
        """
        @see: L{Collector.collect}
        """
        yield GaugeMetricFamily(
            "tsrv_http_requests_in_progress",
            "Requests that have been received, but not answered.",
            self._traffic.inProgress,
        )
        requests = CounterMetricFamily(
            "tsrv_http_requests",
            "Requests that ended; the status is gone if the client left before "
            "the end of the response, aborted if the response was broken off.",
            labels=_HTTP,
        )
        durations = HistogramMetricFamily(
            "tsrv_http_request_duration_seconds",
            "How long it took from the end of a request to that of its response; "
            "of those that are refused unread it is not known.",
            labels=_HTTP,
            unit="seconds",
        )
        for route, method, status, histogram in self._traffic.durations():
            labels = (route, method, status)
            requests.add_metric(labels, sum(histogram.counts))
            _addHistogram(durations, labels, histogram)
        for refusal, count in self._traffic.refusals.items():
            requests.add_metric(("(refused)", "(unknown)", str(refusal)), count)
        yield requests
        yield durations


def _addHistogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram
) -> None:
    """
    Add a histogram as Prometheus has it, whose counts are those of all values
    up to a bound.
    """
    bounds = (*map(str, histogram.bounds), "+Inf")
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric(labels, buckets, histogram.total)
