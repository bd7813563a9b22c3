"""
An initialisation that is given up from outside.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from tsrv import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueuingWrapper,
    State,
)
from tsrv.wrapper import IllegalTransition

from .support import Module, Refused, Trouble, ready, resultOf, wrap

Wrapped = tuple[Module, QueuingWrapper[Module]]


def new(clock: Clock) -> Wrapped:
    """
    Nothing has happened.
    """
    module, wrapper, _ = wrap(clock)
    return module, wrapper


def initializing(clock: Clock) -> Wrapped:
    """
    An attempt is in progress, and will not take for ever.
    """
    module, wrapper, _ = wrap(clock, attemptTimeout=9.0)
    wrapper.initialize().addErrback(lambda _: None)
    return module, wrapper


def retrying(clock: Clock) -> Wrapped:
    """
    An attempt has failed.
    """
    module, wrapper = initializing(clock)
    module.attempts[-1].errback(Trouble())
    return module, wrapper


def lost(clock: Clock) -> Wrapped:
    """
    The module was ready.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    module.watches[-1].callback(None)
    return module, wrapper


def draining(clock: Clock) -> Wrapped:
    """
    The module is ready, but there is more to do than it may do.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    for number in range(2):
        resultOf(proxy.write(number))
    ready(module, wrapper)
    return module, wrapper


def readied(clock: Clock) -> Wrapped:
    """
    The module is ready.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    return module, wrapper


def failed(clock: Clock) -> Wrapped:
    """
    The module has failed by itself.
    """
    module, wrapper, _ = wrap(clock, fatal=Refused)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Refused())
    return module, wrapper


def closing(clock: Clock) -> Wrapped:
    """
    The module is being closed.
    """
    module, wrapper = readied(clock)
    wrapper.close()
    return module, wrapper


def closed(clock: Clock) -> Wrapped:
    """
    The module is closed.
    """
    module, wrapper = closing(clock)
    module.closings[-1].callback(None)
    return module, wrapper


@pytest.mark.parametrize(
    ("state", "arrange"),
    [
        (State.NEW, new),
        (State.INITIALIZING, initializing),
        (State.RETRYING, retrying),
        (State.LOST, lost),
    ],
)
def test_everyone_hears_why_it_was_given_up(
    clock: Clock, state: State, arrange: Callable[[Clock], Wrapped]
) -> None:
    """
    A module whose initialisation somebody else gives up has failed for good:
    who waits and who comes later hears the reason, nothing runs, and no timer
    is left.
    """
    module, wrapper = arrange(clock)
    assert wrapper.state is state
    attempts = len(module.attempts)
    call = resultOf(wrapper.proxy.write("held"))
    waiting = resultOf(wrapper.whenInitialized())
    reason = Refused("what it needs is not there")
    with capturedLogs() as logged:
        wrapper.fail(reason)
    assert clock.getDelayedCalls() == []
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, reason)
    assert (wrapper.retryAfter(), wrapper.oldest) == (None, None)
    late = resultOf(wrapper.proxy.write("late")), resultOf(wrapper.whenInitialized())
    for result in (call, waiting, *late):
        assert isinstance(result.error, InitializationFailed)
        assert result.error.__cause__ is reason
    assert all(attempt.called for attempt in module.attempts)
    clock.advance(60)
    assert (len(module.attempts), module.calls) == (attempts, [])
    (event,) = logged
    assert event["log_format"].format(**event) == (
        "Module failed to initialize, and will not be tried again: "
        "Refused: what it needs is not there"
    )


