"""
What is kept of what a module has been through, and for how long it took.
"""

from __future__ import annotations

import gc
from weakref import ref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tsrv import (
    InitializationFailed,
    QueuingWrapper,
    State,
)
from tsrv.queuing.histogram import (
    SECONDS,
    Histogram,
)
from tsrv.queuing.history import (
    Attempt,
    Episodes,
    History,
    Loss,
    explain,
)

from .support import Module, Refused, Trouble, ready, resultOf, wrap

# Histograms.


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.0, 0),
        (0.5, 0),
        (1.0, 0),
        (1.0000001, 1),
        (2.0, 1),
        (3.0, 2),
        (float("inf"), 2),
    ],
)
def test_a_bound_belongs_to_the_class_below_it(value: float, number: int) -> None:
    """
    Prometheus means "at most" by a bound, and so must whoever counts for it.
    """
    expected = [int(each == number) for each in range(3)]
    one, many = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    one.observe(value)
    many.observeAll([value])
    assert one.counts == many.counts == expected
    assert one.total == many.total == value


def test_nothing_takes_less_than_no_time() -> None:
    """
    A sum that becomes less is a counter that was reset, for who reads it: a
    clock that was set back must not look like that.
    """
    one, many = Histogram((1.0,)), Histogram((1.0,))
    one.observe(-5.0)
    many.observeAll([-5.0, 0.5, -0.0, -1e-9])
    assert (one.counts, one.total) == ([1, 0], 0.0)
    assert (many.counts, many.total) == ([4, 0], 0.5)


def test_the_bounds_that_are_there_by_default() -> None:
    """
    They are in order, and one value of each class ends up in its own.
    """
    histogram = Histogram()
    assert histogram.bounds == SECONDS == tuple(sorted(set(SECONDS)))
    histogram.observeAll([*SECONDS, SECONDS[-1] + 1])
    assert histogram.counts == [1] * (len(SECONDS) + 1)


values = st.one_of(
    st.sampled_from([*SECONDS, 0.0, -0.0]),
    st.floats(-10, 1000),
)


@given(batches=st.lists(st.lists(values)))
@example(batches=[[]])
@example(batches=[[-1.0, -1.0], [0.001]])
def test_to_count_many_is_to_count_each(batches: list[list[float]]) -> None:
    """
    The fast way and the plain one give the same numbers, whatever is counted,
    in whatever order and in however many parts.
    """
    one, many = Histogram(), Histogram()
    for batch in batches:
        many.observeAll(iter(batch))
        for value in batch:
            one.observe(value)
    assert one.counts == many.counts
    assert sum(many.counts) == sum(map(len, batches))
    assert many.total == pytest.approx(one.total)
    expected = [max(value, 0.0) for batch in batches for value in batch]
    for number, bound in enumerate(SECONDS, 1):
        assert sum(many.counts[:number]) == sum(each <= bound for each in expected)


def test_the_values_that_are_counted_are_left_alone() -> None:
    """
    Who hands over a list may go on using it.
    """
    given = [3.0, -1.0, 2.0]
    Histogram().observeAll(given)
    assert given == [3.0, -1.0, 2.0]


# Episodes.


def test_the_first_and_the_last_episodes_are_kept() -> None:
    """
    A module that is lost every second for a year must not fill the memory; yet
    one wants to know how it began, and how it is now.
    """
    episodes: Episodes[int] = Episodes()
    for number in range(25):
        assert list(episodes) == list(range(number))
        episodes.add(number)
    assert list(episodes) == list(range(25))
    for number in range(25, 1000):
        episodes.add(number)
    assert list(episodes) == [*range(5), *range(980, 1000)]
    assert episodes.count == 1000


def test_attempts_are_bounded(clock: Clock) -> None:
    """
    The same for a module that never comes up: all are counted, some are kept.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    for number in range(100):
        module.attempts[-1].errback(Trouble(number))
        clock.advance(1)
    history = wrapper.history
    kept = [each.error for each in history.attempts]
    assert kept == [
        *(f"Trouble: {number}" for number in range(5)),
        *(f"Trouble: {number}" for number in range(81, 100)),
        None,
    ]
    assert history.attempts.count == 101
    assert sum(history.attemptSeconds.counts) == 100
    module.attempts[-1].callback(None)
    assert sum(history.attemptSeconds.counts) == 101


def test_losses_are_bounded(clock: Clock) -> None:
    """
    And for one that comes up again and again.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    for number in range(100):
        module.watches[-1].errback(Trouble(number))
        clock.advance(1)
        module.attempts[-1].callback(None)
    history = wrapper.history
    assert [each.error for each in history.losses] == [
        f"Trouble: {number}" for number in (*range(5), *range(80, 100))
    ]
    assert (history.losses.count, history.attempts.count) == (100, 101)


# The history of a module.


