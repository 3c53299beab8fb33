"""Names, reasons and paths as text: what they are made of never becomes Markdown, LaTeX, HTML or a formula.

A report shows texts that somebody else chose. The environments of the templates escape every value that is not of the
type of their language, :class:`Markdown` or :class:`Latex`, so a place that nobody thought of is safe too. Only what
the report itself wrote may be given such a type.
"""

import hashlib
import re
import unicodedata
from collections.abc import Container, Iterable
from typing import Any, Self

from markupsafe import Markup

from bbcu.errors import printable


def one_line(text: object) -> str:
    r"""Return a text with single spaces, and with ``\u202e`` for a character that controls how others are shown."""
    return printable(re.sub(r"\s+", " ", str(text)))


class Language(Markup):
    """A text in the language of a report that the report itself wrote; what is put into it is escaped."""

    @classmethod
    def escape(cls, s: Any, /) -> Self:
        """Return a value as text of this language, unless it is in a language already."""
        return cls(s.__html__() if hasattr(s, "__html__") else cls.literal(one_line(s)))

    @classmethod
    def literal(cls, text: str) -> str:
        """Return what shows one line of text as it is."""
        raise NotImplementedError


# ---- Markdown --------------------------------------------------------------------------------------------------------

INLINE = re.compile(
    r"[\\`*\[\]<~|$]"  # code, emphasis, links, HTML, strikethrough, the cells of a table, and formulas on GitHub
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; an underscore inside a word is none
    r"|&(?=[#\w])"  # a character reference
    r"|:(?=//)|(?<=www)\."  # an address, of which GitHub would make a link
    r"|!$"  # a link that follows would be a picture
    r"|(?<= )#(?=#*$)"  # the end of a heading
)

BLOCK = re.compile(r"^ ?(?:\d{1,9}(?=[.)](?: |$))|(?=#{1,6}(?: |$)|>|[-+](?: |$)|-[- ]*$|=[= ]*$|:-))")
"""The start of a text up to the character that would begin a heading, a list, a quotation, a rule or a table."""


class Markdown(Language):
    """Markdown of the report, as CommonMark and GitHub read it."""

    @classmethod
    def literal(cls, text: str) -> str:
        return BLOCK.sub(r"\g<0>\\", INLINE.sub(r"\\\g<0>", text))


def code(text: object) -> Markdown:
    """Set a text as code; one with a bar is set as text, because readers of tables disagree on a bar in code."""
    flat = one_line(text).strip()
    if not flat or "|" in flat:
        return Markdown.escape(flat)
    fence = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    room = " " if "`" in (flat[0], flat[-1]) else ""
    return Markdown(f"{fence}{room}{flat}{room}{fence}")


def joined(words: Iterable[object], separator: str = "") -> Markdown:
    return Markdown.escape(separator).join(map(Markdown.escape, words))


def cells(texts: Iterable[object]) -> Markdown:
    """Separate the cells of a row of a table by bars."""
    return joined(texts, Markdown(" | "))


def anchor(name: str) -> Markdown:
    """Return the part of a link target that a key gives."""
    return Markdown(re.sub(r"[^A-Za-z0-9-]", "_", name))


# ---- names of files --------------------------------------------------------------------------------------------------

MOST_FILE_LETTERS = 100  # of a name taken from another; file systems take 255 bytes, and a prefix and an ending follow


def file_name(name: str, taken: Container[str] = ()) -> str:
    """Make of any text the name of a file and of a link to it, other than those taken.

    One that loses something, or is taken, gets a hash of the whole text.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:MOST_FILE_LETTERS]
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()
    hashed = (f"{safe}-{digest[:length]}" for length in range(12, len(digest)))
    return next(found for found in (*([safe] if safe == name else []), *hashed) if found not in taken)


# ---- LaTeX -----------------------------------------------------------------------------------------------------------

LETTERS = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", "→": r"$\rightarrow$", "±": r"$\pm$", "\u00d7": r"$\times$"},
    **{'"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "†": r"\dag{}", "‡": r"\ddag{}", "…": r"\ldots{}"},
    **{"\u2212": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "\u03c3": r"$\sigma$", "\u00b5": r"$\mu$", "\u00a0": "~"},
    **{"“": "``", "”": "''", "\u2018": "`", "\u2019": "'", "\u2013": "--", "\u2014": "---"},
}
"""The LaTeX of a letter that is not itself in LaTeX."""


class Latex(Language):
    """LaTeX of the report; it needs the fonts of T1."""

    @classmethod
    def literal(cls, text: str) -> str:
        # Two hyphens would become a dash.
        return "-{}".join("".join(letter_for(letter) for letter in part) for part in re.split(r"-(?=-)", text))


def letter_for(letter: str) -> str:
    """Return the LaTeX of one letter, or its number if T1 does not have it."""
    if letter in LETTERS:
        return LETTERS[letter]
    known = letter.isascii() or ("\u00c0" <= letter <= "\u00ff" and unicodedata.category(letter).startswith("L"))
    return letter if known else f"[U+{ord(letter):04X}]"


# ---- CSV -------------------------------------------------------------------------------------------------------------

FORMULA = re.compile(r"\s*[=@]|\s*[-+](?!$|inf$|[\d.][^(|!@\"']*$)")
"""Texts that a spreadsheet may compute: all but numbers, and numbers with an interval or a unit."""


def csv_cell(text: str) -> str:
    """Return a text as the cell of a CSV file, with an apostrophe before what a spreadsheet may take for a formula."""
    flat = one_line(text)
    return f"'{flat}" if FORMULA.match(flat) else flat
