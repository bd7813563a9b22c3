"""
Makes pytest execute the blocks of code in the README and the documentation.
"""

from tests.pages import pages

pytest_collect_file = pages.pytest()
