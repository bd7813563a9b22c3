"""
What goes wrong in widely used systems like this one, each with a test named
after what it prevents, and the place where it was seen.
"""

from __future__ import annotations

from contextvars import ContextVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tsrv import (
    AsyncModule,
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
    jitteredBackoff,
)

from .support import Refused, Trouble, ready, resultOf, wrap


def test_no_call_overtakes_the_queue_while_it_drains(clock: Clock) -> None:
    """
    Seen in Mongoose, which clears its flag first and drains on the next tick,
    and in the source's own code.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    proxy.write(1)
    proxy.write(2)
    ready(module, wrapper)
    assert wrapper.state is State.DRAINING
    proxy.write(3)
    for number in range(2):
        module.answers[number].callback(None)
        clock.advance(0)
    assert [what for _, what in module.calls] == [1, 2, 3]


def test_no_command_runs_after_its_caller_gave_up(clock: Clock) -> None:
    """
    Seen in ioredis: after C{commandTimeout} the write reaches the server all
    the same.
    """
    module, wrapper, proxy = wrap(clock, timeout=1.0)
    expired = resultOf(proxy.write("expired"))
    clock.advance(1)
    cancelled = proxy.write("cancelled")
    cancelled.addErrback(lambda _: None)
    cancelled.cancel()
    ready(module, wrapper)
    assert isinstance(expired.error, QueueTimeout)
    assert module.calls == []


def test_the_true_cause_is_not_lost(clock: Clock) -> None:
    """
    The most frequent complaint about Mongoose: only "timed out", minutes after
    the password was refused.
    """
    module, wrapper, proxy = wrap(clock, timeout=5.0, fatal=[Refused])
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble("connection refused"))
    timedOut = resultOf(proxy.write(1))
    clock.advance(5)
    assert str(timedOut.error.__cause__) == "connection refused"
    fatal = resultOf(proxy.write(2))
    module.attempts[-1].errback(Refused("password refused"))
    assert isinstance(fatal.error, InitializationFailed)
    assert str(fatal.error.__cause__) == "password refused"


def test_no_waiter_is_left_pending_after_close(clock: Clock) -> None:
    """
    Seen in aio-pika and txredisapi; in Mongoose for ten seconds.
    """
    module, wrapper, proxy = wrap(clock, concurrency=1)
    running, queued = resultOf(proxy.write(1)), resultOf(proxy.write(2))
    ready(module, wrapper)
    closed = resultOf(wrapper.close())
    module.closings[0].callback(None)
    assert isinstance(queued.error, Closed)
    assert isinstance(running.error, OutcomeUnknown)
    assert closed.value is None


def test_no_queue_is_unbounded(clock: Clock) -> None:
    """
    Seen in ioredis, aio-pika, Mongoose, and the waiters of ClientService.
    """
    _, wrapper, proxy = wrap(clock)
    calls = [resultOf(proxy.write(number)) for number in range(10_001)]
    assert isinstance(calls[-1].error, QueueFull)
    waiters = [resultOf(wrapper.whenInitialized()) for _ in range(10_001)]
    assert isinstance(waiters[-1].error, QueueFull)
    assert (wrapper.pending, wrapper.stats.rejected) == (10_000, 1)
    wrapper.close()
    clock.pump([0] * 1000)


def test_no_cancelled_waiter_stays_in_the_list(clock: Clock) -> None:
    """
    Seen in ClientService and txredisapi. Here each of them would take up one
    of the places.
    """
    _, wrapper, proxy = wrap(clock, limit=10_000)
    for _ in range(10_001):
        for waiter in (proxy.write(1), wrapper.whenInitialized()):
            result = resultOf(waiter)
            assert result.pending
            waiter.cancel()
    assert wrapper.pending == 0


def test_no_callback_is_kept_from_calling_back(clock: Clock) -> None:
    """
    Seen in ClientService: Automat does not allow what is called back to call.
    """
    module, wrapper, proxy = wrap(clock)

    def useEverything(result: object) -> object:
        for deferred in (
            proxy.write("again"),
            wrapper.initialize(),
            wrapper.whenInitialized(),
        ):
            resultOf(deferred)
        assert wrapper.stats.started
        return wrapper.close()

    call = proxy.write(1)
    call.addCallback(useEverything)
    result = resultOf(call)
    ready(module, wrapper)
    module.answers[0].callback(None)
    module.closings[0].callback(None)
    assert result.value is None


def test_the_queue_is_not_flushed_at_once(clock: Clock) -> None:
    """
    Seen in Mongoose, ioredis and txredisapi: the reactor stalls, and the
    backend falls over.
    """
    module, wrapper, proxy = wrap(clock, concurrency=10)
    seen = []

    class Slow:
        def __init__(self) -> None:
            self.calls = 0

        def initialize(self) -> None:
            pass

        def work(self) -> None:
            self.calls += 1
            clock.rightNow += 0.001

    slow = Slow()
    sliced = QueuingWrapper(slow, clock)
    for number in range(100):
        resultOf(proxy.write(number))
        sliced.proxy.work()
    clock.callLater(0, lambda: seen.append(slow.calls))
    ready(module, wrapper)
    sliced.initialize()
    clock.pump([0] * 40)
    assert len(module.calls) == 10
    assert seen[0] <= 6
    assert slow.calls == 100
    wrapper.close()
    module.closings[0].callback(None)


def test_no_command_in_progress_is_silently_sent_again(clock: Clock) -> None:
    """
    The default of ioredis.
    """
    module, wrapper, proxy = wrap(clock)
    result = resultOf(proxy.write("100 to Alice"))
    ready(module, wrapper)
    module.watches[0].callback(None)
    clock.pump([0, 1])
    module.attempts[-1].callback(None)
    assert isinstance(result.error, OutcomeUnknown)
    assert module.calls == [("write", "100 to Alice")]


def test_late_success_of_one_attempt_is_not_that_of_the_next(clock: Clock) -> None:
    """
    Seen in ioredis.
    """
    late: Deferred[None] = Deferred()
    attempts: list[Deferred[None]] = []

    class Slow:
        def initialize(self) -> Deferred[None]:
            attempt: Deferred[None] = Deferred()
            if not attempts:
                attempt.addErrback(lambda _: late)
            attempts.append(attempt)
            return attempt

    wrapper = QueuingWrapper(
        Slow(), clock, attemptTimeout=1.0, retryPolicy=lambda attempts: 1.0
    )
    resultOf(wrapper.initialize())
    clock.pump([1, 1])
    late.callback(None)
    assert (len(attempts), wrapper.state) == (2, State.INITIALIZING)
    attempts[1].callback(None)


def test_not_all_clients_retry_together() -> None:
    """
    Jitter of a second, added to a delay of a minute, spreads nothing.
    """
    chances = iter(number / 100 for number in range(100))
    policy = jitteredBackoff(random=lambda: next(chances))
    delays = [policy(20) for _ in range(100)]
    assert len(set(delays)) == 100
    assert max(delays) - min(delays) > 14


def test_first_caller_s_cancellation_does_not_cancel_for_all(clock: Clock) -> None:
    """
    Seen wherever one Deferred is given to several.
    """
    wrapper = QueuingWrapper(AsyncModule(clock, 10), clock)
    first, second = wrapper.initialize(), wrapper.initialize()
    resultOf(first)
    result = resultOf(second)
    first.cancel()
    clock.advance(10)
    assert (result.value, wrapper.state) == (None, State.READY)


def test_the_context_is_not_lost_between_queuing_and_running(clock: Clock) -> None:
    """
    Seen in any queue that knows nothing of contextvars.
    """
    trace: ContextVar[str] = ContextVar("trace")
    seen = []

    class Traced:
        def initialize(self) -> None:
            pass

        def work(self) -> None:
            seen.append(trace.get())

    wrapper = QueuingWrapper(Traced(), clock)
    for name in ("first", "second"):
        token = trace.set(name)
        wrapper.proxy.work()
        trace.reset(token)
    wrapper.initialize()
    assert seen == ["first", "second"]
