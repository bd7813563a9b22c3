"""
The table of states.
"""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tsrv.queuing.states import TRANSITIONS, Event, IllegalTransition, Lifecycle, State


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    """
    A legal event leads to the state in the table; an illegal one raises and changes
    nothing.
    """
    lifecycle = Lifecycle(Clock())
    lifecycle.state = state
    if event in TRANSITIONS[state]:
        lifecycle.on(event)
        assert lifecycle.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition) as raised:
            lifecycle.on(event)
        message = f"not possible in state {state.name}: {event.value}"
        assert str(raised.value) == message
        assert (raised.value.state, raised.value.event) == (state, event)
        assert lifecycle.state is state


def test_every_state_can_be_reached_and_left() -> None:
    """
    No state is a dead end: every state can be reached from NEW, and CLOSED from every
    state. CLOSED is final.
    """

    def reachable(state: State) -> set[State]:
        found = {state}
        while True:
            further = {to for each in found for to in TRANSITIONS[each].values()}
            if further <= found:
                return found
            found |= further

    assert reachable(State.NEW) == set(State)
    assert all(State.CLOSED in reachable(state) for state in State)
    assert reachable(State.CLOSING) == {State.CLOSING, State.CLOSED}
