"""
Many modules become one program: started as their needs allow, watched, reported
on, and closed in the opposite order.
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
from tsrv.startup import (
    GraphError,
    Skipped,
    Status,
    describe,
)

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


def test_the_wrapper_is_there_before_anything_has_started(program: Program) -> None:
    """
    Proxies can be handed out while the program is put together, and what is
    called through them is held.
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


def test_modules_that_do_not_need_each_other_start_together(clock: Clock) -> None:
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


def test_a_module_starts_when_all_that_it_needs_is_ready(program: Program) -> None:
    """
    Not before, and not later than that either.
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


def test_what_needs_a_module_twice_needs_it_once(program: Program) -> None:
    """
    A name that stands twice in a list is waited for once.
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
    There is nothing to wait for.
    """
    program.start()
    assert program.startup.ready
    assert resultOf(program.startup.whenReady()).value is None
    program.stop()


def test_a_need_that_is_lost_again_is_waited_for(program: Program) -> None:
    """
    What needs two modules starts when both are ready, and not when each of them
    has been.
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


def test_a_module_that_was_initialised_before(program: Program) -> None:
    """
    Who initialises a module by hand does not confuse what depends on it.
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


def test_a_module_that_is_ready_at_once(clock: Clock) -> None:
    """
    What needs it starts in the same moment, and once.
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
def test_a_long_chain_of_modules(clock: Clock, size: int) -> None:
    """
    However many modules follow from one event, neither the stack nor the
    reactor has to bear them all at once; and so for skipping and closing.
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
def test_a_graph_that_cannot_be_is_an_error_before_the_start(
    program: Program, needs: dict[str, list[str]], message: str
) -> None:
    """
    No module has been touched when the mistake is told; it can be closed.
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
    Of two modules of one name, nobody would know which one is meant.
    """
    program.add("database")
    with pytest.raises(GraphError) as raised:
        program.startup.add("database", Module())
    assert str(raised.value) == "two modules have the name 'database'"
    assert raised.value.path == ("database",)


def test_nothing_is_added_after_the_start(program: Program) -> None:
    """
    It would never be started.
    """
    program.start()
    with pytest.raises(RuntimeError, match="'late' was added after the start-up began"):
        program.add("late")
    program.stop()


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\0b", "\x1b[31mred"])
def test_a_name_is_something_that_can_be_shown(program: Program, name: str) -> None:
    """
    Names go into logs and pages.
    """
    with pytest.raises(ValueError, match="is not a name for a module"):
        program.add(name)


def test_needs_are_names(program: Program) -> None:
    """
    A string in place of a list would be taken for a list of letters.
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
def test_an_option_that_is_none_is_refused(
    clock: Clock, options: dict[str, Any], error: type[Exception], about: str
) -> None:
    """
    A mistake in the options is found where it was made, and leaves nothing
    half added.
    """
    startup = Startup(clock)
    with pytest.raises(error, match=about):
        startup.add("a", Module(), **options)
    assert dict(startup.wrappers) == {}


def test_a_program_is_started_once(program: Program) -> None:
    """
    Its modules are closed for good, so it says so instead of hanging.
    """
    program.start()
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()
    program.stop()
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()


# Time limits and retries.


def test_a_module_is_retried_as_its_wrapper_says(program: Program) -> None:
    """
    A failure that passes delays the program, and that is all.
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


def test_the_time_limit_begins_when_the_needs_are_met(program: Program) -> None:
    """
    A module is not blamed for what it had to wait for.
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


def test_a_module_that_never_answers_runs_out_of_time(program: Program) -> None:
    """
    The attempt is given up, and the reason is the time alone.
    """
    wrapper = program.add("database", timeout=20)
    answer = resultOf(wrapper.proxy.read(1))
    program.start()
    program.clock.advance(20)
    assert program.modules["database"].attempts[0].called
    assert isinstance(answer.error, InitializationFailed)
    assert str(answer.error.__cause__) == "not ready within 20 seconds"
    program.stop()


def test_the_time_limit_ends_with_readiness(program: Program) -> None:
    """
    What was ready in time and is lost later has no time limit: its wrapper
    retries.
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


def test_an_optional_module_that_failed_leaves_the_program_degraded(
    program: Program,
) -> None:
    """
    The program does what it can, what needs the module is skipped, and who
    calls that is told at once, and why.
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


def test_a_required_module_that_failed_takes_the_program_down(
    program: Program,
) -> None:
    """
    The program ends with exit status 1, and the log names the module.
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


def test_the_program_ends_once(program: Program) -> None:
    """
    What fails while the program goes down is told, but is not another end.
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


def test_a_program_that_is_told_to_stays_up(clock: Clock) -> None:
    """
    It can be asked then what is wrong, and mended by hand.
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


def test_what_was_skipped_may_fail_by_itself(clock: Clock) -> None:
    """
    Then that is the reason, and not any more what it once needed.
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


def test_a_required_module_cannot_do_without_an_optional_one_it_needs(
    program: Program,
) -> None:
    """
    Who needs something that is optional makes it as required as itself.
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


def test_a_module_that_is_closed_by_hand_is_gone(program: Program) -> None:
    """
    It will not come back; what has not begun because of it never will.
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


