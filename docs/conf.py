"""
Configuration of Sphinx for this site.
"""

import sys
from pathlib import Path
from typing import Unpack

sys.path.insert(0, str(Path(__file__).parent))

import tsrv.server.server
from tsrv import __version__
from tsrv.web.site import SiteOptions

# The signature of Server has names that are imported for type checkers alone.
vars(tsrv.server.server).update(SiteOptions=SiteOptions, Unpack=Unpack)

project = "tsrv"
copyright = "tsrv contributors"  # noqa: A001
version = release = __version__

extensions = [
    "extensions.epytext",
    "extensions.interfaces",
    "extensions.repository",
    "extensions.signatures",
    "extensions.tables",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
]
nitpicky = True
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_class_signature = "mixed"
autoclass_content = "both"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"tsrv {version}"
html_static_path = ["_static"]
copybutton_exclude = ".linenos, .gp, .go"
