"""
The building blocks of a site: connections, requests, resources and operator pages.
"""
