"""
Processes that are told what to do, line by line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["LONGEST", "Child", "raiseFileLimit"]

LONGEST: Final = 600
"""
How long any of the processes lives at most, in seconds.
"""

_ROOT = Path(__file__).parent.parent

_PATIENCE = 5


class Child:
    """
    One process. It is a context manager, at the end of which it has ended.
    """

    def __init__(self, module: str, *words: str) -> None:
        """
        @param module: The module that is its program.
        @param words: Its command line.
        """
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, *words],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            # It ends when nobody can tell it anything any more.
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def tell(self, *words: object) -> dict[str, Any]:
        """
        @param words: What it is to do.
        @return: Its answer.
        """
        self.begin(*words)
        return self.answer()

    def begin(self, *words: object) -> None:
        """
        Tell it what to do, and don't wait for the answer.

        @param words: What it is to do.
        """
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """
        @return: The answer to what it was told.
        @raise RuntimeError: It has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended before it answered")
        answer: dict[str, Any] = json.loads(line)
        return answer


def raiseFileLimit(wanted: int) -> int:
    """
    Allow this process, and those that it will start, more open files.

    @param wanted: How many connections there are to be.
    @return: How many there can be.
    """
    spare = 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + spare:
        return wanted
    most = wanted + spare
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - spare
