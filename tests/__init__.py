"""
The tests.
"""
