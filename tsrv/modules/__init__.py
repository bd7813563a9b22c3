"""
Modules that do real work. They know nothing of wrappers or of the web.
"""
