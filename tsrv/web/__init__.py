"""
What the resources of a site are made of.
"""
