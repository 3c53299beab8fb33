"""A committed report is what its committed results give, or the check says where it is not."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread, imsave

from ablations.tracking.client import client_of, experiment_id, search_runs
from analysis.__main__ import main
from analysis.report.archive import ARCHIVE, opened
from analysis.report.check import MOST_PIXEL_DIFFERENCE, difference, first_difference, text_difference
from analysis.report.page import write_all
from analysis.study.loading import load, margin_of
from bbcu.errors import ConfigError
from tests.harness.paths import REPOSITORY
from tests.harness.ruled import cell, rule_on_disk
from tests.harness.studies import Trial, counted, trial, write_study


def two_cells() -> list[Trial]:
    found = [trial(seed, 30.0 + 0.1 * seed - drop, residual=drop == 0) for seed in (0, 1) for drop in (0.0, 0.5)]
    return [counted(each, 1.0, 64.0) for each in found]


@pytest.fixture(scope="module")
def written(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace in which the command has written a report."""
    place = tmp_path_factory.mktemp("written")
    shutil.copyfile(migrated_database, place / "mlflow.db")
    uri = f"sqlite:///{place}/mlflow.db"
    left_out = {"levels": {"residual": True, "bn": "out", "align": "auto"}, "setting": trial().setting, "reason": "why"}
    write_study(uri, place / "outputs", two_cells(), planned=[trial(5)], left_out=[left_out], samples=True)
    places = ["--tracking-uri", uri, "--outputs", f"{place}/outputs", "--reports", f"{place}/reports"]
    main(["components", *places])
    return place


@pytest.fixture
def report(written: Path, tmp_path: Path) -> Path:
    """The folder of a report that the command has written, to be spoilt."""
    return Path(shutil.copytree(written / "reports" / "components", tmp_path / "reports" / "components"))


def test_the_command_writes_every_form_and_shows_it_in_mlflow(written: Path) -> None:
    names = {path.name for path in (written / "reports" / "components").iterdir()}
    assert {"report.md", "report.html", "tables", "results.zip"} <= names
    uri = f"sqlite:///{written}/mlflow.db"
    runs = search_runs(uri, experiment_id(uri, "components"), "tags.kind = 'report'")
    assert [run.info.run_name for run in runs] == ["report"]
    shown = {file.path for file in client_of(uri).list_artifacts(runs[0].info.run_id)}
    assert names <= shown


def test_the_archive_gives_the_study_back(written: Path) -> None:
    results = load(f"sqlite:///{written}/mlflow.db", "components", written / "outputs")
    with opened(written / "reports" / "components" / ARCHIVE) as archive:
        back = archive.results
        assert back.trials.equals(results.trials)
        assert back.trials.dtypes.equals(results.trials.dtypes)
        assert back.curves.equals(results.curves)
        assert (back.left_out, back.factors) == (results.left_out, results.factors)
        assert (dict(back.reference), back.study) == (results.reference, results.study)
        identity = (trial().cell, 0)
        assert back.record(identity)["metrics"] == results.record(identity)["metrics"]


def test_the_check_takes_no_margin_and_no_price(report: Path) -> None:
    with pytest.raises(SystemExit, match="--margin cannot be combined with --check"):
        main(["--check", "--reports", str(report.parent), "--margin", "0.1"])
    with pytest.raises(SystemExit, match="--cost-binary cannot be combined with --check"):
        main(["--check", "--reports", str(report.parent), "--cost-binary", "1/8"])


@pytest.mark.parametrize("text", ["0", "-0.1", "nan", "inf", "1e300", "much"])
def test_a_margin_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["components", f"--margin={text}"])
    assert (
        str(stopped.value) == f"analysis: --margin {text}: give a difference in dB above 0 and up to 1000, such as 0.05"
    )


def test_a_picture_that_trials_share_is_stored_once(written: Path) -> None:
    with zipfile.ZipFile(written / "reports" / "components" / ARCHIVE) as file:
        pictures = [name for name in file.namelist() if name.endswith(".png")]
    # Input, baseline and truth are those of both cells; each cell has an output of its own at most.
    assert 4 <= len(pictures) <= 5


