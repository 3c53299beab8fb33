"""Hooks of MkDocs: what GitHub shows as it is and a site does not."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PICTURE_OUT_OF_DOCS = re.compile(r"(!\[[^\]]*\])\((?:\.\./)+(reports/[^)]+)\)")
LINK_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)[^)]*\)")
ROLE = re.compile(r":(?:class|func|math|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of committed reports that pages show."""
    root = Path(config.config_file_path).parent
    pages = list(files.documentation_pages())
    for path in sorted({found[2] for page in pages for found in PICTURE_OUT_OF_DOCS.finditer(page.content_string)}):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show pictures from the site; name any other file of the repository instead of linking to it."""
    return LINK_OUT_OF_DOCS.sub(r"\1 (`\2`)", PICTURE_OUT_OF_DOCS.sub(r"\1(\2)", markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Leave away the roles of reStructuredText in docstrings; what follows them is set as code."""
    return ROLE.sub("", html)
