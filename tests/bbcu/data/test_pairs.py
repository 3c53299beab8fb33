"""Pairs of input and truth, and the cache that keeps them: whole, mapped into memory, and never what stops a trial."""

import contextlib
import hashlib
import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from bbcu.data import pairs
from bbcu.data.images import Pixels, downscale
from bbcu.data.pairs import Pair, PreparedData, prepare
from bbcu.data.sources import Picture, Pictures, fingerprint, folder
from bbcu.data.tasks import ArtifactReduction, Denoising, Score, SuperResolution, Task
from bbcu.errors import DataError
from tests.harness.builders import (
    in_another_process,
    noise,
    open_folder,
    picture,
    picture_of,
    save,
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


@pytest.mark.parametrize(("scale", "least"), [(2, 16), (3, 24), (4, 32)])
@pytest.mark.parametrize("turn", [False, True], ids=["too low", "too narrow"])
def test_a_training_picture_holds_at_least_one_patch(scale: int, least: int, turn: bool) -> None:
    def pictures(short: int) -> Pictures:
        height, width = (50, short) if turn else (short, 50)
        return Pictures((picture("large", 50, 50), picture("small", height, width)), {})

    assert prepare(pictures(least), SuperResolution(scale), patch=8).train[1].name == "small"
    size = f"{least - 1} x 50" if turn else f"50 x {least - 1}"
    with pytest.raises(DataError, match=rf"^somewhere/small\.png: .* {size} pixels; .* at least {least} x {least}$"):
        prepare(pictures(least - 1), SuperResolution(scale), patch=8)


# 11 pixels for the window of SSIM, the scale at either border, and that rounded up to a multiple of the scale.
@pytest.mark.parametrize(("scale", "least"), [(2, 16), (3, 18), (4, 20)])
@pytest.mark.parametrize("turn", [False, True], ids=["too low", "too narrow"])
def test_a_test_picture_holds_at_least_one_window_of_the_score(scale: int, least: int, turn: bool) -> None:
    def pictures(short: int) -> Pictures:
        height, width = (50, short) if turn else (short, 50)
        return Pictures((), {"large": (picture("large", 50, 50),), "small": (picture("small", height, width),)})

    assert prepare(pictures(least), SuperResolution(scale), patch=8).baseline["small"]
    size = f"{least - 1} x 50" if turn else f"50 x {least - 1}"
    with pytest.raises(DataError, match=rf"^somewhere/small\.png: .* {size} pixels; .* at least {least} x {least}$"):
        prepare(pictures(least - 1), SuperResolution(scale), patch=8)


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_where_nothing_is_shrunk_one_patch_and_one_window_are_enough(task: Task) -> None:
    data = prepare(Pictures((picture("a", 8, 9),), {"set": (picture("b", 11, 11),)}), task, patch=8)
    assert (len(data.train), list(data.baseline["set"])) == (1, ["b"])
    with pytest.raises(DataError, match=r"^somewhere/a\.png: .* 9 x 7 pixels; .* at least 8 x 8$"):
        prepare(Pictures((picture("a", 7, 9),), {}), task, patch=8)
    with pytest.raises(DataError, match=r"^somewhere/b\.png: .* 11 x 10 pixels; .* at least 11 x 11$"):
        prepare(Pictures((), {"set": (picture("b", 10, 11),)}), task, patch=8)


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


def given_set(path: Path, input: Pixels) -> Path:
    """The layout of the benchmarks, with one picture of 24 x 30 pixels and an odd row and column."""
    save(noise(25, 31), path / "HR" / "baby.png")
    save(input, path / "LR_bicubic" / "X2" / "babyx2.png")
    return path


def test_a_given_input_is_used_as_it_is(tmp_path: Path) -> None:
    input = noise(12, 15, seed=1)
    given = given_set(tmp_path, input)
    data = prepare(folder(given, {"set": given}, 2), X2, patch=8)
    expected = (Pair("baby", input, noise(25, 31)[:24, :30]),)
    assert_same_pairs(data.train, expected)
    assert_same_pairs(data.test["set"], expected)
    assert data.baseline["set"]["baby"] == X2.score(X2.baseline(input), expected[0].truth)


def test_a_given_input_survives_the_cache(tmp_path: Path) -> None:
    pictures = folder(None, {"set": given_set(tmp_path / "set", noise(12, 15, seed=1))}, 2)
    made = prepare(pictures, X2, patch=8, cache=tmp_path / "cache")
    assert_same(made, prepare(pictures, ReadOnly(2), patch=8, cache=tmp_path / "cache"))


def test_given_inputs_are_other_data_than_made_ones_even_where_they_are_equal(tmp_path: Path) -> None:
    given = given_set(tmp_path / "set", downscale(noise(25, 31)[:24, :30], 2))
    of_given, of_made = (prepare(folder(None, {"set": given}, inputs), X2, 8, tmp_path) for inputs in (2, None))
    assert_same_pairs(of_given.test["set"], of_made.test["set"])
    assert of_given.fingerprint != of_made.fingerprint


@pytest.mark.parametrize(("height", "width"), [(13, 15), (12, 16), (24, 30), (15, 12)])
def test_a_given_input_of_the_wrong_size_is_refused_with_both_files(tmp_path: Path, height: int, width: int) -> None:
    given = given_set(tmp_path, noise(height, width))
    with pytest.raises(DataError) as error:
        prepare(folder(None, {"set": given}, 2), X2, patch=8)
    assert str(error.value) == (
        f"{given}/LR_bicubic/X2/babyx2.png: the input is {width} x {height} pixels; "
        f"{given}/HR/baby.png shrunk by 2 is 15 x 12"
    )


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_a_task_that_makes_its_inputs_takes_none(task: Task) -> None:
    with pytest.raises(ValueError, match=f"{task.name} makes its inputs itself"):
        task.pair(noise(12, 12), noise(12, 12))
    with pytest.raises(ValueError, match=f"{task.name} makes its inputs itself"):
        task.test_pair(noise(12, 12), "", noise(12, 12))


# ---- the cache of pairs ----------------------------------------------------------------------------------------------


class ReadOnly(SuperResolution):
    """The same task, where making a pair shows that the cache was not used."""

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        raise AssertionError("the pair was made and not read from the cache")


def test_pairs_and_scores_are_read_from_the_cache(tmp_path: Path) -> None:
    made = prepare(some_pictures(), X2, patch=8, cache=tmp_path / "cache")
    assert_same(made, prepare(some_pictures(), X2, patch=8))
    assert_same(made, prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path / "cache"))


