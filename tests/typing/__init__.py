"""
What type checkers know about programs that use tsrv. Nothing here is run: mypy and
pyright check it. Each line that they must refuse says with which error; both complain
about a comment that is not needed.
"""
