"""
tsrv for programs that run on asyncio, without a reactor.

The two classes are those of L{tsrv}, with the time of the running loop. What they
return can be awaited in a task; the calls of a proxy are awaited as those of the module
are. The log goes to L{logging}.
"""

from .program import Startup
from .wrapper import QueuingWrapper

__all__ = ["QueuingWrapper", "Startup"]
