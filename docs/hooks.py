"""Hooks of MkDocs: what GitHub shows as it is and a site does not."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PICTURE_OUT_OF_DOCS = re.compile(r"(!\[[^\]]*\])\((?:\.\./)+(reports/[^)]+)\)")
LINK_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)[^)]*\)")
GALLERY, INDEX = "gallery.md", "reports/README.md"
REPORT_IN_INDEX = re.compile(r"(?<!!)\[([^\]]+)\]\(examples/[^)]+\)")
ROLE = re.compile(r":(?:class|func|math|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the index of the committed reports as a page, and the pictures of reports that pages show."""
    root = Path(config.config_file_path).parent
    files.append(File.generated(config, GALLERY, content=gallery(root)))
    pages = list(files.documentation_pages())
    for path in sorted({found[2] for page in pages for found in PICTURE_OUT_OF_DOCS.finditer(page.content_string)}):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def gallery(root: Path) -> str:
    """Return the index of the committed reports as a page of the site, which has their pictures but not the reports."""
    text = REPORT_IN_INDEX.sub(r"\1", (root / INDEX).read_text(encoding="utf-8"))
    title, _, rest = text.partition("\n\n")
    where = f"The reports themselves are in `{INDEX.rpartition('/')[0]}/examples/` of the repository."
    return "\n\n".join([title, where, rest.replace("](examples/", "](../reports/examples/")])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show pictures from the site; name any other file of the repository instead of linking to it."""
    markdown = markdown.replace(f"](../{INDEX})", f"]({GALLERY})")
    return LINK_OUT_OF_DOCS.sub(r"\1 (`\2`)", PICTURE_OUT_OF_DOCS.sub(r"\1(\2)", markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Leave away the roles of reStructuredText in docstrings; what follows them is set as code."""
    return ROLE.sub("", html)
