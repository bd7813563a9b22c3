"""
What is asked of PostgreSQL: a statement on its way, and what its answer means.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Final, Literal

from psycopg import errors, pq
from twisted.internet.defer import Deferred

from .interface import (
    ConstraintViolated,
    DatabaseError,
    DatabaseUnavailable,
    OutcomeUnknown,
    Row,
    UniqueViolated,
)

__all__ = ["LATER", "READ_ONLY", "Call", "errorOf", "nameOf", "textOf"]

LATER: Final = 1.0
"""
When it may be worth trying again, in seconds.
"""

READ_ONLY: Final = "25006"
"""
The SQLSTATE of a server that only answers questions: after a failover another
one is to be written to.
"""

_PASSING: Final = ("08", "40", "53", "58")
"""
Classes of errors that pass: of the connection, of transactions that were in
each other's way, of what is lacking, and of the system.
"""

_PASSING_CODES: Final = frozenset(
    ["55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", READ_ONLY]
)

_SILENT: Final = ("21", "22", "23", "44", "P0")
"""
Classes of errors whose messages may repeat what was to be written.
"""

_UNKNOWN: Final = ("08007", "40003")
"""
What says that nobody knows whether a transaction was committed.
"""

_MISTAKEN: Final = "08P01"
"""
What a server answers to parameters that do not fit the statement; a pooler, which
then ends the connection, says it of much else.
"""

_MOST: Final = 65_535
"""
How many parameters the protocol can count.
"""

_INTEGER, _FLOAT, _BYTES = 20, 701, 17


class Call:
    """
    One statement on its way.

    @ivar sql: The statement, with numbered parameters.
    @ivar values: The parameters.
    @ivar types: The types of the parameters, as PostgreSQL numbers them; 0
        where it finds out by itself.
    @ivar formats: Whether they are text or binary.
    @ivar kind: What it is: C{"read"}, C{"write"}, or C{"check"} for one of
        our own.
    @ivar isPrepared: Whether it is worth being prepared.
    @ivar isSent: Whether it may have reached the server.
    @ivar leave: Called with it when its caller gives it up while it waits.
    @ivar answer: Who waits for the answer; L{None} when nobody does any more.
    """

    __slots__ = (
        "answer",
        "formats",
        "isPrepared",
        "isSent",
        "kind",
        "leave",
        "sql",
        "types",
        "values",
    )

    def __init__(
        self,
        kind: Literal["read", "write", "check"],
        sql: str,
        parameters: tuple[object, ...] = (),
        isPrepared: bool = False,
    ) -> None:
        """
        @raise DatabaseError: A parameter cannot be one.
        """
        if len(parameters) > _MOST:
            raise DatabaseError(f"there are more than {_MOST} parameters", "54023")
        self.kind = kind
        self.sql = sql
        self.values: list[bytes | None] = []
        types: list[int] = []
        self.formats: list[int] | None = None
        for parameter in parameters:
            if isinstance(parameter, str):
                self.values.append(_encoded(parameter))
                types.append(0)
            elif isinstance(parameter, int):
                self.values.append(b"%d" % parameter)
                types.append(_INTEGER)
            elif parameter is None:
                self.values.append(None)
                types.append(0)
            elif isinstance(parameter, float):
                self.values.append(repr(parameter).encode())
                types.append(_FLOAT)
            elif isinstance(parameter, bytes):
                self.values.append(parameter)
                types.append(_BYTES)
                self.formats = [pq.Format.TEXT] * len(parameters)
            else:
                raise DatabaseError(
                    f"a parameter cannot be of {type(parameter).__name__}", "42804"
                )
        self.types = tuple(types)
        if self.formats is not None:
            for index, kindOf in enumerate(types):
                if kindOf == _BYTES:
                    self.formats[index] = pq.Format.BINARY
        self.isPrepared = isPrepared
        self.isSent = False
        self.leave: Callable[[Call], None] | None = None
        self.answer: Deferred[list[Row]] | None = Deferred(self._giveUp)

    def _giveUp(self, answer: Deferred[list[Row]]) -> None:
        self.answer = None
        if self.leave is not None:
            self.leave(self)

    def settle(self, result: list[Row] | Exception) -> None:
        """
        Answer, if anybody still waits.
        """
        answer, self.answer = self.answer, None
        if answer is None:
            return
        if isinstance(result, Exception):
            answer.errback(result)
        else:
            answer.callback(result)

    def interrupted(self, reason: str) -> Exception:
        """
        @return: What it fails with when there will be no answer.
        """
        if self.isSent and self.kind == "write":
            return OutcomeUnknown("write")
        return DatabaseUnavailable(reason, LATER)

    def answered(self, code: str, outcome: list[Row] | Exception) -> None:
        """
        Settle it with what the server has answered.

        @param code: The SQLSTATE, if it is an error.
        """
        if code in _UNKNOWN:
            outcome = self.interrupted(str(outcome))
        self.settle(outcome)

    def ended(self, code: str, error: Exception, completed: bool) -> None:
        """
        Settle it with the error with which the server has ended the connection.

        @param code: The SQLSTATE.
        @param completed: Whether the statement was carried out before; then it
            may have been committed.
        """
        if completed or code in _UNKNOWN or code.startswith("08"):
            error = self.interrupted(str(error))
        self.settle(error)


def _encoded(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        # It would end there.
        raise DatabaseError("PostgreSQL has no text with such characters", "22021")
    return encoded


@lru_cache(1024)
def nameOf(sql: str, types: tuple[int, ...]) -> bytes:
    """
    @return: The name of a prepared statement. A statement of this name is the
        same one, whoever has prepared it: connections to a pooler share them.
    """
    return b"tsrv_" + sha256(f"{types} {sql}".encode()).hexdigest()[:32].encode()


def textOf(message: bytes) -> str:
    """
    @return: The first line of a message, without what it is repeated with.
    """
    line = message.decode("utf-8", "replace").strip().partition("\n")[0]
    return line[:500]


def errorOf(code: str, message: str, constraint: str = "") -> Exception:
    """
    Say what an error means. The statement was not carried out, if the server
    knows that: see L{Call.answered} and L{Call.ended}.

    @param code: The SQLSTATE.
    @param message: The primary message of the server.
    @param constraint: The name of the constraint that was violated.
    @return: The error.
    """
    try:
        name = errors.lookup(code).__name__
    except KeyError:
        name = "error"
    text = f"PostgreSQL answered with {name} ({code})"
    if constraint:
        text += f": {constraint}"
    elif not code.startswith(_SILENT):
        text += f": {message}"
    passes = code.startswith(_PASSING) and code != _MISTAKEN
    if passes or code in _PASSING_CODES:
        return DatabaseUnavailable(text, LATER, code)
    if code.startswith("23"):
        kind = UniqueViolated if code == "23505" else ConstraintViolated
        return kind(text, code)
    return DatabaseError(text, code)
