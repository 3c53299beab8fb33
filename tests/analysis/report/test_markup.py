"""Texts from elsewhere in each language of a report: whatever they are made of, they are shown as they are."""

import csv
import html.parser
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analysis.report.forms import forms
from analysis.report.frames import as_csv
from analysis.report.markup import Latex, Markdown, code, csv_cell, file_name, joined, one_line
from analysis.report.words import in_markdown, listed

HOSTILE = (
    "!](http:&#47;&#47;evil.example&#47;t.png)![.png",
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/t.png onerror=alert(1)>',
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/t.png)",
    "[a]: http://evil.example/",
    "[a][b] ![a]",
    "<http://evil.example/> www.evil.example",
    "http://evil.example/",
    "`a` ``b",
    "a | b \\| c \\",
    "| a |\n| --- |\n| b |",
    "&#x3c;img src=x&#x3e; &lt;b&gt;",
    "<!-- comment",
    "# heading ##",
    "a #",
    "- item",
    "1. item",
    "> quotation",
    "---",
    "===",
    ":-",
    "```",
    "~~~",
    "*a* __b__ _c_ ~~d~~",
    r"$\input{/etc/passwd}$",
    "<details>",
    '<a id="runs-claims-1"></a>',
    "</td></tr></table>",
    "a\u202eb\u2066c\x1b[31m\x00\x85\u2028d",
    "\udcff",
    "中文 😀",
)

ODD = st.text(st.sampled_from("!?[](){}<>&#x3;:/\\`|*_~\"'$\n\r\t =-+19.)^@abw") | st.characters(), min_size=1)
"""Any text, made of special characters more often than chance would have it."""

PAGE = """# {{ name }}

{{ name }}

## {{ name | code }}

{{ name }} and {{ name | code }}!

- {{ name }}
- Ours:
  - {{ name }}
  - {{ name | code }} ({{ name }})

1. {{ name }}

| {{ name }} | {{ name | code }} |
| --- | ---: |
| {{ name }} | {{ name | code }} |
| {{ [name, name] | listed }} | {{ [name] | join("; ") }} |

**{{ name }}.** [{{ name }}](#runs-{{ name | anchor }})

![{{ name }}](a.png)
"""
"""Every kind of place that a name has in a report."""


