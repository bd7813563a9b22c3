"""
Which module needs which: what is wrong with that, before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

__all__ = ["GraphError", "checkGraph"]

_ARROW = " → "


class GraphError(ValueError):
    """
    What the modules are said to need cannot be.

    @ivar path: The names that show it, each of which needs the next.
    """

    def __init__(self, message: str, path: Sequence[str]) -> None:
        super().__init__(message)
        self.path = tuple(path)

    def __reduce__(self) -> tuple[type[GraphError], tuple[object, ...]]:
        return type(self), (*self.args, self.path)


def checkGraph(needs: Mapping[str, Sequence[str]]) -> None:
    """
    Follow every need. It takes time in proportion to modules and needs, and
    does not mind how long a chain of them is.

    @param needs: What each module needs, by names.
    @raise GraphError: A module is needed that there is not, or one that needs,
        by way of others, what needs it.
    """
    done: set[str] = set()
    for start in needs:
        if start in done:
            continue
        # The way from the start to where we are, and what is still to be looked
        # at from each of its modules; no recursion, which has a limit.
        path: dict[str, Iterator[str]] = {start: iter(needs[start])}
        while path:
            name, left = next(reversed(path.items()))
            following = next(left, None)
            if following is None:
                del path[name]
                done.add(name)
            elif following in path:
                names = list(path)
                circle = [*names[names.index(following) :], following]
                raise GraphError(
                    f"modules need each other: {_ARROW.join(circle)}", circle
                )
            elif following not in needs:
                wrong = [*path, following]
                raise GraphError(
                    f"{_ARROW.join(wrong)}: there is no module "
                    f"{following!r}{_suggestion(following, needs)}",
                    wrong,
                )
            elif following not in done:
                path[following] = iter(needs[following])


def _suggestion(name: str, names: Mapping[str, object]) -> str:
    """
    @return: What may have been meant.
    """
    close = get_close_matches(name, names, n=1)
    return f"; is it {close[0]!r} that is meant?" if close else ""
