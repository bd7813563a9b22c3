"""
Startup: order of start, status, reports, failures and shutdown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from threading import get_ident
from types import SimpleNamespace
from typing import Any
from unittest.mock import (
    AsyncMock,
    MagicMock,
    Mock,
    NonCallableMock,
    create_autospec,
)

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.python import threadable
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

from . import operated
from .support import Module, Refused, Trouble, resultOf
from .websupport import errorsIn, logged, textsOf

OPTIONS: dict[str, Any] = {"fatal": Refused, "retryPolicy": lambda attempts: 1.0}


class Program(operated.Program):
    """
    A program that stops when a required module fails.
    """

    def __init__(self, clock: Clock, stayUp: bool = False) -> None:
        super().__init__(clock, stayUp)

    def add(self, name: str, *needs: str, **options: Any) -> QueuingWrapper[Module]:
        options.setdefault("retryPolicy", lambda attempts: 1.0)
        wrapper: QueuingWrapper[Module] = super().add(name, *needs, **options)
        return wrapper

    @property
    def initializing(self) -> set[str]:
        return {name for name, each in self.modules.items() if each.attempts}

    @property
    def closing(self) -> set[str]:
        return {name for name, each in self.modules.items() if each.closings}

    @property
    def statusOf(self) -> dict[str, str]:
        modules = self.startup.report()["modules"]
        return {each["name"]: each["status"] for each in modules}


@pytest.fixture
def program(clock: Clock) -> Iterator[Program]:
    """
    A program without modules, which is stopped at the end.
    """
    program = Program(clock)
    yield program
    program.stop()


# Starting.


def test_a_proxy_can_be_used_before_the_start(program: Program) -> None:
    """
    A call before the start is queued and carried out.
    """
    wrapper = program.add("database")
    assert program.startup.wrappers == {"database": wrapper}
    answer = resultOf(wrapper.proxy.read(1))
    assert program.startup.status is Status.NEW
    program.start()
    program.succeed("database")
    assert program.modules["database"].calls == [("read", 1)]
    program.modules["database"].answers[0].callback("one")
    assert answer.value == "one"


def test_a_module_starts_when_its_needs_are_ready(program: Program) -> None:
    """
    A module is initialised as soon as all modules that it needs are ready, and not
    before.
    """
    program.add("users", "database", "cache", "cache")
    program.add("database", "configuration")
    program.add("cache", "configuration", required=False)
    program.add("configuration")
    program.start()
    assert program.initializing == {"configuration"}
    assert program.startup.missing() == ["users", "database", "configuration"]
    program.succeed("configuration")
    assert program.initializing == {"configuration", "database", "cache"}
    program.succeed("cache")
    assert program.statusOf["users"] == "waiting"
    program.succeed("database")
    assert program.initializing == set(program.modules)
    assert program.startup.status is Status.STARTING
    program.succeed("users")
    assert program.startup.status is Status.READY


def test_a_program_without_modules_is_ready(program: Program) -> None:
    """
    A program without modules is ready at once.
    """
    program.start()
    assert program.startup.ready
    assert resultOf(program.startup.whenReady()).value is None


def test_a_module_may_be_initialised_by_hand_before(program: Program) -> None:
    """
    The start accepts modules that are ready already, and initialises failed ones again.
    """
    early = program.add("early", timeout=5)
    failed = program.add("failed")
    program.add("late", "early", "failed")
    early.initialize()
    program.succeed("early")
    resultOf(failed.initialize())
    program.fail("failed", Refused)
    assert program.startup.status is Status.NEW
    program.start()
    # The failed module is initialised again.
    assert program.startup.status is Status.STARTING
    program.succeed("failed", "late")
    assert program.startup.status is Status.READY
    # A module that is ready has no time limit.
    assert program.clock.getDelayedCalls() == []


def test_a_module_may_be_ready_at_once(program: Program) -> None:
    """
    Dependents of a module that is ready at once start at once, and once; they do not
    time out.
    """
    starts: list[str] = []
    for name, needs in (("a", []), ("b", ["a"])):
        start = partial(starts.append, name)
        program.startup.add(name, object(), needs=needs, timeout=5, initialize=start)
    program.add("c", "a", "b", timeout=5)
    program.start()
    assert starts == ["a", "b"]
    assert len(program.clock.getDelayedCalls()) == 1
    program.succeed("c")
    assert program.clock.getDelayedCalls() == []


def test_a_failure_before_the_start_counts_no_more(program: Program) -> None:
    """
    A module that failed before the start waits for its turn like any other, and has not
    failed until then.
    """
    program.add("configuration")
    database = program.add("database", "configuration")
    program.add("users", "database")
    database.fail(Refused("too early"))
    program.start()
    assert (program.startup.status, program.statuses) == (Status.STARTING, [])
    assert program.statusOf["users"] == "waiting"
    program.succeed("configuration", "database", "users")
    assert program.startup.status is Status.READY


def test_a_failure_before_the_start_counts_if_a_need_fails(program: Program) -> None:
    """
    A module that failed before the start counts as failed if its needs fail afterwards.
    """
    program.add("cache", required=False)
    warmer = program.add("warmer", "cache")
    program.add("users", "warmer", required=False)
    warmer.fail(Refused("too early"))
    program.start()
    assert program.startup.status is Status.STARTING
    program.fail("cache", Refused)
    assert (program.startup.status, program.statuses) == (Status.FAILED, [1])
    assert program.statusOf["users"] == "skipped"


@pytest.mark.parametrize("isBroken", [False, True])
def test_a_chain_may_have_thousands_of_modules(clock: Clock, isBroken: bool) -> None:
    """
    Starting, skipping and closing a long chain neither recurses nor blocks the reactor.
    """

    class Immediate:
        def initialize(self) -> None:
            if isBroken:
                raise Refused

    program = Program(clock)
    names = [str(number) for number in range(2_000)]
    for needed, name in zip([None, *names], names, strict=False):
        needs = [] if needed is None else [needed]
        program.startup.add(name, Immediate(), needs=needs, fatal=Refused)
    program.start()
    clock.pump([0.0] * len(names))
    statuses = set(list(program.statusOf.values())[1:])
    if isBroken:
        assert (statuses, program.statuses) == ({"skipped"}, [1])
    else:
        assert (statuses, program.statuses) == ({"ready"}, [])
        assert program.startup.report()["criticalPath"] == names
    program.stop()


# Errors before the start.


def test_an_impossible_graph_is_refused(clock: Clock) -> None:
    """
    An error in the needs is raised before any module is initialised.
    """
    program = Program(clock)
    program.add("users", "x")
    startup = program.startup
    for start in (startup.privilegedStartService, startup.startService, startup.check):
        with pytest.raises(GraphError, match="there is no module 'x'"):
            start()
    assert (program.initializing, startup.status) == (set(), Status.NEW)
    assert not startup.running


def test_a_name_is_used_once(program: Program) -> None:
    """
    Adding a second module with the same name is an error.
    """
    program.add("database")
    with pytest.raises(GraphError, match="two modules have the name 'database'"):
        program.startup.add("database", Module())


def test_a_program_is_started_once(program: Program) -> None:
    """
    Starting a program again is an error, even after a stop, and so is adding a module
    after the start.
    """
    program.start()
    with pytest.raises(RuntimeError, match="'late' was added after the start-up began"):
        program.startup.add("late", Module())
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()
    program.stop()
    with pytest.raises(RuntimeError, match="started only once"):
        program.startup.startService()


@pytest.mark.parametrize(
    ("interfere", "error"),
    [
        (lambda startup: startup.add("a", Module()), GraphError),
        (lambda startup: startup.startService(), RuntimeError),
        (lambda startup: 1 / 0, ZeroDivisionError),
    ],
)
def test_a_factory_may_interfere(
    interfere: Any, error: type[Exception], program: Program
) -> None:
    """
    If a factory raises, adds a module of the same name or begins the start-up, add()
    fails, and the program is consistent afterwards.
    """

    def factory() -> Module:
        interfere(program.startup)
        return Module()

    with pytest.raises(error):
        program.startup.add("a", factory)
    for name, wrapper in program.startup.wrappers.items():
        program.modules[name] = wrapper.module
    if program.startup.status is Status.NEW:
        program.start()
    assert program.startup.missing() == list(program.modules)
    program.succeed(*program.modules)
    assert program.startup.ready


@pytest.mark.parametrize(
    ("name", "options", "error", "about"),
    [
        *(
            (name, {}, ValueError, "must be printable, without spaces around it")
            for name in ("", " ", " a", "a\n", "a\0b", "\x1b[31mred")
        ),
        *(
            (
                "a",
                {option: value},
                TypeError,
                f"{option} must be {about}" if about else "unhashable",
            )
            for option in ("needs", "after", "restartWith")
            for value, about in (
                ("configuration", "a collection of names"),
                ([b"configuration"], "names"),
                ([["configuration"]], ""),
            )
        ),
        ("a", {"needs": None}, TypeError, "terable"),
        (1, {}, TypeError, "the name of a module must be a string, not 1"),
        ("a", {"timeout": "5"}, TypeError, "timeout must be seconds"),
        ("a", {"timeout": Decimal(5)}, TypeError, "timeout must be seconds"),
        ("a", {"timeout": -1}, ValueError, "timeout must be seconds >= 0"),
        ("a", {"queueTimeout": -1}, ValueError, "queueTimeout must be seconds >= 0"),
        ("a", {"name": "x"}, TypeError, "name"),
        ("a", {"nonsense": 1}, TypeError, "nonsense"),
        ("a", {"initialize": "nonsense"}, TypeError, "Module has no nonsense"),
        ("a", {"close": "version"}, TypeError, "must be callable"),
    ],
)
def test_an_invalid_argument_is_refused(
    name: Any,
    options: dict[str, Any],
    error: type[Exception],
    about: str,
    program: Program,
) -> None:
    """
    An invalid argument makes add() fail and add nothing.
    """
    with pytest.raises(error, match=about):
        program.startup.add(name, Module(), **options)
    assert dict(program.startup.wrappers) == {}


# Time limits and retries.


@pytest.mark.parametrize("fails", [False, True])
def test_the_timeout_begins_when_the_needs_are_ready(
    program: Program, fails: bool
) -> None:
    """
    The time limit of a module covers all its attempts, but not the time of its needs.
    At its end the attempt is cancelled and queued calls fail.
    """
    program.add("configuration")
    wrapper = program.add("database", "configuration", timeout=20, queueTimeout=None)
    call = resultOf(wrapper.proxy.read(1))
    program.start()
    program.clock.advance(60)
    program.succeed("configuration")
    program.clock.advance(10)
    message = "not ready within 20 s"
    if fails:
        program.fail("database", Trouble, "starting up")
        message += "; last error: Trouble: starting up"
    program.clock.advance(9.9)
    assert program.startup.status is Status.STARTING
    program.clock.advance(0.1)
    assert program.startup.status is Status.FAILED
    assert all(attempt.called for attempt in program.modules["database"].attempts)
    assert isinstance(call.error, InitializationFailed)
    error = call.error.__cause__
    assert isinstance(error, TimeoutError)
    assert str(error) == message
    assert isinstance(error.__cause__, Trouble) is fails


def test_the_timeout_ends_when_the_module_is_ready(program: Program) -> None:
    """
    After the module was ready once, a loss is retried without a time limit.
    """
    program.add("database", timeout=20)
    program.start()
    program.succeed("database")
    program.lose("database")
    program.clock.pump([1.0] * 100)
    assert program.statusOf["database"] == "initializing"
    assert program.startup.status is Status.UNREADY


def test_the_timeout_ends_if_the_first_attempt_takes_no_time(
    program: Program,
) -> None:
    """
    The time limit ends when the module is ready at once, even if an observer resets the
    module at once.
    """
    attempts: list[Deferred[None]] = [succeed(None), Deferred()]
    initialize = iter(attempts).__next__
    module = program.startup.add("database", object(), timeout=5, initialize=initialize)

    def resetOnce() -> None:
        if module.state is State.READY:
            module.removeObserver(resetOnce)
            module.reset(Trouble())

    module.addObserver(resetOnce)
    program.start()
    assert module.state is State.INITIALIZING
    attempts[1].callback(None)
    assert module.state is State.READY
    program.clock.advance(5)
    assert module.state is State.READY


@pytest.mark.parametrize("act", ["close", "fail"])
@pytest.mark.parametrize("early", [False, True])
def test_a_time_limit_ends_with_a_module(
    program: Program, act: str, early: bool
) -> None:
    """
    The time limit of a module ends if the module is closed or failed by hand, before
    its turn or during its attempts.
    """
    program.add("configuration")
    cache = program.add("cache", "configuration", required=False, timeout=20)
    program.start()
    if not early:
        program.succeed("configuration")
    if act == "close":
        resultOf(cache.close())
        for closing in program.modules["cache"].closings:
            closing.callback(None)
    else:
        cache.fail(Refused())
    if early:
        program.succeed("configuration")
    if act == "fail" and early:
        # The module has another chance when its turn comes.
        assert program.statusOf["cache"] == "initializing"
        program.succeed("cache")
    assert program.clock.getDelayedCalls() == []
    assert program.startup.ready


# Failures.


def test_a_failed_optional_module_degrades_the_program(program: Program) -> None:
    """
    The program stays ready, dependents of the failed module are skipped, and calls to
    them fail with the reason.
    """
    cache = program.add("cache", required=False)
    warmer = program.add("warmer", "cache", required=False)
    program.add("index", "warmer", required=False)
    program.add("database")
    waiting = resultOf(warmer.proxy.read(1))
    program.start()
    program.succeed("database")
    assert program.startup.status is Status.DEGRADED
    with logged() as events:
        program.fail("cache", Refused, "no")
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
        "cache: failed for good (Refused: no)",
        "warmer: skipped (needs cache, which failed)",
        "index: skipped (needs warmer, which failed)",
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
    The exit status is 1, and the log names the first module that failed.
    """
    program.add("database")
    program.add("clock")
    ready = resultOf(program.startup.whenReady())
    program.start()
    with logged() as events:
        program.fail("database", Refused, "password")
        program.fail("clock", Refused)
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
    # The line before has the reason.
    line = "database is required, and failed; stopping"
    assert textsOf([critical]) == [line]