def test_what_differs_is_named_with_file_and_place(report: Path) -> None:
    page, cells = (report / "report.md").read_text(), (report / "cells.csv").read_text()
    column = cells.splitlines()[0].split(",").index("psnr_mean_db")
    was = cells.splitlines()[1].split(",")[column]
    place = f"line 2, column {column + 1} (psnr_mean_db)"
    for name, spoilt, said in (
        (
            "report.md",
            page.replace("4 finished", "5 finished", 1).encode(),
            "line 3, column 215 is '5 finished and 1 missing.', but the results give '4 finished and 1 missing.'",
        ),
        ("cells.csv", cells.replace(was, "99.5", 1).encode(), f"{place} is '99.5', but the results give '{was}'"),
        ("cells.csv", None, "missing"),
        ("report.html", b"<p>old\n", "line 1, column 1 is"),
        (ARCHIVE, b"no archive", "does not hold the results of a study"),
        (ARCHIVE, None, "missing, so the report cannot be regenerated"),
    ):
        before = (report / name).read_bytes()
        (report / name).unlink() if spoilt is None else (report / name).write_bytes(spoilt)
        reason = first_difference(report)
        assert reason.startswith(f"{report / name}")
        assert said in reason
        (report / name).write_bytes(before)
    (report / "report.html").unlink()
    assert first_difference(report) == ""


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        pytest.param(b"a\n1\n2\n", b"a\n1\n", "line 3, column 1 (a) is '2', but the results give nothing", id="a row"),
        pytest.param(b"a\n1,2\n", b"a\n1\n", "line 2, column 2 (beyond the header) is '2', but", id="a cell more"),
        pytest.param(b'a,b\n"x, y",1\n', b'a,b\n"x, y",2\n', "line 2, column 2 (b) is '1', but", id="a quoted comma"),
    ],
)
def test_a_difference_of_two_tables_names_its_place(tmp_path: Path, found: bytes, wanted: bytes, said: str) -> None:
    (tmp_path / "table.csv").write_bytes(found)
    assert difference(tmp_path / "table.csv", wanted).startswith(said)


def test_every_report_has_its_line_and_every_stale_one_its_reason(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("another", "broken"):
        (report.parent / name).mkdir()
        (report.parent / name / "report.md").write_text("# Another\n")
    (report.parent / "broken" / ARCHIVE).write_bytes(b"no archive")
    (report / "notes.md").write_text("by hand\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--check", "--reports", str(report.parent)])
    assert capsys.readouterr().out.endswith("another: stale\nbroken: stale\ncomponents: up to date\n")
    assert len(str(stopped.value).splitlines()) == 2


def test_a_report_can_be_regenerated_from_its_folder_in_all_its_forms(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    (report / "report.html").unlink()
    for name in ("report.md", "effects.png"):
        (report / name).write_text("spoilt")
    main([str(report)])
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == wanted
    shown = capsys.readouterr()
    assert shown.out == f"{report}/report.md\n{report}/report.html\n"
    assert shown.err.splitlines() == [
        f"reading {report}/results.zip",
        "composing the report of components",
        f"writing the report to {report}",
    ]
    main([str(report), "--margin", "0.6", "--cost-binary=1/8", "--reports", str(tmp_path / "elsewhere")])
    elsewhere = tmp_path / "elsewhere" / "components"
    page = (elsewhere / "report.md").read_text(encoding="utf-8")
    assert "surely smaller than 0.6 dB" in page
    assert "A binary multiply-add counts 1/8 here, not 1/64 as in the paper." in page
    assert "| OPs at 1/8 (G) |" in page
    assert " 9.000 | 40.0 |" in page
    assert (elsewhere / "report.html").is_file()
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == wanted
    with opened(elsewhere / ARCHIVE) as archive:
        assert (archive.margin, archive.results.price) == (0.6, "1/8")
    assert first_difference(elsewhere) == ""


def test_a_report_of_a_stopping_rule_is_regenerated_under_its_margin_alone(tmp_path: Path) -> None:
    results = rule_on_disk(tmp_path, [cell(31.0), cell(29.0, residual=False)])
    folder = tmp_path / "reports" / "components"
    write_all(results, margin_of(results, None), folder)
    assert first_difference(folder) == ""
    with pytest.raises(SystemExit, match=r"^analysis: --margin 0.2: study components gave its seeds by"):
        main([str(folder), "--margin", "0.2"])


def test_git_ignores_a_users_reports_and_keeps_the_examples() -> None:
    paths = ["reports/mine/report.md", "reports/examples/mine/report.html", "reports/examples/mine/report.md"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split() == paths[:2]


def test_no_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no report below"):
        main(["--check", "--reports", str(tmp_path)])
    with pytest.raises(ConfigError), opened(tmp_path / "none.zip"):
        pass


def picture(levels: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((4, 6, 3), 100, dtype=np.uint8)
    pixels[1, 2] += levels
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(("levels", "differs"), [(0, False), (MOST_PIXEL_DIFFERENCE, False), (9, True)])
def test_figures_are_compared_by_pixels_within_a_tolerance(tmp_path: Path, levels: int, differs: bool) -> None:
    (tmp_path / "figure.png").write_bytes(picture(levels))
    assert imread(tmp_path / "figure.png").shape == (4, 6, 4)
    assert difference(tmp_path / "figure.png", picture(0)) == ("a pixel is off by 9 of 255 levels" if differs else "")


def test_a_figure_of_another_size_or_kind_differs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    imsave(buffer, np.zeros((2, 2, 3)), format="png")
    (tmp_path / "figure.png").write_bytes(buffer.getvalue())
    assert "has 2 x 2 pixels, but the results give 6 x 4 pixels" in difference(tmp_path / "figure.png", picture(0))
    (tmp_path / "figure.png").write_bytes(b"text")
    assert "not a readable picture" in difference(tmp_path / "figure.png", picture(0))


def test_a_long_word_is_shown_around_its_difference() -> None:
    before, after = (f"href={'x' * 5000}{end}{'y' * 5000}" for end in ("1", "2"))
    message = text_difference([before], [after])
    assert len(message) < 600
    assert "x1y" in message
    assert "x2y" in message
