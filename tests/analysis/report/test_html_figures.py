"""Figures inside the page: their notes, what a screen reader is told, and colours that are seen on both grounds."""

import dataclasses
import functools
import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis.report.drawing import Drawing, Note
from analysis.report.forest import Dot, ForestCell, ForestRow, forest_figure
from analysis.report.forms import forms
from analysis.report.html.figures import Figures
from analysis.report.html.page import asset
from analysis.report.markup import one_line
from analysis.report.page import Report, report_of
from tests.analysis.report.test_forest import MARGIN, REFERENCE, cell, row
from tests.analysis.report.test_forms import PNG
from tests.analysis.report.test_markup import HOSTILE
from tests.harness import pages
from tests.harness.paths import REPOSITORY
from tests.harness.studies import in_memory, trial

SVG = "{http://www.w3.org/2000/svg}"
SEED = Note("residual=false, seed 1: PSNR 28.410 dB, run 0123abcd0123", "runs-0123456789ab")


def drawn(mean: Note, seed: Note = SEED, far: bool = False) -> Drawing:
    """A forest of one change with one seed; ``far`` beyond the axis, where a mark has three parts."""
    own = cell(-9.0 if far else -0.5, "worse")
    noted = ForestCell(own.estimate, own.outcome, (Dot(-9.02 if far else -0.49, note=seed),), mean)
    rest = [row(f"change {index}", cell(0.1 * index)) for index in range(5 if far else 0)]
    return forest_figure([*rest, ForestRow("a change", {"Set5": noted})], ["Set5"], MARGIN, REFERENCE)


MEAN = Note("a change, Set5: -0.500 [-0.600, -0.400] dB, worse, 3 seeds a cell", "runs-0123456789ab")


@functools.cache
def figure() -> Drawing:
    """The forest with both notes."""
    return drawn(MEAN)


def svg_of(drawing: Drawing) -> bytes:
    assert drawing.svg is not None
    return drawing.svg


def inline(*drawings: Drawing) -> list[ElementTree.Element]:
    figures = Figures()
    texts = [figures.inline(svg_of(each), f"figure-{number}", "A forest") for number, each in enumerate(drawings)]
    return list(map(ElementTree.fromstring, texts))


def marks(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("data-note")]


class TestNotes:
    def test_a_mark_has_its_note_as_title_and_the_place_of_its_runs(self) -> None:
        found = [
            (mark.findtext(f"{SVG}title"), mark.get("data-runs"))
            for mark in marks(ElementTree.fromstring(svg_of(figure())))
        ]
        assert Counter(found) == {(MEAN.text, MEAN.runs): 2, (SEED.text, SEED.runs): 1}

    def test_the_parts_of_a_mark_have_one_number_and_numbers_follow_the_drawing(self) -> None:
        found = [
            (mark.findtext(f"{SVG}title"), mark.get("data-note"))
            for mark in marks(ElementTree.fromstring(svg_of(drawn(MEAN, far=True))))
        ]
        assert set(found) == {(MEAN.text, "1"), (SEED.text, "2")}
        assert Counter(found)[MEAN.text, "1"] > 1

    def test_notes_change_no_pixel(self) -> None:
        assert drawn(Note(""), Note("")).png == figure().png

    def test_the_same_notes_give_the_same_bytes(self) -> None:
        assert drawn(MEAN).svg == figure().svg

    def test_a_note_of_any_name_is_text(self) -> None:
        names = [*HOSTILE, "</title></g><script>", "$x$", "\ud800 \x00 \ufffe", "two\nlines"]
        own = cell(-0.5)
        rows = [ForestRow("a change", {"Set5": dataclasses.replace(own, note=Note(name))}) for name in names]
        root = ElementTree.fromstring(svg_of(forest_figure(rows, ["Set5"], MARGIN)))
        found = {str(mark.findtext(f"{SVG}title")) for mark in marks(root)}
        assert found == {one_line(name) for name in names if name}
        assert not list(root.iter(f"{SVG}script"))


