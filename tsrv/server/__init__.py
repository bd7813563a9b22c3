"""
A server that listens before its modules are ready, and stops without losing requests.

L{Server} runs the site of any program. Programs that need only a part of it use:

  - L{tsrv.server.logformat}: the log as JSON
  - L{tsrv.server.process}: signals, open files and garbage collection
  - L{tsrv.server.steadytime}: timers that do not depend on the system's clock
  - L{tsrv.server.systemd}: readiness, status and watchdog for systemd

The other modules are inner parts, and the options of the demo server.
"""

from .server import Server

__all__ = ["Server"]
