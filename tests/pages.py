"""
Executes the blocks of code in pages of the documentation.

The blocks of one page run from top to bottom in an empty folder, in which C{.venv} is
the environment of the tests:

  - C{python} is a program. The C{text} block that follows is its output.

  - A block with a C{:caption:} is a file of this name.

  - C{console} has commands after C{$}, and their output. Below the comment
    C{background} it has one command, which keeps running once it has written the
    output shown.

  - A C{text} block below C{log NAME} shows lines that the command in the background
    with this name writes next; below C{stop NAME}, what it writes until Ctrl-C has
    ended it.

A comment is C{% TEXT} or C{<!-- TEXT -->}, directly above its block. Below C{not
executed: REASON} a block is only shown.

Ports from 8000 to 8499 are replaced by free ones, each by the same on its page.

In an output, C{...} stands for anything. Dates, times and seconds differ from run to
run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import rmtree, which
from signal import SIGINT
from socket import socket
from threading import Timer
from typing import Any, Final
from unittest import SkipTest

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from .processes import ROOT

__all__ = ["blocks", "pages"]

LONGEST_SECONDS: Final = 60
"""
Time limit of a program, and of the wait for a line of output.
"""

PROGRAMS: Final = ("curl", "openssl", "systemd-socket-activate")
"""
Programs that pages use, and that a machine with Python may lack. The tests skip these
pages then, unless C{TSRV_DATABASES} is C{required}.
"""

_INFO: Final = re.compile(
    r"(?:\{code-block\} *)?(?P<language>\w+) *\n(?P<options>(?::[\w-]+:.*\n)*)\n?"
)
_FENCED: Final = re.compile(r"^(```+|:::+).*?^\1$", re.M | re.S)
_PORT: Final = re.compile(r"\b8[0-4]\d\d\b")
_COMMENT: Final = re.compile(r"^(?:% (.*)|<!-- (.*) -->)\n+\Z", re.M)
_VARIABLE: Final = (
    (r"\d{4}-\d\d-\d\d", r"\d{4}-\d\d-\d\d"),
    (r"\d\d:\d\d:\d\d", r"\d\d:\d\d:\d\d"),
    (r"[+-]\d\d:?\d\d\b", r"[+-]\d\d:?\d\d"),
    (r"\d+\.\d+ s", r"\d+\.\d+ s"),
    (r"\.\.\.", r".*"),
)


class Page:
    """
    The folder, the last output and the background processes of one page.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.printed: str | None = None
        self._ports: dict[str, str] = {}
        self._background: list[tuple[str, subprocess.Popen[str]]] = []
        (self.folder / ".venv").symlink_to(sys.prefix)
        # Programs run as for a reader, without the options and the tools of the tests.
        inherited = {
            name: os.environ[name]
            for name in os.environ
            if not name.startswith(("COVERAGE", "PYTEST"))
        }
        self._environment = inherited | {
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }

    def withFreePorts(self, text: str) -> str:
        """
        @return: A block of the page, with ports that are free on this machine.
        """
        return _PORT.sub(self._portFor, text)

    def _portFor(self, found: re.Match[str]) -> str:
        if found[0] not in self._ports:
            with socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[found[0]] = str(free.getsockname()[1])
        return self._ports[found[0]]

    def run(self, *command: str) -> str:
        """
        @return: What a program has written.
        """
        process = self._spawn(*command)
        try:
            output, _ = process.communicate(timeout=LONGEST_SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, output
        return output

    def _spawn(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, command: str, expected: str) -> None:
        """
        Start a program, and wait until it has written the expected lines.
        """
        process = self._spawn("sh", "-c", f"exec {command}")
        self._background.append((command, process))
        _follow(process, expected)

    def follow(self, name: str, expected: str) -> None:
        """
        Wait until a program in the background has written the expected lines.
        """
        _follow(self._find(name), expected)

    def stop(self, name: str, expected: str) -> None:
        """
        Stop a program in the background as Ctrl-C does, and compare what it writes.
        """
        process = self._find(name)
        process.send_signal(SIGINT)
        output, _ = process.communicate(timeout=LONGEST_SECONDS)
        self._background = [one for one in self._background if one[1] is not process]
        _compare(output, expected)

    def close(self) -> None:
        """
        End what still runs, and remove the folder.
        """
        for _, process in self._background:
            process.kill()
            process.communicate()
        rmtree(self.folder)

    def _find(self, name: str) -> subprocess.Popen[str]:
        found = [process for command, process in self._background if name in command]
        assert found, f"no command in the background has {name!r}"
        return found[-1]


def _pattern(expected: str) -> str:
    """
    @return: A regular expression for all outputs that count as the expected one.
    """
    words = "|".join(f"({shown})" for shown, _ in _VARIABLE)
    parts: list[str] = []
    at = 0
    for found in re.finditer(words, expected):
        parts.append(re.escape(expected[at : found.start()]))
        assert found.lastindex is not None
        parts.append(_VARIABLE[found.lastindex - 1][1])
        at = found.end()
    return "".join([*parts, re.escape(expected[at:])])


def _compare(output: str, expected: str) -> None:
    """
    Fail unless an output is the expected one.
    """
    if re.fullmatch(_pattern(expected.strip("\n")), output.strip("\n"), re.S) is None:
        assert output.strip("\n") == expected.strip("\n")


def _follow(process: subprocess.Popen[str], expected: str) -> None:
    """
    Read the output of a process until each expected line has appeared, in this order.
    """
    assert process.stdout is not None
    late = Timer(LONGEST_SECONDS, process.kill)
    late.start()
    written: list[str] = []
    try:
        for line in expected.strip("\n").splitlines():
            pattern = re.compile(_pattern(line))
            for output in process.stdout:
                written.append(output)
                if pattern.fullmatch(output.rstrip("\n")):
                    break
            else:
                raise AssertionError(f"{line!r} did not appear in:\n{''.join(written)}")
    finally:
        late.cancel()


def _commands(source: str) -> Iterator[tuple[str, str]]:
    """
    @return: The commands of a console, and the output of each.
    """
    for part in re.split(r"^\$ ", source, flags=re.M)[1:]:
        found = re.match(r"(?:[^\n]*\\\n)*[^\n]*\n?", part)
        assert found is not None
        yield found[0].strip(), part[found.end() :]


def _evaluate(example: Example) -> None:
    language, caption, comment, source = example.parsed
    page: Page = example.namespace["page"]
    source = page.withFreePorts(source)
    order, _, name = comment.partition(" ")
    if caption:
        path = page.folder / caption
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        if language == "python":
            compile(source, caption, "exec")
    elif language == "python":
        page.printed = page.run(sys.executable, "-c", source)
    elif language == "text" and order == "log":
        page.follow(name, source)
    elif language == "text" and order == "stop":
        page.stop(name, source)
    elif language == "text":
        assert page.printed is not None, "no program precedes this output"
        _compare(page.printed, source)
        page.printed = None
    elif language == "console" and order == "background":
        ((command, expected),) = _commands(source)
        page.start(command, expected)
    elif language == "console":
        for command, expected in _commands(source):
            _compare(page.run("sh", "-c", command), expected)
    else:
        raise AssertionError(f"a block of {language} needs a caption or a reason")


def blocks(document: Document) -> Iterator[tuple[Region, str]]:
    """
    @return: The blocks of code of a page, and the comment above each.
    """
    for region in RawFencedCodeBlockLexer(_INFO)(document):
        comment = _COMMENT.search(document.text[: region.start])
        yield region, (comment[1] or comment[2]) if comment else ""


def _parse(document: Document) -> Iterator[Region]:
    missing = [
        name
        for name in PROGRAMS
        if re.search(rf"^\$ .*\b{name}\b", document.text, re.M) and not which(name)
    ]
    orders = len(re.findall(r"^% (?:background|log|stop)\b", document.text, re.M))
    for region, comment in blocks(document):
        orders -= comment.split(" ")[0] in ("background", "log", "stop")
        found = re.search(r"^:caption: *(.*)$", region.lexemes["options"], re.M)
        if comment.startswith("not executed: "):
            continue
        yield Region(
            region.start,
            region.end,
            parsed=(
                region.lexemes["language"],
                found[1] if found else "",
                comment,
                region.lexemes["source"],
            ),
            evaluator=partial(_skip, missing) if missing else _evaluate,
        )
    assert orders == 0, f"{document.path}: an order stands above no block"
    indented = re.search(r"\n\n {4}\S.*", re.sub(_FENCED, "", document.text))
    assert indented is None, f"{document.path}: not fenced: {indented[0]}"


def _skip(missing: list[str], example: Example) -> None:
    text = f"not installed: {', '.join(missing)}"
    assert os.environ.get("TSRV_DATABASES") != "required", text
    raise SkipTest(text)


def _open(namespace: dict[str, Any]) -> None:
    namespace["page"] = Page()


def _close(namespace: dict[str, Any]) -> None:
    namespace["page"].close()


pages = Sybil(
    parsers=[_parse],
    path=str(ROOT),
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*/*.md"],
    setup=_open,
    teardown=_close,
)
