"""
A response that is held until something has been done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from ..web.responses import writeProblem

__all__ = ["Hold"]

_MOST: Final = 64 * 1024 * 1024
"""
How many bytes of a response are held.
"""


class Hold:
    """
    Takes the place of C{write} and C{finish} of a request. Before each of them is
    passed on, something is done, if there is something to do; if it fails, that is
    the response, or, if that has begun, its end.
    """

    _log = Logger()

    def __init__(
        self,
        request: Request,
        before: Callable[[], Deferred[None] | None],
        begin: Callable[[], object],
        end: Callable[[], object],
    ) -> None:
        """
        @param request: The request, whose response has not begun.
        @param before: What is to be done, if anything is; it may be done again.
        @param begin: Called before the headers of the response are sent.
        @param end: Called when the response has ended, or the client has gone.
        """
        self._request = replaced = cast(Any, request)
        self._before = before
        self._begin = begin
        self._over = end
        self._write = request.write
        self._finish = request.finish
        self._pieces: list[bytes] = []
        self._length = 0
        self._begun = False
        self._busy = False
        self._finished = False
        self._gone = False
        # As notifyFinish() does, without a Deferred that would only call this.
        replaced.notifications.append(self)
        replaced.write = self._hold
        replaced.finish = self._end

    def callback(self, result: None) -> None:
        """
        The response has been sent.
        """
        self._over()

    def errback(self, reason: Failure) -> None:
        """
        The client has gone: what is being done goes on, and nothing more is begun.
        """
        self._gone = True
        self._pieces.clear()
        self._over()

    def _hold(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError("what is written has to be bytes")
        if self._gone:
            return
        self._pieces.append(data)
        self._length += len(data)
        # Who asks whether the response has begun has to know that it has.
        self._request.heldBytes = self._length
        if self._length > _MOST:
            self._break(Failure(MemoryError(f"more than {_MOST} bytes are held")))
        else:
            self._do()

    def _end(self) -> None:
        self._finished = True
        self._do()

    def _do(self) -> None:
        """
        Do what is to be done; then pass on what was written.
        """
        if self._busy or self._gone:
            return
        doing = self._before()
        if doing is None:
            self._pass()
        else:
            self._busy = True
            doing.addCallbacks(self._done, self._failed)

    def _done(self, result: None) -> None:
        self._busy = False
        # Something may have been changed meanwhile.
        self._do()

    def _pass(self) -> None:
        """
        Pass on what was written.
        """
        try:
            if not self._begun:
                self._begun = True
                self._begin()
            pieces, self._pieces = self._pieces, []
            self._length = 0
            for piece in pieces:
                self._write(piece)
            if self._finished:
                self._gone = True
                self._release()
                self._finish()
        except Exception:
            self._break(Failure())

    def _failed(self, failure: Failure) -> None:
        self._busy = False
        if self._gone:
            self._log.warn(
                "What a client that has left had changed was not saved: {reason}",
                reason=failure.value,
            )
        elif self._begun:
            self._break(failure)
        else:
            self._gone = True
            self._pieces.clear()
            self._release()
            # None of that has gone out.
            self._request.heldBytes = 0
            writeProblem(self._request, failure)
            # The resource may not have come to the end of its own response.
            self._request.write = self._hold
            self._request.finish = self._nothing

    def _break(self, failure: Failure) -> None:
        self._gone = True
        self._pieces.clear()
        self._log.failure("A response broke off", failure=failure)
        self._request.transport.abortConnection()

    def _nothing(self) -> None:
        pass

    def _release(self) -> None:
        del self._request.write
        del self._request.finish
