"""
Parts of the benchmarks: figures and tables, processes, servers and load.
"""
