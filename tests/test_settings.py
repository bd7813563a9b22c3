"""
Settings that are fetched over the network.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request

from tsrv import NotInitialized
from tsrv.settings import RemoteSettings, SettingsRefused, SettingsUnavailable
from tsrv.web.site import Site

from .support import Result, resultOf
from .websupport import asynchronous, logged, reservedPort, serving, textsOf

URL = "http://config.test/c"


class SynchronousPool:
    """
    A thread pool that calls functions at once.
    """

    def callInThreadWithCallback(
        self, done: Any, call: Callable[..., Any], *arguments: Any
    ) -> None:
        try:
            result = call(*arguments)
        except Exception:
            done(False, Failure())
        else:
            done(True, result)


class FakeReactor(Clock):
    """
    A clock with threads that take no time.
    """

    def getThreadPool(self) -> SynchronousPool:
        return SynchronousPool()

    def callFromThread(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)


class Source(Resource):
    """
    A server of settings in memory, and its client.

    @ivar settings: The body of the response: an object, or bytes.
    @ivar status: The status of the response; 0 for a server that is down.
    @ivar silent: Whether the server never responds.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.reactor = FakeReactor()
        self.settings: object = {"a": 1}
        self.status = 200
        self.silent = False
        self.requests: list[Request] = []
        self.cancelled = 0
        self.clients: list[RemoteSettings] = []
        self._treq: Any = StubTreq(self)

    def make(self, **options: Any) -> RemoteSettings:
        """
        Make a client of the server.
        """
        self.clients.append(RemoteSettings(self.reactor, URL, client=self, **options))
        return self.clients[-1]

    def start(self, **options: Any) -> RemoteSettings:
        """
        Make a client of the server that has fetched its settings.
        """
        settings = self.make(**options)
        assert resultOf(settings.initialize()).value is None
        assert settings.initialized
        return settings

    def get(self, url: str, **options: Any) -> Deferred[Any]:
        if self.status == 0:
            raise TwistedRefused
        if self.silent:
            return Deferred(self._cancel)
        response: Deferred[Any] = self._treq.get(url, **options)
        self._treq.flush()
        return response

    def render_GET(self, request: Request) -> bytes:
        self.requests.append(request)
        request.setResponseCode(self.status)
        if isinstance(self.settings, bytes):
            return self.settings
        return json.dumps(self.settings).encode()

    def _cancel(self, response: object) -> None:
        self.cancelled += 1


@pytest.fixture
def source() -> Iterator[Source]:
    """
    A server of settings, whose clients leave no timer after a close.
    """
    source = Source()
    yield source
    for client in source.clients:
        client.close()
    assert source.reactor.getDelayedCalls() == []


def valueOf(settings: RemoteSettings, *path: str) -> Any:
    """
    Return a setting.
    """
    return resultOf(settings.value(*path)).value


# Reading.


def test_settings_are_available_after_the_fetch(source: Source) -> None:
    """
    A setting is found by the names of nested members. Changing the returned value does
    not change the settings.
    """
    source.settings = {"a": {"b": [1]}, "c": "d"}
    settings = source.make()
    assert isinstance(resultOf(settings.value("a")).error, NotInitialized)
    assert resultOf(settings.initialize()).value is None
    assert valueOf(settings) == source.settings
    valueOf(settings)["e"] = 1
    valueOf(settings, "a", "b").append(2)
    assert valueOf(settings) == source.settings
    assert valueOf(settings, "a", "b") == [1]
    assert resultOf(settings.initialize()).value is None
    assert len(source.requests) == 1
    assert source.requests[0].getHeader("accept") == "application/json"
    assert (settings.stale, settings.note()) == (False, None)


@pytest.mark.parametrize("path", [("b",), ("a", "b"), ("a", "b", "c")])
def test_a_missing_setting_is_named(path: tuple[str, ...], source: Source) -> None:
    """
    The error names the setting and the source, but no value.
    """
    source.settings = {"a": "secret"}
    settings = source.start()
    error = resultOf(settings.value(*path)).error
    assert isinstance(error, SettingsRefused)
    assert str(error) == f"setting {'.'.join(path)} of {URL} is missing"


