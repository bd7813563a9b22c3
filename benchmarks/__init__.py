"""
Measurements of tsrv, each beside something that it is compared with.
"""
