"""
The status of a program, and the errors of its modules.
"""

from __future__ import annotations

from enum import Enum

from ..queuing.modulelog import Consequence

__all__ = ["Restarted", "Skipped", "StartupFailed", "Status"]


class Status(Enum):
    """
    The status of a program as a whole.

      - C{NEW}: The start-up has not begun.
      - C{STARTING}: Not all required modules have been ready yet.
      - C{READY}: All modules are ready.
      - C{DEGRADED}: All required modules are ready, but an optional one is not.
      - C{UNREADY}: The program was ready, but a required module was lost or is paused.
      - C{FAILED}: A required module has failed for good.
      - C{STOPPING}: The program is about to close its modules, or is closing them.
      - C{STOPPED}: All modules are closed.

    A lazy module that was never ready counts as ready, unless it fails for good.
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
    A required module has failed for good; its error is the C{__cause__}.

    @ivar name: The name of the module.
    @ivar reason: The error of the module, in one line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is required, and failed: {reason}")
        self.name = name
        self.reason = reason


class Skipped(Consequence, Exception):
    """
    The module was not initialised or not restarted, because a module that it needs has
    failed. This error is the C{__cause__} of the errors of its calls.

    @ivar name: The name of the module.
    @ivar need: The name of the failed module.
    """

    def __init__(self, name: str, need: str) -> None:
        super().__init__(f"{name} needs {need}, which failed")
        self.summary = f"skipped (needs {need}, which failed)"
        self.name = name
        self.need = need


class Restarted(Consequence, Exception):
    """
    The module was reset, because a module that it restarts with was lost and has
    recovered. The report shows it as the reason of a loss.

    @ivar name: The name of the module.
    @ivar recovered: The name of the recovered module.
    """

    def __init__(self, name: str, recovered: str) -> None:
        super().__init__(f"{name} restarts with {recovered}, which has recovered")
        self.summary = f"restarting ({recovered} has recovered)"
        self.name = name
        self.recovered = recovered
