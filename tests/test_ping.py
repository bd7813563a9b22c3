"""
ping: a client that does not report losses is pinged.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    fail,
    maybeDeferred,
    succeed,
)
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv import OutcomeUnknown, QueuingWrapper, State

from .support import Module, Trouble, lose, recover, resultOf, shut


class Pinged(Module):
    """
    A module that is pinged.

    @ivar pings: The Deferreds of C{ping()}, in order.
    @ivar answer: Called by C{ping()}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pings: list[Deferred[Any]] = []
        self.answer: Callable[[], Any] = lambda: None

    def ping(self) -> Any:
        self.answer()
        self.pings.append(Deferred())
        return self.pings[-1]


@pytest.fixture
def module() -> Pinged:
    """
    A module that is pinged.
    """
    return Pinged()


def wrapped(clock: Clock, module: Pinged, **options: Any) -> QueuingWrapper[Pinged]:
    """
    @return: The wrapper of such a module, in READY.
    """
    options.setdefault("ping", module.ping)
    wrapper = QueuingWrapper(
        module, clock, pingInterval=5.0, retryPolicy=lambda _: 1.0, **options
    )
    wrapper.initialize()
    for attempt in module.attempts:
        attempt.callback(None)
    return wrapper


def test_a_ping_every_few_seconds(clock: Clock, module: Pinged) -> None:
    """
    A ready module is pinged every C{pingInterval} seconds, for the first time after one
    interval.
    """
    wrapper = wrapped(clock, module)
    for number in range(1, 4):
        clock.advance(4.5)
        assert len(module.pings) == number - 1
        clock.advance(0.5)
        assert len(module.pings) == number
        module.pings[-1].callback("pong")
    assert wrapper.state is State.READY
    shut(wrapper)


@pytest.mark.parametrize("how", ["fails", "fails later", "raises", "hangs"])
def test_a_ping_that_fails_is_a_loss(clock: Clock, module: Pinged, how: str) -> None:
    """
    If a ping fails, or has not ended when the next one is due, the module is lost: it
    is closed, and then initialised at once.
    """

    def explode() -> None:
        raise Trouble("no pong")

    wrapper = wrapped(clock, module)
    call = resultOf(wrapper.proxy.write(1))
    clock.advance(5)
    module.pings[0].callback("pong")
    if how == "raises":
        module.answer = explode
    clock.advance(5)
    if how in ("fails", "fails later"):
        clock.advance(0 if how == "fails" else 4.9)
        module.pings[1].errback(Trouble("no pong"))
    elif how == "hangs":
        assert wrapper.state is State.READY
        clock.advance(5)
        assert len(module.pings) == 2
        assert module.pings[1].called
    assert wrapper.state is State.LOST
    if how == "hangs":
        assert isinstance(wrapper.lastError, TimeoutError)
        assert "ping" in str(wrapper.lastError)
    else:
        assert str(wrapper.lastError) == "no pong"
    assert wrapper.history.losses.count == 1
    assert (len(module.closings), len(module.attempts)) == (1, 1)
    clock.advance(0)
    assert isinstance(call.error, OutcomeUnknown)
    module.answer = lambda: None
    module.closings[0].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY
    before = len(module.pings)
    clock.advance(5)
    assert len(module.pings) == before + 1
    shut(wrapper)


@pytest.mark.parametrize("answer", ["pong", Trouble("late")])
@pytest.mark.parametrize("then", ["lost", "closed", "recovered"])
def test_a_late_answer(clock: Clock, module: Pinged, answer: object, then: str) -> None:
    """
    The late result of a ping has no effect.
    """

    class Stubborn(Pinged):
        def ping(self) -> Any:
            super().ping()
            late: Deferred[Any] = Deferred()
            self.late.append(late)
            return self.pings[-1].addErrback(lambda _: late)

        late: list[Deferred[Any]] = []  # noqa: RUF012

    module = Stubborn()
    module.late = []
    wrapper = wrapped(clock, module)
    clock.advance(5)
    if then == "closed":
        shut(wrapper)
    else:
        lose(module)
    if then == "recovered":
        recover(clock, module)
    where = module.pings[0] if not module.pings[0].called else module.late[0]
    if isinstance(answer, Exception):
        where.errback(answer)
        if where is module.pings[0]:
            module.late[0].callback(None)
    else:
        where.callback(answer)
    expected = {"lost": State.LOST, "closed": State.CLOSED, "recovered": State.READY}
    assert wrapper.state is expected[then]
    shut(wrapper)