@pytest.mark.parametrize(
    "url",
    [
        *("", "secret", "ftp://h/c", "http://", "http:///c", "http://h:x/"),
        *("http://h:99999/", "http://h:0/", "http://[/", "http://u:secret/x@h/"),
        *("http://h/\n", " http://h/", "http://a..b/", "http://[::1]:8000/"),
    ],
)
def test_an_invalid_url_is_refused(url: str) -> None:
    """
    The error does not repeat the URL, which may contain a password.
    """
    with pytest.raises(ValueError, match="must be http\\(s\\)://HOST") as caught:
        RemoteSettings(FakeReactor(), url)
    assert "secret" not in str(caught.value)


def test_no_secret_of_the_url_is_shown(source: Source) -> None:
    """
    Credentials in the URL become Basic authorization. Neither they nor the query are
    shown.
    """
    url = "https://us%40er:hu%3Ash@config.test:81/c?token=hush#x"
    settings = RemoteSettings(source.reactor, url, client=source)
    assert repr(settings) == "<RemoteSettings from https://config.test:81/c>"
    assert resultOf(settings.initialize()).value is None
    assert source.requests[0].uri == b"/c?token=hush"
    assert source.requests[0].getUser() == b"us@er"
    assert source.requests[0].getPassword() == b"hu:sh"
    settings.close()
    source.status = 0
    error = resultOf(settings.initialize()).error
    assert str(error) == "https://config.test:81/c failed (ConnectionRefusedError)"


# Failures.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, SettingsUnavailable) for status in (500, 503, 429, 204)),
        *((status, SettingsRefused) for status in (302, 401, 404)),
    ],
)
def test_another_status_is_an_error(
    status: int, kind: type[Exception], source: Source
) -> None:
    """
    The type of the error says whether a retry may succeed.
    """
    source.status = status
    settings = source.make()
    error = resultOf(settings.initialize()).error
    assert type(error) is kind
    assert f"responded with status {status}" in str(error)
    assert not settings.initialized


NOT_JSON = "sent a body that is not JSON"

NO_OBJECT = "sent JSON that is not an object"

LARGEST_BODY = b"{}" + b" " * (1024 * 1024 - 2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *(
            (body, NOT_JSON)
            for body in (b"", b'{"a":\nsecret}', b"\xff", b"[" * 100_000)
        ),
        *((body, NO_OBJECT) for body in (b"[]", b'"secret"')),
        (LARGEST_BODY + b" ", "sent more than 1048576 bytes"),
    ],
    ids=range(7),
)
def test_an_unusable_body_is_an_error(body: bytes, reason: str, source: Source) -> None:
    """
    The error names the reason, and does not repeat the body.
    """
    source.settings = body
    error = resultOf(source.make().initialize()).error
    assert isinstance(error, SettingsUnavailable)
    assert str(error) == f"{URL} {reason}"
    source.settings = LARGEST_BODY
    source.start()


def test_a_fetch_has_a_time_limit(source: Source) -> None:
    """
    A source that does not respond in time is unavailable, and the request to it is
    cancelled.
    """
    source.silent = True
    failed = resultOf(source.make(timeout=10).initialize())
    source.reactor.advance(9.9)
    assert not failed.fired
    source.reactor.advance(0.1)
    assert str(failed.error) == f"{URL} took more than 10 s"
    assert source.cancelled == 1


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_fetch_can_be_cancelled(how: str, source: Source) -> None:
    """
    Cancelling or closing cancels the request; afterwards a new fetch succeeds.
    """
    source.silent = True
    settings = source.make()
    first = settings.initialize()
    second: Result = resultOf(settings.initialize())
    assert isinstance(second.error, SettingsUnavailable)
    cancelled = resultOf(first)
    first.cancel() if how == "cancel" else settings.close()
    assert isinstance(cancelled.error, CancelledError)
    assert source.cancelled == 1
    source.silent = False
    assert resultOf(settings.initialize()).value is None
    settings.close()


# Refreshing.


