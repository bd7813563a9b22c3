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
    A legal event leads where the table says; an illegal one raises and changes
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
        assert str(raised.value) == f"{event.name} is not legal in state {state.name}"
        assert (raised.value.state, raised.value.event) == (state, event)
        assert lifecycle.state is state


def test_every_state_has_its_row() -> None:
    """
    The table has a row for each state.
    """
    assert set(TRANSITIONS) == set(State)


def test_every_state_can_be_reached_and_left() -> None:
    """
    A wrapper never gets stuck: every state can be reached from NEW, and CLOSED
    from every state.
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


def test_only_closing_ends_in_closed() -> None:
    """
    CLOSED is final, and is entered from CLOSING alone.
    """
    assert TRANSITIONS[State.CLOSED] == {}
    assert [s for s in State if State.CLOSED in TRANSITIONS[s].values()] == [
        State.CLOSING
    ]
