"""
The states of a wrapper.

A wrapper is always in exactly one L{State}, which decides what happens to a call. Only
an L{Event} moves it to another state. L{TRANSITIONS} has a row for each state: the
legal events, each with the next state. Any other event is illegal: L{Lifecycle.on}
raises L{IllegalTransition}, and the state does not change.

C{DRAINING} is a state of its own because many queues in front of slow modules have the
same fault: they declare the module ready before they empty the queue, so that a new
call overtakes all queued ones.

In C{RETRYING} and in C{LOST} the next attempt is scheduled, or begins when a reset has
closed the module. They differ for an operator: a C{LOST} module was ready until now; in
C{RETRYING} an attempt has failed, after C{initialize()} or after a loss.

Only a healthy module becomes C{PAUSED}. A module that is paused while it is not ready
goes through its other states as usual, and becomes C{PAUSED} when it would otherwise
run the queued calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from twisted.internet.interfaces import IReactorTime

from ..asyncmodule import State

__all__ = [
    "HEALTHY_STATES",
    "TRANSITIONS",
    "Event",
    "IllegalTransition",
    "Lifecycle",
    "State",
]


# The module works, whether it gets calls or not.
HEALTHY_STATES: Final = (State.DRAINING, State.READY, State.PAUSED)


class Event(Enum):
    """
    The events that move a wrapper from one state to another.
    """

    INITIALIZE = "initialize() is called"
    SUCCEED = "the attempt succeeds"
    FAIL = "the attempt fails, but another one may succeed; or reset() is called"
    FAIL_FOR_GOOD = "the attempt fails and no retry will help, or fail() is called"
    RETRY = "the next attempt is due"
    DRAINED = "the last queued call has been started"
    PAUSE = "pause() is called, or was called before the module became ready"
    RESUME = "the last holder resumes the module"
    LOSE = "the module stops working, or reset() is called"
    CLOSE = "close() is called"
    CLOSED = "the module is closed and every queued call has ended"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.NEW: {
            Event.INITIALIZE: State.INITIALIZING,
            Event.FAIL_FOR_GOOD: State.FAILED,
            Event.CLOSE: State.CLOSING,
        },
        State.INITIALIZING: {
            Event.SUCCEED: State.DRAINING,
            Event.FAIL: State.RETRYING,
            Event.FAIL_FOR_GOOD: State.FAILED,
            Event.CLOSE: State.CLOSING,
        },
        State.RETRYING: {
            Event.RETRY: State.INITIALIZING,
            Event.FAIL_FOR_GOOD: State.FAILED,
            Event.CLOSE: State.CLOSING,
        },
        State.DRAINING: {
            Event.DRAINED: State.READY,
            Event.PAUSE: State.PAUSED,
            Event.LOSE: State.LOST,
            Event.CLOSE: State.CLOSING,
        },
        State.READY: {
            Event.PAUSE: State.PAUSED,
            Event.LOSE: State.LOST,
            Event.CLOSE: State.CLOSING,
        },
        State.PAUSED: {
            Event.RESUME: State.DRAINING,
            Event.LOSE: State.LOST,
            Event.CLOSE: State.CLOSING,
        },
        State.LOST: {
            Event.RETRY: State.INITIALIZING,
            Event.FAIL_FOR_GOOD: State.FAILED,
            Event.CLOSE: State.CLOSING,
        },
        State.FAILED: {
            Event.INITIALIZE: State.INITIALIZING,
            Event.CLOSE: State.CLOSING,
        },
        State.CLOSING: {Event.CLOSED: State.CLOSED},
        State.CLOSED: {},
    }
)


class IllegalTransition(RuntimeError):
    """
    The called method is not possible in the state of the module; nothing has changed.

    @ivar state: The L{State} of the module.
    @ivar event: The event that the call would have caused; its C{value} describes it.
    """

    def __init__(self, state: State, event: Event, order: str | None = None) -> None:
        """
        @param state: The state of the module.
        @param event: The event that the call would have caused.
        @param order: The name of the called method, for the message.
        """
        message = f"not possible in state {state.name}"
        message = f"{order} is {message}" if order else f"{message}: {event.value}"
        super().__init__(message)
        self.state = state
        self.event = event


class Lifecycle:
    """
    The state of one wrapper. Only this object changes the state.

    @ivar state: The current L{State}.
    @ivar since: The time of its last change, by the reactor.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self.state = State.NEW
        self.since = reactor.seconds()

    def on(self, event: Event) -> None:
        """
        Change the state as the table says.

        @raise IllegalTransition: The event is illegal in the current state.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(self.state, event) from None
        self.since = self._reactor.seconds()
