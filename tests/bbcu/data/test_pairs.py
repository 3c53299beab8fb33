"""Pairs of input and truth, and the cache that keeps them: whole, mapped into memory, and never what stops a trial."""

import contextlib
import hashlib
import json
import logging
import math
import multiprocessing
import os
import resource
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bbcu.data import pairs
from bbcu.data.images import Pixels
from bbcu.data.pairs import Pair, PreparedData, prepare
from bbcu.data.sources import InMemory, Picture, Pictures, fingerprint, with_checksum
from bbcu.data.tasks import ArtifactReduction, Denoising, Score, SuperResolution, Task
from bbcu.errors import DataError
from tests.harness.builders import (
    NOBODY,
    in_another_process,
    noise,
    open_folder,
    picture,
    picture_of,
    some_pictures,
    without_root_rights,
)

X2 = SuperResolution(2)
DENOISE = Denoising((25.0,), (0.0, 75.0))
JPEG = ArtifactReduction((10,), (1, 50))


# ---- pairs -----------------------------------------------------------------------------------------------------------


def assert_same(first: PreparedData, second: PreparedData) -> None:
    assert (first.task.parameters(), first.fingerprint, first.baseline) == (
        second.task.parameters(),
        second.fingerprint,
        second.baseline,
    )
    assert list(first.test) == list(second.test)
    assert_same_pairs(first.train, second.train)
    for set_name in first.test:
        assert_same_pairs(first.test[set_name], second.test[set_name])


def assert_same_pairs(first: tuple[Pair, ...], second: tuple[Pair, ...]) -> None:
    assert [pair.name for pair in first] == [pair.name for pair in second]
    for one, other in zip(first, second, strict=True):
        assert one.input.dtype == other.input.dtype
        assert one.truth.dtype == other.truth.dtype == np.uint8
        np.testing.assert_array_equal(one.input, other.input)
        np.testing.assert_array_equal(one.truth, other.truth)


def test_every_picture_becomes_the_pair_of_the_task() -> None:
    pictures = some_pictures()
    data = prepare(pictures, X2, patch=8)
    assert data.task == X2
    assert data.fingerprint == fingerprint(pictures)
    assert_same_pairs(data.train, tuple(Pair(found.name, *X2.pair(found.truth.read())) for found in pictures.train))
    assert list(data.test) == ["SetB", "SetA"]
    for set_name, found_pictures in pictures.test.items():
        expected = tuple(Pair(found.name, *X2.pair(found.truth.read())) for found in found_pictures)
        assert_same_pairs(data.test[set_name], expected)


def test_the_baseline_is_scored_for_every_test_picture() -> None:
    data = prepare(some_pictures(), X2, patch=8)
    assert {name: list(scores) for name, scores in data.baseline.items()} == {
        "SetB": ["third", "fourth"],
        "SetA": ["fifth"],
    }
    fourth = data.test["SetB"][1]
    assert data.baseline["SetB"]["fourth"] == X2.score(X2.baseline(fourth.input), fourth.truth)


# To train on: a patch of 8 x 8 input pixels. To test on: 11 pixels for the window of SSIM, the scale at either border,
# and that rounded up to a multiple of the scale.
@pytest.mark.parametrize("turn", [False, True], ids=["too low", "too narrow"])
@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(
    ("task", "to_train", "to_test"),
    [
        pytest.param(X2, 16, 16, id="sr_x2"),
        pytest.param(SuperResolution(3), 24, 18, id="sr_x3"),
        pytest.param(SuperResolution(4), 32, 20, id="sr_x4"),
        pytest.param(DENOISE, 8, 11, id="denoise"),
        pytest.param(JPEG, 8, 11, id="jpeg"),
    ],
)
def test_a_picture_holds_at_least_one_patch_or_one_window_of_the_score(
    task: Task, to_train: int, to_test: int, role: str, turn: bool
) -> None:
    def pictures(short: int) -> Pictures:
        both = picture("large", 50, 50), picture("small", *((50, short) if turn else (short, 50)))
        return Pictures(both, {}) if role == "train" else Pictures((), {"set": both})

    least = to_train if role == "train" else to_test
    data = prepare(pictures(least), task, patch=8)
    assert [pair.name for pair in (*data.train, *data.test.get("set", ()))] == ["large", "small"]
    size = f"{least - 1} x 50" if turn else f"50 x {least - 1}"
    with pytest.raises(DataError, match=rf"^somewhere/small\.png: .* {size} pixels; .* at least {least} x {least}$"):
        prepare(pictures(least - 1), task, patch=8)


