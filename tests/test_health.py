"""
Whoever runs the server learns whether it is alive and ready, and nothing that
is not for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tsrv import Startup
from tsrv.resources import makeRoot
from tsrv.web.health import (
    Live,
    Ready,
    StartupPage,
)
from tsrv.web.responses import AsyncResource
from tsrv.web.site import Site

from .support import Module, Refused, Trouble, resultOf
from .websupport import Answer, Peer, Teller, ask

SECRET = "hunter2"  # noqa: S105

SURROGATE = "caf\udce9"


def askPage(page: AsyncResource, method: str = "GET", accept: str = "*/*") -> Answer:
    """
    Ask a page of a site.
    """
    root = AsyncResource()
    root.putChild(b"page", page)
    return ask(root, "/page", method, {"Accept": accept})


class Parts:
    """
    A program, and what is asked of it.

    @ivar modules: Its modules, by their names.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.startup = Startup(clock, stayUp=True)
        self.modules: dict[str, Module] = {}

    def add(self, name: str, *needs: str, **options: Any) -> Module:
        """
        Add a module.
        """
        module = self.modules[name] = Module()
        options.setdefault("retryPolicy", lambda attempts: 5.0)
        self.startup.add(name, module, needs=needs, fatal=Refused, **options)
        return module

    def start(self) -> None:
        """
        Start it.
        """
        self.startup.startService()

    def succeed(self, *names: str) -> None:
        """
        Have modules be ready.
        """
        for name in names:
            self.modules[name].attempts[-1].callback(None)

    def fail(self, name: str, error: Exception) -> None:
        """
        Have an attempt to initialise a module fail.
        """
        self.modules[name].attempts[-1].errback(Failure(error))

    def ready(self, accept: str = "*/*", method: str = "GET") -> Answer:
        """
        Ask whether it is ready.
        """
        return askPage(Ready(self.startup), method, accept)

    def missing(self) -> tuple[str, list[dict[str, Any]]]:
        """
        @return: Why it is not ready.
        """
        answer = self.ready()
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        members = json.loads(answer.body)
        assert members["error"] == members["detail"]
        assert members["status"] == 503
        return members["state"], members["missing"]

    def stop(self) -> None:
        """
        Stop it.
        """
        stopped = resultOf(self.startup.stopService())
        for _ in self.modules:
            for module in self.modules.values():
                for closing in module.closings:
                    if not closing.called:
                        closing.callback(None)
        assert stopped.value is None


@pytest.fixture
def parts(clock: Clock) -> Iterator[Parts]:
    """
    A program without modules yet, which is stopped at the end.
    """
    parts = Parts(clock)
    yield parts
    parts.stop()


def entry(module: str, state: str, reason: str, seconds: float) -> dict[str, Any]:
    """
    @return: What is to be said of a module that is missing.
    """
    return {"module": module, "state": state, "reason": reason, "seconds": seconds}


# Alive.