@pytest.mark.parametrize("how", ["lost", "closed", "reset"])
def test_no_ping_when_the_module_is_not_ready(
    clock: Clock, module: Pinged, how: str
) -> None:
    """
    After a loss, a reset or a close there is neither a timer nor a ping, and a ping
    in progress is given up.
    """
    wrapper = wrapped(clock, module)
    clock.advance(5)
    if how == "lost":
        lose(module)
    elif how == "reset":
        wrapper.reset(Trouble("rotated"))
    else:
        resultOf(wrapper.close())
    assert module.pings[0].called
    clock.advance(1 if how == "lost" else 0)
    for closing in module.closings:
        closing.callback(None)
    clock.advance(50)
    assert len(module.pings) == 1
    assert clock.getDelayedCalls() == []
    shut(wrapper)


def test_pings_go_on_while_paused(clock: Clock, module: Pinged) -> None:
    """
    A paused module is pinged, and may be lost.
    """
    wrapper = wrapped(clock, module)
    paused = resultOf(wrapper.pause())
    assert paused.value is None
    clock.advance(5)
    module.pings[0].callback("pong")
    clock.advance(5)
    module.pings[1].errback(Trouble("no pong"))
    assert wrapper.state is State.LOST
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    assert wrapper.state is State.PAUSED
    clock.advance(5)
    assert len(module.pings) == 3
    shut(wrapper)


def test_pings_go_on_during_the_drain(clock: Clock, module: Pinged) -> None:
    """
    A module is pinged during its drain, even if the drain never ends.
    """
    wrapper = QueuingWrapper(
        module,
        clock,
        concurrency=1,
        ping=module.ping,
        pingInterval=5.0,
        timeout=None,
    )
    results = [resultOf(wrapper.proxy.write(number)) for number in range(2)]
    wrapper.initialize()
    module.attempts[0].callback(None)
    assert wrapper.state is State.DRAINING
    clock.advance(5)
    module.pings[0].errback(Trouble("no pong"))
    clock.advance(0)
    assert isinstance(results[0].error, OutcomeUnknown)
    assert (wrapper.state, wrapper.pending) == (State.LOST, 1)
    shut(wrapper)


def test_a_ping_is_not_a_call(clock: Clock, module: Pinged) -> None:
    """
    A ping neither counts as a call in progress nor delays a pause; the module's own
    ping() is still proxied.
    """
    wrapper = wrapped(clock, module)
    clock.advance(5)
    assert wrapper.inProgress == 0
    assert resultOf(wrapper.pause()).value is None
    call: Any = wrapper.proxy.ping()
    assert wrapper.pending == 1
    wrapper.resume()
    module.pings[1].callback("pong")
    assert resultOf(call).value == "pong"
    shut(wrapper)


def test_the_loss_is_noticed_by_a_ping(clock: Clock, module: Pinged) -> None:
    """
    ping() may report the loss itself while it is called.
    """
    wrapper = wrapped(clock, module)
    module.answer = lambda: lose(module, Trouble("cut off"))
    clock.advance(5)
    assert wrapper.state is State.LOST
    assert (str(wrapper.lastError), module.closings) == ("cut off", [])
    module.answer = lambda: None
    recover(clock, module)
    assert wrapper.state is State.READY
    assert wrapper.history.losses.count == 1
    shut(wrapper)


@pytest.mark.parametrize("act", ["close", "reset", "pause"])
def test_what_a_ping_may_do(clock: Clock, module: Pinged, act: str) -> None:
    """
    A ping may close, reset or pause the wrapper.
    """
    wrapper = wrapped(clock, module)

    def answer() -> None:
        if act == "close":
            wrapper.close()
        elif act == "reset":
            wrapper.reset(Trouble("rotated"))
        else:
            wrapper.pause()

    module.answer = answer
    clock.advance(5)
    module.answer = lambda: None
    expected = {"close": State.CLOSING, "reset": State.LOST, "pause": State.PAUSED}
    assert wrapper.state is expected[act]
    shut(wrapper)


@pytest.mark.parametrize("answer", [None, "pong", succeed("pong")])
def test_a_ping_that_is_answered_at_once(
    clock: Clock, module: Pinged, answer: Any
) -> None:
    """
    ping() may return any value, or a Deferred that has fired.
    """
    times: list[float] = []

    def ping() -> Any:
        times.append(clock.seconds())
        return answer

    wrapper = wrapped(clock, module, ping=ping)
    clock.pump([5, 5, 5])
    assert (times, wrapper.state) == ([5.0, 10.0, 15.0], State.READY)
    shut(wrapper)


