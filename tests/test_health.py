"""
Health pages: whether the program is alive and ready, and how its start-up went.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.python.failure import Failure

from tsrv.web.health import Live, Ready, StartupPage
from tsrv.web.responses import AsyncResource

from .operated import SECRET, SURROGATE, Noted, Program
from .operated import program as program
from .support import Refused, Trouble, resultOf
from .websupport import Answer, ask


def askPage(page: AsyncResource, accept: str = "*/*") -> Answer:
    """
    Ask a page of a site.
    """
    root = AsyncResource()
    root.putChild(b"page", page)
    return ask(root, "/page", headers={"Accept": accept})


def askReady(program: Program, accept: str = "*/*") -> Answer:
    """
    Ask whether a program is ready.
    """
    return askPage(Ready(program.startup), accept)


def missing(program: Program) -> list[str]:
    """
    @return: The status of a program that is not ready, and for each missing module its
        name, its status, the seconds and the reason.
    """
    answer = askReady(program)
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    members = json.loads(answer.body)
    assert members["error"] == members["detail"]
    assert members["status"] == 503
    line = "{module} {state} for {seconds} s: {reason}"
    return [members["state"], *(line.format(**each) for each in members["missing"])]


def report(program: Program, showErrors: bool = False) -> dict[str, Any]:
    """
    @return: The report on the page.
    """
    answer = askPage(StartupPage(program.startup, showErrors))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    members: dict[str, Any] = json.loads(answer.body)
    return members


def test_a_program_is_alive_while_the_reactor_runs() -> None:
    """
    No module is called, so a module that hangs does not matter.
    """
    answer = askPage(Live())
    assert (answer.status, answer.body) == (200, b"alive\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


def test_missing_modules_are_listed(program: Program) -> None:
    """
    Before and during the start-up, missing modules are listed with the reasons.
    """
    program.add("configuration")
    program.add("database", "configuration")
    assert missing(program) == [
        "new",
        "configuration new for 0.0 s: not started",
        "database new for 0.0 s: not started",
    ]
    program.start()
    program.clock.advance(2.5)
    assert missing(program) == [
        "starting",
        "configuration initializing for 2.5 s: attempt 1 is in progress",
        "database waiting for 2.5 s: needs configuration",
    ]
    program.succeed("configuration")
    program.clock.advance(1)
    assert missing(program)[1:] == [
        "database initializing for 3.5 s: attempt 1 is in progress"
    ]
    program.succeed("database")
    assert askReady(program).body == b"ready\n"


def test_a_retried_module_has_its_error_and_next_attempt(program: Program) -> None:
    """
    A retried module has the type of its last error, and Retry-After is the time until
    its next attempt.
    """
    program.add("database")
    program.start()
    program.clock.advance(1)
    program.fail("database")
    program.clock.advance(1.6)
    _, line = missing(program)
    assert line == "database retrying for 2.6 s: attempt 1 failed (Trouble)"
    assert askReady(program).headers["retry-after"] == "4"
    program.clock.advance(3.4)
    _, line = missing(program)
    assert line == "database initializing for 6.0 s: attempt 2 is in progress"
    assert askReady(program).headers["retry-after"] == "1"


def test_retry_after_is_the_longest_wait(program: Program) -> None:
    """
    Retry-After is the longest wait of all missing modules.
    """
    delays = {"cache": 20.0, "database": 70.0}
    for name, delay in delays.items():
        program.add(name, retryPolicy=lambda attempts, delay=delay: delay)
    program.start()
    for name in delays:
        program.fail(name)
    assert askReady(program).headers["retry-after"] == "70"


def test_a_lost_module_is_missing_since_its_loss(program: Program) -> None:
    """
    A lost module is missing since its loss, whatever its attempts do.
    """
    program.add("database")
    program.start()
    program.succeed("database")
    program.clock.advance(100)
    program.lose("database")
    assert missing(program) == ["unready", "database lost for 0.0 s: lost (Trouble)"]
    program.clock.advance(5)
    program.fail("database")
    program.clock.advance(2)
    assert missing(program)[1].startswith("database retrying for 7.0 s")
    program.clock.advance(3)
    program.succeed("database")
    assert askReady(program).status == 200
    program.clock.advance(100)
    program.startup.stopService()
    program.clock.advance(2)
    closing = "database closing for 2.0 s: is being closed"
    assert missing(program) == ["stopping", closing]


def test_a_paused_module_is_missing(program: Program) -> None:
    """
    A required module that is paused is missing since it stopped working, whatever
    happens to it meanwhile.
    """
    program.add("database")
    program.start()
    program.clock.advance(0.5)
    program.pause("database")
    program.clock.advance(0.5)
    program.succeed("database")
    program.clock.advance(1)
    paused = "database paused for {:.1f} s: paused"
    assert missing(program) == ["starting", paused.format(2)]
    program.resume("database")
    program.clock.advance(10)
    assert askReady(program).status == 200
    program.pause("database", "Alice")
    program.pause("database", "Bob")
    program.clock.advance(3)
    program.resume("database", "Alice")
    assert missing(program) == ["unready", paused.format(3)]
    answer = askReady(program, "text/plain")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.body == b"unready: database (paused)\n"
    program.lose("database")
    program.clock.advance(2)
    assert missing(program)[1] == "database lost for 5.0 s: lost (Trouble)"
    program.clock.advance(3)
    program.succeed("database")
    program.clock.advance(7200)
    assert missing(program)[1] == paused.format(7208)
    program.resume("database", "Bob")
    program.clock.advance(1)
    assert askReady(program).status == 200
    program.pause("database")
    program.clock.advance(1)
    program.lose("database")
    program.clock.advance(1)
    program.resume("database")
    program.clock.advance(1)
    program.pause("database")
    program.clock.advance(3)
    program.succeed("database")
    program.clock.advance(1)
    assert missing(program)[1] == paused.format(7)
    program.startup.stopService()
    program.clock.advance(1)
    closing = "database closing for 8.0 s: is being closed"
    assert missing(program)[1] == closing


def test_a_module_that_restarts_with_a_lost_one_is_missing(program: Program) -> None:
    """
    The page says that a module is held until another one has restarted.
    """
    program.add("database")
    program.add("cache", restartWith=["database"])
    program.start()
    program.succeed("database", "cache")
    program.lose("database")
    program.clock.advance(1)
    held = "cache paused for 1.0 s: restarts when database is ready again"
    assert missing(program)[2] == held


def test_a_lazy_module_is_not_missing(program: Program) -> None:
    """
    A lazy module that was never called does not make the program unready. If it has
    failed for good, it is missing since then.
    """
    program.add("a")
    wrapper = program.add("mail", lazy=True)
    program.start()
    assert [line.split()[0] for line in missing(program)] == ["starting", "a"]
    program.succeed("a")
    assert askReady(program).body == b"ready\n"
    program.clock.advance(100)
    resultOf(wrapper.proxy.read(1))
    assert askReady(program).status == 200
    program.clock.advance(1)
    program.fail("mail", Refused)
    program.clock.advance(1)
    program.pause("mail")
    program.clock.advance(1)
    assert missing(program)[1].startswith("mail failed for 2.0 s: failed for good")


def test_failed_and_skipped_modules_are_listed(program: Program) -> None:
    """
    A module that failed for good is listed together with the modules that need it.
    """
    program.add("configuration")
    program.add("database", "configuration")
    program.start()
    program.clock.advance(1)
    program.fail("configuration", Refused)
    program.clock.advance(1)
    assert missing(program) == [
        "failed",
        "configuration failed for 2.0 s: failed for good (Refused)",
        "database skipped for 2.0 s: needs configuration, which failed",
    ]


def test_optional_modules_may_be_missing(program: Program) -> None:
    """
    A program without its optional modules is ready, and lists them.
    """
    program.add("database")
    program.add("mail", required=False)
    program.start()
    assert [line.split()[0] for line in missing(program)] == ["starting", "database"]
    program.succeed("database")
    assert (askReady(program).status, askReady(program).body) == (200, b"degraded\n")
    program.fail("mail", Refused)
    assert (askReady(program).status, askReady(program).body) == (200, b"degraded\n")


def test_a_stopping_program_is_not_ready(program: Program) -> None:
    """
    A program is not ready from the moment its stop is announced.
    """
    program.add("database")
    program.start()
    program.succeed("database")
    program.startup.announceStop()
    assert missing(program) == ["stopping"]
    assert json.loads(askReady(program).body)["detail"] == "stopping"
    program.stop()
    status, line = missing(program)
    assert (status, line.split()[:2]) == ("stopped", ["database", "closed"])


def test_the_list_of_missing_modules_is_bounded(program: Program) -> None:
    """
    At most 100 missing modules are listed, and the summary names 3 of them.
    """
    for number in range(150):
        program.add(f"m{number}")
    program.start()
    names = [line.split()[0] for line in missing(program)[1:]]
    assert names == [f"m{n}" for n in range(100)]
    assert json.loads(askReady(program).body)["detail"] == (
        "starting: m0 (attempt 1 is in progress), m1 (attempt 1 is in progress), "
        "m2 (attempt 1 is in progress), 147 more"
    )


def test_text_clients_get_the_message(program: Program) -> None:
    """
    A client that prefers text gets only the message.
    """
    for name in "abc":
        program.add(name)
    program.start()
    program.succeed("a", "b")
    program.fail("c")
    answer = askReady(program, "text/plain")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body == b"starting: c (attempt 1 failed (Trouble))\n"


def test_messages_are_hidden_from_the_public(program: Program) -> None:
    """
    Operators see the whole report; the public sees only the types of errors.
    """
    program.add("database", closeTimeout=None)
    program.start()
    program.fail("database")
    program.clock.advance(5)
    program.succeed("database")
    program.lose("database")
    program.clock.advance(5)
    stopped = resultOf(program.startup.stopService())
    program.modules["database"].closings[-1].errback(Failure(Trouble(SECRET)))
    assert isinstance(stopped.error, ExceptionGroup)
    assert report(program, showErrors=True) == program.startup.report()
    (module,) = report(program, showErrors=True)["modules"]
    errors = module["attempts"][0]["error"], module["losses"][0]["error"]
    assert {*errors, module["closeError"]} == {f"Trouble: {SECRET}"}
    assert SECRET not in json.dumps(report(program))
    (module,) = report(program)["modules"]
    assert module["attempts"][0]["kind"] == module["losses"][0]["kind"] == "Trouble"


def test_any_text_of_a_module_can_be_shown(program: Program) -> None:
    """
    Messages and notes that are not valid text are shown with escapes.
    """
    program.startup.add("a", Noted(), initialize=lambda: None)
    program.startup.add("b", Noted(), retryPolicy=None)
    program.start()
    a, b = report(program, showErrors=True)["modules"]
    assert a["note"] == SURROGATE
    assert b["attempts"][0]["error"] == r"Trouble: caf\udce9"