def test_it_is_alive_whatever_its_modules_do() -> None:
    """
    One that is restarted because its database is gone is gone too; and to ask a
    module that hangs is to hang.
    """
    answer = askPage(Live())
    assert (answer.status, answer.body) == (200, b"alive\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


# Ready.


def test_it_is_ready_when_all_modules_are(parts: Parts) -> None:
    """
    What is asked for once in a second by who sends requests.
    """
    parts.add("database")
    parts.start()
    parts.succeed("database")
    answer = parts.ready()
    assert (answer.status, answer.body) == (200, b"ready\n")
    assert answer.headers["cache-control"] == "no-store"


def test_nothing_is_ready_before_it_is_started(parts: Parts) -> None:
    """
    It may be asked as soon as it listens.
    """
    parts.add("database")
    assert parts.missing() == ("new", [entry("database", "new", "not started", 0.0)])


def test_a_program_that_starts_says_what_it_waits_for(parts: Parts) -> None:
    """
    Who waits for the program to start wants to know which module takes so long,
    and not which ones wait for it.
    """
    parts.add("configuration")
    parts.add("database", "configuration")
    parts.start()
    parts.clock.advance(2.5)
    assert parts.missing() == (
        "starting",
        [
            entry("configuration", "initializing", "attempt 1 is in progress", 2.5),
            entry("database", "waiting", "needs configuration", 2.5),
        ],
    )
    parts.succeed("configuration")
    parts.clock.advance(1)
    assert parts.missing() == (
        "starting",
        [entry("database", "initializing", "attempt 1 is in progress", 3.5)],
    )


def test_a_module_that_is_retried_says_what_it_failed_with(parts: Parts) -> None:
    """
    The kind of the error is what helps, and the time of the next attempt is
    when it is worth asking again.
    """
    parts.add("database")
    parts.start()
    parts.clock.advance(1)
    parts.fail("database", Trouble(SECRET))
    parts.clock.advance(1.6)
    reason = "attempt 1 failed (Trouble)"
    assert parts.missing() == (
        "starting",
        [entry("database", "retrying", reason, 2.6)],
    )
    assert parts.ready().headers["retry-after"] == "4"
    parts.clock.advance(3.4)
    assert parts.missing() == (
        "starting",
        [entry("database", "initializing", "attempt 2 is in progress", 6.0)],
    )
    assert parts.ready().headers["retry-after"] == "1"


def test_the_longest_wait_is_the_one_that_counts(parts: Parts) -> None:
    """
    Who comes back when only one of two is ready comes too early.
    """
    delays = {"cache": 20.0, "database": 70.0}
    for name, delay in delays.items():
        parts.add(name, retryPolicy=lambda attempts, delay=delay: delay)
    parts.start()
    for name in delays:
        parts.fail(name, Trouble())
    assert parts.ready().headers["retry-after"] == "70"


def test_a_module_that_was_lost_says_since_when(parts: Parts) -> None:
    """
    For how long something has been missing is counted from the loss, and not
    from the last attempt to heal it, or from the start.
    """
    database = parts.add("database")
    parts.start()
    parts.succeed("database")
    parts.clock.advance(100)
    database.watches[-1].errback(Failure(Trouble(SECRET)))
    assert parts.missing() == (
        "unready",
        [
            entry(
                "database",
                "lost",
                "lost (Trouble)",
                0.0,
            )
        ],
    )
    parts.clock.advance(5)
    _, (missing,) = parts.missing()
    assert (missing["state"], missing["seconds"]) == ("initializing", 5.0)
    parts.fail("database", Trouble())
    parts.clock.advance(2)
    _, (missing,) = parts.missing()
    assert (missing["state"], missing["seconds"]) == ("retrying", 7.0)
    parts.clock.advance(3)
    parts.succeed("database")
    assert parts.ready().status == 200


def test_an_old_loss_is_not_counted(parts: Parts) -> None:
    """
    What is closed now has not been missing since it was healed.
    """
    database = parts.add("database")
    parts.start()
    parts.succeed("database")
    parts.clock.advance(10)
    database.watches[-1].callback(None)
    parts.clock.advance(5)
    parts.succeed("database")
    parts.clock.advance(100)
    parts.startup.stopService()
    parts.clock.advance(2)
    assert parts.missing() == (
        "stopping",
        [entry("database", "closing", "is being closed", 2.0)],
    )


def test_what_has_failed_for_good_is_named_with_what_needs_it(parts: Parts) -> None:
    """
    A program that stays up to report has to.
    """
    parts.add("configuration")
    parts.add("database", "configuration")
    parts.start()
    parts.clock.advance(1)
    parts.fail("configuration", Refused(SECRET))
    parts.clock.advance(1)
    assert parts.missing() == (
        "failed",
        [
            entry("configuration", "failed", "failed for good (Refused)", 2.0),
            entry("database", "skipped", "needs configuration, which failed", 2.0),
        ],
    )


def test_what_is_optional_is_no_reason_not_to_be_ready(parts: Parts) -> None:
    """
    It is what makes it optional; that it is missing is said all the same.
    """
    parts.add("database")
    parts.add("mail", required=False)
    parts.add("newsletter", "mail", required=False)
    parts.start()
    _, missing = parts.missing()
    assert [each["module"] for each in missing] == ["database"]
    parts.succeed("database")
    assert (parts.ready().status, parts.ready().body) == (200, b"degraded\n")
    parts.fail("mail", Refused(SECRET))
    assert (parts.ready().status, parts.ready().body) == (200, b"degraded\n")


def test_it_is_not_ready_from_the_moment_it_is_to_stop(parts: Parts) -> None:
    """
    Who sends requests has to go elsewhere before the port is closed.
    """
    parts.add("database")
    parts.start()
    parts.succeed("database")
    assert parts.ready().status == 200
    parts.startup.announceStop()
    assert parts.missing() == ("stopping", [])
    assert json.loads(parts.ready().body)["detail"] == "stopping"
    parts.stop()
    state, (missing,) = parts.missing()
    assert (state, missing["state"]) == ("stopped", "closed")


def test_of_many_modules_only_some_are_listed(parts: Parts) -> None:
    """
    What is asked for often must stay short.
    """
    for number in range(150):
        parts.add(f"m{number}")
    parts.start()
    _, missing = parts.missing()
    assert [each["module"] for each in missing] == [f"m{n}" for n in range(100)]
    sentence = json.loads(parts.ready().body)["detail"]
    assert sentence == (
        "starting: m0 (attempt 1 is in progress), m1 (attempt 1 is in progress), "
        "m2 (attempt 1 is in progress), 147 more"
    )


def test_who_prefers_text_gets_the_sentence(parts: Parts) -> None:
    """
    People ask too, in a terminal.
    """
    parts.add("database")
    parts.start()
    parts.fail("database", Trouble(SECRET))
    answer = parts.ready("text/plain")
    assert answer.status == 503
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["retry-after"] == "5"
    assert answer.body == (b"starting: database (attempt 1 failed (Trouble))")


def test_three_that_are_missing_are_all_named(parts: Parts) -> None:
    """
    "0 more" would be nonsense.
    """
    for name in ("a", "b", "c"):
        parts.add(name, "z")
    parts.add("z")
    parts.start()
    parts.succeed("z")
    answer = parts.ready("text/plain").body.decode()
    assert answer.endswith("c (attempt 1 is in progress)")


def test_no_answer_is_kept_by_anybody(parts: Parts) -> None:
    """
    A cache in between would say that all is well for as long as it likes.
    """
    parts.add("database")
    parts.start()
    assert parts.ready().headers["cache-control"] == "no-store"
    parts.succeed("database")
    assert parts.ready().headers["cache-control"] == "no-store"


@pytest.mark.parametrize("ready", [False, True])
def test_who_asks_for_the_head_gets_the_same_without_a_body(
    parts: Parts, ready: bool
) -> None:
    """
    Many checks look at the status alone.
    """
    parts.add("database")
    parts.start()
    if ready:
        parts.succeed("database")
    whole, head = parts.ready(), parts.ready(method="HEAD")
    assert head.status == whole.status == (200 if ready else 503)
    assert head.headers.get("retry-after") == whole.headers.get("retry-after")
    assert head.body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_there_is_nothing_to_be_done_by_these_pages(parts: Parts, method: str) -> None:
    """
    They tell, and are told nothing.
    """
    for resource in (Live(), Ready(parts.startup), StartupPage(parts.startup)):
        answer = askPage(resource, method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


# What is held.


@pytest.mark.parametrize("leave", [False, True])
def test_what_is_held_is_answered_whatever_is_said(clock: Clock, leave: bool) -> None:
    """
    To be ready is about what is still to come; who is here already was promised
    an answer.
    """
    teller = Teller()
    startup = Startup(clock)
    proxy = startup.add("clock", teller).proxy
    root = makeRoot(proxy)
    root.putChild(b"readyz", Ready(startup))
    startup.startService()
    peer = Peer(Site(root, clock), clock)
    peer.send(b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n")
    assert ask(root, "/readyz").status == 503
    if leave:
        startup.announceStop()
    assert peer.received == b""
    teller.starting.callback(None)
    teller.answers[0].callback("Something")
    assert [answer.body for answer in peer.answers] == [b"I say: Something"]
    assert ask(root, "/readyz").status == (503 if leave else 200)
    peer.leave()
    stopped = resultOf(startup.stopService())
    assert stopped.value is None


# The report.


def report(parts: Parts, showErrors: bool = False) -> dict[str, Any]:
    """
    @return: What the page says.
    """
    answer = askPage(StartupPage(parts.startup, showErrors))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    members: dict[str, Any] = json.loads(answer.body)
    return members


def troubled(parts: Parts) -> None:
    """
    Have something go wrong with every part of a module's life.
    """
    database = parts.add("database", closeTimeout=None)
    parts.start()
    parts.fail("database", Trouble(f"one {SECRET}"))
    parts.clock.advance(5)
    parts.succeed("database")
    parts.clock.advance(10)
    database.watches[-1].errback(Failure(Trouble(f"two {SECRET}")))
    parts.clock.advance(5)
    stopped = resultOf(parts.startup.stopService())
    database.closings[-1].errback(Failure(Trouble(f"three {SECRET}")))
    assert isinstance(stopped.error, ExceptionGroup)


def test_the_report_is_the_whole_of_it(parts: Parts) -> None:
    """
    Who reads it by a program expects what the library answers.
    """
    troubled(parts)
    assert report(parts, showErrors=True) == parts.startup.report()
    (module,) = report(parts, showErrors=True)["modules"]
    assert module["attempts"][0]["error"] == f"Trouble: one {SECRET}"
    assert module["losses"][0]["error"] == f"Trouble: two {SECRET}"
    assert module["closeError"] == f"Trouble: three {SECRET}"


def test_what_errors_say_is_left_out_for_the_public(parts: Parts) -> None:
    """
    What an error says may be a password; of which type it is may be known.
    """
    troubled(parts)
    told = report(parts)
    assert SECRET not in json.dumps(told)
    (module,) = told["modules"]
    assert module["attempts"][0]["kind"] == "Trouble"
    assert module["losses"][0]["kind"] == "Trouble"
    whole = parts.startup.report()
    # It was left out of the answer, and not of the program.
    assert SECRET in json.dumps(whole)
    for each in whole["modules"]:
        each["closeError"] = None
        for attempt in each["attempts"]:
            attempt["error"] = None
        for loss in each["losses"]:
            loss["error"] = None
    assert told == whole


def test_whatever_an_error_says_can_be_shown(parts: Parts) -> None:
    """
    The name of a file may be no text, and errors repeat it.
    """
    parts.add("database")
    parts.start()
    parts.fail("database", Trouble(SURROGATE))
    (module,) = report(parts, showErrors=True)["modules"]
    assert module["attempts"][0]["error"] == r"Trouble: caf\udce9"


def test_there_is_a_report_before_the_start(parts: Parts) -> None:
    """
    It may be asked as soon as it listens.
    """
    parts.add("database")
    told = report(parts)
    assert (told["status"], told["began"], told["becameReady"]) == ("new", None, None)


def test_a_module_that_hangs_keeps_no_page_waiting(parts: Parts) -> None:
    """
    What is asked when something is wrong must work then.
    """
    parts.add("database")
    database = parts.modules["database"]
    parts.start()
    askPage(Live())
    parts.ready()
    report(parts)
    assert isinstance(database.attempts[0], Deferred)
    assert (len(database.attempts), database.calls) == (1, [])