def test_a_picture_that_the_baseline_restores_perfectly_survives_the_cache(tmp_path: Path) -> None:
    flat = picture_of("flat", np.full((20, 20, 3), 77, dtype=np.uint8))
    prepare(Pictures((), {"set": (flat,)}), X2, patch=8, cache=tmp_path)
    assert prepare(Pictures((), {"set": (flat,)}), ReadOnly(2), 8, tmp_path).baseline["set"]["flat"].psnr_db == math.inf


def place_of(data: PreparedData, cache: Path) -> Path:
    return cache / f"{data.fingerprint[:16]}-{data.task.identity}"


def kept(cache: Path) -> list[str]:
    """Every file of the cache but the image infos, hidden ones too."""
    files = (path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parent.name)


def test_the_cache_is_a_folder_of_two_files_named_by_fingerprint_and_task(tmp_path: Path) -> None:
    data = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    name = f"{data.fingerprint[:16]}-sr_x2"
    assert kept(tmp_path) == [f"{name}/index.json", f"{name}/pixels.bin"]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param(Denoising((25.0,), (0.0, 75.0)), "denoise-25", id="denoise"),
        pytest.param(Denoising((15.0, 12.5), (0.0, 75.0)), "denoise-15-12.5", id="denoise at two levels"),
        pytest.param(ArtifactReduction((10, 40), (1, 50)), "jpeg-10-40", id="jpeg"),
    ],
)
def test_the_strengths_that_are_tested_are_part_of_the_name(task: Task, name: str, tmp_path: Path) -> None:
    data = prepare(some_pictures(), task, patch=8, cache=tmp_path)
    assert place_of(data, tmp_path).name == f"{data.fingerprint[:16]}-{name}"
    assert place_of(data, tmp_path).is_dir()