@pytest.mark.parametrize(
    ("state", "arrange"),
    [
        (State.DRAINING, draining),
        (State.READY, readied),
        (State.FAILED, failed),
        (State.CLOSING, closing),
        (State.CLOSED, closed),
    ],
)
def test_what_is_not_being_initialized_cannot_fail(
    clock: Clock, state: State, arrange: Callable[[Clock], Wrapped]
) -> None:
    """
    Who gives up what has ended already is told so, and does no harm: above
    all, a module that is ready stays so.
    """
    module, wrapper = arrange(clock)
    told: list[State] = []
    wrapper.addObserver(lambda: told.append(wrapper.state))
    before = (wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats)
    clock.advance(1)
    with pytest.raises(IllegalTransition, match="FAIL_FOR_GOOD"):
        wrapper.fail(Trouble())
    assert (wrapper.state, wrapper.since, wrapper.lastError, wrapper.stats) == before
    assert (wrapper.state, told) == (state, [])
    wrapper.close()
    if module.closings and not module.closings[-1].called:
        module.closings[-1].callback(None)


@pytest.mark.parametrize("arrange", [new, initializing, retrying, lost])
def test_initialized_again_after_it_was_given_up(
    clock: Clock, arrange: Callable[[Clock], Wrapped]
) -> None:
    """
    The reason may go away, and then the module is initialised as if nothing
    had been.
    """
    module, wrapper = arrange(clock)
    wrapper.fail(Trouble())
    asked, call = resultOf(wrapper.initialize()), resultOf(wrapper.proxy.write(1))
    assert (wrapper.state, wrapper.attempts) == (State.INITIALIZING, 1)
    assert wrapper.lastError is None
    module.attempts[-1].callback(None)
    module.answers[-1].callback("done")
    assert (asked.value, call.value) == (None, "done")


def test_the_attempt_that_was_given_up_says_nothing_any_more(clock: Clock) -> None:
    """
    An attempt that does not let itself be cancelled, and succeeds in the end,
    does not bring back what was given up.
    """
    late: Deferred[None] = Deferred()
    module = Module()

    def initialize() -> Deferred[None]:
        return module.initialize().addErrback(lambda _: late)

    wrapper = QueuingWrapper(module, clock, initialize=initialize)
    result = resultOf(wrapper.initialize())
    wrapper.fail(Trouble())
    late.callback(None)
    assert wrapper.state is State.FAILED
    assert isinstance(result.error, InitializationFailed)


def test_what_was_to_be_run_again_is_not(clock: Clock) -> None:
    """
    A call that was put back at a loss waits like any other, and ends like any
    other, without a second run.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    ready(module, wrapper)
    result = resultOf(wrapper.proxy.read(1))
    module.watches[-1].callback(None)
    call = resultOf(proxy.write(2))
    reason = Trouble()
    wrapper.fail(reason)
    for each in (result, call):
        assert isinstance(each.error, InitializationFailed)
        assert each.error.__cause__ is reason
    assert module.calls == [("read", 1)]


def test_a_command_of_unknown_outcome_stays_one(clock: Clock) -> None:
    """
    What may have been carried out must not be called one that was not.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write(1))
    ready(module, wrapper)
    module.watches[-1].callback(None)
    wrapper.fail(Trouble())
    assert result.pending
    clock.advance(0)
    assert isinstance(result.error, OutcomeUnknown)


def test_a_module_that_was_never_touched_is_not_closed(clock: Clock) -> None:
    """
    What was given up before its first attempt holds nothing.
    """
    module, wrapper, _ = wrap(clock)
    wrapper.fail(Trouble())
    assert resultOf(wrapper.close()).value is None
    assert (wrapper.state, module.closings) == (State.CLOSED, [])


@pytest.mark.parametrize("arrange", [initializing, retrying, lost])
def test_a_module_that_was_touched_is_closed(
    clock: Clock, arrange: Callable[[Clock], Wrapped]
) -> None:
    """
    Whatever an attempt has opened is closed, also where it was given up.
    """
    module, wrapper = arrange(clock)
    wrapper.fail(Trouble())
    result = resultOf(wrapper.close())
    (ended,) = module.closings
    ended.callback(None)
    assert (wrapper.state, result.value) == (State.CLOSED, None)