def test_settings_are_refreshed(source: Source) -> None:
    """
    Until close(), changed settings replace the old ones, with one line in the log.
    """
    settings = source.start(refresh=100)
    source.reactor.advance(99)
    assert len(source.requests) == 1
    with logged() as events:
        source.reactor.advance(1)
        assert len(source.requests) == 2
        assert settings.fetched == 100
        source.settings = {"a": 2}
        source.reactor.advance(100)
    assert valueOf(settings, "a") == 2
    (line,) = textsOf(events)
    assert line.startswith(f"Settings from {URL}: changed; ")
    source.silent = True
    source.reactor.advance(100)
    settings.close()
    assert source.cancelled == 1


def test_settings_become_stale_and_recover(source: Source) -> None:
    """
    While the source is unavailable, the settings are kept; each reason is logged once.
    """
    settings = source.start(refresh=100)
    with logged() as events:
        source.status = 0
        for _ in range(5):
            source.reactor.advance(100)
            assert valueOf(settings, "a") == 1
        source.status = 500
        source.reactor.advance(100)
    assert textsOf(events) == [
        f"Settings: {URL} {reason}; using settings of 1970-01-01 00:00Z; will retry"
        for reason in ("failed (ConnectionRefusedError)", "responded with status 500")
    ]
    assert settings.stale
    note = "stale: copy of 1970-01-01 00:00Z, the source is unavailable"
    assert settings.note() == note
    source.status = 200
    with logged() as events:
        source.reactor.advance(100)
    assert textsOf(events) == [f"Settings from {URL}: recovered"]
    assert settings.note() is None


def test_a_stale_source_is_retried_with_backoff(source: Source) -> None:
    """
    Retries begin within ten seconds and are at most 300 seconds apart.
    """
    source.start(refresh=86_400)
    source.status = 0
    source.reactor.advance(86_400)
    delays = []
    for _ in range(12):
        (call,) = source.reactor.getDelayedCalls()
        delays.append(call.getTime() - source.reactor.seconds())
        source.reactor.advance(delays[-1])
    assert delays[0] <= 10
    assert max(delays[-3:]) <= 300
    assert min(delays[-3:]) >= 150


def test_settings_that_fail_the_check_replace_nothing(source: Source) -> None:
    """
    Settings that fail the check, such as a maintenance page in JSON, replace nothing.
    """

    def check(settings: Mapping[str, Any]) -> str | None:
        return None if "a" in settings else '"a" is missing'

    source.settings = {"error": "maintenance"}
    settings = source.make(refresh=100, check=check)
    error = resultOf(settings.initialize()).error
    assert isinstance(error, SettingsRefused)
    assert str(error) == f'{URL} sent unusable settings: "a" is missing'
    source.settings = {"a": 1}
    assert resultOf(settings.initialize()).value is None
    source.settings = {"error": "maintenance"}
    source.reactor.advance(100)
    assert (settings.stale, valueOf(settings, "a")) == (True, 1)


def test_a_check_that_raises_makes_the_settings_stale(source: Source) -> None:
    """
    A check that raises during a refresh replaces nothing, and the settings become
    stale.
    """
    results = [None]
    settings = source.start(refresh=100, check=lambda settings: results.pop())
    source.reactor.advance(100)
    assert settings.stale
    assert valueOf(settings, "a") == 1


# The copy.


def test_the_copy_replaces_an_unavailable_source(
    source: Source, tmp_path: Path
) -> None:
    """
    If the source is unavailable, a server starts with the last good copy, which only
    its owner may read.
    """
    path = tmp_path / "copy"
    source.status = 0
    failed = resultOf(source.make(copy=str(path)).initialize())
    assert isinstance(failed.error, SettingsUnavailable)
    source.status = 200
    source.reactor.advance(1_000_000_000)
    source.start(copy=str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["copy"]
    source.reactor.advance(86_400)

    source.status = 0
    with logged() as events:
        settings = source.start(copy=str(path))
    (line,) = textsOf(events)
    assert line.endswith("; using settings of 2001-09-09 01:46Z; will retry")
    assert settings.note() == (
        "stale: copy of 2001-09-09 01:46Z, the source is unavailable"
    )
    assert valueOf(settings, "a") == 1
    source.status = 200
    source.reactor.advance(10)
    assert settings.note() is None


DAMAGED = [
    *("", "{}", "[]", "[" * 100_000, " " * 9_000_000),
    '{"source": "x", "fetched": 1, "settings": 1}',
    '{"source": "x", "fetched": "", "settings": {}}',
    '{"source": "x", "fetched": 1e99, "settings": {}}',
    '{"source": "x", "fetched": NaN, "settings": {}}',
]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "the file is damaged") for content in DAMAGED),
        ('{"source": "x", "fetched": 1, "settings": {}}', "copy of another source"),
        (None, "Is a directory"),
    ],
    ids=range(11),
)
def test_an_unusable_copy_is_not_used(
    content: str | None, reason: str, source: Source, tmp_path: Path
) -> None:
    """
    The log says why the copy is unusable, and the initialisation fails.
    """
    path = tmp_path / "copy"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    source.status = 0
    with logged() as events:
        failed = resultOf(source.make(copy=str(path)).initialize())
    assert isinstance(failed.error, SettingsUnavailable)
    (line,) = textsOf(events)
    assert line.startswith(f"Settings: {path}: the copy is unusable: ")
    assert line.endswith(reason)


