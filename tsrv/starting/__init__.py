"""
What L{tsrv.Startup} is made of: the graph, its members, their report and shutdown.
"""
