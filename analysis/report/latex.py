r"""A table of the page for LaTeX with ``booktabs``, scaled to the width of the line and split if it is too high.

Columns with long texts become paragraphs. LaTeX measures the table itself, so that it fits any page.
"""

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence

from jinja2 import Template
from markdown_it.token import Token

from analysis.report.words import environment

LINE_LETTERS = 44  # a column with a longer text is a paragraph of lines of about this many letters

PARAGRAPH = r">{\raggedright\arraybackslash}p{8cm}"

MOST_LINES = 36  # a table with more lines of text is continued in another one
LONGEST_WORD = 24  # in a paragraph, a longer word may be broken after each stretch of this many letters


@dataclasses.dataclass(frozen=True)
class ShownTable:
    """A table of the page under its heading, as inline tokens; ``right`` are the columns that are flush right."""

    heading: str
    name: str
    rows: tuple[tuple[Token, ...], ...]
    right: frozenset[int]

    @property
    def paragraphs(self) -> frozenset[int]:
        """The columns whose texts are broken into lines."""
        found = {n for row in self.rows[1:] for n, text in enumerate(row) if len(plain(text)) > LINE_LETTERS}
        return frozenset(found)


def as_latex(table: ShownTable) -> str:
    """Return a table for LaTeX; what it needs is said in its first line."""
    wrapped = table.paragraphs
    columns = [PARAGRAPH if n in wrapped else "r" if n in table.right else "l" for n in range(len(table.rows[0]))]
    return template().render(
        caption=escaped(table.heading),
        name=table.name,
        columns="".join(columns),
        header=line(table.rows[0], frozenset()),
        parts=[[line(row, wrapped) for row in rows] for rows in parts_of(table.rows[1:])],
    )


@functools.cache
def template() -> Template:
    """Return the template of a table, whose variables stand in << >> since LaTeX has braces of its own."""
    changed = environment().overlay(variable_start_string="<<", variable_end_string=">>")
    return changed.get_template("table.tex.j2")


def parts_of(rows: Sequence[tuple[Token, ...]]) -> list[list[tuple[Token, ...]]]:
    found: list[list[tuple[Token, ...]]] = [[]]
    lines = 0
    for row in rows:
        taken = max(math.ceil(len(plain(text)) / LINE_LETTERS) or 1 for text in row)
        if found[-1] and lines + taken > MOST_LINES:
            found.append([])
            lines = 0
        found[-1].append(row)
        lines += taken
    return found


def line(row: Sequence[Token], wrapped: frozenset[int]) -> str:
    """Return a row; LaTeX would read a bracket or star at its start as an argument of the row before."""
    text = " & ".join(latex(cell, breakable=n in wrapped) for n, cell in enumerate(row))
    return f"{{}}{text}" if text[:1] in ("[", "*") else text


PLACE = re.compile(r'<a id="[\w.-]+">|</a>')  # a link target of the page, which paper does not have

MARKS = {
    "strong_open": r"\textbf{",
    "em_open": r"\emph{",
    "strong_close": "}",
    "em_close": "}",
    "softbreak": " ",
    "hardbreak": " ",
}

LETTERS = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", "→": r"$\rightarrow$", "±": r"$\pm$", "\u00d7": r"$\times$"},
    **{'"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "†": r"\dag{}", "‡": r"\ddag{}", "…": r"\ldots{}"},
    **{"\u2212": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "\u03c3": r"$\sigma$", "\u00b5": r"$\mu$", "\u00a0": "~"},
    **{"“": "``", "”": "''", "\u2018": "`", "\u2019": "'", "\u2013": "--", "\u2014": "---"},
}
"""The LaTeX of a letter that is not itself in LaTeX."""


def latex(cell: Token, *, breakable: bool) -> str:
    """Return the content of a cell for LaTeX; the hyphen before a number is a minus sign."""
    parts = []
    for child in cell.children or []:
        if not is_place(child):
            text = "".join(pieces(child.content)) if breakable else escaped(child.content)
            parts.append(rf"\texttt{{{text}}}" if child.type == "code_inline" else MARKS.get(child.type) or text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", "".join(parts))


def pieces(text: str) -> Iterator[str]:
    """Yield escaped text in which long words may be broken."""
    for word in re.split(r"(\s+)", text):
        stretches = [word[n : n + LONGEST_WORD] for n in range(0, len(word), LONGEST_WORD)]
        yield r"\allowbreak{}".join(escaped(stretch) for stretch in stretches)


def escaped(text: str) -> str:
    return "-{}".join("".join(letter_for(letter) for letter in part) for part in re.split(r"-(?=-)", text))


def letter_for(letter: str) -> str:
    """Return the LaTeX of one letter, or its number if T1 does not have it."""
    if letter in LETTERS:
        return LETTERS[letter]
    known = letter.isascii() or ("\u00c0" <= letter <= "\u00ff" and unicodedata.category(letter).startswith("L"))
    return letter if known else f"[U+{ord(letter):04X}]"


def plain(token: Token) -> str:
    texts = (child for child in token.children or [] if child.type in ("text", "code_inline", "html_inline"))
    return "".join(child.content for child in texts if not is_place(child))


def is_place(token: Token) -> bool:
    """Tell whether a token is a link target, or the end of one, and not text."""
    return token.type == "html_inline" and PLACE.fullmatch(token.content) is not None
