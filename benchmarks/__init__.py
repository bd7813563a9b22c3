"""
What tsrv costs, measured beside what it is compared with.
"""
