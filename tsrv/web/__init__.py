"""
Parts for a twisted.web server, each usable alone: operator pages, a site with limits,
resources with asynchronous results, error responses, and the validation of input.

The package has no names of its own: import them from its modules. C{pip install
'tsrv[server]'} brings the libraries that they need.
"""