def test_a_skipped_module_that_somebody_initialised(program: Program) -> None:
    """
    What is being initialised already is not stopped because of what it needs.
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


def test_a_loss_makes_the_program_unready_until_it_has_healed(
    program: Program,
) -> None:
    """
    What depends on the lost module is not restarted: it goes on with the same
    proxy.
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
    And its return makes the program whole again.
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


def test_a_required_module_that_is_lost_for_good(program: Program) -> None:
    """
    When nobody tries any more, the program has failed, however long it ran.
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
    A module is closed when nothing is left that needs it, and those that have
    nothing to do with each other are closed at the same time.
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


def test_a_close_that_fails_or_hangs_does_not_keep_the_others(
    program: Program,
) -> None:
    """
    Every module is closed, within the time limit of each, and every error is
    reported: in the log, to who waits, and in the report.
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
    What is in progress is given up, what has begun is closed, what has not
    begun never does, and who waits is told.
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


def test_stopping_while_a_module_is_retried(program: Program) -> None:
    """
    No timer is left.
    """
    program.add("database", timeout=20)
    program.start()
    program.fail("database", Trouble())
    program.stop()
    assert program.closing == {"database"}


def test_no_time_limit_ends_while_stopping(program: Program) -> None:
    """
    A module that is going to be closed cannot be late any more.
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
    What was called through the proxies ends, and no module is touched.
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
    A second stop joins the first; who gives up waiting disturbs nobody.
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


def test_a_stop_is_announced(program: Program) -> None:
    """
    Who asks is told not to come any more, while what has been begun is still
    brought to its end.
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


def test_what_fails_after_the_announcement_is_no_other_end(program: Program) -> None:
    """
    The program is stopping already, with the status that is right for that.
    """
    program.add("a")
    program.start()
    program.startup.announceStop()
    program.fail("a", Refused())
    assert program.statuses == []
    assert program.startup.status is Status.STOPPING
    program.stop()


def test_stopping_at_once_when_a_required_module_fails(clock: Clock) -> None:
    """
    Who ends the program may do so then and there.
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


def test_stopping_when_ready(program: Program) -> None:
    """
    A program that has only been waited for may be stopped from there.
    """
    program.add("a")
    program.startup.whenReady().addCallback(lambda _: program.startup.stopService())
    program.start()
    program.ready("a")
    assert program.startup.status is Status.STOPPING
    program.stop()


# Who waits and who watches.


def test_who_waits_may_give_up(program: Program) -> None:
    """
    Nobody else notices.
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


def test_observers(program: Program) -> None:
    """
    Who shows what goes on need not ask all the time.
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


def test_an_observer_that_fails(
    program: Program, loggedFailures: list[LogEvent]
) -> None:
    """
    It is logged, and nothing else comes of it.
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


def test_the_report(program: Program) -> None:
    """
    It tells what has been: when each module began, was tried, became ready and
    was lost, and what it waited for.
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


def test_every_reason(program: Program) -> None:
    """
    Whatever keeps a module from being ready is said in a few words, and never
    in those of an error, which may tell too much.
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
    It is the chain that decided how long the whole took, and nothing optional
    is in it that nothing required waited for.
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
    Whoever reads the log sees how the start went, and what it waited for.
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


def test_a_table_before_the_end(program: Program) -> None:
    """
    Who asks while the start goes on sees how far it is.
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


def test_what_is_missing(program: Program) -> None:
    """
    Only what the program cannot do without is missing.
    """
    program.add("a")
    program.add("b", required=False)
    program.add("c", ["a"])
    assert program.startup.missing() == ["a", "c"]
    program.start()
    program.ready("a")
    assert program.startup.missing() == ["c"]
    program.stop()


def test_a_table_of_many_modules_is_short(clock: Clock) -> None:
    """
    A log is not the place for ten thousand lines: those that matter come
    first.
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
    A test has a fake in place of what would need a network, and nothing else
    of the program is different. A fake need not be initialised.
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


def test_a_fake_that_has_something_to_initialise(clock: Clock) -> None:
    """
    It is treated as the module that it is; and where the real one's methods
    were named, so are its own.
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


def test_a_replacement_for_nothing(clock: Clock) -> None:
    """
    A misspelt name in a test would let the real module run.
    """
    startup = Startup(clock, replacements={"databse": Fake()})
    startup.add("database", Module())
    with pytest.raises(GraphError, match="'databse' is replaced, but was never added"):
        startup.startService()


def test_what_makes_a_module(clock: Clock) -> None:
    """
    A class or a function in place of a module is called, once, and its methods
    can be named.
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


def test_errors_of_modules_name_them(program: Program) -> None:
    """
    Of two modules of one type, the log and the errors say which one is meant.
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


def test_a_module_may_have_something_to_say_although_it_is_ready(clock: Clock) -> None:
    """
    Who looks at the report learns that what works is not as it should be.
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


def test_what_is_ready_already_is_not_overdue(program: Program) -> None:
    """
    Who has initialised a module by hand, before those that it needs were ready,
    has it ready when its time begins.
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
