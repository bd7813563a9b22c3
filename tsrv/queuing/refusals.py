"""
The errors of calls that tsrv ends in place of the module.
"""

from __future__ import annotations

from ..asyncmodule import State
from ..errors import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
)
from .history import count
from .inspection import Inspection

__all__ = [
    "closed",
    "initializationFailed",
    "outcomeUnknown",
    "queueFull",
    "queueTimeout",
]


def queueFull(wrapper: Inspection) -> QueueFull:
    """
    @param wrapper: The wrapper of the module.
    """
    return QueueFull(
        f"the queue of {wrapper.name} is full (limit {wrapper.limit:,})",
        wrapper.retryAfter(),
    )


def queueTimeout(wrapper: Inspection, waited: float) -> QueueTimeout:
    """
    @param waited: The time that the call waited, in seconds.
    """
    state, attempts = wrapper.state, wrapper.attempts
    if state is State.NEW:
        why = "but its initialize() was never called"
    elif state is State.PAUSED:
        why = "which is paused"
    else:
        why = f"which is {state.value}"
        if attempts:
            why += f" after {count(attempts, 'attempt')}"
        if wrapper.lastError is not None:
            # Without its message: programs show the text of this error to clients.
            why += f" ({type(wrapper.lastError).__name__})"
    message = f"waited {waited:.1f} s for {wrapper.name}, {why}"
    error = QueueTimeout(message, wrapper.retryAfter(), waited, state, attempts)
    error.__cause__ = wrapper.lastError
    return error


def outcomeUnknown(
    wrapper: Inspection, method: str, cause: BaseException | None
) -> OutcomeUnknown:
    """
    @param method: The name of the method that was called.
    @param cause: The reason of the loss, if it is known.
    """
    error = OutcomeUnknown(method, wrapper.name)
    error.__cause__ = cause
    return error


def initializationFailed(
    name: str, cause: BaseException | None
) -> InitializationFailed:
    """
    @param cause: The reason why no further attempt is made.
    """
    error = InitializationFailed(f"{name} failed for good")
    error.__cause__ = cause
    return error


def closed(name: str) -> Closed:
    """
    @param name: The name of the module.
    """
    return Closed(f"{name} is closed")
