"""
Mistakes that are reported when the wrapper is made, and programming errors that appear
when the module is initialised.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredSemaphore, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs

from tsrv import QueuingWrapper, State

from .support import Module, Trouble, inState, messageOf, resultOf, shut, wrap


def odd(**attributes: Any) -> Any:
    """
    @return: A module with these class attributes.
    """
    return type("Odd", (Module,), attributes)()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Module, "Module is a class.*an instance"),
        (odd(whenLost=property(lambda self: Deferred())), "whenLost"),
        (odd(whenLost=cached_property(lambda self: Deferred())), "whenLost"),
        (odd(whenLost=Deferred()), "whenLost"),
        (odd(initialize=lambda self, url: None), "initialize.*url"),
        (odd(initialize=lambda self, *, url: None), "initialize.*url"),
        (odd(close=lambda self, what: None), "close.*what"),
        (odd(whenLost=lambda self, what: None), "whenLost.*what"),
    ],
)
def test_modules_that_make_no_sense(clock: Clock, module: Any, message: str) -> None:
    """
    A class in place of a module is refused, and so is a life-cycle method that is not
    callable.
    """
    with pytest.raises(TypeError, match=message):
        QueuingWrapper(module, clock)


def needy(what: object) -> None:
    """
    A function with a required argument.
    """


@pytest.mark.parametrize(
    "name", ["initialize", "close", "whenLost", "ping", "whenIdle"]
)
@pytest.mark.parametrize("given", [5, "version", succeed(None), needy])
def test_callables_that_make_no_sense(clock: Clock, name: str, given: object) -> None:
    """
    A callable that needs arguments is refused by its name, and so is an object that is
    not callable, or the name of such an object.
    """
    with pytest.raises(TypeError, match=name):
        wrap(clock, **{name: given})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ping": bool, "pingInterval": 0}, ValueError, "pingInterval must be"),
        ({"ping": bool, "pingInterval": -1.0}, ValueError, "pingInterval must be"),
        ({"ping": bool, "pingInterval": None}, TypeError, "pingInterval must be"),
        ({"lazy": "yes"}, TypeError, "lazy must be"),
        ({"lazy": needy}, TypeError, "lazy"),
        ({"attemptSlots": 4}, TypeError, "attemptSlots must be"),
        ({"timeout": "30"}, TypeError, "timeout must be"),
        ({"retryPolicy": lambda: 1.0}, TypeError, "retryPolicy"),
        ({"replay": 5}, TypeError, "replay must be"),
        ({"replay": [5]}, TypeError, "replay must be"),
    ],
)
def test_options_that_make_no_sense(
    clock: Clock, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """
    An invalid option is reported when the wrapper is made.
    """
    with pytest.raises(error, match=message):
        wrap(clock, **options)


def test_what_is_accepted(clock: Clock) -> None:
    """
    A callable may have optional arguments, or an unreadable signature.
    """

    class Odd:
        def connect(self, url: str = "here", *more: object, **others: object) -> None:
            pass

        def quit(self, url: str) -> None:
            pass

    module = Odd()
    wrapper = QueuingWrapper(
        module,
        clock,
        initialize=module.connect,
        close=partial(module.quit, "here"),
        whenLost=Deferred,
        ping=dict,
        whenIdle=bool,
        attemptSlots=DeferredSemaphore(2),
    )
    wrapper.initialize()
    assert wrapper.state is State.READY
    wrapper.close()
    clock.advance(0)


@pytest.mark.parametrize("delay", [Decimal("1.5"), Fraction(3, 2), True])
def test_delays_of_any_type(clock: Clock, delay: Any) -> None:
    """
    A retry policy may return any kind of number.
    """
    module, wrapper, _ = inState(clock, State.RETRYING, retryPolicy=lambda _: delay)
    assert wrapper.retryAfter() == float(delay)
    clock.advance(float(delay))
    assert len(module.attempts) == 2
    shut(wrapper)


PROGRAMMING = [
    TypeError("missing argument"),
    AttributeError("no such attribute"),
    NameError("no such name"),
    KeyError("no such key"),
    IndexError("no such index"),
    AssertionError("impossible"),
    ImportError("no such module"),
    NotImplementedError("later"),
]


@pytest.mark.parametrize("error", PROGRAMMING, ids=repr)
@pytest.mark.parametrize("isRaised", [True, False])
def test_a_programming_error_is_logged_with_its_traceback(
    clock: Clock, loggedFailures: list[LogEvent], error: Exception, isRaised: bool
) -> None:
    """
    A programming error in initialize() is logged once with its traceback, at the first
    attempt; it is retried like any error.
    """

    def initialize() -> Any:
        if isRaised:
            raise error
        return fail(error)

    _, wrapper, _ = wrap(clock, initialize=initialize, close=bool, name="the users")
    with capturedLogs() as logged:
        resultOf(wrapper.initialize())
        clock.advance(1)
    (failure,) = [each["log_failure"] for each in loggedFailures]
    assert failure.value is error
    assert wrapper.attempts == 2
    assert any("the users" in messageOf(each) for each in logged)
    loggedFailures.clear()
    shut(wrapper)


@pytest.mark.parametrize("error", [Trouble("refused"), OSError(111, "refused")])
def test_any_other_error_has_no_traceback(clock: Clock, error: Exception) -> None:
    """
    Any other error has one line in the log.
    """
    _, wrapper, _ = wrap(clock, initialize=lambda: fail(error), close=bool)
    resultOf(wrapper.initialize())
    assert wrapper.state is State.RETRYING
    shut(wrapper)