@pytest.mark.parametrize("stayUp", [False, True])
def test_waiters_learn_what_was_true_at_the_failure(clock: Clock, stayUp: bool) -> None:
    """
    Every waiter gets the error of the failure, even if one of them initialises the
    failed module again, adds a module or stops the program.
    """
    program = Program(clock, stayUp=stayUp)
    database = program.add("database")
    others = []

    def recover(failure: Any) -> Any:
        resultOf(database.initialize())
        others.append(resultOf(program.startup.whenReady()))
        return failure

    def add(failure: Any) -> None:
        program.add("late")

    first = resultOf(program.startup.whenReady().addErrback(recover))
    second = resultOf(program.startup.whenReady().addErrback(add))
    third = resultOf(program.startup.whenReady())
    program.start()
    program.fail("database", Refused, "password")
    for result in (first, third):
        assert isinstance(result.error, StartupFailed)
        assert isinstance(result.error.__cause__, Refused)
    assert first.error is not third.error
    assert isinstance(second.error, RuntimeError)
    assert program.startup.status is Status.STARTING
    program.startup.whenReady().addCallback(lambda _: program.startup.stopService())
    program.succeed("database")
    assert others[0].value is None
    assert program.startup.status is Status.STOPPING
    program.stop()


def test_an_observer_may_wait_for_the_program(program: Program) -> None:
    """
    An observer may call whenReady() while it is notified of a failure, or of a new
    initialisation.
    """
    database = program.add("database")
    results: list[Any] = []
    program.startup.addObserver(
        lambda name: results.append(resultOf(program.startup.whenReady()))
    )
    program.start()
    program.fail("database", Refused)
    assert isinstance(results[-1].error, StartupFailed)
    failures = len(results)
    resultOf(database.initialize())
    assert results[failures].pending
    program.succeed("database")
    assert results[failures].value is None


