"""
The log of a module: one line for each event, with the numbers that operators need, and
few lines for an outage that lasts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, eventAsJSON

from tsrv import QueuingWrapper, State
from tsrv.queuing.retry import jitteredBackoff
from tsrv.server.systemd import SystemdService
from tsrv.web.metrics import Metrics
from tsrv.web.status import Status
from tsrv.web.traffic import Traffic

from .operated import Program
from .operated import program as program
from .support import (
    Empty,
    Module,
    Refused,
    Trouble,
    lose,
    messageOf,
    ready,
    recover,
    resultOf,
    shut,
    wrap,
)
from .websupport import ask, logged, textsOf

DAY = 24 * 3600.0

Started = tuple[Module, QueuingWrapper[Module]]


@pytest.fixture
def started(clock: Clock) -> Iterator[Started]:
    """
    A module that has been ready for a while.
    """
    policy = jitteredBackoff(jitter=0)
    module, wrapper, _ = wrap(clock, name="database", retryPolicy=policy)
    ready(module, wrapper)
    clock.advance(1000)
    yield module, wrapper
    resultOf(wrapper.close())
    module.closings[-1].callback(None)


def fail(module: Module, clock: Clock, message: str = "refused") -> None:
    """
    Let an attempt fail, and begin the next one.
    """
    module.attempts[-1].errback(Trouble(message))
    (retry,) = clock.getDelayedCalls()
    clock.advance(retry.getTime() - clock.seconds())


def test_a_day_without_the_module(started: Started, clock: Clock) -> None:
    """
    Thousands of failed attempts have a few lines, at growing intervals of at most an
    hour. If some attempts had no line, the next line has their number and their
    duration.
    """
    module, _ = started
    begun = clock.seconds()
    times = []
    with logged() as events:
        lose(module, Trouble("cut off"))
        clock.advance(0.25)
        while clock.seconds() < begun + DAY:
            before = len(events)
            fail(module, clock)
            times += [clock.seconds() - begun] * (len(events) - before)
        recover(clock, module)
    lines = textsOf(events)
    assert len(module.attempts) > DAY / 31
    assert 20 < len(lines) < 45
    assert max(after - before for before, after in pairwise(times)) < 3700
    assert lines[:3] == [
        "database: lost (Trouble: cut off); retry in 0.2 s",
        "database: attempt 2 failed (Trouble: refused); retry in 0.5 s",
        "database: attempt 3 failed (Trouble: refused); retry in 1.0 s",
    ]
    found = re.fullmatch(
        r"database: attempt (\d+) failed \(Trouble: refused\), (\d+) failures in "
        r"(\d+) s; retry in 30.0 s",
        lines[-2],
    )
    assert found is not None
    number, times_, seconds = map(int, found.groups())
    assert number == times_ + 1 > 2500
    assert DAY - 3700 < seconds < DAY
    assert re.fullmatch(
        r"database: recovered after 864\d\d\.\d s, 28\d\d attempts, 0 calls queued",
        lines[-1],
    )


def test_a_loss_soon_after_the_start(clock: Clock) -> None:
    """
    After a start without failures, the first failures of a later outage are all logged.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=jitteredBackoff(jitter=0))
    ready(module, wrapper)
    clock.advance(10)
    with logged() as events:
        lose(module)
        clock.advance(0.25)
        for _ in range(6):
            fail(module, clock)
    assert len(events) == 6
    shut(wrapper)


def test_failures_for_the_reason_of_the_loss(started: Started, clock: Clock) -> None:
    """
    Attempts that fail for the same reason as the loss are not logged for five seconds.
    """
    module, _ = started
    with logged() as events:
        lose(module, Trouble("moved away"))
        clock.advance(0.25)
        for _ in range(4):
            fail(module, clock, "moved away")
        fail(module, clock, "moved away")
    assert textsOf(events) == [
        "database: lost (Trouble: moved away); retry in 0.2 s",
        "database: attempt 6 failed (Trouble: moved away), 5 failures in 8 s; "
        "retry in 8.0 s",
    ]


