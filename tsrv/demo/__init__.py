"""
The application of the demo server: users in a database, visitors with sessions.
"""
