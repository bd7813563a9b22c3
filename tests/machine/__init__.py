"""
A model of everything around a wrapper: its callers and its module, which misbehave as
far as anybody's code may. L{tests.test_machine} makes random steps in it.
"""
