"""
The log as JSON: one object for each event, on one line.

A line has the time, level, namespace and text (C{message}) of its event; C{requestId}
and C{module}, if the event has them; C{error} and C{traceback} of a failure; and the
other fields of the event. Every line is valid JSON in ASCII: a value that JSON cannot
express becomes text, and a value that cannot become text is replaced by C{<TYPE without
text>}.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from json import dumps
from math import isfinite
from typing import IO, Any, Final, cast

from twisted.logger import (
    FileLogObserver,
    LogEvent,
    formatEvent,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

__all__ = ["chooseFormat", "formatAsJSON", "jsonObserver", "makeTwistdObserver"]

# Limits of one field; the text of the event and a traceback are never cut off.
MAX_CHARACTERS: Final = 2_000
MAX_DEPTH: Final = 5

# Limit of all fields of an event, including nested values.
MAX_VALUES: Final = 500

MAX_INTEGER: Final = 2**63

# The options of twistd for the location of its log.
_twistd: dict[str, Any] = {}

_RESERVED: Final = frozenset(["time", "level", "namespace", "message"])

# Twisted adds these fields for observers of an older kind.
_LEGACY: Final = frozenset(
    ["failure", "format", "isError", "message", "system", "time", "why"]
)


def formatAsJSON(event: LogEvent) -> str | None:
    """
    Format an event of L{twisted.logger} as a line of JSON.

    @param event: The event.
    @return: The line, with its line break; L{None} if the event has no text.
    """
    line: dict[str, Any] = {}
    try:
        text, failure = formatEvent(event), event.get("log_failure")
        if not text and failure is None:
            return None
        line |= _headOf(event, text)
        fields = _Fields()
        if failure is not None:
            line["error"] = fields.plain(failure.value)
            line["traceback"] = _clean(failure.getTraceback())
        isLegacy = "log_legacy" in event or event.get("log_namespace") == "log_legacy"
        for key, value in event.items():
            if not (key.startswith("log_") or (isLegacy and key in _LEGACY)):
                name = f"{key}_" if key in _RESERVED else key
                line[_clean(name)] = fields.plain(value)
    except BaseException as error:
        # Twisted would log the failure of an observer, again to this observer.
        line["formatError"] = type(error).__name__
    return dumps(line) + "\n"


def jsonObserver(file: IO[Any]) -> FileLogObserver:
    """
    Make an observer that writes events as lines of JSON, for any program::

        globalLogBeginner.beginLoggingTo([jsonObserver(sys.stdout)])

    @param file: The file, for text or bytes.
    @return: The observer.
    """
    return FileLogObserver(file, formatAsJSON)


def chooseFormat(program: MutableMapping[str, Any], name: str) -> None:
    """
    Choose the format of the log of C{twistd} or C{twist}, in the options of a plugin::

        def postOptions(self):
            chooseFormat(self.parent, "json")

    The log file stays the same; C{twistd} rotates it.

    @param program: The options of the program.
    @param name: C{"text"} or C{"json"}.
    @raise ValueError: The option C{--logger} or C{--syslog} of C{twistd} conflicts
        with JSON.
    """
    if "fileLogObserverFactory" in program:
        isText = name == "text"
        program["fileLogObserverFactory"] = (
            textFileLogObserver if isText else jsonObserver
        )
    elif name == "json":
        if program.get("logger") or program.get("syslog"):
            raise ValueError("cannot be used with --logger or --syslog of twistd")
        # twistd imports the function by its name, and calls it without arguments.
        program["logger"] = f"{__name__}.makeTwistdObserver"
        _twistd.update({key: program.get(key) for key in ("logfile", "nodaemon")})


def makeTwistdObserver() -> FileLogObserver:
    """
    Open the log that the options of C{twistd} name. C{twistd} calls this function,
    after L{chooseFormat}.

    @return: An observer that writes JSON to the log.
    @raise SystemExit: A daemon cannot log to stdout.
    """
    # Twisted does the same, but only in private code.
    path, isDaemon = _twistd.get("logfile"), not _twistd.get("nodaemon", True)
    if path == "-" and isDaemon:
        raise SystemExit("tsrv: a daemon cannot log to stdout (pass --logfile=FILE)")
    if path == "-" or not (path or isDaemon):
        return jsonObserver(sys.stdout)
    log = LogFile.fromFullPath(path or "twistd.log")
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:

        def rotate(*caught: object) -> None:
            from twisted.internet import reactor

            cast(Any, reactor).callFromThread(log.rotate)

        signal.signal(signal.SIGUSR1, rotate)
    return jsonObserver(log)


def _headOf(event: LogEvent, text: str) -> dict[str, Any]:
    level, seconds = event.get("log_level"), event.get("log_time")
    time = None
    if isinstance(seconds, int | float) and 0 <= seconds < 2**36:
        time = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    head = {
        "time": time,
        "level": _clean(getattr(level, "name", "info")),
        "namespace": _clean(str(event.get("log_namespace", "-"))),
        "message": _clean(text),
    }
    # These two come before the other fields.
    return head | {name: None for name in ("requestId", "module") if name in event}


class _Fields:
    """
    Converts the fields of one event to values that JSON can express.
    """

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def plain(self, value: object, depth: int = 0) -> object:
        self._left -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < MAX_INTEGER:
            return int(value)
        if isinstance(value, float) and isfinite(value):
            return float(value)
        if depth < MAX_DEPTH:
            if isinstance(value, dict):
                return {
                    _textOf(key): self.plain(each, depth + 1)
                    for key, each in value.items()
                    if self._left > 0
                }
            if isinstance(value, list | tuple | set | frozenset):
                return [self.plain(each, depth + 1) for each in value if self._left > 0]
        return _textOf(value)


def _textOf(value: object) -> str:
    try:
        value = value.value if isinstance(value, Failure) else value
        if isinstance(value, bytes):
            text = value[:MAX_CHARACTERS].decode("utf-8", "backslashreplace")
        elif isinstance(value, BaseException):
            text = f"{type(value).__name__}: {value}"
        else:
            text = str(value)
        return _clean(text[:MAX_CHARACTERS])
    except BaseException:
        return f"<{type(value).__name__} without text>"


def _clean(text: str) -> str:
    # JSON cannot express half of a surrogate pair.
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")
