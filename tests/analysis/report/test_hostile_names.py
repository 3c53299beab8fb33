"""A study whose every name was chosen by an attacker: its report shows them as they are, and asks for nothing."""

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import TrialFolder
from analysis.report.compare import compare
from analysis.report.html.page import digest
from analysis.report.markup import one_line
from analysis.report.page import write_all
from analysis.study.loading import StudyResults, load_folder
from tests.analysis.report.test_markup import HOSTILE, Reader
from tests.harness.studies import Trial, full_trial, write_folder, write_samples

ATTACK = "!](http:&#47;&#47;evil.example&#47;t.png)![.png"
MATHS = r"$\frac$ 中 _a"
SETS = (f"A {ATTACK} | `", "<b>&lt;$x_y$")
PICTURES = (f"{HOSTILE[0]}\x1b", MATHS)
"""The names of test sets and of pictures are those of folders, so they hold no slash."""

NAMES = (*(name for name in HOSTILE if name != "\udcff"), MATHS, "_private", "=1+1", "a.b._c")

PLAIN = ("head", "title", "style", "body", "ul", "ol", "li", "p", "strong", "em", "code", "table", "thead",
         "tbody", "tr", "details", "summary", "header", "footer", "caption",
         "figure", "figcaption")  # fmt: skip
ELEMENTS = {
    **{element: set[str]() for element in PLAIN},
    **{f"h{level}": {"id"} for level in range(1, 5)},
    **{"html": {"lang"}, "meta": {"charset", "http-equiv", "content", "name"}, "nav": {"aria-label"}},
    **{"div": {"class", "role", "aria-label"}, "figure": {"data-kind"}, "figcaption": set(), "span": set()},
    **{"th": {"class", "scope", "data-order"}, "td": {"class", "data-order"}, "main": {"id", "tabindex"}},
    **{
        "button": {"type", "hidden", "data-figure", "data-name"},
        "script": {"type", "id"},
        "img": {"src", "alt", "width", "height"},
        "a": {"id", "href", "download", "class", "aria-label"},
    },
}
"""Every element of a report with the attributes that it may have, besides those of its drawings."""

DRAWINGS = {"svg", "g", "path", "use", "defs", "clippath", "rect", "pattern", "title"}


def hostile_trial(seed: int, psnr_db: float, **levels: Any) -> Trial:
    made = full_trial(seed, **levels)
    known = {f"key {number} {name}": name for number, name in enumerate(NAMES)}
    return dataclasses.replace(
        made,
        levels={**made.levels, "surrogate": levels.get("surrogate", "quadratic")},
        psnr_db={name: psnr_db - 3 * number for number, name in enumerate(SETS)},
        images={name: dict.fromkeys(HOSTILE[:5], psnr_db) for name in SETS},
        others={"data": "`![d](x)", "network": {"name": "<i>|", "of": known}},
        origin={"cpu": ATTACK, "code": "`|<c>", "git": "<g>|`", "packages": {ATTACK: "<script>"}, **known},
        reference={**made.reference, "surrogate": "quadratic"},
        dead="<b>dead</b> ![x](http://evil.example/)" if seed == 1 and not levels.get("residual", True) else None,
        method="<m>`|",
    )


