"""
The table of states.
"""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tsrv.queuing.states import (
    TRANSITIONS,
    Event,
    IllegalTransition,
    Lifecycle,
    State,
)


def inState(state: State) -> Lifecycle:
    """
    @return: A lifecycle in that state.
    """
    lifecycle = Lifecycle(Clock())
    lifecycle.state = state
    return lifecycle


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    """
    A legal event leads where the table says; one that is not raises, says what
    is wrong, and changes nothing.
    """
    lifecycle = inState(state)
    if event in TRANSITIONS[state]:
        assert lifecycle.on(event) is lifecycle.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition) as raised:
            lifecycle.on(event)
        assert str(raised.value) == f"{event.name} is not legal in state {state.name}"
        assert (raised.value.state, raised.value.event) == (state, event)
        assert lifecycle.state is state


def test_every_state_has_its_row() -> None:
    """
    A state that is forgotten in the table would make every event illegal in
    it.
    """
    assert set(TRANSITIONS) == set(State)


def test_every_state_can_be_reached_and_left() -> None:
    """
    A wrapper never gets stuck: from NEW there is a way to every state, and
    from every state one to CLOSED.
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
    Nothing revives what is closed, and nothing is closed without closing.
    """
    assert TRANSITIONS[State.CLOSED] == {}
    assert [
        state for state in State if State.CLOSED in TRANSITIONS[state].values()
    ] == [State.CLOSING]
