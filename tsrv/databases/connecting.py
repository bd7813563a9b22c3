"""
How a connection to PostgreSQL is opened, without a thread that waits for it.

psycopg hides the connection while it is being opened, so the loop is written out
here: it makes libpq report the SQLSTATE of a refused connection. Names are
resolved before, because libpq would block the reactor for that.
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

DEFAULT_VERBOSITY: Final = 1
VERBOSE: Final = 2
"""
The value for C{PQsetErrorVerbosity} that puts the SQLSTATE into messages.
"""

_FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")

_CODE: Final = re.compile(r":\s+(?=[A-Z]*[0-9])([0-9A-Z]{5}):\s+(.*)")

_QUOTED: Final = re.compile(r'"[^"]*"')


async def connect(
    reactor: Any,
    conninfo: str = "",
    *,
    timeout: float = 30.0,
    defaults: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Connection[TupleRow]:
    """
    Connect to PostgreSQL.

    Each host, and each address of its name, is tried in turn. The connection
    begins like any psycopg connection: in particular, autocommit is off.

    @param reactor: Provides time and threads, and watches the socket.
    @param conninfo: The URL, or the connection string of libpq.
    @param timeout: Maximum time for all addresses together, in seconds.
    @param defaults: Parameters of libpq that apply unless C{conninfo} or the
        environment sets them.
    @param parameters: Parameters of libpq; they replace those of C{conninfo}.
    @return: The connection.
    @raise psycopg.Error: The class for the SQLSTATE with which the server refused
        the connection; C{ProgrammingError} without an SQLSTATE if the
        parameters are wrong; otherwise C{OperationalError}.
    """
    until = reactor.seconds() + timeout
    failures: list[psycopg.Error] = []
    try:
        resolving = _resolve(reactor, _parse(conninfo, defaults or {}, parameters))
        attempts = await resolving.addTimeout(timeout, reactor)
    except TimedOut:
        raise errors.ConnectionTimeout(
            f"the name of the database host was not resolved in {timeout:.3g} s"
        ) from None
    for number, attempt in enumerate(attempts):
        # An address that does not answer leaves time for the others.
        share = max(until - reactor.seconds(), 0.0) / (len(attempts) - number)
        opening = Deferred.fromCoroutine(_open(reactor, attempt))
        try:
            return await opening.addTimeout(share, reactor)
        except TimedOut:
            place = f"{attempt.get('host', '')}:{attempt.get('port') or 5432}"
            failures.append(
                errors.ConnectionTimeout(f"no answer from {place} in {share:.3g} s")
            )
        except OSError as error:
            failures.append(psycopg.OperationalError(str(error.strerror)))
        except psycopg.Error as error:
            failures.append(error)
    # What a server said is more useful than that another one did not answer.
    raise next((each for each in failures if each.sqlstate), failures[-1])


def _parse(
    conninfo: str, defaults: Mapping[str, str], parameters: dict[str, Any]
) -> ConnDict:
    environment = {
        option.keyword.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val and option.val != option.compiled
    }
    missing = {key: defaults[key] for key in defaults if key not in environment}
    try:
        found = conninfo_to_dict(conninfo, **parameters)
    except (psycopg.Error, UnicodeError):
        # The message of libpq repeats what it does not understand: a secret?
        raise psycopg.ProgrammingError(
            "the URL of the database is not understood: check its options, and that "
            "special characters are written as %XX"
        ) from None
    if found.get("service") and not found.get("host"):
        raise psycopg.ProgrammingError("the URL of the database must name the host")
    for name in _FILES:
        path = found.get(name)
        if path and path != "system" and not os.access(str(path), os.R_OK):
            raise psycopg.ProgrammingError(f"{name} in the URL is not a readable file")
    # Kerberos blocks.
    return {**missing, **found, "gssencmode": "disable"}


def _resolve(reactor: Any, parameters: ConnDict) -> Deferred[list[ConnDict]]:
    """
    @return: The parameters for each address.
    """

    def resolve() -> list[ConnDict]:
        try:
            return conninfo_attempts(parameters)
        except psycopg.Error as error:
            if "resolve" in str(error):
                raise
            # There are not as many ports as hosts.
            raise psycopg.ProgrammingError(str(error)) from None

    hosts = str(parameters.get("host") or os.environ.get("PGHOST", "")).split(",")
    if "hostaddr" in parameters or all(map(_isAddress, hosts)):
        return maybeDeferred(resolve)
    return deferToThreadPool(reactor, reactor.getThreadPool(), resolve)


def _isAddress(host: str) -> bool:
    return not host or host.startswith("/") or isIPAddress(host) or isIPv6Address(host)


async def _open(reactor: Any, parameters: ConnDict) -> Connection[TupleRow]:
    pgconn = await drive(reactor, _connecting(parameters))
    try:
        return Connection(reactor, pgconn)
    except OSError:
        pgconn.finish()
        raise


def _connecting(parameters: ConnDict) -> PQGenConn[pq.abc.PGconn]:
    """
    Connect to one address; the generator yields like those of psycopg.
    """
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        _setVerbosity(pgconn, VERBOSE)
        status: int = pq.PollingStatus.WRITING
        if pgconn.status == pq.ConnStatus.BAD:
            status = pq.PollingStatus.FAILED
        while status != pq.PollingStatus.OK:
            if status == pq.PollingStatus.FAILED:
                raise _refusal(pgconn, str(parameters.get("hostaddr", "")))
            isReading = status == pq.PollingStatus.READING
            yield pgconn.socket, READ if isReading else WRITE  # type: ignore[misc]
            status = pgconn.connect_poll()
        _setVerbosity(pgconn, DEFAULT_VERBOSITY)
        pgconn.nonblocking = 1
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


def _setVerbosity(pgconn: pq.abc.PGconn, verbosity: int) -> None:
    """
    Say what libpq puts into its messages. psycopg does not offer this function,
    but the library that it is linked with has it.
    """
    try:
        library = ctypes.CDLL(sys.modules[type(pgconn).__module__].__file__)
        setVerbosity = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        # Then every refused connection counts as one that passes.
        return
    setVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    setVerbosity(pgconn.pgconn_ptr, verbosity)  # type: ignore[attr-defined]


def _refusal(pgconn: pq.abc.PGconn, address: str) -> psycopg.Error:
    """
    @return: The error for a connection that failed.
    """
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
        # What has to do with a server names it.
        return psycopg.ProgrammingError(_QUOTED.sub("it", text))
    # libpq gives no reason when there is no file descriptor left.
    return psycopg.OperationalError(text or "the connection failed without a reason")
