"""
The connections of one site, also of one that is not of tsrv::

    site = twisted.web.server.Site(root)
    site.protocol = Connections(reactor)
"""

from __future__ import annotations

from .channel import Channel
from .supervisor import Supervisor

__all__ = ["Connections"]


class Connections(Supervisor):
    """
    Makes and supervises the connections of a site. The site calls it for each new one.
    """

    def __call__(self) -> Channel:
        """
        Make a connection.
        """
        return Channel(self)