def test_every_level_of_a_task_is_a_test_set_of_its_own() -> None:
    task = Denoising((15.0, 12.5), (0.0, 75.0))
    data = prepare(Pictures((), {"CBSD68": (picture("a"),)}), task, patch=8)
    assert list(data.test) == list(data.baseline) == ["CBSD68-sigma15", "CBSD68-sigma12_5"]
    for name, level in (("CBSD68-sigma15", "-sigma15"), ("CBSD68-sigma12_5", "-sigma12_5")):
        input, truth = task.test_pair(noise(24, 30), level)
        assert_same_pairs(data.test[name], (Pair("a", input, truth),))
        assert data.baseline[name]["a"] == task.score(task.baseline(input), truth)


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_if_patches_are_degraded_as_they_are_drawn_a_training_pair_has_its_truth_for_input(task: Task) -> None:
    data = prepare(some_pictures(), task, patch=8)
    assert all(pair.input is pair.truth for pair in data.train)
    np.testing.assert_array_equal(data.train[0].truth, task.pair(noise(24, 30, seed=1))[1])


# ---- given inputs ----------------------------------------------------------------------------------------------------


def test_a_given_input_is_used_as_it_is_with_the_truth_cut_to_fit() -> None:
    data = prepare(Pictures((GIVEN,), {"set": (GIVEN,)}), X2, patch=8)
    expected = (Pair("given", noise(12, 15, seed=1), noise(25, 31)[:24, :30]),)
    assert_same_pairs(data.train, expected)
    assert_same_pairs(data.test["set"], expected)


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_a_task_that_makes_its_inputs_takes_none(task: Task) -> None:
    for make in (task.pair, lambda picture, given: task.test_pair(picture, "", given)):
        with pytest.raises(ValueError, match=f"{task.name} makes its inputs itself"):
            make(noise(12, 12), noise(12, 12))


# ---- the cache of pairs ----------------------------------------------------------------------------------------------


class ReadOnly(SuperResolution):
    """The same task, where making a pair shows that the cache was not used."""

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        raise AssertionError("the pair was made and not read from the cache")


FLAT = picture_of("flat", np.full((20, 20, 3), 77, dtype=np.uint8))
GIVEN = Picture("given", InMemory(noise(25, 31), "truth.png"), InMemory(noise(12, 15, seed=1), "input.png"))


@pytest.mark.parametrize(
    ("pictures", "task"),
    [
        pytest.param(some_pictures(), X2, id="sr_x2"),
        pytest.param(some_pictures(), DENOISE, id="denoise"),
        pytest.param(some_pictures(), JPEG, id="jpeg"),
        pytest.param(Pictures((), {}), X2, id="nothing at all"),
        pytest.param(Pictures((), some_pictures().test), X2, id="test sets alone"),
        pytest.param(Pictures((GIVEN,), {"set": (GIVEN,)}), X2, id="given inputs"),
        pytest.param(Pictures((), {"set": (FLAT,)}), X2, id="a picture that the baseline restores perfectly"),
    ],
)
def test_pairs_and_scores_are_read_from_the_cache(pictures: Pictures, task: Task, tmp_path: Path) -> None:
    expected = prepare(pictures, task, patch=8)
    index = place_of(prepare(pictures, task, 8, tmp_path / "cache"), tmp_path / "cache") / "index.json"
    before = index.stat()
    assert_same(prepare(pictures, task, 8, tmp_path / "cache"), expected)
    assert index.stat() == before


def place_of(data: PreparedData, cache: Path) -> Path:
    return cache / f"{data.fingerprint[:16]}-{data.task.identity}"


