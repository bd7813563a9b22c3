"""
Deferreds of methods whose result is entered or iterated.

C{async with module.transaction()} and C{async for row in module.rows()} use the result
of the method at once. A queued call has no result yet; an L{Answer} waits for the
result first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Generator
from types import TracebackType, coroutine
from typing import Any, NoReturn, cast

from twisted.internet.defer import Deferred

from .awaiting import Awaited, Pending

__all__ = ["Answer"]


class Answer(Pending):
    """
    A Deferred whose result can be entered with C{async with}, and iterated with
    C{async for}.
    """

    _entered: Any = None
    _iterator: Any = None
    _isIterated = False
    # Whether the result is an object of the module that can be awaited or entered.
    isEnterable = False

    def __await__(self) -> Generator[Deferred[Any], None, Any]:
        # Delegating to Pending.__await__() would double the cost.
        waited: Pending | Awaited = self
        if not self.called or self.paused:
            waited = self.waited()
            yield waited
        result = waited.read()
        if self.isEnterable and hasattr(type(result), "__await__"):
            result = yield from result.__await__()
        return result

    async def __aenter__(self) -> Any:
        self._entered = entered = await cast(Awaitable[Any], self._result())
        try:
            enter = type(entered).__aenter__
        except AttributeError:
            raise TypeError(
                f"{type(entered).__name__} is not an asynchronous context manager"
            ) from None
        return await enter(entered)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        entered, self._entered = self._entered, None
        return await type(entered).__aexit__(entered, kind, error, traceback)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            if self._isIterated:
                raise StopAsyncIteration
            self._isIterated = True
            self._iterator = aiter(await cast(Awaitable[Any], self._result()))
        return await anext(self._iterator)

    async def aclose(self) -> None:
        """
        End the iteration, as for an asynchronous generator. A call that is in progress
        is cancelled.
        """
        if self._iterator is None and not self._isIterated:
            self._isIterated = True
            # Nobody iterates the result, so nobody handles an error of the call.
            self.addErrback(lambda _: None)
            if self.called:
                self._iterator = await cast(Awaitable[Any], self._result())
            else:
                self.cancel()
        if hasattr(self._iterator, "aclose"):
            await self._iterator.aclose()

    @coroutine
    def _result(self) -> Generator[Deferred[Any], None, Any]:
        return (yield from super().__await__())

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "'with' cannot wait for a call that may be queued: use 'async with'"
        )

    def __exit__(self, *_: object) -> None:
        pass
