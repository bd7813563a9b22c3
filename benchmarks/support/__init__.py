"""
Parts of the benchmarks: figures, tables, processes, servers and loads.
"""
