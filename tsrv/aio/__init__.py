"""
tsrv for programs that run on asyncio, without a reactor.

The two classes have the options, states and errors of L{tsrv}. The running loop
provides the time. Await their results, and calls through a proxy, in a task: within
C{asyncio.timeout()}, for example. A call is never started if its task is cancelled
while the call is queued. The log goes to L{logging}, to the loggers C{tsrv.wrapper} and
C{tsrv.startup}.
"""

from .program import Startup
from .wrapper import QueuingWrapper

__all__ = ["QueuingWrapper", "Startup"]
