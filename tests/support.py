"""
A module that the test controls, and helpers for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from tsrv import QueuingWrapper, State

__all__ = [
    "Empty",
    "Failures",
    "Module",
    "Refused",
    "Result",
    "Trouble",
    "inState",
    "lose",
    "messageOf",
    "ready",
    "recover",
    "resultOf",
    "shut",
    "wrap",
]


_P = ParamSpec("_P")


class Trouble(Exception):
    """
    An error that a retry may cure.
    """


class Refused(Exception):
    """
    An error that no retry cures.
    """


class RunningReactor(MemoryReactorClock):
    """
    A reactor in memory that is running. In Twisted 25.5 and older, memory reactors
    never call the functions of C{callWhenRunning()}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running = True

    def callWhenRunning(
        self,
        callable: Callable[_P, object],  # noqa: A002
        *args: _P.args,
        **kw: _P.kwargs,
    ) -> None:
        callable(*args, **kw)


@implementer(ILogObserver)
class Failures:
    """
    Collects the failures that are logged.
    """

    def __init__(self, events: list[LogEvent] | None = None) -> None:
        self.events: list[LogEvent] = [] if events is None else events

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.events.append(event)

    @property
    def all(self) -> list[Failure]:
        return [event["log_failure"] for event in self.events]


class Empty:
    """
    A database that is ready at once and contains nothing.
    """

    def initialize(self) -> None:
        pass

    def read(self, *statement: object) -> Deferred[list[object]]:
        return succeed([])

    def write(self, *statement: object) -> Deferred[list[object]]:
        return succeed([])


class Module:
    """
    A module whose every step the test decides.

    @ivar attempts: The Deferreds of C{initialize()}, in order.
    @ivar watches: The Deferreds of C{whenLost()}.
    @ivar closings: The Deferreds of C{close()}.
    @ivar calls: The name and the argument of each call, in order.
    @ivar answers: The Deferreds of the calls that end later.
    """

    version = 1

    def __init__(self) -> None:
        self.attempts: list[Deferred[None]] = []
        self.watches: list[Deferred[None]] = []
        self.closings: list[Deferred[None]] = []
        self.calls: list[tuple[str, object]] = []
        self.answers: list[Deferred[Any]] = []
        self.connection: object = None

    @property
    def session(self) -> object:
        return self.connection.session  # type: ignore[attr-defined]

    def initialize(self) -> Deferred[None]:
        attempt: Deferred[None] = Deferred()
        self.attempts.append(attempt)
        return attempt

    def whenLost(self) -> Deferred[None]:
        watch: Deferred[None] = Deferred()
        self.watches.append(watch)
        return watch

    def close(self) -> Deferred[None]:
        closing: Deferred[None] = Deferred()
        self.closings.append(closing)
        return closing

    def write(self, what: object) -> Deferred[Any]:
        """
        A method with a later result that must not run twice.
        """
        return self._later("write", what)

    def read(self, what: object) -> Deferred[Any]:
        """
        A method with a later result that may run twice.
        """
        return self._later("read", what)

    async def compute(self, what: object) -> Any:
        return await self._later("compute", what)

    def count(self, what: object) -> object:
        """
        A method that returns a plain value.
        """
        self.calls.append(("count", what))
        return what

    def fail(self, what: object) -> object:
        """
        A method that raises.
        """
        self.calls.append(("fail", what))
        raise Trouble(what)

    def _later(self, name: str, what: object) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.calls.append((name, what))
        self.answers.append(answer)
        return answer


class Result:
    """
    The result of a Deferred.
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.fired: list[Any] = []
        deferred.addBoth(self.fired.append)

    @property
    def pending(self) -> bool:
        return not self.fired

    @property
    def value(self) -> Any:
        (value,) = self.fired
        assert not isinstance(value, Failure), value
        return value

    @property
    def error(self) -> BaseException:
        (failure,) = self.fired
        assert isinstance(failure, Failure)
        assert failure.value is not None
        return failure.value


def resultOf(deferred: Any) -> Result:
    """
    @return: The result of a Deferred, as far as it is known.
    """
    assert isinstance(deferred, Deferred)
    return Result(deferred)


def messageOf(event: LogEvent) -> str:
    """
    @return: The log line of an event.
    """
    text: str = event["log_format"].format(**event)
    return text


def wrap(clock: Clock, **options: Any) -> tuple[Module, QueuingWrapper[Module], Module]:
    """
    @return: A module, its wrapper, and its proxy.
    """
    module = Module()
    options.setdefault("retryPolicy", lambda attempts: 1.0)
    wrapper = QueuingWrapper(module, clock, **options)
    return module, wrapper, wrapper.proxy


def ready(module: Module, wrapper: QueuingWrapper[Module]) -> None:
    """
    Make a module ready, unless it is ready already.
    """
    if wrapper.state is not State.READY:
        wrapper.initialize()
        module.attempts[-1].callback(None)


def lose(module: Module, error: Exception | None = None) -> None:
    """
    Let a ready module report its loss.
    """
    module.watches[-1].callback(None if error is None else Failure(error))


def recover(clock: Clock, module: Module) -> None:
    """
    Let the attempt after a loss succeed, one second later.
    """
    clock.advance(1)
    module.attempts[-1].callback(None)


def shut(wrapper: QueuingWrapper[Module]) -> None:
    """
    Close a wrapper completely.
    """
    wrapper.close()
    for closing in wrapper.module.closings:
        if not closing.called:
            closing.callback(None)
    assert wrapper.state is State.CLOSED


def inState(
    clock: Clock, state: State, **options: Any
) -> tuple[Module, QueuingWrapper[Module], Module]:
    """
    @return: A module, its wrapper in this state, and its proxy.
    """
    if state is State.DRAINING:
        options["concurrency"] = 1
    module, wrapper, proxy = wrap(clock, fatal=Refused, **options)
    if state is State.DRAINING:
        for number in range(2):
            resultOf(proxy.write(number))
    if state is not State.NEW:
        resultOf(wrapper.initialize())
    if state is State.RETRYING:
        module.attempts[-1].errback(Trouble())
    elif state is State.FAILED:
        module.attempts[-1].errback(Refused())
    elif state not in (State.NEW, State.INITIALIZING):
        module.attempts[-1].callback(None)
    if state is State.LOST:
        lose(module)
    if state is State.PAUSED:
        resultOf(wrapper.pause())
    if state in (State.CLOSING, State.CLOSED):
        wrapper.close()
    if state is State.CLOSED:
        module.closings[-1].callback(None)
    assert wrapper.state is state
    return module, wrapper, proxy
