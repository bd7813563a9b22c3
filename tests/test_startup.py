"""
Startup: order of start, status, reports, failures and shutdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel
from zope.interface import implementer

from tsrv import (
    AsyncModule,
    Closed,
    InitializationFailed,
    QueuingWrapper,
    Startup,
    StartupFailed,
    State,
)
from tsrv.asyncmodule import IHasNote
from tsrv.startup import GraphError, Skipped, Status, describe

from .support import Module, Refused, Trouble, resultOf
from .websupport import errorsIn, logged, textsOf

OPTIONS: dict[str, Any] = {"fatal": Refused, "retryPolicy": lambda attempts: 1.0}


class Program:
    """
    A start-up whose modules do as the test says.

    @ivar statuses: The exit statuses with which the program was to end.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.statuses: list[int] = []
        self.startup = Startup(clock, stopProgram=self.statuses.append, **options)
        self.modules: dict[str, Module] = {}

    def add(
        self, name: str, needs: Iterable[str] = (), **options: Any
    ) -> QueuingWrapper[Module]:
        module = self.modules[name] = Module()
        return self.startup.add(name, module, needs=needs, **{**OPTIONS, **options})

    def start(self) -> None:
        self.startup.privilegedStartService()
        self.startup.startService()

    def ready(self, *names: str) -> None:
        """
        Let the attempt in progress of each of some modules succeed.
        """
        for name in names:
            self.modules[name].attempts[-1].callback(None)

    def fail(self, name: str, error: Exception) -> None:
        """
        Let the attempt in progress of a module fail.
        """
        self.modules[name].attempts[-1].errback(error)

    def lose(self, name: str, error: Exception | None = None) -> None:
        """
        Lose a module that is ready.
        """
        watch = self.modules[name].watches[-1]
        if error is None:
            watch.callback(None)
        else:
            watch.errback(error)

    @property
    def initializing(self) -> set[str]:
        """
        The modules whose initialisation was ever asked for.
        """
        return {name for name, each in self.modules.items() if each.attempts}

    @property
    def closing(self) -> set[str]:
        """
        The modules whose closing was ever asked for.
        """
        return {name for name, each in self.modules.items() if each.closings}

    @property
    def statusOf(self) -> dict[str, str]:
        """
        The status of each module.
        """
        modules = self.startup.report()["modules"]
        return {each["name"]: each["status"] for each in modules}

    def stop(self) -> None:
        """
        Stop it, with modules that close at once.
        """
        stopped = resultOf(self.startup.stopService())
        while stopped.pending:
            for module in self.modules.values():
                for closing in module.closings:
                    if not closing.called:
                        closing.callback(None)
            self.clock.advance(0)
        assert stopped.value is None
        assert self.startup.status is Status.STOPPED


@pytest.fixture
def program(clock: Clock) -> Program:
    """
    A program without modules.
    """
    return Program(clock)


# Starting.


def test_a_proxy_can_be_used_before_the_start(program: Program) -> None:
    """
    A call made before the start is queued and carried out.
    """
    wrapper = program.add("database")
    assert program.startup.wrappers == {"database": wrapper}
    answer = resultOf(wrapper.proxy.read(1))
    assert program.startup.status is Status.NEW
    program.start()
    program.ready("database")
    assert program.modules["database"].calls == [("read", 1)]
    program.modules["database"].answers[0].callback("one")
    assert answer.value == "one"
    program.stop()


def test_independent_modules_start_in_parallel(clock: Clock) -> None:
    """
    A hundred modules that take 0.2 s each take 0.2 s.
    """
    startup = Startup(clock)
    for number in range(100):
        startup.add(str(number), AsyncModule(clock, 0.2))
    startup.startService()
    ready = resultOf(startup.whenReady())
    clock.advance(0.19)
    assert ready.pending
    clock.advance(0.01)
    assert ready.value is None
    assert startup.report()["becameReady"] == 0.2
    startup.stopService()


def test_a_module_starts_when_its_needs_are_ready(program: Program) -> None:
    """
    A module is initialised as soon as all modules that it needs are ready, and not
    before.
    """
    program.add("users", ["database", "cache"])
    program.add("database", ["configuration"])
    program.add("cache", ["configuration"])
    program.add("configuration")
    program.start()
    assert program.initializing == {"configuration"}
    program.ready("configuration")
    assert program.initializing == {"configuration", "database", "cache"}
    program.ready("cache")
    assert program.statusOf["users"] == "waiting"
    program.ready("database")
    assert program.initializing == set(program.modules)
    assert program.startup.status is Status.STARTING
    program.ready("users")
    assert program.startup.status is Status.READY
    program.stop()


def test_a_repeated_need_counts_once(program: Program) -> None:
    """
    A name that is listed twice in needs is waited for once.
    """
    program.add("a")
    program.add("b", ["a", "a"])
    program.start()
    program.ready("a")
    assert program.initializing == {"a", "b"}
    program.ready("b")
    program.stop()


def test_a_program_without_modules_is_ready(program: Program) -> None:
    """
    A program without modules is ready at once.
    """
    program.start()
    assert program.startup.ready
    assert resultOf(program.startup.whenReady()).value is None
    program.stop()


