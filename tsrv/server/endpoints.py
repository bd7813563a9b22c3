"""
Explains the problem of an endpoint in one line, with its solution.

Twisted parses an endpoint by calling a function with the parts of the text. The errors
of this call are general: they name neither the file nor the solution.
"""

from __future__ import annotations

import errno
import re
from socket import gaierror
from typing import Any, Final

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint

__all__ = ["listenProblem", "parseEndpoint", "quote"]

# Maximum lengths of a value in a message, and of an error of Twisted.
MAX_QUOTED_CHARACTERS: Final = 50
MAX_REASON_CHARACTERS: Final = 150

_EXAMPLE: Final = (
    "such as tcp:8000:interface=127.0.0.1 or unix:/run/tsrv.sock; "
    r"a colon inside a value is \:"
)

# Twisted reads all other files before a client connects.
_LATE_FILE: Final = re.compile(r":dhParameters=((?:[^:\\]|\\.)+)")

_UNKNOWN_PART: Final = re.compile(r"unexpected keyword argument '(\w+)'")

_ILL_FORMED: Final = re.compile("Unknown endpoint type|invalid literal for int")

_NO_SOCKET: Final = "systemd has passed no such socket: start the unit that holds it"

_TLS_PACKAGES: Final = "pip install 'twisted[tls]'"

_TLS_FORMS: Final = {
    "ssl": "privateKey=FILE:certKey=FILE",
    "tls": "tls:DIRECTORY:port=443",
}

_CURES: Final = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another address",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.ENOENT: "create its directory",
    errno.EBADF: _NO_SOCKET,
    errno.ENOTSOCK: _NO_SOCKET,
}

_TOO_LOW: Final = (
    "a port below 1024 needs root, the capability CAP_NET_BIND_SERVICE, or a socket "
    "that systemd holds"
)


def quote(text: str) -> str:
    """
    Return a value, in quotes and cut off, for a message.
    """
    if len(text) > MAX_QUOTED_CHARACTERS:
        text = f"{text[: MAX_QUOTED_CHARACTERS - 3]}..."
    return repr(text)


def parseEndpoint(text: str, reactor: Any = None) -> IStreamServerEndpoint:
    """
    Parse a server endpoint of Twisted, and check that its files can be used.

    @param reactor: The reactor of the endpoint; not needed to check the text alone.
    @raise ValueError: The text is not an endpoint, or a file cannot be used.
    """
    kind = text.partition(":")[0]
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
        if kind == "tls":
            _checkCertificates(endpoint)
        if match := _LATE_FILE.search(text):
            with open(re.sub(r"\\(.)", r"\1", match[1]), "rb"):
                pass
    except Exception as error:
        problem = _parsingProblem(kind, error)
        raise ValueError(f"{quote(text)}: {problem}") from None
    return endpoint


def listenProblem(endpoint: str, error: BaseException | None) -> str:
    """
    Describe why a server cannot listen.

    @param endpoint: The endpoint, as the operator typed it.
    @param error: The error of C{listen()}.
    """
    cause = error.socketError if isinstance(error, CannotListenError) else error
    reason = getattr(cause, "strerror", None) or str(cause)
    cure = _CURES.get(getattr(cause, "errno", None) or 0)
    if isinstance(cause, gaierror):
        cure = "interface= takes an address of this machine"
    elif isinstance(cause, PermissionError):
        cure = "its directory must be writable" if "unix:" in endpoint else _TOO_LOW
    elif cause == "Cannot acquire lock":
        cure = "stop the server that listens there; if no server does, remove *.lock"
    line = " ".join(f"cannot listen on {endpoint}: {reason}".split())
    return f"{line} ({cure})" if cure else line


def _checkCertificates(endpoint: Any) -> None:
    # Twisted accepts a directory without certificates, and fails every handshake.
    connection = endpoint.connectionCreator.serverConnectionForTLS(None)
    if connection.get_certificate() is None:
        raise ValueError(
            "the directory has no *.pem files with a certificate for a DNS name and "
            "its key"
        )


def _parsingProblem(kind: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
    if isinstance(error, OSError):
        reason = f"cannot read {error.filename}: {error.strerror}"
    elif isinstance(error, ImportError):
        return f"cannot import {error.name}: {_TLS_PACKAGES}"
    elif kind == "tls" and isinstance(error, NameError):
        # Twisted defines the parts of "tls:" only if it can import OpenSSL.
        return f"cannot import OpenSSL: {_TLS_PACKAGES}"
    elif type(error).__module__.startswith("OpenSSL"):
        reason = "the key or the certificate is not PEM, or its passphrase is wrong"
    elif kind == "systemd" and isinstance(error, LookupError):
        return _NO_SOCKET
    elif match := _UNKNOWN_PART.search(reason):
        return f"{kind}: has no {match[1]}="
    elif isinstance(error, TypeError) or _ILL_FORMED.match(reason):
        return f"not a Twisted endpoint, {_EXAMPLE}"
    return f"{reason} (give {_TLS_FORMS[kind]})" if kind in _TLS_FORMS else reason
