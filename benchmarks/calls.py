"""
The cost of a call when the module is ready.

The proxy's methods are then the module's own bound methods, so a call through the
proxy should cost what a direct call costs. The script compares the two for the method
of the demo server's clock, and for a method that returns at once, so that the call
itself is the whole cost. It also measures an object that has the bound method as an
attribute: without a change of the module, no proxy can be cheaper.

Calls to a module that can be lost are tracked, so that each of them ends. The script
measures the cost of tracking for a call whose Deferred has fired already, and for a
call and its answer, if the Deferred fires later. If a module promises to end its calls
itself, tracking costs nothing.

The proxy of an C{async def} method returns a Deferred, which a coroutine of Twisted
needs anyway unless another coroutine awaits it at once. The script measures both.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from timeit import Timer
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred

from benchmarks.support.measure import Figure, Module, Size, Target, leastOf, run
from tsrv import (
    AsyncModule,
    QueuingWrapper,
    State,
)

_SIZES = {
    "calls": Size(1_000, 10, "calls in one round"),
    "rounds": Size(300, 2, "rounds"),
}

# Tracking a call may add one microsecond.
_TRACKED = Target(1_000, "ns", isDifference=True)


class _Fetching(Module):
    """
    A module with a method that is C{async def}.
    """

    async def fetch(self) -> int:
        """
        Return at once.
        """
        return 1


class _Answering(Module):
    """
    A module that can be lost.
    """

    def whenLost(self) -> Deferred[None]:
        """
        Return a Deferred that never fires.
        """
        return Deferred()

    def ask(self) -> Deferred[Any]:
        """
        Return a Deferred that L{answer} fires.
        """
        self._asked: Deferred[Any] = Deferred()
        return self._asked

    def answer(self) -> None:
        """
        Fire the Deferred of the last call.
        """
        self._asked.callback(None)


def _await(coroutine: Coroutine[Any, Any, object]) -> object:
    # As "await" does.
    try:
        return coroutine.send(None)
    except StopIteration as end:
        return end.value


def measure(sizes: Mapping[str, int]) -> list[Figure]:
    """
    Measure, and return the figures.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    number, rounds = sizes["calls"], sizes["rounds"]

    clock = AsyncModule(reactor, 0)
    clockWrapper = QueuingWrapper(clock, reactor)
    module = _Fetching()
    wrapper = QueuingWrapper(module, reactor)
    lossy = _Answering()
    tracking = QueuingWrapper(lossy, reactor)
    settling = QueuingWrapper(_Answering(), reactor, settles=True)
    for each in (clockWrapper, wrapper, tracking, settling):
        each.initialize()
        while each.state is not State.READY:
            reactor.iterate(0)

    names = {
        "clock": clock,
        "clockProxy": clockWrapper.proxy,
        "module": module,
        "proxy": wrapper.proxy,
        "lossy": lossy,
        "tracked": tracking.proxy,
        "settling": settling.proxy,
        "plain": SimpleNamespace(echo=module.echo),
        # The Deferred of the clock fires in the next turn of the reactor.
        "turn": lambda: reactor.iterate(0),
        "fromCoroutine": Deferred.fromCoroutine,
        "await_": _await,
    }
    say, directSay = leastOf(
        [
            Timer("clockProxy.tellMeSomething()", "turn()", globals=names),
            Timer("clock.tellMeSomething()", "turn()", globals=names),
        ],
        number,
        rounds,
    )
    reactor.iterate(0)
    echo, settledEcho, trackedEcho, plainEcho, directEcho = leastOf(
        [
            Timer("proxy.echo(1)", globals=names),
            Timer("settling.echo(1)", globals=names),
            Timer("tracked.echo(1)", globals=names),
            Timer("plain.echo(1)", globals=names),
            Timer("module.echo(1)", globals=names),
        ],
        number,
        rounds,
    )
    trackedAnswer, directAnswer = leastOf(
        [
            Timer("tracked.ask(); lossy.answer()", globals=names),
            Timer("lossy.ask(); lossy.answer()", globals=names),
        ],
        number,
        rounds,
    )
    fetch, asyncFetch, awaitFetch = leastOf(
        [
            Timer("proxy.fetch()", globals=names),
            Timer("fromCoroutine(module.fetch())", globals=names),
            Timer("await_(module.fetch())", globals=names),
        ],
        number,
        rounds,
    )
    return [
        Figure(
            "ready call of `tellMeSomething`",
            "direct call",
            say,
            directSay,
            "ns",
            Target(1.03),
        ),
        Figure(
            "ready call of `succeed(x)`",
            "direct call",
            echo,
            directEcho,
            "ns",
            Target(1.15),
        ),
        Figure(
            "ready call of `succeed(x)`, module with `settles`",
            "direct call",
            settledEcho,
            directEcho,
            "ns",
            Target(1.15),
        ),
        Figure(
            "tracked call of `succeed(x)`",
            "direct call",
            trackedEcho,
            directEcho,
            "ns",
            _TRACKED,
        ),
        Figure(
            "tracked call and its answer",
            "direct call and answer",
            trackedAnswer,
            directAnswer,
            "ns",
            _TRACKED,
        ),
        Figure(
            "ready call of an `async def` method",
            "`Deferred.fromCoroutine()`",
            fetch,
            asyncFetch,
            "ns",
            _TRACKED,
        ),
        Figure(
            "(the same)",
            "`await` of the coroutine",
            fetch,
            awaitFetch,
            "ns",
        ),
        Figure(
            "(the bound method as an attribute of an object)",
            "direct call",
            plainEcho,
            directEcho,
            "ns",
        ),
    ]


if __name__ == "__main__":
    run(__doc__, _SIZES, measure)
