"""
An unusable endpoint is reported in one line that says what to do.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from errno import EACCES, EBADF, ENOTSOCK
from pathlib import Path
from socket import EAI_NONAME, gaierror, socket

import pytest
from twisted.internet import endpoints
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from tsrv.server.endpoints import listenProblem, parseEndpoint

from .certificates import certified
from .websupport import asynchronous

FORM = "not a Twisted endpoint, such as tcp:8000:interface=127.0.0.1 or unix:/run/"

FILES = " (give privateKey=FILE:certKey=FILE)"

NOT_PEM = f"the key or the certificate is not PEM, or its passphrase is wrong{FILES}"

needsDirectories = pytest.mark.skipif(
    not hasattr(endpoints, "wrapServerTLS"), reason="this Twisted has no endpoint tls:"
)

# Twisted calls functions of pyOpenSSL that are deprecated.
DEPRECATED = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NO_SOCKET = "systemd has passed no such socket: start the unit that holds it"


def systemError(number: int) -> OSError:
    """
    @return: The error of a system call.
    """
    return OSError(number, os.strerror(number))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    The working directory: certificates, and other files.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("own", "other"):
        key, begin, certificate = certified(name).partition(b"-----BEGIN CERT")
        (tmp_path / f"{name}.key").write_bytes(key)
        (tmp_path / f"{name}.pem").write_bytes(begin + certificate)
    (tmp_path / "held.lock").symlink_to(str(os.getpid()))
    (tmp_path / "text.pem").write_text("no PEM")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "tcp:0",
        r"tcp6:0:interface=\:\:1",
        "unix:/run/tsrv.sock:mode=660",
        "haproxy:tcp:0",
    ],
)
def test_endpoints_of_twisted_are_accepted(text: str) -> None:
    """
    Every endpoint that Twisted can parse is accepted.
    """
    parseEndpoint(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((text, FORM) for text in ("8000", "nonsense:80", "tcp", "tcp:http", "")),
        ("tcp:80:interface=::1", FORM),
        ("tcp:80:nonsense=1", "tcp: has no nonsense="),
        ("systemd:domain=INET", "Specify exactly one of descriptor index or name"),
        ("systemd:domain=INET:index=7", NO_SOCKET),
        ("systemd:domain=INET:name=web", NO_SOCKET),
        (
            "ssl:443",
            "cannot read {files}/server.pem: No such file or directory" + FILES,
        ),
        (
            "ssl:443:privateKey=own.key:certKey={files}/absent.pem",
            "cannot read {files}/absent.pem: No such file or directory" + FILES,
        ),
        ("ssl:443:privateKey=.", "cannot read {files}: Is a directory" + FILES),
        (
            r"ssl:443:privateKey=own.key:certKey=own.pem:dhParameters=a\:b",
            "cannot read a:b: No such file or directory" + FILES,
        ),
        ("ssl:443:privateKey=text.pem", NOT_PEM),
        ("ssl:443:privateKey=own.key:certKey=text.pem", NOT_PEM),
        (
            "ssl:443:privateKey=own.key:certKey=other.pem",
            "Certificate public and private keys do not match." + FILES,
        ),
    ],
)
def test_a_wrong_endpoint_is_explained(text: str, problem: str, files: Path) -> None:
    """
    The error of an invalid endpoint names the part, file or unit that is wrong.
    """
    text, problem = (each.replace("{files}", str(files)) for each in (text, problem))
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        parseEndpoint(text)
    assert "\n" not in str(raised.value)


@needsDirectories
@DEPRECATED
@pytest.mark.parametrize("text", ["tls:certs:port=0", "tls:path=certs"])
def test_a_directory_of_certificates_is_accepted(text: str, files: Path) -> None:
    """
    An endpoint C{tls:} needs a directory with one certificate and its key; key and
    certificate may be in different files.
    """
    (files / "certs").mkdir()
    for name in ("own.key", "own.pem"):
        (files / name).rename(files / "certs" / f"{name[:3]}-{name[4:]}.pem")
    parseEndpoint(text)


@needsDirectories
@DEPRECATED
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tls:absent", []),
        ("tls:443", []),
        ("tls:certs", []),
        ("tls:certs", ["own.pem"]),
        ("tls:certs", ["own.key", "own.pem"]),
        ("tls:own.pem:interface=127.0.0.1", []),
    ],
)
def test_a_directory_without_certificates_is_refused(
    text: str, names: list[str], files: Path
) -> None:
    """
    A directory from which no client could get a certificate is refused: it does not
    exist, or is empty, or has no file *.pem with the key.
    """
    (files / "certs").mkdir()
    for name in names:
        (files / name).rename(files / "certs" / name)
    problem = (
        f"{text!r}: the directory has no *.pem files with a certificate for a DNS name "
        "and its key (give tls:DIRECTORY:port=443)"
    )
    with pytest.raises(ValueError, match=re.escape(problem)):
        parseEndpoint(text)


@needsDirectories
def test_a_directory_with_a_damaged_certificate_is_refused(files: Path) -> None:
    """
    Twisted reads all files *.pem when it parses the endpoint.
    """
    (files / "text.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ValueError, match=re.escape(f"{NOT_PEM.partition(' (')[0]}")):
        parseEndpoint("tls:.")


@needsDirectories
def test_a_directory_of_certificates_needs_the_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    If packages for TLS are missing, Twisted has not defined what the endpoint needs.
    """
    monkeypatch.delattr("twisted.internet.endpoints.SNIConnectionCreator")
    with pytest.raises(ValueError, match=r"cannot import OpenSSL: pip install 'tw"):
        parseEndpoint("tls:.")