class TestElements:
    def test_a_figure_of_marks_is_a_group_that_reads_each_mark_once(self) -> None:
        (root,) = inline(figure())
        assert (root.get("role"), root.get("aria-label")) == ("group", "A forest")
        told = [(mark.findtext("title"), mark.get("role"), mark.get("aria-hidden")) for mark in marks(root)]
        assert Counter(told) == {
            (MEAN.text, "img", None): 1,
            (MEAN.text, None, "true"): 1,
            (SEED.text, "img", None): 1,
        }

    def test_a_figure_without_marks_is_one_image(self) -> None:
        (root,) = inline(drawn(Note(""), Note("")))
        assert root.get("role") == "img"

    def test_no_element_has_a_style_that_the_policy_would_refuse(self) -> None:
        (root,) = inline(figure())
        assert not [element for element in root.iter() if element.tag == "style" or "style" in element.attrib]

    def test_figures_share_outlines_and_every_reference_leads_somewhere(self) -> None:
        roots = inline(figure(), figure(), drawn(Note("another")))
        names = [element.attrib["id"] for root in roots for element in root.iter() if "id" in element.attrib]
        assert len(names) == len(set(names))
        values = [value for root in roots for element in root.iter() for value in element.attrib.values()]
        referred = {found for value in values for found in re.findall(r"^#(.{7,})|url\(#(.+)\)", value)}
        assert {one or other for one, other in referred} < set(names)
        first, second, _ = (
            sum(element.tag == "path" and "id" in element.attrib for element in root.iter()) for root in roots
        )
        assert first > 20
        assert second == 0

    def test_places_are_rounded_and_scales_are_not(self) -> None:
        content = (
            b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M 1.23456 -0.001 L 2 3.5"'
            b' transform="translate(0.123456 7) scale(0.015625)"/></svg>'
        )
        found = ElementTree.fromstring(Figures().inline(content, "figure-1", "")).find("path")
        assert found is not None
        assert found.attrib == {"d": "M 1.23 -0 L 2 3.5", "transform": "translate(0.12 7) scale(0.015625)"}

    @pytest.mark.parametrize("content", [b"", b"<svg", b"<html/>", b"<svg/>"])
    def test_what_is_no_svg_is_refused(self, content: bytes) -> None:
        with pytest.raises(ValueError, match="not an SVG"):
            Figures().inline(content, "figure-1", "")

    def test_the_page_saves_its_own_svg_instead_of_holding_it_twice(self) -> None:
        page = "# Study\n\n![Effects](effects.png)\n\n[as SVG](effects.svg)\n\n[data](effects.csv)\n"
        files = {"report.md": page.encode(), "effects.png": PNG, "effects.svg": svg_of(figure()), "effects.csv": b"a\n"}
        html = forms(files)["report.html"].decode()
        (button,) = re.findall(r"<button[^>]*data-figure[^>]*>.*?</button>", html)
        (name,) = re.findall(r'<svg [^>]*id="([^"]*)"', html)
        assert f'data-figure="{name}"' in button
        assert 'data-name="effects.svg"' in button
        assert " hidden" in button
        assert "image/svg+xml;base64" not in html
        assert 'href="data:text/csv' in html


# ---- what the notes of a report say ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    """Three cells under three seeds each, one of which collapsed; MLflow has the runs of the first two seeds."""
    cells: list[tuple[dict[str, Any], tuple[float, ...]]] = [
        ({}, (31.6, 31.6123456, 31.65)),
        ({"residual": False}, (30.0, 30.01, 20.0)),
        ({"bn": "post", "align": 130}, (31.1, 31.2, 31.3)),
    ]
    study = in_memory([trial(seed, psnr, **levels) for levels, own in cells for seed, psnr in enumerate(own)])
    runs = [f"{'ab'[seed]}{'0123456789abcdef' * 2}"[:32] if seed < 2 else "" for seed in study.trials["seed"]]
    return report_of(dataclasses.replace(study, trials=study.trials.assign(run_id=runs)))


def notes(report: Report, name: str = "effects.svg") -> list[str]:
    root = ElementTree.fromstring(report.files[name])
    return list(dict.fromkeys(str(mark.findtext(f"{SVG}title")) for mark in marks(root)))


def row_of(report: Report, change: str) -> list[str]:
    """The row of a change in the first table of a report."""
    table = pages.Report.of(dict(report.files)).first_table
    assert table is not None
    rows = [list(map(pages.plain, row.values())) for row in table.dicts()]
    return next(row for row in rows if row[0] == change)