def test_a_failed_module_may_be_initialised_by_its_own_waiter(program: Program) -> None:
    """
    A failed module that one of its waiters initialises again at once has not failed.
    """
    database = program.add("database")
    database.whenInitialized().addErrback(lambda failure: database.initialize())
    ready = resultOf(program.startup.whenReady())
    program.start()
    program.fail("database", Refused)
    assert (program.startup.status, program.statuses) == (Status.STARTING, [])
    program.succeed("database")
    assert ready.value is None


def test_stopProgram_may_raise(
    clock: Clock, loggedFailures: list[dict[str, Any]]
) -> None:
    """
    An error of the callable stopProgram is logged; waiters get the error of the module.
    """

    def stopProgram(status: int) -> None:
        raise Trouble(status)

    startup = Startup(clock, stopProgram=stopProgram)
    startup.add("a", Module(), **OPTIONS)
    waiting = resultOf(startup.whenReady())
    startup.startService()
    startup.wrappers["a"].module.attempts[0].errback(Refused())
    assert isinstance(waiting.error, StartupFailed)
    assert startup.status is Status.FAILED
    (failure,) = loggedFailures
    assert failure["log_failure"].check(Trouble)
    loggedFailures.clear()
    startup.stopService()
    startup.wrappers["a"].module.closings[0].callback(None)


