"""
Queues in front of modules that take their time to become ready.
"""

from .asyncmodule import AsyncModule, IAsyncModule, NotInitialized
from .wrapper import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    QueuingWrapper,
    State,
    Unavailable,
    jitteredBackoff,
)

__all__ = [
    "AsyncModule",
    "Closed",
    "IAsyncModule",
    "InitializationFailed",
    "NotInitialized",
    "OutcomeUnknown",
    "QueueFull",
    "QueueTimeout",
    "QueuingWrapper",
    "State",
    "Unavailable",
    "jitteredBackoff",
]

__version__ = "0.1.0"
