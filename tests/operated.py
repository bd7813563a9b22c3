"""
A program whose modules the test controls, for the tests of the operator pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from zope.interface import alsoProvides, implementer

from tsrv import Startup
from tsrv.asyncmodule import ICountsFailures, IHasNote

from .support import Module, Refused, Trouble, resultOf

__all__ = ["SECRET", "SURROGATE", "Noted", "Program", "countFailures", "program"]

SECRET = "the password of admin@db.internal is wrong"  # noqa: S105
"""
The message of errors.
"""


SURROGATE = "caf\udce9"
"""
A file name that is not valid text.
"""


@implementer(IHasNote)
class Noted:
    """
    A module whose note and error are not valid text.
    """

    def initialize(self) -> None:
        raise Trouble(SURROGATE)

    def note(self) -> str:
        return SURROGATE


class Program:
    """
    A program that stays up.

    @ivar modules: Its modules by name.
    @ivar statuses: The exit statuses with which the program was asked to stop.
    """

    def __init__(self, clock: Any, stayUp: bool = True) -> None:
        self.clock = clock
        self.statuses: list[int] = []
        stopProgram = self.statuses.append
        self.startup = Startup(clock, stayUp=stayUp, stopProgram=stopProgram)
        self.modules: dict[str, Module] = {}

    def add(self, name: str, *needs: str, **options: Any) -> Any:
        module = self.modules[name] = Module()
        options.setdefault("retryPolicy", lambda attempts: 5.0)
        return self.startup.add(name, module, needs=needs, fatal=Refused, **options)

    def start(self) -> None:
        self.startup.startService()

    def succeed(self, *names: str) -> None:
        for name in names:
            self.modules[name].attempts[-1].callback(None)

    def fail(
        self, name: str, error: type[Exception] = Trouble, message: str = SECRET
    ) -> None:
        self.modules[name].attempts[-1].errback(error(message))

    def lose(self, name: str, message: str = SECRET) -> None:
        self.modules[name].watches[-1].errback(Trouble(message))

    def pause(self, name: str, by: object = None) -> None:
        resultOf(self.startup.pause(name, by))

    def resume(self, name: str, by: object = None) -> None:
        self.startup.resume(name, by)

    def announceStop(self) -> None:
        self.startup.announceStop()

    def stop(self) -> None:
        """
        Stop the program. Its modules close at once.
        """
        stopped = resultOf(self.startup.stopService())
        while stopped.pending:
            for module in self.modules.values():
                for closing in module.closings:
                    if not closing.called:
                        closing.callback(None)
            self.clock.advance(0)


def countFailures(program: Program, name: str, failures: Any) -> None:
    """
    Let a module report failed calls.
    """
    module: Any = program.modules[name]
    module.failures = failures
    alsoProvides(module, ICountsFailures)


@pytest.fixture
def program(clock: Clock) -> Iterator[Program]:
    """
    A program that is stopped after the test.
    """
    program = Program(clock)
    yield program
    program.stop()
