"""
What L{tsrv.QueuingWrapper} is made of. Start with L{tsrv.wrapper}, which explains how
the parts work together.
"""
