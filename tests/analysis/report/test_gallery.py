"""The index of reports shows what their summaries say, names what it cannot show, and believes nobody."""

import json
import logging
import os
import pty
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from analysis.__main__ import main, with_progress
from analysis.report.archive import ARCHIVE
from analysis.report.check import check
from analysis.report.gallery import INDEX, README, duration, groups, page, readme
from analysis.report.markup import one_line
from analysis.report.summary import SUMMARY, Summary
from tests.analysis.report.test_markup import HOSTILE, Reader
from tests.harness.paths import DOCS, REPOSITORY

FACTS: dict[str, Any] = {
    "study": "any",
    "question": "what is bn worth?",
    "figure": {"file": "effects.png", "shows": "What each change does to PSNR"},
    "tasks": [
        {
            "task": f"x{scale} super-resolution",
            "network": "SRResNet of 8 channels",
            "trained_on": "bundled photographs",
            "steps": "20",
            "test_sets": ["Set5", "Set14"],
        }
        for scale in (2, 4)
    ],
    "cells": 4,
    "seeds": [2, 3],
    "trials": {"finished": 9, "failed": 1},
    "changes": 3,
    "verdicts": {"undecided": 2, "worse": 9, "risk of collapse": 1},
    "claims": {"undecided": 2, "supported": 1},
    "train_s": {"AMD EPYC": 3661.0, "H100": 95.0},
}


def report(folder: Path, **facts: Any) -> Path:
    """Write a report as far as an index looks at it: the archive is none, so that one who opens it fails."""
    folder.mkdir(parents=True)
    (folder / "report.md").write_text("# Study\n")
    (folder / ARCHIVE).write_bytes(b"not an archive")
    (folder / "effects.png").write_bytes(b"not a picture")
    content = json.dumps({**FACTS, "study": folder.name, **facts})
    Summary.model_validate_json(content)
    (folder / SUMMARY).write_text(content)
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """A user's folder with two studies and two examples."""
    for name, finished in (("a_small", 4), ("z_large", 12), ("examples/b_small", 5), ("examples/y_large", 50)):
        report(tmp_path / "reports" / name, trials={"finished": finished})
    return tmp_path / "reports"


def sections(markdown: str) -> list[str]:
    return re.findall(r"^## \[(.+)\]", markdown, re.MULTILINE)


def cards(html: str) -> list[str]:
    return re.findall(r'<h3 id="[\w-]+"><a href="[^"]*">(.+)</a></h3>', html)


def test_own_studies_come_first_and_in_each_group_those_with_the_most_trainings(reports: Path) -> None:
    main(["index", "--reports", str(reports)])
    html = (reports / INDEX).read_text(encoding="utf-8")
    assert cards(html) == ["z_large", "a_small", "y_large", "b_small"]
    assert re.findall("<h2 .*>(.+)</h2>", html) == ["Own studies", "Examples"]


def test_the_page_that_git_keeps_has_what_git_keeps(reports: Path) -> None:
    main(["index", "--reports", str(reports)])
    before = (reports / README).read_bytes()
    assert sections(before.decode()) == ["y_large", "b_small"]
    report(reports / "another")
    main(["index", "--reports", str(reports)])
    assert (reports / README).read_bytes() == before
    shutil.rmtree(reports / "examples")
    main(["index", "--reports", str(reports)])
    assert sections((reports / README).read_text(encoding="utf-8")) == ["z_large", "another", "a_small"]
    assert '<h2 id="studies">Studies</h2>' in (reports / INDEX).read_text(encoding="utf-8")