def test_what_a_module_has_been_through(clock: Clock) -> None:
    """
    Afterwards one can tell when each attempt was made, how long it took, why
    it failed, and for how long the module was away.
    """
    clock.advance(100)
    module, wrapper, _ = wrap(clock)
    history = wrapper.history
    assert (list(history.attempts), list(history.losses)) == ([], [])
    assert history.becameReady is None
    resultOf(wrapper.initialize())
    assert list(history.attempts) == [Attempt(100.0)]
    clock.advance(3)
    module.attempts[-1].errback(Trouble("refused"))
    clock.advance(1)
    assert history.becameReady is None
    clock.advance(2)
    module.attempts[-1].callback(None)
    assert list(history.attempts) == [
        Attempt(100.0, 103.0, "Trouble", "Trouble: refused"),
        Attempt(104.0, 106.0),
    ]
    assert history.becameReady == 106.0
    clock.advance(4)
    module.watches[-1].errback(Trouble("reset"))
    assert list(history.losses) == [Loss(110.0, None, "Trouble", "Trouble: reset")]
    clock.advance(1)
    module.attempts[-1].errback(Trouble("refused"))
    assert [each.recovered for each in history.losses] == [None]
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.watches[-1].callback(None)
    assert list(history.losses) == [
        Loss(110.0, 112.0, "Trouble", "Trouble: reset"),
        Loss(112.0),
    ]
    assert history.becameReady == 106.0
    wrapper.close()
    module.closings[-1].callback(None)
    assert (history.attempts.count, history.losses.count) == (4, 2)
    assert sum(history.attemptSeconds.counts) == 4
    assert history.attemptSeconds.total == 5.0


@pytest.mark.parametrize("how", ["close", "fail", "overdue"])
def test_an_attempt_that_was_given_up_has_taken_its_time(
    clock: Clock, how: str
) -> None:
    """
    What hangs, and is given up, is what takes longest: it must not be missing
    where durations are counted.
    """
    module, wrapper, _ = wrap(clock, attemptTimeout=4.0, closeTimeout=None)
    resultOf(wrapper.initialize())
    if how == "overdue":
        clock.advance(4)
    else:
        clock.advance(2)
        if how == "close":
            wrapper.close()
        else:
            wrapper.fail(Trouble())
    (attempt,) = wrapper.history.attempts
    assert (attempt.begun, attempt.ended) == (0.0, clock.seconds())
    assert wrapper.history.attemptSeconds.total == clock.seconds()
    assert sum(wrapper.history.attemptSeconds.counts) == 1
    assert (attempt.kind, attempt.error) == (
        ("TimeoutError", "TimeoutError: no answer within 4 seconds")
        if how == "overdue"
        else ("CancelledError", "CancelledError: given up")
    )
    wrapper.close()
    module.closings[-1].callback(None)
    assert sum(wrapper.history.attemptSeconds.counts) == 1


def test_what_is_given_up_between_attempts_is_no_attempt(clock: Clock) -> None:
    """
    To give up a retry that has not begun adds nothing.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Trouble())
    wrapper.fail(Refused())
    assert wrapper.history.attempts.count == 1
    assert [each.kind for each in wrapper.history.attempts] == ["Trouble"]
    assert sum(wrapper.history.attemptSeconds.counts) == 1


def test_a_module_that_cannot_be_watched_has_failed_its_attempt(clock: Clock) -> None:
    """
    Its attempt is told as a failed one, and once.
    """
    module = Module()
    wrapper = QueuingWrapper(
        module, clock, whenLost=lambda: None, fatal=TypeError, name="it"
    )
    result = resultOf(wrapper.initialize())
    module.attempts[-1].callback(None)
    assert isinstance(result.error, InitializationFailed)
    assert [each.kind for each in wrapper.history.attempts] == ["TypeError"]
    assert wrapper.history.becameReady is None


def test_an_end_without_a_beginning_is_none(clock: Clock) -> None:
    """
    Nothing is counted twice, whoever reports it once more.
    """
    history = History(clock)
    history.attemptEnded(Trouble())
    history.attemptBegan()
    history.attemptEnded()
    history.attemptEnded(Trouble())
    assert list(history.attempts) == [Attempt(0.0, 0.0)]
    assert sum(history.attemptSeconds.counts) == 1


def test_no_error_is_kept_alive(clock: Clock) -> None:
    """
    An error keeps its frames, and these keep whatever was in them: connections,
    passwords. A history for the life of the program is no place for it.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    gone = [fail(module.attempts[-1])]
    clock.advance(1)
    module.attempts[-1].callback(None)
    gone.append(fail(module.watches[-1]))
    clock.advance(1)
    module.attempts[-1].callback(None)
    module.attempts.clear()
    module.watches.pop(0)
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert [each.kind for each in wrapper.history.losses] == ["Trouble"]


def fail(deferred: Deferred[None]) -> ref[Trouble]:
    """
    Fail a Deferred.

    @return: A reference to the error.
    """
    error = Trouble()
    deferred.errback(error)
    return ref(error)


# Errors as text.


