"""
The database at a URL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from ..asyncmodule import ISettlesCalls, NotInitialized
from .interface import (
    DatabaseRefused,
    DatabaseUnavailable,
    Engine,
    IDatabase,
    Location,
    Row,
    Schema,
    Settings,
    Statement,
)

__all__ = ["Database"]

_EXTRA: Final = (
    "PostgreSQL needs a package that is not installed: pip install 'tsrv[postgresql]'"
)


_MOST_STUCK: Final = 8
"""
How many threads may be left to a disk that does not answer.
"""


async def _answerOf(url: Callable[[], str | Deferred[str]]) -> str:
    answer = url()
    return answer if isinstance(answer, str) else await answer


@implementer(IDatabase, ISettlesCalls)
class Database:
    """
    The database at a URL, which may be known only when it is initialised.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str | Callable[[], str | Deferred[str]],
        schemas: Sequence[Schema] = (),
        settings: Settings | None = None,
    ) -> None:
        """
        @param reactor: Provides time, threads, and the watching of sockets.
        @param url: Where the database is, see L{Location.parse}; or what
            answers that, or a Deferred of it, for each initialisation anew.
        @param schemas: The tables that have to be there.
        @param settings: How it is used.
        @raise ValueError: The URL cannot be understood.
        """
        if isinstance(url, str):
            Location.parse(url)
        self._reactor = reactor
        self._url = url
        self._schemas = tuple(schemas)
        self._settings = settings or Settings()
        self._location: Location | None = None
        self._engine: Engine | None = None
        # Those that were lost, or given up, may still have something to end.
        self._engines: list[Engine] = []
        self._stuck: list[Engine] = []
        self._opening: Deferred[None] | None = None

    def __repr__(self) -> str:
        if isinstance(self._url, str):
            return f"<Database at {Location.parse(self._url)}>"
        return "<Database>"

    @property
    def initialized(self) -> bool:
        """
        @see: L{IAsyncModule.initialized}
        """
        return self._engine is not None

    def initialize(self) -> Deferred[None]:
        """
        Connect, and bring the schema up to date.

        @return: A Deferred that fires when that is done. It fails with
            L{DatabaseRefused} if no retry will help, and with
            L{DatabaseUnavailable} if one may; also if it is being done already.
        """
        if self._engine is not None:
            return succeed(None)
        if self._opening is not None:
            return fail(DatabaseUnavailable("it is being initialised already"))
        opening = Deferred.fromCoroutine(self._open())
        if not opening.called:
            self._opening = opening
        return opening

    async def _open(self) -> None:
        try:
            engine = await self._makeEngine()
            self._engines.append(engine)
            try:
                await engine.open()
            except BaseException:
                self._forget(engine)
                raise
        finally:
            self._opening = None
        self._engine = engine
        engine.whenLost().addCallback(self._lost, engine)
        self._log.info("Connected to {location}", location=self._location)

    async def _makeEngine(self) -> Engine:
        self._stuck = [engine for engine in self._stuck if engine.stuck]
        if (stuck := sum(engine.stuck for engine in self._stuck)) >= _MOST_STUCK:
            raise DatabaseUnavailable(
                f"{stuck} threads wait for a disk that does not answer"
            )
        url = self._url
        try:
            location = Location.parse(
                url if isinstance(url, str) else await _answerOf(url)
            )
        except ValueError as error:
            raise DatabaseRefused(str(error)) from None
        self._location = location
        if location.kind == "sqlite":
            from .sqlite import SQLite

            return SQLite(self._reactor, location.target, self._schemas, self._settings)
        try:
            from .postgresql import PostgreSQL
        except ImportError:
            raise DatabaseRefused(_EXTRA) from None
        return PostgreSQL(self._reactor, location.target, self._schemas, self._settings)

    def _lost(self, result: None, engine: Engine) -> None:
        if self._engine is engine:
            self._engine = None
        self._forget(engine)

    def _forget(self, engine: Engine) -> None:
        def ended(result: None) -> None:
            self._engines.remove(engine)
            if engine.stuck:
                self._stuck.append(engine)

        engine.close().addCallback(ended)

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.read}
        """
        if self._engine is None:
            return fail(NotInitialized("The database is not connected"))
        return self._engine.read(statement, *parameters)

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        @see: L{IDatabase.write}
        """
        if self._engine is None:
            return fail(NotInitialized("The database is not connected"))
        return self._engine.write(statement, *parameters)

    def whenLost(self) -> Deferred[None]:
        """
        @see: L{IDatabase.whenLost}
        """
        if self._engine is None:
            return succeed(None)
        return self._engine.whenLost()

    def close(self) -> Deferred[None]:
        """
        @see: L{IDatabase.close}
        """
        if self._opening is not None:
            # Whoever waits for it gave it up.
            self._opening.cancel()
        self._engine = None
        ended = DeferredList([engine.close() for engine in self._engines])
        return ended.addCallback(lambda _: None)