def test_a_lost_need_is_waited_for_again(program: Program) -> None:
    """
    A module with two needs starts when both are ready at the same time.
    """
    program.add("a")
    program.add("b")
    program.add("c", ["a", "b"])
    program.start()
    program.ready("a")
    program.lose("a")
    program.ready("b")
    assert program.initializing == {"a", "b"}
    program.clock.advance(1)
    program.ready("a")
    assert program.initializing == {"a", "b", "c"}
    assert program.startup.reportModule("c")["waitedFor"] == "a"
    program.ready("c")
    program.stop()


def test_a_module_may_be_initialised_by_hand_before(program: Program) -> None:
    """
    The start accepts modules that are ready, and initialises failed ones again.
    """
    early = program.add("early")
    failed = program.add("failed")
    program.add("late", ["early", "failed"])
    early.initialize()
    program.ready("early")
    resultOf(failed.initialize())
    program.fail("failed", Refused())
    assert program.startup.status is Status.NEW
    program.start()
    # What had failed is asked for again.
    assert program.startup.status is Status.STARTING
    program.ready("failed", "late")
    assert program.startup.status is Status.READY
    program.stop()


def test_a_module_may_be_ready_at_once(clock: Clock) -> None:
    """
    Dependents of a module that needs no time start at once, and once.
    """
    starts: list[str] = []
    startup = Startup(clock)
    startup.add("a", lambda: AsyncModule(clock), initialize=lambda: starts.append("a"))
    startup.add(
        "b",
        lambda: AsyncModule(clock),
        needs=["a"],
        timeout=5,
        initialize=lambda: starts.append("b"),
    )
    module = Module()
    startup.add("c", module, needs=["a", "b"], timeout=5, **OPTIONS)
    startup.startService()
    assert starts == ["a", "b"]
    assert len(clock.getDelayedCalls()) == 1
    module.attempts[0].callback(None)
    assert clock.getDelayedCalls() == []
    resultOf(startup.stopService())
    module.closings[0].callback(None)


@pytest.mark.parametrize("size", [5_000])
def test_a_chain_may_have_thousands_of_modules(clock: Clock, size: int) -> None:
    """
    Starting, skipping and closing a long chain neither recurses nor blocks the reactor.
    """

    class Immediate:
        def initialize(self) -> None:
            if broken:
                raise Refused

    def turn() -> None:
        while clock.getDelayedCalls():
            clock.advance(0)

    for broken in (False, True):
        left: list[int] = []
        startup = Startup(clock, stopProgram=left.append)
        for number in range(size):
            needs = [str(number - 1)] if number else []
            startup.add(str(number), Immediate(), needs=needs, fatal=Refused)
        startup.startService()
        turn()
        assert startup.ready is not broken
        report = startup.report()
        states = {each["status"] for each in report["modules"][1:]}
        if broken:
            assert (states, left) == ({"skipped"}, [1])
        else:
            assert (states, left) == ({"ready"}, [])
            assert report["criticalPath"] == list(map(str, range(size)))
        stopped = resultOf(startup.stopService())
        turn()
        assert stopped.value is None


# What is wrong before anything starts.


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            {"database": ["configuration"], "configuration": ["database"]},
            "modules need each other: database → configuration → database",
        ),
        ({"users": ["x"]}, "users → x: there is no module 'x'"),
    ],
)
def test_an_impossible_graph_is_refused(
    program: Program, needs: dict[str, list[str]], message: str
) -> None:
    """
    An error in the needs is raised before any module is initialised.
    """
    for name, needed in needs.items():
        program.add(name, needed)
    for start in (
        program.startup.privilegedStartService,
        program.startup.startService,
        program.startup.check,
    ):
        with pytest.raises(GraphError) as raised:
            start()
        assert str(raised.value) == message
    assert program.initializing == set()
    assert program.startup.status is Status.NEW
    assert not program.startup.running
    program.stop()
    assert program.closing == set()


def test_a_name_is_used_once(program: Program) -> None:
    """
    Adding a second module with the same name is an error.
    """
    program.add("database")
    with pytest.raises(GraphError) as raised:
        program.startup.add("database", Module())
    assert str(raised.value) == "two modules have the name 'database'"
    assert raised.value.path == ("database",)


def test_nothing_is_added_after_the_start(program: Program) -> None:
    """
    Adding a module after the start is an error.
    """
    program.start()
    with pytest.raises(RuntimeError, match="'late' was added after the start-up began"):
        program.add("late")
    program.stop()


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\0b", "\x1b[31mred"])
def test_a_name_must_be_printable(program: Program, name: str) -> None:
    """
    An empty name, and a name with spaces around it or control characters, is refused.
    """
    with pytest.raises(ValueError, match="is not a name for a module"):
        program.add(name)


def test_needs_must_be_a_collection(program: Program) -> None:
    """
    A string in place of a collection of names is refused.
    """
    with pytest.raises(TypeError, match="needs must be a collection of names"):
        program.add("a", "configuration")


@pytest.mark.parametrize(
    ("options", "error", "about"),
    [
        ({"timeout": -1}, ValueError, "timeout must be seconds >= 0"),
        ({"queueTimeout": -1}, ValueError, "timeout must be seconds >= 0"),
        ({"name": "x"}, TypeError, "name"),
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"initialize": "nonsense"}, TypeError, "Module has no nonsense"),
        ({"close": "version"}, TypeError, "must be callable"),
    ],
)
def test_an_invalid_option_is_refused(
    clock: Clock, options: dict[str, Any], error: type[Exception], about: str
) -> None:
    """
    An invalid option is an error of add(), which then adds nothing.
    """
    startup = Startup(clock)
    with pytest.raises(error, match=about):
        startup.add("a", Module(), **options)
    assert dict(startup.wrappers) == {}