class TestReport:
    def test_a_seed_has_its_score_its_difference_and_its_run(self, report: Report) -> None:
        (found,) = [text for text in notes(report) if "residual=false" in text and "seed 1" in text]
        assert found.endswith(", Set5, seed 1: PSNR 30.010 dB, -1.611 dB from the mean of "
                              "residual=true bn=none align=auto, run b0123456789a")  # fmt: skip

    def test_a_seed_says_that_it_collapsed_and_that_mlflow_has_no_run(self, report: Report) -> None:
        (found,) = [text for text in notes(report) if "residual=false" in text and "seed 2" in text]
        assert ", seed 2: collapsed, PSNR 20.000 dB, " in found
        assert found.endswith(", not in MLflow")

    def test_a_mean_has_the_numbers_and_the_verdict_of_the_table(self, report: Report) -> None:
        change, number, verdict, *_ = row_of(report, "BatchNorm after the convolution added")
        assert f"{change}, Set5: {number} dB, {verdict}, 3 seeds a cell" in notes(report)

    def test_beside_a_risk_of_collapse_it_is_without_the_collapsed_as_in_the_table(self, report: Report) -> None:
        change, number, verdict, *_ = row_of(report, "Without the residual")
        assert number == "-1.616 without the collapsed"
        assert f"{change}, Set5: -1.616 dB without the collapsed, {verdict}" in notes(report)

    def test_the_runs_of_a_mark_are_on_the_page(self, report: Report) -> None:
        led = {mark.get("data-runs") for mark in marks(ElementTree.fromstring(report.files["effects.svg"]))}
        assert len(led) == 3
        assert all(f'<a id="{place}"></a>' in report.files["report.md"].decode() for place in led)


# ---- colours ---------------------------------------------------------------------------------------------------------

AREAS = {"#ffffff", "#f6f6f6", "#e6e6e6", "#dbdbdb", "#dddddd", "#b8b8b8"}
"""Grounds, grids and the areas of streams, which have edges: what is no mark."""


def pair(value: str) -> tuple[str, str]:
    """The colours on the light and on the dark ground that a value of the page's style stands for."""
    if match := re.fullmatch(r"light-dark\((#\w{6}), (#\w{6})\)", value):
        return match[1], match[2]
    name = {"currentColor": "--text"}.get(value, value.removeprefix("var(").removesuffix(")"))
    found = re.search(rf"{name}: (light-dark\([^)]*\))", asset("page.css"))
    assert found is not None, value
    return pair(found[1])


def shown(kind: str, colour: str) -> tuple[str, str]:
    """How the page shows a colour of a figure's fill or stroke, on the light and on the dark ground."""
    own = re.search(rf'^\[{kind}="{colour}"\] {{ {kind}: (.*); }}$', asset("figures.css"), re.MULTILINE)
    return pair(own[1]) if own else (colour, colour)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def used() -> set[tuple[str, str]]:
    """Every colour of a fill or stroke in the figures of the shipped reports."""
    figures = (REPOSITORY / "reports" / "examples").glob("*/*.svg")
    return {each for path in figures for each in re.findall(r"\b(fill|stroke): (#\w{6})", path.read_text("utf-8"))}


class TestColours:
    def test_every_mark_is_seen_on_both_grounds(self) -> None:
        palette = re.findall(r"'([0-9A-F]{6})'", (REPOSITORY / "analysis/report/style.mplstyle").read_text("utf-8"))
        assert len(palette) == 7
        colours = used() | {(kind, f"#{colour.lower()}") for kind in ("fill", "stroke") for colour in palette}
        grounds = pair("var(--page)")
        faint = {
            (kind, colour, ground): round(value, 2)
            for kind, colour in sorted(colours)
            if colour not in AREAS
            for own, ground in zip(shown(kind, colour), grounds, strict=True)
            if (value := contrast(own, ground)) < 3
        }
        assert faint == {}

    def test_text_is_read_on_both_grounds(self) -> None:
        grounds = pair("var(--page)")
        assert all(contrast(own, ground) >= 4.5 for own, ground in zip(pair("var(--text)"), grounds, strict=True))

    def test_what_is_white_is_the_ground(self) -> None:
        assert shown("fill", "#ffffff") == pair("var(--page)")

    def test_colours_stay_different_on_each_ground(self) -> None:
        palette = [colour for kind, colour in sorted(used()) if kind == "fill" and colour not in AREAS]
        for ground in (0, 1):
            assert len({shown("fill", colour)[ground] for colour in palette}) == len(palette)

    def test_a_colour_is_found_where_a_marker_is_used(self) -> None:
        # Elements that are used have no ancestor in the figure that a rule could ask for.
        rules = re.findall(r"^.*\[(?:fill|stroke)=.*$", asset("figures.css"), re.MULTILINE)
        assert rules
        assert all(rule.startswith("[") for rule in rules)
