"""
How a connection to PostgreSQL is made, without a thread that waits for it.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from ipaddress import ip_address
from random import shuffle
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import (
    IHostResolution,
    IReadWriteDescriptor,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from .interface import (
    DatabaseRefused,
    DatabaseUnavailable,
)
from .pgcall import (
    LATER,
    errorOf,
    textOf,
)

__all__ = ["connect"]

_DEFAULTS: Final = {
    "application_name": "tsrv",
    "client_encoding": "UTF8",
    "gssencmode": "disable",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    # What only answers questions is no database to write to: after a failover
    # another server is the right one.
    "target_session_attrs": "read-write",
}

_FORCED: Final = ("client_encoding", "gssencmode")

_ADVICE: Final = {
    "28P01": "check the password in the URL of the database",
    "28000": "check the user in the URL of the database, and pg_hba.conf",
    "3D000": "create the database, or correct its name in the URL",
    "3F000": "create the schema, or correct its name",
    "42501": "let the user connect: GRANT CONNECT ON DATABASE",
    "0A000": "the server cannot do what it was asked for",
}

_OPTIONS: Final = "check the options in the URL of the database"

_WRONG: Final = ("22", "28", "42", "55")
"""
Classes of errors that say that a connection of this kind is never possible.
"""

_FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")

_QUOTED: Final = re.compile(r'"[^"]*"')

_CODE: Final = re.compile(r":\s+(?=[A-Z]*[0-9])([0-9A-Z]{5}):\s+(.*)")

Parameters = dict[str, str]


def _parametersOf(url: str) -> Parameters:
    """
    @return: What the URL, the environment and libpq say.
    @raise DatabaseRefused: The URL cannot be understood.
    """
    try:
        given = pq.Conninfo.parse(url.encode())
    except (psycopg.Error, UnicodeEncodeError):
        raise DatabaseRefused(
            "the URL of the database has something in it that is not understood: "
            "check its options, and that special characters are written as %XX"
        ) from None
    options: Parameters = {}
    for option in [*pq.Conninfo.get_defaults(), *given]:
        keyword = option.keyword.decode()
        value = option.val
        if value and (option in given or value != option.compiled):
            options[keyword] = value.decode()
    if "service" in options and not options.get("host"):
        raise DatabaseRefused("the URL of the database must name the host itself")
    for name in _FILES:
        path = options.get(name)
        if path and path != "system" and not os.access(path, os.R_OK):
            raise DatabaseRefused(f"{name} of the URL is no file that can be read")
    return {**_DEFAULTS, **options, **{name: _DEFAULTS[name] for name in _FORCED}}


def _hostsOf(parameters: Parameters) -> list[Parameters]:
    """
    @return: The parameters for each host.
    """
    columns = [
        parameters.get(name, "").split(",") for name in ("host", "hostaddr", "port")
    ]
    hosts, addresses, _ = columns
    most = max(len(hosts), len(addresses))
    for column in columns:
        if len(column) == 1 and (column is columns[2] or column == [""]):
            column.extend(column * (most - 1))
    if any(len(column) != most for column in columns):
        raise DatabaseRefused(
            "the URL of the database has not as many ports or addresses as hosts"
        )
    return [
        {**parameters, "host": host, "hostaddr": address, "port": port or "5432"}
        for host, address, port in zip(*columns, strict=True)
    ]


@implementer(IResolutionReceiver)
class _Receiver:
    """
    Collects the addresses of a host.
    """

    def __init__(self) -> None:
        self._addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred(lambda _: None)

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """
        Do nothing: not every resolver can be stopped.
        """

    def addressResolved(self, address: Any) -> None:
        """
        There is one more.
        """
        if address.host not in self._addresses:
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        """
        There are no more. If nobody waits any more, no harm is done.
        """
        if not self.done.called:
            self.done.callback(self._addresses)


async def _addressesOf(reactor: Any, parameters: Parameters) -> list[Parameters]:
    """
    @return: The parameters for each address of a host.
    """
    host = parameters["host"]
    if parameters["hostaddr"] or not host or host[0] in "/@":
        return [parameters]
    try:
        ip_address(host)
    except ValueError:
        receiver = _Receiver()
        reactor.nameResolver.resolveHostName(receiver, host)
        found = await receiver.done
    else:
        found = [host]
    return [{**parameters, "hostaddr": address} for address in found]


@implementer(IReadWriteDescriptor)
class _Socket:
    """
    Waits once for a socket.
    """

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd
        self._ready: Deferred[None] = Deferred(lambda _: self._stop())

    def wait(self, writing: bool) -> Deferred[None]:
        """
        @return: A Deferred that fires when something can be read or written.
        """
        if writing:
            self._reactor.addWriter(self)
        else:
            self._reactor.addReader(self)
        return self._ready

    def fileno(self) -> int:
        """
        @return: The number of the socket.
        """
        return self._fd

    def logPrefix(self) -> str:
        """
        @return: What the reactor calls it.
        """
        return "PostgreSQL"

    def _stop(self) -> None:
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)

    def doRead(self) -> None:
        """
        Something can be done.
        """
        self._stop()
        self._ready.callback(None)

    doWrite = doRead

    def connectionLost(self, reason: Failure) -> None:
        """
        libpq will find that out by itself.
        """
        self.doRead()


def _tellCodes(pgconn: pq.abc.PGconn) -> None:
    """
    Have the SQLSTATE in the messages of errors: while connecting there is no
    other way to it.
    """
    # psycopg does not offer this function of the libpq that it is linked with.
    name = type(pgconn).__module__
    try:
        library = ctypes.CDLL(sys.modules[name].__file__)
        setVerbosity = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        # Then every error counts as one that passes.
        return
    setVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    setVerbosity(pgconn.pgconn_ptr, 2)  # type: ignore[attr-defined]


def _placeOf(parameters: Parameters) -> str:
    """
    @return: Where it is, for people.
    """
    user, host = parameters.get("user", ""), parameters["host"]
    name = parameters.get("dbname") or user
    address = parameters["hostaddr"]
    shown = host or address or "localhost"
    if ":" in shown:
        shown = f"[{shown}]"
    return f"{user}@{shown}:{parameters['port']}/{name}"


def _refusal(place: str, pgconn: pq.abc.PGconn, address: str) -> Exception:
    """
    @return: What a connection that failed means.
    """
    message = pgconn.error_message
    text = textOf(message)
    start = f"connection to {place} failed"
    found = _CODE.search(text)
    if found is not None:
        code, said = found.groups()
        if code in _ADVICE:
            return DatabaseRefused(f"{start}: {said}: {_ADVICE[code]}", code)
        error = errorOf(code, said)
        if isinstance(error, DatabaseUnavailable):
            return DatabaseUnavailable(f"{start}: {said}", LATER, code)
        if code.startswith(_WRONG):
            return DatabaseRefused(f"{start}: {said}: {_OPTIONS}", code)
    if pgconn.needs_password:
        return DatabaseRefused(
            f"{start}: the server asks for a password, and the URL has none"
        )
    if not text:
        # Nor does libpq give one when there is no file descriptor left.
        return DatabaseUnavailable(f"{start}, and libpq gives no reason", LATER)
    if f'"{address}"' not in text and ".s.PGSQL." not in text:
        # What has to do with a server names it.
        return DatabaseRefused(f"{start}: {_QUOTED.sub('it', text)}: {_OPTIONS}")
    return DatabaseUnavailable(
        f"{start}: {text.partition('failed: ')[2] or text}", LATER
    )


async def _attempt(reactor: Any, parameters: Parameters) -> pq.abc.PGconn:
    """
    Connect to one address.
    """
    place = _placeOf(parameters)
    conninfo = make_conninfo(**{k: v for k, v in parameters.items() if v})
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        _tellCodes(pgconn)
        status: int = pq.PollingStatus.WRITING
        if pgconn.status == pq.ConnStatus.BAD:
            status = pq.PollingStatus.FAILED
        while status != pq.PollingStatus.OK:
            if status == pq.PollingStatus.FAILED:
                raise _refusal(place, pgconn, parameters["hostaddr"])
            # The socket may be another one each time.
            await _Socket(reactor, pgconn.socket).wait(
                status == pq.PollingStatus.WRITING
            )
            status = pgconn.connect_poll()
        pgconn.nonblocking = 1
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


async def _attempts(reactor: Any, url: str, limit: float) -> pq.abc.PGconn:
    """
    Connect to the first address that answers.
    """
    until = reactor.seconds() + limit
    addresses: list[Parameters] = []
    parameters = _parametersOf(url)
    for each in _hostsOf(parameters):
        addresses += await _addressesOf(reactor, each)
    if not addresses:
        raise DatabaseUnavailable(
            f"the host {parameters['host']!r} of the database is not known", LATER
        )
    if parameters.get("load_balance_hosts") == "random":
        shuffle(addresses)
    for left in range(len(addresses), 0, -1):
        each = addresses[-left]
        # One that does not answer leaves time for the others.
        share = (until - reactor.seconds()) / left
        trying = Deferred.fromCoroutine(_attempt(reactor, each))
        try:
            return await trying.addTimeout(max(share, 0.0), reactor)
        except TimedOut:
            error = DatabaseUnavailable(
                f"connection to {_placeOf(each)} failed: no answer in {share:.3g} s",
                LATER,
            )
        except DatabaseUnavailable as unavailable:
            error = unavailable
    raise error


async def connect(reactor: Any, url: str, limit: float) -> pq.abc.PGconn:
    """
    Make a connection.

    @param reactor: Provides time, addresses, and the watching of sockets.
    @param url: Where the database is, as libpq has it.
    @param limit: How long that may take, in seconds.
    @return: The connection, which does not block.
    @raise DatabaseRefused: No retry will help.
    @raise DatabaseUnavailable: One may. What has been begun has ended.
    """
    connecting = Deferred.fromCoroutine(_attempts(reactor, url, limit))
    try:
        return await connecting.addTimeout(limit, reactor)
    except TimedOut:
        raise DatabaseUnavailable(
            f"the database could not be connected to in {limit:.3g} s", LATER
        ) from None
