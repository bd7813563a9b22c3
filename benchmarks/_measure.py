"""
What the scripts have in common: their options, their clockwork, their table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from timeit import Timer
from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed

__all__ = ["Figure", "Module", "Size", "Target", "leastOf", "run", "table"]


@dataclass(frozen=True)
class Target:
    """
    What a figure is to reach.

    @ivar bound: At most, or at least, this.
    @ivar unit: The unit of C{bound}; with C{x} the ratio is meant, otherwise
        the figure itself.
    @ivar atLeast: Whether more is better.
    """

    bound: float
    unit: str = "x"
    atLeast: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.atLeast else '≤'} {self.bound:,g} {self.unit}"


@dataclass(frozen=True)
class Figure:
    """
    One line of the table.

    @ivar what: What was measured.
    @ivar against: What it is compared with.
    @ivar ours: The figure.
    @ivar theirs: The figure of what it is compared with.
    @ivar unit: The unit of both.
    @ivar target: What is to be reached; L{None} for what is only good to know.
    @ivar pairs: The ratio of each pair of rounds, where those say more than
        the ratio of the two figures.
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
        The ratio, or the median of those of the pairs.
        """
        if self.pairs:
            return sorted(self.pairs)[len(self.pairs) // 2]
        return self.ours / self.theirs

    @property
    def reached(self) -> str:
        """
        Whether the target is reached, in a word.
        """
        target = self.target
        if target is None:
            return ""
        value = self.ratio if target.unit == "x" else self.ours
        good = value >= target.bound if target.atLeast else value <= target.bound
        return "yes" if good else "no"

    def cells(self) -> list[str]:
        """
        @return: The line of the table.
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
    @param figures: What was measured.
    @return: A table, for people and for Markdown.
    """
    rows = [_HEAD, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
    )


class Size(NamedTuple):
    """
    How much of something is measured.

    @ivar full: The usual number.
    @ivar tiny: The number with which the script only shows that it works.
    @ivar meaning: What it is a number of.
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
    Be a script.

    @param doc: Its docstring.
    @param sizes: Its options.
    @param measure: Measures, with so many of each.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="only show that it works")
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
    Run several pieces of code in turns. What disturbs a machine only ever
    makes code slower, so the best round of each is what the code costs.

    C{timeit} keeps the garbage collector off, and compiles a loop of its own
    for each piece, so that none spoils what the interpreter has learnt about
    another.

    @param timers: The pieces of code.
    @param number: How often each is run in one round.
    @param rounds: How many rounds there are.
    @return: For each the nanoseconds of one run in its best round.
    """
    best = [float("inf")] * len(timers)
    places = list(range(len(timers)))
    for _ in range(rounds):
        for place in places:
            best[place] = min(best[place], timers[place].timeit(number))
        places.reverse()
    return [seconds / number * 1e9 for seconds in best]


class Module:
    """
    A module whose methods cost nothing, so that all cost is that of the call.
    """

    def initialize(self) -> Deferred[None]:
        """
        Be ready at once.
        """
        return succeed(None)

    def echo(self, what: object) -> Deferred[object]:
        """
        Answer at once.
        """
        return succeed(what)

    def ping(self) -> Deferred[None]:
        """
        Answer at once, without having been told anything.
        """
        return succeed(None)