def test_a_program_is_started_once(program: Program) -> None:
    """
    Starting a program again is an error, also after it was stopped.
    """
    program.start()
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()
    program.stop()
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()


# Time limits and retries.


def test_a_failed_attempt_is_retried(program: Program) -> None:
    """
    A failed attempt delays the program, which becomes ready after a retry.
    """
    program.add("database")
    program.add("users", ["database"])
    program.start()
    program.fail("database", Trouble("not yet"))
    assert program.statusOf == {"database": "retrying", "users": "waiting"}
    program.clock.advance(1)
    program.ready("database")
    program.ready("users")
    assert program.startup.status is Status.READY
    assert program.statuses == []
    program.stop()


def test_the_timeout_begins_when_the_needs_are_ready(program: Program) -> None:
    """
    The timeout of a module does not count the time that its needs take.
    """
    program.add("configuration")
    wrapper = program.add("database", ["configuration"], timeout=20)
    program.start()
    program.clock.advance(60)
    program.ready("configuration")
    program.clock.advance(10)
    program.fail("database", Trouble("starting up"))
    program.clock.advance(9.9)
    assert program.startup.status is Status.STARTING
    program.clock.advance(0.1)
    assert wrapper.state is State.FAILED
    error = wrapper.lastError
    assert isinstance(error, TimeoutError)
    assert str(error) == (
        "not ready within 20 seconds, because of Trouble: starting up"
    )
    assert isinstance(error.__cause__, Trouble)
    assert program.startup.status is Status.FAILED
    program.stop()


def test_a_module_that_hangs_times_out(program: Program) -> None:
    """
    The attempt is cancelled, and queued calls fail with the timeout as their cause.
    """
    wrapper = program.add("database", timeout=20)
    answer = resultOf(wrapper.proxy.read(1))
    program.start()
    program.clock.advance(20)
    assert program.modules["database"].attempts[0].called
    assert isinstance(answer.error, InitializationFailed)
    assert str(answer.error.__cause__) == "not ready within 20 seconds"
    program.stop()


def test_the_timeout_ends_when_the_module_is_ready(program: Program) -> None:
    """
    A loss after the module was ready is retried without a time limit.
    """
    program.add("database", timeout=20)
    program.start()
    program.ready("database")
    program.lose("database")
    program.clock.pump([1.0] * 100)
    assert program.statusOf["database"] == "initializing"
    assert program.startup.status is Status.UNREADY
    program.stop()


# Failures.


def test_a_failed_optional_module_degrades_the_program(program: Program) -> None:
    """
    The program stays ready, dependents of the module are skipped, and calls to them
    fail with the reason.
    """
    cache = program.add("cache", required=False)
    warmer = program.add("warmer", ["cache"], required=False)
    program.add("index", ["warmer"], required=False)
    program.add("database")
    waiting = resultOf(warmer.proxy.read(1))
    program.start()
    program.ready("database")
    assert program.startup.status is Status.DEGRADED
    with logged() as events:
        program.fail("cache", Refused("no"))
    assert program.startup.status is Status.DEGRADED
    assert program.startup.ready
    assert program.statusOf == {
        "cache": "failed",
        "warmer": "skipped",
        "index": "skipped",
        "database": "ready",
    }
    assert program.statuses == []
    assert textsOf(events) == [
        "cache failed to initialize, and will not be tried again: Refused: no",
        "warmer failed to initialize, and will not be tried again: "
        "Skipped: warmer needs cache, which failed",
        "index failed to initialize, and will not be tried again: "
        "Skipped: index needs warmer, which failed",
    ]
    for answer in (waiting, resultOf(warmer.proxy.read(2))):
        assert isinstance(answer.error, InitializationFailed)
        assert isinstance(answer.error.__cause__, Skipped)
        assert answer.error.__cause__.need == "cache"
    assert program.initializing == {"cache", "database"}
    assert cache.state is State.FAILED
    reason = program.startup.reportModule("warmer")["reason"]
    assert reason == "needs cache, which failed"
    program.stop()
    assert program.closing == {"cache", "database"}


def test_a_failed_required_module_stops_the_program(program: Program) -> None:
    """
    The exit status is 1, and the log names the module.
    """
    program.add("database")
    program.add("users", ["database"])
    ready = resultOf(program.startup.whenReady())
    program.start()
    with logged() as events:
        program.fail("database", Refused("password"))
    assert program.statuses == [1]
    assert program.startup.status is Status.FAILED
    assert not program.startup.ready
    message = "database is required, and failed: Refused: password"
    for result in (ready, resultOf(program.startup.whenReady())):
        assert isinstance(result.error, StartupFailed)
        assert str(result.error) == message
        assert result.error.name == "database"
        assert isinstance(result.error.__cause__, Refused)
    (critical,) = [e for e in events if e["log_level"] is LogLevel.critical]
    # Why is in the line before.
    line = "database is required, and failed; stopping"
    assert textsOf([critical]) == [line]
    program.stop()


