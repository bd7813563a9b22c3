"""
The README is short, and its commands and links work.
"""

from __future__ import annotations

import re
import shlex

import pytest

from .processes import ROOT

README = (ROOT / "README.md").read_text()

SITE = "https://tsrv.readthedocs.io/en/latest/"

REPOSITORY = (
    "https://github.com/tsrv/tsrv/blob/main/",
    "https://raw.githubusercontent.com/tsrv/tsrv/main/",
)


@pytest.mark.parametrize("end", ["-m pytest", "twistd -n tsrv"])
def test_a_command_needs_nothing_but_python(end: str) -> None:
    """
    Each of the two commands creates its own environment; the checks run the same
    command for the tests.
    """
    (command,) = [
        line
        for line in README.splitlines()
        if line.startswith("python3 ") and line.endswith(end)
    ]
    words = shlex.split(command)
    assert words[:4] == ["python3", "-m", "venv", ".venv"]
    programs = [words[at + 1] for at, word in enumerate(words) if word == "&&"]
    assert all(program.startswith(".venv/bin/") for program in programs)
    checks = (ROOT / ".ci" / "run").read_text()
    assert f"\n{command}\n" in checks or "pytest" not in end


def test_it_is_one_screen_and_a_half() -> None:
    """
    The README has at most 120 lines.
    """
    assert len(README.splitlines()) <= 120


def anchors(page: str) -> set[str]:
    """
    @return: The anchors of the headings of a page.
    """
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    return {
        re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in headings
    }


def test_every_link_leads_somewhere() -> None:
    """
    Links are absolute, since the README is shown on PyPI, too. Each of them leads to a
    page of the documentation or to a file of the repository.
    """
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        path = target.removeprefix(SITE)
        if path != target:
            page, _, anchor = path.partition("#")
            text = (ROOT / "docs" / page).with_suffix(".md").read_text()
            assert not anchor or anchor in anchors(text), target
        else:
            for prefix in REPOSITORY:
                path = path.removeprefix(prefix)
            assert path != target, target
            assert (ROOT / path).is_file(), target
