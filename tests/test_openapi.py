"""
The description of the server is true.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tsrv.demo.openapi import describe
from tsrv.resources import makeRoot

from .processes import running
from .support import Empty
from .websupport import Teller, ask, asynchronous, reservedPort

SETTINGS = """
# The same on each run, with nothing left behind.
[generation]
deterministic = true
max-examples = 40

# What is valid may still be refused under a condition of the client's own.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "404", "409", "412"]
"""


def referencesIn(part: Any) -> Iterator[str]:
    """
    @return: All that a description points to.
    """
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from referencesIn(value)
    elif isinstance(part, list):
        for value in part:
            yield from referencesIn(value)


def test_what_it_points_to_is_there() -> None:
    """
    A name that was mistyped breaks the tools of everybody who uses it.
    """
    description = describe()
    found = set(referencesIn(description))
    assert len(found) > 10
    for reference in found:
        part: Any = description
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_it_describes_what_there_is() -> None:
    """
    All routes and methods for clients, and none that is not there.
    """
    root = makeRoot(Teller(), Empty())  # type: ignore[arg-type]
    for path, operations in describe()["paths"].items():
        refused = ask(root, path.replace("{id}", "1"), "BREW")
        assert refused.status == 405
        allowed = set(refused.headers["allow"].lower().split(", "))
        described = set(operations) - {"parameters"}
        # These are what they always are.
        assert described == allowed - {"head", "options"}, path


def test_it_is_served() -> None:
    """
    Where its readers look for it.
    """
    root = makeRoot(Teller(), Empty())  # type: ignore[arg-type]
    answer = ask(root, "/openapi.json")
    assert answer.status == 200
    assert json.loads(answer.body) == describe()


@pytest.mark.parametrize("program", ["schemathesis"])
@asynchronous
async def test_nothing_is_found_that_differs_from_it(
    tmp_path: Path, program: str
) -> None:
    """
    Whatever a client makes of the description, the server is as it says: with
    what is valid and what is not, with what is missing, and with what depends on
    each other.
    """
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    with reservedPort() as port:
        listen = f"--listen=tcp:{port}:interface=127.0.0.1"
        async with running(tmp_path, "-n", "tsrv", listen, "--delay=0") as server:
            await server.whenWritten("Async module initialized")
            url = f"http://127.0.0.1:{port}/openapi.json"
            words = ["run", url, "--checks=all", "--no-color"]
            async with running(tmp_path, *words, program=program) as search:
                status = await search.ended
                assert status == 0, search.output + search.errors
            assert "7 selected / 7 total" in search.output
            server.terminate()
            assert await server.ended == 0
            assert "Traceback" not in server.output