def test_a_loss_after_a_start_with_trouble(clock: Clock) -> None:
    """
    The line about readiness has the number of all attempts. A later line counts only
    later attempts.
    """
    module, wrapper, _ = wrap(clock)
    resultOf(wrapper.initialize())
    with logged() as events:
        for _ in range(10):
            fail(module, clock)
        module.attempts[-1].callback(None)
        lose(module, Trouble("cut off"))
    assert textsOf(events)[-3:] == [
        "Module: attempt 8 failed (Trouble: refused), 8 failures in 7 s; "
        "retry in 1.0 s",
        "Module: ready after 10.0 s, 11 attempts, 0 calls queued",
        "Module: lost (Trouble: cut off); retry in 1.0 s",
    ]
    shut(wrapper)


def test_a_failed_module_that_is_initialised_again(clock: Clock) -> None:
    """
    A module that has failed for good, and is initialised again, has all its lines
    again.
    """
    module, wrapper, _ = wrap(clock, fatal=Refused)
    resultOf(wrapper.initialize())
    for _ in range(10):
        fail(module, clock)
    module.attempts[-1].errback(Refused())
    resultOf(wrapper.initialize())
    with logged() as events:
        for _ in range(3):
            fail(module, clock)
        recover(clock, module)
    assert textsOf(events) == [
        "Module: attempt 12 failed (Trouble: refused); retry in 1.0 s",
        "Module: attempt 13 failed (Trouble: refused); retry in 1.0 s",
        "Module: attempt 14 failed (Trouble: refused); retry in 1.0 s",
        "Module: ready after 4.0 s, 4 attempts, 0 calls queued",
    ]
    shut(wrapper)


def test_a_new_reason_is_logged_at_once(started: Started, clock: Clock) -> None:
    """
    A reason that is new in this outage is logged at once, for at most ten reasons.
    """
    module, _ = started
    lose(module)
    clock.advance(0.25)
    for _ in range(100):
        fail(module, clock)
    with logged() as events:
        fail(module, clock, "wrong password")
        fail(module, clock, "wrong password")
        fail(module, clock)
    (line,) = textsOf(events)
    assert "attempt 102 failed (Trouble: wrong password), 101 failures in " in line
    with logged() as events:
        fail(module, clock, "no route")
        fail(module, clock, "no room")
    assert [" failures in " in line for line in textsOf(events)] == [True, False]
    with logged() as events:
        for number in range(100):
            fail(module, clock, f"from port {number}")
    assert len(events) < 12


def test_a_module_that_is_lost_again_and_again(started: Started, clock: Clock) -> None:
    """
    A module that is lost within a minute of each recovery has few lines, and the last
    one is correct. After a minute in READY each loss is logged again.
    """
    module, _ = started
    with logged() as events:
        for _ in range(200):
            lose(module)
            recover(clock, module)
            clock.advance(10)
    lines = textsOf(events)
    assert 8 < len(lines) < 40
    assert "recovered" in lines[-1]
    assert re.search(r"lost \(no reason given\), \d+ losses in \d+ s; retry", lines[-2])
    clock.advance(60)
    for _ in range(2):
        with logged() as events:
            lose(module)
            recover(clock, module)
        clock.advance(60)
        assert textsOf(events) == [
            "database: lost (no reason given); retry in 0.2 s",
            "database: recovered after 1.0 s, 1 attempt, 0 calls queued",
        ]


def test_an_outage_after_many_losses(started: Started, clock: Clock) -> None:
    """
    A module that is lost again, but not ready again soon, has a line with the number of
    all failed attempts, even if its loss and their reason are not news.
    """
    module, _ = started
    lose(module)
    for _ in range(4):
        clock.advance(30)
        module.attempts[-1].errback(Trouble("refused"))
    for _ in range(200):
        clock.advance(30)
        module.attempts[-1].callback(None)
        clock.advance(5)
        lose(module)
    with logged() as events:
        for _ in range(4):
            clock.advance(30)
            module.attempts[-1].errback(Trouble("refused"))
    (line,) = textsOf(events)
    assert re.search(r"attempt 207 failed \(Trouble: refused\), 6 failures in ", line)