def test_a_module_without_whenLost(clock: Clock) -> None:
    """
    A ping detects the loss of a module without whenLost().
    """

    class Silent:
        def __init__(self) -> None:
            self.attempts = 0

        def initialize(self) -> None:
            self.attempts += 1

        def ping(self) -> Deferred[None]:
            return fail(Trouble("no pong"))

        def write(self) -> Deferred[None]:
            return Deferred()

    module = Silent()
    wrapper = QueuingWrapper(module, clock, ping=module.ping)
    wrapper.initialize()
    call = resultOf(wrapper.proxy.write())
    clock.advance(10)
    clock.advance(0)
    assert isinstance(call.error, OutcomeUnknown)
    assert (wrapper.state, module.attempts) == (State.READY, 2)
    assert resultOf(wrapper.close()).value is None


def test_the_canceller_of_a_ping_raises(
    clock: Clock, module: Pinged, loggedFailures: list[LogEvent]
) -> None:
    """
    A ping that hangs and cannot be cancelled is still a loss.
    """

    def abort(_: object) -> None:
        raise Trouble("no transport")

    wrapper = wrapped(clock, module, ping=lambda: Deferred(abort))
    clock.pump([5, 5])
    assert wrapper.state is State.LOST
    assert isinstance(wrapper.lastError, TimeoutError)
    assert [each["log_failure"].type for each in loggedFailures] == [Trouble]
    loggedFailures.clear()
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY
    shut(wrapper)


# Events of a wrapper, one after another.
ACTS: dict[str, Callable[[QueuingWrapper[Pinged]], object]] = {
    "reset": lambda wrapper: wrapper.reset(Trouble("rotated")),
    "lose": lambda wrapper: lose(wrapper.module),
    "pause": lambda wrapper: resultOf(wrapper.pause()),
    "resume": lambda wrapper: wrapper.resume(),
    "close": lambda wrapper: resultOf(wrapper.close()),
}


@pytest.mark.parametrize("first", ["wait", "ping", "waiter"])
@pytest.mark.parametrize("acts", list(permutations(ACTS, 3)))
def test_never_more_than_one_ping(
    clock: Clock, module: Pinged, acts: tuple[str, ...], first: str
) -> None:
    """
    A module that is ready or paused is pinged once in each interval, and any other
    module never, also while a loss is handled.
    """

    def run() -> None:
        for act in acts:
            isLost = act == "lose" and module.watches[-1].called
            if wrapper.state is not State.CLOSED and not isLost:
                ACTS[act](wrapper)

    wrapper = wrapped(
        clock, module, initialize=bool, close=bool, replay=["read"], timeout=None
    )
    if first == "ping":
        clock.advance(5)
        run()
    elif first == "waiter":
        # Waiters for calls in progress run in the middle of the loss.
        resultOf(wrapper.proxy.read(1))
        wrapper.pause("waiter").addCallback(lambda _: run())
        lose(module)
        wrapper.resume("waiter")
    else:
        run()
    clock.advance(1)
    isPinged = wrapper.state in (State.READY, State.PAUSED)
    module.pings.clear()
    for _ in range(3):
        before = len(module.pings)
        clock.advance(5)
        assert len(module.pings) == before + isPinged
        if isPinged:
            module.pings[-1].callback("pong")
    assert isPinged or wrapper.state is State.CLOSED
    resultOf(wrapper.close())
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_reset_inside_pausing_at_a_loss(
    clock: Clock, module: Pinged, seconds: float
) -> None:
    """
    If a loss begins the body of C{async with wrapper.pausing()}, and the body resets
    the wrapper, one series of pings starts, and closing ends it.
    """
    wrapper = wrapped(clock, module, initialize=bool, close=bool, replay=["read"])
    resultOf(wrapper.proxy.read(1))

    async def rotate() -> None:
        async with wrapper.pausing():
            wrapper.reset(Trouble("rotated"))

    rotated = resultOf(Deferred.fromCoroutine(rotate()))
    lose(module)
    assert (rotated.value, wrapper.state) == (None, State.READY)
    clock.advance(seconds)
    assert len(module.pings) == (seconds == 5)
    resultOf(wrapper.close())
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("name", ["read", "write"])
def test_a_call_that_fails_is_a_reason_to_ping(
    clock: Clock, module: Pinged, name: str
) -> None:
    """
    After a failed call, a ping follows at once. If it fails, a call that is safe to run
    twice is repeated; any other call has failed.
    """
    wrapper = wrapped(clock, module, replay={"read"})
    call = resultOf(getattr(wrapper.proxy, name)(1))
    clock.advance(1)
    module.answers[0].errback(Trouble("reset by peer"))
    clock.advance(0)
    assert (len(module.pings), call.pending) == (1, name == "read")
    module.pings[0].errback(Trouble("no pong"))
    assert wrapper.state is State.LOST
    clock.advance(0)
    assert call.pending == (name == "read")
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    if name == "read":
        module.answers[1].callback("again")
        assert call.value == "again"
    else:
        assert str(call.error) == "reset by peer"
    shut(wrapper)


