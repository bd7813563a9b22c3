"""
What can become of a program as a whole.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Skipped", "StartupFailed", "Status"]


class Status(Enum):
    """
    What is to be said of a program as a whole.
    """

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    UNREADY = "unready"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class StartupFailed(Exception):
    """
    A required module has failed for good; its own error is the C{__cause__}.

    @ivar name: Which one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is required, and failed: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[StartupFailed], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class Skipped(Exception):
    """
    A module was not initialised, because one that it needs has failed.

    @ivar name: Which one was not.
    @ivar need: Which one has failed.
    """

    def __init__(self, name: str, need: str) -> None:
        super().__init__(f"{name} needs {need}, which failed")
        self.name = name
        self.need = need

    def __reduce__(self) -> tuple[type[Skipped], tuple[str, str]]:
        return type(self), (self.name, self.need)
