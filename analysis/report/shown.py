"""The tables of a page as its reader sees them, and each as CSV."""

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Sequence

from markdown_it.token import Token

from analysis.report.markup import csv_cell

MOST_ANCHOR_LETTERS = 100  # it also names a file

PLACE = re.compile(r'<a id="[\w.-]+"></a>')
"""A link target of the page, which paper does not have."""


@dataclasses.dataclass(frozen=True)
class ShownTable:
    """A table of the page under its heading, as inline tokens; ``right`` are the columns that are flush right.

    ``first_line`` is the number of its first line on the page.
    """

    heading: str
    name: str
    rows: tuple[tuple[Token, ...], ...]
    right: frozenset[int]
    first_line: int

    @functools.cached_property
    def texts(self) -> list[list[str]]:
        """The texts of the cells below the header, row by row."""
        return [[plain(cell) for cell in row] for row in self.rows[1:]]

    @functools.cached_property
    def csv_lines(self) -> list[str]:
        """The rows as lines of CSV, the header first."""
        header = [plain(cell) for cell in self.rows[0]]
        return [csv_line(texts) for texts in (header, *self.texts)]


def shown_tables(tokens: Sequence[Token]) -> list[ShownTable]:
    """Return the tables of a page, named by their number and the heading above; captions name its chapter too."""
    found: list[ShownTable] = []
    headings = {"h2": "Report"}
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            headings = {level: text for level, text in headings.items() if "h1" < level < token.tag}
            headings[token.tag] = plain(tokens[position + 1])
        elif token.type == "table_open":
            name = f"{len(found) + 1:02d}-{slug(list(headings.values())[-1])}"
            found.append(shown_table(tokens, position, name, ". ".join(headings.values())))
    return found


def shown_table(tokens: Sequence[Token], start: int, name: str, heading: str) -> ShownTable:
    rows: list[list[Token]] = []
    right = set()
    for token, inline in zip(tokens[start:], tokens[start + 1 :], strict=False):
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            if "right" in str(token.attrGet("style")):
                right.add(len(rows[-1]))
            rows[-1].append(inline)
    first_line = (tokens[start].map or [0])[0]
    return ShownTable(heading, name, tuple(tuple(row) for row in rows), frozenset(right), first_line)


def slug(text: str) -> str:
    """Make an anchor of a heading: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower())[:MOST_ANCHOR_LETTERS].strip("-") or "part"


def plain(token: Token) -> str:
    texts = (child for child in token.children or [] if child.type in ("text", "code_inline", "html_inline"))
    return "".join(child.content for child in texts if not is_place(child))


def is_place(token: Token) -> bool:
    """Tell whether a token is a link target, or the end of one, and not text."""
    return token.type == "html_inline" and PLACE.fullmatch(token.content) is not None


def as_csv(table: ShownTable) -> str:
    return "".join(f"{line}\n" for line in table.csv_lines)


def csv_line(texts: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(map(csv_cell, texts))
    return buffer.getvalue()