def test_given_up_by_the_errback_of_a_waiter(clock: Clock) -> None:
    """
    Who hears of the end, and asks again, waits for the new attempt alone.
    """
    module, wrapper, _ = wrap(clock)
    again: list[Deferred[None]] = []
    wrapper.initialize().addErrback(lambda _: again.append(wrapper.initialize()))
    wrapper.fail(Trouble())
    assert (wrapper.state, len(module.attempts)) == (State.INITIALIZING, 2)
    module.attempts[-1].callback(None)
    assert resultOf(again[0]).value is None


def test_given_up_by_its_own_initialize(clock: Clock) -> None:
    """
    A module may find out in its first line that it is of no use.
    """
    module = Module()
    reason = Trouble("no such host")

    def initialize() -> Deferred[None]:
        wrapper.fail(reason)
        return module.initialize()

    wrapper = QueuingWrapper(module, clock, initialize=initialize)
    result = resultOf(wrapper.initialize())
    assert isinstance(result.error, InitializationFailed)
    assert result.error.__cause__ is reason
    assert (wrapper.state, module.attempts[0].called) == (State.FAILED, True)


def test_given_up_while_the_module_is_asked_for_losses(clock: Clock) -> None:
    """
    An attempt that has succeeded, but is given up before anybody was told, is
    no success.
    """
    reason = Trouble()
    module = Module()

    def whenLost() -> Deferred[None]:
        wrapper.fail(reason)
        return module.whenLost()

    wrapper = QueuingWrapper(module, clock, whenLost=whenLost)
    result = resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert isinstance(result.error, InitializationFailed)
    assert wrapper.state is State.FAILED
    assert [each.kind for each in wrapper.history.attempts] == ["CancelledError"]


def test_given_up_by_the_retry_policy_after_a_failure(clock: Clock) -> None:
    """
    What the policy itself decides is not undone by the number that it answers.
    """
    reason = Trouble("enough")

    def policy(attempts: int) -> float:
        wrapper.fail(reason)
        return 1.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    result = resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble("an attempt"))
    assert isinstance(result.error, InitializationFailed)
    assert result.error.__cause__ is wrapper.lastError is reason
    assert (wrapper.state, clock.getDelayedCalls()) == (State.FAILED, [])


def test_given_up_by_the_retry_policy_after_a_loss(clock: Clock) -> None:
    """
    The same, where it is asked because the module was lost.
    """
    reason = Trouble("enough")

    def policy(attempts: int) -> float:
        wrapper.fail(reason)
        return 1.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    ready(module, wrapper)
    module.watches[-1].callback(None)
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, reason)
    assert clock.getDelayedCalls() == []


def test_begun_anew_by_the_retry_policy_after_a_failure(clock: Clock) -> None:
    """
    The attempt that the policy has begun is the one that counts: the failed
    one does not schedule another beside it.
    """

    def policy(attempts: int) -> float:
        if len(module.attempts) == 1:
            wrapper.fail(Trouble())
            resultOf(wrapper.initialize())
        return 1.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    resultOf(wrapper.initialize())
    module.attempts[0].errback(Trouble("the first"))
    assert (wrapper.state, wrapper.lastError) == (State.INITIALIZING, None)
    assert clock.getDelayedCalls() == []
    module.attempts[1].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.READY, 2)


def test_begun_anew_and_lost_again_by_the_retry_policy(clock: Clock) -> None:
    """
    Of two losses, of which one came while the other was being dealt with, only
    one leads to an attempt.
    """

    def policy(attempts: int) -> float:
        if len(module.watches) == 1:
            wrapper.fail(Trouble())
            resultOf(wrapper.initialize())
            module.attempts[-1].callback(None)
            module.watches[-1].callback(None)
            return 1.0
        return 3.0

    module, wrapper, _ = wrap(clock, retryPolicy=policy)
    ready(module, wrapper)
    module.watches[0].callback(None)
    assert (wrapper.state, wrapper.retryAfter()) == (State.LOST, 3.0)
    clock.advance(3)
    module.attempts[-1].callback(None)
    assert (wrapper.state, len(module.attempts)) == (State.READY, 3)