def test_a_program_is_stopped_once(program: Program) -> None:
    """
    A second failure does not stop the program again.
    """
    program.add("a")
    program.add("b")
    program.start()
    program.fail("a", Refused("first"))
    program.fail("b", Refused("second"))
    assert program.statuses == [1]
    error = resultOf(program.startup.whenReady()).error
    assert str(error) == "a is required, and failed: Refused: first"
    program.stop()


def test_stayUp_keeps_a_failed_program_running(clock: Clock) -> None:
    """
    With stayUp a failed module can be initialised by hand, and its skipped dependents
    start afterwards.
    """
    program = Program(clock, stayUp=True)
    wrapper = program.add("database")
    program.add("users", ["database"])
    program.start()
    with logged() as events:
        program.fail("database", Refused("password"))
    assert program.statuses == []
    assert textsOf(events)[-1].endswith("; staying up to report it")
    assert program.statusOf == {"database": "failed", "users": "skipped"}
    ready = resultOf(wrapper.initialize())
    assert program.startup.status is Status.FAILED
    program.ready("database")
    assert ready.value is None
    # What was skipped because of it is started now.
    assert program.statusOf == {"database": "ready", "users": "initializing"}
    assert program.startup.status is Status.STARTING
    assert program.startup.reportModule("users")["waitedFor"] == "database"
    program.ready("users")
    assert program.startup.status is Status.READY
    program.stop()


def test_a_skipped_module_may_fail_later(clock: Clock) -> None:
    """
    A module that was skipped and started later reports its own failure.
    """
    program = Program(clock, stayUp=True)
    wrapper = program.add("database")
    program.add("users", ["database"])
    program.start()
    program.fail("database", Refused())
    resultOf(wrapper.initialize())
    program.ready("database")
    program.fail("users", Refused())
    assert program.statusOf["users"] == "failed"
    program.stop()


def test_a_need_of_a_required_module_is_required(program: Program) -> None:
    """
    The failure of an optional module fails a required module that needs it.
    """
    program.add("cache", required=False)
    program.add("users", ["cache"])
    program.start()
    program.fail("cache", Refused())
    assert program.statuses == [1]
    error = resultOf(program.startup.whenReady()).error
    assert str(error) == (
        "users is required, and failed: Skipped: users needs cache, which failed"
    )
    program.stop()


def test_a_module_closed_by_hand_counts_as_failed(program: Program) -> None:
    """
    Dependents of a closed module are skipped, and a closed required module stops the
    program.
    """
    wrapper = program.add("a")
    program.add("b", ["a"], required=False)
    program.start()
    resultOf(wrapper.close())
    assert program.statusOf == {"a": "closing", "b": "skipped"}
    assert program.startup.status is Status.FAILED
    assert program.statuses == [1]
    reason = program.startup.reportModule("a")["reason"]
    assert reason == "is being closed"
    error = resultOf(program.startup.whenReady()).error
    assert str(error) == "a is required, and failed: it was closed"
    program.stop()


def test_a_module_initialised_by_hand_is_not_skipped(program: Program) -> None:
    """
    An initialisation in progress goes on when a need of the module fails.
    """
    program.add("cache", required=False)
    wrapper = program.add("warmer", ["cache"], required=False)
    program.start()
    wrapper.initialize()
    program.fail("cache", Refused())
    assert program.statusOf == {"cache": "failed", "warmer": "initializing"}
    program.ready("warmer")
    assert program.statusOf["warmer"] == "ready"
    program.stop()


# Losses.


def test_a_loss_makes_the_program_unready_until_it_recovers(program: Program) -> None:
    """
    Dependents of a lost module are not initialised again; they keep its proxy.
    """
    program.add("database")
    program.add("users", ["database"])
    program.start()
    program.ready("database", "users")
    program.clock.advance(10)
    program.lose("database", Trouble("gone"))
    assert program.startup.status is Status.UNREADY
    assert not program.startup.ready
    waiting = resultOf(program.startup.whenReady())
    assert program.statusOf == {"database": "lost", "users": "ready"}
    program.clock.advance(1)
    assert waiting.pending
    program.ready("database")
    assert program.startup.status is Status.READY
    assert waiting.value is None
    assert len(program.modules["users"].attempts) == 1
    (loss,) = program.startup.reportModule("database")["losses"]
    assert loss == {
        "lost": 10.0,
        "recovered": 11.0,
        "kind": "Trouble",
        "error": "Trouble: gone",
    }
    program.stop()


def test_the_loss_of_an_optional_module_degrades(program: Program) -> None:
    """
    A program is degraded while an optional module is not ready.
    """
    program.add("cache", required=False)
    program.start()
    assert program.startup.status is Status.DEGRADED
    program.ready("cache")
    assert program.startup.status is Status.READY
    program.lose("cache")
    assert program.startup.status is Status.DEGRADED
    program.clock.advance(1)
    program.ready("cache")
    assert program.startup.status is Status.READY
    program.stop()


def test_a_required_module_may_fail_after_a_loss(program: Program) -> None:
    """
    A fatal error after a loss stops the program, however long it ran.
    """
    program.add("database")
    program.start()
    program.ready("database")
    program.lose("database")
    program.clock.advance(1)
    program.fail("database", Refused("revoked"))
    assert program.startup.status is Status.FAILED
    assert program.statuses == [1]
    program.stop()


