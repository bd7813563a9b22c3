"""
Closes modules that cannot become ready before the server stops.
"""

from __future__ import annotations

from collections import defaultdict

from twisted.logger import Logger

from ..asyncmodule import State
from ..startup import Startup

__all__ = ["closeLate"]

_log = Logger("tsrv.server")


def closeLate(startup: Startup, seconds: float) -> None:
    """
    Close the modules that report that they cannot become ready in time, and the modules
    that wait for them. The queued calls of these modules fail at once.

    @param startup: The modules.
    @param seconds: Time until the server stops.
    """
    late: dict[str, None] = {}
    waiting = []
    for name, wrapper in startup.wrappers.items():
        left = wrapper.retryAfter()
        if wrapper.state is State.NEW or (wrapper.state is State.LOST and left is None):
            waiting.append(name)
        elif left is not None and left > seconds:
            late[name] = None
            _log.info(
                "{module}: closing, because it needs {needed:.1f} s to become ready "
                "and the drain ends in {seconds:.1f} s",
                module=name,
                needed=left,
                seconds=seconds,
            )
    if not late:
        return
    dependents = defaultdict(list)
    for name in waiting:
        for need in startup.reportModule(name)["needs"]:
            dependents[need].append(name)
    order = list(late)
    for name in order:
        order += [each for each in dependents[name] if each not in late]
        late.update(dict.fromkeys(dependents[name]))
    for name in reversed(order):
        # The shutdown that follows reports the errors.
        startup.wrappers[name].close().addErrback(lambda _: None)
