"""
The description of the server in OpenAPI is true.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tsrv import AsyncModule
from tsrv.databases import Database
from tsrv.demo.openapi import describe
from tsrv.demo.users import SCHEMA, Users
from tsrv.resources import KNOWN_ERRORS, makeRoot
from tsrv.web.site import Site

from .processes import running
from .support import Empty
from .websupport import Teller, ask, asynchronous, serving

SETTINGS = """
# The same on each run, with nothing left behind.
[generation]
deterministic = true
max-examples = 10

# What is valid may still be refused under a condition of the client's own.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "404", "409", "412"]
"""


def test_every_reference_has_a_target() -> None:
    """
    Every C{$ref} names a part of the description, which is served as it is.
    """
    root = makeRoot(Teller(), Empty())  # type: ignore[arg-type]
    answer = ask(root, "/openapi.json")
    description = json.loads(answer.body)
    assert (answer.status, description) == (200, describe())
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', answer.body.decode()))
    assert len(references) > 10
    for reference in references:
        part = description
        for name in reference.split("/"):
            part = part[name]


def test_every_method_is_described() -> None:
    """
    The description has all routes and methods for clients, and no others.
    """
    root = makeRoot(Teller(), Empty())  # type: ignore[arg-type]
    for path, operations in describe()["paths"].items():
        refused = ask(root, path.replace("{id}", "1"), "BREW")
        assert refused.status == 405
        allowed = set(refused.headers["allow"].lower().split(", "))
        described = set(operations) - {"parameters"}
        assert described == allowed - {"head", "options"}, path


@pytest.mark.parametrize("program", ["schemathesis"])
@asynchronous
async def test_responses_are_as_described(tmp_path: Path, program: str) -> None:
    """
    Whatever a client sends, valid or not, gets a response that is described.
    """
    from twisted.internet import reactor

    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    database = Database(reactor, f"sqlite:{tmp_path}/users.db", [SCHEMA])
    clock = AsyncModule(reactor, 0)
    await database.initialize()
    await clock.initialize()
    root = makeRoot(clock, Users(database))
    site = Site(root, reactor, maxBodyBytes=2**20, knownErrors=KNOWN_ERRORS)
    async with serving(site) as served:
        url = f"{served.url}/openapi.json"
        arguments = ["run", url, "--checks=all", "--no-color"]
        async with running(tmp_path, *arguments, program=program) as search:
            status = await search.ended
            assert status == 0, search.output + search.errors
        assert "7 selected / 7 total" in search.output
    await database.close()
