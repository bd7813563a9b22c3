"""
A model of everything around a wrapper: its callers and its module, which misbehave in
every way that foreign code may. L{tests.test_machine} makes random steps in it.
"""
