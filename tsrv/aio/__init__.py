"""
tsrv for programs that run on asyncio, without a reactor.

The two classes work as in L{tsrv}, with the time of the running loop. Tasks can await
their results; a call through a proxy is awaited like a call of the module. The log goes
to L{logging}.
"""

from .program import Startup
from .wrapper import QueuingWrapper

__all__ = ["QueuingWrapper", "Startup"]