def test_events_have_fields(clock: Clock) -> None:
    """
    Each number is also a field of its event, so that programs need not parse the text.
    """
    module, wrapper, proxy = wrap(clock, name="database")
    ready(module, wrapper)
    with logged() as events:
        lose(module, Trouble("cut off"))
        resultOf(proxy.write(1))
        clock.advance(1)
        module.attempts[-1].errback(Trouble("refused"))
        clock.advance(1.00001)
        module.attempts[-1].callback(None)
        resultOf(wrapper.pause(by="operator"))
        clock.advance(2.00001)
        wrapper.resume(by="operator")
    names = {"error", "delay", "attempt", "attempts", "seconds", "queued", "by"}
    fields = [json.loads(eventAsJSON(event)) for event in events]
    assert {each["module"] for each in fields} == {"database"}
    lost, failed, recovered, paused, resumed = (
        {name: each[name] for name in names if name in each} for each in fields
    )
    assert (lost["error"], lost["delay"]) == ("Trouble: cut off", 1.0)
    assert (failed["error"], failed["attempt"]) == ("Trouble: refused", 2)
    assert recovered == {"seconds": 2.0, "attempts": 2, "queued": 1}
    assert paused == {"by": "operator"}
    assert resumed == {"seconds": 2.0, "queued": 0}
    assert all(type(each["log_format"]) is str for each in fields)


def test_a_ready_module_is_in_the_table_of_the_start_up(program: Program) -> None:
    """
    A module that is ready at its first attempt has a row in the table of the start-up
    or, if it becomes ready later, a line.
    """
    program.add("clock")
    program.add("cache", required=False)
    with logged() as events:
        program.start()
        program.clock.advance(5)
        program.succeed("clock")
        program.clock.advance(5)
        resultOf(program.startup.wrappers["cache"].proxy.read(1))
        program.succeed("cache")
        program.pause("cache")
        program.resume("cache")
        program.lose("cache")
        program.clock.advance(5)
        program.succeed("cache")
    table, line, *_ = textsOf(events)
    assert "clock" in table
    assert line == "cache: ready after 10.0 s, 1 attempt, 1 call queued"
    assert [text for text in textsOf(events) if "cache: ready" in text] == [line]


def test_ready_at_the_second_attempt(clock: Clock) -> None:
    """
    A module that needed a second attempt has a line, however soon the attempt
    succeeded.
    """
    module, wrapper, _ = wrap(clock, name="clock", retryPolicy=lambda attempts: 0.1)
    resultOf(wrapper.initialize())
    with logged() as events:
        fail(module, clock)
        module.attempts[-1].callback(None)
    assert textsOf(events) == [
        "clock: attempt 1 failed (Trouble: refused); retry in 0.1 s",
        "clock: ready after 0.1 s, 2 attempts, 0 calls queued",
    ]


def test_attempts_without_a_delay(clock: Clock) -> None:
    """
    A policy without delays does not fill the log.
    """
    module, wrapper, _ = wrap(clock, retryPolicy=lambda attempts: 0)
    resultOf(wrapper.initialize())
    with logged() as events:
        for _ in range(1000):
            fail(module, clock)
    assert textsOf(events) == [
        f"Module: attempt {number} failed (Trouble: refused); retry at once"
        for number in (1, 2, 3)
    ]
    shut(wrapper)


