"""The tables of the HTML page: what they are sorted and filtered by, what is copied, and the colours of the page."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.report.forms import forms
from analysis.report.html.details import Details
from analysis.report.html.libraries import datatables
from analysis.report.html.page import STYLES, asset
from analysis.report.html.tables import number_of
from bbcu.errors import BbcuError
from tests.analysis.report.test_markup import Reader

ROWS = (
    "| [`bn=pre`](#runs-a) | Set5 | **worse** | -0.510 [-0.535, -0.485] | 2 of 3 [9, 99] % |",
    "| [`bn=post`](#runs-b) | Set14 | undecided | +0.120 | none |",
    "| [`bn=out`](#runs-c) | Set5 | undecided | — | none |",
    "| [x](#runs-a) → [y](#runs-c) | Set14 | **worse** | 1,200.5 | 1 of 3 |",
    "| no link | Set5 |  | not kept | none |",
)
HEAD = ("| Change | Test set | Verdict | PSNR (dB) | Collapsed |", "| --- | --- | --- | ---: | --- |")
CELLS = {
    f"runs-{name}": {"bn": level, "act": "none"} for name, level in zip("abc", ("pre", "post", "out"), strict=True)
}


def page_of(rows: tuple[str, ...] = ROWS, details: Details | None = None) -> str:
    page = "\n".join(["# Study", "", "## Changes", "", *HEAD, *rows, ""])
    return forms({"report.md": page.encode()}, details or Details(CELLS))["report.html"].decode()


def known(page: str) -> dict[str, Any]:
    return dict(Reader(page).known[0])


def test_rows_are_filtered_by_columns_with_few_values_and_by_the_levels_of_their_cells() -> None:
    found = {each["name"]: each["rows"] for each in known(page_of())["filters"]}
    assert found == {
        "Test set": {"Set5": [0, 2, 4], "Set14": [1, 3]},
        "Verdict": {"worse": [0, 3], "undecided": [1, 2]},
        "bn": {"pre": [0, 3], "post": [1], "out": [2, 3]},
    }


def test_a_row_that_is_the_place_of_its_runs_is_about_that_cell() -> None:
    rows = tuple(f'| <a id="runs-{name}"></a>`bn={name}` | Set5 | x | 1 | 2 |' for name in ("a", "b", "c", "a1", "a2"))
    found = {each["name"]: each["rows"] for each in known(page_of(rows))["filters"]}
    assert found == {"bn": {"pre": [0], "post": [1], "out": [2]}}


def test_small_tables_have_no_filters_and_no_library() -> None:
    page = page_of(ROWS[:4])
    assert known(page)["filters"] is None
    assert "data-order" not in page
    assert "itables" not in page
    assert "itables" in page_of()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-0.510 [-0.535, -0.485]", "-0.510"),
        ("+0.989 [+0.883, +1.094] †", "+0.989"),
        ("2 of 3 [9, 99] %", "2"),
        ("1,200.5", "1200.5"),
        ("-1.958 at act=none", "-1.958"),
        ("-71.0 %", "-71.0"),
        ("1e-05", "1e-05"),
        ("same", "0"),
        ("none; before 1 of 3", "0"),
        ("reference", "0"),
        ("—", "missing"),
        ("", "missing"),
        ("risk of collapse", "missing"),
        ("08d9a8ad6c82", "missing"),
        ("1e23f626c9f9", "missing"),
        ("3.11.4", "missing"),
    ],
)
def test_a_cell_is_sorted_by_its_first_number(text: str, wanted: str) -> None:
    assert number_of(text) == wanted


def test_columns_of_numbers_have_sorting_keys_and_columns_of_text_have_none() -> None:
    cells = [attributes for tag, attributes in Reader(page_of()).elements if tag == "td"]
    orders = [attributes.get("data-order") for attributes in cells]
    assert orders[2::4] == ["-0.510", "+0.120", "missing", "1200.5", "missing"]
    assert orders[3::4] == ["2", "0", "0", "1", "0"]
    assert set(orders[0::4] + orders[1::4]) == {None}


def test_what_is_copied_has_no_links_and_no_places() -> None:
    found = known(page_of())
    assert found["markdown"] == [*HEAD, *(re.sub(r"\[(\S*)\]\(\S*\)", r"\1", row) for row in ROWS)]
    assert found["markdown"][2].startswith("| `bn=pre` | Set5 |")
    assert found["csv"][4] == 'x → y,Set14,worse,"1,200.5",1 of 3'
    assert len(found["latex"]["lines"]) == len(found["latex"]["heights"]) == len(ROWS)
    assert len(found["latex"]["pieces"]) == 5


def test_every_table_has_a_caption_of_its_own_and_scopes() -> None:
    page = page_of()
    assert "<caption>Changes</caption>" in page
    scopes = [attributes.get("scope") for tag, attributes in Reader(page).elements if tag == "th"]
    assert scopes == ["col"] * 5 + ["row"] * 5
    text = "# S\n\n## A\n\n| a |\n| --- |\n| 1 |\n\n| b |\n| --- |\n| 2 |\n"
    twice = forms({"report.md": text.encode()})["report.html"].decode()
    assert re.findall("<caption>(.*)</caption>", twice) == ["A, table 1", "A, table 2"]


def test_names_do_not_leave_the_data_of_the_page() -> None:
    hostile = ("</script><script>alert(1)</script>", "<!-- <script>", "]]>")
    rows = tuple(f"| {text.replace('<', chr(92) + '<')} | Set5 | x | 1 | 2 |" for text in hostile * 2)
    cells = {"runs-a": {"</script>": "<!--"}, "runs-b": {"</script>": "<b>"}}
    page = page_of((*rows, *ROWS[:2]), Details(cells))
    data = page.partition('id="Tables">')[2].partition("</script>")[0]
    assert "<" not in data
    found = json.loads(data)[0]
    assert found["csv"][1].startswith("</script><script>alert(1)</script>")
    assert {each["name"]: list(each["rows"]) for each in found["filters"]}["</script>"] == ["<!--", "<b>"]


EXPERIMENT = "https://mlflow.example/#/experiments/7"


def test_a_page_leads_to_the_runs_of_its_experiment_and_nowhere_else() -> None:
    inside = f"{EXPERIMENT}/runs/0a1b"
    others = ("https://evil.example/#/experiments/7/runs/0a1b", f"{EXPERIMENT}/runs/", f"{EXPERIMENT}0/runs/0a1b")
    page = "# S\n\n" + "\n\n".join(f"[run]({address})" for address in (inside, *others)) + "\n"
    for experiment, wanted in ((EXPERIMENT, [inside]), ("", [])):
        html = forms({"report.md": page.encode()}, Details(experiment=experiment))["report.html"].decode()
        assert re.findall(r'href="(http[^"]*)"', html) == wanted


def test_the_library_cannot_end_its_script_and_exports_nothing() -> None:
    script = datatables().script
    assert "</script" not in script.lower()
    assert "<script" not in script.lower()
    assert "<!--" not in script
    assert not re.search(r"\bexport\s*\{", script)
    assert "\r" not in script
    assert "\0" not in script


def test_a_library_that_is_missing_or_another_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "empty")])
    with pytest.raises(BbcuError, match=r"^report\.html needs the package itables, .*: pip install itables$"):
        page_of()
    (tmp_path / "itables" / "html").mkdir(parents=True)
    (tmp_path / "itables" / "html" / "dt_bundle.js").write_text("export{one as two};")
    (tmp_path / "itables-99.dist-info").mkdir()
    (tmp_path / "itables-99.dist-info" / "METADATA").write_text("Name: itables\nVersion: 99\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BbcuError, match=r"^report\.html cannot use itables 99: its script does not export DataTables$"):
        page_of()


# ---- colours ---------------------------------------------------------------------------------------------------------


def palettes() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The variables of the style in light and in dark."""
    found = re.findall(r"--([a-z]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", asset("page.css"))
    return {name: light for name, light, _ in found}, {name: dark for name, _, dark in found}


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG 2 defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_and_controls_stand_out_in_both_themes(palette: Mapping[str, str]) -> None:
    for behind in ("page", "mark", "hover"):
        for text in ("text", "link", "muted"):
            assert contrast(palette[text], palette[behind]) >= 4.5, (text, behind)
    for behind in ("code", "field"):
        assert contrast(palette["text"], palette[behind]) >= 4.5
    for line in ("border", "rule", "link"):
        assert contrast(palette[line], palette["page"]) >= 3, line


def test_the_style_has_no_colour_beside_its_variables() -> None:
    rest = re.sub(r"--[a-z]+: light-dark\([^)]*\);?", "", asset("page.css"))
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;, )}])|rgba?\(|hsla?\(", rest)
    assert "page.css" in STYLES
