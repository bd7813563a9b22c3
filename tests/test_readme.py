"""
What the README says is so.
"""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from tsrv import (
    QueuingWrapper,
    Startup,
)
from tsrv.queuing.states import (
    TRANSITIONS,
    State,
)
from tsrv.starting.member import WrapperOptions

ROOT = Path(__file__).parent.parent

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """
    @return: The blocks of code in that language.
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
    @return: What a program prints.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("example", "printed"), list(zip(blocks("python"), blocks("text"), strict=True))
)
def test_an_example_prints_what_it_is_said_to_print(example: str, printed: str) -> None:
    """
    The first thing that anyone tries has to work as shown, but for the time.
    """
    assert len(example.splitlines()) <= 18
    pattern = re.sub(
        r"\d{4}.*", r"\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d[+-]\\d\\d:\\d\\d",
        re.escape(printed),
    )  # fmt: skip
    # Of what took some tenths of a second, the tenths are right.
    pattern = re.sub(r"(?<=\d\\\.)\d{3}", r"\\d{3}", pattern)
    assert re.fullmatch(pattern, run("-c", example))


def test_the_longer_example() -> None:
    """
    The example of a client that knows nothing of tsrv runs as well.
    """
    assert run(str(ROOT / "examples" / "late_echo.py")).splitlines() == [
        "asked, and nobody listens: "
        "<QueuingWrapper of EchoClient: initializing, 3 waiting>",
        "answered: ['line 0', 'line 1', 'line 2']",
        "the connection is lost: <QueuingWrapper of EchoClient: lost>",
        "answered: line 3",
    ]


def test_the_example_of_sessions(tmp_path: Path) -> None:
    """
    What is shown of it is in it, and it counts.
    """
    source = (ROOT / "examples" / "basket.py").read_text()
    shown = README.split("examples/basket.py) is", 1)[1].split("\n- ", 1)[0]
    lines = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert len(lines) > 6
    for line in lines:
        assert line in source
    changed = tmp_path / "basket.py"
    changed.write_text(source.replace("listenTCP(8001", "listenTCP(0"))
    command = [sys.executable, str(changed)]
    process = subprocess.Popen(  # noqa: S603
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        browser = build_opener(HTTPCookieProcessor())
        for count in (1, 2, 3):
            answer = browser.open(url, timeout=30).read().decode()
            assert answer == f"{count} visits, {['tea'] * count}\n"
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_the_diagram_is_the_table() -> None:
    """
    A picture that differs from the code is worse than none.
    """
    (diagram,) = blocks("mermaid")
    drawn = re.findall(r"^    (\w+) --> (\w+):", diagram, re.M)
    assert len(drawn) == len(set(drawn))
    assert {(State[a], State[b]) for a, b in drawn} == {
        (state, to) for state in State for to in TRANSITIONS[state].values()
    }


def test_the_options_of_the_wrapper() -> None:
    """
    Every option is listed, in order, with its default.
    """
    parameters = inspect.signature(QueuingWrapper).parameters.values()
    options = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    rows = table("### Options of")
    assert [row[0] for row in rows] == [each.name for each in options]
    assert [eval(row[1]) for row in rows] == [  # noqa: S307
        each.default for each in options
    ]


def test_what_the_wrapper_offers() -> None:
    """
    Every public name is listed, and nothing that is not there.
    """
    listed = {
        name.strip("`").removesuffix("()")
        for row in table("### What the wrapper offers")
        for name in row[0].split(", ")
    }
    public = {name for name in vars(QueuingWrapper) if not name.startswith("_")}
    assert listed == public | {"proxy", "module", "history"}


def test_the_options_of_a_module_of_a_program() -> None:
    """
    Every option that a start-up takes beside those of the wrapper is listed,
    and of those none is missing.
    """
    parameters = inspect.signature(Startup.add).parameters.values()
    options = {
        each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY
    }
    rows = table("## Many modules")
    assert {row[0]: eval(row[1]) for row in rows} == options  # noqa: S307
    wrapped = set(inspect.signature(QueuingWrapper).parameters)
    expected = wrapped - {"module", "reactor", "name", "timeout"} | {"queueTimeout"}
    assert set(WrapperOptions.__annotations__) == expected


@pytest.mark.parametrize("part", ["-m pytest", "twistd -n tsrv"])
def test_the_commands_need_nothing(part: str) -> None:
    """
    Each of the two commands makes its own environment, in the checkout, from
    a Python with nothing in it.
    """
    (command,) = [
        line.strip()
        for line in README.splitlines()
        if line.startswith("    python3 ") and line.endswith(part)
    ]
    words = shlex.split(command)
    assert words[:4] == ["python3", "-m", "venv", ".venv"]
    programs = [words[at + 1] for at, word in enumerate(words) if word == "&&"]
    assert all(program.startswith(".venv/bin/") for program in programs)


def test_what_is_run_is_what_is_said() -> None:
    """
    The checks run the very command that the README tells readers to run.
    """
    (command,) = [
        line.strip()
        for line in README.splitlines()
        if line.startswith("    python3 ") and line.endswith("-m pytest")
    ]
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_links() -> None:
    """
    Every file that is pointed to is there.
    """
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            if not target.startswith("https://"):
                assert (ROOT / target).exists(), target
