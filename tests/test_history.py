"""
The history of a module: attempts, losses, and the time of calls in the queue.
"""

from __future__ import annotations

import gc
from weakref import ref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tsrv import QueuingWrapper, State
from tsrv.errors import Unavailable
from tsrv.queuing.histogram import SECONDS, Histogram
from tsrv.queuing.history import Attempt, Episodes, Loss, explain

from .support import (
    Module,
    Trouble,
    inState,
    lose,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)

# Histograms.


values = st.one_of(st.sampled_from([*SECONDS, 0.0, -0.0]), st.floats(-10, 1000))


@given(batches=st.lists(st.lists(values)))
@example(batches=[[]])
@example(batches=[[-1.0, -1.0], [0.001]])
def test_counting_many_is_counting_each(batches: list[list[float]]) -> None:
    """
    observeAll() counts like observe(), does not change its argument, and counts
    negative values as zero.
    """
    one, many = Histogram(), Histogram()
    for batch in batches:
        before = list(batch)
        many.observeAll(batch)
        assert batch == before
        for value in batch:
            one.observe(value)
    expected = [max(value, 0.0) for batch in batches for value in batch]
    assert one.counts == many.counts
    assert sum(many.counts) == len(expected)
    assert many.total == pytest.approx(one.total)
    assert many.total == pytest.approx(sum(expected))
    for number, bound in enumerate(SECONDS, 1):
        assert sum(many.counts[:number]) == sum(each <= bound for each in expected)


# Attempts and losses.


def test_the_first_and_the_last_episodes_are_kept() -> None:
    """
    Of many episodes, the first 5 and the last 20 are kept; all are counted.
    """
    episodes: Episodes[int] = Episodes()
    for number in range(25):
        assert list(episodes) == list(range(number))
        episodes.add(number)
    for number in range(25, 1000):
        episodes.add(number)
    assert list(episodes) == [*range(5), *range(980, 1000)]
    assert episodes.count == 1000


def test_the_history_of_a_module(clock: Clock) -> None:
    """
    The history has the time, the duration and the error of each attempt and each loss.
    """
    clock.advance(100)
    module, wrapper, _ = wrap(clock)
    history = wrapper.history
    assert (list(history.attempts), list(history.losses)) == ([], [])
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
    lose(module, Trouble("reset"))
    assert list(history.losses) == [Loss(110.0, None, "Trouble", "Trouble: reset")]
    clock.advance(1)
    module.attempts[-1].errback(Trouble("refused"))
    assert [each.recovered for each in history.losses] == [None]
    recover(clock, module)
    lose(module)
    assert list(history.losses) == [
        Loss(110.0, 112.0, "Trouble", "Trouble: reset"),
        Loss(112.0),
    ]
    assert history.becameReady == 106.0
    shut(wrapper)
    assert (history.attempts.count, history.losses.count) == (4, 2)
    assert sum(history.attemptSeconds.counts) == 4
    assert history.attemptSeconds.total == 5.0


@pytest.mark.parametrize("how", ["close", "fail", "overdue"])
def test_an_attempt_that_is_given_up_counts(clock: Clock, how: str) -> None:
    """
    The duration of an attempt that was given up is recorded once.
    """
    _, wrapper, _ = inState(clock, State.INITIALIZING, attemptTimeout=4.0)
    clock.advance(4 if how == "overdue" else 2)
    if how == "close":
        wrapper.close()
    elif how == "fail":
        wrapper.fail(Trouble())
    (attempt,) = wrapper.history.attempts
    assert (attempt.begun, attempt.ended) == (0.0, clock.seconds())
    errors = {
        "close": ("CancelledError", "CancelledError"),
        "fail": ("Trouble", "Trouble"),
        "overdue": (
            "TimeoutError",
            "TimeoutError: initialize() did not end within 4 s",
        ),
    }
    assert (attempt.kind, attempt.error) == errors[how]
    shut(wrapper)
    assert sum(wrapper.history.attemptSeconds.counts) == 1
    assert wrapper.history.attemptSeconds.total == attempt.ended


def test_no_error_is_kept_alive(clock: Clock) -> None:
    """
    The history keeps the text of an error, but neither the error nor its frames.
    """

    def fail(deferred: Deferred[None]) -> ref[Trouble]:
        error = Trouble()
        deferred.errback(error)
        return ref(error)

    module, wrapper, _ = inState(clock, State.INITIALIZING)
    gone = [fail(module.attempts[-1])]
    recover(clock, module)
    gone.append(fail(module.watches[-1]))
    recover(clock, module)
    module.attempts.clear()
    module.watches.pop(0)
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert [each.kind for each in wrapper.history.losses] == ["Trouble"]


# Errors as text.


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "no reason given"),
        (Trouble(), "Trouble"),
        (Unavailable(""), "Unavailable"),
        (Unavailable("connection refused"), "connection refused"),
        (Trouble("no such host\n\tHINT: look\r\nthere "), "Trouble: no such host HINT"),
        (Trouble("x" * 1000), "Trouble: " + "x" * 1000),
        (Trouble("x" * 1001), "Trouble: " + "x" * 999 + "…"),
        (
            FileNotFoundError(2, "No such file", "\udcff"),
            "FileNotFoundError: [Errno 2]",
        ),
    ],
)
def test_an_error_is_one_line(error: BaseException | None, text: str) -> None:
    """
    The text of an error is one line of bounded length that can be encoded.
    """
    line = explain(error)
    assert line.startswith(text)
    assert len(line.encode().splitlines()) == 1
    assert len(line) <= len("Trouble: ") + 1000


# The time of calls in the queue.


def observed(wrapper: QueuingWrapper[Module]) -> tuple[int, float]:
    """
    @return: The number of calls that left the queue, and the sum of the seconds that
        they were queued.
    """
    histogram = wrapper.history.queueSeconds
    return sum(histogram.counts), histogram.total


def test_a_call_that_waits_twice_is_observed_twice(clock: Clock) -> None:
    """
    A call that is queued again at a loss has a new time in the queue.
    """
    module, wrapper, proxy = wrap(clock, replay=["read"])
    result = resultOf(proxy.read(1))
    clock.advance(2)
    ready(module, wrapper)
    assert (wrapper.stats.started, observed(wrapper)) == (1, (1, 2.0))
    clock.advance(10)
    lose(module)
    assert (wrapper.stats.started, observed(wrapper)) == (0, (1, 2.0))
    recover(clock, module)
    assert (wrapper.stats.started, observed(wrapper)) == (1, (2, 3.0))
    module.answers[-1].callback("done")
    assert result.value == "done"