# Stopping.


def test_modules_are_closed_in_reverse_order(program: Program) -> None:
    """
    A module is closed when its dependents are closed; independent modules are closed in
    parallel.
    """
    program.add("configuration")
    program.add("database", ["configuration"])
    program.add("cache", ["configuration"])
    program.add("users", ["database", "cache"])
    program.start()
    program.ready("configuration", "database", "cache", "users")
    stopped = resultOf(program.startup.stopService())
    assert program.startup.status is Status.STOPPING
    assert program.closing == {"users"}
    program.modules["users"].closings[0].callback(None)
    assert program.closing == {"users", "database", "cache"}
    program.modules["cache"].closings[0].callback(None)
    assert program.closing == {"users", "database", "cache"}
    program.modules["database"].closings[0].callback(None)
    program.modules["configuration"].closings[0].callback(None)
    assert stopped.value is None
    assert program.startup.status is Status.STOPPED
    assert set(program.statusOf.values()) == {"closed"}


def test_an_error_of_closing_stops_no_other_module(program: Program) -> None:
    """
    Every module is closed within its time limit; every error is in the log, the report
    and the exception group.
    """
    for name, needs in (("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"])):
        program.add(name, needs, closeTimeout=5)
    program.start()
    program.ready("a", "b", "c", "d")
    program.clock.advance(2)
    with logged() as events:
        stopped = resultOf(program.startup.stopService())
        program.modules["d"].closings[0].errback(Trouble("locked"))
        program.clock.advance(5)
        program.modules["b"].closings[0].callback(None)
        program.modules["a"].closings[0].errback(Trouble("full"))
    assert textsOf(errorsIn(events)) == [
        "d failed to close: Trouble: locked",
        "c failed to close: TimeoutError: no end within 5 s",
        "a failed to close: Trouble: full",
    ]
    error = stopped.error
    assert isinstance(error, ExceptionGroup)
    assert list(map(str, error.exceptions)) == ["full", "no end within 5 s", "locked"]
    closings = {
        each["name"]: (each["closed"], each["closeError"])
        for each in program.startup.report()["modules"]
    }
    assert closings == {
        "a": (7.0, "Trouble: full"),
        "b": (7.0, None),
        "c": (7.0, "TimeoutError: no end within 5 s"),
        "d": (2.0, "Trouble: locked"),
    }


def test_stopping_during_the_start(program: Program) -> None:
    """
    Stopping cancels attempts, ends queued calls and waiters with Closed, and starts no
    further module.
    """
    program.add("configuration")
    program.add("database", ["configuration"], timeout=20)
    users = program.add("users", ["database"])
    program.start()
    ready = resultOf(program.startup.whenReady())
    call = resultOf(users.proxy.read(1))
    program.ready("configuration")
    program.stop()
    assert isinstance(ready.error, Closed)
    assert isinstance(call.error, Closed)
    assert program.modules["database"].attempts[0].called
    assert program.initializing == {"configuration", "database"}
    assert program.closing == {"configuration", "database"}
    assert program.statuses == []
    assert isinstance(resultOf(program.startup.whenReady()).error, Closed)


def test_stopping_cancels_a_retry(program: Program) -> None:
    """
    Stopping between two attempts leaves no timer.
    """
    program.add("database", timeout=20)
    program.start()
    program.fail("database", Trouble())
    program.stop()
    assert program.closing == {"database"}


def test_stopping_cancels_the_timeouts(program: Program) -> None:
    """
    No module times out while the program is stopping.
    """
    slow = program.add("slow", timeout=5)
    user = program.add("user", ["slow"])
    program.start()
    resultOf(user.initialize())
    stopped = resultOf(program.startup.stopService())
    assert program.closing == {"user"}
    program.clock.advance(9)
    assert slow.state is State.INITIALIZING
    program.modules["user"].closings[0].callback(None)
    assert slow.state is State.CLOSING
    program.modules["slow"].closings[0].callback(None)
    assert stopped.value is None
    program.clock.advance(20)


def test_stopping_before_the_start(program: Program) -> None:
    """
    Stopping a program that was not started ends queued calls and touches no module.
    """
    wrapper = program.add("a")
    program.add("b", ["a"])
    call = resultOf(wrapper.proxy.read(1))
    program.stop()
    assert isinstance(call.error, Closed)
    assert program.initializing == program.closing == set()
    with pytest.raises(RuntimeError):
        program.startup.startService()


def test_stopping_twice(program: Program) -> None:
    """
    A second stop joins the first; cancelling one Deferred affects no other.
    """
    program.add("a")
    program.start()
    program.ready("a")
    deferred = program.startup.stopService()
    first, second = resultOf(deferred), resultOf(program.startup.stopService())
    deferred.cancel()
    assert isinstance(first.error, CancelledError)
    assert len(program.modules["a"].closings) == 1
    program.modules["a"].closings[0].callback(None)
    assert second.value is None
    assert resultOf(program.startup.stopService()).value is None


