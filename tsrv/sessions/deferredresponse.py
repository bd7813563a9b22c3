"""
A response that is deferred until the session is saved.

The bytes that a resource writes must not reach the client before the session is saved.
Resources write with C{request.write()} and C{request.finish()}. A site could give its
requests another class, but sessions must work on any site and for any resource, and
Twisted has no public hook between a resource and its request. So this module, and no
other, replaces these two methods of a request that has a session. It restores them when
the response ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.web.server import Request

from ..errors import OutcomeUnknown, Unavailable
from ..queuing.history import explain
from ..web.responses import IBegun, abort, writeProblem

__all__ = ["DeferredResponse"]

_log = Logger("tsrv.sessions")

MAX_DEFERRED_BYTES: Final = 64 * 1024 * 1024
"""
Maximum number of bytes of a response that wait for the store.
"""


class DeferredResponse:
    """
    Replaces C{write} and C{finish} of a request. Each saves a changed session before
    it passes on the written bytes. If saving fails, the error becomes the response.
    If the response has begun already, the error aborts the connection.
    """

    def __init__(
        self,
        request: Request,
        save: Callable[[], Deferred[None] | None],
        addHeaders: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        """
        @param request: The request. Its response has not begun.
        @param save: Called before each write; saves the session, or returns L{None} if
            it is already saved.
        @param addHeaders: Called before the headers are sent.
        @param ended: Called when the response is sent, or the client disconnects.
        """
        self._request: Any = request
        self._save, self._addHeaders, self._ended = save, addHeaders, ended
        self._write, self._finish = request.write, request.finish
        self._pieces: list[bytes] = []
        self._length = 0
        self._isSaving = self._isFinished = False
        # A closed response passes nothing on.
        self._isClosed = False
        self._replace()
        channel: Any = request.channel
        if channel is None:
            # The client has disconnected.
            self.callback(None)
        else:
            # Like notifyFinish(), but without a Deferred that only calls this object.
            cast(list[Any], request.notifications).append(self)

    def callback(self, result: object) -> None:
        """
        Take the end of the request. If the client has disconnected, a save in progress
        goes on, but no further save begins.
        """
        self._close()
        self._ended()

    errback = callback

    def _replace(self) -> None:
        self._request.write = self._deferWrite
        self._request.finish = self._deferFinish

    def _restore(self) -> None:
        del self._request.write, self._request.finish

    def _deferWrite(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError("a response must be bytes")
        if self._isClosed:
            return
        self._pieces.append(data)
        self._length += len(data)
        if self._length > MAX_DEFERRED_BYTES:
            error = MemoryError(f"more than {MAX_DEFERRED_BYTES} bytes are deferred")
            self._abort(Failure(error))
        else:
            self._saveAndPass()

    def _deferFinish(self) -> None:
        self._isFinished = True
        self._saveAndPass()

    def _saveAndPass(self) -> None:
        if self._isSaving or self._isClosed:
            return
        saving = self._save()
        if saving is None:
            self._pass()
        else:
            self._isSaving = True
            # From now on, an error of the resource cannot become the response.
            self._request.setComponent(IBegun, True)
            saving.addCallbacks(self._saved, self._notSaved)

    def _saved(self, result: None) -> None:
        self._isSaving = False
        # The session may have changed meanwhile.
        self._saveAndPass()

    def _notSaved(self, failure: Failure) -> None:
        self._isSaving = False
        if self._isClosed:
            # In an outage many clients disconnect; the log has the store's loss.
            isOutage = failure.check(Unavailable, OutcomeUnknown)
            _log.emit(
                LogLevel.debug if isOutage else LogLevel.warn,
                "The client has disconnected, and its changes were not saved: {error}",
                error=explain(failure.value),
            )
        elif self._request.startedWriting:
            self._abort(failure)
        else:
            self._close()
            self._request.unsetComponent(IBegun)
            self._restore()
            writeProblem(self._request, failure)
            # The resource may go on to write: drop what it writes.
            self._replace()

    def _pass(self) -> None:
        try:
            if not self._request.startedWriting:
                self._addHeaders()
            pieces, self._pieces, self._length = self._pieces, [], 0
            for piece in pieces:
                self._write(piece)
            if self._isFinished:
                self._close()
                self._restore()
                self._finish()
        except Exception:
            self._abort(Failure())

    def _abort(self, failure: Failure) -> None:
        self._close()
        abort(self._request, failure)

    def _close(self) -> None:
        self._isClosed = True
        self._pieces.clear()
