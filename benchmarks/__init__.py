"""
Measurements of tsrv, each beside a comparison in the same run.
"""
