"""
A program whose required module has failed for good closes its modules and exits with
status 1, under any runner.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tsrv.starting.exit import stopWithStatus

from .processes import running, spawned
from .websupport import asynchronous

MODULES = """
import atexit
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tsrv import Startup


class Part:
    def __init__(self, name, initialize=lambda: None):
        self.name = name
        self.initialize = initialize

    def close(self):
        print(f"closed {self.name}")
        # The next module has to wait for a moment.
        return deferLater(reactor, 0.01)


def fail():
    raise LookupError("no way")


def failLater():
    return deferLater(reactor, 0.01, fail)


def makeStartup(initialize):
    startup = Startup(reactor)
    startup.add("first", Part("first"))
    startup.add("second", Part("second"), needs=["first"])
    third = Part("third", initialize)
    startup.add("third", third, needs=["second"], fatal=LookupError, timeout=0.5)
    return startup


def atEnd():
    # twistd has replaced the first one, which writes nothing any more.
    sys.stdout.write("exited through stdout\\n")
    sys.__stdout__.write("exited through the real one\\n")


atexit.register(atEnd)
"""

STANDALONE = """
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

observers = [textFileLogObserver(sys.__stdout__)]
globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)


def start(reactor):
    startup = makeStartup({initialize})
    reactor.addSystemEventTrigger("before", "shutdown", startup.stopService)
    startup.startService()
    return Deferred()


"""

RUNNERS = {
    "twistd": """
from twisted.application.service import Application

application = Application("program")
makeStartup({initialize}).setServiceParent(application)
""",
    "react": f"{STANDALONE}react(start)\n",
    "run": f"{STANDALONE}start(reactor)\nreactor.run()\n",
}


@pytest.mark.parametrize(
    ("runner", "initialize", "error"),
    [
        ("twistd", "fail", "LookupError: no way"),
        ("react", "failLater", "LookupError: no way"),
        ("run", "Deferred", "TimeoutError: not ready within 0.5 s"),
    ],
)
@asynchronous
async def test_a_required_module_that_fails_for_good_ends_the_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: str,
    initialize: str,
    error: str,
) -> None:
    """
    The exit status is 1, one log line names the module, all modules are closed in
    reverse order, and buffered output is written.
    """
    # By default processes buffer their output.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    source = MODULES + RUNNERS[runner].format(initialize=initialize)
    (tmp_path / "program.py").write_text(source)
    isTwistd = runner == "twistd"
    run, words = (running, ["-n", "-y"]) if isTwistd else (spawned, [])
    async with run(tmp_path, *words, "program.py") as process:
        assert await process.ended == 1
    written = process.output
    line = "third is required, and failed; stopping"
    assert written.count(line) == 1
    assert written.count(error) == 1
    assert process.errors == ""
    assert "Traceback" not in written
    assert re.findall(r"closed (\w+)", written) == ["third", "second", "first"]
    assert written.index(line) < written.index("closed third")
    assert written.count("exited through stdout") == (0 if isTwistd else 1)
    assert written.count("exited through the real one") == 1
    assert not (tmp_path / "twistd.pid").exists()


@asynchronous
async def test_a_server_whose_database_fails_for_good_ends(tmp_path: Path) -> None:
    """
    The server stops as it does on a signal, except for the exit status.
    """
    words = ["--listen=tcp:0:interface=127.0.0.1", f"--database=sqlite:{tmp_path}"]
    async with running(tmp_path, "-n", "tsrv", *words, "--delay=0") as process:
        assert await process.ended == 1
    steps = [
        process.output.index(text)
        for text in (
            "Started",
            "database: failed for good (",
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


class StoppedReactor:
    """
    A reactor that cannot be stopped any more.
    """

    def callWhenRunning(self, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def stop(self) -> None:
        raise ReactorNotRunning


class BrokenStream(StringIO):
    """
    A stream whose reader has closed it.
    """

    def flush(self) -> None:
        raise BrokenPipeError


def test_nothing_keeps_the_status_from_being_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    The exit status is set even if the reactor is already stopping, or a stream is
    broken. Other exit functions run once before the process ends.
    """
    calls: list[tuple[Any, ...]] = []

    def record(module: Any, name: str) -> None:
        monkeypatch.setattr(module, name, lambda *words: calls.append((name, *words)))

    for name in ("register", "unregister", "_run_exitfuncs"):
        record(atexit, name)
    record(os, "_exit")
    monkeypatch.setattr(sys, "stdout", BrokenStream())
    monkeypatch.setattr(sys, "stderr", None)
    stopWithStatus(StoppedReactor(), 3)
    ((_, leave, status),) = calls
    leave(status)
    assert calls[1:] == [("unregister", leave), ("_run_exitfuncs",), ("_exit", 3)]


@pytest.mark.parametrize("reactor", [Clock(), MemoryReactorClock()])
def test_the_reactor_of_a_test_does_not_change_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, reactor: Any
) -> None:
    """
    A reactor that never runs, such as a C{Clock} in a test, does not change the exit
    status of the process.
    """
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *words: registered.append(words))
    with suppress(AttributeError):
        stopWithStatus(reactor, 1)
    assert registered == []
