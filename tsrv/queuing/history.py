"""
What a module has been through: its attempts, its losses, and how long they
took. It is bounded, however long a program runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IReactorTime

from .histogram import Histogram

__all__ = ["Attempt", "Episodes", "History", "Loss", "explain"]

_FIRST: Final = 5
"""
How many episodes are kept from the beginning: how it came to all the others.
"""

_LAST: Final = 20
"""
How many are kept of those that came last.
"""

_LONGEST: Final = 1000
"""
How many characters of an error are kept.
"""


@dataclass(slots=True)
class Attempt:
    """
    One attempt to initialise a module.

    @ivar begun: When it began, by the reactor's time.
    @ivar ended: When it ended; L{None} while it is in progress.
    @ivar kind: The type of its error, if it has failed.
    @ivar error: That error, in one line.
    """

    begun: float
    ended: float | None = None
    kind: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Loss:
    """
    One time at which a module was ready no longer.

    @ivar lost: When it was lost, by the reactor's time.
    @ivar recovered: When it was ready again, if it has been.
    @ivar kind: The type of the error that it was lost with, if there was one.
    @ivar error: That error, in one line.
    """

    lost: float
    recovered: float | None = None
    kind: str | None = None
    error: str | None = None


_Episode = TypeVar("_Episode")


class Episodes(Generic[_Episode]):
    """
    Things that happened, in order: the first few and the last ones.

    @ivar count: How many there were, with those that were forgotten.
    """

    __slots__ = ("_first", "_last", "count")

    def __init__(self) -> None:
        self.count = 0
        self._first: list[_Episode] = []
        self._last: deque[_Episode] = deque(maxlen=_LAST)

    def __iter__(self) -> Iterator[_Episode]:
        yield from self._first
        yield from self._last

    def add(self, episode: _Episode) -> None:
        """
        One more has happened.
        """
        self.count += 1
        if len(self._first) < _FIRST:
            self._first.append(episode)
        else:
            self._last.append(episode)


class History:
    """
    What one module has been through.

    Errors are kept as text: one that is kept itself keeps the frames that it
    was raised in, and all that is in them.

    @ivar attempts: The attempts to initialise it.
    @ivar losses: The times at which it was lost.
    @ivar becameReady: When it was ready for the first time, by the reactor's
        time; L{None} if it has not been.
    @ivar attemptSeconds: How long attempts took, in seconds, whatever they
        came to.
    @ivar queueSeconds: How long commands waited, in seconds, until they were
        started or ended otherwise.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """
        @param reactor: Provides the time.
        """
        self.attempts: Episodes[Attempt] = Episodes()
        self.losses: Episodes[Loss] = Episodes()
        self.becameReady: float | None = None
        self.attemptSeconds = Histogram()
        self.queueSeconds = Histogram()
        self._reactor = reactor
        self._attempt: Attempt | None = None
        self._loss: Loss | None = None

    @property
    def attemptCount(self) -> int:
        """
        How many attempts there have been.
        """
        return self.attempts.count

    @property
    def lossCount(self) -> int:
        """
        How many times the module was lost.
        """
        return self.losses.count

    def attemptBegan(self) -> None:
        """
        There is one more attempt.
        """
        self._attempt = Attempt(self._reactor.seconds())
        self.attempts.add(self._attempt)

    def attemptEnded(self, error: BaseException | None = None) -> None:
        """
        The attempt in progress, if there is one, has succeeded or failed.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        attempt.ended = now = self._reactor.seconds()
        self.attemptSeconds.observe(now - attempt.begun)
        if error is not None:
            attempt.kind, attempt.error = type(error).__name__, explain(error)

    def readied(self) -> None:
        """
        The module is ready.
        """
        now = self._reactor.seconds()
        if self.becameReady is None:
            self.becameReady = now
        if self._loss is not None:
            self._loss.recovered = now
            self._loss = None

    def lost(self, error: BaseException | None) -> None:
        """
        The module is ready no longer.
        """
        self._loss = Loss(self._reactor.seconds())
        self.losses.add(self._loss)
        if error is not None:
            self._loss.kind, self._loss.error = type(error).__name__, explain(error)


def explain(error: BaseException | None) -> str:
    """
    @return: An error in one line of a log, whatever the error thinks of that.
    """
    if error is None:
        return "no reason given"
    try:
        # What stands for a byte that is no text, as in the name of a file, can
        # be written nowhere.
        told = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
        text = " ".join(told.split())
    except BaseException:
        text = "(an error that cannot be printed)"
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    return f"{type(error).__name__}: {text}"