@pytest.mark.parametrize(
    "act",
    [
        lambda startup: startup.startService(),
        lambda startup: startup.whenReady(),
        lambda startup: startup.pause("a"),
        lambda startup: startup.reset("a", Trouble()),
        lambda startup: startup.stopService(),
    ],
)
def test_another_thread_is_refused(
    program: Program, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    """
    A program cannot be started, observed or stopped from a thread other than the
    reactor's.
    """
    program.add("a")
    monkeypatch.setattr(threadable, "ioThread", get_ident())
    with ThreadPoolExecutor() as pool, pytest.raises(RuntimeError) as raised:
        pool.submit(act, program.startup).result()
    assert "callFromThread" in str(raised.value)
    assert program.startup.status is Status.NEW
    program.start()
    program.succeed("a")


def test_invalid_options_of_the_program_are_refused(clock: Clock) -> None:
    """
    An invalid option is reported when the program is made.
    """
    with pytest.raises(TypeError, match="stopProgram must be callable"):
        Startup(clock, stopProgram=1)  # type: ignore[arg-type]
    for invalid in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="concurrency must be at least 1"):
            Startup(clock, concurrency=invalid)  # type: ignore[arg-type]


def test_stayUp_keeps_a_failed_program_running(clock: Clock) -> None:
    """
    With stayUp a failed module can be initialised by hand, and its skipped dependents
    then start.
    """
    program = Program(clock, stayUp=True)
    wrapper = program.add("database")
    program.add("users", "database")
    program.start()
    with logged() as events:
        program.fail("database", Refused, "password")
    assert program.statuses == []
    assert textsOf(events)[-1].endswith("; staying up to report it")
    assert program.statusOf == {"database": "failed", "users": "skipped"}
    ready = resultOf(wrapper.initialize())
    assert program.startup.status is Status.FAILED
    program.succeed("database")
    assert ready.value is None
    # The skipped module starts now.
    assert program.statusOf == {"database": "ready", "users": "initializing"}
    assert program.startup.status is Status.STARTING
    assert program.startup.reportModule("users")["waitedFor"] == "database"
    program.succeed("users")
    assert program.startup.status is Status.READY


def test_a_need_of_a_required_module_is_required(program: Program) -> None:
    """
    If an optional module fails, a required module that needs it fails, too.
    """
    program.add("cache", required=False)
    program.add("users", "cache")
    program.start()
    program.fail("cache", Refused)
    assert program.statuses == [1]
    error = resultOf(program.startup.whenReady()).error
    assert str(error) == (
        "users is required, and failed: users needs cache, which failed"
    )


