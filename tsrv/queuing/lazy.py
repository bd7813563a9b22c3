"""
Modules that are initialised by their first call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import Unavailable
from .foreign import callForeign
from .inspection import Inspection
from .options import checkArguments
from .states import State

__all__ = ["FirstCall"]

_log = Logger("tsrv.wrapper")


class FirstCall:
    """
    Initialises a module at its first call, unless the module was initialised before.
    """

    def __init__(self, wrapper: Inspection, action: Callable[[], object]) -> None:
        """
        @param action: Initialises the module, now or later.
        """
        checkArguments("lazy", action, 0)
        self._wrapper = wrapper
        self._action: Callable[[], object] | None = action
        # The module does not keep the context of the first caller.
        self._context = copy_context()

    def callQueued(self) -> None:
        """
        A call was queued, or refused.
        """
        action, self._action = self._action, None
        if action is not None and self._wrapper.state is State.NEW:
            self._context.run(callForeign, action).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        # The wrapper has logged why the module is unavailable.
        if not failure.check(Unavailable):
            text = "{module}: the first call could not initialise the module"
            _log.failure(text, failure, module=self._wrapper.name)
