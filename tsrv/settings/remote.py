"""
Settings that are fetched before anything that needs them starts.

The source is asked for a JSON object. The last good one is kept on the disk; when
the source is down it is used, and is called stale until the source is back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from random import random as _random
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..asyncmodule import IAsyncModule, IHasNote, NotInitialized
from ..errors import Unavailable
from .fetching import (
    Body,
    Client,
    HTTPClient,
    Source,
    Unusable,
    kindOf,
    parse,
)
from .kept import (
    Kept,
    KeptFile,
)

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

_RENEWED: Final = 60.0
"""
After how many seconds it is worth to write that the settings are still the same.
"""

_TAG: Final = re.compile(rb"[\x21-\x7e]{1,1024}")
"""
An entity tag that can be sent back.
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


@implementer(IAsyncModule, IHasNote)
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
        check: Callable[[Mapping[str, Any]], str | None] = lambda settings: None,
        client: Client | None = None,
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
        @param check: Answers what is wrong with settings, in words that say
            nothing of what they are; L{None} if they are of use. Others never
            replace those that are there.
        @param client: Asks.
        @param inThread: Calls something in a thread, and answers a Deferred.
        @param random: The source of chance: answers numbers from 0 to 1.
        @raise ValueError: The URL makes no sense.
        """
        self._source = Source.parse(url)
        self._reactor = reactor
        self._timeout = timeout
        self._refreshes = refresh
        self._file = None if copy is None else KeptFile(copy, url, limit)
        self._limit = limit
        self._check = check
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
        self._reason = ""
        self._trouble = ""
        self._written: float | None = None
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
        @see: L{IHasNote.note}
        """
        if not self.stale:
            return None
        return f"stale: the copy of {self._date()}, as the source cannot be had"

    def _date(self) -> str:
        assert self.fetched is not None
        return datetime.fromtimestamp(self.fetched, UTC).strftime("%Y-%m-%d %H:%MZ")

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
        client = self._client
        if client is None:
            client = self._client = HTTPClient(self._reactor, self._timeout)
        exchange = Deferred.fromCoroutine(self._exchange(client))
        exchange.addTimeout(self._timeout, self._reactor, _tookTooLong)
        try:
            kept = await exchange
        except (CancelledError, ConfigurationRefused):
            client.abort()
            raise
        except Exception as error:
            client.abort()
            why = self._whyNot(error)
            raise ConfigurationUnavailable(f"{self._source.shown} {why}") from error
        self._failures = 0
        self._reason = ""
        if self.stale:
            self._log.info(
                "The settings of {source} are fresh again", source=self._source.shown
            )
        self.stale = False
        if kept is None:
            kept = Kept(dict(self.settings), self._etag, self._reactor.seconds())
        if kept.settings != self.settings or self._isWorthWriting(kept):
            self._take(kept)
            await self._write(kept)
        else:
            self._take(kept)

    def _isWorthWriting(self, kept: Kept) -> bool:
        written = self._written
        return written is None or not 0 <= kept.fetched - written < _RENEWED

    async def _exchange(self, client: Client) -> Kept | None:
        """
        @return: What was answered; L{None} if that is what was there before.
        """
        headers = {"Accept": "application/json"}
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        response = await client.get(
            self._source.url,
            headers=headers,
            auth=self._source.user,
            allow_redirects=False,
            unbuffered=True,
        )
        status: int = response.code
        if status == 200:
            body = Body(self._limit)
            response.original.deliverBody(body)
            settings = parse(await body.whole)
            wrong = self._check(settings)
            if wrong is not None:
                raise ConfigurationRefused(
                    f"{self._source.shown} sent settings that are of no use: {wrong}"
                )
            tag = response.headers.getRawHeaders(b"ETag", [b""])[0]
            etag = tag.decode("ascii") if _TAG.fullmatch(tag) else None
            return Kept(settings, etag, self._reactor.seconds())
        if status == 304:
            if self._etag is None:
                raise Unusable("answered with status 304 to who knows nothing yet")
            return None
        what = f"{self._source.shown} answered with status {status}"
        if 300 <= status < 400:
            raise ConfigurationRefused(f"{what}: give the URL to which it leads")
        if 400 <= status < 500 and status not in _PASSING:
            raise ConfigurationRefused(f"{what}: look at the URL, and who may read it")
        raise Unusable(f"answered with status {status}")

    def _whyNot(self, error: Exception) -> str:
        if isinstance(error, DeferredTimeout):
            return f"took more than {self._timeout:g} s"
        # What others say may have the URL in it.
        return (
            str(error) if isinstance(error, Unusable) else f"failed ({kindOf(error)})"
        )

    def _take(self, kept: Kept) -> None:
        changed = self.initialized and kept.settings != self.settings
        self.settings = MappingProxyType(kept.settings)
        self._etag, self.fetched = kept.etag, kept.fetched
        if changed:
            self._log.info(
                "The settings of {source} have changed; what was made with the "
                "earlier ones keeps them until it is connected anew",
                source=self._source.shown,
            )
            for observer in list(self._observers):
                try:
                    observer()
                except Exception:
                    self._log.failure("An observer of the settings failed")

    def _becomeStale(self, error: Exception) -> None:
        self._failures += 1
        self.stale = True
        reason = str(error)
        if reason != self._reason:
            self._reason = reason
            self._log.warn(
                "The settings are stale, those of {date}: {reason}; trying again",
                date=self._date(),
                reason=reason,
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
            wrong = None if kept is None else self._check(kept.settings)
            if wrong is not None:
                raise ValueError(wrong)
        except (OSError, ValueError) as error:
            self._complain("used", error)
            return None
        return kept

    async def _write(self, kept: Kept) -> None:
        if self._file is None:
            return
        try:
            await self._inThread(partial(self._file.write, kept))
        except OSError as error:
            self._complain("written", error)
        else:
            self._trouble = ""
            self._written = kept.fetched

    def _complain(self, what: str, error: Exception) -> None:
        # All of what the system says has the name of a temporary file in it.
        reason = getattr(error, "strerror", None) or error
        trouble = f"The copy of the settings cannot be {what}: {reason}"
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.warn("{trouble}", trouble=trouble)

    def _callInThread(self, call: Callable[[], _T]) -> Deferred[_T]:
        pool = self._reactor.getThreadPool()
        answer: Deferred[_T] = deferToThreadPool(self._reactor, pool, call)
        return answer


def _tookTooLong(result: object, timeout: float) -> NoReturn:
    """
    Whatever came of it when it was cancelled.
    """
    raise DeferredTimeout
