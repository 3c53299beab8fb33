r"""A table of the page for LaTeX with ``booktabs``, laid out so that it fits the page of a plain article.

The rule, for a text of 345 x 550 pt, which is the plain article's in 10 pt; wider ones fit all the more:

1. A column with a text of more than 36 letters is a paragraph of lines; words too long for it may be broken.
2. The type is the largest of 10, 9, 8 and 7 pt at which the table is as wide as the text at most.
3. Where 7 pt is too wide, the page is turned, and the type is again the largest that fits.
4. Where that is too wide, the columns go on in a second block and more, each of which begins with the first columns,
   those that name the row.
5. A heading that is longer than what stands below it is broken into lines.
6. A table that is too high for a page is a ``longtable``, which goes on over pages.

Widths are reckoned from the number of letters and not measured, a little too wide to be safe.
"""

import dataclasses
import functools
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from markdown_it.token import Token

PACKAGES = "booktabs, array, longtable and pdflscape, and fontenc with T1"
"""What a document must load."""

TEXT_WIDTH, TEXT_HEIGHT = 345.0, 550.0
"""The text of an article in pt."""

LINE_LETTERS = 36
"""A column with a longer text than this is a paragraph."""

PARAGRAPH_LETTERS = 26
"""How many letters a paragraph has in a line at least."""

COLUMN_GAP = 8.0
"""What is put between two columns, in pt."""

GAP = rf"\setlength{{\tabcolsep}}{{{COLUMN_GAP / 2:g}pt}}"

CAPTION_HEIGHT = 60.0
"""What caption, rules and space round a table take at most, in pt."""

HEADING_LETTERS = 10
"""A heading has as many letters in a line as what stands below it, and so many at least."""

LONGEST_WORD = 14
"""In a paragraph, longer words that are no plain words may be broken after so many letters."""


@dataclasses.dataclass(frozen=True)
class ShownTable:
    """A table of the page under its heading, as inline tokens; ``right`` are the columns that are flush right."""

    heading: str
    name: str
    rows: tuple[tuple[Token, ...], ...]
    right: frozenset[int]

    @functools.cached_property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """The letters of every text below the headings."""
        return tuple(tuple(len(plain(cell)) for cell in row) for row in self.rows[1:])

    @functools.cached_property
    def longest(self) -> tuple[int, ...]:
        """The letters of the longest text in every column, below its heading."""
        return tuple(max((row[column] for row in self.lengths), default=0) for column in range(len(self.rows[0])))


@dataclasses.dataclass(frozen=True)
class Type:
    """A size of type: LaTeX's name, the width of a letter and the distance of lines in pt."""

    name: str
    letter: float
    leading: float


TYPES = (
    Type("normalsize", 5.4, 12),
    Type("small", 4.9, 11),
    Type("footnotesize", 4.6, 9.5),
    Type("scriptsize", 4.4, 8),
)
"""10, 9, 8 and 7 pt; small letters are broader for their height. Digits take 5.0 of the 5.4 pt, capitals more."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a table is set: its type, whether the page is turned, and the columns of each block."""

    type: Type
    turned: bool
    blocks: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> float:
        """What is there across, in pt."""
        return TEXT_HEIGHT if self.turned else TEXT_WIDTH

    @property
    def height(self) -> float:
        """What is there from top to bottom, in pt."""
        return TEXT_WIDTH if self.turned else TEXT_HEIGHT


def as_latex(table: ShownTable) -> str:
    """A table for LaTeX by the rule above; units stand in the header, as on the page."""
    found = layout(table)
    blocks = [block(table, found, number) for number in range(len(found.blocks))]
    body = "".join(blocks)
    if found.turned:
        body = f"\\begin{{landscape}}\n{body}\\end{{landscape}}\n"
    return f"% Wants the packages {PACKAGES}.\n{body}"


# ---- layout ----------------------------------------------------------------------------------------------------------


def layout(table: ShownTable) -> Layout:
    """The first that fits: each type upright, each with the page turned, and then blocks of columns."""
    columns = tuple(range(len(table.rows[0])))
    for turned in (False, True):
        for kind in TYPES:
            found = Layout(kind, turned, (columns,))
            if natural_width(table, columns, kind) <= found.width:
                return found
    return Layout(TYPES[-1], True, blocks_of(table, TYPES[-1]))