def test_an_error_is_one_line() -> None:
    """
    A database explains itself in several lines; a log, and a table of modules,
    has one for it.
    """
    assert explain(Trouble("no such host\n\tHINT: look\r\nthere ")) == (
        "Trouble: no such host HINT: look there"
    )
    assert explain(Trouble()) == "Trouble: "
    assert explain(None) == "no reason given"


def test_an_error_has_a_limited_length() -> None:
    """
    An error that quotes a whole document is not kept with all of it.
    """
    text = explain(Trouble("x" * 1_000_000))
    assert text.startswith("Trouble: xxx")
    assert text.endswith("x…")
    assert len(text) < 1100
    assert explain(Trouble("x" * 1000)) == "Trouble: " + "x" * 1000


def test_an_error_can_be_written_down() -> None:
    """
    The name of a file that is no text is part of an error, and the error part
    of what is sent as JSON and HTML.
    """
    name = b"/tmp/\xff".decode("utf-8", "surrogateescape")
    text = explain(FileNotFoundError(2, "No such file", name))
    assert "No such file" in text
    assert text.encode().decode() == text


def test_an_error_that_cannot_be_told_is_told_all_the_same(clock: Clock) -> None:
    """
    A module whose error raises when it is printed is initialised again like
    any other, and the line is one line.
    """

    class Mute(Trouble):
        def __str__(self) -> str:
            raise Trouble("not even that")

    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    module.attempts[-1].errback(Mute())
    assert wrapper.state is State.RETRYING
    (attempt,) = wrapper.history.attempts
    assert attempt.kind == "Mute"
    assert attempt.error is not None
    assert attempt.error.startswith("Mute: ")
    assert len(attempt.error.splitlines()) == 1
    wrapper.close()
    module.closings[-1].callback(None)


# How long commands waited.


def observed(wrapper: QueuingWrapper[Module]) -> tuple[int, float]:
    """
    @return: How many commands are known to have left the queue, and how long
        they had been there altogether.
    """
    histogram = wrapper.history.queueSeconds
    return sum(histogram.counts), histogram.total


def test_a_command_that_was_started(clock: Clock) -> None:
    """
    The usual end of waiting.
    """
    module, wrapper, proxy = wrap(clock)
    for number in range(3):
        resultOf(proxy.write(number))
        clock.advance(1)
    assert observed(wrapper) == (0, 0.0)
    ready(module, wrapper)
    assert observed(wrapper) == (3, 6.0)


@pytest.mark.parametrize("how", ["expired", "cancelled", "failed", "closed"])
def test_a_command_that_was_not_started(clock: Clock, how: str) -> None:
    """
    Those who waited longest are often those who never got anything: without
    them the queue would look short.
    """
    module, wrapper, proxy = wrap(clock, timeout=5.0)
    call = proxy.write(1)
    result = resultOf(call)
    if how == "expired":
        clock.advance(5)
    else:
        clock.advance(2)
        if how == "cancelled":
            call.cancel()
        elif how == "failed":
            wrapper.fail(Trouble())
        else:
            wrapper.close()
    assert not result.pending
    assert observed(wrapper) == (1, clock.seconds())
    wrapper.close()
    assert (module.calls, observed(wrapper)[0]) == ([], 1)


def test_a_call_that_never_waited_is_not_counted(clock: Clock) -> None:
    """
    Neither one that was let through nor one that was refused has been in the
    queue.
    """
    module, wrapper, proxy = wrap(clock, limit=0, replay=["read"])
    resultOf(proxy.write(1))
    ready(module, wrapper)
    resultOf(proxy.write(2))
    resultOf(proxy.read(3))
    assert (wrapper.stats.rejected, observed(wrapper)) == (1, (0, 0.0))


def test_a_command_that_waits_twice_is_counted_twice(clock: Clock) -> None:
    """
    One that was put back at a loss waits anew, from then on; both times count.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(proxy.read(1))
    clock.advance(2)
    ready(module, wrapper)
    assert (wrapper.stats.started, observed(wrapper)) == (1, (1, 2.0))
    clock.advance(10)
    module.watches[-1].callback(None)
    assert (wrapper.stats.started, observed(wrapper)) == (0, (1, 2.0))
    clock.advance(1)
    module.attempts[-1].callback(None)
    assert (wrapper.stats.started, observed(wrapper)) == (1, (2, 3.0))
    module.answers[-1].callback("done")
    assert result.value == "done"


def test_a_long_queue_is_counted_slice_by_slice(clock: Clock) -> None:
    """
    While a long queue is being drained the numbers grow with it.
    """
    module, wrapper, proxy = wrap(clock)
    counts: list[int] = []

    def work(_: object) -> None:
        counts.append(observed(wrapper)[0])
        clock.rightNow += 0.002

    for number in range(9):
        call = proxy.count(number)
        assert isinstance(call, Deferred)
        call.addCallback(work)
    ready(module, wrapper)
    assert observed(wrapper)[0] == wrapper.stats.started == 3
    clock.advance(0)
    assert counts == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert observed(wrapper)[0] == wrapper.stats.started == 9
