"""
The errors of calls that tsrv ends in place of the module.

tsrv passes the module's own errors on unchanged. A call that its caller cancels ends
with Twisted's C{CancelledError}: if it is queued, it is never started; if it is in
progress, the module's own Deferred is cancelled.
"""

from __future__ import annotations

from .asyncmodule import State

__all__ = [
    "Closed",
    "InitializationFailed",
    "OutcomeUnknown",
    "QueueFull",
    "QueueTimeout",
    "Unavailable",
]


class Unavailable(Exception):
    """
    The module cannot take the call now. It is safe to repeat the call later: it was not
    started, or its method is safe to run twice (C{replay}).

    @ivar retryAfter: The seconds after which repeating the call makes sense; L{None} if
        they are unknown.
    """

    def __init__(self, message: str, retryAfter: float | None = None) -> None:
        super().__init__(message)
        self.retryAfter = retryAfter


class QueueFull(Unavailable):
    """
    The queue has as many calls as the wrapper's C{limit} allows.
    """


class QueueTimeout(Unavailable):
    """
    The call was queued for as long as the wrapper's C{timeout} allows. The C{__cause__}
    is the reason why the module was not ready, if it is known.

    @ivar waited: The seconds for which the call was queued.
    @ivar state: The L{State} of the wrapper at the end of this time.
    @ivar attempts: The number of attempts since the module was last ready.
    """

    def __init__(
        self,
        message: str,
        retryAfter: float | None,
        waited: float,
        state: State,
        attempts: int,
    ) -> None:
        super().__init__(message, retryAfter)
        self.waited = waited
        self.state = state
        self.attempts = attempts


class InitializationFailed(Unavailable):
    """
    The initialisation failed, and no retry will help. The C{__cause__} is the error of
    the last attempt, or the reason that C{fail()} was given.
    """


class Closed(Unavailable):
    """
    The wrapper is closed.
    """


class OutcomeUnknown(Exception):
    """
    The call was in progress when the module was lost or closed, and the module did not
    return its result: the call may have been carried out, or not. The C{__cause__} is
    the reason of the loss, if it is known.

    This is not an L{Unavailable}, because a second call might do the work twice.

    @ivar method: The name of the method that was called.
    """

    def __init__(self, method: str, module: str | None = None) -> None:
        """
        @param method: The name of the method that was called.
        @param module: The name of the module, for the message.
        """
        super().__init__(
            f"{method}() was in progress when {module or 'its module'} was lost or "
            "closed: it may have been carried out, or not"
        )
        self.method = method
