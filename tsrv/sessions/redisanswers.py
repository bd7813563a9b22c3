"""
What the errors mean that Redis answers with.
"""

from __future__ import annotations

import re
from typing import Final

from .store import (
    SessionError,
    SessionsUnavailable,
)

__all__ = [
    "AWAY",
    "LATER",
    "NoScript",
    "SessionsRefused",
    "WrongType",
    "codeOf",
    "errorOf",
]

LATER: Final = 1.0
"""
After how many seconds to try again is reasonable.
"""

_IN_SCRIPT: Final = re.compile(
    r"ERR Error (?:running|compiling) script.*: *-?(?=[A-Z])"
)

_CODE: Final = re.compile(r"[A-Z]{2,}(?= |$)")

AWAY: Final = {
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is reading its data from the disk",
    "MASTERDOWN": "it is a copy, and has lost its master",
    "READONLY": "it is a copy, which nobody may write to",
}
"""
What says that this server is not the right one now.
"""

_NOT_NOW: Final = {
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "it has not as many copies as it must have",
    "OOM": "it has no memory left",
    "TRYAGAIN": "its cluster is being changed",
}

_REFUSED: Final = {
    "ASK": "a cluster is not supported: name a server that is none",
    "CROSSSLOT": "a cluster is not supported: name a server that is none",
    "DENIED": "it is in protected mode: give it a password, and to the URL too",
    "MOVED": "a cluster is not supported: name a server that is none",
    "NOAUTH": "it wants a password: write it into the URL, "
    "redis://:PASSWORD@HOST:PORT/NUMBER",
    "NOPERM": "the user may not do what the sessions need: allow "
    "+@read +@write +@scripting +@connection, and the prefix of the keys",
    "WRONGPASS": "check the user and the password in its URL",
}


class SessionsRefused(SessionError):
    """
    Redis cannot be used, and no retry will cure that: the password is wrong, or
    there is no such database. The message says what to do.
    """


class WrongType(SessionError):
    """
    There is something under a key that is of another type.
    """


class NoScript(SessionError):
    """
    Redis does not know the script.
    """


def codeOf(text: str) -> str:
    """
    @param text: What Redis has said.
    @return: The word for the kind of error.
    """
    found = _CODE.match(_IN_SCRIPT.sub("", text))
    return found[0] if found else "ERR"


def errorOf(code: str, text: str = "") -> Exception:
    """
    @param code: The word for a kind of error.
    @param text: What Redis has said. It may repeat what was sent, so that it is
        not shown.
    @return: What to tell whoever has sent the command.
    """
    if code in AWAY:
        return SessionsUnavailable(f"Redis cannot be used: {AWAY[code]}", LATER)
    if code in _NOT_NOW:
        return SessionsUnavailable(f"Redis cannot do it: {_NOT_NOW[code]}", LATER)
    if "max number of clients" in text:
        return SessionsUnavailable("Redis has too many clients", LATER)
    if code in _REFUSED:
        return SessionsRefused(f"Redis refuses: {_REFUSED[code]}")
    if code == "WRONGTYPE":
        return WrongType("what Redis keeps is of another type")
    if code == "NOSCRIPT":
        return NoScript("Redis does not know the script")
    return SessionError(f"Redis refuses a command ({code})")
