"""
The cells that a picture of a program is made of.

Two cells that are equal look the same. In the timeline all positions are
seconds after the window's origin, and heights are fractions of the bar's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = [
    "CURVE",
    "Axis",
    "Bar",
    "Cell",
    "Curve",
    "Facts",
    "Headline",
    "Held",
    "Name",
    "Path",
    "Picture",
    "Piece",
    "Queue",
    "Sample",
    "Standing",
    "Story",
    "Tick",
    "Window",
]

CURVE: Final = 60
"""
How many samples of its queue the curve of a module has, one for each second.
"""

Sample: TypeAlias = tuple[int, bool]
"""
How many calls were waiting, and whether the module was ready.
"""


@dataclass(frozen=True, slots=True)
class Headline:
    """
    The program in one line.

    @ivar status: Its status.
    @ivar sentence: The same for people.
    """

    status: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Facts:
    """
    The program in numbers.

    @ivar ready: How many modules are ready.
    @ivar modules: How many there are.
    """

    ready: int
    modules: int


@dataclass(frozen=True, slots=True)
class Held:
    """
    How many calls are waiting, for all modules together.
    """

    pending: int


@dataclass(frozen=True, slots=True)
class Path:
    """
    The critical path.

    @ivar names: The names of its modules, in order.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """
    A tick of the time axis.

    @ivar at: Where it is, in percent of the window.
    @ivar label: What is written there.
    """

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """
    The time axis.

    @ivar title: What is zero, and what of all is shown.
    """

    title: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """
    What a module is called.

    @ivar critical: Whether it is on the critical path.
    """

    name: str
    required: bool
    needs: tuple[str, ...]
    critical: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """
    How a module is.

    @ivar reason: Why it is not ready, or what there is to know although it is.
    @ivar kind: The type of its last error, unless the reason names it.
    @ivar error: That error in its own words, for who may see it.
    @ivar tries: How many attempts there were.
    @ivar losses: How often it was lost.
    """

    status: str
    reason: str | None
    kind: str | None
    error: str | None
    tries: int
    losses: int


@dataclass(frozen=True, slots=True)
class Queue:
    """
    The length of a queue.
    """

    pending: int


@dataclass(frozen=True, slots=True)
class Curve:
    """
    The length of a queue during the last minute.

    @ivar line: The path of the curve, in an area of L{CURVE} times 20.
    @ivar bands: The beginning and the length of each time at which the module
        was not ready.
    @ivar most: The longest that the queue was.
    """

    line: str
    bands: tuple[tuple[int, int], ...]
    most: int


@dataclass(frozen=True, slots=True)
class Piece:
    """
    A piece of a bar.

    @ivar kind: What it stands for: C{waiting}, C{attempt}, C{delay}, C{ready},
        C{lost} or C{ended}.
    """

    kind: str
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Bar:
    """
    The times of a module.

    @ivar pieces: What is drawn, the lowest first.
    @ivar failures: When attempts failed.
    @ivar critical: From when to when it held up the whole, and for how long;
        L{None} if it did not.
    """

    pieces: tuple[Piece, ...]
    failures: tuple[float, ...]
    critical: Piece | None


@dataclass(frozen=True, slots=True)
class Story:
    """
    What a bar shows, in words.
    """

    text: str


Cell: TypeAlias = (
    Headline
    | Facts
    | Held
    | Path
    | Axis
    | Name
    | Standing
    | Queue
    | Curve
    | Bar
    | Story
)


@dataclass(frozen=True, slots=True)
class Window:
    """
    The time that the timeline shows.

    @ivar origin: What is zero, in seconds after the start-up began.
    @ivar begin: Where it begins, in seconds after the origin.
    @ivar end: Where it ends.
    @ivar growing: Whether it is shown up to now alone, because something is
        going on.
    @ivar title: What is shown.
    """

    origin: float
    begin: float
    end: float
    growing: bool
    title: str

    def shown(self, now: float) -> float:
        """
        @param now: The seconds after the start-up began.
        @return: Up to where the window is to be seen.
        """
        if not self.growing:
            return self.end
        return min(self.end, max(self.begin, now - self.origin))


@dataclass(frozen=True, slots=True)
class Picture:
    """
    What is to be seen of a program, but for its queues.

    @ivar names: Its modules.
    @ivar cells: The cells by name; those of a module are named after its
        number.
    """

    window: Window
    names: tuple[str, ...]
    cells: Mapping[str, Cell]
