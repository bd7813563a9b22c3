"""
The log of one module: one line for each event, with the numbers that operators need.
The numbers are fields of the log event, too.

A module that is down for hours, or is lost again and again, must not fill the log. So
a known reason gets further lines at growing intervals: when the trouble has lasted
twice as long as at the last line, or for another hour; and when it is a minute since
the module became ready, and the log has not said that it is lost. Such a line also
counts the events without a line. The first three losses and failed attempts always get
a line, except attempts that fail for the reason of the loss. The trouble is over when
the module has been ready for a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .attempt import PROGRAMMING_ERRORS
from .history import explain, oneLine

__all__ = ["Consequence", "ModuleLog", "logReady"]

_log = Logger("tsrv.wrapper")

# The shortest and the longest interval between two lines about a known reason.
MIN_SILENCE_SECONDS: Final = 5.0
MAX_SILENCE_SECONDS: Final = 3600.0

# Seconds after which the trouble of a ready module is over.
CALM_SECONDS: Final = 60.0

# Number of losses, and of failed attempts, that always get a line.
FIRST_TIMES: Final = 3

# Maximum number of new reasons that get a line at once during one trouble.
MAX_REASONS: Final = 10


class Consequence:
    """
    The reason of a reset, a failure or a pause that follows from an event of another
    module. This event has its own log line, so the reset or the failure is logged as
    information, and the pause is not logged.

    @ivar summary: What happens to the module, in a few words, for the log line.
    """

    summary = ""


class ModuleLog:
    """
    Writes the log of one module.
    """

    def __init__(
        self, reactor: IReactorTime, name: str, pending: Callable[[], int]
    ) -> None:
        """
        @param reactor: Provides the time.
        @param name: The name of the module.
        @param pending: Returns the number of queued calls.
        """
        self._reactor = reactor
        self._name = name
        self._pending = pending
        self._consequence: Consequence | None = None
        self._pausedSince: float | None = None
        self.begin()

    def begin(self) -> None:
        """
        The module is initialised, or has been reset: forget earlier trouble.
        """
        self._since = self._readySince = self._reactor.seconds()
        # Whether nothing has happened since the module became ready.
        self._isReady = False
        self._silentUntil = 0.0
        self._told: set[str] = set()
        self._lossReason: str | None = None
        self._times: dict[str, int] = {}
        self._hasOmitted = self._hasTraceback = False
        # Whether the log says that the module is not ready.
        self._isTold = True

    def lost(self, error: BaseException | None, delay: float, source: str = "") -> None:
        """
        The module is lost.

        @param delay: The seconds until the next attempt.
        @param source: The source of the report, unless it is the module: a ping.
        """
        reason = f"{source}{explain(error)}"
        self._trouble("lost", reason, delay, "losses")
        self._lossReason = reason

    def attemptFailed(
        self, number: int, error: BaseException | None, delay: float
    ) -> None:
        """
        An attempt has failed, and another one follows.

        @param number: The number of the attempt.
        """
        what = "attempt {attempt} failed"
        self._trouble(what, explain(error), delay, "failures", attempt=number)

    def _trouble(
        self, what: str, reason: str, delay: float, plural: str, **fields: int
    ) -> None:
        if not self._isDue(what, reason):
            return
        times = self._times[what]
        text = "{module}: " + what + " ({error})"
        if self._hasOmitted and times > 1:
            text += ", {times} " + plural + " in {seconds:.0f} s"
            self._hasOmitted = False
        text += "; retry in {delay:.1f} s" if delay else "; retry at once"
        _log.warn(
            text,
            module=self._name,
            error=reason,
            times=times,
            seconds=round(self._reactor.seconds() - self._since, 3),
            delay=round(delay, 3),
            **fields,
        )

    def _isDue(self, what: str, reason: str) -> bool:
        now = self._reactor.seconds()
        wasReady, self._isReady = self._isReady, False
        # The log still says that the module is ready, since a minute or longer.
        isOutdated = not self._isTold and now - self._readySince >= CALM_SECONDS
        if (wasReady and isOutdated) or not (self._isTold or self._times):
            self.begin()
        times = self._times[what] = self._times.get(what, 0) + 1
        # An attempt that fails for the reason of the loss is not news.
        isFirst = times <= FIRST_TIMES and (
            what == "lost" or reason != self._lossReason
        )
        seconds = now - self._since
        isNew = reason not in self._told and len(self._told) < MAX_REASONS
        isDue = isFirst or isNew or isOutdated or seconds >= self._silentUntil
        if not isDue:
            self._hasOmitted = True
            return False
        if isNew:
            self._told.add(reason)
        silence = min(max(seconds, MIN_SILENCE_SECONDS), MAX_SILENCE_SECONDS)
        self._silentUntil = seconds + silence
        self._isTold = True
        return True

    def mistake(self, failure: Failure) -> None:
        """
        An attempt has failed. If that looks like a mistake in the program, log its
        traceback, once until the module is ready.
        """
        if isinstance(failure.value, PROGRAMMING_ERRORS) and not self._hasTraceback:
            self._hasTraceback = True
            text = "{module}: a mistake in the program"
            _log.failure(text, failure, module=self._name)

    def ready(self, seconds: float, attempts: int, isRecovered: bool) -> None:
        """
        The module is ready.

        @param seconds: The seconds since the loss, or since C{initialize()}.
        @param attempts: The number of attempts since then.
        """
        isTold, self._isTold = self._isTold, False
        self._readySince = self._reactor.seconds()
        self._isReady = True
        self._hasTraceback = False
        # Success at the first attempt is not worth a line.
        if isTold and (isRecovered or attempts > 1):
            self._hasOmitted = False
            what = "recovered" if isRecovered else "ready"
            logReady(self._name, what, seconds, attempts, self._pending())

    def reset(self, reason: BaseException) -> None:
        """
        The module was reset.
        """
        if isinstance(reason, Consequence):
            if self._isDue("reset", reason.summary):
                self._follows(reason)
        else:
            self.begin()
            text = "{module}: reset ({error})"
            _log.warn(text, module=self._name, error=explain(reason))

    def failed(self, reason: BaseException) -> None:
        """
        There will be no further attempt.
        """
        if isinstance(reason, Consequence):
            self._follows(reason)
        else:
            text = "{module}: failed for good ({error})"
            _log.error(text, module=self._name, error=explain(reason))

    def _follows(self, reason: Consequence) -> None:
        # Skipping a healthy module resets it first: log this once.
        if reason is not self._consequence:
            self._consequence = reason
            text = "{module}: {summary}"
            _log.info(text, module=self._name, summary=reason.summary)

    def policyFailed(self, error: BaseException) -> None:
        """
        The retry policy has no delay for the next attempt.
        """
        text = "{module}: the retry policy ends the attempts ({error})"
        _log.error(text, module=self._name, error=explain(error))

    def paused(self, by: object) -> None:
        """
        Another holder has paused the module.
        """
        if isinstance(by, Consequence):
            return
        if self._pausedSince is None:
            self._pausedSince = self._reactor.seconds()
        if isinstance(by, str):
            text = "{module}: paused by {by}"
            _log.info(text, module=self._name, by=oneLine(by))
        else:
            _log.info("{module}: paused", module=self._name)

    def resumed(self) -> None:
        """
        The last holder has resumed the module.
        """
        begun, self._pausedSince = self._pausedSince, None
        if begun is not None:
            queued = self._pending()
            _log.info(
                f"{{module}}: resumed after {{seconds:.1f}} s, {_queued(queued)}",
                module=self._name,
                seconds=round(self._reactor.seconds() - begun, 3),
                queued=queued,
            )

    def closingFailed(self, error: BaseException, isReset: bool) -> None:
        """
        The module could not be closed.

        @param isReset: Whether the module is initialised again afterwards.
        """
        reason = explain(error)
        if not isReset:
            text = "{module}: failed to close ({error})"
            _log.error(text, module=self._name, error=reason)
        elif self._isDue("not closed", reason):
            text = "{module}: failed to close for the reset ({error})"
            _log.warn(text, module=self._name, error=reason)


def logReady(
    module: str, what: str, seconds: float, attempts: int, queued: int
) -> None:
    """
    Log that a module is ready.

    @param what: C{"ready"} or C{"recovered"}.
    @param seconds: The seconds since the loss, or since C{initialize()}.
    @param attempts: The number of attempts since then.
    @param queued: The number of queued calls.
    """
    noun = "attempt" if attempts == 1 else "attempts"
    _log.info(
        f"{{module}}: {what} after {{seconds:.1f}} s, {{attempts}} {noun}, "
        + _queued(queued),
        module=module,
        seconds=round(seconds, 3),
        attempts=attempts,
        queued=queued,
    )


def _queued(number: int) -> str:
    return "{queued} call queued" if number == 1 else "{queued} calls queued"
