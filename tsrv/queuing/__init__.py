"""
The parts of L{tsrv.QueuingWrapper}. Start with L{tsrv.wrapper}, which explains how they
work together.
"""
