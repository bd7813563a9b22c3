"""
What L{tsrv.QueuingWrapper} is made of: states, attempts, queued calls and the proxy.
"""
