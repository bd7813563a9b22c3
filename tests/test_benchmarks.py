"""
The benchmarks work. What they measure is not tested: on a machine that is busy
with something else, such a test would fail.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent

_SCRIPTS = sorted(path.stem for path in (_ROOT / "benchmarks").glob("[!_]*.py"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """
    Run one of the scripts.
    """
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", *words],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_all_scripts_are_found() -> None:
    """
    Each group of figures has its script.
    """
    assert _SCRIPTS == [
        "calls",
        "held",
        "memory",
        "metrics",
        "queuing",
        "restarts",
        "sessions",
        "stalls",
        "startup",
        "status",
        "sweeping",
        "throughput",
        "users",
        "writing",
    ]


@pytest.mark.parametrize("script", _SCRIPTS)
def test_every_script_prints_ratios(script: str) -> None:
    """
    Each script measures both sides, and prints the ratio beside its target.
    """
    done = run(f"benchmarks.{script}", "--tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\| \d+\.\d{3} x +\| [≤≥] ", done.stdout)


@pytest.mark.parametrize("script", _SCRIPTS)
def test_every_script_says_what_it_measures(script: str) -> None:
    """
    Each script explains what it compares, and its sizes.
    """
    done = run(f"benchmarks.{script}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "compar" in done.stdout
    assert "[default: " in done.stdout


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_nonsense_is_refused(rounds: str) -> None:
    """
    A size that is none is a usage error.
    """
    done = run("benchmarks.calls", f"--rounds={rounds}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--rounds" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_in_one_table() -> None:
    """
    All of them are run by one command, and have one table.
    """
    done = run("benchmarks", "--tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| figure ") == 1
    for what in (
        "ready call of `tellMeSomething`",
        "ready call of `succeed(x)`",
        "queuing one command",
        "draining one command",
        "memory of a queued command",
        "100 drained, answered at once",
        "ready `/say`",
        "20 held requests: memory of one",
        "20 held requests: answering all",
        "ready `/say`, counted and scraped",
        "start-up of 20 modules: each module or need",
        "failed requests of",
        "status pages",
        "`GET /users/3`",
        "`POST /users`",
        "4 are writing users",
        "`GET /visits`",
        "one of 400 sessions on the disk",
        "memory of a process with 400 sessions",
        "200 sessions are removed",
    ):
        assert what in done.stdout