def blocks_of(table: ShownTable, kind: Type) -> tuple[tuple[int, ...], ...]:
    """The columns in blocks that fit the turned page, the columns that name the row in front of each."""
    columns = range(len(table.rows[0]))
    first = min(table.right, default=1) or 1
    names = tuple(columns[:first])
    found: list[tuple[int, ...]] = []
    taken: tuple[int, ...] = ()
    for column in columns[first:]:
        if taken and natural_width(table, (*names, *taken, column), kind) > TEXT_HEIGHT:
            found.append((*names, *taken))
            taken = ()
        taken = (*taken, column)
    return (*found, (*names, *taken))


def natural_width(table: ShownTable, columns: Iterable[int], kind: Type) -> float:
    """How wide these columns are at least, in pt."""
    return sum(letters_across(table, column) * kind.letter + COLUMN_GAP for column in columns)


def letters_across(table: ShownTable, column: int) -> int:
    """How many letters a column has in a line: those of its longest text, or those of a paragraph."""
    heading = max(map(len, heading_lines(table, column)))
    return PARAGRAPH_LETTERS if is_paragraph(table, column) else max(heading, table.longest[column])


def heading_lines(table: ShownTable, column: int) -> list[str]:
    """The heading of a column in lines."""
    most = max(table.longest[column], HEADING_LETTERS)
    return textwrap.wrap(plain(table.rows[0][column]), most, break_long_words=False, break_on_hyphens=False) or [""]


def is_paragraph(table: ShownTable, column: int) -> bool:
    """Whether a column's texts are broken into lines."""
    return table.longest[column] > LINE_LETTERS


def paragraph_letters(table: ShownTable, found: Layout, columns: Sequence[int]) -> int:
    """How many letters a paragraph among these columns has in a line: what is left of the width is shared out."""
    wrapped = [column for column in columns if is_paragraph(table, column)]
    spare = (found.width - natural_width(table, columns, found.type)) / found.type.letter
    longest = max(table.longest[column] for column in wrapped)
    return min(PARAGRAPH_LETTERS + max(0, int(spare / len(wrapped))), longest)


def lines_of(table: ShownTable, columns: Sequence[int], letters: int) -> int:
    """How many lines of type the rows take; words that do not fit leave a quarter of a line empty."""
    return sum(
        max(math.ceil(1.25 * row[column] / letters) if is_paragraph(table, column) else 1 for column in columns)
        for row in table.lengths
    ) + max(len(heading_lines(table, column)) for column in columns)


# ---- text ------------------------------------------------------------------------------------------------------------


