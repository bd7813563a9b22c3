"""
Makes C{tsrv} known to C{twistd} and C{twist}.
"""

from twisted.application.service import ServiceMaker

tsrv = ServiceMaker("tsrv", "tsrv.tap", "A web server that is up at once.", "tsrv")
