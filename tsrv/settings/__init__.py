"""
Settings fetched over the network.
"""
