"""
The connections of one site. Any site of Twisted can use them::

    site = twisted.web.server.Site(root)
    site.protocol = Connections(reactor)
"""

from __future__ import annotations

from .channel import Channel
from .supervisor import Supervisor

__all__ = ["Connections"]


class Connections(Supervisor):
    """
    Makes and supervises the connections of a site. Each call makes a connection.
    """

    def __call__(self) -> Channel:
        """
        Make a connection.
        """
        return Channel(self)
