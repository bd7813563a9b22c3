"""
C{/metrics}: the metrics of a program, for Prometheus.

Each scrape collects the metrics. C{promtool check metrics} accepts their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import attrgetter
from platform import python_version
from typing import Any, Final

from twisted.web.server import Request

from twisted import __version__ as twistedVersion

from .. import __version__
from ..extras import needs
from ..failures import failuresOf
from ..queuing.histogram import SECONDS, Histogram
from ..startup import Startup
from ..wrapper import State
from .accept import preferredType
from .responses import AsyncResource, Response
from .traffic import Traffic

with needs("server"):
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        Metric,
        PlatformCollector,
        ProcessCollector,
    )
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
    from prometheus_client.exposition import generate_latest as textOf
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )
    from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.openmetrics.exposition import (
        generate_latest as openMetricsOf,
    )
    from prometheus_client.samples import Sample

__all__ = ["Metrics"]

OFFERED_TYPES: Final = (
    "application/openmetrics-text;version=1.0.0",
    "text/plain;version=0.0.4",
)
"""
The formats. Text is the default, because most clients can read it.
"""

STATUSES: Final = (*(state.value for state in State), "waiting", "skipped", "lazy")

BOUNDS: Final = (*map(str, SECONDS), "+Inf")

OUTCOMES: Final = ("started", "rejected", "expired", "cancelled", "failed")

METRICS_OF_WRAPPERS: Final[Sequence[tuple[Any, str, str, str]]] = (
    (GaugeMetricFamily, "tsrv_module_queue_length", "Queued calls.", "pending"),
    (
        GaugeMetricFamily,
        "tsrv_module_oldest_command_age_seconds",
        "Age of the oldest queued call; 0 if no call is queued.",
        "oldest",
    ),
    (
        GaugeMetricFamily,
        "tsrv_module_calls_in_progress",
        "Calls in progress that were queued, or that tsrv tracks.",
        "inProgress",
    ),
    (
        CounterMetricFamily,
        "tsrv_module_outcome_unknown",
        "Calls that were in progress when the module was lost or closed, and whose "
        "outcome is unknown.",
        "stats.unknown",
    ),
    (
        GaugeMetricFamily,
        "tsrv_module_paused",
        "Whether the calls of the module are held, whatever its state.",
        "paused",
    ),
    (
        CounterMetricFamily,
        "tsrv_module_pauses",
        "Pauses of the module, including the current one.",
        "history.pauses.count",
    ),
    (
        CounterMetricFamily,
        "tsrv_module_attempts",
        "Attempts to initialise the module, including the one in progress.",
        "history.attempts.count",
    ),
    (
        CounterMetricFamily,
        "tsrv_module_losses",
        "Losses of the module.",
        "history.losses.count",
    ),
    (
        HistogramMetricFamily,
        "tsrv_module_queue_duration_seconds",
        "Time that calls were queued, whatever their outcome.",
        "history.queueSeconds",
    ),
    (
        HistogramMetricFamily,
        "tsrv_module_attempt_duration_seconds",
        "Duration of the attempts to initialise the module, failed ones included.",
        "history.attemptSeconds",
    ),
)
"""
The type, name, help text and attribute of each metric of a wrapper.
"""


class Metrics(AsyncResource):
    """
    The metrics of modules, requests and the process, as text or as OpenMetrics.
    """

    isLeaf = True

    def __init__(
        self,
        startup: Startup,
        traffic: Traffic | None = None,
        *,
        name: str = "tsrv",
        version: str = "",
    ) -> None:
        """
        @param startup: The modules.
        @param traffic: The counts of requests, if there are any; pass the same object
            to each L{Site<tsrv.web.site.Site>}.
        @param name: The name of the program.
        @param version: The version of the program, if it has one.
        """
        super().__init__()
        self._registry = CollectorRegistry()
        self._registry.register(_Modules(startup, name, version))
        if traffic is not None:
            self._registry.register(_Requests(traffic))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def render_GET(self, request: Request) -> Response:
        """
        Collect and write the metrics in the format that the client prefers.
        """
        accept = request.requestHeaders.getRawHeaders(b"Accept")
        if preferredType(accept, OFFERED_TYPES) == OFFERED_TYPES[0]:
            body, contentType = openMetricsOf(self._registry), CONTENT_TYPE_LATEST
        else:
            body, contentType = textOf(self._registry), CONTENT_TYPE_PLAIN_0_0_4
        headers = [(b"Vary", b"Accept"), (b"Cache-Control", b"no-store")]
        return Response(body, contentType.encode("ascii"), headers=headers)


class _Modules:
    def __init__(self, startup: Startup, name: str, version: str) -> None:
        self._startup = startup
        self._program = {"name": name, "version": version}

    def collect(self) -> Iterator[Metric]:
        versions = {
            "version": __version__,
            "twisted": twistedVersion,
            "python": python_version(),
        }
        build = "Versions of tsrv, Twisted and Python."
        yield InfoMetricFamily("tsrv_build", build, versions)
        program = "Name and version of the program."
        yield InfoMetricFamily("tsrv_program", program, self._program)
        yield GaugeMetricFamily(
            "tsrv_ready",
            "Whether every required module is ready and the program is not stopping.",
            float(self._startup.ready),
        )
        report = self._startup.report()
        duration = GaugeMetricFamily(
            "tsrv_startup_duration_seconds",
            "Time until every required module was ready for the first time.",
            labels=(),
            unit="seconds",
        )
        if report["becameReady"] is not None:
            duration.add_metric((), report["becameReady"])
        yield duration
        state = GaugeMetricFamily(
            "tsrv_module_state",
            "Whether the module is in this state; it is in exactly one.",
            labels=("module", "state"),
        )
        required = GaugeMetricFamily(
            "tsrv_module_required",
            "Whether the program is ready only while the module is ready.",
            labels=("module",),
        )
        ready = GaugeMetricFamily(
            "tsrv_module_ready",
            "Whether the module is ready. A lazy module starts with its first call.",
            labels=("module",),
        )
        for module in report["modules"]:
            name = module["name"]
            for status in STATUSES:
                state.add_metric((name, status), float(module["status"] == status))
            required.add_metric((name,), float(module["required"]))
            ready.add_metric((name,), float(module["ready"]))
        yield from (state, required, ready)
        wrappers = self._startup.wrappers
        for factory, metric, text, attribute in METRICS_OF_WRAPPERS:
            valueOf = attrgetter(attribute)
            unit = "seconds" if metric.endswith("_seconds") else ""
            family = factory(metric, text, labels=("module",), unit=unit)
            for name, wrapper in wrappers.items():
                _add(family, {"module": name}, valueOf(wrapper))
            yield family
        calls = CounterMetricFamily(
            "tsrv_module_commands",
            "Calls that were queued or rejected, by outcome. Calls made while the "
            "module was ready are not counted.",
            labels=("module", "outcome"),
        )
        for name, wrapper in wrappers.items():
            stats = wrapper.stats
            for outcome in OUTCOMES:
                calls.add_metric((name, outcome), getattr(stats, outcome))
        yield calls
        failures = CounterMetricFamily(
            "tsrv_module_failures",
            "Calls that failed although the module was ready, by error code: "
            "SQLSTATE, or the name of the error in SQLite or Redis.",
            labels=("module", "code"),
        )
        for name, wrapper in wrappers.items():
            for code, count in failuresOf(wrapper.module).items():
                failures.add_metric((name, code), count)
        yield failures


class _Requests:
    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tsrv_http_requests_in_progress",
            "Requests that are not answered yet.",
            self._traffic.inProgress,
        )
        labels = ("route", "method", "status")
        requests = CounterMetricFamily(
            "tsrv_http_requests",
            'Finished requests. The status is "gone" if the client disconnected '
            'before the end of the response, "aborted" if the server did.',
            labels=labels,
        )
        durations = HistogramMetricFamily(
            "tsrv_http_request_duration_seconds",
            "Time from the end of a request to the end of its response. Requests "
            "that never reached a resource are not included.",
            labels=labels,
            unit="seconds",
        )
        for route, method, status, histogram in self._traffic.durations():
            of = {"route": route, "method": method, "status": status}
            _add(requests, of, sum(histogram.counts))
            _add(durations, of, histogram)
        for refusal, count in self._traffic.refusals.items():
            requests.add_metric(("(refused)", "(unknown)", str(refusal)), count)
        yield requests
        yield durations


def _add(family: Any, labels: dict[str, str], value: Any) -> None:
    if not isinstance(value, Histogram):
        family.add_metric(tuple(labels.values()), value or 0.0)
        return
    # For a histogram, the family's add_metric() takes several times as long.
    name, samples, count = family.name, family.samples, 0
    # Prometheus counts all values up to each bound.
    for bound, count in zip(BOUNDS, accumulate(value.counts), strict=True):
        samples.append(Sample(f"{name}_bucket", {**labels, "le": bound}, count))
    samples.append(Sample(f"{name}_count", labels, count))
    samples.append(Sample(f"{name}_sum", labels, value.total))
