"""
The needs of modules, checked before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

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
    Follow every need, in time proportional to modules and needs.

    @param needs: The names that each module needs, by its name.
    @raise GraphError: A needed module does not exist, or modules need each
        other.
    """
    done: set[str] = set()
    for start in needs:
        if start in done:
            continue
        # The path from the start to the current module, with the needs of each
        # that are still to be followed. Recursion would have a limit.
        path: dict[str, Iterator[str]] = {start: iter(needs[start])}
        while path:
            name, remaining = next(reversed(path.items()))
            following = next(remaining, None)
            if following is None:
                del path[name]
                done.add(name)
            elif following in path:
                names = list(path)
                circle = [*names[names.index(following) :], following]
                message = f"modules need each other: {' → '.join(circle)}"
                raise GraphError(message, circle)
            elif following not in needs:
                names = [*path, following]
                message = f"{' → '.join(names)}: there is no module {following!r}"
                similar = get_close_matches(following, needs, n=1)
                if similar:
                    message += f"; did you mean {similar[0]!r}?"
                raise GraphError(message, names)
            elif following not in done:
                path[following] = iter(needs[following])
