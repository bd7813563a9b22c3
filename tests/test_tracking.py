"""
Tracked calls: each call in progress of a module that can be lost ends with its own
result, or with OutcomeUnknown.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import alsoProvides, implementer

from tsrv import OutcomeUnknown, QueuingWrapper, State
from tsrv.asyncmodule import ISettlesCalls

from .support import (
    Module,
    Result,
    Trouble,
    inState,
    lose,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)

METHODS = ["write", "compute"]


@pytest.fixture(params=["ready", "queued"])
def begin(request: pytest.FixtureRequest, clock: Clock) -> Callable[..., Any]:
    """
    Make a call that is in progress: of a ready module, or one that was queued before.
    """

    def begin(method: str, **options: Any) -> tuple[Module, Any, Deferred[Any]]:
        module, wrapper, proxy = wrap(clock, **options)
        if request.param == "ready":
            ready(module, wrapper)
        call = getattr(proxy, method)(1)
        ready(module, wrapper)
        assert isinstance(call, Deferred)
        assert wrapper.inProgress == 1
        return module, wrapper, call

    return begin


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [None, Trouble("not found")])
def test_a_call_ends_with_its_own_result(
    begin: Callable[..., Any], method: str, error: Exception | None
) -> None:
    """
    Without a loss, a call ends when the module ends it, and with the same result.
    """
    module, wrapper, call = begin(method)
    result = resultOf(call)
    if error is None:
        module.answers[0].callback("done")
        assert result.value == "done"
    else:
        module.answers[0].errback(error)
        assert result.error is error
    assert (wrapper.inProgress, wrapper.stats.unknown) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", [None, "done", Trouble("cut off")])
@pytest.mark.parametrize("end", ["loss", "close", "reset"])
def test_the_module_goes_away(
    clock: Clock, begin: Callable[..., Any], method: str, answer: object, end: str
) -> None:
    """
    A call in progress at a loss, a reset or a close ends with the module's own result,
    if that is in time; otherwise its outcome is unknown. Later results are ignored.
    """
    module, wrapper, call = begin(method)
    result = resultOf(call)
    if end == "loss":
        lose(module, Trouble("gone"))
    elif end == "reset":
        wrapper.reset(Trouble("gone"))
    else:
        resultOf(wrapper.close())
    assert result.pending
    if isinstance(answer, Exception):
        module.answers[0].errback(answer)
    elif answer is not None:
        module.answers[0].callback(answer)
    clock.advance(0)
    for closing in module.closings:
        closing.callback(None)
    if isinstance(answer, Exception):
        assert result.error is answer
    elif answer is not None:
        assert result.value == answer
    else:
        assert isinstance(result.error, OutcomeUnknown)
        assert result.error.method == method
        assert str(result.error) == (
            f"{method}() was in progress when Module was lost or "
            "closed: it may have been carried out, or not"
        )
        assert str(result.error.__cause__) == ("None" if end == "close" else "gone")
        module.answers[0].errback(Trouble("too late"))
    assert wrapper.inProgress == 0
    assert wrapper.stats.unknown == (answer is None)
    if end == "loss":
        recover(clock, module)
    elif end == "reset":
        module.attempts[-1].callback(None)
    assert wrapper.state is (State.CLOSED if end == "close" else State.READY)
    assert module.calls == [(method, 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ["working", "loss", "late", "closed"])
def test_cancelling(
    clock: Clock, begin: Callable[..., Any], method: str, end: str
) -> None:
    """
    Cancelling a call cancels the module's own Deferred at any time.
    """
    module, wrapper, call = begin(method)
    result = resultOf(call)
    if end == "loss":
        lose(module)
    elif end == "late":
        lose(module)
        recover(clock, module)
        assert isinstance(result.error, OutcomeUnknown)
    elif end == "closed":
        resultOf(wrapper.close())
    call.cancel()
    if end != "late":
        assert module.answers[0].called
        assert isinstance(result.error, CancelledError)
    clock.advance(0)
    shut(wrapper)
    assert (wrapper.inProgress, wrapper.stats.unknown) == (0, end == "late")


def test_many_end_in_order(clock: Clock) -> None:
    """
    Calls whose outcome is unknown end in the order in which they were made.
    """
    module, wrapper, proxy = wrap(clock)
    ended: list[int] = []
    for number in range(6):
        call: Any = proxy.write(number)
        call.addErrback(lambda _, number=number: ended.append(number))
        if number == 2:
            ready(module, wrapper)
    lose(module)
    assert wrapper.inProgress == 6
    clock.advance(0)
    assert ended == list(range(6))
    assert (wrapper.inProgress, wrapper.stats.unknown) == (0, 6)
    recover(clock, module)


def test_the_counters(clock: Clock) -> None:
    """
    C{unknown} counts queued and direct calls; C{submitted} counts only queued ones,
    once.
    """
    module, wrapper, proxy = wrap(clock)
    resultOf(proxy.write(1))
    ready(module, wrapper)
    resultOf(proxy.write(2))
    lose(module)
    clock.advance(0)
    stats = wrapper.stats
    assert (stats.submitted, stats.started, stats.unknown) == (1, 1, 2)
    recover(clock, module)


# Which calls are tracked.


class Steady:
    """
    A module that cannot be lost.
    """

    def __init__(self) -> None:
        self.answers: list[Deferred[Any]] = []

    def initialize(self) -> None:
        pass

    def write(self, what: object) -> Deferred[Any]:
        self.answers.append(Deferred())
        return self.answers[-1]


@implementer(ISettlesCalls)
class Settling(Steady):
    """
    A module that settles its calls.
    """

    def whenLost(self) -> Deferred[None]:
        return Deferred()


class Losable(Steady):
    """
    A module that can be lost.
    """

    def whenLost(self) -> Deferred[None]:
        return Deferred()


def settlingObject() -> Losable:
    """
    @return: An object that settles its calls, of a class that does not.
    """
    module = Losable()
    alsoProvides(module, ISettlesCalls)
    return module


@pytest.mark.parametrize(
    ("make", "options", "isTracked"),
    [
        (Steady, {}, False),
        (Steady, {"settles": True}, False),
        (Steady, {"settles": False}, True),
        (Steady, {"ping": bool}, True),
        (Steady, {"ping": bool, "settles": True}, False),
        (Steady, {"whenLost": Deferred}, True),
        (Steady, {"replay": ["write"]}, True),
        (Steady, {"replay": ["write"], "settles": True}, True),
        (Losable, {}, True),
        (Losable, {"settles": True}, False),
        (settlingObject, {}, False),
        (Settling, {}, False),
        (Settling, {"settles": False}, True),
        (Settling, {"settles": True}, False),
        (Settling, {"replay": ["write"]}, True),
    ],
)
def test_which_calls_are_tracked(
    clock: Clock, make: Callable[[], Any], options: dict[str, Any], isTracked: bool
) -> None:
    """
    Calls of a module that can be lost are tracked, unless the module settles them.
    Calls that are safe to run twice are always tracked. All other calls are the
    module's own.
    """
    module = make()
    wrapper = QueuingWrapper(module, clock, **options)
    wrapper.initialize()
    call = wrapper.proxy.write(1)
    assert (call is not module.answers[0]) is isTracked
    assert wrapper.inProgress == isTracked
    assert (vars(wrapper.proxy)["write"] != module.write) is isTracked
    module.answers[0].callback("done")
    assert resultOf(call).value == "done"
    assert wrapper.inProgress == 0
    wrapper.close()


def test_a_settling_module_ends_its_calls_itself(clock: Clock) -> None:
    """
    If a module settles its calls, tsrv does not wait for them at a loss or a close, and
    does not end them.
    """
    module, wrapper, proxy = inState(clock, State.READY, settles=True)
    result = resultOf(proxy.write(1))
    lose(module)
    recover(clock, module)
    assert result.pending
    closed = resultOf(wrapper.close())
    module.closings[0].callback(None)
    assert (closed.value, result.pending) == (None, True)
    module.answers[0].callback("done")
    assert result.value == "done"


# The results of tracked calls.


class Quick(Module):
    """
    A module that returns what the test says.
    """

    def now(self, what: Callable[[], Any]) -> Any:
        return what()


def quick(clock: Clock) -> tuple[Quick, QueuingWrapper[Quick]]:
    """
    @return: Such a module, and its wrapper, ready.
    """
    module = Quick()
    wrapper = QueuingWrapper(module, clock, retryPolicy=lambda _: 1.0)
    ready(module, wrapper)
    return module, wrapper


def _same(what: object) -> object:
    return what


def test_what_has_ended_is_returned_as_it_is(clock: Clock) -> None:
    """
    A plain value, and a Deferred that has fired, are returned unchanged.
    """
    _, wrapper = quick(clock)
    value, succeeded, failed = object(), succeed(1), fail(Trouble())
    for each in (value, succeeded, failed):
        assert wrapper.proxy.now(partial(_same, each)) is each
    assert wrapper.inProgress == 0
    assert resultOf(failed).error


def test_a_deferred_that_waits_for_another(clock: Clock) -> None:
    """
    A Deferred that has fired, but waits for another one, is in progress.
    """
    module, wrapper = quick(clock)
    further: Deferred[Any] = Deferred()
    call = resultOf(
        wrapper.proxy.now(lambda: succeed(None).addCallback(lambda _: further))
    )
    lose(module)
    clock.advance(0)
    assert isinstance(call.error, OutcomeUnknown)
    recover(clock, module)
    further.errback(Trouble("too late"))


def test_a_method_that_raises(clock: Clock) -> None:
    """
    If a method raises, a call in READY raises, too.
    """
    _, _, proxy = inState(clock, State.READY)
    with pytest.raises(Trouble):
        proxy.fail(1)


def test_arguments_and_keywords(clock: Clock) -> None:
    """
    A tracked call passes arguments and keywords on.
    """
    module, wrapper, proxy = inState(clock, State.READY)
    proxy.write(what=1)
    proxy.write(2)
    assert module.calls == [("write", 1), ("write", 2)]
    for answer in module.answers:
        answer.callback(None)
    with pytest.raises(TypeError, match="what"):
        proxy.write()  # type: ignore[call-arg]
    assert wrapper.inProgress == 0


def test_an_ended_call_keeps_nothing(clock: Clock) -> None:
    """
    A tracked call that has ended keeps neither the module nor its arguments alive.
    """

    class Big:
        pass

    module, wrapper, proxy = inState(clock, State.READY)
    big = Big()
    call = proxy.write(big)
    module.answers[0].callback("done")
    gone = [weakref.ref(each) for each in (big, module, wrapper)]
    del big, module, wrapper, proxy
    gc.collect()
    assert [each() for each in gone] == [None, None, None]
    assert call.result == "done"


@pytest.mark.parametrize("when", ["queued", "ready", "during", "queued, during"])
@pytest.mark.parametrize("how", ["loss", "reset", "loss without a reason"])
@pytest.mark.parametrize("then", ["ready", "retrying", "failed", "closed", "lost"])
def test_the_reason_of_the_loss(clock: Clock, when: str, how: str, then: str) -> None:
    """
    The cause of OutcomeUnknown is the loss of this call, whatever happens to the module
    before the call ends.
    """
    attempts = iter([None, fail(Trouble("another")) if then == "retrying" else None])
    reason = Trouble("cut off") if how != "loss without a reason" else None
    module = Quick()
    wrapper = QueuingWrapper(
        module,
        clock,
        initialize=lambda: next(attempts, None),
        close=bool,
        retryPolicy=lambda _: 0.0,
    )

    def act() -> Any:
        if how == "reset":
            assert reason is not None
            wrapper.reset(reason)
        else:
            lose(module, reason)
            if then in ("ready", "retrying"):
                wrapper.reset(Trouble("begin at once"))
        if then == "failed" and wrapper.state is State.LOST:
            wrapper.fail(Trouble("given up"))
        elif then == "closed":
            wrapper.close()
        elif then == "lost" and wrapper.state is State.READY:
            lose(module, Trouble("again"))
        return Deferred()

    def call() -> Any:
        return wrapper.proxy.now(act if "during" in when else Deferred)

    calls = [call()] if "queued" in when else []
    wrapper.initialize()
    if not calls:
        calls.append(call())
    result = resultOf(calls[0])
    if "during" not in when:
        act()
    clock.advance(0)
    assert isinstance(result.error, OutcomeUnknown)
    # A method that is still running while the module recovers or fails has the last
    # reason.
    if when != "during":
        assert result.error.__cause__ is reason
    shut(wrapper)
    clock.advance(0)


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("then", ["ready", "draining", "paused", "lost", "failed"])
def test_the_wrapper_keeps_no_ended_call(clock: Clock, method: str, then: str) -> None:
    """
    The wrapper keeps neither a call that has ended nor its result, whatever happened to
    it and whatever the wrapper does next.
    """

    class Big:
        pass

    module, wrapper, proxy = wrap(clock, replay=["read"], concurrency=1)
    calls = [getattr(proxy, method)(number) for number in range(2)]
    ready(module, wrapper)
    lose(module)
    clock.advance(0)
    recover(clock, module)
    if then != "draining":
        clock.advance(0)
    results = [resultOf(each) for each in calls]
    big = Big()
    if then in ("ready", "paused"):
        for answer in module.answers:
            if not answer.called:
                answer.callback(big)
            clock.advance(0)
    else:
        answer = module.answers[-1]
        answer.callback(big)
    if then == "paused":
        wrapper.pause()
    elif then == "lost":
        lose(module)
    elif then == "failed":
        lose(module)
        wrapper.fail(Trouble("given up"))
    gone = [weakref.ref(big), *map(weakref.ref, calls)]
    pending = [each.pending for each in results]
    for result in results:
        result.fired.clear()
    module.answers.clear()
    del big, calls, results, result, answer
    gc.collect()
    assert [each() is None for each in gone] == [True, *(not each for each in pending)]
    shut(wrapper)
    clock.advance(0)


# A loss while the module is being called.


@pytest.mark.parametrize("isRecovered", [True, False])
@pytest.mark.parametrize("answer", ["value", "fired", "raises", "later", "never"])
def test_the_module_is_lost_while_it_is_called(
    clock: Clock, isRecovered: bool, answer: str
) -> None:
    """
    If the module is lost while a method runs, and perhaps recovers, the call ends with
    the method's result, or its outcome is unknown.
    """
    module, wrapper = quick(clock)
    later: Deferred[Any] = Deferred()

    def act() -> Any:
        lose(module)
        if isRecovered:
            recover(clock, module)
            assert wrapper.state is State.READY
        if answer == "raises":
            raise Trouble("cut off")
        if answer == "value":
            return "done"
        return succeed("done") if answer == "fired" else later

    if answer == "raises":
        with pytest.raises(Trouble):
            wrapper.proxy.now(act)
    else:
        call = wrapper.proxy.now(act)
        result: Any = call if answer == "value" else resultOf(call)
        if answer == "later":
            later.callback("done")
        clock.advance(0)
        if answer == "value":
            assert result == "done"
        elif answer == "never":
            assert isinstance(result.error, OutcomeUnknown)
            later.errback(Trouble("too late"))
        else:
            assert result.value == "done"
    assert wrapper.inProgress == 0
    if not isRecovered:
        recover(clock, module)


@pytest.mark.parametrize("isRecovered", [True, False])
def test_a_replayed_call_is_lost_while_it_is_made(
    clock: Clock, isRecovered: bool
) -> None:
    """
    A call that is safe to run twice is repeated if the module is lost while its method
    runs.
    """

    class Losing(Module):
        def read(self, what: object) -> Deferred[Any]:
            answer = super().read(what)
            if len(self.calls) == 1:
                lose(self)
                if isRecovered:
                    recover(clock, self)
            return answer

    module = Losing()
    wrapper = QueuingWrapper(module, clock, replay=["read"], retryPolicy=lambda _: 1.0)
    ready(module, wrapper)
    result = resultOf(wrapper.proxy.read(1))
    if not isRecovered:
        recover(clock, module)
    assert module.calls == [("read", 1)] * 2
    module.answers[0].errback(Trouble("too late"))
    assert result.pending
    module.answers[1].callback("done")
    assert result.value == "done"


@pytest.mark.parametrize("method", ["now", "read"])
@pytest.mark.parametrize("isClosed", [True, False])
def test_a_method_closes_the_wrapper(clock: Clock, method: str, isClosed: bool) -> None:
    """
    The outcome of a call that closes the wrapper is unknown unless the module ends the
    call, whether the closing ends during the call or afterwards.
    """
    later: Deferred[Any] = Deferred()

    class Closing(Module):
        def now(self) -> Deferred[Any]:
            resultOf(wrapper.close())
            return later

        def read(self) -> Deferred[Any]:  # type: ignore[override]
            return self.now()

        def close(self) -> Any:
            closing = super().close()
            return None if isClosed else closing

    module = Closing()
    wrapper = QueuingWrapper(module, clock, replay=["read"])
    ready(module, wrapper)
    result = resultOf(getattr(wrapper.proxy, method)())
    if not isClosed:
        assert result.pending
        module.closings[0].callback(None)
    clock.advance(0)
    assert not result.pending
    if method == "now" or not isClosed:
        assert isinstance(result.error, OutcomeUnknown)
    assert (wrapper.state, wrapper.inProgress) == (State.CLOSED, 0)
    assert clock.getDelayedCalls() == []


# Thousands of calls.


class Passing(Clock):
    """
    A clock that advances a little at each look.
    """

    step = 0.0

    def seconds(self) -> float:
        """
        Return the time, and advance it.
        """
        self.rightNow += self.step
        return super().seconds()


class Many:
    """
    Thousands of calls in progress.

    @ivar ended: The numbers of the ended calls.
    @ivar results: The results of all calls.
    @ivar calls: All calls.
    """

    def __init__(self, number: int, method: str, timeout: float | None = None) -> None:
        self.clock = Passing()
        self.module, self.wrapper, self.proxy = wrap(
            self.clock, replay=["read"], timeout=timeout, limit=2 * number
        )
        ready(self.module, self.wrapper)
        self.ended: list[int] = []
        self.results: list[Result] = []
        self.calls: list[Deferred[Any]] = []
        for each in range(number):
            call = getattr(self.proxy, method)(each)
            self.calls.append(call)
            call.addBoth(self._ended, each)
            self.results.append(resultOf(call))
        self.clock.step = 0.001

    def _ended(self, result: object, number: int) -> object:
        self.ended.append(number)
        return result

    def run(self, act: Callable[[], object] = bool) -> list[int]:
        """
        Run everything that is due.

        @param act: Called after the first slice.
        @return: The number of ended calls after each turn.
        """
        counts: list[int] = []

        def turn() -> None:
            counts.append(len(self.ended))
            if len(counts) == 2:
                act()
            if len(counts) < 1000:
                self.clock.callLater(0, turn)

        self.clock.callLater(0, turn)
        self.clock.advance(0)
        return counts


@pytest.mark.parametrize("number", [200, 7_000])
def test_very_many_calls_are_lost_in_slices(number: int) -> None:
    """
    Each turn of the reactor ends a limited number of lost calls, in order.
    """
    many = Many(number, "write")
    if number > 1000:
        many.clock.step = 0.0001
    lose(many.module)
    counts = many.run()
    assert max(b - a for a, b in pairwise(counts)) <= 60
    assert counts[10] < number
    assert many.ended == list(range(number))
    assert (many.wrapper.inProgress, many.wrapper.stats.unknown) == (0, number)
    shut(many.wrapper)


def test_answers_between_the_slices() -> None:
    """
    If the module ends a call before its slice, the call has that result.
    """
    many = Many(100, "write")
    lose(many.module)

    def act() -> None:
        assert 0 < len(many.ended) < 50
        many.module.answers[99].callback("done")
        assert many.results[99].value == "done"

    many.run(act)
    assert all(isinstance(each.error, OutcomeUnknown) for each in many.results[:99])
    assert many.wrapper.stats.unknown == 99
    shut(many.wrapper)


def test_the_reason_of_a_large_loss() -> None:
    """
    The cause of all calls of a loss is this loss, even if the module recovers and is
    lost again before the last of them has ended.
    """
    many = Many(7_000, "write")
    many.clock.step = 0.0001
    reason = Trouble("cut off")

    def act() -> None:
        assert len(many.ended) < 7_000
        recover(many.clock, many.module)
        lose(many.module, Trouble("again"))

    lose(many.module, reason)
    many.run(act)
    shut(many.wrapper)
    many.run()
    assert {each.error.__cause__ for each in many.results} == {reason}


@pytest.mark.parametrize("number", [100, 7_000])
@pytest.mark.parametrize("method", ["write", "read"])
@pytest.mark.parametrize("then", ["recover", "fail", "close"])
def test_something_else_happens_between_the_slices(
    number: int, method: str, then: str
) -> None:
    """
    If the module recovers, fails or is closed between the slices, every call ends once.
    Calls that are safe to run twice are repeated in order, before later calls.
    """
    many = Many(number, method)
    if number > 1000:
        many.clock.step = 0.0001
    module, wrapper = many.module, many.wrapper
    late: list[Result] = []

    def act() -> None:
        assert len(many.ended) < number
        late.append(resultOf(many.proxy.count(number)))
        if then == "recover":
            many.clock.advance(1.0)
            module.attempts[-1].callback(None)
        elif then == "fail":
            wrapper.fail(Trouble("for good"))
        elif then == "close":
            wrapper.close()
            module.closings[-1].callback(None)

    lose(module)
    many.run(act)
    assert wrapper.inProgress == 0 or then == "recover"
    if then == "recover":
        assert wrapper.state is State.READY
        again = list(range(number)) if method == "read" else []
        assert [what for _, what in module.calls[number:]] == [*again, number]
        for answer in module.answers[number:]:
            answer.callback("again")
        assert late[0].value == number
    shut(wrapper)
    many.run()
    assert sorted(many.ended) == list(range(number))
    assert not late[0].pending
    kinds = {type(each.fired[0]) for each in many.results}
    if method == "write":
        assert {type(each.error) for each in many.results} == {OutcomeUnknown}
        assert wrapper.stats.unknown == number
    else:
        assert len(kinds) == 1
    assert (wrapper.inProgress, wrapper.pending) == (0, 0)
    assert many.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("how", "places"),
    [
        *(("cancelled", each) for each in ([1], [1, 2], [2, 1], [2], range(1, 999))),
        *(("fired", each) for each in ([1], [1, 2], [2])),
        ("cancelled", range(1, 3_000)),
        ("expired", range(1, 3_000)),
    ],
)
def test_calls_end_while_others_are_put_back(how: str, places: Iterable[int]) -> None:
    """
    Calls that are queued again in slices keep their order, whichever of them end
    meanwhile; ended calls are not repeated.
    """
    number = 3_000
    many = Many(number, "read", timeout=5.0 if how == "expired" else None)
    module, wrapper, clock = many.module, many.wrapper, many.clock
    many.clock.step = 0.0001
    lose(module)
    many.clock.step = 0.0
    back = wrapper.pending
    assert 0 < back < number
    # The positions, counted from the call that was queued again last.
    ends = [back - each for each in places if each <= back]
    if how == "expired":
        # All calls have been queued since the loss.
        clock.rightNow += 5.0
        clock.advance(0)
        ends = list(range(number))
    for each in ends:
        if how == "cancelled":
            many.calls[each].cancel()
        elif how == "fired":
            many.calls[each].callback("never mind")
    many.run()
    late = resultOf(many.proxy.count(number))
    recover(clock, module)
    many.run()
    again = [what for _, what in module.calls[number:]]
    expected = set(range(number + 1)) - set(ends)
    if how == "expired":
        # Calls that were queued again later may have expired, too.
        expected.intersection_update(again)
    assert again == sorted(expected)
    assert late.value == number
    shut(wrapper)
    many.run()