def block(table: ShownTable, found: Layout, number: int) -> str:
    """One block of a table, a ``table`` or, where it is too high for that, a ``longtable``."""
    columns = found.blocks[number]
    letters = paragraph_letters(table, found, columns) if any(is_paragraph(table, c) for c in columns) else 1
    kinds = "".join(column_kind(table, column, letters, found.type) for column in columns)
    header = guarded(" & ".join(heading(table, column) for column in columns))
    rows = [line(table, row, columns) for row in table.rows[1:]]
    part = f" ({number + 1} of {len(found.blocks)})" if len(found.blocks) > 1 else ""
    label = table.name + (f"-{number + 1}" if part else "")
    caption = rf"\caption{{{escaped(table.heading + part)}}}\label{{tab:{label}}}"
    if lines_of(table, columns, letters) * found.type.leading + CAPTION_HEIGHT > found.height:
        return long_block(found.type, kinds, caption, [header, *rows])
    lines = [
        *(r"\begin{table}", r"\centering", rf"\{found.type.name}{GAP}", caption, r"\smallskip"),
        *(rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
        *(r"\end{tabular}", r"\end{table}"),
    ]
    return "\n".join(lines) + "\n"


def long_block(kind: Type, kinds: str, caption: str, rows: Sequence[str]) -> str:
    """A block that goes on over pages, with its header on each."""
    header, *body = rows
    lines = [
        *(rf"\begingroup\{kind.name}{GAP}", rf"\begin{{longtable}}{{{kinds}}}"),
        *(rf"{caption}\\", r"\toprule", header, r"\midrule", r"\endfirsthead"),
        *(r"\toprule", header, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"),
        *body,
        *(r"\end{longtable}", r"\endgroup"),
    ]
    return "\n".join(lines) + "\n"


def column_kind(table: ShownTable, column: int, letters: int, kind: Type) -> str:
    """What ``tabular`` calls a column: flush left or right, or a paragraph of a width."""
    if is_paragraph(table, column):
        return rf">{{\raggedright\arraybackslash}}p{{{letters * kind.letter:.1f}pt}}"
    return "r" if column in table.right else "l"


def heading(table: ShownTable, column: int) -> str:
    """The heading of a column, its lines above each other."""
    lines = [escaped(text) for text in heading_lines(table, column)]
    side = "r" if column in table.right and not is_paragraph(table, column) else "l"
    stacked = r"\\".join(lines)
    return lines[0] if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{stacked}\end{{tabular}}"


def line(table: ShownTable, row: Sequence[Token], columns: Iterable[int]) -> str:
    """A row."""
    return guarded(" & ".join(latex(row[column], broken=is_paragraph(table, column)) for column in columns))


def guarded(row: str) -> str:
    """A row with its end; LaTeX takes a bracket or a star after the end of the row before for an argument of that."""
    return ("{}" if row[:1] in ("[", "*") else "") + row + r" \\"


PLACE = re.compile(r'<a id="[\w.-]+">|</a>')
"""A place that links of the page lead to; paper has none."""

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
"""What LaTeX needs for a letter that it does not take as it is."""


def latex(cell: Token, *, broken: bool = False) -> str:
    """The content of a table's cell for LaTeX; with ``broken`` its long words may go on in the next line."""
    parts = []
    for child in cell.children or []:
        if is_place(child):
            continue
        text = breakable(child.content) if broken else escaped(child.content)
        parts.append(rf"\texttt{{{text}}}" if child.type == "code_inline" else MARKS.get(child.type) or text)
    return signed("".join(parts))


def breakable(text: str) -> str:
    """Escaped text whose long words may be broken after a mark between letters, or else after so many letters.

    A word of letters alone is left to LaTeX, which knows its syllables.
    """
    return "".join(word if word.isspace() else broken_word(word) for word in re.split(r"(\s+)", text))


def broken_word(word: str) -> str:
    """One word, with the places where it may be broken."""
    if len(word) <= LONGEST_WORD or (word.isalpha() and len(word) < PARAGRAPH_LETTERS):
        return escaped(word)
    marks = "].,=:/_)-"
    pieces = re.findall(rf"[^{re.escape(marks)}]{{1,{LONGEST_WORD}}}[{re.escape(marks)}]?|.", word)
    return r"\allowbreak{}".join(escaped(piece) for piece in pieces)


def escaped(text: str) -> str:
    """Text in which LaTeX finds no command, ligature or letter that it does not know."""
    return "-{}".join("".join(letter_for(letter) for letter in part) for part in re.split(r"-(?=-)", text))


def letter_for(letter: str) -> str:
    """One letter; of one that is not in T1 its number."""
    if letter in LETTERS:
        return LETTERS[letter]
    known = letter.isascii() or ("\u00c0" <= letter <= "\u00ff" and unicodedata.category(letter).startswith("L"))
    return letter if known else f"[U+{ord(letter):04X}]"


def signed(text: str) -> str:
    """Text in which the hyphen before a number is a minus sign."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)


def plain(token: Token) -> str:
    """The text of an inline token, without any mark."""
    texts = (child for child in token.children or [] if child.type in ("text", "code_inline", "html_inline"))
    return "".join(child.content for child in texts if not child.meta.get("ours") and not is_place(child))


def is_place(token: Token) -> bool:
    """Whether a token is no text but a place that links lead to, or the end of one."""
    return token.type == "html_inline" and PLACE.fullmatch(token.content) is not None
