"""
The command C{tsrv} of C{twistd} and C{twist}.
"""

from twisted.application.service import ServiceMaker

tsrv = ServiceMaker("tsrv", "tsrv.tap", "A web server that queues early calls.", "tsrv")