def test_a_ping_that_succeeds_leaves_the_failure(clock: Clock, module: Pinged) -> None:
    """
    If a ping after a failed call succeeds, the call fails with its own error, and pings
    continue as before.
    """
    wrapper = wrapped(clock, module, replay={"read"})
    call = resultOf(wrapper.proxy.read(1))
    clock.advance(1)
    module.answers[0].errback(Trouble("no such key"))
    clock.advance(0)
    module.pings[0].callback("pong")
    clock.advance(0)
    assert (str(call.error), wrapper.state) == ("no such key", State.READY)
    clock.advance(4.9)
    assert len(module.pings) == 1
    clock.advance(0.1)
    assert len(module.pings) == 2
    shut(wrapper)


def test_an_older_ping_explains_nothing(clock: Clock, module: Pinged) -> None:
    """
    A ping that had begun before a call failed does not count for that call, since the
    module may have responded before it was lost; the call waits for the next ping.
    """
    wrapper = wrapped(clock, module, replay={"read"})
    calls = [resultOf(wrapper.proxy.read(number)) for number in range(3)]
    clock.advance(5)
    module.answers[0].errback(Trouble())
    clock.advance(0)
    module.pings[0].callback("pong")
    clock.advance(0)
    assert (len(module.pings), calls[0].pending) == (2, True)
    module.answers[1].errback(Trouble())
    module.answers[2].errback(Trouble())
    module.pings[1].callback("pong")
    clock.advance(0)
    assert isinstance(calls[0].error, Trouble)
    module.pings[2].errback(Trouble())
    assert (calls[1].pending, calls[2].pending) == (True, True)
    assert (wrapper.pending, len(module.pings)) == (2, 3)
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    for answer in module.answers[3:]:
        answer.callback("again")
    assert [call.value for call in calls[1:]] == ["again", "again"]
    shut(wrapper)


@pytest.mark.parametrize("how", ["closed", "cancelled", "reset"])
def test_a_failure_whose_ping_never_ends(
    clock: Clock, module: Pinged, how: str
) -> None:
    """
    A call that has failed, and waits for a ping, ends when the wrapper is closed, or
    when its caller gives up; after a reset it is repeated.
    """
    wrapper = wrapped(clock, module, replay={"read"})
    deferred = wrapper.proxy.read(1)
    call = resultOf(deferred)
    module.answers[0].errback(Trouble("reset by peer"))
    clock.advance(0)
    if how == "closed":
        shut(wrapper)
        assert str(call.error) == "reset by peer"
        return
    if how == "cancelled":
        deferred.cancel()
        assert isinstance(call.error, CancelledError)
        module.pings[0].callback("pong")
        clock.advance(0)
    else:
        wrapper.reset(Trouble("rotated"))
        assert (call.pending, wrapper.pending) == (True, 1)
    shut(wrapper)


class Broken(Pinged):
    """
    A module whose calls fail at once.
    """

    def raises(self, what: object) -> Deferred[Any]:
        self.calls.append(("raises", what))
        raise Trouble("broken pipe")

    def fails(self, what: object) -> Deferred[Any]:
        self.calls.append(("fails", what))
        return fail(Trouble("broken pipe"))

    async def coroutine(self, what: object) -> Any:
        self.calls.append(("coroutine", what))
        raise Trouble("broken pipe")