def test_a_module_closed_by_hand_counts_as_failed(program: Program) -> None:
    """
    Dependents of a closed module are skipped, and a closed required module stops the
    program.
    """
    wrapper = program.add("a")
    program.add("b", "a", required=False)
    program.start()
    resultOf(wrapper.close())
    assert program.statusOf == {"a": "closing", "b": "skipped"}
    assert program.startup.status is Status.FAILED
    assert program.statuses == [1]
    reason = program.startup.reportModule("a")["reason"]
    assert reason == "is being closed"
    error = resultOf(program.startup.whenReady()).error
    assert str(error) == "a is required, and failed: it was closed"


def test_a_module_initialised_by_hand_is_not_skipped(program: Program) -> None:
    """
    If a need of a module fails, an initialisation in progress continues.
    """
    program.add("cache", required=False)
    wrapper = program.add("warmer", "cache", required=False)
    program.start()
    wrapper.initialize()
    program.fail("cache", Refused)
    assert program.statusOf == {"cache": "failed", "warmer": "initializing"}
    program.succeed("warmer")
    assert program.statusOf["warmer"] == "ready"


# Losses.


def test_a_loss_makes_the_program_unready_until_it_recovers(program: Program) -> None:
    """
    Dependents of a lost module are not initialised again, and keep its proxy.
    """
    program.add("database")
    program.add("users", "database")
    program.start()
    program.succeed("database", "users")
    program.clock.advance(10)
    program.lose("database", "gone")
    assert program.startup.status is Status.UNREADY
    assert not program.startup.ready
    waiting = resultOf(program.startup.whenReady())
    assert program.statusOf == {"database": "lost", "users": "ready"}
    program.clock.advance(1)
    assert waiting.pending
    program.succeed("database")
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


# Stopping.


def test_modules_are_closed_in_reverse_order(program: Program) -> None:
    """
    A module is closed when its dependents are closed; independent modules are closed in
    parallel.
    """
    program.add("configuration")
    program.add("database", "configuration")
    program.add("cache", "configuration")
    program.add("users", "database", "cache")
    program.start()
    program.succeed("configuration", "database", "cache", "users")
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


@pytest.mark.parametrize("isValid", [True, False])
def test_a_program_that_was_never_started_is_closed_in_order(
    program: Program, isValid: bool
) -> None:
    """
    Modules that were initialised by hand are closed after their dependents, or in any
    order if their needs are invalid.
    """
    for name, needs in (("a", ""), ("b", "a"), ("c", "b" if isValid else "bx")):
        resultOf(program.add(name, *needs).initialize())
        program.succeed(name)
    stopped = resultOf(program.startup.stopService())
    assert program.closing == ({"c"} if isValid else {"a", "b", "c"})
    for name in "cba":
        program.modules[name].closings[0].callback(None)
    assert stopped.value is None


def test_an_unknown_replacement_does_not_change_the_order_of_closing(
    clock: Clock,
) -> None:
    """
    A program that cannot start because of an unknown replacement is still closed in
    order.
    """
    startup = Startup(clock, replacements={"typo": Module()})
    a, b = Module(), Module()
    for name, module, needs in (("a", a, []), ("b", b, ["a"])):
        resultOf(startup.add(name, module, needs=needs).initialize())
        module.attempts[0].callback(None)
    stopped = resultOf(startup.stopService())
    assert (len(a.closings), len(b.closings)) == (0, 1)
    for module in (b, a):
        module.closings[0].callback(None)
    assert stopped.value is None


def test_an_observer_may_stop_the_program_when_it_starts(program: Program) -> None:
    """
    stopService() in the first notification of an observer starts no module.
    """
    program.add("a")
    program.startup.addObserver(lambda name: program.startup.stopService())
    program.start()
    assert program.startup.status is Status.STOPPED
    assert program.initializing == set()


def test_an_error_of_closing_stops_no_other_module(program: Program) -> None:
    """
    Every module is closed within its time limit; every error is in the log, in the
    report and in the exception group.
    """
    for name, needs in (("a", ""), ("b", "a"), ("c", "b"), ("d", "c")):
        program.add(name, *needs, closeTimeout=5)
    program.start()
    program.succeed("a", "b", "c", "d")
    program.clock.advance(2)
    with logged() as events:
        stopped = resultOf(program.startup.stopService())
        program.modules["d"].closings[0].errback(Trouble("locked"))
        program.clock.advance(5)
        program.modules["b"].closings[0].callback(None)
        program.modules["a"].closings[0].errback(Trouble("full"))
    assert textsOf(errorsIn(events)) == [
        "d: failed to close (Trouble: locked)",
        "c: failed to close (TimeoutError: close() did not end within 5 s)",
        "a: failed to close (Trouble: full)",
    ]
    error = stopped.error
    assert isinstance(error, ExceptionGroup)
    assert list(map(str, error.exceptions)) == [
        "full",
        "close() did not end within 5 s",
        "locked",
    ]
    closings = {
        each["name"]: (each["closed"], each["closeError"])
        for each in program.startup.report()["modules"]
    }
    assert closings == {
        "a": (7.0, "Trouble: full"),
        "b": (7.0, None),
        "c": (7.0, "TimeoutError: close() did not end within 5 s"),
        "d": (2.0, "Trouble: locked"),
    }