def test_how_a_task_trains_is_no_part_of_its_cache(tmp_path: Path) -> None:
    for train_sigma in ((0.0, 75.0), (25.0, 25.0)):
        data = prepare(some_pictures(), Denoising((25.0,), train_sigma), patch=8, cache=tmp_path)
        assert data.task.parameters()["train_sigma"] == list(train_sigma)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_a_task_with_another_kind_of_input_survives_the_cache(task: Task, tmp_path: Path) -> None:
    made = prepare(some_pictures(), task, patch=8)
    for _ in range(2):
        assert_same(made, prepare(some_pictures(), task, patch=8, cache=tmp_path))


@pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])
def test_a_truth_that_is_its_own_input_lies_on_disk_once(task: Task, tmp_path: Path) -> None:
    pictures = Pictures((picture("a", 64, 64),), {})
    prepare(pictures, task, patch=8, cache=tmp_path)
    data = prepare(pictures, task, patch=8, cache=tmp_path)
    (pair,) = data.train
    assert (place_of(data, tmp_path) / "pixels.bin").stat().st_size == 64 * 64 * task.colours
    assert np.shares_memory(pair.input, pair.truth)


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


@pytest.mark.parametrize("test", [{}, some_pictures().test], ids=["nothing at all", "test sets alone"])
def test_data_without_training_pictures_survive_the_cache(tmp_path: Path, test: dict[str, tuple[Picture, ...]]) -> None:
    made = prepare(Pictures((), test), X2, patch=8, cache=tmp_path)
    assert made.train == ()
    assert_same(made, prepare(Pictures((), test), ReadOnly(2), patch=8, cache=tmp_path))


