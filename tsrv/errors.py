"""
The errors of calls that tsrv ends in place of the module.

tsrv passes the module's own errors on unchanged.
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
    The module cannot take the call now. It is safe to make the call again later: it
    was not run, or its method is safe to run twice (C{replay}).

    @ivar retryAfter: The seconds after which the caller should try again; L{None} if
        they are unknown.
    """

    def __init__(self, message: str, retryAfter: float | None = None) -> None:
        super().__init__(message)
        self.retryAfter = retryAfter


class QueueFull(Unavailable):
    """
    The queue is full: the wrapper's C{limit} is reached.
    """


class QueueTimeout(Unavailable):
    """
    A call waited in the queue until the wrapper's C{timeout}. The C{__cause__} is the
    last error of the initialisation, if there was one.

    @ivar waited: The time that the call waited, in seconds.
    @ivar state: The wrapper's L{State} when the call was given up.
    @ivar attempts: The number of attempts to initialise the module so far.
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
    The module failed to initialise, and no retry will help. The module's own
    error is the C{__cause__}.
    """


class Closed(Unavailable):
    """
    The wrapper has been closed.
    """


class OutcomeUnknown(Exception):
    """
    The module was lost or closed while working on the call, and never answered:
    the call may have been carried out, or not. The C{__cause__} is the reason of the
    loss, if it is known.

    This is not an L{Unavailable}, because a second call might do the work twice.

    @ivar method: The name of the method that was called.
    """

    def __init__(self, method: str, module: str | None = None) -> None:
        """
        @param module: The name of the module, for the message.
        """
        super().__init__(
            f"{method}() was in progress when {module or 'its module'} was lost or "
            "closed: it may have been carried out, or not"
        )
        self.method = method
