"""
Opens a connection to PostgreSQL on the reactor.

libpq reports the SQLSTATE of a refused connection only if its messages are verbose, and
the SQLSTATE says whether a retry may help. psycopg's own loop has no way to set that
before the connection is open, so this module has a loop of its own. The reactor's
threads resolve host names first, because libpq would block the reactor.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import errors, pq
from psycopg.abc import ConnDict, PQGenConn
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.threads import deferToThreadPool

from .twistedpsycopg import READ, WRITE, Connection, drive

__all__ = ["connect"]

VERBOSITY_DEFAULT: Final = 1
VERBOSITY_VERBOSE: Final = 2

_CODE: Final = re.compile(r":\s+(?=[A-Z]*[0-9])([0-9A-Z]{5}):\s+(.*)")


async def connect(
    reactor: Any,
    conninfo: str = "",
    *,
    timeout: float = 30.0,
    defaults: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Connection[TupleRow]:
    """
    Connect to PostgreSQL. The connection is a psycopg connection, which waits on any
    Twisted reactor, without threads::

        async with await connect(reactor, "postgresql://localhost/app") as connection:
            cursor = await connection.execute("SELECT name FROM people")
            names = await cursor.fetchall()

    Each host, and each address of its name, is tried in turn. As with any psycopg
    connection, autocommit is off.

    @param reactor: Provides time and threads, and watches the socket.
    @param conninfo: The URL, or the connection string of libpq.
    @param timeout: Maximum time for all addresses together, in seconds.
    @param defaults: Parameters of libpq that apply unless C{conninfo} sets them.
    @param parameters: Parameters of libpq that override the ones in C{conninfo}.
    @return: The connection.
    @raise psycopg.Error: The class for the SQLSTATE with which the server refused
        the connection; without one, C{ProgrammingError} if the parameters are
        invalid, and C{OperationalError} otherwise.
    """
    until = reactor.seconds() + timeout
    failures: list[psycopg.Error] = []
    found = {**(defaults or {}), **_parse(conninfo, parameters)}
    try:
        attempts = await _resolve(reactor, found).addTimeout(timeout, reactor)
    except TimedOut:
        raise errors.ConnectionTimeout(
            "the host name was not resolved in time"
        ) from None
    for number, attempt in enumerate(attempts):
        # If an address does not answer, the others still get their share of the time.
        share = max(until - reactor.seconds(), 0.0) / (len(attempts) - number)
        opening = Deferred.fromCoroutine(drive(reactor, _connect(attempt)))
        try:
            return Connection(reactor, await opening.addTimeout(share, reactor))
        except TimedOut:
            place = f"{attempt.get('host', '')}:{attempt.get('port') or 5432}"
            failures.append(errors.ConnectionTimeout(f"{place} does not answer"))
        except OSError as error:
            failures.append(psycopg.OperationalError(str(error.strerror)))
        except psycopg.Error as error:
            failures.append(error)
    # The refusal of one server says more than the silence of another.
    raise next((each for each in failures if each.sqlstate), failures[-1])


def _parse(conninfo: str, parameters: dict[str, Any]) -> ConnDict:
    try:
        found = conninfo_to_dict(conninfo, **parameters)
    except (psycopg.Error, UnicodeError):
        # The message of libpq repeats invalid parts, which may be secret.
        raise psycopg.ProgrammingError(
            "the URL of the database is invalid: check its options, and that special "
            "characters are written as %XX"
        ) from None
    if found.get("service") and not found.get("host"):
        raise psycopg.ProgrammingError("the URL of the database must name the host")
    for name in ("sslcert", "sslkey", "sslrootcert", "sslcrl"):
        path = found.get(name)
        if path and path != "system" and not os.access(str(path), os.R_OK):
            raise psycopg.ProgrammingError(f"{name} in the URL is not a readable file")
    # Kerberos would block the reactor.
    return {**found, "gssencmode": "disable"}


def _resolve(reactor: Any, parameters: ConnDict) -> Deferred[list[ConnDict]]:
    def resolve() -> list[ConnDict]:
        try:
            return conninfo_attempts(parameters)
        except psycopg.Error as error:
            if "resolve" in str(error):
                raise
            # The numbers of ports and hosts differ.
            raise psycopg.ProgrammingError(str(error)) from None
        except UnicodeError:
            raise psycopg.ProgrammingError("the name of the host is invalid") from None

    hosts = str(parameters.get("host") or os.environ.get("PGHOST", "")).split(",")
    if "hostaddr" in parameters or not any(map(_isName, hosts)):
        return maybeDeferred(resolve)
    return deferToThreadPool(reactor, reactor.getThreadPool(), resolve)


def _isName(host: str) -> bool:
    isPath = host.startswith("/")
    return bool(host) and not (isPath or isIPAddress(host) or isIPv6Address(host))


def _connect(parameters: ConnDict) -> PQGenConn[pq.abc.PGconn]:
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        _setVerbosity(pgconn, VERBOSITY_VERBOSE)
        status: int = pq.PollingStatus.WRITING
        if pgconn.status == pq.ConnStatus.BAD:
            status = pq.PollingStatus.FAILED
        while status != pq.PollingStatus.OK:
            if status == pq.PollingStatus.FAILED:
                raise _refusal(
                    pgconn, parameters.get("hostaddr") or parameters.get("host")
                )
            isReading = status == pq.PollingStatus.READING
            yield pgconn.socket, READ if isReading else WRITE  # type: ignore[misc]
            status = pgconn.connect_poll()
        _setVerbosity(pgconn, VERBOSITY_DEFAULT)
        pgconn.nonblocking = 1
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


def _setVerbosity(pgconn: pq.abc.PGconn, verbosity: int) -> None:
    """
    Set the verbosity of libpq's messages; psycopg does not offer this function.
    """
    try:
        library = ctypes.CDLL(sys.modules[type(pgconn).__module__].__file__)
        setVerbosity = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        # Without SQLSTATEs every refused connection is retried.
        return
    setVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    setVerbosity(pgconn.pgconn_ptr, verbosity)  # type: ignore[attr-defined]


def _refusal(pgconn: pq.abc.PGconn, address: object) -> psycopg.Error:
    text = pgconn.error_message.decode("utf-8", "replace").strip().partition("\n")[0]
    if pgconn.needs_password:
        return errors.InvalidPassword(
            "the server asks for a password, and the URL of the database has none"
        )
    if found := _CODE.search(text):
        try:
            kind: type[psycopg.Error] = errors.lookup(found[1])
        except KeyError:
            kind = psycopg.OperationalError
        return kind(f"{text[: found.start()]}: {found[2]} ({found[1]})")
    if text and f'"{address}"' not in text and ".s.PGSQL." not in text:
        # A text without the address is about parameters; quoted parts may be secret.
        return psycopg.ProgrammingError(re.sub(r'"[^"]*"', "it", text))
    # libpq gives no reason when too many files are open.
    return psycopg.OperationalError(text or "the connection failed without a reason")