def hostile_study(folder: Path) -> StudyResults:
    """Trials whose levels, test sets, pictures, reasons, settings and origins are all hostile, some of them failed."""
    finished = [
        hostile_trial(seed, 30.0 + number + 0.1 * seed, residual=residual, surrogate=surrogate)
        for seed in (0, 1)
        for number, (residual, surrogate) in enumerate(
            [*((True, name) for name in ("quadratic", "pkg.mod._Private", ATTACK, MATHS)), (False, "quadratic")]
        )
    ]
    failed = [hostile_trial(0, 0.0, surrogate=name) for name in NAMES]
    left_out = [
        {"levels": {**finished[0].levels, "surrogate": f"left {name}"}, "setting": finished[0].setting, "reason": name}
        for name in NAMES
    ]
    write_folder(folder, finished, planned=failed, left_out=left_out)
    for each in finished:
        place = TrialFolder(folder, "components", each.cell, each.seed).samples
        write_samples(place, each)
        for number, test_set in enumerate(SETS):
            (place / test_set / "ring").rename(place / test_set / PICTURES[number])
    for each, reason in zip(failed, NAMES, strict=True):
        trial = TrialFolder(folder, "components", each.cell, each.seed)
        begin_attempt(trial)
        end_attempt(trial, State.FAILED, reason)
    found = load_folder(folder / "components")
    return dataclasses.replace(found, study=f"study {' '.join(HOSTILE)}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return hostile_study(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def files(results: StudyResults, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the report as it is written; matplotlib warns of nothing."""
    folder = tmp_path_factory.mktemp("report")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        written = write_all(results, 0.05, folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}


@pytest.fixture(scope="module")
def reader(files: Mapping[str, bytes]) -> Reader:
    return Reader(files["report.html"].decode())


def test_a_page_has_no_element_and_no_attribute_but_its_own(reader: Reader) -> None:
    for tag, attributes in reader.elements:
        if tag in DRAWINGS:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert attributes.get("href", "#").startswith("#")
        else:
            assert tag in ELEMENTS
            assert attributes.keys() <= ELEMENTS[tag]


def addresses(reader: Reader) -> Iterator[tuple[str, str]]:
    for tag, attributes in reader.elements:
        for name in ("src", "href"):
            if name in attributes:
                yield tag, attributes[name]


def test_a_page_has_no_address_but_data_and_places_on_itself(reader: Reader) -> None:
    places = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    found = list(addresses(reader))
    assert len([tag for tag, _ in found if tag == "img"]) >= 6
    for tag, address in found:
        if tag == "img":
            assert address.startswith("data:image/bmp;base64,")
        elif address.startswith("#"):
            assert address[1:] in places
        else:
            assert re.match(r"data:(text/csv|image/svg\+xml);base64,", address)


def test_a_page_forbids_everything_that_it_does_not_hold(reader: Reader) -> None:
    (policy,) = [found["content"] for _, found in reader.elements if "http-equiv" in found]
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives.pop("style-src") == f"'sha256-{digest(*reader.styles)}'"
    assert len(reader.scripts) > 1
    assert directives.pop("script-src").split() == [f"'sha256-{digest(script)}'" for script in reader.scripts]
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert [tag for tag, found in reader.elements if "style" in found] == []


def test_every_name_is_shown_as_it_is(reader: Reader) -> None:
    shown = "\n".join(text.strip() for text in reader.texts)
    for name in NAMES:
        assert one_line(name).strip() in shown
    lines = shown.split("\n")
    for name in NAMES:
        assert lines.count(one_line(name).strip()) >= 3, name


def test_no_file_holds_a_character_that_controls_how_others_are_shown(files: Mapping[str, bytes]) -> None:
    texts = {name: content.decode() for name, content in files.items() if not name.endswith((".png", ".svg", ".zip"))}
    # Scripts hold no name: they are the same in every page.
    texts["report.html"] = re.sub(r"<script( type=\"module\")?>.*?</script>", "", texts["report.html"], flags=re.DOTALL)
    assert "Tables" in texts["report.html"]
    for name, text in texts.items():
        assert {letter for letter in text if not letter.isprintable()} <= {"\n"}, name
        assert name.isascii()


def test_no_cell_of_a_file_is_a_formula(files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        if name.endswith(".csv"):
            assert not re.search(rb"(^|,)\"?[=@]", content, re.MULTILINE), name


def test_the_names_reach_no_command_of_latex(files: Mapping[str, bytes]) -> None:
    tables = [content.decode() for name, content in files.items() if name.endswith(".tex")]
    assert any(r"\$\textbackslash{}input\{/etc/passwd\}\$" in table for table in tables)
    assert not any(r"\input" in table for table in tables)


def test_pictures_have_names_of_their_own(files: Mapping[str, bytes]) -> None:
    pictures = [name for name in files if name.startswith("pictures-")]
    assert len(pictures) == len(SETS)
    assert all(re.fullmatch(r"pictures-[\w.-]+\.png", name, re.ASCII) for name in pictures)


def test_the_comparison_of_two_studies_shows_names_as_they_are(results: StudyResults) -> None:
    page = compare(results, results, (ATTACK, "a\x1b[31m"))
    assert {letter for letter in page if not letter.isprintable()} == {"\n"}
    assert "](http" not in re.sub(r"\\.", "", re.sub(r"`[^`\n]*`", "", page))
