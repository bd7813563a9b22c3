"""
The role C{repo}: a link to a file or folder of the repository, which must exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole
from sphinx.util.typing import ExtensionMetadata

_SOURCE: Final = "https://github.com/tsrv/tsrv/blob/main/"
_ROOT: Final = Path(__file__).parents[2]


class _Repository(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = self.text
        if not (_ROOT / path).exists():
            message = self.inliner.reporter.warning(f"no such file: {path}")
            return [], [message]
        shown = nodes.literal("", path)
        return [nodes.reference("", "", shown, refuri=_SOURCE + path)], []


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    app.add_role("repo", _Repository())
    return {"parallel_read_safe": True}