class Reader(html.parser.HTMLParser):
    """The elements of a page, with their attributes, the texts between them, its scripts, and its data as JSON."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts = [""]
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.known: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag != "code":
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "code":
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.styles.append(data)
        elif self.cdata_elem != "script":
            self.texts[-1] += data
        elif self.elements[-1][1].get("type") == "application/json":
            self.known = json.loads(data)
        else:
            self.scripts.append(data)


def read(name: str) -> Reader:
    page = in_markdown().from_string(PAGE).render(name=name)
    body = forms({"report.md": page.encode(), "a.png": b""})["report.html"].decode().partition("<body>")[2]
    return Reader(body)


def shape(reader: Reader) -> Iterator[tuple[str, str]]:
    """What a page is made of, but for its texts, descriptions and anchors, and for what is set as code."""
    for tag, attributes in reader.elements:
        if tag != "code":
            others = {name: value for name, value in attributes.items() if name not in ("id", "alt")}
            yield tag, "#" if str(others.get("href", "")).startswith("#") else str(others)


def check(name: str) -> None:
    shown = one_line(name.strip())
    found, harmless = read(name.strip()), read("name")
    assert list(shape(found)) == list(shape(harmless))
    assert [text.strip() for text in found.texts] == [text.strip().replace("name", shown) for text in harmless.texts]
    assert [attributes["alt"] for tag, attributes in found.elements if tag == "img"] == [shown]
    assert found.scripts == harmless.scripts
    assert next(csv.reader(found.known[0]["csv"])) == [csv_cell(shown), csv_cell(shown)]
    for language in ("csv", "markdown"):
        assert len(found.known[0][language]) == len(harmless.known[0][language])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_a_text_wherever_it_is(name: str) -> None:
    check(name)


@hypothesis.given(ODD)
def test_any_text_is_a_text_wherever_it_is(name: str) -> None:
    hypothesis.assume(name.strip())
    check(name)


@hypothesis.given(ODD)
def test_any_text_is_a_text_for_a_reader_that_takes_html_and_any_link(name: str) -> None:
    """GitHub reads the Markdown by rules of its own, so its page does not rest on what our parser refuses."""
    permissive = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    permissive.validateLink = lambda url: True  # type: ignore[method-assign]
    tokens = permissive.parse(in_markdown().from_string(PAGE).render(name=name))
    children = [child for token in tokens for child in (token, *(token.children or []))]
    links = [child.attrs for child in children if child.type in ("link_open", "image")]
    assert [str(link.get("href", link.get("src")))[:6] for link in links] == ["#runs-", "a.png"]
    assert not [child for child in children if child.type.startswith(("html", "s_open"))]


def test_a_forgotten_escape_is_one_too_many_and_not_one_too_few() -> None:
    assert Markdown("**{}** and {}").format("*a*", Markdown("*b*")) == r"**\*a\*** and *b*"
    assert Markdown("*") + "*" == r"*\*"
    assert joined(["[", Markdown("[")], "|") == r"\[\|["
    assert listed(["<", "<"]) == r"\< and \<"
    assert in_markdown().from_string("{{ a ~ b }}{{ a.upper() }}").render(a="[", b="]") == r"\[\]\["


@pytest.mark.parametrize("text", ["-0.5", "+0.120", "x86_64", "sr_x2", "5 % & more", "a > b", "1.5", "no. 7", "C3PO!?"])
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert Markdown.escape(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("a", "`a`", id="plain"),
        pytest.param("a`b``c", "```a`b``c```", id="backticks inside"),
        pytest.param("`", "`` ` ``", id="a backtick"),
        pytest.param("a|b", r"a\|b", id="a bar, which readers of tables disagree on"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_code_holds_what_it_is_given(text: str, wanted: str) -> None:
    assert code(text) == wanted


def test_a_text_commands_latex_nothing() -> None:
    assert Latex.escape(r"$\input{/etc/passwd}$") == r"\$\textbackslash{}input\{/etc/passwd\}\$"
    assert Latex.escape("^^5cinput % & # ~ _") == (
        r"\textasciicircum{}\textasciicircum{}5cinput \% \& \# \textasciitilde{} \_"
    )


@hypothesis.given(ODD)
def test_latex_reads_no_command_but_ours(text: str) -> None:
    rest = re.sub(r"\\(?:[a-z]+\{\}|[&%$#_{}])|\$(?:\\[a-z]+|-)\$", "", Latex.escape(text))
    assert not set(rest.replace("-{}", "")) & set("\\{}$&%#^_")
    assert all(letter.isprintable() for letter in rest)


@pytest.mark.parametrize(
    "text", ["=1+1", "@SUM(A1)", "+A1", "-2+3+cmd|' /C calc'!A0", '=HYPERLINK("http://evil.example")', "\t=1", "-(1)"]
)
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize(
    "text", ["-0.5", "+0.120 ± 0.01", "-0.510 [-0.535, -0.485] worse", "-", "-inf", "1e-05", "a=b"]
)
def test_numbers_with_their_intervals_and_units_stay_as_they_are(text: str) -> None:
    assert csv_cell(text) == text


def test_the_names_in_a_csv_file_are_made_safe_and_its_numbers_are_not() -> None:
    frame = pd.DataFrame({"=a": ["=1", "b\u202e\n", "@c"], "number": [-1.5, 2.0, 3.0]})
    rows = list(csv.reader(io.StringIO(as_csv(frame).decode())))
    assert rows == [["'=a", "number"], ["'=1", "-1.5"], [r"b\u202e ", "2.0"], ["'@c", "3.0"]]


def test_the_cells_of_a_table_are_no_formulas() -> None:
    page = "# Study\n\n## Cells\n\n| =a | +0.5 [one seed] |\n| --- | --- |\n| `=1` | -1\\|x!A0 |\n"
    found = forms({"report.md": page.encode()})["tables/01-cells.csv"].decode()
    assert list(csv.reader(io.StringIO(found))) == [["'=a", "+0.5 [one seed]"], ["'=1", "'-1|x!A0"]]


@hypothesis.given(st.lists(ODD, unique=True))
def test_every_text_gives_the_name_of_a_file_of_its_own(texts: list[str]) -> None:
    taken: list[str] = []
    for text in texts:
        name = file_name(text, taken)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,180}", name)
        assert name not in taken
        taken.append(name)


def test_the_name_of_a_file_is_kept_if_it_can_be() -> None:
    assert file_name("pictures-Set5-ring") == "pictures-Set5-ring"
    assert file_name("a b") != file_name("a_b") == "a_b"
    assert file_name("a_b", ["a_b"]) not in ("a_b", file_name("a b"))
    assert len(file_name("x" * 10_000)) < 150