def wrapCancellable(
    clock: Clock, cancelled: Callable[[], None], **options: object
) -> Wrapped:
    """
    Wrap a module whose first attempt does something when it is cancelled.
    """
    module = Module()

    def initialize() -> Deferred[None]:
        if module.attempts:
            return module.initialize()
        attempt: Deferred[None] = Deferred(lambda _: cancelled())
        module.attempts.append(attempt)
        return attempt

    return module, QueuingWrapper(
        module,
        clock,
        initialize=initialize,
        retryPolicy=lambda _: 1.0,
        **options,  # type: ignore[arg-type]
    )


def test_the_canceller_of_the_attempt_asks_why(clock: Clock) -> None:
    """
    Whoever asks when the module has failed hears the reason, however early he
    asks.
    """
    asked: list[BaseException] = []

    def ask() -> None:
        asked.append(resultOf(wrapper.whenInitialized()).error)

    _, wrapper = wrapCancellable(clock, ask)
    resultOf(wrapper.initialize())
    reason = Trouble("mine")
    wrapper.fail(reason)
    assert asked[0].__cause__ is reason


def test_the_canceller_of_the_attempt_closes(clock: Clock) -> None:
    """
    What is closed is not failed as well.
    """
    closes: list[Deferred[None]] = []
    module, wrapper = wrapCancellable(clock, lambda: closes.append(wrapper.close()))
    result, call = resultOf(wrapper.initialize()), resultOf(wrapper.proxy.write(1))
    wrapper.fail(Trouble())
    assert isinstance(result.error, Closed)
    assert isinstance(call.error, Closed)
    assert isinstance(resultOf(wrapper.proxy.write(2)).error, Closed)
    assert wrapper.state is State.CLOSING
    module.closings[-1].callback(None)


def test_the_canceller_of_the_attempt_begins_anew(clock: Clock) -> None:
    """
    Those who wait then wait for the attempt that has just begun, and no call
    is refused for the sake of the one that has ended.
    """
    again: list[Deferred[None]] = []
    module, wrapper = wrapCancellable(clock, lambda: again.append(wrapper.initialize()))
    result, call = resultOf(wrapper.initialize()), resultOf(wrapper.proxy.write(1))
    wrapper.fail(Trouble())
    assert (wrapper.state, wrapper.lastError) == (State.INITIALIZING, None)
    module.attempts[1].callback(None)
    module.answers[0].callback("done")
    assert (result.value, call.value) == (None, "done")
    assert resultOf(again[0]).value is None


def test_the_canceller_of_the_attempt_begins_anew_in_vain(clock: Clock) -> None:
    """
    An attempt that was begun later, and has failed for good already, is the
    last that there is to say.
    """
    later = Trouble("the second")
    told: list[BaseException | None] = []

    def again() -> None:
        resultOf(wrapper.initialize())
        wrapper.fail(later)

    _, wrapper = wrapCancellable(clock, again)
    wrapper.addObserver(lambda: told.append(wrapper.lastError))
    result = resultOf(wrapper.initialize())
    wrapper.fail(Trouble("the first"))
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, later)
    assert result.error.__cause__ is later
    assert told == [None, None, later]


@pytest.mark.parametrize("fatal", [(), TimeoutError])
def test_an_overdue_attempt_gives_all_up(
    clock: Clock, fatal: type[BaseException] | tuple[()]
) -> None:
    """
    An attempt that hangs, and that gives everything up when it is cancelled,
    is not tried again; and its own lateness is not the reason.
    """
    reason = Trouble("mine")
    _, wrapper = wrapCancellable(
        clock, lambda: wrapper.fail(reason), attemptTimeout=5.0, fatal=fatal
    )
    result = resultOf(wrapper.initialize())
    clock.advance(5)
    assert (wrapper.state, wrapper.lastError) == (State.FAILED, reason)
    assert result.error.__cause__ is reason
    assert clock.getDelayedCalls() == []


