"""
The pictures and tables of the documentation agree with the code.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tsrv.queuing.states import TRANSITIONS, State

from .processes import ROOT

DOCS = ROOT / "docs"

LEGAL = {(state, to) for state in State for to in TRANSITIONS[state].values()}


def test_the_picture_shows_all_transitions() -> None:
    """
    The arrows of the diagram are the transitions of the code, each of them once.
    """
    picture = ElementTree.parse(DOCS / "_static" / "states.svg")  # noqa: S314
    drawn = [
        (State[state], State[arrow.attrib["data-to"]])
        for arrow in picture.iter()
        if "data-from" in arrow.attrib
        for state in arrow.attrib["data-from"].split()
    ]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == LEGAL


def test_the_table_has_all_transitions() -> None:
    """
    The table of states has every state, and its possible next states.
    """
    rows = re.findall(
        r"^\| `([A-Z]+)` \|.*\| ([^|]*)\|$", (DOCS / "theory.md").read_text(), re.M
    )
    assert [State[name] for name, _ in rows] == list(State)
    listed = {
        (State[name], State[to])
        for name, following in rows
        for to in re.findall(r"`(\w+)`", following)
    }
    assert listed == LEGAL


def test_the_table_says_what_happens_to_calls() -> None:
    """
    The table says in which states calls are queued, passed on or refused.
    """
    table = dict(
        re.findall(
            r"^\| `([A-Z]+)` \| (queued|passed on|refused) \|",
            (DOCS / "theory.md").read_text(),
            re.M,
        )
    )
    expected = dict.fromkeys((state.name for state in State), "queued")
    expected["READY"] = "passed on"
    expected |= dict.fromkeys(("FAILED", "CLOSING", "CLOSED"), "refused")
    assert table == expected


def test_the_tests_that_a_page_lists_exist() -> None:
    """
    Every test that the page for readers of the Node.js pattern lists exists.
    """
    listed = re.findall(r"^\| `(test_\w+)` \|", (DOCS / "nodejs.md").read_text(), re.M)
    source = (ROOT / "tests" / "test_pitfalls.py").read_text()
    assert sorted(listed) == sorted(re.findall(r"^def (test_\w+)", source, re.M))
