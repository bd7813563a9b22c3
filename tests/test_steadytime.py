"""
Setting the system's clock does not change any timer of a server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock

from tsrv import QueuingWrapper
from tsrv.asyncmodule import timeOfDay
from tsrv.server.steadytime import SteadyTime

from .postgresql_server import inThread
from .processes import spawned
from .redis_server import Redis
from .redis_server import ownRedis as ownRedis
from .test_process import listen
from .websupport import (
    Teller,
    asynchronous,
    errorsIn,
    logged,
    reservedPort,
    textsOf,
)

HOUR = 3600.0


class Machine:
    """
    A reactor whose clocks the test sets.
    """

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.monotonic = 50.0
        self.reactor = SelectReactor()
        self.reactor.seconds = lambda: self.wall
        self.service = SteadyTime(self.reactor, lambda: self.monotonic)
        self.called: list[str] = []

    def start(self) -> None:
        self.service.startService()

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds
        self.reactor.runUntilCurrent()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """
    Such a reactor, whose service was not started.
    """
    machine = Machine()
    yield machine
    for each in machine.reactor.removeAll():
        each.connectionLost(None)


def test_timesAreContinuous(machine: Machine) -> None:
    """
    At the start the steady time is the time of day, so timers that were set before keep
    their delays.
    """
    machine.reactor.callLater(10, machine.called.append, "before")
    machine.start()
    assert machine.reactor.seconds() == machine.wall
    machine.wait(9.9)
    assert machine.called == []
    machine.wait(0.2)
    assert machine.called == ["before"]


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_timersKeepTheirDelays(machine: Machine, step: float) -> None:
    """
    A clock that is set back delays no timer, and a clock that is set forward fires none
    early.
    """
    machine.start()
    machine.reactor.callLater(10, machine.called.append, "called")
    machine.wall += step
    machine.wait(9.9)
    assert machine.called == []
    machine.wait(0.2)
    assert machine.called == ["called"]


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_queuedCallsWaitAsLongAsAlways(machine: Machine, step: float) -> None:
    """
    A queued call expires on time, even if its wrapper is older than the server and the
    clock is set before the call.
    """
    wrapper = QueuingWrapper(Teller(), machine.reactor, timeout=30)
    ask = wrapper.proxy.tellMeSomething
    machine.start()
    machine.wall += step
    call = ask()
    call.addErrback(lambda failure: machine.called.append(str(failure.value)))
    machine.wait(29.9)
    assert machine.called == []
    machine.wait(0.2)
    (error,) = machine.called
    assert "waited 30.1 s" in error


def test_timeOfDayFollowsTheClock(machine: Machine) -> None:
    """
    The time of day is the time of the system's clock, whatever it was set to.
    """
    machine.start()
    machine.wall -= HOUR
    assert timeOfDay(machine.reactor) == machine.wall
    assert machine.reactor.seconds() == machine.wall + HOUR


def test_eachStepIsLogged(machine: Machine) -> None:
    """
    A step of the clock is logged once, within a second, with its direction and size.
    """
    machine.start()
    with logged() as events:
        machine.wall -= HOUR
        machine.wait(1)
        machine.wait(60)
        machine.wall += 90
        machine.wait(1)
        machine.wait(60)
    assert textsOf(events) == [
        "The system clock was set back by 3600.0 s; timers keep their delays",
        "The system clock was set forward, or the machine slept, by 90.0 s; "
        "timers keep their delays",
    ]
    assert [each["seconds"] for each in errorsIn(events)] == [HOUR, 90]


def test_stepsAreLoggedOnceAMinute(machine: Machine) -> None:
    """
    If the clock is set repeatedly, one line a minute has the sum.
    """
    machine.start()
    with logged() as events:
        for _ in range(120):
            machine.wall -= 5
            machine.wait(1)
    assert textsOf(events) == [
        "The system clock was set back by 5.0 s; timers keep their delays",
        "The system clock was set back by 300.0 s; timers keep their delays",
    ]


def test_correctionsAreNotLogged(machine: Machine) -> None:
    """
    Small corrections of the clock are not logged.
    """
    machine.start()
    with logged() as events:
        for _ in range(200):
            machine.wall += 0.1
            machine.wait(1)
    assert events == []


def test_secondServerKeepsTheTime(machine: Machine) -> None:
    """
    A second server on the same reactor does not change the time, and logs steps since
    its own start.
    """
    machine.start()
    seconds = machine.reactor.seconds
    machine.wall -= HOUR
    second = SteadyTime(machine.reactor)
    with logged() as events:
        second.startService()
        machine.service.stopService()
        machine.wait(1)
    assert machine.reactor.seconds is seconds
    assert events == []
    second.stopService()
    assert machine.reactor.getDelayedCalls() == []


def test_clocksOfTestsAreLeftAlone() -> None:
    """
    The clock of a test keeps its time, and gets no timer.
    """
    clock = Clock()
    service = SteadyTime(clock)
    service.startService()
    clock.advance(5)
    assert clock.seconds() == timeOfDay(clock) == 5
    assert clock.getDelayedCalls() == []
    service.stopService()


SETTABLE = """
import sys, time
system = time.time
time.time = lambda: system() + float(open("step").read())
from twisted.scripts.twistd import run
run()
"""
"""
A script that runs twistd with a clock that a file sets.
"""


@asynchronous
async def test_attemptsGoOn(ownRedis: Redis, tmp_path: Path) -> None:
    """
    A module becomes ready although the clock is set back by an hour during an outage.
    """

    def setClock(step: float) -> None:
        (tmp_path / "new").write_text(str(step))
        os.replace(tmp_path / "new", tmp_path / "step")

    setClock(0)
    with reservedPort() as port:
        words = [listen(port), f"--sessions={ownRedis.url}", "--delay=0"]
        run = spawned(tmp_path, "-c", SETTABLE, "-n", "--pidfile=", "tsrv", *words)
        async with run as process:
            await process.whenWritten("sessions: attempt 1 failed")
            setClock(-HOUR)
            await process.whenWritten("The system clock was set back by 3600.0 s")
            await inThread(ownRedis.start)
            await process.whenWritten("sessions: ready after")
