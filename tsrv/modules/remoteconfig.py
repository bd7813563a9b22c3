"""
Settings that are fetched before anything that needs them starts.

The source is asked for a JSON object. The last good one is kept on the disk; when
the source is down it is used, and is called stale until the source is back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from random import random as _random
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import IAsyncModule, INoted, NotInitialized, Unavailable
from ._kept import Kept, KeptFile

__all__ = [
    "ConfigurationRefused",
    "ConfigurationUnavailable",
    "NotConfigured",
    "RemoteConfig",
]

_T = TypeVar("_T")

_SOON: Final = 5.0
"""
After how many seconds a source that is down is asked again for the first time.
"""

_LATE: Final = 300.0
"""
The most seconds between two such questions.
"""

_PASSING: Final = {408, 425, 429}
"""
Statuses below 500 that say nothing about the question.
"""


class ConfigurationUnavailable(Unavailable):
    """
    The settings cannot be had now.
    """


class ConfigurationRefused(Exception):
    """
    The settings cannot be had, or are of no use, and no retry will cure that.
    The message says what to do.
    """


class NotConfigured(ConfigurationRefused):
    """
    There is no such setting.
    """


@dataclass(frozen=True)
class _Source:
    """
    Where the settings are. What it looks like has no secret in it.

    @ivar url: What is asked for.
    @ivar user: Who asks, and with which password, if that is to be said.
    @ivar shown: The URL for people.
    """

    url: str
    user: tuple[str, str] | None
    shown: str

    @classmethod
    def parse(cls, url: str) -> _Source:
        """
        @raise ValueError: It is no URL for HTTP. The message does not repeat it.
        """
        try:
            split = urlsplit(url)
            known = split.scheme in ("http", "https") and bool(split.hostname)
            # To look for the port is to have it checked.
            known = known and split.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError("the URL of the settings is http://HOST/PATH or https://…")
        userinfo, at, host = split.netloc.rpartition("@")
        name, _, password = userinfo.partition(":")
        return cls(
            urlunsplit((split.scheme, host, split.path or "/", split.query, "")),
            (unquote(name), unquote(password)) if at else None,
            urlunsplit((split.scheme, host, split.path, "", "")),
        )


class _Body(Protocol):
    """
    Collects a body, up to a limit.
    """

    def __init__(self, limit: int) -> None:
        self.whole: Deferred[bytes] = Deferred(self._abort)
        self._limit = limit
        self._pieces: list[bytes] = []
        self._length = 0

    def dataReceived(self, data: bytes) -> None:
        """
        @see: L{Protocol.dataReceived}
        """
        self._length += len(data)
        if self._length <= self._limit:
            self._pieces.append(data)
        elif not self.whole.called:
            error = ConfigurationUnavailable(f"sent more than {self._limit} bytes")
            self.whole.errback(error)
            self._abort(self.whole)

    def connectionLost(self, reason: Failure = Failure(CancelledError())) -> None:  # noqa: B008
        """
        @see: L{Protocol.connectionLost}
        """
        from twisted.web.client import ResponseDone

        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)

    def _abort(self, whole: Deferred[bytes]) -> None:
        self._pieces.clear()
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


@implementer(IAsyncModule, INoted)
class RemoteConfig:
    """
    The settings at a URL.

    @ivar initialized: Whether there are settings.
    @ivar settings: The settings; not to be changed.
    @ivar stale: Whether they are those of an earlier day, since the source cannot
        be had.
    @ivar fetched: When they were fetched, in seconds of the epoch.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        timeout: float = 10.0,
        refresh: float | None = None,
        copy: str | None = None,
        limit: int = 1024 * 1024,
        client: Any = None,
        inThread: Callable[[Callable[[], Any]], Deferred[Any]] | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param reactor: Provides time, connections and threads.
        @param url: Where they are. A user and a password in it are sent as Basic
            authorization.
        @param timeout: How long it may take to fetch them, in seconds.
        @param refresh: After how many seconds they are fetched again; L{None} for
            never.
        @param copy: The path of the last good copy, if one is to be kept.
        @param limit: How many bytes they may have.
        @param client: Asks, as a L{treq.client.HTTPClient} does.
        @param inThread: Calls something in a thread, and answers a Deferred.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: The URL makes no sense.
        """
        self._source = _Source.parse(url)
        self._reactor = reactor
        self._timeout = timeout
        self._refreshes = refresh
        self._file = None if copy is None else KeptFile(copy, url, limit)
        self._limit = limit
        self._client = client
        self._inThread = inThread or self._callInThread
        self._random = random
        self._observers: list[Callable[[], object]] = []
        self.initialized = False
        self.settings: Mapping[str, Any] = MappingProxyType({})
        self.stale = False
        self.fetched: float | None = None
        self._etag: str | None = None
        self._failures = 0
        self._working: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<RemoteConfig from {self._source.shown}>"

    # Initialisation.

    def initialize(self) -> Deferred[None]:
        """
        Fetch the settings, or take the copy.

        @return: A Deferred that fires when there are settings. It fails with
            L{ConfigurationUnavailable}, also if that is being done already, or
            with L{ConfigurationRefused} if no retry will help.
        """
        if self.initialized:
            return succeed(None)
        if self._working is not None:
            return fail(ConfigurationUnavailable("they are being fetched already"))
        return self._work(self._begin())

    def close(self) -> Deferred[None]:
        """
        Fetch them no more. It may be called again.
        """
        self.initialized = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._working is not None:
            self._working.cancel()
        return succeed(None)

    def _work(self, work: Any) -> Deferred[None]:
        working: Deferred[None] = Deferred.fromCoroutine(work)
        if not working.called:
            self._working = working
        return working.addBoth(self._worked)

    def _worked(self, result: Any) -> Any:
        self._working = None
        return result

    async def _begin(self) -> None:
        try:
            await self._fetch()
        except (ConfigurationUnavailable, ConfigurationRefused) as error:
            kept = await self._read()
            if kept is None:
                raise
            self._take(kept)
            self._becomeStale(error)
        self.initialized = True
        self._schedule()

    # What others ask.

    def value(self, *path: str) -> Deferred[Any]:
        """
        @param path: The names of a setting: that of a member, that of a member of
            it, and so on.
        @return: A Deferred of the setting, which is the caller's own. It fails
            with L{NotConfigured} if there is none.
        """
        if not self.initialized:
            return fail(NotInitialized("The settings have not been fetched"))
        found: Any = self.settings
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return fail(NotConfigured(f"{self._name(path)} is not there"))
            found = found[name]
        return succeed(deepcopy(dict(found) if found is self.settings else found))

    def text(self, *path: str) -> Deferred[str]:
        """
        @param path: As for L{value}.
        @return: A Deferred of the text. It fails with L{ConfigurationRefused} if
            it is something else.
        """
        return self.value(*path).addCallback(self._checkText, path)

    def _checkText(self, found: object, path: tuple[str, ...]) -> str:
        if not isinstance(found, str):
            raise ConfigurationRefused(f"{self._name(path)} has to be a string")
        return found

    def _name(self, path: tuple[str, ...]) -> str:
        return f"the setting {'.'.join(path)} of {self._source.shown}"

    def note(self) -> str | None:
        """
        @see: L{INoted.note}
        """
        if not self.stale or self.fetched is None:
            return None
        date = datetime.fromtimestamp(self.fetched, UTC).strftime("%Y-%m-%d %H:%MZ")
        return f"stale: the copy of {date}, as the source cannot be had"

    def addObserver(self, observer: Callable[[], object]) -> None:
        """
        Have something called when there are other settings than before.

        @param observer: Is called without arguments; it looks for itself.
        """
        self._observers.append(observer)

    def removeObserver(self, observer: Callable[[], object]) -> None:
        """
        Have it called no more.
        """
        self._observers.remove(observer)

    # Fetching.

    async def _fetch(self) -> None:
        """
        Ask the source, and keep what it answers.
        """
        exchange = Deferred.fromCoroutine(self._exchange())
        exchange.addTimeout(self._timeout, self._reactor)
        try:
            kept = await exchange
        except DeferredTimeout:
            raise self._unavailable(f"took more than {self._timeout:g} s") from None
        except (CancelledError, ConfigurationRefused):
            raise
        except ConfigurationUnavailable as error:
            raise self._unavailable(str(error)) from None
        except Exception as error:
            # What it says may have the URL in it.
            raise self._unavailable(f"failed ({_kindOf(error)})") from error
        self._failures = 0
        if self.stale:
            self._log.info(
                "The settings of {source} are fresh again", source=self._source.shown
            )
        self.stale = False
        if kept is None:
            self.fetched = self._reactor.seconds()
        else:
            self._take(kept)
            await self._write(kept)

    async def _exchange(self) -> Kept | None:
        """
        @return: What was answered; L{None} if that is what was there before.
        """
        headers = {"Accept": "application/json"}
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        response = await self._ask().get(
            self._source.url,
            headers=headers,
            auth=self._source.user,
            allow_redirects=False,
            unbuffered=True,
        )
        body = _Body(self._limit)
        response.original.deliverBody(body)
        status: int = response.code
        if status == 200:
            settings = _parse(await body.whole)
            etag = response.headers.getRawHeaders("ETag", [None])[0]
            return Kept(settings, etag, self._reactor.seconds())
        body.whole.addErrback(lambda _: None)
        body.whole.cancel()
        if status == 304 and self._etag is not None:
            return None
        what = f"{self._source.shown} answered with status {status}"
        if 300 <= status < 400:
            raise ConfigurationRefused(f"{what}: give the URL to which it leads")
        if 400 <= status < 500 and status not in _PASSING:
            raise ConfigurationRefused(f"{what}: look at the URL, and who may read it")
        raise ConfigurationUnavailable(f"answered with status {status}")

    def _ask(self) -> Any:
        if self._client is None:
            from treq.client import HTTPClient
            from twisted.web.client import Agent

            self._client = HTTPClient(
                Agent(self._reactor, connectTimeout=self._timeout)
            )
        return self._client

    def _unavailable(self, what: str) -> ConfigurationUnavailable:
        return ConfigurationUnavailable(f"{self._source.shown} {what}")

    def _take(self, kept: Kept) -> None:
        changed = self.initialized and kept.settings != self.settings
        self.settings = MappingProxyType(kept.settings)
        self._etag, self.fetched = kept.etag, kept.fetched
        if changed:
            for observer in list(self._observers):
                try:
                    observer()
                except Exception:
                    self._log.failure("An observer of the settings failed")

    def _becomeStale(self, error: Exception) -> None:
        self._failures += 1
        if not self.stale:
            self.stale = True
            self._log.warn(
                "The settings are stale: {reason}; trying again", reason=error
            )

    # Again.

    def _schedule(self) -> None:
        seconds = self._refreshes
        if self.stale:
            wait = min(_SOON * 2 ** min(self._failures - 1, 10), _LATE)
            seconds = wait if seconds is None else min(wait, seconds)
        if seconds is not None:
            # Those that were started together need not ask together.
            seconds *= 0.9 + 0.2 * self._random()
            self._timer = self._reactor.callLater(seconds, self._again)

    def _again(self) -> None:
        self._timer = None
        self._work(self._refresh()).addErrback(self._broke)

    async def _refresh(self) -> None:
        try:
            await self._fetch()
        except (ConfigurationUnavailable, ConfigurationRefused) as error:
            self._becomeStale(error)
        self._schedule()

    def _broke(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("The settings are not fetched again", failure=failure)

    # The copy.

    async def _read(self) -> Kept | None:
        if self._file is None:
            return None
        try:
            kept: Kept | None = await self._inThread(self._file.read)
        except (OSError, ValueError) as error:
            self._log.warn(
                "The copy of the settings cannot be used: {reason}", reason=error
            )
            return None
        return kept

    async def _write(self, kept: Kept) -> None:
        if self._file is None:
            return
        try:
            await self._inThread(partial(self._file.write, kept))
        except OSError as error:
            self._log.warn(
                "The copy of the settings cannot be written: {reason}", reason=error
            )

    def _callInThread(self, call: Callable[[], _T]) -> Deferred[_T]:
        pool = self._reactor.getThreadPool()
        answer: Deferred[_T] = deferToThreadPool(self._reactor, pool, call)
        return answer


def _parse(data: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(data)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ConfigurationUnavailable("sent no JSON object")
    return settings


def _kindOf(error: Exception) -> str:
    """
    @return: What an error is, with the first of what it was caused by.
    """
    reasons = getattr(error, "reasons", None)
    if reasons:
        error = reasons[0].value
    return type(error).__name__