def test_an_overdue_attempt_closes(clock: Clock) -> None:
    """
    One that has the wrapper closed is not declared failed afterwards, even if
    lateness is fatal.
    """
    closes: list[Deferred[None]] = []
    module, wrapper = wrapCancellable(
        clock,
        lambda: closes.append(wrapper.close()),
        attemptTimeout=5.0,
        fatal=TimeoutError,
    )
    result = resultOf(wrapper.initialize())
    clock.advance(5)
    assert isinstance(result.error, Closed)
    module.closings[-1].callback(None)
    assert wrapper.state is State.CLOSED


def test_an_overdue_attempt_begins_anew(clock: Clock) -> None:
    """
    What is begun while a late attempt is being cancelled goes on undisturbed:
    there is one attempt, and no timer for another.
    """

    def again() -> None:
        wrapper.fail(Trouble())
        resultOf(wrapper.initialize())

    module, wrapper = wrapCancellable(clock, again, attemptTimeout=5.0)
    resultOf(wrapper.initialize())
    clock.advance(5)
    assert (wrapper.state, wrapper.retryAfter()) == (State.INITIALIZING, None)
    module.attempts[1].callback(None)
    assert wrapper.state is State.READY
    assert [each.kind for each in wrapper.history.attempts] == ["TimeoutError", None]


def test_who_was_not_cancelled_yet_may_give_up(clock: Clock) -> None:
    """
    A caller who leaves in the errback of another has left: he hears of it once.
    """
    _, wrapper, _ = wrap(clock)
    first, second = wrapper.initialize(), wrapper.whenInitialized()
    result = resultOf(second)
    first.addErrback(lambda _: second.cancel())
    wrapper.fail(Trouble())
    assert isinstance(result.error, CancelledError)


def test_the_name_that_was_given_is_the_one_that_is_told(clock: Clock) -> None:
    """
    Of two modules of one type an operator has to know which one it was.
    """
    module, wrapper, proxy = wrap(clock, name="the users", limit=0)
    assert repr(wrapper) == "<QueuingWrapper of the users: new>"
    full = resultOf(proxy.write(1)).error
    assert str(full) == "0 calls are waiting for the users already"
    with capturedLogs() as logged:
        resultOf(wrapper.initialize())
        module.attempts[-1].errback(Trouble())
        wrapper.fail(Trouble())
    assert [event["module"] for event in logged] == ["the users", "the users"]
    late = resultOf(wrapper.whenInitialized()).error
    assert str(late) == "the users failed to initialize, for good"
    with capturedLogs() as logged:
        result = resultOf(wrapper.close())
        module.closings[-1].errback(Trouble())
    assert [event["module"] for event in logged] == ["the users"]
    assert isinstance(result.error, Trouble)
    after = resultOf(wrapper.whenInitialized()).error
    assert str(after) == "the users is closed"


def test_the_name_is_told_to_who_waited_too_long(clock: Clock) -> None:
    """
    And to a caller whose patience has ended.
    """
    _, _, proxy = wrap(clock, name="the users", timeout=2.0)
    result = resultOf(proxy.write(1))
    clock.advance(2)
    assert "waited 2.0 s for the users, which is new" in str(result.error)


def test_the_name_is_told_to_who_wraps_what_cannot_be_wrapped(clock: Clock) -> None:
    """
    An error in a long list of modules has to say which of them it is about.
    """
    with pytest.raises(TypeError, match="the users has no initialize"):
        QueuingWrapper(object(), clock, name="the users")
    with pytest.raises(ValueError, match="the users has no method 'raed'"):
        QueuingWrapper(Module(), clock, name="the users", replay=["raed"])
