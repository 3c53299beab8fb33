"""An archive of results may come from anyone: it is a study, or one line, and nothing is written anywhere else."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import stat
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from matplotlib.image import imsave

from ablations.space.stopping_rule import StoppingRule
from analysis.__main__ import main
from analysis.report.archive import ARCHIVE, opened, recording, write_archive
from analysis.report.compare import compare
from analysis.report.page import compose
from analysis.report.pictures import MOST_PIXELS, strips
from analysis.report.unpacking import LARGEST_MEMBER
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.data_names import DataNames
from analysis.study.loading import StudyResults
from analysis.study.tasks import split_by_task
from bbcu.errors import BbcuError, ConfigError
from tests.harness.judging import summaries
from tests.harness.studies import counted, full_trial, read_back, timed

Members = dict[str, bytes]
Change = Callable[[Members], object]

LEFT_OUT = {"levels": {"residual": True, "bn": "out"}, "setting": {"train": {"steps": 20}}, "reason": "why"}

DESIGN = {"name": "chain", "options": {"steps": [["bn=post"], ["act=none"]]}, "exclude": ["bn=out"], "notes": ["why"]}

DATA = full_trial(0).setting["data"]
"""The fingerprint of the data of the study."""

RULE = StoppingRule((2, 3), 0, MARGIN_DB, (((full_trial(0).cell, full_trial(0, residual=False).cell),),))
"""The stopping rule of the study."""

PLANTED = str(Path(tempfile.gettempdir()).resolve() / f"planted-{os.getpid()}")
"""A path that an archive names, and that does not exist."""

BOUND = 64 * 2**20
"""The most bytes of memory that refusing a small archive may take, whatever it says that it holds."""


EXPERIMENT = "https://mlflow.example:5000/lab/#/experiments/7"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The files of the archive of a small study with curves, probes, scores by picture and sample pictures."""
    place = tmp_path_factory.mktemp("original")
    trials = [
        timed(counted(full_trial(seed, residual=residual), 1.5, 32.0), 0.2 + 0.1 * residual)
        for seed in (0, 1)
        for residual in (True, False)
    ]
    plan = {"pairing": True, "design": DESIGN, "left_out": [LEFT_OUT], "rule": RULE.record()}
    results = read_back(place / "outputs", trials, samples=True, unplanned=[full_trial(2)], **plan)
    results = dataclasses.replace(results, data_names={DATA: DataNames("BSDS400", ("Set5",))}, experiment=EXPERIMENT)
    recorded, asked = recording(results)
    read_all(recorded, recorded)
    with zipfile.ZipFile(write_archive(results, asked, MARGIN_DB, place)) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: Members, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, below a folder in which nothing else may appear."""
    place = tmp_path / "outside" / "temporary"
    place.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def refusal(path: Path) -> str:
    """The one line with which an archive is refused; fails if it is not."""
    with pytest.raises(BbcuError) as refused, opened(path):
        pass
    message = str(refused.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 400
    return message


# ---- what is refused ---------------------------------------------------------------------------------------------


def in_json(name: str, change: Callable[[Any], object]) -> Change:
    """Change what a file of JSON holds."""

    def changed(members: Members) -> None:
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return changed


def in_rule(**changes: Any) -> Change:
    """Change the stopping rule."""
    return in_json("study.json", lambda known: known["rule"].update(changes))


def in_table(column: str, text: str | None, row: int = 1) -> Change:
    """Change a cell of the table of trials, or remove the column."""

    def changed(members: Members) -> None:
        rows = list(csv.reader(io.StringIO(members["trials.csv"].decode())))
        place = rows[0].index(column)
        if text is None:
            rows = [line[:place] + line[place + 1 :] for line in rows]
        else:
            rows[row][place] = text
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        members["trials.csv"] = buffer.getvalue().encode()

    return changed


def whole(name: str, content: bytes) -> Change:
    return lambda members: members.update({name: content})


def without(name: str) -> Change:
    return lambda members: members.pop(name)


def a_place(place: str) -> Change:
    """Put a picture of the archive into another place."""

    def change(members: Members) -> None:
        places = json.loads(members["pictures.json"])
        places[place] = next(digest for digest in places.values() if digest)
        members["pictures.json"] = json.dumps(places).encode()

    return change


def priced_without_counts(members: Members) -> None:
    in_json("study.json", lambda known: known.update(cost_binary="1/8"))(members)
    in_table("metric/cost/full_macs_g", None)(members)
    for number in range(4):
        del members[f"{number}/result.json"]


def doubled(members: Members) -> None:
    members["trials.csv"] += members["trials.csv"].splitlines(keepends=True)[-1]


DEEP = b"[" * 100_000

REFUSED: Mapping[str, tuple[Change, str]] = {
    "no study.json": (without("study.json"), "study.json is missing"),
    "no trials.csv": (without("trials.csv"), "trials.csv is missing"),
    "no pictures.json": (without("pictures.json"), "pictures.json is missing"),
    "an unknown file": (whole("evil.txt", b""), "'evil.txt' is no file of a report"),
    "an absolute name": (whole(PLANTED, b""), f"{PLANTED!r} is no file of a report"),
    "a name that leads out": (whole("../planted", b""), "'../planted' is no file of a report"),
    "a name with a backslash": (whole("0\\..\\planted", b""), "is no file of a report"),
    "a long name": (whole("0/" + "x" * 5000, b""), "is no file of a report"),
    "a trial that is not in the table": (whole("99/curve.csv", b""), "99/ belongs to no finished trial"),
    "an absolute place": (a_place(f"{PLANTED}/output.png"), "is no place of a picture"),
    "a place that leads out": (a_place("0/samples/../../../output.png"), "is no place of a picture"),
    "a place in the archive's root": (a_place("0/result.json"), "is no place of a picture"),
    "a place above the test sets": (a_place("0/samples/../x/output.png"), "is no place of a picture"),
    "a place with a long name": (a_place(f"0/samples/{'x' * 300}/x/output.png"), "is no place of a picture"),
    "a digest that leads out": (
        in_json("pictures.json", lambda places: places.update({"0/samples/Set5/x/output.png": "../../secret"})),
        "is no place of a picture",
    ),
    "places that are a list": (whole("pictures.json", b"[]"), "pictures.json: Input should be"),
    "another picture than its name says": (
        lambda members: members.update({f"pictures/{'0' * 64}.png": b"x"}),
        "has another SHA-256",
    ),
    "no JSON": (whole("study.json", b"\0" * 100), "study.json: Invalid JSON"),
    "deep JSON": (whole("study.json", DEEP), "study.json: Invalid JSON"),
    "deep places": (whole("pictures.json", DEEP), "pictures.json: Invalid JSON"),
    "a list as the study": (whole("study.json", b"[]"), "study.json: Input should be"),
    "a lone surrogate": (whole("study.json", b'{"study": "\\ud800"}'), "study.json: Invalid JSON"),
    "a number as the name": (in_json("study.json", lambda known: known.update(study=5)), "study: Input should be"),
    "a long name of the study": (in_json("study.json", lambda known: known.update(study="x" * 300)), "study: String"),
    "control characters": (in_json("study.json", lambda known: known.update(study="\x1b[2J")), "control characters"),
    "no margin": (in_json("study.json", lambda known: known.pop("margin_db")), "margin_db: Field required"),
    "a margin of nothing": (in_json("study.json", lambda known: known.update(margin_db=0)), "margin_db: Input"),
    "a margin that is no number": (
        in_json("study.json", lambda known: known.update(margin_db=float("nan"))),
        "margin_db: Input",
    ),
    "factors that are a text": (in_json("study.json", lambda known: known.update(factors="bn")), "factors: Input"),
    "a factor that no trial has": (
        in_json("study.json", lambda known: known["factors"].append("colour")),
        "the column factor/colour is missing",
    ),
    "left out for no reason": (
        in_json("study.json", lambda known: known["left_out"][0].pop("reason")),
        "left_out.0.reason: Field required",
    ),
    "pairing that is a text": (in_json("study.json", lambda known: known.update(pairing="yes")), "pairing: Input"),
    "a design that is a list": (in_json("study.json", lambda known: known.update(design=[])), "design: Input"),
    "a design with an unknown key": (
        in_json("study.json", lambda known: known["design"].update(colour="red")),
        "design.colour: Extra",
    ),
    "a design with a long name": (
        in_json("study.json", lambda known: known["design"].update(name="x" * 300)),
        "design.name: String",
    ),
    "a note with control characters": (
        in_json("study.json", lambda known: known["design"].update(notes=["\x1b[2J"])),
        "design.notes.0: Value error, has control characters",
    ),
    "data without a fingerprint": (
        in_json("study.json", lambda known: known["data_names"].update(photographs={"train": "", "test": []})),
        "data_names.photographs.[key]: String",
    ),
    "the path of the training data": (
        in_json("study.json", lambda known: known["data_names"][DATA].update(train="/home/somebody/data")),
        "is a path",
    ),
    "a test set that is a path": (
        in_json("study.json", lambda known: known["data_names"][DATA].update(test=["Set5", "../x"])),
        "test.1: Value error, is a path",
    ),
    "test sets that are a text": (
        in_json("study.json", lambda known: known["data_names"][DATA].update(test="Set5")),
        "test: Input should be a valid array",
    ),
    "an address with a login": (
        in_json("study.json", lambda known: known.update(experiment="https://me:x@mlflow.example/#/experiments/1")),
        "experiment: Value error, is no address",
    ),
    "an address that is a script": (
        in_json("study.json", lambda known: known.update(experiment="javascript:alert(1)//#/experiments/1")),
        "experiment: Value error, is no address",
    ),
    "a price that is none": (in_json("study.json", lambda known: known.update(cost_binary="3/2")), "cost_binary=3/2"),
    "a price that is a number": (in_json("study.json", lambda known: known.update(cost_binary=1)), "cost_binary: In"),
    "a price without the counts": (
        priced_without_counts,
        "a binary multiply-add at 1/8, but some trials do not record",
    ),
    "a time of nothing": (in_table("metric/cost/latency_ms", "0"), "its cost/latency_ms is 0"),
    "a rule without looks": (in_rule(looks=[]), "rule.looks: List should have at least 1 item"),
    "looks that do not ascend": (in_rule(looks=[3, 3]), "rule.looks: Value error, they do not ascend"),
    "a look of one seed": (in_rule(looks=[1, 2]), "rule.looks.0: Input should be greater"),
    "a look that takes hours": (in_rule(looks=[2, 10**9]), "rule.looks.1: Input should be less"),
    "a first seed below 0": (in_rule(first_seed=-1), "rule.first_seed: Input"),
    "another error rate": (in_rule(error_rate=0.5), "rule.error_rate: Input"),
    "a boundary without a floor": (in_rule(floor=0.0), "rule.floor: Input"),
    "a boundary that rises without end": (in_rule(rise=1e9), "rule.rise: Input"),
    "a rule of another margin": (in_rule(margin_db=0.5), "a margin of 0.05 dB, but 0.5 dB in its stopping rule"),
    "a comparison of one cell": (in_rule(families=[[["a" * 64]]]), "rule.families.0.0: List"),
    "a comparison of a cell with itself": (in_rule(families=[[["a" * 64] * 2]]), "of a cell with itself"),
    "a comparison that is there twice": (
        in_rule(families=[[["a" * 64, "b" * 64]], [["b" * 64, "a" * 64]]]),
        "a comparison is there twice",
    ),
    "a comparison of an unknown cell": (in_rule(families=[[["a" * 64, "b" * 64]]]), "aaaaaaaaaaaa, which has no trial"),
    "a comparison of no key": (in_rule(families=[[["bbcu", "b" * 64]]]), "rule.families.0.0.0: String"),
    "a rule with an unknown key": (in_rule(colour="red"), "rule.colour: Extra"),
    "a rule that is a list": (in_json("study.json", lambda known: known.update(rule=[])), "rule: Input"),
    "neither planned nor not": (in_table("planned", "perhaps"), "column planned: 'perhaps'"),
    "planned in other words": (in_table("planned", "True"), "column planned: 'True'"),
    "an empty table": (whole("trials.csv", b""), "trials.csv: the column cell is missing"),
    "a table of bytes": (whole("trials.csv", bytes(range(256))), "trials.csv: "),
    "an open quote": (whole("trials.csv", b'cell,"'), "trials.csv: "),
    "no column cell": (in_table("cell", None), "trials.csv: the column cell is missing"),
    "no column seed": (in_table("seed", None), "trials.csv: the column seed is missing"),
    "no column of a level": (in_table("level/bn", None), "trials.csv: the column level/bn is missing"),
    "no column of a cost": (in_table("metric/cost/ops_g", None), "it has no cost/ops_g"),
    "no column of SSIM": (in_table("metric/Set5/ssim", None), "it has no Set5/ssim"),
    "no column of the baseline": (in_table("metric/baseline/Set5/psnr_db", None), "it has no baseline/Set5/psnr_db"),
    "no score": (in_table("metric/Set5/psnr_db", ""), "it has no score on a test set"),
    "a score that is a word": (in_table("metric/Set5/psnr_db", "much"), "column metric/Set5/psnr_db: 'much'"),
    "a score that is NaN": (in_table("metric/Set5/psnr_db", "nan"), "column metric/Set5/psnr_db: 'nan'"),
    "a score that is infinite": (in_table("metric/Set5/psnr_db", "inf"), "its Set5/psnr_db is inf"),
    "a score beyond all floats": (in_table("metric/Set5/psnr_db", "1e999"), "its Set5/psnr_db is inf"),
    "a score that cannot be": (in_table("metric/Set5/psnr_db", "3e5"), "its Set5/psnr_db is 300000"),
    "a similarity that cannot be": (in_table("metric/Set5/ssim", "1.5"), "its Set5/ssim is 1.5"),
    "a negative cost": (in_table("metric/cost/ops_g", "-1"), "its cost/ops_g is -1"),
    "digits of another script": (in_table("metric/Set5/ssim", "0.\u0661"), "column metric/Set5/ssim"),
    "another score than the result's": (in_table("metric/Set5/psnr_db", "31.25"), "but 31.25 in the table"),
    "another cell than the result's": (in_table("cell", "a" * 64), "but aaaa"),
    "another seed than the result's": (in_table("seed", "7"), "but 7 in the table"),
    "a cell that is no SHA-256": (in_table("cell", "bbcu"), "column cell: 'bbcu'"),
    "a seed of many digits": (in_table("seed", "9" * 5000), "column seed: '9999"),
    "a seed of 2^63": (in_table("seed", str(2**63)), "column seed"),
    "a negative seed": (in_table("seed", "-1"), "column seed: '-1'"),
    "a fraction as the seed": (in_table("seed", "0.5"), "column seed: '0.5'"),
    "an unknown state": (in_table("state", "perfect"), "column state: 'perfect'"),
    "a trial that is there twice": (doubled, "row 6: the cell and seed of another row"),
    "a cell in two forms": (in_table("factor/bn", "post"), "with other levels or another setting"),
    "a row of another length": (
        lambda members: members.update({"trials.csv": members["trials.csv"] + b"a,b\n"}),
        "row 6 has 2 cells",
    ),
    "provenance that is a list": (in_table("provenance", "[]"), "column provenance"),
    "deep provenance": (in_table("provenance", "[" * 90_000), "column provenance"),
    "packages that are a list": (in_table("provenance", '{"packages": []}'), "column provenance"),
    "a number of many digits": (in_table("provenance", f'{{"code": {"9" * 5000}}}'), "column provenance"),
    "a trial that is not finished, with files": (in_table("state", "failed"), "0/ belongs to no finished trial"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_no_report_writes_is_one_line(
    original: Members, tmp_path: Path, elsewhere: Path, case: str
) -> None:
    change, said = REFUSED[case]
    members = dict(original)
    change(members)
    assert said in refusal(packed(members, tmp_path / ARCHIVE))
    assert sorted(tmp_path.rglob("*")) == [elsewhere.parent, elsewhere, tmp_path / ARCHIVE]
    assert not Path(PLANTED).exists()


def test_the_archive_that_these_cases_change_is_a_study(original: Members, tmp_path: Path, elsewhere: Path) -> None:
    with opened(packed(original, tmp_path / ARCHIVE)) as archive:
        assert list(archive.results.trials["state"]) == ["finished"] * 5
    assert list(elsewhere.iterdir()) == []


def test_what_the_plan_says_survives(original: Members, tmp_path: Path) -> None:
    with opened(packed(original, tmp_path / ARCHIVE)) as archive:
        results = archive.results
        assert (results.pairing, results.design) == (True, DESIGN)
        assert results.data_names == {DATA: DataNames("BSDS400", ("Set5",))}
        assert (results.rule, results.experiment) == (RULE, EXPERIMENT)
        assert list(results.trials["planned"]) == ["true"] * 4 + ["false"]


EARLIER_LACK = ("pairing", "design", "data_names", "rule", "experiment")


def test_an_archive_of_an_earlier_version_opens_and_all_its_trials_are_planned(
    original: Members, tmp_path: Path
) -> None:
    members = dict(original)
    in_table("planned", None)(members)
    in_json("study.json", lambda known: [known.pop(key) for key in EARLIER_LACK])(members)
    with opened(packed(members, tmp_path / ARCHIVE)) as archive:
        results = archive.results
        assert (results.pairing, results.design, results.data_names, results.rule) == (False, {}, {}, None)
        assert results.experiment == ""
        assert list(results.trials["planned"]) == ["true"] * 5
        assert str(results.trials["planned"].dtype) == "str"


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        pytest.param("external_attr", (stat.S_IFLNK | 0o777) << 16, "no regular file", id="a link"),
        pytest.param("external_attr", (stat.S_IFIFO | 0o644) << 16, "no regular file", id="a FIFO"),
        pytest.param("external_attr", (stat.S_IFCHR | 0o644) << 16, "no regular file", id="a device"),
        pytest.param("compress_type", zipfile.ZIP_BZIP2, "compressed in an unknown way", id="bzip2"),
        pytest.param("compress_type", zipfile.ZIP_LZMA, "compressed in an unknown way", id="LZMA"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    original: Members, tmp_path: Path, attribute: str, value: int, said: str
) -> None:
    path = packed({**original, "study.json": b""}, tmp_path / ARCHIVE)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in original.items():
            info = zipfile.ZipInfo(name)
            if name == "0/curve.csv":
                setattr(info, attribute, value)
            file.writestr(info, content)
    assert said in refusal(path)


def spoilt(path: Path, signature: bytes, offset: int, form: str, value: int) -> Path:
    """Overwrite a number in the last header of a zip file that begins with this signature."""
    content = bytearray(path.read_bytes())
    place = content.rindex(signature) + offset
    struct.pack_into(form, content, place, value)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        pytest.param(8, "<H", 0x1, id="encrypted"),
        pytest.param(8, "<H", 0x20, id="a patch"),
        pytest.param(10, "<H", 99, id="an unknown compression"),
        pytest.param(24, "<I", 2**32 - 2, id="larger than is allowed"),
        pytest.param(42, "<I", 2**31, id="beyond the end"),
    ],
)
def test_a_header_that_lies_is_one_line(original: Members, tmp_path: Path, offset: int, form: str, value: int) -> None:
    refusal(spoilt(packed(original, tmp_path / ARCHIVE), b"PK\1\2", offset, form, value))


def test_two_files_of_one_name_are_refused(original: Members, tmp_path: Path) -> None:
    path = packed(original, tmp_path / ARCHIVE)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("study.json", original["study.json"])
    assert "a file is there twice" in refusal(path)


def test_a_name_that_goes_on_after_nul_is_refused(original: Members, tmp_path: Path) -> None:
    members = {name.replace("study.json", "study.json-evil"): content for name, content in original.items()}
    path = packed(members, tmp_path / ARCHIVE)
    path.write_bytes(path.read_bytes().replace(b"study.json-evil", b"study.json\0evil"))
    assert "is no file of a report" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_is_one_line(original: Members, tmp_path: Path, share: float) -> None:
    content = packed(original, tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(content[: int(share * len(content))])
    refusal(tmp_path / ARCHIVE)


def test_a_fifo_or_folder_in_place_of_an_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    os.mkfifo(tmp_path / "report" / ARCHIVE)
    assert "not a regular file" in refusal(tmp_path / "report" / ARCHIVE)
    for arguments in ([f"{tmp_path}/report"], ["compare", f"{tmp_path}/report", f"{tmp_path}/report/{ARCHIVE}"]):
        with pytest.raises(SystemExit, match="not a regular file"):
            main(arguments)
    (tmp_path / "other" / ARCHIVE).mkdir(parents=True)
    refusal(tmp_path / "other" / ARCHIVE)


# ---- what is bounded ---------------------------------------------------------------------------------------------


def peak_of(path: Path) -> int:
    """The memory that refusing an archive takes, in bytes."""
    tracemalloc.start()
    try:
        refusal(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(original: Members, tmp_path: Path) -> None:
    path = packed({**original, "0/curve.csv": bytes(LARGEST_MEMBER + 1)}, tmp_path / ARCHIVE)
    assert path.stat().st_size < 2**20
    assert peak_of(path) < BOUND


def test_files_that_unpack_to_too_much_together_are_refused(original: Members, tmp_path: Path) -> None:
    curves = {f"{number}/curve.csv": bytes(17 * 2**20) for number in range(4)}
    path = packed({**original, **curves}, tmp_path / ARCHIVE)
    assert "unpacks to more than is allowed" in refusal(path)
    assert peak_of(path) < BOUND


def test_a_table_of_contents_of_millions_of_files_is_not_read_whole(tmp_path: Path) -> None:
    entry = b"PK\1\2" + bytes(42)
    count = 1_500_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, count * len(entry), 0, 0)
    (tmp_path / ARCHIVE).write_bytes(entry * count + end)
    assert peak_of(tmp_path / ARCHIVE) < 2 * BOUND


def test_a_picture_in_many_places_is_stored_once(original: Members, tmp_path: Path, elsewhere: Path) -> None:
    places = json.loads(original["pictures.json"])
    digest = next(digest for digest in places.values() if digest)
    places |= {f"0/samples/Set5/{number}/output.png": digest for number in range(200)}
    path = packed({**original, "pictures.json": json.dumps(places).encode()}, tmp_path / ARCHIVE)
    with opened(path):
        stored = sum(file.lstat().st_size for file in elsewhere.rglob("*.png") if not file.is_symlink())
    assert stored < 10**5


# ---- what was damaged before it was put into an archive -----------------------------------------------------------


def with_picture(members: Members, kind: str, content: bytes) -> Members:
    """Replace a sample picture of the first trial."""
    digest = hashlib.sha256(content).hexdigest()
    places = json.loads(members["pictures.json"])
    places[f"0/samples/Set5/ring/{kind}.png"] = digest
    return {**members, "pictures.json": json.dumps(places).encode(), f"pictures/{digest}.png": content}


def png(height: int, width: int, channels: int = 3) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, np.zeros((height, width, channels)), format="png")
    return buffer.getvalue()


def huge() -> bytes:
    """A PNG file of a few hundred bytes that says that it has 50,000 x 50,000 pixels."""
    content = bytearray(png(2, 2))
    struct.pack_into(">2I", content, 16, 50_000, 50_000)
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    return bytes(content)


def damaged_in(results: StudyResults) -> list[str]:
    task, *_ = split_by_task(results)
    return [name for _, _, name in strips(task, summaries(task), "bicubic")[2]]


DAMAGED_PICTURES = {
    "nothing": b"",
    "text": b"no picture",
    "the start alone": png(48, 48)[:60],
    "huge": huge(),
    "more pixels than a window has": png(1, MOST_PIXELS + 1),
    "another size": png(47, 48),
    "NUL bytes": bytes(500),
}


@pytest.mark.parametrize("kind", ["input", "baseline", "output", "truth"])
@pytest.mark.parametrize("case", DAMAGED_PICTURES)
def test_a_damaged_sample_picture_is_named_and_the_rest_is_shown(
    original: Members, tmp_path: Path, kind: str, case: str
) -> None:
    members = with_picture(original, kind, DAMAGED_PICTURES[case])
    with opened(packed(members, tmp_path / ARCHIVE)) as archive:
        named = damaged_in(archive.results)
    # The size of the truth is that of the others, so with another one all but itself look wrong.
    assert named or (kind, case) == ("truth", "another size")


def test_the_page_names_what_is_damaged(original: Members, tmp_path: Path) -> None:
    members = with_picture(original, "output", b"no picture")
    members["1/curve.csv"] = members["1/curve.csv"][:-5]
    members["2/result.json"] = members["2/result.json"][:-5]
    with opened(packed(members, tmp_path / ARCHIVE)) as archive:
        recorded, asked = recording(archive.results)
        page = compose(recorded, MARGIN_DB)["report.md"].decode()
        assert "**3 files of finished trials are damaged.**" in page
        rows = page.partition("Files of finished trials that are damaged")[2].splitlines()[4:7]
        assert sorted(row.split("|")[3].strip() for row in rows) == [
            "`curve.csv`",
            "`result.json`",
            "`samples/Set5/ring/output.png`",
        ]
        # The archive of this report gives the same page again.
        again = write_archive(archive.results, asked, MARGIN_DB, tmp_path / "again")
    with opened(again) as archive:
        assert compose(archive.results, MARGIN_DB)["report.md"].decode() == page


# ---- any archive -------------------------------------------------------------------------------------------------

ODD_TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-1",
            "0",
            "1e999",
            "9" * 5000,
            "../x",
            "/x",
            "a/b",
            "$\\frac$",
            "`",
            "|",
            "<b>",
            "\0",
            "\u202e",
        ]
    ),
    st.text(max_size=20),
    st.floats().map(str),
    st.integers().map(str),
)
ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places_in(content: Any) -> list[tuple[Any, Any]]:
    """Every list or object in a JSON value, with each of its positions or keys."""
    if not isinstance(content, dict | list):
        return []
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    return [(content, key) for key in keys] + [place for key in keys for place in places_in(content[key])]


@st.composite
def spoilt_json(draw: st.DrawFn, content: bytes) -> bytes:
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        if places := places_in(value):
            inside, key = draw(st.sampled_from(places))
            kind = draw(st.sampled_from(["replace", "remove", "rename"]))
            if kind == "replace" or isinstance(inside, list):
                inside[key] = draw(ODD_JSON)
            elif kind == "remove":
                del inside[key]
            else:
                inside[draw(ODD_TEXTS)] = inside.pop(key)
    return json.dumps(value).encode()


@st.composite
def spoilt_table(draw: st.DrawFn, content: bytes) -> bytes:
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(draw(st.integers(1, 2))):
        row = draw(st.sampled_from(rows))
        column = draw(st.integers(0, len(row) - 1))
        kind = draw(st.sampled_from(["cell", "cell", "cell", "column", "row", "twice"]))
        if kind == "cell":
            other = draw(st.sampled_from(rows))
            row[column] = draw(ODD_TEXTS.map(str.encode) | st.sampled_from(other))
        elif kind == "column":
            rows = [line[:column] + line[column + 1 :] or [b""] for line in rows]
        elif kind == "row":
            rows = [line for line in rows if line is not row] or [[b""]]
        else:
            rows = [*rows[:-1], list(row), rows[-1]]
    return b"\n".join(b",".join(row) for row in rows)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    if not content:
        return draw(st.binary(max_size=100))
    start = draw(st.integers(0, len(content) - 1))
    length = draw(st.integers(1, 20) | st.integers(1, len(content)))
    new = draw(st.sampled_from([b"", b"\0" * length]) | st.binary(min_size=1, max_size=20))
    return content[:start] + new + content[start + length :]


@st.composite
def spoilt_members(draw: st.DrawFn, members: Members) -> Members:
    """Other files in the archive; a picture keeps the name that its content has."""
    found = dict(members)
    name = draw(st.sampled_from(sorted(members)))
    ways = [spoilt_bytes(found[name]), st.binary(max_size=200)]
    ways += [spoilt_json(found[name])] * 8 if name.endswith(".json") else []
    ways += [spoilt_table(found[name])] * 8 if name.endswith(".csv") else []
    content = draw(st.one_of(ways))
    if name.startswith("pictures/") and draw(st.integers(0, 9)):
        digest = hashlib.sha256(content).hexdigest()
        del found[name]
        found[f"pictures/{digest}.png"] = content
        found["pictures.json"] = found["pictures.json"].replace(name[9:-4].encode(), digest.encode())
    elif draw(st.integers(0, 9)):
        found[name] = content
    else:
        del found[name]
    return found


def read_all(results: StudyResults, other: StudyResults) -> None:
    """Read everything that a report and a comparison read."""
    compare(results, other, ("first", "second"))
    for setting in split_by_task(results):
        assert set(setting.records.damaged) <= set(setting.identities)
        assert set(setting.curves().columns) == {"cell", "seed", "step", "metric", "value"}
        if len(setting.finished):
            strips(setting, summaries(setting), "bicubic")


@pytest.fixture(scope="module")
def archive(original: Members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(original, tmp_path_factory.mktemp("packed") / ARCHIVE)


@hypothesis.given(data=st.data())
def test_any_archive_is_a_study_or_one_line(
    original: Members, archive: Path, tmp_path: Path, elsewhere: Path, data: st.DataObject
) -> None:
    path = tmp_path / ARCHIVE
    if data.draw(st.integers(0, 4)):
        packed(data.draw(spoilt_members(original)), path)
    else:
        path.write_bytes(data.draw(spoilt_bytes(archive.read_bytes())))
    with opened(archive) as sound, contextlib.suppress(ConfigError), opened(path) as found:
        read_all(found.results, sound.results)
    assert sorted(tmp_path.rglob("*")) == [elsewhere.parent, elsewhere, path]
