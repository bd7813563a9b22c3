"""
Links to files and folders of the repository, which must exist.

The role C{repo} makes such a link. In files that pages include, such as the changelog,
relative links become links to the page of the file, or to the file on GitHub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole
from sphinx.util.typing import ExtensionMetadata

_SOURCE: Final = "https://github.com/tsrv/tsrv/blob/main/"
_ROOT: Final = Path(__file__).parents[2]
_LINK: Final = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")

_log = logging.getLogger(__name__)


class _Repository(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = self.text
        if not (_ROOT / path).exists():
            message = self.inliner.reporter.warning(f"no such file: {path}")
            return [], [message]
        shown = nodes.literal("", path)
        return [nodes.reference("", "", shown, refuri=_SOURCE + path)], []


def _correctLinks(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """
    Let the relative links of an included file lead to the same files.
    """
    source = (app.srcdir / path).resolve()
    page = app.srcdir / parent

    def correct(found: re.Match[str]) -> str:
        target = (source.parent / found[2]).resolve()
        if not target.exists():
            _log.warning("%s: no such file: %s", source.name, found[2])
        if target.is_relative_to(app.srcdir) and target.suffix == ".md":
            return found[1] + os.path.relpath(target, page.parent)
        return f"{found[1]}{_SOURCE}{target.relative_to(_ROOT)}"

    content[:] = [_LINK.sub(correct, text) for text in content]


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    app.add_role("repo", _Repository())
    app.connect("include-read", _correctLinks)
    return {"parallel_read_safe": True}
