"""A report in other forms: one self-contained HTML file, and CSV and LaTeX of every table that it shows.

All of them follow from the page, its files and their details, byte for byte. :mod:`analysis.report.html` makes the
HTML.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from analysis.report.html.details import Details
from analysis.report.html.page import page_of
from analysis.report.latex import as_latex
from analysis.report.shown import PLACE, as_csv, shown_tables
from analysis.study.experiment import is_run_of
from bbcu.errors import BbcuError
from bbcu.files import replacing

PAGE, HTML, TABLES = "report.md", "report.html", "tables"

OWN_LINE = re.compile(r"</?details>|<summary>[^<>&]*</summary>")
"""The lines of HTML that a page has, besides :data:`PLACE` inside a line; all other angle brackets are text."""

OWN_ADDRESS = re.compile(r"#[\w-]+|[\w.-]+\.(?:png|svg|csv)", re.ASCII)
"""Where a page links to besides the runs of its experiment: a place on itself, or a file beside it."""


class Parser(MarkdownIt):
    """A parser of the report's Markdown: CommonMark and tables, with no HTML and no links but the report's own."""

    def __init__(self, experiment: str = "") -> None:
        self.experiment = experiment
        super().__init__("commonmark", {"html": False})
        self.enable("table")
        self.block.ruler.before("html_block", "own_line", own_line, {"alt": ["paragraph"]})
        self.inline.ruler.before("html_inline", "own_place", own_place)

    def validateLink(self, url: str) -> bool:
        """Tell whether a link may be one; another one stays text."""
        return OWN_ADDRESS.fullmatch(url) is not None or is_run_of(self.experiment, url)


def own_line(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    text = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    if not OWN_LINE.fullmatch(text):
        return False
    if not silent:
        state.push("html_block", "", 0).content = f"{text}\n"
        state.line = start + 1
    return True


def own_place(state: StateInline, silent: bool) -> bool:
    found = PLACE.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("html_inline", "", 0).content = found[0]
    state.pos = found.end()
    return True


def forms(files: Mapping[str, bytes], details: Details | None = None) -> dict[str, bytes]:
    """Return the other forms of a report by name, made from its page and files, and from what HTML adds to them."""
    details = details or Details()
    parser = Parser(details.experiment)
    tokens = parser.parse(files[PAGE].decode())
    tables = shown_tables(tokens)
    latex = [as_latex(table) for table in tables]
    return {
        HTML: page_of(parser, tokens, tables, latex, files, details).encode(),
        **{f"{TABLES}/{table.name}.csv": as_csv(table).encode() for table in tables},
        **{f"{TABLES}/{table.name}.tex": str(each).encode() for table, each in zip(tables, latex, strict=True)},
    }


def write_forms(files: Mapping[str, bytes], folder: Path, details: Details | None = None) -> list[Path]:
    """Write the other forms of a report beside it and return their paths; remove tables that it no longer has.

    Raises BbcuError if the folder of the tables is a link, since the tables of another folder would be removed.
    """
    found = forms(files, details)
    if (folder / TABLES).is_symlink():
        raise BbcuError(f"{folder / TABLES} is a link: remove it, so that the tables can be written")
    for path in (folder / TABLES).glob("*"):
        if path.suffix in (".csv", ".tex") and f"{TABLES}/{path.name}" not in found:
            path.unlink()
    for name, content in found.items():
        replace(folder / name, content)
    return [folder / name for name in found]


def replace(path: Path, content: bytes) -> None:
    """Replace a file, or a link to one, by a new file; its folder is made if needed."""
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(content)