def test_an_announced_stop_lets_calls_finish(program: Program) -> None:
    """
    After announceStop() the program is not ready, and its modules keep working.
    """
    program.add("a")
    users = program.add("b", ["a"])
    program.start()
    ready = resultOf(program.startup.whenReady())
    call = resultOf(users.proxy.read(1))
    program.startup.announceStop()
    program.startup.announceStop()
    assert program.startup.status is Status.STOPPING
    assert isinstance(ready.error, Closed)
    program.ready("a")
    program.ready("b")
    program.modules["b"].answers[0].callback("done")
    assert call.value == "done"
    assert not program.startup.ready
    assert program.startup.status is Status.STOPPING
    program.stop()


def test_a_failure_after_the_announcement_changes_nothing(program: Program) -> None:
    """
    A program that is stopping is not stopped with status 1.
    """
    program.add("a")
    program.start()
    program.startup.announceStop()
    program.fail("a", Refused())
    assert program.statuses == []
    assert program.startup.status is Status.STOPPING
    program.stop()


def test_stopProgram_may_stop_the_program_at_once(clock: Clock) -> None:
    """
    The callable that stops the program may call stopService() itself.
    """
    stopped: list[Any] = []

    def stopProgram(status: int) -> None:
        startup.stopService().addBoth(stopped.append)

    startup = Startup(clock, stopProgram=stopProgram)
    module, other = Module(), Module()
    startup.add("a", module, **OPTIONS)
    startup.add("b", other, **OPTIONS)
    waiting = resultOf(startup.whenReady())
    startup.startService()
    module.attempts[0].errback(Refused())
    assert startup.status is Status.STOPPING
    assert isinstance(waiting.error, Closed)
    module.closings[0].callback(None)
    other.closings[0].callback(None)
    assert stopped == [None]


def test_a_callback_of_whenReady_may_stop_the_program(program: Program) -> None:
    """
    stopService() works from a callback of whenReady().
    """
    program.add("a")
    program.startup.whenReady().addCallback(lambda _: program.startup.stopService())
    program.start()
    program.ready("a")
    assert program.startup.status is Status.STOPPING
    program.stop()


# Who waits and who watches.


def test_cancelling_one_waiter_affects_no_other(program: Program) -> None:
    """
    The other Deferreds of whenReady() still fire.
    """
    program.add("a")
    program.start()
    deferred = program.startup.whenReady()
    given, kept = resultOf(deferred), resultOf(program.startup.whenReady())
    deferred.cancel()
    assert isinstance(given.error, CancelledError)
    program.ready("a")
    assert kept.value is None
    program.stop()


def test_observers_are_notified_of_every_change(program: Program) -> None:
    """
    An observer sees each status of a module and of the program once; registering it
    twice has no effect.
    """
    told: list[tuple[str, str]] = []

    def observe(name: str) -> None:
        status = program.statusOf[name] if name else program.startup.status.value
        told.append((name, status))

    program.add("a")
    program.startup.addObserver(observe)
    program.startup.addObserver(observe)
    program.start()
    program.ready("a")
    program.lose("a")
    assert told == [
        ("", "starting"),
        ("a", "initializing"),
        ("a", "draining"),
        ("", "ready"),
        ("a", "ready"),
        ("a", "lost"),
        ("", "unready"),
    ]
    program.startup.removeObserver(observe)
    told.clear()
    program.stop()
    assert told == []


def test_an_error_of_an_observer_is_logged(
    program: Program, loggedFailures: list[LogEvent]
) -> None:
    """
    An observer that raises does not disturb the program.
    """

    def observe(name: str) -> None:
        raise Trouble(name)

    program.add("a")
    program.startup.addObserver(observe)
    program.start()
    program.ready("a")
    assert program.startup.ready
    program.startup.removeObserver(observe)
    program.stop()
    failures = [each["log_failure"].value for each in loggedFailures]
    assert {type(each) for each in failures} == {Trouble}
    loggedFailures.clear()


# Reports.


def test_the_report_has_the_history(program: Program) -> None:
    """
    The report has times, attempts, errors and losses of every module, as JSON.
    """
    program.add("configuration")
    program.add("database", ["configuration"])
    program.add("cache", required=False)
    assert program.startup.report()["began"] is None
    assert program.statusOf["database"] == "new"
    reason = program.startup.reportModule("database")["reason"]
    assert reason == "not started"
    program.clock.advance(100)
    program.start()
    program.clock.advance(2)
    program.ready("configuration")
    program.clock.advance(1)
    program.fail("database", Trouble("starting up"))
    program.clock.advance(1)
    program.clock.advance(0.5)
    report = program.startup.report()
    assert json.loads(json.dumps(report)) == report
    assert {key: report[key] for key in report if key != "modules"} == {  # type: ignore[literal-required]
        "status": "starting",
        "began": "1970-01-01T00:01:40.000+00:00",
        "now": 4.5,
        "becameReady": None,
        "criticalPath": [],
    }
    assert report["modules"][1] == {
        "name": "database",
        "required": True,
        "needs": ["configuration"],
        "status": "initializing",
        "ready": False,
        "since": 4.0,
        "reason": "attempt 2 is in progress",
        "note": None,
        "begun": 2.0,
        "becameReady": None,
        "waitedFor": "configuration",
        "attempts": [
            {
                "begun": 2.0,
                "ended": 3.0,
                "kind": "Trouble",
                "error": "Trouble: starting up",
            },
            {"begun": 4.0, "ended": None, "kind": None, "error": None},
        ],
        "attemptCount": 2,
        "nextAttempt": None,
        "losses": [],
        "lossCount": 0,
        "closed": None,
        "closeError": None,
    }
    program.ready("database")
    program.clock.advance(1)
    program.ready("cache")
    program.lose("database", Trouble("gone"))
    module = program.startup.reportModule("database")
    assert (module["status"], module["since"]) == ("lost", 5.5)
    assert (module["becameReady"], module["lossCount"]) == (4.5, 1)
    assert module["losses"][0]["lost"] == 5.5
    program.stop()
    assert program.startup.reportModule("database")["closed"] == 5.5
    with pytest.raises(KeyError):
        program.startup.reportModule("nonsense")


