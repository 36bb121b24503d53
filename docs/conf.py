"""Sphinx builds the manual as HTML: `sphinx-build -W docs .cache/manual`.

The pages are plain reStructuredText, so that a forge shows them as well: they link to each other's
files, and an index lists its pages as links. What Sphinx needs instead is made of that here.
"""

import posixpath
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

project = "Buttervolume"
html_title = "Buttervolume"
html_theme = "alabaster"
html_theme_options = {"description": "Docker volumes on BTRFS", "page_width": "64em"}
html_show_copyright = False
html_copy_source = False
nitpicky = True

FILES = "https://github.com/anybox/buttervolume/blob/HEAD"
"""Where the files are that the manual links to and Sphinx does not build."""
PAGE = re.compile(r"^\s*- `[^`]*<([\w/-]+)\.rst>`_", re.MULTILINE)
"""A page in the list of an index."""

_log = logging.getLogger(__name__)


def list_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let the links of an index make the table of contents, too."""
    if posixpath.basename(docname) == "index":
        pages = "\n".join(f"   {page}" for page in PAGE.findall(source[0]))
        source[0] += f"\n.. toctree::\n   :hidden:\n\n{pages}\n"


def resolve_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Turn links to files into links to the pages made of them, or to where the files are."""
    for link in doctree.findall(nodes.reference):
        uri = link.get("refuri", "")
        if not uri or link.get("internal") or ":" in uri:
            continue
        file, _, anchor = uri.partition("#")
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(docname), file))
        page = path.removeprefix("docs/").removesuffix(".rst")
        if page in app.env.found_docs:
            target = app.builder.get_relative_uri(docname, page)
            link["refuri"] = f"{target}#{anchor}" if anchor else target
        elif (app.confdir.parent / path).exists():
            link["refuri"] = f"{FILES}/{path}"
        else:
            _log.warning("a link leads nowhere: %s", uri, location=link)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", list_pages)
    app.connect("doctree-resolved", resolve_links)
