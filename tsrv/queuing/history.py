"""
The history of a module: its attempts, losses and pauses, and their durations. It stays
small, however long a program runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IReactorTime

from .histogram import Histogram

__all__ = [
    "Attempt",
    "Episodes",
    "History",
    "Loss",
    "Pause",
    "count",
    "explain",
    "oneLine",
]

# Numbers of kept episodes: the first ones show how the trouble began.
FIRST_EPISODES: Final = 5
LAST_EPISODES: Final = 20

# Maximum length of an error's text, in characters.
MAX_ERROR_LENGTH: Final = 1000


@dataclass(slots=True)
class Attempt:
    """
    One attempt to initialise a module.

    @ivar begun: The time of its beginning, by the reactor, in seconds.
    @ivar ended: The time of its end; L{None} while it is in progress.
    @ivar kind: The type of its error, if it failed.
    @ivar error: Its error, in one line.
    """

    begun: float
    ended: float | None = None
    kind: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Loss:
    """
    One loss of a module.

    @ivar lost: The time of the loss, by the reactor, in seconds.
    @ivar recovered: The time when the module was ready again; L{None} until then.
    @ivar kind: The type of the error that was the reason, if there was one.
    @ivar error: The error, in one line.
    """

    lost: float
    recovered: float | None = None
    kind: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Pause:
    """
    One pause of a module: until its last holder has resumed it.

    @ivar begun: The time of its beginning, by the reactor, in seconds.
    @ivar ended: The time of its end; L{None} while the module is paused.
    """

    begun: float
    ended: float | None = None


_Episode = TypeVar("_Episode")


class Episodes(Generic[_Episode]):
    """
    Attempts, losses or pauses, to iterate in order: the first 5 and the last 20.

    @ivar count: Number of all episodes, kept or not.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[_Episode] = []
        self._last: deque[_Episode] = deque(maxlen=LAST_EPISODES)

    def __iter__(self) -> Iterator[_Episode]:
        yield from self._first
        yield from self._last

    def add(self, episode: _Episode) -> None:
        """
        Add an episode at the end.
        """
        self.count += 1
        if len(self._first) < FIRST_EPISODES:
            self._first.append(episode)
        else:
            self._last.append(episode)


class History:
    """
    The history of one module.

    Errors are kept as text: an error object would keep its frames alive, with all their
    local variables.

    @ivar attempts: L{Episodes} of L{Attempt}.
    @ivar losses: L{Episodes} of L{Loss}.
    @ivar pauses: L{Episodes} of L{Pause}.
    @ivar becameReady: The time when the module was ready for the first time, by the
        reactor, in seconds; L{None} until then.
    @ivar attemptSeconds: L{Histogram} of the durations of attempts, in seconds.
    @ivar queueSeconds: L{Histogram} of the time of calls in the queue, in seconds,
        whether they were started or not.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self.attempts: Episodes[Attempt] = Episodes()
        self.losses: Episodes[Loss] = Episodes()
        self.pauses: Episodes[Pause] = Episodes()
        self.becameReady: float | None = None
        self.attemptSeconds = Histogram()
        self.queueSeconds = Histogram()
        self._reactor = reactor
        self._attempt: Attempt | None = None
        self._loss: Loss | None = None
        self._pause: Pause | None = None

    def attemptBegan(self) -> None:
        """
        Record the beginning of an attempt.
        """
        self._attempt = Attempt(self._reactor.seconds())
        self.attempts.add(self._attempt)

    def attemptEnded(self, error: BaseException | None = None) -> None:
        """
        Record the end of the attempt in progress, if there is one.

        @param error: Why it failed; L{None} if it succeeded.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        attempt.ended = now = self._reactor.seconds()
        self.attemptSeconds.observe(now - attempt.begun)
        if error is not None:
            attempt.kind, attempt.error = type(error).__name__, explain(error)

    def ready(self) -> None:
        """
        Record that the module became ready.
        """
        now = self._reactor.seconds()
        if self.becameReady is None:
            self.becameReady = now
        if self._loss is not None:
            self._loss.recovered = now
            self._loss = None

    def lost(self, error: BaseException | None) -> None:
        """
        Record a loss.

        @param error: The reason, if the module gave one.
        """
        self._loss = Loss(self._reactor.seconds())
        self.losses.add(self._loss)
        if error is not None:
            self._loss.kind, self._loss.error = type(error).__name__, explain(error)

    def paused(self) -> None:
        """
        Record that the module was paused.
        """
        self._pause = Pause(self._reactor.seconds())
        self.pauses.add(self._pause)

    def resumed(self) -> None:
        """
        Record that the last holder has resumed the module.
        """
        if self._pause is not None:
            self._pause.ended = self._reactor.seconds()
            self._pause = None


def explain(error: BaseException | None) -> str:
    """
    @return: An error in one line of bounded length: the message of tsrv's own errors,
        and the type and the message of others. It never fails, even if C{str(error)}
        does.
    """
    if error is None:
        return "no reason given"
    kind = type(error)
    try:
        text = oneLine(str(error))
        isOwn = kind.__module__.startswith("tsrv.")
    except BaseException:
        text, isOwn = "(an error that cannot be printed)", False
    if not text:
        return kind.__name__
    return text if isOwn else f"{kind.__name__}: {text}"


def oneLine(text: str) -> str:
    """
    @return: A text in one line of bounded length. Control characters and characters
        that cannot be encoded are escaped.
    """
    text = " ".join(text.split())
    if len(text) > MAX_ERROR_LENGTH:
        text = f"{text[: MAX_ERROR_LENGTH - 1]}…"
    if not text.isprintable():
        escaped = (
            each if each.isprintable() else each.encode("unicode_escape").decode()
            for each in text
        )
        text = "".join(escaped)
    return text


def count(number: int, noun: str) -> str:
    """
    @return: A number with its noun: C{"1 call"}, C{"2 calls"}.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
