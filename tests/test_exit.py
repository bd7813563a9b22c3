"""
A program whose required module has failed for good ends, in good order, with an
exit status that says so, whatever runs it.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ReactorNotRunning

from tsrv.starting.exit import stopWithStatus

from .processes import Process, running, spawned
from .websupport import asynchronous

MODULES = '''
import atexit
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tsrv import Startup


class Bad(Exception):
    """
    What no retry cures.
    """


class Part:
    def __init__(self, reactor, name):
        self.reactor = reactor
        self.name = name

    def initialize(self):
        print(f"initialized {self.name}")

    def close(self):
        print(f"closed {self.name}")
        # It takes a moment, so that the next one has something to wait for.
        return deferLater(self.reactor, 0.01)


class FailsAtOnce(Part):
    def initialize(self):
        raise Bad("no way")


class FailsLater(Part):
    def initialize(self):
        return deferLater(self.reactor, 0.01, super_fail)


class Hangs(Part):
    def initialize(self):
        return Deferred()


def super_fail():
    raise Bad("no way")


def make(reactor, kind, **options):
    startup = Startup(reactor, **options)
    startup.add("first", Part(reactor, "first"))
    startup.add("second", Part(reactor, "second"), needs=["first"])
    startup.add(
        "third",
        kind(reactor, "third"),
        needs=["second"],
        fatal=Bad,
        timeout=0.05 if kind is Hangs else None,
    )
    return startup


def last():
    # What twistd has put in the place of the first writes nothing any more.
    sys.stdout.write("exited through stdout\\n")
    sys.__stdout__.write("exited through the real one\\n")


atexit.register(last)
reactor.callWhenRunning(print, "It runs", flush=True)
'''

RUNNERS = {
    "twistd": """
from twisted.application.service import Application

application = Application("program")
make(reactor, {kind}{options}).setServiceParent(application)
""",
    "react": """
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver


def main(reactor):
    globalLogBeginner.beginLoggingTo(
        [textFileLogObserver(sys.__stdout__)], redirectStandardIO=False
    )
    startup = make(reactor, {kind}{options})
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
    startup.startService()
    return Deferred()


react(main)
""",
    "run": """
from twisted.logger import globalLogBeginner, textFileLogObserver

globalLogBeginner.beginLoggingTo(
    [textFileLogObserver(sys.__stdout__)], redirectStandardIO=False
)
startup = make(reactor, {kind}{options})
reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
startup.startService()
reactor.run()
""",
}

KINDS = {
    "FailsAtOnce": "Bad: no way",
    "FailsLater": "Bad: no way",
    "Hangs": "TimeoutError: not ready within 0.05 seconds",
}


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Have the streams of processes keep what is written, as they do by default.
    """
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def program(
    directory: Path, runner: str, kind: str, options: str = ""
) -> AbstractAsyncContextManager[Process]:
    """
    Run a program whose last module cannot be initialised.
    """
    source = MODULES + RUNNERS[runner].format(kind=kind, options=options)
    (directory / "program.py").write_text(source)
    if runner == "twistd":
        return running(directory, "-n", "-y", "program.py")
    return spawned(directory, "program.py")


@pytest.mark.usefixtures("buffered")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runner", RUNNERS)
@asynchronous
async def test_a_required_module_that_fails_for_good_ends_the_program(
    tmp_path: Path, runner: str, kind: str
) -> None:
    """
    Who supervises the program learns that it failed by the status, and who reads
    the log by one line, and not by what broke afterwards.
    """
    async with program(tmp_path, runner, kind) as process:
        assert await process.ended == 1
    written = process.output
    line = "third is required, and failed; stopping"
    assert written.count(line) == 1
    assert written.count(KINDS[kind]) == 1
    assert process.errors == ""
    assert "Traceback" not in written
    # All were closed, each before those that it needs.
    closed = [line.partition("closed ")[2] for line in written.splitlines()]
    assert [name for name in closed if name] == ["third", "second", "first"]
    assert written.index(line) < written.index("closed third")
    # What else there is to be done at the end has been, once, and is seen.
    assert written.count("exited through stdout") == (0 if runner == "twistd" else 1)
    assert written.count("exited through the real one") == 1
    assert not (tmp_path / "twistd.pid").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runner", ["twistd", "run"])
@asynchronous
async def test_a_program_that_stays_up_stops_well(
    tmp_path: Path, runner: str, kind: str
) -> None:
    """
    Who asked for it wants to look at what has failed, and then to stop the
    program like any other.
    """
    async with program(tmp_path, runner, kind, ", stayUp=True") as process:
        await process.whenWritten("staying up to report it")
        await process.whenWritten("It runs")
        process.terminate()
        # twistd says of itself that a signal ended it.
        assert await process.ended == (-15 if runner == "twistd" else 0)
    assert "closed first" in process.output
    assert "; stopping" not in process.output


