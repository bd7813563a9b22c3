"""
The demo server, with modules that are lost and recover all the time.

The command C{rest} ends the losses, waits until all modules are ready, and reports the
resources of the process. The command C{work} begins the losses again.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import globalLogBeginner

from benchmarks.support.control import obey
from benchmarks.support.processes import residentBytes
from tsrv.server.assembly import assemble
from tsrv.server.options import Options

__all__: list[str] = []

_DISTURBANCE_SECONDS: Final = 0.5

_PAUSE_SECONDS: Final = 0.2

# Time to notice that clients have disconnected, and to answer held requests.
_REST_SECONDS: Final = 0.5

_MAX_LIFE_SECONDS: Final = 3600

_CALLS: Final = 20


class _Flaky:
    """
    A module that is lost while its calls are in progress.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._lost: Deferred[None] = Deferred()

    async def initialize(self) -> None:
        """
        Become ready soon.
        """
        await deferLater(self._reactor, 0.05)
        self._lost = Deferred()

    def whenLost(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the module is lost.
        """
        return self._lost

    def lose(self) -> None:
        """
        Be lost.
        """
        if not self._lost.called:
            self._lost.callback(None)

    def work(self) -> Deferred[None]:
        """
        Work for a moment.
        """
        return deferLater(self._reactor, 0.01)


def _main(arguments: Sequence[str]) -> None:
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    # Until a log begins, Twisted keeps the events.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    options = Options()
    options.parseOptions(arguments)
    server = assemble(options, reactor)
    startup = server.startup
    flaky = _Flaky(reactor)
    work = startup.add("flaky", flaky, replay=["work"]).proxy.work

    def pause(name: str) -> None:
        startup.pause(name).addErrback(lambda _: None)
        reactor.callLater(_PAUSE_SECONDS, startup.resume, name)

    def lose() -> None:
        for number in range(_CALLS):
            call = ensureDeferred(work()).addErrback(lambda _: None)
            if number % 2:
                reactor.callLater(0.005, call.cancel)
        flaky.lose()

    def reset(name: str) -> None:
        startup.reset(name, Exception("soak"))

    disturbances: list[Callable[[], None]] = [lose]
    for name in ("clock", "database", "sessions"):
        disturbances += [partial(pause, name), partial(reset, name)]
    disturb = cycle(disturbances)

    def disturbOnce() -> None:
        next(disturb)()

    disturbing = LoopingCall(disturbOnce)

    async def rest() -> None:
        if disturbing.running:
            disturbing.stop()
        await deferLater(reactor, _REST_SECONDS)
        await startup.whenReady()
        gc.collect()

    def carryOut(command: str, arguments: list[str]) -> Deferred[Any] | None:
        if command == "rest":
            return Deferred.fromCoroutine(rest())
        disturbing.start(_DISTURBANCE_SECONDS, now=False)
        return None

    def report() -> dict[str, Any]:
        return {
            "memory": residentBytes(),
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "objects": len(gc.get_objects()),
        }

    obey(reactor, report, carryOut)
    reactor.callLater(_MAX_LIFE_SECONDS, reactor.stop)
    server.run()
    reactor.run()


if __name__ == "__main__":
    _main(sys.argv[1:])