def kept(cache: Path) -> list[str]:
    """Every file of the cache but the image infos, hidden ones too."""
    files = (path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parent.name)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param(X2, "sr_x2", id="sr_x2"),
        pytest.param(SuperResolution(3), "sr_x3", id="sr_x3"),
        pytest.param(Denoising((25.0,), (0.0, 75.0)), "denoise-25", id="denoise"),
        pytest.param(Denoising((15.0, 12.5), (0.0, 75.0)), "denoise-15-12.5", id="denoise at two levels"),
        pytest.param(ArtifactReduction((10, 40), (1, 50)), "jpeg-10-40", id="jpeg"),
    ],
)
def test_the_cache_is_a_folder_of_two_files_named_by_fingerprint_task_and_tested_strengths(
    task: Task, name: str, tmp_path: Path
) -> None:
    data = prepare(some_pictures(), task, patch=8, cache=tmp_path)
    place = f"{data.fingerprint[:16]}-{name}"
    assert kept(tmp_path) == [f"{place}/index.json", f"{place}/pixels.bin"]


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_a_truth_that_is_its_own_input_is_on_disk_once_however_the_task_trains(task: Task, tmp_path: Path) -> None:
    pictures = Pictures((picture("a", 64, 64),), {})
    one_strength = {"denoise": Denoising((25.0,), (25.0, 25.0)), "jpeg": ArtifactReduction((10,), (7, 7))}[task.name]
    prepare(pictures, one_strength, patch=8, cache=tmp_path)
    data = prepare(pictures, task, patch=8, cache=tmp_path)
    (pair,) = data.train
    assert len(kept(tmp_path)) == 2
    assert (place_of(data, tmp_path) / "pixels.bin").stat().st_size == 64 * 64 * task.colours
    assert np.shares_memory(pair.input, pair.truth)
    assert data.task == task


def test_the_pixels_of_a_cache_cannot_be_written_to(tmp_path: Path) -> None:
    data = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    for pair in (*data.train, *data.test["SetA"]):
        with pytest.raises(ValueError, match="read-only"):
            pair.truth[0] = 0


def test_pixels_that_were_released_come_back(tmp_path: Path) -> None:
    data = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    data.release()
    assert_same(data, prepare(some_pictures(), X2, patch=8))
    data.release()
    assert_same(data, prepare(some_pictures(), X2, patch=8))


def test_sizes_are_checked_even_where_the_pairs_are_cached(tmp_path: Path) -> None:
    prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    with pytest.raises(DataError, match="needs at least 26 x 26"):
        prepare(some_pictures(), X2, patch=13, cache=tmp_path)


def test_a_cache_of_an_earlier_format_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    monkeypatch.setattr(pairs, "CACHE_FORMAT", pairs.CACHE_FORMAT + 1)
    with pytest.raises(AssertionError, match="not read from the cache"):
        prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path)


