"""
Settings that are fetched over the network before the modules that need them start.

L{RemoteSettings} is a module that fetches a JSON object over HTTP, once or at an
interval. It can keep the last good copy in a file. While the source is unavailable, it
uses the copy, and the settings are I{stale}: the log and the status page say so until
the source recovers. Errors name the source and the reason, never the content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from tempfile import TemporaryDirectory
from typing import Any, Final, NoReturn, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from hyperlink import URL
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from .asyncmodule import IAsyncModule, IHasNote, NotInitialized, timeOfDay
from .errors import Unavailable
from .extras import needs
from .queuing.history import oneLine
from .queuing.retry import jitteredBackoff

with needs("server"):
    from treq.client import HTTPClient
    from twisted.internet.ssl import optionsForClientTLS

__all__ = ["RemoteSettings", "SettingsRefused", "SettingsUnavailable", "Source"]

_log = Logger("tsrv.settings")

MAX_SETTINGS_BYTES: Final = 1024 * 1024  # Maximum size of the settings.


class SettingsUnavailable(Unavailable):
    """
    The settings cannot be fetched now.
    """


class SettingsRefused(Exception):
    """
    No retry will fetch usable settings. The message says what to do.
    """


class Source:
    """
    The URL of settings. C{str()} of it shows neither credentials nor the query.

    @ivar url: The URL without credentials.
    @ivar credentials: User and password for Basic authentication, if there are any.
    """

    def __init__(self, url: str) -> None:
        """
        @param url: A URL, with C{USER:PASSWORD@} or without.
        @raise ValueError: It is not an HTTP URL. The message does not repeat it.
        """
        try:
            split = urlsplit(url)
            # Reading the port validates it, and treq encodes the host in this way.
            hasHost = split.hostname and split.port != 0 and URL.from_text(url).to_uri()
        except ValueError:
            hasHost = None
        if not (hasHost and re.fullmatch(r"(?i:https?)://[^\x00-\x20\x7f]+", url)):
            wanted = "http(s)://HOST:PORT/PATH, and HOST must not be an IPv6 address"
            raise ValueError(f"the URL of settings must be {wanted}")
        userinfo, at, host = split.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        resource = (split.scheme, host, split.path or "/")
        self.url = urlunsplit((*resource, split.query, ""))
        self.credentials = (unquote(user), unquote(password)) if at else None
        self._shown = urlunsplit((*resource, "", ""))

    def __str__(self) -> str:
        return self._shown


class _UnusableResponse(Exception):
    """The reason why a response cannot be used, as the end of a sentence."""


class _Body(Protocol):
    def __init__(self) -> None:
        self.finished: Deferred[bytes] = Deferred(self._disconnect)
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_SETTINGS_BYTES and not self.finished.called:
            self._disconnect()
            reason = _UnusableResponse(f"sent more than {MAX_SETTINGS_BYTES} bytes")
            self.finished.errback(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # PotentialDataLoss: the body ends where the connection ends.
        isComplete = reason.check(ResponseDone, PotentialDataLoss)
        if not self.finished.called:
            self.finished.callback(bytes(self._data) if isComplete else reason)

    def _disconnect(self, cancelled: object = None) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


class _AbortingTransport(ProtocolWrapper):
    def loseConnection(self) -> None:
        # Over TLS, a connection would wait for the peer forever unless it is aborted.
        cast(Any, self.transport).abortConnection()


@implementer(IStreamClientEndpoint)
class _AbortingEndpoint:
    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Deferred[Any]:
        wrapping = WrappingFactory(factory)
        wrapping.protocol = _AbortingTransport
        wrapping.noisy = factory.noisy = False
        connected: Deferred[Any] = self._endpoint.connect(wrapping)
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgent, IAgentEndpointFactory)
class _AbortingAgent:
    def __init__(self, reactor: Any, timeout: float) -> None:
        self._tcpEndpoint = partial(HostnameEndpoint, reactor, timeout=timeout)
        self._agent = Agent.usingEndpointFactory(reactor, self)

    def endpointForURI(self, uri: Any) -> _AbortingEndpoint:
        endpoint: Any = self._tcpEndpoint(uri.host, uri.port)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(uri.host.decode()), endpoint)
        return _AbortingEndpoint(endpoint)

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        # A small compressed body may expand to more than the memory can hold.
        headers.setRawHeaders(b"Accept-Encoding", [b"identity"])
        fetch: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return fetch.addCallback(self._preventDecoding)

    def _preventDecoding(self, response: Any) -> Any:
        # treq decodes from the last encoding backwards, up to one it does not know.
        response.headers.addRawHeader(b"Content-Encoding", b"identity")
        return response


_retryPolicy: Final = jitteredBackoff(5.0, 300.0)


@implementer(IAsyncModule, IHasNote)
class RemoteSettings:
    """
    The settings at a URL.

    @ivar initialized: Whether settings are available.
    @ivar settings: The settings; do not change them.
    @ivar stale: Whether the source is unavailable, and the settings may be old.
    @ivar fetched: The time when the settings were fetched, in seconds since 1970.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        timeout: float = 10.0,
        refresh: float | None = None,
        copy: str | None = None,
        check: Callable[[Mapping[str, Any]], str | None] = lambda settings: None,
        client: Any = None,
    ) -> None:
        """
        @param reactor: Provides time, connections and threads.
        @param url: The URL. Credentials in it are used for Basic authentication.
        @param timeout: Time limit of a fetch, in seconds.
        @param refresh: Seconds between two fetches; L{None} to fetch once.
        @param copy: The path of the file for the last good copy; L{None} for no copy.
        @param check: Takes settings, and returns why they cannot be used, without
            repeating them; or L{None}. Such settings never replace others.
        @param client: An HTTP client with the interface of treq.
        @raise ValueError: The URL is not an HTTP URL.
        """
        self._source = Source(url)
        self._reactor = reactor
        self._timeout = timeout
        self._refreshSeconds = refresh
        self._copyPath = None if copy is None else os.path.abspath(copy)
        # A copy belongs to one source. Its URL may be a secret.
        self._copySource = sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        self._check = check
        self._client: Any = client or HTTPClient(_AbortingAgent(reactor, timeout))
        self.initialized = False
        self.settings: Mapping[str, Any] = {}
        self.stale = False
        self.fetched: float | None = None
        self._failures = 0
        self._warned: dict[str, str] = {}
        self._working: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<RemoteSettings from {self._source}>"

    def initialize(self) -> Deferred[None]:
        """
        Fetch the settings, or use the copy.

        @return: A Deferred that fires when settings are available. It fails with
            L{SettingsUnavailable}, or with L{SettingsRefused} if no retry will help.
        """
        if self.initialized:
            return succeed(None)
        if self._working is not None:
            return fail(SettingsUnavailable("the settings are being fetched already"))
        return self._refresh()

    def close(self) -> Deferred[None]:
        """
        Stop fetching. Repeated calls have no effect.
        """
        self.initialized = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._working is not None:
            self._working.cancel()
        return succeed(None)

    def value(self, *path: str) -> Deferred[Any]:
        """
        Return a copy of one setting.

        @param path: The names of nested members, outermost first.
        @return: A Deferred of the copy. It fails with L{NotInitialized}, or with
            L{SettingsRefused} if the setting is missing.
        """
        if not self.initialized:
            return fail(NotInitialized("The settings have not been fetched"))
        found: Any = self.settings
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                setting = f"setting {'.'.join(path)} of {self._source}"
                return fail(SettingsRefused(f"{setting} is missing"))
            found = found[name]
        return succeed(deepcopy(found))

    def note(self) -> str | None:
        """
        Return a warning while the settings are stale, otherwise L{None}.
        """
        if not self.stale:
            return None
        return f"stale: copy of {_date(self.fetched)}, the source is unavailable"

    def _refresh(self) -> Deferred[None]:
        def finished(result: Any) -> Any:
            self._working = None
            return result

        self._working = Deferred.fromCoroutine(self._fetchOrUseCopy())
        return self._working.addBoth(finished)

    def _warnOnce(self, subject: str, message: str) -> None:
        if self._warned.get(subject) != message:
            self._warned[subject] = message
            _log.warn("Settings: {message}", message=oneLine(message))

    async def _fetchOrUseCopy(self) -> None:
        try:
            await self._fetch()
        except (SettingsUnavailable, SettingsRefused) as error:
            if not self.initialized and not await self._useCopy():
                raise
            self._failures += 1
            self.stale = True
            date = _date(self.fetched)
            self._warnOnce("stale", f"{error}; using settings of {date}; will retry")
        self.initialized = True
        seconds = self._refreshSeconds
        if self.stale:
            backoff = _retryPolicy(self._failures)
            seconds = backoff if seconds is None else min(backoff, seconds)
        if seconds is not None:
            self._timer = self._reactor.callLater(seconds, self._timerFired)

    def _timerFired(self) -> None:
        self._timer = None
        # close() may have cancelled the fetch.
        self._refresh().addErrback(lambda failure: failure.trap(CancelledError))

    async def _fetch(self) -> None:
        exchange = Deferred.fromCoroutine(self._exchange())
        exchange.addTimeout(self._timeout, self._reactor, _timedOut)
        try:
            settings = await exchange
        except (CancelledError, SettingsRefused):
            raise
        except _UnusableResponse as error:
            raise SettingsUnavailable(f"{self._source} {error}") from error
        except Exception as error:
            # The message may contain the URL.
            cause = getattr(error, "reasons", [Failure(error)])[0].value
            reason = f"failed ({type(cause).__name__})"
            raise SettingsUnavailable(f"{self._source} {reason}") from error
        if self.stale:
            _log.info("Settings from {source}: recovered", source=self._source)
        self.stale = False
        self._failures = 0
        self._warned.pop("stale", None)
        if self.initialized and settings != self.settings:
            message = "Settings from {source}: changed; used by the next connections"
            _log.info(message, source=self._source)
        self.settings = settings
        self.fetched = timeOfDay(self._reactor)
        await self._writeCopy(settings)

    async def _exchange(self) -> dict[str, Any]:
        response = await self._client.get(
            self._source.url,
            headers={"Accept": "application/json"},
            auth=self._source.credentials,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        body = _Body()
        response.deliverBody(body)
        status: int = response.code
        encodings = response.headers.getRawHeaders("Content-Encoding", [""])[0]
        isCompressed = re.sub(r"identity|[\s,]", "", encodings, flags=re.I)
        if status == 200 and not isCompressed:
            try:
                settings = json.loads(await body.finished)
            except (ValueError, RecursionError):
                raise _UnusableResponse("sent a body that is not JSON") from None
            if not isinstance(settings, dict):
                raise _UnusableResponse("sent JSON that is not an object")
            if (wrong := self._check(settings)) is not None:
                raise SettingsRefused(f"{self._source} sent unusable settings: {wrong}")
            return settings
        body.finished.addErrback(lambda failure: None)
        body.finished.cancel()
        if status == 200:
            raise _UnusableResponse("sent a compressed body")
        responded = f"responded with status {status}"
        if 300 <= status < 400:
            advice = "pass the URL to which it redirects"
        elif 400 <= status < 500 and status not in (408, 425, 429):
            advice = "check the URL and its permissions"
        else:
            raise _UnusableResponse(responded)
        raise SettingsRefused(f"{self._source} {responded}: {advice}")

    async def _useCopy(self) -> bool:
        if self._copyPath is None:
            return False
        try:
            copy = await self._inThread(_readCopy, self._copyPath, self._copySource)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            wrong = getattr(error, "strerror", None) or error
        else:
            try:
                wrong = self._check(copy[0])
            except Exception as error:
                wrong = type(error).__name__  # The message may repeat the settings.
        if wrong is not None:
            self._warnOnce("copy", f"{self._copyPath}: the copy is unusable: {wrong}")
            return False
        self.settings, self.fetched = copy
        return True

    async def _writeCopy(self, settings: dict[str, Any]) -> None:
        if self._copyPath is None:
            return
        copy = {"source": self._copySource, "fetched": self.fetched}
        content = json.dumps({**copy, "settings": settings})
        try:
            await self._inThread(_writeFile, self._copyPath, content)
            self._warned.pop("copy", None)
        except OSError as error:
            # The error names a temporary file.
            reason = error.strerror
            self._warnOnce("copy", f"{self._copyPath}: cannot write the copy: {reason}")

    def _inThread(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, call, *arguments)


def _timedOut(result: object, timeout: float) -> NoReturn:
    raise _UnusableResponse(f"took more than {timeout:g} s")


def _date(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0.0, UTC).strftime("%Y-%m-%d %H:%MZ")


def _readCopy(path: str, source: str) -> tuple[dict[str, Any], float]:
    # JSON may be longer in the file than it was on the wire.
    with open(path, "rb") as file:
        data = file.read(8 * MAX_SETTINGS_BYTES)
    try:
        copy = json.loads(data)
        found, settings, fetched = copy["source"], {**copy["settings"]}, copy["fetched"]
        datetime.fromtimestamp(fetched, UTC)
    except Exception:
        raise ValueError("the file is damaged") from None
    if found != source:
        raise ValueError("the file is a copy of another source")
    return settings, fetched


def _writeFile(path: str, content: str) -> None:
    # The file is replaced as a whole, and only its owner may read it.
    directory, name = os.path.split(path)
    ownersFile = partial(os.open, mode=0o600)
    with TemporaryDirectory(prefix=f".{name}.", dir=directory) as temporary:
        written = os.path.join(temporary, name)
        with open(written, "w", encoding="ascii", opener=ownersFile) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
