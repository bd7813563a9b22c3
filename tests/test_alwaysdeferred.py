"""
alwaysDeferred: every method of the proxy returns a Deferred in every state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tsrv import OutcomeUnknown, QueuingWrapper, State

from .support import Module, Trouble, inState, lose, ready, recover, resultOf, shut


class Plain(Module):
    """
    A module whose methods do not return Deferreds.
    """

    def now(self, what: Callable[[], Any]) -> Any:
        return what()

    async def slowly(self, what: Callable[[], Any]) -> Any:
        return what()


def explode() -> Any:
    """
    Raise an error.
    """
    raise Trouble("at once")


def raising(error: BaseException) -> Callable[[], Any]:
    """
    @return: A callable that raises an error.
    """

    def function() -> Any:
        raise error

    return function


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("method", ["count", "fail", "write", "read", "compute"])
@pytest.mark.parametrize("settles", [True, False, None])
def test_every_method_in_every_state(
    clock: Clock, state: State, method: str, settles: bool | None
) -> None:
    """
    A call returns a Deferred, whatever the method does and whatever the state is.
    """
    _, wrapper, proxy = inState(
        clock, state, alwaysDeferred=True, replay=["read"], settles=settles
    )
    call = getattr(proxy, method)(1)
    assert isinstance(call, Deferred)
    result = resultOf(call)
    if state is State.READY and method == "fail":
        assert isinstance(result.error, Trouble)
    elif state is State.READY and method == "count":
        assert result.value == 1
    shut(wrapper)
    clock.advance(0)
    if method in ("count", "fail", "read") or settles is not True:
        assert not result.pending
    else:
        call.cancel()


@pytest.mark.parametrize("losable", [True, False])
@pytest.mark.parametrize("method", ["now", "slowly"])
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda: 1, 1),
        (lambda: None, None),
        (explode, "at once"),
        (raising(SystemExit("exit")), "exit"),
    ],
)
def test_what_a_ready_call_returns(
    clock: Clock, losable: bool, method: str, what: Callable[[], Any], expected: object
) -> None:
    """
    The Deferred of a ready call fires with the value of the method, or fails with its
    error.
    """
    module = Plain()
    wrapper = QueuingWrapper(
        module, clock, alwaysDeferred=True, settles=None if losable else True
    )
    ready(module, wrapper)
    result = resultOf(getattr(wrapper.proxy, method)(what))
    if isinstance(expected, str):
        assert str(result.error) == expected
    else:
        assert result.value == expected
    assert wrapper.inProgress == 0


@pytest.mark.parametrize("deferred", [succeed(1), fail(Trouble()), Deferred()])
def test_a_deferred_of_the_modules_own(clock: Clock, deferred: Deferred[Any]) -> None:
    """
    If a module ends its calls itself, the Deferred that it returns ends like the call.
    """
    module = Plain()
    wrapper = QueuingWrapper(module, clock, alwaysDeferred=True, settles=True)
    ready(module, wrapper)
    result = resultOf(wrapper.proxy.now(lambda: deferred))
    if not deferred.called:
        deferred.callback(1)
    assert result.error if result.fired[0] != 1 else result.value == 1


@pytest.mark.parametrize("lost", [True, False])
def test_a_kept_method(clock: Clock, lost: bool) -> None:
    """
    A method that was taken from the proxy in READY queues after a loss, and always
    returns a Deferred.
    """
    module = Plain()
    wrapper = QueuingWrapper(
        module, clock, alwaysDeferred=True, retryPolicy=lambda _: 1.0
    )
    ready(module, wrapper)
    kept: Any = wrapper.proxy.count
    assert resultOf(kept(1)).value == 1
    if lost:
        lose(module)
        queued = resultOf(kept(2))
        assert queued.pending
        recover(clock, module)
        assert queued.value == 2
    assert resultOf(kept(3)).value == 3


def test_wrong_arguments(clock: Clock) -> None:
    """
    A call with wrong arguments fails, also one of an C{async} method. Without
    alwaysDeferred, it raises.
    """
    for method in ("write", "compute"):
        _, _, proxy = inState(clock, State.READY, alwaysDeferred=True, settles=True)
        assert isinstance(resultOf(getattr(proxy, method)()).error, TypeError)
        _, _, proxy = inState(clock, State.READY, settles=True)
        with pytest.raises(TypeError):
            getattr(proxy, method)()


def test_calls_are_tracked_all_the_same(clock: Clock) -> None:
    """
    Calls are tracked with alwaysDeferred, too: a call in progress at a loss has an
    unknown outcome.
    """
    module, wrapper, proxy = inState(clock, State.READY, alwaysDeferred=True)
    result = resultOf(proxy.write(1))
    assert wrapper.inProgress == 1
    lose(module)
    clock.advance(0)
    assert isinstance(result.error, OutcomeUnknown)
    recover(clock, module)


def test_attributes_and_the_life_cycle_stay_what_they_are(clock: Clock) -> None:
    """
    Attributes are read as usual, and initialize() and close() belong to the wrapper.
    """
    _, wrapper, proxy = inState(clock, State.READY, alwaysDeferred=True)
    assert proxy.version == 1
    assert proxy.initialize == wrapper.initialize
    assert proxy.close == wrapper.close
