"""
The module for the database at a URL: SQLite or PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.logger import Logger
from zope.interface import implementer

from ..asyncmodule import ICountsFailures, ISettlesCalls, NotInitialized
from ..failures import Failures
from .engine import Engine
from .interface import (
    DatabaseRefused,
    DatabaseUnavailable,
    IDatabase,
    Row,
    Schema,
    Settings,
    Statement,
)
from .location import Location

__all__ = ["Database"]

_log = Logger("tsrv.databases")

_EXTRA: Final = (
    "PostgreSQL needs a package that is not installed: pip install 'tsrv[postgresql]'"
)


@implementer(IDatabase, ICountsFailures, ISettlesCalls)
class Database:
    """
    The module for the database at a URL. Each initialisation opens new connections,
    and may find another URL.
    """

    def __init__(
        self,
        reactor: Any,
        url: str | Callable[[], str | Deferred[str]],
        schemas: Sequence[Schema] = (),
        settings: Settings | None = None,
        *,
        name: str = "database",
    ) -> None:
        """
        @param reactor: Provides time and threads, and watches sockets.
        @param url: The URL, see L{Location.parse}; or a function that is called for
            each initialisation, and returns the URL or a Deferred of it.
        @param schemas: The tables to create or upgrade.
        @param settings: The limits of the database.
        @param name: The name of the database in the log.
        @raise ValueError: The URL is invalid.
        """
        if isinstance(url, str):
            Location.parse(url)
        self._reactor = reactor
        self._url = url
        self._schemas = tuple(schemas)
        self._settings = settings or Settings()
        self._failures = Failures(reactor, _log, f"{name}: a statement failed")
        self._engine: Engine | None = None
        # Engines that were lost may still have calls in progress.
        self._engines: list[Engine] = []
        self._lostEngine: Engine | None = None
        self._opening: Deferred[None] | None = None
        self._connectedTo: Location | None = None

    def __repr__(self) -> str:
        if isinstance(self._url, str):
            return f"<Database at {Location.parse(self._url)}>"
        return "<Database>"

    @property
    def initialized(self) -> bool:
        """
        Whether the database can be used.
        """
        return self._engine is not None

    @property
    def failures(self) -> Mapping[str, int]:
        """
        The number of statements that failed although the database was ready, by code.
        Violated constraints do not count.
        """
        return self._failures.counts

    def initialize(self) -> Deferred[None]:
        """
        Connect, and bring the tables up to date.

        @return: A Deferred that fires when the database can be used. It fails with
            L{DatabaseRefused} if no retry will help, and with L{DatabaseUnavailable}
            if a retry may help, or another initialisation is in progress.
        """
        if self._engine is not None:
            return succeed(None)
        if self._opening is not None:
            return fail(DatabaseUnavailable("the database is being initialised"))
        opening = Deferred.fromCoroutine(self._open())
        if not opening.called:
            self._opening = opening
        return opening

    async def _open(self) -> None:
        try:
            location = await self._locate()
            engine = self._makeEngine(location)
            engine.predecessor = self._lostEngine
            self._engines.append(engine)
            try:
                await engine.open()
            except BaseException:
                self._forget(engine)
                raise
        finally:
            self._opening = None
        self._engine, self._lostEngine = engine, None
        engine.whenLost().addBoth(lambda _: self._lost(engine))
        if location != self._connectedTo:
            self._connectedTo = location
            _log.info("Connected to {location}", location=location)

    async def _locate(self) -> Location:
        url = self._url if isinstance(self._url, str) else self._url()
        try:
            # Settings from the network may have a value of another type.
            return Location.parse(url if isinstance(url, str) else str(await url))
        except ValueError as error:
            raise DatabaseRefused(str(error)) from None

    def _makeEngine(self, location: Location) -> Engine:
        kind: Callable[[Any, str, Sequence[Schema], Settings, Failures], Engine]
        if location.kind == "sqlite":
            from .sqlite import SQLite as kind
        else:
            try:
                from .postgresql import PostgreSQL as kind
            except ImportError:
                raise DatabaseRefused(_EXTRA) from None
        return kind(
            self._reactor,
            location.target,
            self._schemas,
            self._settings,
            self._failures,
        )

    def _lost(self, engine: Engine) -> None:
        if self._engine is engine:
            self._engine, self._lostEngine = None, engine
        self._forget(engine)

    def _forget(self, engine: Engine) -> None:
        engine.close().addCallback(lambda _: self._engines.remove(engine))

    def read(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes nothing.

        @param statement: The statement. It may be carried out again after a loss.
        @param parameters: One value for each question mark.
        @return: As for L{IDatabase.read}. The Deferred fails with L{NotInitialized} if
            the database is not connected.
        """
        if self._engine is None:
            return fail(NotInitialized("The database is not connected"))
        return self._engine.ask(statement, parameters, False)

    def write(self, statement: Statement, *parameters: object) -> Deferred[list[Row]]:
        """
        Carry out a statement that changes something, as a transaction.

        @param statement: The statement; with C{RETURNING} it has rows.
        @param parameters: One value for each question mark.
        @return: As for L{IDatabase.write}. The Deferred fails with L{NotInitialized} if
            the database is not connected.
        """
        if self._engine is None:
            return fail(NotInitialized("The database is not connected"))
        return self._engine.ask(statement, parameters, True)

    def whenLost(self) -> Deferred[None]:
        """
        Wait for the loss or the closing of the database.

        @return: As for L{IDatabase.whenLost}. The Deferred fires at once if the
            database is not connected.
        """
        if self._engine is None:
            return succeed(None)
        return self._engine.whenLost()

    def whenIdle(self) -> Deferred[None]:
        """
        Wait for the end of all calls in progress.

        @return: As for L{IDatabase.whenIdle}. After a loss, calls on connections that
            still work may finish within their time limits.
        """
        return Deferred.fromCoroutine(self._waitUntilIdle())

    async def _waitUntilIdle(self) -> None:
        while busy := [each for each in self._engines if not each.isIdle()]:
            await busy[0].whenIdle()

    def close(self) -> Deferred[None]:
        """
        Close all connections, and cancel an initialisation in progress.

        @return: As for L{IDatabase.close}.
        """
        if self._opening is not None:
            self._opening.cancel()
        self._engine = self._lostEngine = None
        engines = [engine.close() for engine in self._engines]
        closing = gatherResults(engines, consumeErrors=True)
        return closing.addCallbacks(
            lambda _: None, lambda failure: failure.value.subFailure
        )
