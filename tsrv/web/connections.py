"""
The connections of one site.
"""

from __future__ import annotations

from .channel import Channel
from .supervisor import Supervisor

__all__ = ["Connections"]


class Connections(Supervisor):
    """
    The connections of a site, with limits. A L{Site<tsrv.web.site.Site>} has them; any
    other site of Twisted can use them::

        site = twisted.web.server.Site(root)
        site.protocol = Connections(reactor)

    @ivar accepted: Number of connections since the start.
    @ivar bodyBytes: Current length of all bodies in memory, and of all data that
        clients have sent ahead of a response.
    @ivar announced: Whether the stop is announced: each response closes its connection.
    @ivar stopping: Whether the site is stopping.
    """

    def __call__(self) -> Channel:
        """
        Make a connection.

        @return: The protocol of the connection.
        """
        return Channel(self)
