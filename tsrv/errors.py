"""
What tsrv itself answers with when a call cannot reach its module.

Whatever the module raises passes through untouched; these are the errors of
the waiting that tsrv adds around it.
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
    The module cannot take the call now. It has not been run (or, if its method
    is named in C{replay}, may be run again), so it may be made again later.

    @ivar retryAfter: Seconds after which trying again is reasonable, or
        L{None} where nobody knows.
    """

    def __init__(self, message: str, retryAfter: float | None = None) -> None:
        super().__init__(message)
        self.retryAfter = retryAfter

    def __reduce__(self) -> tuple[type[Unavailable], tuple[object, ...]]:
        return type(self), (*self.args, self.retryAfter)


class QueueFull(Unavailable):
    """
    As many commands are waiting as the wrapper's C{limit} allows.
    """


class QueueTimeout(Unavailable):
    """
    A command waited for its start as long as the wrapper's C{timeout} allows.

    The last error of the initialisation, where there was one, is the
    C{__cause__}.

    @ivar waited: How long the command waited, in seconds.
    @ivar state: The wrapper's L{State} when the command was given up.
    @ivar attempts: How many times the initialisation had been tried.
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

    def __reduce__(self) -> tuple[type[Unavailable], tuple[object, ...]]:
        made, arguments = super().__reduce__()
        return made, (*arguments, self.waited, self.state, self.attempts)


class InitializationFailed(Unavailable):
    """
    The module failed to initialise in a way that no retry will cure; the
    module's own error is the C{__cause__}.
    """


class Closed(Unavailable):
    """
    The wrapper has been closed.
    """


class OutcomeUnknown(Exception):
    """
    The call had been handed to the module when the module was lost (or
    closed) and was never answered: it may have been carried out, or not.

    This is no L{Unavailable}, because making the call again might run it
    twice.

    @ivar method: The name of the method that was called.
    """

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method}() was in progress when its module went away: "
            "it may have been carried out, or not"
        )
        self.method = method

    def __reduce__(self) -> tuple[type[OutcomeUnknown], tuple[str]]:
        return type(self), (self.method,)
