"""Hooks of MkDocs: what GitHub shows as it is and a site does not."""

import re
from typing import Any

LINK_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)[^)]*\)")
ROLE = re.compile(r":(?:class|func|math|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name a file of the repository that is not part of the site instead of linking to it."""
    return LINK_OUT_OF_DOCS.sub(r"\1 (`\2`)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave away the roles of reStructuredText in docstrings; what follows them is set as code."""
    return ROLE.sub("", html)
