"""
Startup: modules that start after others, restart with them, wait for a free slot, or
are initialised by their first call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from tsrv import (
    Closed,
    IllegalTransition,
    InitializationFailed,
    OutcomeUnknown,
    Startup,
    StartupFailed,
    State,
)
from tsrv.asyncmodule import ISettlesCalls
from tsrv.startup import GraphError, Skipped, Status, UnknownModule

from . import operated
from .support import Module, Refused, Trouble, resultOf
from .websupport import logged, textsOf


class Program(operated.Program):
    """
    A program that stays up, with modules that are retried after a second.
    """

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(clock)
        self.startup = Startup(
            clock, stayUp=True, stopProgram=self.statuses.append, **options
        )

    def add(self, name: str, *needs: str, **options: Any) -> Any:
        options.setdefault("retryPolicy", lambda attempts: 1.0)
        return super().add(name, *needs, **options)

    def reason(self, name: str) -> str | None:
        return self.startup.reportModule(name)["reason"]

    def status(self, name: str) -> str:
        return self.startup.reportModule(name)["status"]

    def attempts(self, name: str) -> int:
        return len(self.modules[name].attempts)

    def closings(self, name: str) -> int:
        return len(self.modules[name].closings)

    def close(self, name: str) -> None:
        self.modules[name].closings[-1].callback(None)

    def reset(self, name: str) -> None:
        self.startup.reset(name, Trouble())


@pytest.fixture
def program(clock: Clock) -> Iterator[Program]:
    """
    A program without modules, which is stopped at the end.
    """
    program = Program(clock)
    yield program
    program.stop()


# after


def test_a_module_starts_after_another(program: Program) -> None:
    """
    A module is initialised when the modules that it starts after are ready, and closed
    before them.
    """
    program.add("tracing", required=False)
    program.add("users", "database", after=["database", "tracing"])
    program.add("database")
    program.start()
    program.succeed("database")
    assert program.attempts("users") == 0
    assert program.status("users") == "waiting"
    assert program.reason("users") == "starts after tracing"
    program.clock.advance(2)
    program.succeed("tracing")
    program.succeed("users")
    assert program.startup.report()["criticalPath"] == ["tracing", "users"]
    entry = program.startup.reportModule("users")
    assert (entry["after"], entry["waitedFor"]) == (["database", "tracing"], "tracing")
    stopped = resultOf(program.startup.stopService())
    assert (program.closings("tracing"), program.closings("users")) == (0, 1)
    program.close("users")
    program.close("tracing")
    program.close("database")
    assert stopped.value is None


@pytest.mark.parametrize("end", ["failed", "skipped", "closed", "lazy"])
def test_a_module_starts_without_another(program: Program, end: str) -> None:
    """
    A module starts also if the module that it starts after has failed, was skipped or
    closed. It does not wait for a lazy one.
    """
    program.add("configuration", required=False)
    tracing = program.add(
        "tracing",
        *(["configuration"] if end == "skipped" else []),
        required=False,
        lazy=end == "lazy",
    )
    program.add("users", after=["tracing"])
    program.start()
    if end == "failed":
        assert program.attempts("users") == 0
        program.fail("tracing")
        program.clock.advance(1)
        assert program.attempts("users") == 0
        program.fail("tracing", Refused)
    elif end == "skipped":
        program.fail("configuration", Refused)
        assert program.status("tracing") == "skipped"
    elif end == "closed":
        resultOf(tracing.close())
    assert program.attempts("users") == 1
    program.succeed("users")
    assert program.startup.status is Status.DEGRADED


def test_a_module_waits_for_one_that_was_lost(program: Program) -> None:
    """
    If a module is lost before the modules after it have started, they wait for its
    recovery.
    """
    program.add("a")
    program.add("b")
    program.add("c", after=["a", "b"])
    program.start()
    program.succeed("a")
    program.lose("a")
    program.succeed("b")
    assert program.attempts("c") == 0
    program.clock.advance(1)
    program.succeed("a")
    assert program.attempts("c") == 1
    program.lose("a")
    program.succeed("c")


def test_unknown_names_are_logged_once(clock: Clock) -> None:
    """
    Names of unknown modules are allowed in C{after}, and logged in one line.
    """
    program = Program(clock)
    program.add("users", after=["databse", "tracing"])
    program.add("visitors", after=["tracing", "users"])
    program.add("database")
    with logged() as events:
        program.startup.privilegedStartService()
        program.start()
    assert textsOf(events) == [
        "Unknown names in after=: users → databse (did you mean 'database'?); "
        "users → tracing; visitors → tracing"
    ]
    program.stop()


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        (
            [{"after": "b"}, {"after": "c"}, {"after": "a"}],
            "modules wait for each other: a → b → c → a",
        ),
        (
            [{"needs": "b"}, {"after": "c"}, {"restartWith": "a"}],
            "modules wait for each other: a → b → c → a",
        ),
        (
            [{"needs": "b"}, {"restartWith": "a"}, {}],
            "modules need each other: a → b → a",
        ),
        ([{"after": "a"}, {}, {}], "modules wait for each other: a → a"),
        (
            [{"restartWith": "d"}, {}, {}],
            "a → d: there is no module 'd'",
        ),
    ],
)
def test_a_circle_of_relations_is_refused(
    clock: Clock, relations: list[dict[str, str]], message: str
) -> None:
    """
    A cycle of modules that wait for each other in any way is an error before the start.
    """
    startup = Startup(clock)
    for name, each in zip("abc", relations, strict=True):
        options: Any = {option: [other] for option, other in each.items()}
        startup.add(name, Module(), **options)
    with pytest.raises(GraphError) as raised:
        startup.startService()
    assert str(raised.value) == message


# restartWith


def started(program: Program) -> tuple[Any, Any]:
    """
    Start a database and a module that restarts with it.

    @return: Their wrappers.
    """
    database = program.add("database")
    listener = program.add("listener", restartWith=["database"])
    program.start()
    program.succeed("database", "listener")
    return database, listener


def restart(program: Program, *names: str) -> None:
    """
    Let modules that were reset close, and become ready again.
    """
    for name in names:
        program.close(name)
        program.succeed(name)


@pytest.mark.parametrize("isReset", [False, True])
def test_a_module_restarts_with_another(program: Program, isReset: bool) -> None:
    """
    After a loss or a reset, the calls of a module that restarts with the lost one are
    held until the lost module has recovered and this one was closed and initialised
    again.
    """
    _, listener = started(program)
    entry = program.startup.reportModule("listener")
    assert (entry["needs"], entry["restartWith"]) == (["database"], ["database"])
    if isReset:
        program.reset("database")
    else:
        program.lose("database")
    assert listener.state is State.PAUSED
    call = resultOf(listener.proxy.read(1))
    entry = program.startup.reportModule("listener")
    assert (entry["status"], entry["paused"]) == ("paused", True)
    assert entry["reason"] == "restarts when database is ready again"
    assert program.startup.missing() == ["database", "listener"]
    if isReset:
        program.close("database")
    program.clock.advance(1)
    assert (program.attempts("database"), program.closings("listener")) == (2, 0)
    with logged() as events:
        program.succeed("database")
    assert (program.closings("listener"), program.attempts("listener")) == (1, 1)
    assert textsOf(events)[1:2] == ["listener: restarting (database has recovered)"]
    program.close("listener")
    assert program.attempts("listener") == 2
    assert program.modules["listener"].calls == []
    program.succeed("listener")
    assert program.modules["listener"].calls == [("read", 1)]
    program.modules["listener"].answers[0].callback("one")
    assert call.value == "one"
    entry = program.startup.reportModule("listener")
    assert (entry["status"], entry["pauseCount"]) == ("ready", 1)
    assert [each["kind"] for each in entry["losses"]] == ["Restarted"]
    assert program.startup.status is Status.READY


def test_calls_in_progress_at_a_restart_end(program: Program) -> None:
    """
    A call in progress may end while its module is held; at the restart it ends with
    OutcomeUnknown.
    """
    _, listener = started(program)
    first, second = (resultOf(listener.proxy.write(number)) for number in range(2))
    program.lose("database")
    program.modules["listener"].answers[0].callback("written")
    assert first.value == "written"
    program.clock.advance(1)
    assert second.pending
    program.succeed("database")
    program.clock.advance(0)
    assert isinstance(second.error, OutcomeUnknown)
    restart(program, "listener")


@pytest.mark.parametrize("settles", [None, False, True])
def test_a_module_may_settle_its_calls_itself(clock: Clock, settles: Any) -> None:
    """
    Calls of a module that restarts with another one are tracked, unless the module
    settles them.
    """

    class Plain:
        def initialize(self) -> None:
            pass

        def read(self) -> Deferred[None]:
            return Deferred()

    @implementer(ISettlesCalls)
    class Settling(Plain):
        pass

    startup = Startup(clock)
    startup.add("database", Plain())
    startup.add("plain", Plain())
    options: Any = {} if settles is None else {"settles": settles}
    for kind in (Plain, Settling):
        startup.add(kind.__name__, kind(), restartWith=["database"], **options)
    startup.startService()
    for each in startup.wrappers.values():
        resultOf(each.proxy.read())
    counts = [each["inProgress"] for each in startup.report()["modules"]]
    assert counts == [0, 0, settles is not True, settles is False]
    resultOf(startup.stopService())
    clock.advance(0)


def test_restarts_are_transitive(program: Program) -> None:
    """
    Restarts are transitive: a module that restarts with a restarted one is held from
    the first loss, and restarted after it.
    """
    program.add("d", restartWith=["b", "c"])
    program.add("c", restartWith=["a", "b"])
    program.add("b", restartWith=["a"])
    program.add("a")
    program.add("other", "a")
    program.start()
    program.succeed("a", "b", "c", "d", "other")
    program.lose("a")
    for name in "bcd":
        assert program.status(name) == "paused"
    assert program.reason("d") == "restarts when c, b are ready again"
    assert program.status("other") == "ready"
    program.clock.advance(1)
    program.succeed("a")
    assert [program.closings(name) for name in "bcd"] == [1, 0, 0]
    restart(program, "b")
    assert [program.closings(name) for name in "bcd"] == [1, 1, 0]
    restart(program, "c")
    assert [program.closings(name) for name in "bcd"] == [1, 1, 1]
    restart(program, "d")
    assert program.startup.status is Status.READY
    assert [program.attempts(name) for name in "abcd"] == [2, 2, 2, 2]
    assert program.attempts("other") == 1


def test_a_long_chain_restarts(clock: Clock) -> None:
    """
    A long chain of modules that restart with each other neither recurses nor blocks the
    reactor.
    """
    program = Program(clock)
    program.add("0")

    class Immediate:
        begun = 0

        def initialize(self) -> None:
            self.begun += 1

    modules = [Immediate() for _ in range(1_000)]
    for number, module in enumerate(modules):
        program.startup.add(str(number + 1), module, restartWith=[str(number)])
    program.start()
    program.succeed("0")
    clock.pump([0.0] * len(modules))
    program.lose("0")
    assert len(program.startup.missing()) == len(modules) + 1
    clock.advance(1)
    program.succeed("0")
    clock.pump([0.0] * len(modules))
    assert program.startup.ready
    assert {module.begun for module in modules} == {2}
    program.stop()


def test_a_module_is_lost_again_during_the_restart(program: Program) -> None:
    """
    If the named module is lost again, the other one is restarted once more before its
    calls run.
    """
    _, listener = started(program)
    program.lose("database")
    call = resultOf(listener.proxy.read(1))
    program.clock.advance(1)
    program.succeed("database")
    program.lose("database")
    restart(program, "listener")
    assert listener.state is State.PAUSED
    assert program.modules["listener"].calls == []
    program.clock.advance(1)
    program.succeed("database")
    restart(program, "listener")
    assert program.modules["listener"].calls == [("read", 1)]
    program.modules["listener"].answers[0].callback(None)
    assert call.value is None
    assert program.attempts("listener") == 3


def test_a_module_is_lost_again_while_another_is_reset(program: Program) -> None:
    """
    If a module is lost again while another one is reset because of it, its recovery is
    waited for again.
    """
    _, listener = started(program)
    call: list[Any] = []

    def lose(name: str) -> None:
        if name == "listener" and listener.state is State.LOST:
            program.startup.removeObserver(lose)
            program.lose("database")
            call.append(resultOf(listener.proxy.read(1)))

    program.startup.addObserver(lose)
    program.lose("database")
    program.clock.advance(1)
    program.succeed("database")
    restart(program, "listener")
    assert listener.state is State.PAUSED
    program.clock.advance(1)
    program.succeed("database")
    restart(program, "listener")
    assert program.modules["listener"].calls == [("read", 1)]
    program.modules["listener"].answers[0].callback(None)
    assert call[0].value is None


def test_several_named_modules_are_lost_at_once(program: Program) -> None:
    """
    If several named modules are lost at once, the module is restarted once, after their
    recovery.
    """
    program.add("a")
    program.add("b")
    program.add("c", restartWith=["a", "b"])
    program.start()
    program.succeed("a", "b", "c")
    program.lose("a")
    program.lose("b")
    program.clock.advance(1)
    program.succeed("a")
    assert program.reason("c") == "restarts when b is ready again"
    assert program.closings("c") == 0
    program.succeed("b")
    restart(program, "c")
    assert (program.attempts("c"), program.startup.status) == (2, Status.READY)


@pytest.mark.parametrize(
    "state",
    [
        State.NEW,
        State.INITIALIZING,
        State.RETRYING,
        State.LOST,
        State.FAILED,
        State.CLOSING,
        State.CLOSED,
    ],
)
def test_a_module_in_any_state_at_the_loss(program: Program, state: State) -> None:
    """
    A module that is not ready at the loss is initialised again after the recovery of
    the named one. A new module starts; a failed or closed one does not.
    """
    program.add("database")
    program.add("other")
    listener = program.add("listener", "other", restartWith=["database"])
    program.start()
    program.succeed("database")
    if state is not State.NEW:
        program.succeed("other")
    if state is State.RETRYING:
        program.fail("listener")
    elif state is State.LOST:
        program.succeed("listener")
        program.lose("listener")
    elif state is State.FAILED:
        program.fail("listener", Refused)
    elif state in (State.CLOSING, State.CLOSED):
        resultOf(listener.close())
    if state is State.CLOSED:
        program.close("listener")
    assert listener.state is state
    before = program.attempts("listener")
    program.lose("database")
    if state is State.NEW:
        program.succeed("other")
    assert program.attempts("listener") == before
    # Modules that were initialised meanwhile are initialised again.
    program.clock.advance(1)
    if state in (State.RETRYING, State.LOST, State.INITIALIZING):
        program.succeed("listener")
        assert listener.state is State.PAUSED
    program.succeed("database")
    if state in (State.FAILED, State.CLOSING, State.CLOSED):
        assert listener.state is state
        return
    if state is not State.NEW:
        program.close("listener")
    program.succeed("listener")
    assert program.startup.status is Status.READY


@pytest.mark.parametrize("how", ["fail", "close"])
def test_a_held_module_is_skipped_if_the_lost_one_fails(
    program: Program, how: str
) -> None:
    """
    If the lost module fails for good or is closed, modules that wait for it to restart
    are skipped, and so are modules that restart with them.
    """
    database = program.add("database", required=False)
    listener = program.add("listener", restartWith=["database"], required=False)
    reader = program.add("reader", restartWith=["listener"], required=False)
    program.start()
    program.succeed("database", "listener", "reader")
    program.lose("database")
    calls = [resultOf(each.proxy.read(1)) for each in (listener, reader)]
    if how == "fail":
        database.fail(Refused())
    else:
        resultOf(database.close())
    for call in calls:
        assert isinstance(call.error, InitializationFailed)
        assert isinstance(call.error.__cause__, Skipped)
    assert program.status("listener") == program.status("reader") == "skipped"
    assert program.reason("reader") == "needs listener, which failed"
    assert program.closings("listener") == program.closings("reader") == 1
    if how == "close":
        return
    # They start when the lost module is initialised again.
    resultOf(database.initialize())
    program.succeed("database")
    restart(program, "listener")
    restart(program, "reader")
    assert program.startup.status is Status.READY
    assert not listener.paused


def test_a_skipped_module_is_not_initialised_again(program: Program) -> None:
    """
    A module that is skipped because the lost module has failed is closed, and not
    initialised again, even if both happen at once.
    """

    class Instant:
        attempts = closings = 0

        def initialize(self) -> None:
            self.attempts += 1

        def close(self) -> None:
            self.closings += 1

    database = program.add("database", required=False)
    instant = Instant()
    program.startup.add("listener", instant, restartWith=["database"], required=False)
    program.start()
    program.succeed("database")
    program.lose("database")
    database.fail(Refused())
    assert program.status("listener") == "skipped"
    assert (instant.attempts, instant.closings) == (1, 1)
    resultOf(database.initialize())
    program.succeed("database")
    assert program.status("listener") == "ready"
    assert instant.attempts == 2


def test_the_failed_module_is_ready_again_when_another_is_skipped(
    program: Program,
) -> None:
    """
    If an observer of the skip makes the failed module ready at once, the skipped module
    starts again.
    """
    database = program.add("database", required=False)
    listener = program.add("listener", restartWith=["database"], required=False)
    program.start()
    program.succeed("database", "listener")

    def initializeDatabase() -> None:
        if listener.state is State.FAILED:
            listener.removeObserver(initializeDatabase)
            resultOf(database.initialize())
            program.succeed("database")

    listener.addObserver(initializeDatabase)
    program.lose("database")
    database.fail(Refused())
    program.close("listener")
    program.succeed("listener")
    assert program.status("listener") == "ready"
    assert program.startup.status is Status.READY


def test_a_module_ends_calls_when_it_is_closed_for_a_reset(program: Program) -> None:
    """
    If a module ends calls while it is closed for a reset, their callers see a program
    that is not ready, and their calls to modules that restart with it are held.
    """

    class Database:
        def __init__(self) -> None:
            self.call: Deferred[None] = Deferred()

        def initialize(self) -> None:
            pass

        def read(self) -> Deferred[None]:
            return self.call

        def close(self) -> None:
            self.call.errback(Trouble())

    startup = program.startup
    database = startup.add("database", Database())
    listener = program.add("listener", restartWith=["database"])
    program.start()
    program.succeed("listener")
    seen: list[object] = []

    def callAgain(_: object) -> None:
        resultOf(listener.proxy.read(1))
        seen.extend((startup.ready, startup.missing(), listener.state))

    database.proxy.read().addErrback(callAgain)
    startup.reset("database", Trouble())
    assert seen == [False, ["database", "listener"], State.PAUSED]
    program.close("listener")
    assert not program.modules["listener"].calls
    program.succeed("listener")
    assert len(program.modules["listener"].calls) == 1


def test_a_failure_without_a_loss_restarts_nothing(program: Program) -> None:
    """
    Closing a module by hand does not affect modules that restart with it.
    """
    database, listener = started(program)
    resultOf(database.close())
    assert listener.state is State.READY


def test_a_module_that_fails_while_it_is_held(program: Program) -> None:
    """
    A module that fails or is closed while it is held is not restarted, and its hold
    ends.
    """
    program.add("database")
    a = program.add("a", restartWith=["database"])
    b = program.add("b", restartWith=["database"])
    program.start()
    program.succeed("database", "b")
    program.lose("database")
    program.fail("a", Refused)
    resultOf(b.close())
    program.clock.advance(1)
    program.succeed("database")
    assert (a.state, b.state) == (State.FAILED, State.CLOSING)
    assert not a.paused
    assert program.attempts("a") == 1


@pytest.mark.parametrize("recovered", [False, True])
def test_a_shutdown_in_the_middle_of_a_restart(
    program: Program, recovered: bool
) -> None:
    """
    A held module is closed at the shutdown like any other; its calls end with Closed.
    """
    _, listener = started(program)
    program.lose("database")
    call = resultOf(listener.proxy.read(1))
    program.clock.advance(1)
    if recovered:
        program.succeed("database")
    stopped = resultOf(program.startup.stopService())
    assert isinstance(call.error, Closed)
    if not recovered:
        program.succeed("database")
    attempts = program.attempts("listener")
    while stopped.pending:
        for module in program.modules.values():
            for closing in module.closings:
                if not closing.called:
                    closing.callback(None)
    assert program.attempts("listener") == attempts
    assert program.clock.getDelayedCalls() == []


def test_a_pause_restarts_nothing(program: Program) -> None:
    """
    A paused module is not lost: nothing restarts with it.
    """
    _, listener = started(program)
    resultOf(program.startup.pause("database"))
    assert listener.state is State.READY
    program.startup.resume("database")
    assert program.closings("listener") == 0
    # A module that is lost while it is paused restarts others after resume().
    resultOf(program.startup.pause("database"))
    program.lose("database")
    assert listener.state is State.PAUSED
    program.clock.advance(1)
    program.succeed("database")
    assert program.closings("listener") == 0
    program.startup.resume("database")
    restart(program, "listener")
    assert program.startup.ready


def test_a_pause_of_an_operator_outlives_a_restart(program: Program) -> None:
    """
    A module that the operator has paused stays paused after its restart.
    """
    _, listener = started(program)
    resultOf(program.startup.pause("listener"))
    assert program.reason("listener") == "paused"
    program.lose("database")
    program.clock.advance(1)
    program.succeed("database")
    restart(program, "listener")
    assert (listener.state, program.reason("listener")) == (State.PAUSED, "paused")
    program.startup.resume("listener")
    assert listener.state is State.READY


# pause, resume, reset


def test_a_module_is_paused_by_name(program: Program) -> None:
    """
    pause() holds the calls of one module, fires when no call is in progress, and makes
    the program unready until all holders have resumed the module.
    """
    database = program.add("database")
    program.start()
    program.succeed("database")
    call = resultOf(database.proxy.read(1))
    paused = resultOf(program.startup.pause("database"))
    program.startup.pause("database", by="backup")
    assert program.startup.status is Status.UNREADY
    assert program.startup.missing() == ["database"]
    assert paused.pending
    assert program.startup.reportModule("database")["inProgress"] == 1
    program.modules["database"].answers[0].callback(None)
    assert paused.value is None
    assert call.value is None
    program.clock.advance(2)
    program.startup.resume("database")
    assert program.startup.status is Status.UNREADY
    program.startup.resume("database", by="backup")
    assert program.startup.status is Status.READY
    assert program.startup.reportModule("database")["pauses"] == [
        {"begun": 0.0, "ended": 2.0}
    ]


def test_a_module_is_paused_for_a_while(program: Program) -> None:
    """
    C{async with} pausing() pauses one module until the end of its body.
    """
    program.add("database")
    program.start()
    program.succeed("database")
    waiting: Deferred[None] = Deferred()

    async def restartDatabase() -> None:
        async with program.startup.pausing("database"):
            await waiting

    restarted = resultOf(Deferred.fromCoroutine(restartDatabase()))
    assert program.status("database") == "paused"
    waiting.callback(None)
    assert restarted.value is None
    assert program.status("database") == "ready"


def test_a_module_may_be_paused_during_the_start(program: Program) -> None:
    """
    A module that is paused before it is ready becomes ready after resume(). Its time
    limit ends as soon as its attempt has succeeded.
    """
    program.add("database", timeout=5)
    program.add("users", "database")
    program.startup.pause("database")
    program.start()
    program.succeed("database")
    program.clock.advance(10)
    assert program.status("database") == "paused"
    assert program.attempts("users") == 0
    program.startup.resume("database")
    assert program.attempts("users") == 1


def test_a_module_is_reset_by_name(program: Program) -> None:
    """
    reset() closes a ready module and initialises it again; for a module that was never
    initialised it is illegal.
    """
    program.add("database")
    with pytest.raises(IllegalTransition):
        program.reset("database")
    program.start()
    program.succeed("database")
    program.startup.reset("database", Trouble("new password"))
    assert program.startup.status is Status.UNREADY
    restart(program, "database")
    (loss,) = program.startup.reportModule("database")["losses"]
    assert loss["error"] == "Trouble: new password"


@pytest.mark.parametrize(
    "act",
    [
        lambda startup, name: startup.pause(name),
        lambda startup, name: startup.resume(name),
        lambda startup, name: startup.pausing(name),
        lambda startup, name: startup.reset(name, Trouble()),
        lambda startup, name: startup.reportModule(name),
    ],
)
def test_an_unknown_name_is_an_error(program: Program, act: Any) -> None:
    """
    If a method gets an unknown name of a module, the error suggests a similar one.
    """
    program.add("database")
    with pytest.raises(UnknownModule) as raised:
        act(program.startup, "databse")
    assert str(raised.value) == (
        "there is no module 'databse'; did you mean 'database'?"
    )
    with pytest.raises(KeyError) as unlike:
        act(program.startup, "x")
    assert str(unlike.value) == "there is no module 'x'"


# concurrency


def test_few_modules_are_initialised_at_the_same_time(clock: Clock) -> None:
    """
    At most as many attempts are in progress as the program allows. The others wait in
    order, and their time limits have not begun.
    """
    program = Program(clock, concurrency=2)
    for name in "abcd":
        program.add(name, timeout=5)
    program.start()
    clock.advance(4)
    assert [program.attempts(name) for name in "abcd"] == [1, 1, 0, 0]
    assert program.status("c") == "initializing"
    assert program.reason("c") == "waits for other modules' attempts"
    program.fail("a")
    clock.advance(0)
    assert [program.attempts(name) for name in "abcd"] == [1, 1, 1, 0]
    program.succeed("b")
    clock.advance(0)
    assert [program.attempts(name) for name in "abcd"] == [1, 1, 1, 1]
    # The time limit of the first one ends while its retry waits.
    clock.advance(1)
    assert program.status("a") == "failed"
    clock.advance(3)
    assert [program.status(name) for name in "cd"] == ["initializing"] * 2
    clock.advance(1)
    assert [program.status(name) for name in "cd"] == ["failed"] * 2
    program.stop()


def test_a_retry_waits_for_its_place(clock: Clock) -> None:
    """
    A retry waits for a free slot like a first attempt. A module that is closed while it
    waits takes no slot.
    """
    program = Program(clock, concurrency=1)
    for name in "abc":
        program.add(name, required=False)
    program.start()
    program.fail("a")
    clock.advance(1)
    assert program.reason("a") == "waits for other modules' attempts"
    resultOf(program.startup.wrappers["c"].close())
    program.succeed("b")
    clock.advance(0)
    assert program.attempts("a") == 2
    assert program.reason("a") == "attempt 2 is in progress"
    program.succeed("a")
    program.stop()


# lazy


def test_a_lazy_module_is_initialised_by_its_first_call(program: Program) -> None:
    """
    Neither the program nor other modules wait for a lazy module. Its first call
    initialises it, and a later loss counts like any other.
    """
    search = program.add("search", lazy=True)
    program.add("users", "search")
    assert program.startup.missing() == ["users"]
    program.start()
    entry = program.startup.reportModule("search")
    assert (entry["lazy"], entry["status"]) == (True, "lazy")
    assert entry["reason"] == "not needed yet"
    program.succeed("users")
    assert program.startup.status is Status.READY
    assert program.attempts("search") == 0
    call = resultOf(search.proxy.read(1))
    assert program.status("search") == "initializing"
    program.fail("search")
    assert program.startup.status is Status.READY
    program.clock.advance(1)
    program.succeed("search")
    program.modules["search"].answers[0].callback("found")
    assert call.value == "found"
    program.lose("search")
    assert program.startup.status is Status.UNREADY
    assert program.startup.missing() == ["search"]


@pytest.mark.parametrize("required", [False, True])
def test_a_lazy_module_may_fail(program: Program, required: bool) -> None:
    """
    A lazy module that fails for good counts like any other module.
    """
    search = program.add("search", lazy=True, required=required)
    program.add("users", "search", required=False)
    program.start()
    call = resultOf(search.proxy.read(1))
    program.fail("search", Refused)
    assert isinstance(call.error, InitializationFailed)
    failed = Status.FAILED if required else Status.DEGRADED
    assert program.startup.status is failed
    if required:
        assert isinstance(resultOf(program.startup.whenReady()).error, StartupFailed)


def test_a_lazy_module_waits_for_its_needs(program: Program) -> None:
    """
    A lazy module that is called before its needs are ready starts when they are, and is
    skipped if one has failed.
    """
    program.add("configuration", required=False)
    search = program.add("search", "configuration", lazy=True, required=False)
    index = program.add("index", "cache", lazy=True, required=False)
    program.add("cache", required=False)
    program.start()
    assert program.reason("search") == "not needed yet"
    calls = [resultOf(each.proxy.read(1)) for each in (search, index)]
    assert (program.status("search"), program.attempts("search")) == ("waiting", 0)
    assert program.reason("search") == "needs configuration"
    program.succeed("configuration")
    assert program.attempts("search") == 1
    program.fail("cache", Refused)
    assert program.status("index") == "skipped"
    assert isinstance(calls[1].error, InitializationFailed)


def test_a_skipped_lazy_module_is_not_lost_for_ever(program: Program) -> None:
    """
    A lazy module that was skipped before its first call starts when the module that it
    needs becomes ready.
    """
    cache = program.add("cache", required=False)
    index = program.add("index", "cache", lazy=True, required=False)
    program.start()
    program.fail("cache", Refused)
    assert isinstance(resultOf(index.proxy.read(1)).error, InitializationFailed)
    resultOf(cache.initialize())
    program.succeed("cache")
    program.succeed("index")
    assert program.startup.status is Status.READY


def test_a_lazy_module_is_called_before_the_start(program: Program) -> None:
    """
    A lazy module that is called before the start is initialised at the start.
    """
    search = program.add("search", "configuration", lazy=True)
    program.add("configuration")
    resultOf(search.proxy.read(1))
    assert search.state is State.NEW
    program.start()
    assert program.attempts("search") == 0
    program.succeed("configuration")
    assert program.attempts("search") == 1


def test_a_lazy_module_is_called_during_the_shutdown(program: Program) -> None:
    """
    A lazy module that was never called is not initialised during the shutdown. A call
    during the shutdown, for example by a module that is being closed, ends at once with
    Closed.
    """
    search = program.add("search", lazy=True)
    program.add("users", "search")
    program.start()
    program.succeed("users")
    stopped = resultOf(program.startup.stopService())
    call = resultOf(search.proxy.read(1))
    assert isinstance(call.error, Closed)
    assert program.status("users") == "closing"
    program.close("users")
    assert stopped.value is None
    assert (program.attempts("search"), program.closings("search")) == (0, 0)


def test_a_lazy_module_may_be_initialised_by_hand(program: Program) -> None:
    """
    A lazy module counts from the moment it was ready, whoever initialised it.
    """
    search = program.add("search", lazy=True, required=False)
    program.start()
    assert program.startup.status is Status.READY
    resultOf(search.initialize())
    assert program.startup.status is Status.READY
    program.succeed("search")
    program.lose("search")
    assert program.startup.status is Status.DEGRADED
    assert program.status("search") == "lost"


def test_the_time_limit_of_a_lazy_module(program: Program) -> None:
    """
    The time limit of a lazy module begins with its first attempt.
    """
    search = program.add("search", lazy=True, timeout=5, required=False)
    program.start()
    program.clock.advance(10)
    resultOf(search.proxy.read(1))
    program.clock.advance(4)
    assert program.status("search") == "initializing"
    program.clock.advance(1)
    assert program.status("search") == "failed"


def test_the_table_names_lazy_modules(clock: Clock) -> None:
    """
    Lazy modules are in the table; a limited table omits them first.
    """
    program = Program(clock)
    for number in range(5):
        program.add(f"lazy{number}", lazy=True)
    program.add("clock")
    with logged() as events:
        program.start()
        program.succeed("clock")
    (table,) = [text for text in textsOf(events) if "Start-up" in text]
    assert table.splitlines()[2].split() == ["lazy0", "lazy", "-", "-", "-", "0"]
    program.stop()


# Names of methods


def test_ping_and_whenIdle_may_be_named(clock: Clock) -> None:
    """
    Options that are callables may be given as the name of a method of the module.
    """

    class Client:
        pings = 0
        busy: Deferred[None] | None = None

        def initialize(self) -> None:
            pass

        def check(self) -> None:
            self.pings += 1

        def idle(self) -> Deferred[None]:
            self.busy = Deferred()
            return self.busy

    client = Client()
    startup = Startup(clock)
    startup.add("client", client, ping="check", pingInterval=2.0, whenIdle="idle")
    with pytest.raises(TypeError, match="Client has no nonsense"):
        startup.add("other", Client(), ping="nonsense")
    startup.startService()
    clock.pump([2.0] * 3)
    assert client.pings > 1
    paused = resultOf(startup.pause("client"))
    assert paused.pending
    assert client.busy is not None
    client.busy.callback(None)
    assert paused.value is None
    resultOf(startup.stopService())
    clock.advance(0)
