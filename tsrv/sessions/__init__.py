"""
Web sessions: stores, the session of a request, cookies, Klein.
"""