def test_tls_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If packages for TLS are missing, the line names them.
    """
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    monkeypatch.delitem(sys.modules, "twisted.internet.ssl", raising=False)
    monkeypatch.delattr("twisted.internet.ssl", raising=False)
    with pytest.raises(ValueError, match=r"cannot import OpenSSL: pip install 'tw"):
        parseEndpoint("ssl:443")


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        (
            "tcp:{taken}:interface=127.0.0.1",
            "Address already in use (stop the program that listens there, or choose "
            "another address)",
        ),
        ("tcp:65536", "bind(): port must be 0-65535."),
        (
            "tcp:0:interface=192.0.2.1",
            "Cannot assign requested address (no interface of this machine has this "
            "address)",
        ),
        (
            "unix:/nonexistent/socket",
            "No such file or directory (create its directory)",
        ),
        (f"unix:{{files}}/{'x' * 200}", "AF_UNIX path too long"),
        (
            "unix:{files}/held",
            "Cannot acquire lock (stop the server that listens there; if no "
            "server does, remove *.lock)",
        ),
    ],
)
@asynchronous
async def test_a_failure_to_listen_is_explained(
    endpoint: str, problem: str, files: Path
) -> None:
    """
    The line about a failure to listen has the endpoint, the reason of the system, and
    the remedy.
    """
    from twisted.internet import reactor

    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        text = endpoint.replace("{taken}", taken).replace("{files}", str(files))
        listening = serverFromString(reactor, text).listen(Factory())
        line = await listening.addErrback(lambda each: listenProblem(text, each.value))
    assert line == f"cannot listen on {text}: {problem}"
    gc.collect()


@pytest.mark.parametrize(
    ("endpoint", "cause", "cure"),
    [
        ("tcp:80", systemError(EACCES), "a port below 1024 needs root, the capability"),
        ("unix:/run/socket", systemError(EACCES), "its directory must be writable"),
        ("systemd:domain=INET:index=0", systemError(EBADF), NO_SOCKET),
        ("systemd:domain=INET:index=0", systemError(ENOTSOCK), NO_SOCKET),
        (
            "tcp:0:interface=eth99",
            gaierror(EAI_NONAME, "Name or service not known"),
            "interface= takes an address of this machine",
        ),
    ],
    ids=str,
)
def test_a_refusal_of_the_system_is_explained(
    endpoint: str, cause: OSError, cure: str
) -> None:
    """
    The line about a refusal has the remedy. (Real refusals would need another user,
    another process that holds a socket, or the DNS.)
    """
    for error in (cause, CannotListenError("", 80, cause)):
        line = listenProblem(endpoint, error)
        assert line.startswith(f"cannot listen on {endpoint}: {cause.strerror} ({cure}")


def test_another_error_has_one_line() -> None:
    """
    An unforeseen error has one line without a remedy.
    """
    line = listenProblem("tcp:0", ValueError("embedded\nnull  byte"))
    assert line == "cannot listen on tcp:0: embedded null byte"
