"""
Run all benchmarks, or some of them, and print their figures in one table. Each script
runs in a process of its own, and gets all further options.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import twisted
from benchmarks.support.measure import Figure, Target, table

_FOLDER = Path(__file__).parent

_SCRIPTS = sorted(path.stem for path in _FOLDER.glob("[!_]*.py"))


def _figures(script: str, options: list[str]) -> list[Figure]:
    """
    Run a script, and return its figures.
    """
    printed = subprocess.run(  # noqa: S603
        [sys.executable, "-m", f"benchmarks.{script}", "--json", *options],
        cwd=_FOLDER.parent,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    figures = []
    for members in json.loads(printed):
        target = members.pop("target")
        figures.append(Figure(**members, target=Target(**target) if target else None))
    return figures


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="use tiny sizes, to see that the scripts work",
    )
    parser.add_argument(
        "scripts",
        nargs="*",
        metavar="SCRIPT",
        help=f"scripts to run: {', '.join(_SCRIPTS)} [default: all]",
    )
    chosen, options = parser.parse_known_args()
    if chosen.tiny:
        options.append("--tiny")
    figures: list[Figure] = []
    for script in chosen.scripts or _SCRIPTS:
        print(f"{script} ...", file=sys.stderr, flush=True)
        figures += _figures(script, options)
    print(
        f"Python {platform.python_version()}, Twisted {twisted.__version__}, "
        f"{platform.system()}, {os.cpu_count()} cores\n"
    )
    print(table(figures))


if __name__ == "__main__":
    _main()