def test_a_copy_that_fails_the_check_is_not_used(
    source: Source, tmp_path: Path
) -> None:
    """
    A copy of an older version that fails the check is refused like fetched settings.
    """
    path = str(tmp_path / "copy")
    source.start(copy=path).close()
    source.status = 0
    settings = source.make(copy=path, check=lambda settings: "too old")
    with logged() as events:
        assert isinstance(resultOf(settings.initialize()).error, SettingsUnavailable)
    assert textsOf(events) == [f"Settings: {path}: the copy is unusable: too old"]


def test_a_check_that_raises_refuses_the_copy(source: Source, tmp_path: Path) -> None:
    """
    The error is about the source, and the log does not repeat the message of the check,
    which may contain the settings.
    """
    path = str(tmp_path / "copy")
    source.settings = {"port": "hush"}
    source.start(copy=path).close()
    source.status = 0
    settings = source.make(copy=path, check=lambda settings: int(settings["port"]))
    with logged() as events:
        assert isinstance(resultOf(settings.initialize()).error, SettingsUnavailable)
    assert textsOf(events) == [f"Settings: {path}: the copy is unusable: ValueError"]


def test_a_copy_that_cannot_be_written_is_logged_once(
    source: Source, tmp_path: Path
) -> None:
    """
    If the copy cannot be written, the settings are used nevertheless, and each new
    failure is logged.
    """
    directory = tmp_path / "d"
    copy = directory / "copy"
    with logged() as events:
        source.start(copy=str(copy), refresh=100)
        source.reactor.advance(100)
    message = f"Settings: {copy}: cannot write the copy: No such file or directory"
    assert textsOf(events) == [message]
    directory.mkdir()
    source.reactor.advance(100)
    copy.unlink()
    directory.rmdir()
    with logged() as events:
        source.reactor.advance(100)
    assert textsOf(events) == [message]


def test_a_failed_write_leaves_the_old_copy(source: Source, tmp_path: Path) -> None:
    """
    After a failed write the old copy is complete, and no temporary file is left.
    """
    path = tmp_path / "copy"
    path.mkdir()
    (path / "file").touch()
    with logged() as events:
        source.start(copy=str(path)).close()
    assert len(textsOf(events)) == 1
    assert os.listdir(tmp_path) == ["copy"]


# Real connections.