def test_tracebacks_are_logged_once(
    started: Started, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    The traceback of a likely programming error is logged once until the module is
    ready.
    """
    module, _ = started
    for _ in range(2):
        lose(module)
        clock.advance(60)
        with logged() as events:
            for _ in range(3):
                module.attempts[-1].errback(TypeError("no int"))
                clock.advance(60)
        assert [each for each in events if "log_failure" in each] == loggedFailures
        (mistake,) = loggedFailures
        assert messageOf(mistake) == "database: a mistake in the program"
        loggedFailures.clear()
        module.attempts[-1].callback(None)


@pytest.mark.parametrize("isReset", [True, False])
def test_modules_that_cannot_be_closed(clock: Clock, isReset: bool) -> None:
    """
    An error of closing is logged as an error, but as a warning if the module is used
    again.
    """
    module, wrapper, _ = wrap(clock)
    ready(module, wrapper)
    if isReset:
        wrapper.reset(Trouble("slow"))
    else:
        resultOf(wrapper.close())
    with logged() as events:
        module.closings[-1].errback(Trouble("stuck"))
    what = "failed to close for the reset" if isReset else "failed to close"
    assert textsOf(events) == [f"Module: {what} (Trouble: stuck)"]
    assert levels(events) == [LogLevel.warn if isReset else LogLevel.error]
    shut(wrapper)


def test_a_module_that_can_never_be_closed(clock: Clock) -> None:
    """
    A module that is closed again and again, because its pings fail, does not fill the
    log with errors of closing.
    """
    module = Empty()
    module.close = lambda: 1 / 0  # type: ignore[attr-defined]
    wrapper = QueuingWrapper(module, clock, ping=lambda: 1 / 0)
    wrapper.initialize()
    with logged() as events:
        clock.pump([1.0] * 3600)
        resultOf(wrapper.close())
    texts = [each for each in textsOf(events) if "failed to close" in each]
    error = "(ZeroDivisionError: division by zero)"
    assert texts[0] == f"Empty: failed to close for the reset {error}"
    assert texts[-1] == f"Empty: failed to close {error}"
    assert len(texts) < 10
    assert 10 < len(events) < 60


def test_a_report_after_a_failed_ping(clock: Clock) -> None:
    """
    The line of a loss names the ping only if the ping has failed.
    """
    module, wrapper, proxy = wrap(clock, ping=lambda: 1 / 0)
    ready(module, wrapper)
    with logged() as events:
        clock.advance(10)
        module.closings[-1].callback(None)
        module.attempts[-1].callback(None)
        with suppress(Trouble):
            proxy.fail(None)
        clock.advance(0)
        module.closings[-1].callback(None)
        recover(clock, module)
        lose(module, Trouble("cut off"))
    shut(wrapper)
    error = "ping failed: ZeroDivisionError: division by zero"
    assert [text for text in textsOf(events) if "lost" in text] == [
        f"Module: lost ({error}); retry at once",
        f"Module: lost ({error}); retry in 1.0 s",
        "Module: lost (Trouble: cut off); retry in 1.0 s",
    ]


def test_failed_pings_are_losses(clock: Clock) -> None:
    """
    The line of a failed ping says that the module is lost, with the reason.
    """
    module, wrapper, _ = wrap(clock, ping=lambda: 1 / 0, closeTimeout=None)
    ready(module, wrapper)
    with logged() as events:
        clock.advance(10)
        module.closings[-1].callback(None)
        module.attempts[-1].callback(None)
    shut(wrapper)
    assert textsOf(events) == [
        "Module: lost (ping failed: ZeroDivisionError: division by zero); "
        "retry at once",
        "Module: recovered after 0.0 s, 1 attempt, 0 calls queued",
    ]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\n  lines\r\n\u2028", "two lines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("left\u202eright\0", r"left\u202eright\x00"),
        ("caf\udce9 café", r"caf\udce9 café"),
        ("{module} {0}", "{module} {0}"),
        ("x" * 5000, "x" * 999 + "…"),
    ],
)
def test_foreign_reasons_stay_in_their_line(
    started: Started, message: str, line: str
) -> None:
    """
    A reason is one line of bounded length, without control characters.
    """
    module, _ = started
    with logged() as events:
        lose(module, Trouble(message))
    assert textsOf(events) == [f"database: lost (Trouble: {line}); retry in 0.2 s"]


def levels(events: Iterable[LogEvent]) -> list[LogLevel]:
    """
    @return: The levels of events.
    """
    return [event["log_level"] for event in events]


def test_skipped_modules_follow_their_cause(program: Program) -> None:
    """
    A skipped module has one line, which is not an error, after the line of its cause.
    """
    program.add("index", required=False)
    program.add("search", "index", required=False)
    program.start()
    with logged() as events:
        program.fail("index", Refused, "no")
    assert textsOf(events) == [
        "index: failed for good (Refused: no)",
        "search: skipped (needs index, which failed)",
    ]
    assert levels(events) == [LogLevel.error, LogLevel.info]


def startWithListener(program: Program) -> Callable[..., Any]:
    """
    Start a database, and a listener that restarts with it.

    @return: A function that loses the database, which recovers after five seconds.
    """
    program.add("database")
    program.add("listener", restartWith=["database"])
    program.start()
    program.succeed("database", "listener")
    program.clock.advance(100)

    def flap() -> None:
        program.lose("database", "no")
        program.clock.advance(5)
        program.succeed("database")
        program.modules["listener"].closings[-1].callback(None)
        program.succeed("listener")

    return flap


def test_restarts_follow_their_cause(program: Program) -> None:
    """
    A module that restarts with a lost one has a line when its restart begins, and one
    when it ends. Holding its calls in between has no line.
    """
    flap = startWithListener(program)
    with logged() as events:
        flap()
    assert textsOf(events) == [
        "database: lost (Trouble: no); retry in 5.0 s",
        "database: recovered after 5.0 s, 1 attempt, 0 calls queued",
        "listener: restarting (database has recovered)",
        "listener: recovered after 0.0 s, 1 attempt, 0 calls queued",
    ]
    assert levels(events) == [LogLevel.warn] + [LogLevel.info] * 3
    with logged() as events:
        for _ in range(100):
            flap()
    assert 8 < len(events) < 60


def test_held_modules_are_skipped_in_one_line(program: Program) -> None:
    """
    A module that was held for a restart, and is skipped, has one line.
    """
    startWithListener(program)
    with logged() as events:
        program.lose("database", "no")
        program.clock.advance(5)
        program.fail("database", Refused, "gone")
    assert program.startup.wrappers["listener"].state is State.FAILED
    assert textsOf(events)[:3] == [
        "database: lost (Trouble: no); retry in 5.0 s",
        "database: failed for good (Refused: gone)",
        "listener: skipped (needs database, which failed)",
    ]
    assert [text for text in textsOf(events)[3:] if "listener" in text] == []


def test_each_reset_is_logged(started: Started, clock: Clock) -> None:
    """
    Every reset by an operator is logged, with its result.
    """
    module, wrapper = started
    for _ in range(5):
        with logged() as events:
            wrapper.reset(Trouble("new password"))
            module.closings[-1].callback(None)
            module.attempts[-1].callback(None)
        clock.advance(0)
        assert textsOf(events) == [
            "database: reset (Trouble: new password)",
            "database: recovered after 0.0 s, 1 attempt, 0 calls queued",
        ]


def test_one_number_of_attempts(program: Program, clock: Clock, tmp_path: Path) -> None:
    """
    Attempts are counted from the start, whether the module was ready in between or not.
    The log, the report, metrics, systemd and the status page show the same number.
    """
    program.add("database")
    address = str(tmp_path / "notify")
    service = SystemdService(program.startup, clock, {"NOTIFY_SOCKET": address})
    with socket(AF_UNIX, SOCK_DGRAM) as systemd, logged() as events:
        systemd.bind(address)
        service.startService()
        program.start()
        program.fail("database")
        clock.advance(5)
        program.succeed("database")
        program.lose("database")
        clock.advance(5)
        program.fail("database")
        clock.advance(1)
        systemd.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                message = systemd.recv(4096)
        service.stopService()
    assert textsOf(events)[-1].startswith("database: attempt 3 failed (")
    entry = program.startup.reportModule("database")
    assert (entry["attemptCount"], entry["reason"]) == (3, "attempt 3 failed (Trouble)")
    assert b"database (retrying, attempt 3)" in message
    body = ask(Metrics(program.startup, Traffic(clock))).body
    assert b'tsrv_module_attempts_total{module="database"} 3.0' in body
    page = ask(Status(program.startup, clock)).body.decode()
    assert set(re.findall(r"attempt (\d+)", page)) == {"3"}
    assert set(re.findall(r"(\d+) attempts", page)) == {"3"}


def test_a_pause_during_a_restart_is_logged(program: Program) -> None:
    """
    A pause is logged even if the calls of the module are held already.
    """
    startWithListener(program)
    with logged() as events:
        program.lose("database", "no")
        program.pause("listener", by="operator")
        program.pause("listener", by="operator")
        program.clock.advance(5)
        program.succeed("database")
        program.modules["listener"].closings[-1].callback(None)
        program.succeed("listener")
        program.resume("listener", by="operator")
    assert [text for text in textsOf(events) if "listener" in text] == [
        "listener: paused by operator",
        "listener: restarting (database has recovered)",
        "listener: recovered after 0.0 s, 1 attempt, 0 calls queued",
        "listener: resumed after 5.0 s, 0 calls queued",
    ]


def test_pauses_are_logged(started: Started, clock: Clock) -> None:
    """
    A pause has a line with its holder, and one with its duration.
    """
    _, wrapper = started
    with logged() as events:
        resultOf(wrapper.pause(by="the night\nshift"))
        clock.advance(2)
        resultOf(wrapper.pause(by="me"))
        wrapper.resume(by="me")
        clock.advance(0.5)
        resultOf(wrapper.proxy.write(1))
        wrapper.resume(by="the night\nshift")
        resultOf(wrapper.pause())
        wrapper.resume()
    assert textsOf(events) == [
        "database: paused by the night shift",
        "database: paused by me",
        "database: resumed after 2.5 s, 1 call queued",
        "database: paused",
        "database: resumed after 0.0 s, 0 calls queued",
    ]
