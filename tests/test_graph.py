"""
Errors in the needs of modules are found before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsrv.starting.graph import GraphError, checkGraph


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"a": []},
        {"a": ["b"], "b": []},
        {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []},
    ],
)
def test_a_good_graph(needs: Mapping[str, Sequence[str]]) -> None:
    """
    Several modules may have the same need.
    """
    checkGraph(needs)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"a": ["a"]}, "modules need each other: a → a"),
        (
            {"database": ["configuration"], "configuration": ["database"]},
            "modules need each other: database → configuration → database",
        ),
        (
            {"x": ["a"], "a": ["y", "b"], "y": [], "b": ["c"], "c": ["a"]},
            "modules need each other: a → b → c → a",
        ),
        (
            {"users": ["databse"], "database": []},
            "users → databse: there is no module 'databse'; did you mean 'database'?",
        ),
        (
            {"users": ["database"], "database": ["x"]},
            "database → x: there is no module 'x'",
        ),
    ],
)
def test_an_error_shows_the_path(
    needs: Mapping[str, Sequence[str]], message: str
) -> None:
    """
    The error names the modules on the path to it, and suggests a similar name.
    """
    with pytest.raises(GraphError) as raised:
        checkGraph(needs)
    assert str(raised.value) == message
    assert " → ".join(raised.value.path) in message


def test_a_long_chain() -> None:
    """
    A chain that is longer than the recursion limit can be checked.
    """
    size = 20_000
    needs = {str(number): [str(number + 1)] for number in range(size)}
    needs[str(size)] = []
    checkGraph(needs)
    needs[str(size)] = ["0"]
    with pytest.raises(GraphError) as raised:
        checkGraph(needs)
    assert len(raised.value.path) == size + 2


@given(st.data())
def test_every_cycle_is_found(data: st.DataObject) -> None:
    """
    The error of a cyclic graph shows a cycle; any other graph has an order.
    """
    size = data.draw(st.integers(1, 8))
    numbers = st.lists(st.integers(0, size - 1), max_size=3)
    needs = {
        str(number): [str(each) for each in data.draw(numbers)]
        for number in range(size)
    }
    try:
        checkGraph(needs)
    except GraphError as error:
        path = error.path
        assert path[0] == path[-1]
        assert all(b in needs[a] for a, b in pairwise(path))
    else:
        started: set[str] = set()
        while len(started) < size:
            possible = {
                name
                for name in needs
                if name not in started and started.issuperset(needs[name])
            }
            assert possible
            started |= possible
