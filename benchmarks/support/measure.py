"""
Common parts of the scripts: options, timing, figures and their table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from timeit import Timer
from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed

__all__ = [
    "Figure",
    "Module",
    "Size",
    "Target",
    "leastOf",
    "percentile",
    "run",
    "table",
]


@dataclass(frozen=True)
class Target:
    """
    The target of a figure.

    @ivar bound: The maximum or the minimum.
    @ivar unit: The unit of C{bound}: C{x} for the ratio, otherwise the unit of the
        figure.
    @ivar atLeast: Whether C{bound} is a minimum.
    @ivar isDifference: Whether C{bound} is about the difference of the two sides.
    """

    bound: float
    unit: str = "x"
    atLeast: bool = False
    isDifference: bool = False

    def __str__(self) -> str:
        sign = "+" if self.isDifference else ""
        return f"{'≥' if self.atLeast else '≤'} {sign}{self.bound:,g} {self.unit}"


@dataclass(frozen=True)
class Figure:
    """
    One line of the table.

    @ivar what: The measured quantity.
    @ivar against: The other side of the comparison.
    @ivar ours: Our figure.
    @ivar theirs: The figure of the other side.
    @ivar unit: The unit of both.
    @ivar target: The target, if the figure has one.
    @ivar pairs: The ratios of pairs of rounds, if their median says more than the ratio
        of the two figures.
    """

    what: str
    against: str
    ours: float
    theirs: float
    unit: str
    target: Target | None = None
    pairs: Sequence[float] = ()

    @property
    def ratio(self) -> float:
        """
        The ratio, or the median of the ratios of the pairs.
        """
        if self.pairs:
            return sorted(self.pairs)[len(self.pairs) // 2]
        return self.ours / self.theirs

    @property
    def reached(self) -> str:
        """
        Whether the target is reached: C{yes}, C{no} or nothing.
        """
        target = self.target
        if target is None:
            return ""
        value = self.ratio if target.unit == "x" else self.ours
        if target.isDifference:
            value -= self.theirs
        good = value >= target.bound if target.atLeast else value <= target.bound
        return "yes" if good else "no"

    def cells(self) -> list[str]:
        """
        Return the row of the table.
        """
        return [
            self.what,
            self.against,
            f"{_number(self.ours)} {self.unit}",
            f"{_number(self.theirs)} {self.unit}",
            f"{self.ratio:.3f} x",
            "" if self.target is None else str(self.target),
            self.reached,
        ]


_HEAD = ["figure", "against", "ours", "theirs", "ratio", "target", "reached"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """
    Format figures as a Markdown table.
    """
    rows = [_HEAD, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
    )


class Size(NamedTuple):
    """
    A size of a measurement.

    @ivar full: The default number.
    @ivar tiny: The number for C{--tiny}, which only shows that the script works.
    @ivar meaning: The meaning of the number, for the help.
    """

    full: int
    tiny: int
    meaning: str


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number


def run(
    doc: str | None,
    sizes: Mapping[str, Size],
    measure: Callable[[Mapping[str, int]], Sequence[Figure]],
) -> None:
    """
    Run a script: parse its options, measure, and print the table.

    @param doc: The docstring of the script.
    @param sizes: The options of the script.
    @param measure: Measures, given the chosen sizes.
    """
    parser = argparse.ArgumentParser(
        description=re.sub(r"\b[CL]\{(.*?)\}", r"\1", doc or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tiny = "use tiny sizes, to see that the script works"
    parser.add_argument("--tiny", action="store_true", help=tiny)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    for name, size in sizes.items():
        text = f"{size.meaning} [default: {size.full:,}]"
        parser.add_argument(f"--{name}", type=_positive, metavar="N", help=text)
    options = vars(parser.parse_args())
    chosen = {
        name: options[name] or (size.tiny if options["tiny"] else size.full)
        for name, size in sizes.items()
    }
    figures = measure(chosen)
    if options["json"]:
        print(json.dumps([asdict(figure) for figure in figures]))
    else:
        print(table(figures))


def leastOf(timers: Sequence[Timer], number: int, rounds: int) -> list[float]:
    """
    Time several pieces of code in turns, and return the best round of each.
    Disturbances only make code slower, so the best round is its cost.

    C{timeit} disables the garbage collector, and compiles a separate loop for
    each piece, so the specialising interpreter treats them independently.

    @param timers: The pieces of code.
    @param number: Runs in one round.
    @param rounds: Number of rounds.
    @return: The nanoseconds of one run, for each piece.
    """
    best = [float("inf")] * len(timers)
    places = list(range(len(timers)))
    for _ in range(rounds):
        for place in places:
            best[place] = min(best[place], timers[place].timeit(number))
        places.reverse()
    return [seconds / number * 1e9 for seconds in best]


def percentile(seconds: Sequence[float], share: float) -> float:
    """
    Return a percentile of times, in milliseconds.

    @param share: The percentile, as a number from 0 to 1.
    """
    return sorted(seconds)[int(share * (len(seconds) - 1))] * 1e3


class Module:
    """
    A module whose methods cost almost nothing.
    """

    def initialize(self) -> Deferred[None]:
        """
        Become ready at once.
        """
        return succeed(None)

    def echo(self, what: object) -> Deferred[object]:
        """
        Return a Deferred that has fired, with the argument.
        """
        return succeed(what)

    def ping(self) -> Deferred[None]:
        """
        Return a Deferred that has fired.
        """
        return succeed(None)