def test_stopping_during_the_start(program: Program) -> None:
    """
    Stopping cancels attempts, ends queued calls and waiters with Closed, and starts no
    further module.
    """
    program.add("configuration")
    program.add("database", "configuration", timeout=20)
    users = program.add("users", "database")
    program.start()
    ready = resultOf(program.startup.whenReady())
    call = resultOf(users.proxy.read(1))
    program.succeed("configuration")
    program.stop()
    assert isinstance(ready.error, Closed)
    assert isinstance(call.error, Closed)
    assert program.modules["database"].attempts[0].called
    assert program.initializing == {"configuration", "database"}
    assert program.closing == {"configuration", "database"}
    assert program.statuses == []
    assert isinstance(resultOf(program.startup.whenReady()).error, Closed)


def test_stopping_cancels_the_timeouts(program: Program) -> None:
    """
    While the program is stopping, no module is started, and none times out.
    """
    slow = program.add("slow", timeout=5)
    user = program.add("user", "slow")
    program.add("waiting", "slow", timeout=5)
    program.start()
    resultOf(user.initialize())
    stopped = resultOf(program.startup.stopService())
    assert program.closing == {"user"}
    program.clock.advance(9)
    assert slow.state is State.INITIALIZING
    program.succeed("slow")
    program.modules["user"].closings[0].callback(None)
    assert program.closing == {"user", "slow"}
    program.modules["slow"].closings[0].callback(None)
    assert stopped.value is None


def test_stopping_twice(program: Program) -> None:
    """
    A second stop joins the first one; cancelling one Deferred does not affect the
    other.
    """
    program.add("a")
    program.start()
    program.succeed("a")
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
    After announceStop() the program is not ready, but its modules continue to work. A
    failure does not stop the program with status 1.
    """
    program.add("a")
    program.add("c")
    users = program.add("b", "a")
    program.start()
    ready = resultOf(program.startup.whenReady())
    call = resultOf(users.proxy.read(1))
    program.startup.announceStop()
    program.startup.announceStop()
    program.fail("c", Refused)
    assert program.startup.status is Status.STOPPING
    assert isinstance(ready.error, Closed)
    program.succeed("a")
    program.succeed("b")
    program.modules["b"].answers[0].callback("done")
    assert call.value == "done"
    assert not program.startup.ready
    assert (program.startup.status, program.statuses) == (Status.STOPPING, [])


def test_stopProgram_may_stop_the_program_at_once(clock: Clock) -> None:
    """
    The callable stopProgram may call stopService() itself.
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
    # It was waiting when the module failed.
    assert isinstance(waiting.error, StartupFailed)
    assert isinstance(resultOf(startup.whenReady()).error, Closed)
    module.closings[0].callback(None)
    other.closings[0].callback(None)
    assert stopped == [None]


def test_a_callback_of_whenReady_may_stop_the_program(program: Program) -> None:
    """
    A callback of whenReady() may call stopService().
    """
    program.add("a")
    program.startup.whenReady().addCallback(lambda _: program.startup.stopService())
    program.start()
    program.succeed("a")
    assert program.startup.status is Status.STOPPING


# Observers.


def test_observers_are_notified_of_every_change(program: Program) -> None:
    """
    An observer is notified once of each status of a module and of the program;
    registering it twice has no effect.
    """
    told: list[tuple[str, str]] = []

    def observe(name: str) -> None:
        status = program.statusOf[name] if name else program.startup.status.value
        told.append((name, status))

    program.add("a")
    program.startup.addObserver(observe)
    program.startup.addObserver(observe)
    program.start()
    program.succeed("a")
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


# Reports.


def test_the_report_has_the_history(program: Program) -> None:
    """
    The report has times, attempts, errors and losses of every module, as JSON.
    """
    program.add("configuration")
    program.add("database", "configuration", after=["cache"])
    program.add("cache", required=False, lazy=True)
    assert program.startup.report()["began"] is None
    assert program.statusOf["database"] == "new"
    reason = program.startup.reportModule("database")["reason"]
    assert reason == "not started"
    program.clock.advance(100)
    program.start()
    program.clock.advance(2)
    program.succeed("configuration")
    program.clock.advance(1)
    program.fail("database", Trouble, "starting up")
    program.clock.advance(1)
    program.clock.advance(0.5)
    report = program.startup.report()
    assert describe(report).startswith("starting\n")
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
        "after": ["cache"],
        "restartWith": [],
        "lazy": False,
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
        "paused": False,
        "pauses": [],
        "pauseCount": 0,
        "inProgress": 0,
        "closed": None,
        "closeError": None,
    }
    program.succeed("database")
    program.clock.advance(1)
    program.lose("database", "gone")
    module = program.startup.reportModule("database")
    assert (module["status"], module["since"]) == ("lost", 5.5)
    assert (module["becameReady"], module["lossCount"]) == (4.5, 1)
    assert module["losses"][0]["lost"] == 5.5
    program.stop()
    assert program.startup.reportModule("database")["closed"] == 5.5
    with pytest.raises(KeyError) as raised:
        program.startup.reportModule("databse")
    assert str(raised.value) == (
        "there is no module 'databse'; did you mean 'database'?"
    )


