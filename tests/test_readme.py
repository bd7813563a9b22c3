"""
The statements of the README are true: its examples run, its tables are complete.
"""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tsrv import AsyncModule, QueuingWrapper, Startup
from tsrv.starting.options import WrapperOptions

from .processes import ROOT
from .websupport import Peer

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """
    @return: The blocks of code in a language.
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def table(heading: str) -> list[list[str]]:
    """
    @return: The rows of the first table below a heading.
    """
    section = README.split(heading, 1)[1]
    rows = re.search(r"\n\|---.*?\n((?:\|.*\n)+)", section)
    assert rows is not None
    return [
        [cell.strip().strip("`") for cell in row.strip("|").split(" | ")]
        for row in rows[1].splitlines()
    ]


def run(*command: str) -> str:
    """
    @return: The output of a Python program.
    """
    ended = subprocess.run(  # noqa: S603
        [sys.executable, *command], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize(
    ("example", "printed"), list(zip(blocks("python"), blocks("text"), strict=True))
)
def test_an_example_prints_what_the_readme_shows(example: str, printed: str) -> None:
    """
    An example is short, and prints what is shown, but for the time of day and fractions
    of a tenth of a second.
    """
    assert len(example.splitlines()) <= 18
    pattern = re.sub(
        r"\d{4}.*", r"\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d[+-]\\d\\d:\\d\\d",
        re.escape(printed),
    )  # fmt: skip
    pattern = re.sub(r"(?<=\d\\\.)\d{3}", r"\\d{3}", pattern)
    assert re.fullmatch(pattern, run("-c", example))


def test_the_example_of_a_client() -> None:
    """
    A client that knows nothing of tsrv works behind a queue.
    """
    assert run(str(ROOT / "examples" / "late_echo.py")).splitlines() == [
        "asked, and nobody listens: "
        "<QueuingWrapper of EchoClient: initializing, 3 queued>",
        "answered: ['line 0', 'line 1', 'line 2']",
        "the connection is lost: <QueuingWrapper of EchoClient: lost>",
        "answered: line 3",
    ]


class Page(Resource):
    """
    A resource of twisted.web.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return b"page"


def test_the_lines_for_other_sites() -> None:
    """
    The lines for the connections of other sites work on a plain site of twisted.web.
    """
    section = README.split("## HTTP connections for any site", 1)[1]
    lines = re.findall(r"^    (.*)$", section.split("\n## ", 1)[0], re.M)
    assert len(lines) == 3
    clock = Clock()
    names: dict[str, Any] = {"Site": Site, "root": Page(), "reactor": clock}
    exec("\n".join(lines), names)  # noqa: S102
    peer = Peer(names["site"], clock)
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n")
    assert [answer.status for answer in peer.answers] == [200, 400]
    peer.leave()
    clock.advance(0)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("function", "heading"),
    [(QueuingWrapper, "### Options of"), (Startup.add, "## Many modules")],
)
def test_a_table_has_every_option(function: Callable[..., Any], heading: str) -> None:
    """
    The tables of options list every option with its default.
    """
    parameters = inspect.signature(function).parameters.values()
    options = {
        each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY
    }
    assert {row[0]: eval(row[1]) for row in table(heading)} == options  # noqa: S307


def test_a_module_of_a_program_takes_the_options_of_the_wrapper() -> None:
    """
    Every option of the wrapper is one of C{Startup.add} too; C{timeout} has another
    name there.
    """
    wrapped = set(inspect.signature(QueuingWrapper).parameters)
    expected = wrapped - {
        "module",
        "reactor",
        "name",
        "timeout",
        "attemptSlots",
        "lazy",
    }
    expected |= {"queueTimeout"}
    assert set(WrapperOptions.__annotations__) == expected


def test_a_table_has_every_name_of_the_wrapper() -> None:
    """
    The table of names lists every public name of the wrapper.
    """
    listed = {
        name.strip("`").removesuffix("()")
        for row in table("### What the wrapper offers")
        for name in row[0].split(", ")
    }
    wrapper = QueuingWrapper(AsyncModule(Clock()), Clock())
    assert listed == {name for name in dir(wrapper) if not name.startswith("_")}


@pytest.mark.parametrize("end", ["-m pytest", "twistd -n tsrv"])
def test_a_command_needs_nothing_but_python(end: str) -> None:
    """
    Each of the two commands creates its own environment; the checks run the same
    command for the tests.
    """
    (command,) = [
        line.strip()
        for line in README.splitlines()
        if line.startswith("    python3 ") and line.endswith(end)
    ]
    words = shlex.split(command)
    assert words[:4] == ["python3", "-m", "venv", ".venv"]
    programs = [words[at + 1] for at, word in enumerate(words) if word == "&&"]
    assert all(program.startswith(".venv/bin/") for program in programs)
    checks = (ROOT / ".ci" / "run").read_text()
    assert f"\n{command}\n" in checks or "pytest" not in end


def test_links_lead_to_files() -> None:
    """
    Every file that the documentation links to exists.
    """
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            if not target.startswith("https://"):
                assert (ROOT / target).exists(), target
