"""
The relations of modules, checked before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from twisted.logger import Logger

__all__ = ["GraphError", "UnknownModule", "checkGraph", "logUnknownNames"]

_log = Logger("tsrv.startup")


class GraphError(ValueError):
    """
    Modules wait for each other (C{database → configuration → database}), two modules
    have one name, or a needed or replaced module does not exist.

    @ivar path: The names that show the error; each module waits for the next one.
    """

    def __init__(self, message: str, path: Sequence[str]) -> None:
        super().__init__(message)
        self.path = tuple(path)


class UnknownModule(KeyError):
    """
    No module has this name. The message suggests a similar one.
    """

    def __init__(self, name: str, names: Iterable[str]) -> None:
        super().__init__(name)
        self._message = f"there is no module {name!r}"
        similar = _similarName(name, names)
        if similar is not None:
            self._message += f"; did you mean {similar!r}?"

    def __str__(self) -> str:
        return self._message


def checkGraph(
    needs: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]] | None = None
) -> None:
    """
    Check that every module can start.

    @param needs: The names that each module needs, by its name.
    @param after: The names that each module starts after, if they exist, by its name.
    @raise GraphError: A needed module does not exist, or modules wait for each other.
    """
    for name, needed in needs.items():
        for need in needed:
            if need not in needs:
                message = f"{name} → {need}: {UnknownModule(need, needs)}"
                raise GraphError(message, [name, need])
    try:
        TopologicalSorter(needs).prepare()
        if after:
            # Names that do not exist are left out of the graph.
            graph = {
                name: [
                    *needed,
                    *(each for each in after.get(name, ()) if each in needs),
                ]
                for name, needed in needs.items()
            }
            TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][::-1]
        isNeed = all(needed in needs[name] for name, needed in pairwise(circle))
        verb = "need" if isNeed else "wait for"
        message = f"modules {verb} each other: {' → '.join(circle)}"
        raise GraphError(message, circle) from None


def logUnknownNames(after: Mapping[str, Sequence[str]]) -> None:
    """
    Log the names in C{after} that do not exist. This is not an error, since a
    configuration may leave out a module on purpose.

    @param after: The names that each module starts after, by its name.
    """
    unknown = []
    for name, predecessors in after.items():
        for each in predecessors:
            if each not in after:
                similar = _similarName(each, after)
                hint = "" if similar is None else f" (did you mean {similar!r}?)"
                unknown.append(f"{name} → {each}{hint}")
    if unknown:
        _log.info("Unknown names in after=: {unknown}", unknown="; ".join(unknown))


def _similarName(name: str, names: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name, list(names), n=1)), None)
