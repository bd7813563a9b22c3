"""
The cost of many browsers that show the status page.

Five hundred pages request the fragment once a second, while modules change ten times a
second. The script measures the share of a core that the server needs. The comparison is
a plain twisted.web resource that returns as many fixed bytes.

Each server is a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from itertools import cycle
from time import monotonic, process_time, sleep
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import Site as TwistedSite
from twisted.web.static import Data

from benchmarks.support.control import serve
from benchmarks.support.measure import Figure, Size, Target, run
from benchmarks.support.processes import Child, raiseFileLimit
from tsrv.startup import Startup
from tsrv.web.site import Site
from tsrv.web.status import Status

_SIZES = {
    "pages": Size(500, 5, "pages that are refreshed once a second"),
    "modules": Size(10, 2, "modules"),
    "rate": Size(10, 10, "changes of a module per second"),
    "seconds": Size(10, 1, "seconds of load"),
}

_SERVE = "--serve"


class _Losable:
    def initialize(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def whenLost(self) -> Deferred[None]:
        return self.lost


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    raiseFileLimit(sizes["pages"])
    length, ours = _measureServer(sizes, 0)
    _, theirs = _measureServer(sizes, length)
    return [
        Figure(
            f"{sizes['pages']:,} status pages, {sizes['rate']:,} changes per second: "
            "share of a core",
            "a fixed body",
            ours,
            theirs,
            "%",
            Target(20, "%"),
        )
    ]


def _measureServer(sizes: Mapping[str, int], length: int) -> tuple[int, float]:
    """
    @param length: The length of the fixed body; 0 for the status page.
    @return: The length of a response, and the share of a core in percent.
    """
    pages = sizes["pages"]
    words = _SERVE, str(length), str(sizes["modules"]), str(sizes["rate"])
    with ExitStack() as stack:
        server = stack.enter_context(Child("benchmarks.status", *words))
        port = server.request("report")["port"]
        tags = {HTTPConnection("127.0.0.1", port): "" for _ in range(pages)}
        for each in tags:
            stack.callback(each.close)
            each.connect()
        before, begun = server.request("report")["cpu"], monotonic()
        for number, each in enumerate(cycle(list(tags))):
            sleep(max(0.0, begun + number / pages - monotonic()))
            if monotonic() - begun > sizes["seconds"]:
                break
            each.request("GET", "/status", headers={"If-None-Match": tags[each]})
            response = each.getresponse()
            length = len(response.read()) or length
            tags[each] = response.headers.get("ETag", "")
        cpu = server.request("report")["cpu"] - before
        return length, max(0.01, 100 * cpu / (monotonic() - begun))


def _serve(length: int, count: int, rate: int) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    site: TwistedSite
    if length:
        plain = Resource()
        plain.putChild(b"status", Data(b"x" * length, "text/html"))
        site = TwistedSite(plain)
    else:
        startup = Startup(reactor)
        modules = [_Losable() for _ in range(count)]
        for number, module in enumerate(modules):
            startup.add(f"m{number}", module, retryPolicy=lambda attempts: 0.0)
        startup.startService()
        losing = cycle(modules)
        LoopingCall(lambda: next(losing).lost.callback(None)).start(1 / rate, now=False)
        site = Site(Status(startup, reactor), reactor)
    serve(reactor, site, lambda: {"cpu": process_time()})


if __name__ == "__main__":
    if sys.argv[1:2] == [_SERVE]:
        _serve(*map(int, sys.argv[2:]))
    else:
        run(__doc__, _SIZES, measure)
