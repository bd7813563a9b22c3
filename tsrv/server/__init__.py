"""
The server: listen, drain, stop, exit status; options; systemd.
"""

from .server import Server

__all__ = ["Server"]