def test_a_reason_never_has_the_message_of_an_error(program: Program) -> None:
    """
    The reason why a module is not ready names types of errors alone.
    """

    def reason(name: str) -> str | None:
        return program.startup.reportModule(name)["reason"]

    secret = "password=swordfish"  # noqa: S105
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        program.add(name, required=False)
    program.add("all", names, required=False)
    program.start()
    assert reason("all") == "needs a, b, c and 2 more"
    program.fail("a", Trouble(secret))
    assert reason("a") == "attempt 1 failed (Trouble)"
    assert program.startup.reportModule("a")["nextAttempt"] == 1.0
    program.ready("b")
    assert reason("b") is None
    program.lose("b")
    assert reason("b") == "lost"
    program.ready("c")
    program.lose("c", Trouble(secret))
    assert reason("c") == "lost (Trouble)"
    program.fail("d", Refused(secret))
    assert reason("d") == "failed for good (Refused)"
    assert reason("all") == "needs d, which failed"
    program.stop()
    assert reason("a") == "closed"


def test_the_critical_path(program: Program) -> None:
    """
    The critical path is the chain of modules that decided when the program was ready.
    """
    program.add("configuration")
    program.add("database", ["configuration"])
    program.add("cache", ["configuration"])
    program.add("users", ["database", "cache"])
    program.add("statistics", required=False)
    program.start()
    for name in ("configuration", "database", "cache", "users", "statistics"):
        program.clock.advance(1)
        program.ready(name)
    report = program.startup.report()
    assert report["criticalPath"] == ["configuration", "cache", "users"]
    assert report["becameReady"] == 4.0
    program.lose("configuration")
    program.clock.advance(1)
    program.ready("configuration")
    # It is that of the start, whatever happens later.
    assert program.startup.report()["criticalPath"] == report["criticalPath"]
    program.stop()


def test_the_table_is_logged_once(program: Program) -> None:
    """
    The table of the start-up is logged when the program is ready first.
    """
    program.add("configuration")
    program.add("database", ["configuration"])
    program.add("cache", required=False)
    with logged() as events:
        program.start()
        program.clock.advance(2)
        program.ready("configuration")
        program.fail("database", Trouble())
        program.clock.advance(1)
        program.clock.advance(0.25)
        program.ready("database")
        program.ready("cache")
        program.lose("database")
        program.clock.advance(1)
        program.ready("database")
    (table,) = [text for text in textsOf(events) if "configuration" in text]
    assert table.splitlines() == [
        "Start-up: degraded, ready after 3.250 s",
        "  module         status          began    ready    took     attempts  "
        "waited for",
        "* configuration  ready           0.000 s  2.000 s  2.000 s  1",
        "* database       ready           2.000 s  3.250 s  1.250 s  2         "
        "configuration",
        "  cache          (initializing)  0.000 s  -        -        1",
        "* critical path: configuration → database",
    ]
    program.stop()


def test_a_table_can_be_made_during_the_start(program: Program) -> None:
    """
    Modules that are not ready have no time of readiness in the table.
    """
    program.add("configuration")
    program.add("database", ["configuration"])
    assert program.startup.elapsed == 0
    program.clock.advance(5)
    program.start()
    program.clock.advance(1)
    assert program.startup.elapsed == 1
    assert describe(program.startup.report()).splitlines() == [
        "starting",
        "  module         status        began    ready  took  attempts  waited for",
        "  configuration  initializing  0.000 s  -      -     1",
        "  database       waiting       -        -      -     0",
    ]
    program.stop()


def test_missing_lists_required_modules(program: Program) -> None:
    """
    missing() lists required modules that are not ready.
    """
    program.add("a")
    program.add("b", required=False)
    program.add("c", ["a"])
    assert program.startup.missing() == ["a", "c"]
    program.start()
    program.ready("a")
    assert program.startup.missing() == ["c"]
    program.stop()


def test_a_table_can_be_limited(clock: Clock) -> None:
    """
    A limited table keeps the critical path, unready and slow modules.
    """
    startup = Startup(clock)
    for number in range(60):
        delay = 60.0 if number == 59 else float(number % 7)
        needs = [str(number - 1)] if 0 < number < 30 else []
        startup.add(str(number), AsyncModule(clock, delay), needs=needs)
    startup.add("slow", AsyncModule(clock, 1000), required=False)
    startup.startService()
    clock.pump([1.0] * 120)
    lines = describe(startup.report(), 32).splitlines()
    assert len(lines) == 1 + 1 + 32 + 1 + 1
    assert lines[0] == "degraded, ready after 86.000 s"
    assert [line.split()[1] for line in lines[2:32]] == list(map(str, range(30)))
    assert [line.split()[0] for line in lines[32:34]] == ["59", "slow"]
    assert lines[34] == "  and 29 more"
    assert lines[35] == "* critical path: … → " + " → ".join(map(str, range(10, 30)))
    assert len(describe(startup.report()).splitlines()) == 1 + 1 + 61 + 1
    resultOf(startup.stopService())
    clock.advance(0)


