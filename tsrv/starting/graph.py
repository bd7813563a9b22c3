"""
The needs of modules, checked before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter

__all__ = ["GraphError", "checkGraph"]


class GraphError(ValueError):
    """
    The needs of the modules cannot be met.

    @ivar path: Names that show the error; each module needs the next.
    """

    def __init__(self, message: str, path: Sequence[str]) -> None:
        super().__init__(message)
        self.path = tuple(path)


def checkGraph(needs: Mapping[str, Sequence[str]]) -> None:
    """
    Check that every need can be met.

    @param needs: The names that each module needs, by its name.
    @raise GraphError: A needed module does not exist, or modules need each
        other.
    """
    for name, needed in needs.items():
        for need in needed:
            if need not in needs:
                message = f"{name} → {need}: there is no module {need!r}"
                for similar in get_close_matches(need, needs, n=1):
                    message += f"; did you mean {similar!r}?"
                raise GraphError(message, [name, need])
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][::-1]
        message = f"modules need each other: {' → '.join(circle)}"
        raise GraphError(message, circle) from None