def test_the_same_pictures_are_cached_for_each_task(tmp_path: Path) -> None:
    for scale in (2, 3):
        prepare(some_pictures(), SuperResolution(scale), patch=8, cache=tmp_path)
    for scale in (2, 3):
        assert prepare(some_pictures(), ReadOnly(scale), patch=8, cache=tmp_path).train[0].input.shape[0] == 24 // scale


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
    """Turn one bit of one byte over; a digit stays a digit, a letter a letter."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def of_pixels(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda place: damage(place / "pixels.bin")


def of_index(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda place: damage(place / "index.json")


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped_behind(text: str, further: int = 0) -> Callable[[Path], None]:
    """Flip a bit of the character that follows the first occurrence of a text, however its quotes are written."""
    pattern = re.escape(text).replace('"', r"\\*\"").replace(r"\ ", " ?")

    def damage(file: Path) -> None:
        found = re.search(pattern, file.read_text(encoding="utf-8"))
        assert found is not None
        flip(file, found.end() + further)

    return damage


def data_of_another(place: Path) -> None:
    others = Pictures((picture("other", seed=8),), {"SetA": (picture("other", seed=9),)})
    other = prepare(others, X2, patch=8, cache=place.parent / "other")
    shutil.rmtree(place)
    os.replace(place_of(other, place.parent / "other"), place)


def nothing_there(place: Path) -> None:
    for file in place.iterdir():
        file.unlink()


def folder_in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE = [
    pytest.param(nothing_there, id="an empty folder"),
    pytest.param(of_pixels(Path.unlink), id="no pixels"),
    pytest.param(of_pixels(lambda file: file.write_bytes(b"")), id="empty pixels"),
    pytest.param(of_pixels(cut_in_half), id="pixels cut in half"),
    pytest.param(of_pixels(lambda file: os.truncate(file, file.stat().st_size - 1)), id="the last byte of the pixels"),
    pytest.param(of_pixels(lambda file: flip(file, 0)), id="one bit of the first pixel"),
    pytest.param(of_pixels(lambda file: flip(file, file.stat().st_size - 1)), id="one bit of the last pixel"),
    pytest.param(of_pixels(folder_in_place_of), id="a folder for pixels"),
    pytest.param(of_index(Path.unlink), id="no index"),
    pytest.param(of_index(lambda file: file.write_bytes(b"")), id="empty index"),
    pytest.param(of_index(lambda file: file.write_bytes(b"nonsense" * 100)), id="nonsense for an index"),
    pytest.param(of_index(lambda file: file.write_text("{}")), id="an index that says nothing"),
    pytest.param(of_index(lambda file: file.write_text("[" * 100_000)), id="an index nested without end"),
    pytest.param(of_index(cut_in_half), id="index cut in half"),
    pytest.param(of_index(flipped_behind('"fingerprint": "')), id="one bit of the fingerprint"),
    pytest.param(of_index(flipped_behind('"name": "')), id="one bit of a name"),
    pytest.param(of_index(flipped_behind('"start": ')), id="one bit of a place"),
    pytest.param(of_index(flipped_behind('"shape": [')), id="one bit of a shape"),
    pytest.param(of_index(flipped_behind('"type": "uint')), id="one bit of a type"),
    pytest.param(of_index(flipped_behind('"check": ')), id="one bit of a checksum"),
    pytest.param(of_index(flipped_behind('"third": [', further=1)), id="one bit of a score"),
    pytest.param(of_index(folder_in_place_of), id="a folder for an index"),
    pytest.param(data_of_another, id="data of another"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    expected = prepare(some_pictures(), X2, patch=8)
    place = place_of(prepare(some_pictures(), X2, patch=8, cache=tmp_path), tmp_path)
    damage(place)
    assert_same(expected, prepare(some_pictures(), X2, patch=8, cache=tmp_path))
    assert_same(expected, prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path))
    assert sorted(path.name for path in place.iterdir()) == ["index.json", "pixels.bin"]


def test_a_rebuilt_cache_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = place_of(prepare(some_pictures(), X2, patch=8, cache=tmp_path), tmp_path)
    assert caplog.text == ""
    flip(place / "pixels.bin", 0)
    prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    assert f"the prepared pictures in {place} are rebuilt" in caplog.text


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


class Meeting(Protocol):
    """A barrier between threads, or one between processes."""

    def wait(self) -> int: ...


@dataclass(frozen=True)
class InStep(SuperResolution):
    """The same task, where all who prepare it wait for each other before they write; one that starts again is alone."""

    together: Meeting

    def score(self, output: Pixels, truth: Pixels) -> Score:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.together.wait()
        return super().score(output, truth)


LARGE = Pictures((picture("large", 600, 600),), some_pictures().test)
SEVERAL = 4


def test_several_threads_may_fill_the_cache_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = InStep(2, threading.Barrier(SEVERAL, timeout=10))
    with ThreadPoolExecutor(SEVERAL) as pool:
        results = [pool.submit(prepare, LARGE, task, 8, tmp_path) for _ in range(SEVERAL)]
    expected = prepare(LARGE, X2, patch=8)
    for data in (*(result.result() for result in results), prepare(LARGE, ReadOnly(2), patch=8, cache=tmp_path)):
        assert_same(data, expected)
    assert [Path(name).name for name in kept(tmp_path)] == ["index.json", "pixels.bin"]
    assert caplog.text == ""


def prepared_in_step(cache: Path, together: Meeting, answers: "Queue[tuple[str, list[str]]]") -> None:
    """Prepare in a process of its own, and say what came of it and what was warned of."""
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
