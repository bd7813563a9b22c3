"""
The benchmarks run. No test asserts a measurement: on a busy machine such a test would
fail.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """
    Run a script, without measuring its coverage, which doubles its time.
    """
    environment = {
        name: os.environ[name] for name in os.environ if "COVERAGE" not in name
    }
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_prints_ratios(script: str) -> None:
    """
    Each script measures both sides, and prints the ratio beside its target.
    """
    done = run(f"benchmarks.{script}", "--tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\| \d+\.\d{3} x +\| [≤≥] ", done.stdout)


def test_a_script_explains_itself() -> None:
    """
    The help of a script says what it compares, and lists its sizes.
    """
    done = run("benchmarks.calls", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "compar" in done.stdout
    assert "[default: " in done.stdout


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_an_invalid_size_is_refused(rounds: str) -> None:
    """
    A size that is not a positive number is a usage error.
    """
    done = run("benchmarks.calls", f"--rounds={rounds}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--rounds" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_scripts_make_one_table() -> None:
    """
    C{python -m benchmarks} runs all scripts, and prints their figures in one table.
    """
    done = run("benchmarks", "--tiny", "calls", "memory")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| figure ") == 1
    assert "ready call of `tellMeSomething`" in done.stdout
    assert "memory of a queued call" in done.stdout
    listed = run("benchmarks", "--help").stdout
    assert [name for name in SCRIPTS if name not in listed] == []
