"""
The states of a wrapper.

A wrapper is always in exactly one L{State}, and only an L{Event} moves it to
another one. L{TRANSITIONS} has a row for each state: the events that it knows, and
the state that each of them leads to. Any other event is illegal:
L{Lifecycle.on} raises L{IllegalTransition}, and the state stays what it was.

The state decides what happens to a call::

                      call is     why
    NEW               queued      nobody has asked for the module yet
    INITIALIZING      queued      an attempt is in progress, or waits for its turn
    RETRYING          queued      an attempt failed, the next one is scheduled
    DRAINING          queued      the module is ready, but earlier calls wait
    READY             passed      the proxy's methods are the module's own
    PAUSED            queued      the module is ready, but somebody holds its calls
    LOST              queued      it was ready; it is being closed (reset()), or the
                                  next attempt is scheduled
    FAILED            refused     no retry will help (InitializationFailed)
    CLOSING, CLOSED   refused     nothing will ever run again (Closed)

C{DRAINING} is a state of its own because of the mistake that queues in front of
slow modules make most often: they call the module ready first and empty the queue
afterwards, and a call made in the meantime overtakes all that waited.

C{RETRYING} and C{LOST} both wait for a timer. They differ in what they mean to an
operator: the one has not been ready since it was asked, the other has just been.

C{PAUSED} is entered from a healthy module only. A module that is paused while it is
not ready goes through its other states as always, and is paused when it would
otherwise run the queued calls.
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
    RESUME = "the last one who paused the module resumes it"
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
    An event happened in a state that does not know it; nothing has changed.

    @ivar state: The state.
    @ivar event: The event.
    """

    def __init__(self, state: State, event: Event, order: str | None = None) -> None:
        """
        @param order: What was called, for the message.
        """
        message = f"not possible in state {state.name}"
        message = f"{order} is {message}" if order else f"{message}: {event.value}"
        super().__init__(message)
        self.state = state
        self.event = event


class Lifecycle:
    """
    The state of one wrapper. Nothing else changes it.

    @ivar state: The L{State} now.
    @ivar since: The time at which it was entered, by the reactor.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self.state = State.NEW
        self.since = reactor.seconds()

    def on(self, event: Event) -> None:
        """
        Follow the table.

        @raise IllegalTransition: The present state does not know this event.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(self.state, event) from None
        self.since = self._reactor.seconds()