@pytest.mark.parametrize("isReplayed", [False, True])
@pytest.mark.parametrize("alwaysDeferred", [False, True])
@pytest.mark.parametrize("name", ["raises", "fails", "coroutine"])
def test_a_call_that_fails_at_once_is_a_reason_to_ping(
    clock: Clock, name: str, alwaysDeferred: bool, isReplayed: bool
) -> None:
    """
    A client that knows that its connection is broken may fail a call at once. This call
    is followed by a ping, too, and a call that is safe to run twice waits for its end.
    """
    module = Broken()
    wrapper = wrapped(
        clock,
        module,
        replay={name} if isReplayed else (),
        alwaysDeferred=alwaysDeferred,
    )
    calls = [resultOf(maybeDeferred(getattr(wrapper.proxy, name), 1)) for _ in range(3)]
    assert [call.pending for call in calls] == [isReplayed] * 3
    clock.advance(0)
    assert (len(module.pings), calls[0].pending) == (1, isReplayed)
    module.pings[0].errback(Trouble("no pong"))
    assert wrapper.state is State.LOST
    clock.advance(0)
    module.closings[0].callback(None)
    module.attempts[1].callback(None)
    assert len(module.calls) == (6 if isReplayed else 3)
    clock.advance(0)
    assert [call.pending for call in calls] == [isReplayed] * 3
    if isReplayed:
        assert len(module.pings) == 2
        module.pings[1].callback("pong")
        clock.advance(0)
    assert [str(call.error) for call in calls] == ["broken pipe"] * 3
    shut(wrapper)


@pytest.mark.parametrize("name", ["raises", "fails", "coroutine"])
def test_calls_that_fail_at_once_share_a_ping(clock: Clock, name: str) -> None:
    """
    Calls that fail during a ping are followed by one more ping. Then pings go on as
    before.
    """
    module = Broken()
    wrapper = wrapped(clock, module)
    for expected in (1, 2):
        for number in range(3):
            resultOf(maybeDeferred(getattr(wrapper.proxy, name), number))
        clock.advance(0)
        assert len(module.pings) == 1
        assert wrapper.state is State.READY
        if expected == 2:
            module.pings[0].callback("pong")
            clock.advance(0)
    assert len(module.pings) == 2
    module.pings[1].callback("pong")
    clock.advance(4.9)
    assert len(module.pings) == 2
    clock.advance(0.1)
    assert len(module.pings) == 3
    shut(wrapper)


@pytest.mark.parametrize("name", ["raises", "fails", "coroutine"])
def test_no_ping_after_a_failure_that_comes_with_a_loss(
    clock: Clock, name: str
) -> None:
    """
    A call that fails at once, and whose module reports the loss meanwhile, needs no
    ping.
    """

    class Reporting(Broken):
        def raises(self, what: object) -> Deferred[Any]:
            lose(self, Trouble("cut off"))
            return super().raises(what)

        def fails(self, what: object) -> Deferred[Any]:
            lose(self, Trouble("cut off"))
            return super().fails(what)

        async def coroutine(self, what: object) -> Any:
            lose(self, Trouble("cut off"))
            return await super().coroutine(what)

    module = Reporting()
    wrapper = wrapped(clock, module)
    call = resultOf(maybeDeferred(getattr(wrapper.proxy, name), 1))
    assert (str(call.error), wrapper.state) == ("broken pipe", State.LOST)
    clock.advance(0.5)
    assert module.pings == []
    recover(clock, module)
    clock.advance(4.9)
    assert module.pings == []
    shut(wrapper)


def test_pings_that_fail_again_and_again_do_not_cause_a_storm_of_attempts() -> None:
    """
    A module whose initialisation succeeds, but whose calls and pings fail at once, is
    initialised again with growing delays.
    """

    class Refusing:
        """
        A client that connects, and can do nothing else.
        """

        attempts = 0

        def initialize(self) -> None:
            self.attempts += 1

        def call(self) -> Deferred[None]:
            return fail(ConnectionError("too many connections"))

    clock = Clock()
    module = Refusing()
    wrapper = QueuingWrapper(
        module,
        clock,
        timeout=1.0,
        ping=module.call,
        pingInterval=5.0,
        retryPolicy=lambda attempts: 2.0**attempts,
    )
    wrapper.initialize()
    for _ in range(2000):
        wrapper.proxy.call().addErrback(lambda _: None)
        clock.advance(0.01)
    # At once after the first loss; then after 1, 2, 4 and 8 s.
    assert module.attempts == 6
    wrapper.close()
