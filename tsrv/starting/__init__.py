"""
The parts of L{tsrv.Startup}: the graph, its members, their report and shutdown.
"""