# Replacements.


class Real:
    """
    What no test may make.
    """

    def __init__(self) -> None:
        raise AssertionError("the real one was made")

    def connect(self) -> None:
        """
        Become ready.
        """


def impossible() -> None:
    """
    What belongs to the real one.
    """
    raise AssertionError("the real one was used")


class Fake:
    """
    What stands for it.
    """

    def read(self) -> str:
        return "fake"


@pytest.mark.parametrize("real", [Real, partial(Real), impossible])
def test_a_replaced_module_is_never_made(clock: Clock, real: Any) -> None:
    """
    The factory of a replaced module is not called, and a fake without initialize() is
    ready at once.
    """
    startup = Startup(clock, replacements={"client": Fake()})
    wrapper = startup.add("client", real, initialize=impossible)
    users = Module()
    startup.add("users", users, needs=["client"], **OPTIONS)
    startup.startService()
    assert startup.reportModule("client")["status"] == "ready"
    assert wrapper.proxy.read() == "fake"
    assert len(users.attempts) == 1
    stopped = resultOf(startup.stopService())
    users.closings[0].callback(None)
    assert stopped.value is None


def test_a_fake_may_be_initialised(clock: Clock) -> None:
    """
    A fake with initialize() is initialised; methods named by strings are those of the
    fake.
    """
    fakes = {"a": Module(), "b": Module()}
    startup = Startup(clock, replacements=fakes)
    startup.add("a", Real, close=impossible)
    startup.add("b", Real, initialize="whenLost", whenLost=None)
    startup.startService()
    assert (len(fakes["a"].attempts), len(fakes["b"].attempts)) == (1, 0)
    assert len(fakes["b"].watches) == 1
    fakes["a"].attempts[0].callback(None)
    startup.stopService()
    assert len(fakes["a"].closings) == 1
    fakes["a"].closings[0].callback(None)
    fakes["b"].closings[0].callback(None)


def test_an_unused_replacement_is_refused(clock: Clock) -> None:
    """
    A replacement for a module that was never added is an error at the start.
    """
    startup = Startup(clock, replacements={"databse": Fake()})
    startup.add("database", Module())
    with pytest.raises(GraphError, match="'databse' is replaced, but was never added"):
        startup.startService()


def test_a_factory_makes_the_module(clock: Clock) -> None:
    """
    A factory is called once, and its module's methods can be named.
    """
    made: list[Client] = []

    class Client:
        def __init__(self) -> None:
            made.append(self)
            self.calls: list[str] = []

        def connect(self) -> None:
            self.calls.append("connect")

        def disconnect(self) -> Deferred[None]:
            self.calls.append("disconnect")
            return Deferred()

    startup = Startup(clock)
    wrapper = startup.add(
        "client", Client, initialize="connect", close="disconnect", closeTimeout=1
    )
    assert made == [wrapper.module]
    startup.startService()
    stopped = resultOf(startup.stopService())
    assert wrapper.module.calls == ["connect", "disconnect"]
    clock.advance(1)
    assert isinstance(stopped.error, ExceptionGroup)


def test_errors_name_the_module(program: Program) -> None:
    """
    Errors and log lines have the name of the module, not its type.
    """
    primary = program.add("primary", limit=0)
    program.add("secondary")
    program.start()
    assert str(resultOf(primary.proxy.read(1)).error) == (
        "0 calls are waiting for primary already"
    )
    with logged() as events:
        program.fail("secondary", Trouble("no"))
    assert textsOf(events) == [
        "secondary failed to initialize (attempt 1), next attempt in 1.0 s: Trouble: no"
    ]
    program.stop()


@implementer(IHasNote)
class Noted(AsyncModule):
    """
    A clock of which there is something to know.
    """

    said: str | None = "slow\nby an hour"

    def note(self) -> str | None:
        """
        Say it.
        """
        if self.said == "":
            raise Trouble("speechless")
        return self.said


def test_a_ready_module_may_have_a_note(clock: Clock) -> None:
    """
    The report shows the note of a ready module in one short line.
    """
    startup = Startup(clock)
    module = Noted(clock, 1.0)
    startup.add("clock", module)

    def note() -> str | None:
        return startup.reportModule("clock")["note"]

    startup.startService()
    assert note() is None
    clock.advance(1)
    assert note() == "slow by an hour"
    module.said = "x" * 1000
    assert note() == "x" * 200
    module.said = None
    assert note() is None
    module.said = ""
    assert note() is None
    startup.stopService()


def test_a_module_initialised_by_hand_does_not_time_out(program: Program) -> None:
    """
    The timeout does not begin for a module that is ready before its needs.
    """
    program.add("first")
    wrapper = program.add("second", needs=["first"], timeout=5)
    program.start()
    wrapper.initialize()
    program.ready("second")
    program.ready("first")
    assert program.startup.ready
    program.clock.advance(10)
    assert wrapper.state is State.READY
    program.stop()