SERVER = """
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tsrv.server.assembly import assemble
from tsrv.server.options import Options


class Module:
    def initialize(self):
        if {early}:
            fail()
        else:
            reactor.callWhenRunning(reactor.callLater, 0, fail)
        return Deferred()

    def tellMeSomething(self):
        return "nothing"

    def close(self):
        print("closed it")


class Empty:
    def initialize(self):
        pass

    def read(self):
        pass


def fail():
    server.startup.wrappers["clock"].fail(ValueError("no way"))


options = Options()
options.parseOptions(["--listen=tcp:0:interface=127.0.0.1", *{words}])
server = assemble(options, reactor, {{}}, {{"clock": Module(), "database": Empty()}})
application = Application("program")
server.setServiceParent(application)
reactor.callWhenRunning(print, "It runs")
"""


@pytest.mark.parametrize("early", [True, False])
@asynchronous
async def test_the_server_ends_when_its_module_fails_for_good(
    tmp_path: Path, early: bool
) -> None:
    """
    It stops as it does by a signal, but for the status.
    """
    (tmp_path / "server.py").write_text(SERVER.format(early=early, words=[]))
    async with running(tmp_path, "-n", "-y", "server.py") as process:
        assert await process.ended == 1
    steps = [
        process.output.index(text)
        for text in (
            "Started",
            "clock failed to initialize, and will not be tried again: ValueError",
            "clock is required, and failed; stopping",
            "Stopped listening",
            "closed it",
            "Stopped\n",
        )
    ]
    assert steps == sorted(steps)
    assert "Async module initialized" not in process.output
    assert "Traceback" not in process.output
    assert process.errors == ""
    assert not (tmp_path / "twistd.pid").exists()


@pytest.mark.parametrize("early", [True, False])
@asynchronous
async def test_the_server_stays_up_if_it_is_told_to(
    tmp_path: Path, early: bool
) -> None:
    """
    C{--stay-up} reaches what it is about.
    """
    source = SERVER.format(early=early, words=["--stay-up"])
    (tmp_path / "server.py").write_text(source)
    async with running(tmp_path, "-n", "-y", "server.py") as process:
        await process.whenWritten("staying up to report it")
        await process.whenWritten("It runs")
        process.terminate()
        # A signal ended it, which is what twistd says too.
        assert await process.ended == -15
    assert "Stopped\n" in process.output


@asynchronous
async def test_who_does_not_fail_keeps_the_status(tmp_path: Path) -> None:
    """
    Only who has failed says so: a program that ends by itself keeps its status.
    """
    (tmp_path / "program.py").write_text("import tsrv\nraise SystemExit(7)\n")
    async with spawned(tmp_path, "program.py") as process:
        assert await process.ended == 7


class Reactor:
    """
    What stands for the reactor: it runs when the test says so.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.stopped = 0
        self.todo: list[Callable[[], object]] = []
        self._error = error

    def callWhenRunning(self, what: Any, *arguments: Any) -> None:
        self.todo.append(lambda: what(*arguments))

    def stop(self) -> None:
        self.stopped += 1
        if self._error is not None:
            raise self._error


class Broken(StringIO):
    """
    A stream that nobody reads any more.
    """

    def flush(self) -> None:
        raise BrokenPipeError()


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """
    What was asked of Python's own way to end, in order.
    """
    asked: list[tuple[Any, ...]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: asked.append((name, *arguments))

    monkeypatch.setattr(atexit, "register", note("register"))
    monkeypatch.setattr(atexit, "unregister", note("unregister"))
    monkeypatch.setattr(atexit, "_run_exitfuncs", note("others"))
    monkeypatch.setattr(os, "_exit", note("exit"))
    return asked


@pytest.mark.parametrize("error", [None, ReactorNotRunning()])
def test_the_reactor_is_stopped_when_it_runs(
    leaving: list[tuple[Any, ...]], error: Exception | None
) -> None:
    """
    A module may fail before the reactor runs, which then cannot be stopped yet;
    or after somebody else has stopped it.
    """
    reactor = Reactor(error)
    stopWithStatus(reactor, 3)
    assert reactor.stopped == 0
    for each in reactor.todo:
        each()
    assert reactor.stopped == 1
    ((what, leave, status),) = leaving
    assert (what, status) == ("register", 3)
    leave(status)


def test_the_status_is_the_last_thing(
    leaving: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What else is to be done at the end is done before, once; and what cannot be
    written any more is no reason to stay.
    """
    stopWithStatus(Reactor(), 3)
    _, leave, status = leaving.pop()
    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", None)
    leave(status)
    assert leaving == [("unregister", leave), ("others",), ("exit", 3)]