def test_git_keeps_the_page_of_the_examples_and_ignores_the_other() -> None:
    paths = [f"reports/{README}", f"reports/{INDEX}", f"reports/examples/mine/{SUMMARY}"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split() == [f"reports/{INDEX}"]


@pytest.mark.parametrize("form", [README, INDEX])
def test_both_pages_show_every_fact_of_a_study(tmp_path: Path, form: str) -> None:
    report(tmp_path / "mine", study="first")
    main(["index", "--reports", str(tmp_path)])
    text = (tmp_path / form).read_text(encoding="utf-8")
    shown = " ".join("\n".join(Reader(text if form == INDEX else as_html(text)).texts).split())
    for fact in (
        "What is bn worth?",
        "The study is first.",
        "9 worse 2 undecided 1 risk of collapse" if form == INDEX else "9 worse, 2 undecided, 1 risk of collapse",
        "of 3 comparisons on 4 test sets",
        "1 supported, 2 undecided",
        "SRResNet of 8 channels for x2 super-resolution and x4 super-resolution, trained on bundled photographs for 20 "
        "steps, tested on Set5 and Set14",
        "4 cells under 2 to 3 seeds, 9 trainings, 1 failed",
        "61 min of training on AMD EPYC",
        "95 s of training on H100",
    ):
        assert fact in shown
    assert ("effects.png", "mine: What each change does to PSNR") in pictures(text, form)


def as_html(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def pictures(text: str, form: str) -> list[tuple[str, str]]:
    found = Reader(text if form == INDEX else as_html(text)).elements
    return [(each["src"].rpartition("/")[2], each["alt"]) for tag, each in found if tag == "img"]


def test_every_address_is_that_of_a_file_beside_the_index(reports: Path) -> None:
    (reports / "z_large" / "report.html").write_text("<p>")
    (reports / "a_small" / "effects.png").unlink()
    main(["index", "--reports", str(reports)])
    html = (reports / INDEX).read_text(encoding="utf-8")
    for text in (html, as_html((reports / README).read_text(encoding="utf-8"))):
        found = [each.get("href") or each.get("src") for tag, each in Reader(text).elements if tag in ("a", "img")]
        assert all((reports / str(each)).is_file() for each in found if not str(each).startswith("#"))
        assert len(found) >= 6
    assert 'href="z_large/report.html">z_large</a>' in html
    assert 'href="a_small/report.md">a_small</a>' in html
    assert "a_small/effects.png" not in html


@pytest.mark.parametrize("form", [README, INDEX])
def test_a_report_of_an_earlier_version_is_named_with_its_command(tmp_path: Path, form: str) -> None:
    for name in ("sent me", "earlier"):
        (report(tmp_path / "reports" / name) / SUMMARY).unlink()
    (tmp_path / "reports" / "earlier" / ARCHIVE).unlink()
    (report(tmp_path / "reports" / "spoilt") / SUMMARY).write_text("{")
    main(["index", "--reports", str(tmp_path / "reports")])
    text = (tmp_path / "reports" / form).read_text(encoding="utf-8")
    shown = "\n".join(Reader(text if form == INDEX else as_html(text)).texts)
    assert f"python -m analysis '{tmp_path}/reports/sent me'" in shown
    assert "python -m analysis earlier" in shown
    assert "its report has no summary.json yet" in shown
    assert "its summary.json cannot be read: summary.json: Invalid JSON" in shown


@pytest.mark.parametrize("form", [README, INDEX])
def test_a_folder_of_any_name_is_listed_and_no_place_of_the_machine_is(tmp_path: Path, form: str) -> None:
    (report(tmp_path / "text") / SUMMARY).unlink()
    (tmp_path / "text").rename(tmp_path / os.fsdecode(b"not \xff text"))
    (report(tmp_path / "endless") / SUMMARY).unlink()
    (tmp_path / "endless" / SUMMARY).symlink_to("/dev/zero")
    main(["index", "--reports", str(tmp_path)])
    text = (tmp_path / form).read_text(encoding="utf-8")
    shown = "\n".join(Reader(text if form == INDEX else as_html(text)).texts)
    assert "not%20%FF%20text/report.md" in text
    assert "not \\udcff text" in shown
    assert "its summary.json cannot be read: not a regular file" in shown
    assert f"{tmp_path}/endless/{SUMMARY}" not in shown


ELEMENTS = {
    **{name: set[str]() for name in ("head", "title", "style", "body", "header", "main", "dl", "dt", "dd", "code")},
    **{name: set[str]() for name in ("strong", "table", "thead", "tbody", "tr", "h1")},
    **{"html": {"lang"}, "meta": {"charset", "http-equiv", "content", "name"}, "nav": {"aria-label"}},
    **{
        "ul": {"class", "aria-label"},
        "li": {"class"},
        "p": {"class"},
        "div": {"class"},
        "th": {"style"},
        "td": {"style"},
    },
    **{name: {"aria-labelledby"} for name in ("section", "article")},
    **{"h2": {"id"}, "h3": {"id"}, "a": {"href", "class", "aria-label"}, "img": {"src", "alt"}},
}
"""Every element of an index with the attributes that it may have."""

TEXTS = [one_line(name) for name in HOSTILE]


def test_names_and_texts_of_others_are_shown_as_they_are(tmp_path: Path) -> None:
    for name in TEXTS:
        task = {**FACTS["tasks"][0], "network": name, "trained_on": name, "test_sets": [name]}
        report(
            tmp_path / name.replace("/", "_"),
            question=name,
            tasks=[task],
            train_s={name: 1.0},
            figure={"file": "effects.png", "shows": name},
        )
    found = groups(tmp_path)
    for text in (page(found).decode(), as_html(readme(found).decode())):
        reader = Reader(text)
        for tag, attributes in reader.elements:
            assert attributes.keys() <= ELEMENTS[tag], tag
            for address in (attributes[name] for name in ("src", "href") if name in attributes):
                assert address.startswith("#") or (tmp_path / unquote(address)).is_file()
        shown = "\n".join(" ".join(text.split()) for text in reader.texts)
        for name in TEXTS:
            assert shown.count(" ".join(name.split())) >= 3, name
            assert " ".join(name.replace("/", "_").split()) in shown, name


def test_the_page_forbids_everything_but_the_figures_beside_it(reports: Path) -> None:
    reader = Reader(page(groups(reports)).decode())
    (policy,) = [found["content"] for _, found in reader.elements if "http-equiv" in found]
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives.pop("style-src").startswith("'sha256-")
    assert directives == {
        "default-src": "'none'",
        "img-src": "'self' file:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_an_index_without_a_report_or_a_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^analysis: no report below .*: python -m analysis STUDY writes one$"):
        main(["index", "--reports", str(tmp_path)])
    report(tmp_path / "mine")
    (tmp_path / README).mkdir()
    with pytest.raises(SystemExit, match=r"^analysis: .*: the index cannot be written: "):
        main(["index", "--reports", str(tmp_path)])


def test_links_in_the_place_of_an_index_are_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    report(tmp_path / "reports" / "first")
    for name in (README, INDEX):
        (tmp_path / "reports" / name).symlink_to(tmp_path / "mine")
    main(["index", "--reports", str(tmp_path / "reports")])
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "reports" / INDEX).is_symlink()


def test_the_check_says_whether_an_index_is_up_to_date(reports: Path) -> None:
    assert README not in dict(check(reports))
    assert dict(check(reports / "examples"))[README].startswith(f"{reports}/{README}: missing")
    main(["index", "--reports", str(reports)])
    assert dict(check(reports / "examples"))[README] == ""
    report(reports / "examples" / "new")
    said = dict(check(reports / "examples"))[README]
    assert said.startswith(f"{reports}/{README}: line ")
    assert said.endswith("python -m analysis index writes it")


def test_the_committed_index_is_up_to_date_and_a_page_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    committed = Path("reports", README).read_text(encoding="utf-8")
    assert committed == readme(groups(Path("reports"))).decode(), "python -m analysis index"
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    shown = hooks["on_page_markdown"](hooks["gallery"](REPOSITORY))
    assert re.findall("^## (.+)$", shown, re.MULTILINE) == sections(committed)
    assert set(re.findall(r"\]\(([^)]+)\)", shown)) == {
        f"reports/{place}" for place in re.findall(r"^!\[.*\]\(([^)]+)\)$", committed, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (5000, "83 min"), (5400, "1.5 h"), (360_000, "100.0 h")],
)
def test_a_time_is_spelt_in_its_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- progress --------------------------------------------------------------------------------------------------------


def steps() -> Iterator[tuple[str, str]]:
    log = logging.getLogger("analysis.anything")
    for name in ("first", "second"):
        log.info("step %s", name)
        log.debug("part of %s", name)
        yield name, ""


def test_progress_is_a_line_for_each_step_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for name, _ in with_progress(steps()):
        print(name)
    shown = capsys.readouterr()
    assert shown.out == "first\nsecond\n"
    assert shown.err == "step first\nstep second\n"
    logging.getLogger("analysis.anything").warning("afterwards")
    assert "afterwards" not in capsys.readouterr().err.splitlines()


def test_progress_on_a_terminal_names_the_part_and_leaves_other_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        for name, _ in with_progress(steps()):
            print(name)
        terminal.flush()
        shown = os.read(master, 2**16).decode()
    os.close(master)
    assert capsys.readouterr().out == "first\nsecond\n"
    assert "step second: part of second" in shown
