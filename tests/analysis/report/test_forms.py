"""The page in other forms: HTML that needs nothing, CSV and LaTeX of its tables, and a run that shows them."""

import base64
import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ablations.tracking.client import client_of, experiment_id, finished_runs, search_runs
from analysis.report.archive import recording
from analysis.report.forms import forms, write_forms
from analysis.report.html.page import LARGEST_DATA
from analysis.report.tracked import log_report
from analysis.study.loading import load
from tests.harness.studies import trial, write_study

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGE = """# Study `components`

Words with <class 'ValueError'> in them, *and* `code <x>`.

## What each component is worth

| Factor | Change | Set5 (dB) |
| --- | --- | ---: |
| `residual` | `true` → `false` | -0.510 [-0.535, -0.485] |
| `bn_kind` | 5 % & more \\| less | **+0.120** ± 0.01 |

![Effects](effects.png)

Data: [effects.csv](effects.csv)

## What each component is worth

<details>
<summary>Every trial</summary>

| Cell | Reason |
| --- | --- |
| `a` | loss is not finite <script>alert(1)</script> |

</details>
"""
FILES = {"report.md": PAGE.encode(), "effects.png": PNG, "effects.csv": b"factor,value\nbn,1\n"}


def page(files: Mapping[str, bytes]) -> str:
    return forms(files)["report.html"].decode()


def test_the_html_asks_for_nothing(tmp_path: Path) -> None:
    found = page(FILES)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', found)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in found
    assert "url(" not in found


def test_pictures_data_and_tables_are_inside(tmp_path: Path) -> None:
    found = page(FILES)
    assert base64.b64encode(PNG).decode() in found
    (data,) = re.findall(r'href="data:text/csv;base64,([^"]*)" download="effects.csv"', found)
    assert base64.b64decode(data) == FILES["effects.csv"]
    assert found.count('<div class="table"><table>') == found.count("</table></div>") == 2
    assert '<th scope="col" class="right">' in found


def test_a_figure_is_its_svg_and_has_its_description() -> None:
    found = page({**FILES, "effects.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><g style="fill: none"/></svg>'})
    (figure,) = re.findall(r"<svg .*</svg>", found)
    assert 'class="figure" role="img" aria-label="Effects"' in figure
    assert '<g fill="none" />' in figure
    assert "<img" not in found


def test_data_too_large_to_embed_are_linked_and_a_missing_picture_is_its_description() -> None:
    large = {**FILES, "effects.csv": b"1,2\n" * LARGEST_DATA}
    assert 'href="effects.csv"' in page(large)
    found = page({name: content for name, content in FILES.items() if name != "effects.png"})
    assert "<img" not in found
    assert "<p>Effects</p>" in found


def test_only_the_page_s_own_html_is_html() -> None:
    found = page(FILES)
    assert "<details>" in found
    assert "<summary>Every trial</summary>" in found
    assert "<script>alert" not in found
    assert "&lt;class 'ValueError'&gt;" in found
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in found


def test_every_heading_can_be_linked_to() -> None:
    names = re.findall(r'<h\d id="([^"]+)"', page(FILES))
    assert names == ["study-components", "what-each-component-is-worth", "what-each-component-is-worth-2"]
    assert '<li><a href="#what-each-component-is-worth-2">' in page(FILES)


def test_tables_are_given_as_csv_without_marks() -> None:
    found = forms(FILES)["tables/01-what-each-component-is-worth.csv"].decode()
    assert list(csv.reader(io.StringIO(found))) == [
        ["Factor", "Change", "Set5 (dB)"],
        ["residual", "true → false", "-0.510 [-0.535, -0.485]"],
        ["bn_kind", "5 % & more | less", "+0.120 ± 0.01"],
    ]


def test_tables_are_given_for_booktabs() -> None:
    found = forms(FILES)["tables/01-what-each-component-is-worth.tex"].decode()
    assert r"\begin{tabular}{llr}" in found
    assert r"Factor & Change & Set5 (dB) \\" in found
    assert [rule for rule in (r"\toprule", r"\midrule", r"\bottomrule") if rule in found]
    assert r"\texttt{residual} & \texttt{true} $\rightarrow$ \texttt{false} & $-$0.510 [$-$0.535, $-$0.485] \\" in found
    assert r"\texttt{bn\_kind} & 5 \% \& more \textbar{} less & \textbf{+0.120} $\pm$ 0.01 \\" in found
    assert found.isascii()


def test_the_caption_of_a_table_names_the_part_and_the_heading() -> None:
    text = "# S\n\n## Setting 1: `a_b=1`\n\n### Cells\n\n| A |\n| --- |\n| 1 |\n\n## Last\n\n| A |\n| --- |\n| 2 |\n"
    found = forms({"report.md": text.encode()})
    assert r"\caption{Setting 1: a\_b=1. Cells}" in found["tables/01-cells.tex"].decode()
    assert r"\caption{Last}" in found["tables/02-last.tex"].decode()


def test_tables_of_an_earlier_page_are_taken_away(tmp_path: Path) -> None:
    write_forms(FILES, tmp_path)
    write_forms({"report.md": b"# Nothing\n"}, tmp_path)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == []
    assert (tmp_path / "report.html").is_file()


def test_mlflow_shows_the_report_as_one_run_that_is_no_trial(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    (tmp_path / "report.html").write_text(page(FILES))
    (tmp_path / "first.csv").write_text("1\n")
    paths = {"report.html": tmp_path / "report.html", "tables/first.csv": tmp_path / "first.csv"}
    earlier = log_report(tracking_uri, "components", paths)
    latest = log_report(tracking_uri, "components", paths)
    experiment = experiment_id(tracking_uri, "components")
    runs = search_runs(tracking_uri, experiment)
    assert [run.info.run_id for run in runs if run.info.run_name == "report"] == [latest]
    assert earlier != latest
    client = client_of(tracking_uri)
    assert {file.path for file in client.list_artifacts(latest)} == {"report.html", "tables"}
    assert len(finished_runs(tracking_uri, experiment)) == 1
    assert len(load(tracking_uri, "components", tmp_path).trials) == 1


def test_recording_changes_nothing_and_names_what_was_read(tracking_uri: str, tmp_path: Path) -> None:
    done = trial()
    write_study(tracking_uri, tmp_path, [done], samples=True)
    results, asked = recording(load(tracking_uri, "components", tmp_path))
    assert asked == set()
    assert results.files[done.cell, 0]("samples") is not None
    assert asked == {((done.cell, 0), "samples")}
