"""
Queues in front of modules that take their time to become ready.
"""

from .asyncmodule import AsyncModule, IAsyncModule, NotInitialized, State
from .clients import madeBy
from .errors import (
    Closed,
    InitializationFailed,
    OutcomeUnknown,
    QueueFull,
    QueueTimeout,
    Unavailable,
)
from .queuing.retry import jitteredBackoff
from .startup import Startup, StartupFailed
from .wrapper import IllegalTransition, QueuingWrapper

__all__ = [
    "AsyncModule",
    "Closed",
    "IAsyncModule",
    "IllegalTransition",
    "InitializationFailed",
    "NotInitialized",
    "OutcomeUnknown",
    "QueueFull",
    "QueueTimeout",
    "QueuingWrapper",
    "Startup",
    "StartupFailed",
    "State",
    "Unavailable",
    "jitteredBackoff",
    "madeBy",
]

__version__ = "0.1.0"
