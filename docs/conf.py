"""The configuration of Sphinx, which builds the documentation as a site: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cachesync import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project: Final = "db-cache-sync"
release: Final = __version__
extensions: Final = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# SQL with $1 and consoles with JSON are highlighted all the same.
suppress_warnings: Final = ["misc.highlighting_failure"]

html_theme: Final = "furo"
html_title: Final = "db-cache-sync"
html_copy_source: Final = False
html_show_copyright: Final = False

# Each page is reached from the table of contents; the decisions from their list.
_DECISIONS: Final = "decisions/README"
# The site has no pages for the code; on GitHub, these links lead to it.
_LINK: Final = re.compile(r"\[([^\]]*)\]\((\.\./[^)#]*)[^)]*\)")

# The anchors that GitHub gives to headings, so that the same links work there.
myst_heading_anchors: Final = 3
# Without the prompts and the output, so that what is copied can be run.
copybutton_prompt_text: Final = "$ "
copybutton_only_copy_prompt_lines: Final = True

autodoc_typehints: Final = "signature"
autodoc_member_order: Final = "bysource"
autodoc_class_signature: Final = "separated"
napoleon_google_docstring: Final = True
napoleon_numpy_docstring: Final = False


def _adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """Change what a page has for its readers on GitHub."""

    def label(link: re.Match[str]) -> str:
        target = (Path(app.srcdir) / page).parent / link[2]
        return link[0] if target.resolve().is_relative_to(app.srcdir) else link[1]

    source[0] = _LINK.sub(label, source[0])
    if page == _DECISIONS:
        source[0] += "\n```{toctree}\n:glob:\n:hidden:\n\n[0-9]*\n```\n"


def setup(app: Sphinx) -> None:
    """Register what adapts the pages."""
    app.connect("source-read", _adapt)
