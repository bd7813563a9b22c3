"""The entry point of the plugin: makes a service from options."""

from twisted.python import usage

from tsrv import Startup
from tsrv.server import Server
from tsrv.web.responses import AsyncResource

from .modules import addModules
from .resources import Price


class Options(usage.Options):
    """The options of C{twistd shop}."""

    optParameters = (
        ("listen", "l", "tcp:8080:interface=127.0.0.1", "Endpoint for clients."),
        ("operations", "o", "tcp:8081:interface=127.0.0.1", "Endpoint for operators."),
    )


def makeService(options: Options) -> Server:
    """Make the service. Import the reactor only here: C{twistd} has chosen it now."""
    from twisted.internet import reactor

    startup = Startup(reactor)
    root = AsyncResource()
    root.putChild(b"price", Price(addModules(startup, reactor)))
    listen, operations = [options["listen"]], [options["operations"]]
    return Server(reactor, startup, root, listen, operations=operations, program="shop")