def test_a_reason_never_has_the_message_of_an_error(program: Program) -> None:
    """
    The reason why a module is not ready contains only types of errors, and no message.
    """

    def reason(name: str) -> str | None:
        return program.startup.reportModule(name)["reason"]

    for name in "abcde":
        program.add(name, required=False)
    program.add("all", *"abcde", required=False)
    program.start()
    assert reason("all") == "needs a, b, c and 2 more"
    program.fail("a", Trouble)
    assert reason("a") == "attempt 1 failed (Trouble)"
    assert program.startup.reportModule("a")["nextAttempt"] == 1.0
    program.succeed("b")
    assert reason("b") is None
    program.modules["b"].watches[0].callback(None)
    assert reason("b") == "lost"
    program.succeed("c")
    program.lose("c")
    assert reason("c") == "lost (Trouble)"
    program.fail("d", Refused)
    assert reason("d") == "failed for good (Refused)"
    assert reason("all") == "needs d, which failed"
    program.clock.advance(1)
    assert reason("c") == "attempt 2 is in progress"
    program.stop()
    assert reason("a") == "closed"


def test_the_critical_path(program: Program) -> None:
    """
    The critical path is the chain of modules that decided when the program was ready.
    """
    program.add("configuration")
    program.add("database", "configuration")
    program.add("cache", "configuration")
    program.add("users", "database", "cache")
    program.add("statistics", required=False)
    program.start()
    for name in ("configuration", "database", "cache", "users", "statistics"):
        program.clock.advance(1)
        program.succeed(name)
    report = program.startup.report()
    assert report["criticalPath"] == ["configuration", "cache", "users"]
    assert report["becameReady"] == 4.0
    program.lose("configuration")
    program.clock.advance(1)
    program.succeed("configuration")
    # Later losses do not change the path of the start.
    assert program.startup.report()["criticalPath"] == report["criticalPath"]


def test_the_table_is_logged_once(program: Program) -> None:
    """
    The table of the start-up is logged when the program is ready for the first time.
    """
    program.add("configuration")
    program.add("database", "configuration")
    program.add("cache", required=False)
    with logged() as events:
        program.start()
        program.clock.advance(2)
        program.succeed("configuration")
        program.fail("database")
        program.clock.advance(1)
        program.clock.advance(0.25)
        program.succeed("database")
        program.lose("database")
        program.clock.advance(1)
        program.succeed("database")
    (table,) = [text for text in textsOf(events) if "module" in text]
    assert table == (
        """\
Start-up: degraded, ready after 3.250 s
  module         status          began    ready    took     attempts  waited for
* configuration  ready           0.000 s  2.000 s  2.000 s  1
* database       ready           2.000 s  3.250 s  1.250 s  2         configuration
  cache          (initializing)  0.000 s  -        -        1
* critical path: configuration → database"""
    )


