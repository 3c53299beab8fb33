"""The page in HTML: the Markdown of a report with its figures, pictures and data inside.

The page loads nothing, and its policy has the browser refuse everything that is not inside. Without JavaScript it is
complete; the scripts beside this module add to it. ``templates/page.html.j2`` is its frame, ``page.css`` its style.
"""

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from analysis.report.html.details import Details
from analysis.report.html.figures import Figures
from analysis.report.html.libraries import datatables, with_library
from analysis.report.html.tables import is_sorted, prepare_tables
from analysis.report.html.viewer import viewer
from analysis.report.latex import LatexTable
from analysis.report.shown import ShownTable, plain, slug
from analysis.report.words import environment

ASSETS = Path(__file__).parent
SCRIPTS: Sequence[str] = ("page.js", "viewer.js", "figures.js")
"""The scripts of the page, in their order. The one that sorts tables comes after them, on pages with such tables."""

STYLES: Sequence[str] = ("page.css", "viewer.css", "figures.css")
"""The style sheets of the page, in their order; the page has one style, made of all of them."""

LARGEST_DATA = 2**18
"""The most bytes of a CSV or SVG inside the page; a larger one is linked, as a page of many megabytes opens slowly."""

MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}


def page_of(
    markdown: MarkdownIt,
    tokens: list[Token],
    tables: Sequence[ShownTable],
    latex: Sequence[LatexTable],
    files: Mapping[str, bytes],
    details: Details,
) -> str:
    """Render the tokens of ``files["report.md"]`` as HTML; they are changed on the way. ``tables`` are its tables."""
    known = prepare_tables(tokens, tables, latex, files["report.md"].decode(), details)
    embed(tokens, files, details)
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    headings: list[Heading] = []

    def with_anchor(match: re.Match[str]) -> str:
        text = html.unescape(re.sub("<[^>]*>", "", match[2]))
        name, taken = slug(text), sum(slug(other.text) == slug(text) for other in headings)
        headings.append(Heading(int(match[1]), f"{name}-{taken + 1}" if taken else name, text))
        anchor = f'<a class="anchor" href="#{headings[-1].id}" aria-label="Link to this heading">#</a>'
        return f'<h{match[1]} id="{headings[-1].id}">{match[2]}{anchor}</h{match[1]}>'

    body = re.sub(r"<h(\d)>(.*?)</h\1>", with_anchor, body)
    first, end, rest = body.rpartition("</h1>\n")
    values = {"headings": headings, "first": Markup(first + end), "body": Markup(rest), "tables": Markup(known)}
    style, scripts = "".join(map(asset, STYLES)), [asset(name) for name in SCRIPTS]
    library = datatables() if any(map(is_sorted, tables)) else None
    modules = [with_library(library, asset("tables.js"))] if library else []
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            style=Markup(style),
            style_hash=digest(style),
            scripts=[Markup(script) for script in scripts],
            modules=[Markup(script) for script in modules],
            script_hashes=[digest(script) for script in (*scripts, *modules)],
            libraries=[library.made_of] if library else [],
            **values,
        )
    )


def asset(name: str) -> str:
    return ASSETS.joinpath(name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the SHA-256 of an inline style or script, as a policy states it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of the page and its anchor."""

    level: int
    id: str
    text: str


def embed(tokens: Sequence[Token], files: Mapping[str, bytes], details: Details) -> None:
    """Embed the files that the page links to; a picture that cannot be embedded becomes its description.

    A figure becomes the elements of its SVG, and a strip of pictures a viewer of them. The alignment of a cell becomes
    a class, because the policy of the page allows no style but that of its head.
    """
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if any(child.type == "image" and child.attrGet("src") in details.strips for child in token.children or []):
            before.hidden = after.hidden = True  # the paragraph of a strip, which cannot hold a viewer
    figures, drawn = Figures(), dict[str, str]()
    link = "a"
    for number, token in enumerate(every(tokens)):
        if token.type == "image":
            name, description = str(token.attrGet("src")), plain(token)
            vector = f"{name.removesuffix('.png')}.svg"
            if name in details.strips:
                replace_by(token, viewer(details.strips[name]))
            elif vector in files:
                drawn[vector] = f"figure-{number}"
                replace_by(token, figures.inline(files[vector], drawn[vector], description))
            elif (source := address(name, files)).startswith("data:"):
                token.attrSet("src", source)
            else:
                token.type, token.content = "text", description
        elif token.type == "link_open":
            name = str(token.attrGet("href"))
            link = "button" if name in drawn else "a"
            if name in drawn:
                # The page has it already; a script saves it.
                token.tag, token.attrs = "button", {"type": "button", "hidden": "", "data-figure": drawn[name]}
                token.attrSet("data-name", name)
            elif name in files:
                token.attrSet("href", address(name, files))
                token.attrSet("download", name)
        elif token.type == "link_close":
            token.tag = link
        elif token.type in ("th_open", "td_open") and token.attrs.pop("style", ""):
            token.attrSet("class", "right")


def replace_by(token: Token, content: str) -> None:
    """Make a token of the page into HTML that the report wrote."""
    token.type, token.tag, token.content, token.children = "html_inline", "", content, None


def every(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from every(token.children or [])


def address(name: str, files: Mapping[str, bytes]) -> str:
    """Return the data URI of a file, or its name if it does not exist or is too large."""
    content, media = files.get(name), MEDIA.get(Path(name).suffix)
    if content is None or media is None or (media != "image/png" and len(content) > LARGEST_DATA):
        return name
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
