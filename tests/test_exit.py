"""
A program whose required module has failed for good ends in good order, with exit status
1, whatever runs it.
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
    An error that no retry cures.
    """


class Part:
    def __init__(self, name):
        self.name = name

    def initialize(self):
        print(f"initialized {self.name}")

    def close(self):
        print(f"closed {self.name}")
        # The next module has to wait for a moment.
        return deferLater(reactor, 0.01)


class FailsAtOnce(Part):
    def initialize(self):
        raise Bad("no way")


class FailsLater(Part):
    def initialize(self):
        return deferLater(reactor, 0.01, raiseBad)


class Hangs(Part):
    def initialize(self):
        return Deferred()


def raiseBad():
    raise Bad("no way")


def make(kind, **options):
    startup = Startup(reactor, **options)
    startup.add("first", Part("first"))
    startup.add("second", Part("second"), needs=["first"])
    timeout = 0.05 if kind is Hangs else None
    startup.add("third", kind("third"), needs=["second"], fatal=Bad, timeout=timeout)
    return startup


def atEnd():
    # twistd has replaced the first one, which writes nothing any more.
    sys.stdout.write("exited through stdout\\n")
    sys.__stdout__.write("exited through the real one\\n")


atexit.register(atEnd)
reactor.callWhenRunning(print, "It runs", flush=True)
'''

LOGGING = """
from twisted.logger import globalLogBeginner, textFileLogObserver

observers = [textFileLogObserver(sys.__stdout__)]
globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
"""

RUNNERS = {
    "twistd": """
from twisted.application.service import Application

application = Application("program")
make({kind}{options}).setServiceParent(application)
""",
    "react": f"""
from twisted.internet.task import react


def main(reactor):
    startup = make({{kind}}{{options}})
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
    startup.startService()
    return Deferred()

{LOGGING}
react(main)
""",
    "run": f"""
{LOGGING}
startup = make({{kind}}{{options}})
reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
startup.startService()
reactor.run()
""",
}

ERRORS = {
    "FailsAtOnce": "Bad: no way",
    "FailsLater": "Bad: no way",
    "Hangs": "TimeoutError: not ready within 0.05 seconds",
}


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


@pytest.mark.parametrize(
    ("runner", "kind"),
    [
        ("twistd", "FailsAtOnce"),
        ("twistd", "Hangs"),
        ("react", "FailsLater"),
        ("run", "FailsAtOnce"),
    ],
)
@asynchronous
async def test_a_required_module_that_fails_for_good_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str, kind: str
) -> None:
    """
    The exit status is 1, one line of the log names the module, all modules are closed
    in the opposite order, and what is written at the end is not lost.
    """
    # Processes buffer their output by default.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    async with program(tmp_path, runner, kind) as process:
        assert await process.ended == 1
    written = process.output
    line = "third is required, and failed; stopping"
    assert written.count(line) == 1
    assert written.count(ERRORS[kind]) == 1
    assert process.errors == ""
    assert "Traceback" not in written
    closed = [line.partition("closed ")[2] for line in written.splitlines()]
    assert [name for name in closed if name] == ["third", "second", "first"]
    assert written.index(line) < written.index("closed third")
    assert written.count("exited through stdout") == (0 if runner == "twistd" else 1)
    assert written.count("exited through the real one") == 1
    assert not (tmp_path / "twistd.pid").exists()


@asynchronous
async def test_a_program_that_stays_up_is_stopped_by_a_signal(tmp_path: Path) -> None:
    """
    With C{stayUp} a program reports the failure until it is stopped like any other.
    """
    async with program(tmp_path, "run", "Hangs", ", stayUp=True") as process:
        await process.whenWritten("staying up to report it")
        await process.whenWritten("It runs")
        process.terminate()
        assert await process.ended == 0
    assert "closed first" in process.output
    assert "; stopping" not in process.output


@asynchronous
async def test_a_server_whose_database_fails_for_good_ends(tmp_path: Path) -> None:
    """
    The server stops as it does by a signal, but for the exit status.
    """
    words = ["--listen=tcp:0:interface=127.0.0.1", f"--database=sqlite:{tmp_path}"]
    async with running(tmp_path, "-n", "tsrv", *words, "--delay=0") as process:
        assert await process.ended == 1
    steps = [
        process.output.index(text)
        for text in (
            "Started",
            "DatabaseRefused",
            "database is required, and failed; stopping",
            "Stopped listening",
            "Stopped\n",
        )
    ]
    assert steps == sorted(steps)
    assert "Async module initialized" not in process.output
    assert "Traceback" not in process.output
    assert process.errors == ""
    assert list(tmp_path.iterdir()) == []


class Reactor:
    """
    A reactor that runs when the test says so.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.stopped = 0
        self.scheduled: list[Callable[[], object]] = []
        self._error = error

    def callWhenRunning(self, call: Any, *arguments: Any) -> None:
        self.scheduled.append(lambda: call(*arguments))

    def stop(self) -> None:
        self.stopped += 1
        if self._error is not None:
            raise self._error


class Broken(StringIO):
    """
    A stream whose reader is gone.
    """

    def flush(self) -> None:
        raise BrokenPipeError()


@pytest.fixture
def atExit(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """
    The calls to Python's own way to exit, in order.
    """
    calls: list[tuple[Any, ...]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.append((name, *arguments))

    monkeypatch.setattr(atexit, "register", record("register"))
    monkeypatch.setattr(atexit, "unregister", record("unregister"))
    monkeypatch.setattr(atexit, "_run_exitfuncs", record("others"))
    monkeypatch.setattr(os, "_exit", record("exit"))
    return calls


@pytest.mark.parametrize("error", [None, ReactorNotRunning()])
def test_the_reactor_is_stopped_when_it_runs(
    atExit: list[tuple[Any, ...]], error: Exception | None
) -> None:
    """
    A module may fail before the reactor runs, or after it was stopped.
    """
    reactor = Reactor(error)
    stopWithStatus(reactor, 3)
    assert reactor.stopped == 0
    for call in reactor.scheduled:
        call()
    assert reactor.stopped == 1
    ((what, leave, status),) = atExit
    assert (what, status) == ("register", 3)
    leave(status)


def test_the_status_is_set_after_everything_else(
    atExit: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Other exit functions run once before, and a broken stream does not matter.
    """
    stopWithStatus(Reactor(), 3)
    _, leave, status = atExit.pop()
    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", None)
    leave(status)
    assert atExit == [("unregister", leave), ("others",), ("exit", 3)]