def test_a_table_can_be_limited(clock: Clock) -> None:
    """
    A limited table keeps the critical path, and modules that are not ready or slow.
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


def impossible() -> None:
    """
    A factory or method that must not be called.
    """
    raise AssertionError("the replaced module was used")


class Fake:
    """
    A fake that needs no initialisation.
    """

    def read(self) -> str:
        return "fake"


def test_a_replaced_module_is_never_made(clock: Clock) -> None:
    """
    The factory of a replaced module is not called, and a fake without initialize() is
    ready at once.
    """
    startup = Startup(clock, replacements={"client": Fake()})
    wrapper: QueuingWrapper[Any] = startup.add(
        "client", impossible, initialize=impossible
    )
    startup.startService()
    assert startup.reportModule("client")["status"] == "ready"
    assert wrapper.proxy.read() == "fake"
    startup.stopService()


def test_a_fake_may_be_initialised(clock: Clock) -> None:
    """
    A fake with initialize() is initialised. If methods are named by strings, the fake's
    methods are used.
    """
    fakes = {"a": Module(), "b": Module()}
    startup = Startup(clock, replacements=fakes)
    startup.add("a", impossible, close=impossible)
    startup.add("b", impossible, initialize="whenLost", whenLost=None)
    startup.startService()
    assert (len(fakes["a"].attempts), len(fakes["b"].attempts)) == (1, 0)
    assert len(fakes["b"].watches) == 1
    fakes["a"].attempts[0].callback(None)
    startup.stopService()
    for fake in fakes.values():
        fake.closings[0].callback(None)


class Reader:
    """
    A real module, as the specification of mocks.
    """

    def initialize(self) -> Deferred[None]:
        raise AssertionError

    def whenLost(self) -> Deferred[None]:
        raise AssertionError

    def close(self) -> Deferred[None]:
        raise AssertionError

    def ping(self) -> Deferred[None]:
        raise AssertionError

    def read(self) -> str:
        raise AssertionError


class AsyncReader:
    """
    The same with coroutines.
    """

    async def initialize(self) -> None:
        raise AssertionError

    async def whenLost(self) -> None:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


class Inventive:
    """
    A fake that creates attributes on demand.
    """

    def __getattr__(self, name: str) -> str:
        return name


MOCKS: dict[str, Callable[[], Any]] = {
    "Mock": Mock,
    "MagicMock": MagicMock,
    "AsyncMock": AsyncMock,
    "NonCallableMock": NonCallableMock,
    "Mock with spec": lambda: Mock(spec=Reader),
    "autospec": lambda: create_autospec(Reader),
    "autospec of coroutines": lambda: create_autospec(AsyncReader, instance=True),
}

FAKES: dict[str, Callable[[], Any]] = {
    "object": object,
    "SimpleNamespace": SimpleNamespace,
    "SimpleNamespace with values": lambda: SimpleNamespace(initialize=None, connect=1),
    "SimpleNamespace with mocks": lambda: SimpleNamespace(
        initialize=Mock(), whenLost=Mock(), close=AsyncMock()
    ),
    "list": list,
    "Inventive": Inventive,
}


@pytest.mark.parametrize("kind", [*MOCKS, *FAKES])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "initialize": "connect",
            "close": "shutdown",
            "whenLost": "disconnected",
            "ping": "ping",
            "whenIdle": "idle",
            "replay": ["read", "write"],
        },
        {"initialize": impossible, "close": impossible, "whenLost": impossible},
    ],
)
def test_any_replacement_is_ready_at_once(
    clock: Clock, kind: str, options: dict[str, Any]
) -> None:
    """
    A mock, and any fake that lacks the methods of the options, is ready at once, and
    never lost.
    """
    fake = (MOCKS | FAKES)[kind]()
    startup = Startup(clock, replacements={"client": fake})
    startup.add("client", impossible, **options)
    startup.startService()
    assert startup.status is Status.READY
    clock.advance(1)
    assert startup.reportModule("client")["lossCount"] == 0
    assert resultOf(startup.stopService()).value is None


@pytest.mark.parametrize("option", [{}, {"initialize": "connect"}])
def test_a_real_method_of_a_replacement_is_used(
    clock: Clock, option: dict[str, Any]
) -> None:
    """
    A fake is initialised by its own initialize(), even if the options name another
    method, and even if it is a method of a mock that returns a Deferred.
    """
    module = Module()
    real = SimpleNamespace(initialize=module.initialize, whenLost=module.whenLost)
    mocked, child = Mock(), Mock()
    mocked.initialize = module.initialize
    mocked.connect = module.initialize
    mocked.whenLost.side_effect = module.whenLost
    child.initialize.side_effect = module.initialize
    child.connect.side_effect = module.initialize
    child.whenLost.side_effect = module.whenLost
    fakes = {"real": real, "mocked": mocked, "child": child}
    startup = Startup(clock, replacements=fakes)
    for name in fakes:
        startup.add(name, impossible, **option, **OPTIONS)
    startup.startService()
    assert startup.missing() == list(fakes)
    for attempt in module.attempts:
        attempt.callback(None)
    assert startup.ready
    for watch in list(module.watches):
        watch.callback(None)
    assert startup.missing() == list(fakes)
    startup.stopService()


def test_an_unused_replacement_is_refused(clock: Clock) -> None:
    """
    A replacement for an unknown module is an error at the start.
    """
    startup = Startup(clock, replacements={"databse": Fake()})
    startup.add("database", Module())
    with pytest.raises(GraphError, match="'databse' is replaced, but was never added"):
        startup.startService()


@pytest.mark.parametrize("factory", [Module, partial(Module)])
def test_a_factory_makes_the_module(clock: Clock, factory: Any) -> None:
    """
    A factory is called once. Options may name the methods of its module.
    """
    startup = Startup(clock)
    options: Any = {"initialize": "whenLost", "whenLost": None, "close": "initialize"}
    wrapper = startup.add("client", factory, closeTimeout=1, **options)
    module: Module = wrapper.module
    startup.startService()
    assert (len(module.watches), len(module.attempts)) == (1, 0)
    startup.stopService()
    assert (len(module.closings), len(module.attempts)) == (0, 1)
    module.attempts[0].callback(None)


def test_errors_name_the_module(program: Program) -> None:
    """
    Errors and log lines have the name of the module, not its type.
    """
    primary = program.add("primary", limit=0)
    program.add("secondary")
    program.start()
    assert str(resultOf(primary.proxy.read(1)).error) == (
        "the queue of primary is full (limit 0)"
    )
    with logged() as events:
        program.fail("secondary", Trouble, "no")
    assert textsOf(events) == [
        "secondary: attempt 1 failed (Trouble: no); retry in 1.0 s"
    ]


@implementer(IHasNote)
class Noted:
    """
    A module with a note.
    """

    text: str | None = "slow\nby an hour"

    def initialize(self) -> None:
        pass

    def note(self) -> str | None:
        if self.text == "":
            raise Trouble
        return self.text


def test_a_ready_module_may_have_a_note(clock: Clock) -> None:
    """
    The report shows the note of a ready module in one short line.
    """
    startup = Startup(clock)
    module = Noted()
    startup.add("clock", module)

    def note() -> str | None:
        return startup.reportModule("clock")["note"]

    assert note() is None
    startup.startService()
    notes = [("slow\nby an hour", "slow by an hour"), ("x" * 1000, "x" * 200)]
    for module.text, expected in [*notes, (None, None), ("", None)]:
        assert note() == expected
    startup.stopService()