class RawSource(Protocol):
    """
    A source that sends fixed bytes to one client.

    @ivar received: The bytes that the client sent.
    @ivar disconnected: Fires when the client has disconnected, with the type of
        the error.
    """

    def __init__(self, response: bytes, certificate: Any = None) -> None:
        from twisted.internet import reactor

        self.reactor = cast(Any, reactor)
        self.received = b""
        self.disconnected: Deferred[object] = Deferred()
        self._response = response
        factory: Any = Factory.forProtocol(lambda: self)
        if certificate is not None:
            factory = TLSMemoryBIOFactory(certificate.options(), False, factory)
        self._port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")

    def url(self, scheme: str) -> str:
        return f"{scheme}://ada:hush@localhost:{self._port.getHost().port}/"

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.received += data
        self.transport.write(self._response)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        stopped = self._port.stopListening()
        stopped.addCallback(lambda _: self.disconnected.callback(reason.type))


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrivateCertificate:
    """
    A trusted certificate of localhost.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, SHA256())
    )
    public = signed.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "certificates.pem"
    path.write_bytes(public)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    loaded: PrivateCertificate = PrivateCertificate.loadPEM(public + private)
    return loaded


OK = b"HTTP/1.1 200 OK\r\n"

DEPRECATED_IN_TWISTED = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")

GZIP = b"Content-Encoding: gzip\r\n"

COMPRESSED = gzip.compress(b'{"a": 1}')


@DEPRECATED_IN_TWISTED
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"", "took more than 0.2 s"),
        (OK + b"\r\n{", "took more than 0.2 s"),
        (OK + b"\r\n" + b" " * 1_100_000, "sent more than 1048576"),
        (OK + b"Content-Encoding: br\r\n\r\n", "sent a compressed body"),
        (OK + GZIP + b"\r\n" + COMPRESSED, "sent a compressed body"),
        (OK + GZIP + GZIP + b"\r\n" + COMPRESSED, "sent a compressed body"),
        (b"HTTP/1.1 503 No\r\n\r\nwait", "responded with status 503"),
        (b"HTTP/1.1 503 No\r\n" + GZIP + b"\r\nwait", "with status 503"),
    ],
    ids=range(8),
)
@asynchronous
async def test_a_response_that_is_given_up_leaves_no_connection(
    response: bytes, reason: str, scheme: str, certificate: PrivateCertificate
) -> None:
    """
    The client resets the connection, and does not wait for the source.
    """
    source = RawSource(response, certificate if scheme == "https" else None)
    timeout = 0.2 if "0.2 s" in reason else 10
    settings = RemoteSettings(source.reactor, source.url(scheme), timeout=timeout)
    with pytest.raises(SettingsUnavailable, match=reason):
        await settings.initialize()
    assert await source.disconnected is ConnectionLost


@DEPRECATED_IN_TWISTED
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("encoding", [b"", b"Content-Encoding: Identity\r\n"])
@asynchronous
async def test_settings_come_uncompressed(
    encoding: bytes, scheme: str, certificate: PrivateCertificate
) -> None:
    """
    The client requests a body without compression, closes its connection although the
    source keeps it open, and logs nothing about connections.
    """
    response = OK + encoding + b'Content-Length: 8\r\n\r\n{"a": 1}'
    source = RawSource(response, certificate if scheme == "https" else None)
    settings = RemoteSettings(source.reactor, source.url(scheme))
    with logged() as events:
        await settings.initialize()
        assert await source.disconnected is ConnectionLost
    assert valueOf(settings, "a") == 1
    assert source.received.lower().count(b"accept-encoding") == 1
    assert b"\r\naccept-encoding: identity\r\n" in source.received.lower()
    assert not any("HTTP11ClientFactory" in line for line in textsOf(events))


@asynchronous
async def test_https_sends_nothing_in_the_clear() -> None:
    """
    Over HTTPS the client begins with a TLS handshake, and sends nothing in plain text.
    """
    source = RawSource(b"HTTP/1.1 200 OK\r\n\r\n{}")
    with pytest.raises(SettingsUnavailable, match=r"failed \(\w+\)"):
        await RemoteSettings(source.reactor, source.url("https")).initialize()
    await source.disconnected
    assert source.received.startswith(b"\x16\x03")
    assert b"GET" not in source.received


@asynchronous
async def test_settings_come_from_a_real_server(source: Source, tmp_path: Path) -> None:
    """
    The default client uses real connections, threads and files.
    """
    from twisted.internet import reactor

    copy = tmp_path / "copy"
    async with serving(Site(source, reactor)) as served:
        url = served.url.replace("http://", "http://ada:hush@")
        settings = RemoteSettings(reactor, url, copy=str(copy))
        await settings.initialize()
        assert await settings.value("a") == 1
        assert source.requests[0].getUser() == b"ada"
        assert "hush" not in copy.read_text()
    with reservedPort() as port:
        settings = RemoteSettings(reactor, f"http://127.0.0.1:{port}/")
        with pytest.raises(SettingsUnavailable, match="ConnectionRefusedError"):
            await settings.initialize()
