"""
Queues in front of modules that take time to become ready.

L{QueuingWrapper} queues the calls of one module until the module is ready. L{Startup}
starts, watches and stops many modules in the order of their needs::

    wrapper = QueuingWrapper(AsyncModule(reactor, delay=1.0), reactor)
    clock = wrapper.proxy            # has the methods and the type of AsyncModule
    early = clock.tellMeSomething()  # a Deferred; the call is queued
    wrapper.initialize()             # a Deferred that fires when the clock is ready

Importing this package needs Twisted alone, and installs no reactor.
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

__version__ = "1.0.0rc1"