def flip(file: Path, place: int) -> None:
    """Change one bit of one byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def data_of_another(place: Path) -> None:
    others = Pictures((picture("other", seed=8),), {"SetA": (picture("other", seed=9),)})
    other = prepare(others, X2, patch=8, cache=place.parent / "other")
    shutil.rmtree(place)
    os.replace(place_of(other, place.parent / "other"), place)


def nothing_there(place: Path) -> None:
    for file in place.iterdir():
        file.unlink()


def pipe_in_place_of(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder_in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


PIXELS, INDEX = "pixels.bin", "index.json"
DAMAGE = [
    pytest.param(nothing_there, id="an empty folder"),
    pytest.param(data_of_another, id="data of another"),
    *(
        pytest.param(lambda place, file=file, damage=damage: damage(place / file), id=f"{file}: {name}")
        for file in (PIXELS, INDEX)
        for name, damage in {
            "missing": Path.unlink,
            "empty": lambda file: file.write_bytes(b""),
            "nonsense": lambda file: file.write_bytes(b"nonsense" * 100),
            "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
            "the last byte missing": lambda file: os.truncate(file, file.stat().st_size - 1),
            "one bit of the first byte": lambda file: flip(file, 0),
            "one bit in the middle": lambda file: flip(file, file.stat().st_size // 2),
            "one bit of the last byte": lambda file: flip(file, file.stat().st_size - 1),
            "a folder": folder_in_place_of,
        }.items()
    ),
    *(
        pytest.param(lambda place, file=file: pipe_in_place_of(place / file), id=f"{file}: a pipe")
        for file in (PIXELS, INDEX)
    ),
    pytest.param(lambda place: (place / INDEX).write_text("{}"), id="an index without a checksum"),
    pytest.param(lambda place: (place / INDEX).write_text(with_checksum({})), id="an index that says nothing"),
    pytest.param(lambda place: (place / INDEX).write_text("[" * 100_000), id="an index nested without end"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt_and_that_is_logged(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    expected = prepare(some_pictures(), X2, patch=8)
    place = place_of(prepare(some_pictures(), X2, patch=8, cache=tmp_path), tmp_path)
    assert caplog.text == ""
    damage(place)
    assert_same(expected, prepare(some_pictures(), X2, patch=8, cache=tmp_path))
    assert f"the prepared pictures in {place} are rebuilt" in caplog.text
    assert_same(expected, prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path))
    assert sorted(path.name for path in place.iterdir()) == [INDEX, PIXELS]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("planted", [INDEX, PIXELS])
def test_pixels_that_another_user_could_have_written_are_not_used(
    tmp_path: Path, planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = prepare(some_pictures(), X2, patch=8)
    place = place_of(prepare(some_pictures(), X2, patch=8, cache=tmp_path), tmp_path)
    content = bytearray((place / PIXELS).read_bytes())
    index = json.loads((place / INDEX).read_text().partition("\n")[2])
    truth = index["train"][0]["truth"]
    content[0] ^= 255
    truth["check"] = zlib.crc32(content[: math.prod(truth["shape"])])
    (place / PIXELS).write_bytes(content)
    (place / INDEX).write_text(with_checksum(index))
    os.chown(place / planted, NOBODY, NOBODY)
    assert_same(expected, prepare(some_pictures(), X2, patch=8, cache=tmp_path))
    assert "it belongs to another user" in caplog.text


ODD = [
    -1,
    0,
    2**40,
    2**63,
    10**30,
    1.5,
    float("nan"),
    None,
    True,
    "",
    "O",
    "float64",
    "\x1b",
    [],
    [-1, -1, 1],
    [2**40] * 3,
]


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Path], object]:
    """A change of the bytes of a file of the cache, or of one value in its index with a new checksum."""
    if draw(st.booleans()):
        name, place = draw(st.sampled_from([INDEX, PIXELS])), draw(st.floats(0, 1))
        put, removed = draw(st.binary(max_size=5)), draw(st.sampled_from([0, 1, 4, 5000]))

        def change_bytes(folder: Path) -> None:
            content = (folder / name).read_bytes()
            at = int(place * len(content))
            (folder / name).write_bytes(content[:at] + put + content[at + removed :])

        return change_bytes
    kind, what = (
        draw(st.sampled_from(["truth", "input"])),
        draw(st.sampled_from(["start", "shape", "type", "check", ""])),
    )
    value = draw(st.sampled_from(ODD))

    def change_index(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text().partition("\n")[2])
        pair = index["train"][0]
        (pair[kind] if what else pair)[what or kind] = value
        (folder / INDEX).write_text(with_checksum(index))

    return change_index


@pytest.fixture(scope="module")
def small() -> PreparedData:
    return prepare(SMALL, X2, patch=8)


SMALL = Pictures((picture("small", 16, 16),), {})


@hypothesis.given(changes())
def test_whatever_is_in_the_cache_the_pixels_are_right(
    tmp_path_factory: pytest.TempPathFactory, small: PreparedData, change: Callable[[Path], object]
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    change(place_of(prepare(SMALL, X2, patch=8, cache=cache), cache))
    assert_same(small, prepare(SMALL, X2, patch=8, cache=cache))
    assert_same(small, prepare(SMALL, ReadOnly(2), patch=8, cache=cache))


def test_a_reader_of_the_old_pixels_is_not_disturbed_when_the_cache_is_rebuilt(tmp_path: Path) -> None:
    reader = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    flip(place_of(reader, tmp_path) / "index.json", 0)
    prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    reader.release()
    assert_same(reader, prepare(some_pictures(), X2, patch=8))


def file_as_cache(cache: Path) -> None:
    cache.write_text("no folder")


def file_as_place(cache: Path) -> None:
    cache.mkdir()
    (cache / f"{fingerprint(some_pictures())[:16]}-sr_x2").write_text("no folder")


@pytest.mark.parametrize("obstruct", [file_as_cache, file_as_place])
def test_a_cache_that_cannot_be_written_is_not_used_and_logged(
    tmp_path: Path, obstruct: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    obstruct(tmp_path / "cache")
    assert_same(prepare(some_pictures(), X2, 8, tmp_path / "cache"), prepare(some_pictures(), X2, 8))
    assert "cannot be cached in" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_in_a_folder_without_permission_is_not_used() -> None:
    with open_folder() as place:
        (place / "cache").mkdir(mode=0o555)
        (place / "cache").chmod(0o555)
        with without_root_rights():
            data = prepare(some_pictures(), X2, 8, place / "cache")
        assert_same(data, prepare(some_pictures(), X2, 8))
        assert not list((place / "cache").iterdir())


class Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def warnings_of(name: str) -> list[str]:
    """What a logger says from now on, for a process that ends with the test."""
    listener = Listener()
    logging.getLogger(name).addHandler(listener)
    return listener.messages


def summary_where_files_are_short(cache: Path, most: int) -> tuple[str, list[str]]:
    """What a process prepares that can write ``most`` bytes to a file, and what it warns of."""
    warnings = warnings_of("bbcu.data.pairs")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return summary(prepare(some_pictures(), X2, 8, cache)), warnings


def summary(data: PreparedData) -> str:
    """A digest of every name, pixel and score."""
    digest = hashlib.sha256()
    for name, found in {"": data.train, **data.test}.items():
        for pair in found:
            digest.update(f"{name} {pair.name} {data.baseline.get(name, {}).get(pair.name)}".encode())
            digest.update(pair.input.tobytes() + pair.truth.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("most", [0, 5000], ids=["at once", "on the way"])
def test_a_disk_that_is_full_is_not_used(tmp_path: Path, most: int) -> None:
    expected = summary(prepare(some_pictures(), X2, 8))
    found, (warning,) = in_another_process(summary_where_files_are_short, tmp_path, most)
    assert found == expected
    assert "cannot be cached in" in warning
    assert kept(tmp_path) == []
    assert not list(tmp_path.rglob("*.tmp"))


@dataclass(frozen=True)
class InStep(SuperResolution):
    """The same task, in which all processes that prepare it wait for each other before they write."""

    together: Barrier

    def score(self, output: Pixels, truth: Pixels) -> Score:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.together.wait()
        return super().score(output, truth)


LARGE = Pictures((picture("large", 600, 600),), some_pictures().test)
SEVERAL = 4


def prepared_in_step(cache: Path, together: Barrier, answers: "Queue[tuple[str, list[str]]]") -> None:
    """Prepare in a process of its own, and report a digest of the result and the warnings."""
    warnings = warnings_of("bbcu.data.pairs")
    data = prepare(LARGE, InStep(2, together), 8, cache)
    answers.put((summary(data), warnings))


def test_several_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, answers = context.Barrier(SEVERAL, timeout=10), context.Queue()
    processes = [
        context.Process(target=prepared_in_step, args=(tmp_path, together, answers), daemon=True)
        for _ in range(SEVERAL)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(summary(prepare(LARGE, X2, patch=8)), [])] * SEVERAL
    assert_same(prepare(LARGE, X2, patch=8), prepare(LARGE, ReadOnly(2), patch=8, cache=tmp_path))
    assert [Path(name).name for name in kept(tmp_path)] == ["index.json", "pixels.bin"]
