"""Pictures from packages and folders, their fingerprint, the pairs made of them, and the patches drawn from those."""

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image

from bbcu import datasets
from bbcu.datasets import (
    EMBEDDED_TEST,
    EMBEDDED_TRAIN,
    Pair,
    PatchSampler,
    Photograph,
    Picture,
    Pictures,
    PreparedData,
    embedded,
    fingerprint,
    folder,
    prepare,
    read_photograph,
)
from bbcu.errors import DataError
from bbcu.images import Pixels, downscale
from bbcu.tasks import Score, SuperResolution

X2 = SuperResolution(2)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(name: str, height: int = 24, width: int = 30, seed: int = 0) -> Picture:
    return Picture(name, noise(height, width, seed), f"somewhere/{name}.png")


def some_pictures() -> Pictures:
    return Pictures(
        (picture("first", seed=1), picture("second", 31, 25, seed=2)),
        {"SetB": (picture("third", seed=3), picture("fourth", seed=4)), "SetA": (picture("fifth", 25, 27, seed=5),)},
    )


def save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# ---- photographs in packages -----------------------------------------------------------------------------------------


def test_the_embedded_photographs_are_six_to_train_on_and_three_to_test_on() -> None:
    pictures = embedded()
    names = ["china", "flower", "rocket", "grace_hopper", "motorcycle_left", "motorcycle_right"]
    assert [picture.name for picture in pictures.train] == names
    assert {name: [picture.name for picture in set_pictures] for name, set_pictures in pictures.test.items()} == {
        "embedded": ["astronaut", "chelsea", "coffee"]
    }


def test_the_embedded_photographs_are_large_enough_for_any_scale() -> None:
    for scale in (2, 3, 4):
        assert len(prepare(embedded(), SuperResolution(scale), patch=48).baseline["embedded"]) == 3


def test_a_jpeg_photograph_is_halved_and_a_lossless_one_is_not() -> None:
    for photograph in (*EMBEDDED_TRAIN, *EMBEDDED_TEST):
        assert photograph.halve == photograph.file.endswith(".jpg")
    rocket = next(photograph for photograph in EMBEDDED_TRAIN if photograph.name == "rocket")
    whole = read_photograph(replace(rocket, halve=False)).pixels
    assert whole.shape == (427, 640, 3)
    np.testing.assert_array_equal(read_photograph(rocket).pixels, downscale(whole[:426], 2))


def test_every_photograph_names_its_author_or_source() -> None:
    assert all(photograph.credit for photograph in (*EMBEDDED_TRAIN, *EMBEDDED_TEST))


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("skimage", r"skimage/data/nowhere\.png: does not exist"),
        ("no_such_package", r"^no_such_package/data/nowhere\.png: the package no_such_package, .* is not installed"),
    ],
    ids=["file", "package"],
)
def test_a_missing_photograph_is_named(package: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_photograph(Photograph("nowhere", package, "data/nowhere.png", False, "nobody"))


def test_reading_the_photographs_does_not_import_their_packages() -> None:
    program = (
        "import sys; from bbcu.datasets import embedded; embedded();"
        "print([name for name in ('skimage', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_by_stem_whatever_their_ending(tmp_path: Path) -> None:
    files = ["b.PNG", "a.b.png", "a.bmp", "c.tif", "d.TIFF", "Z.JPG", "e.jpeg"]
    for seed, name in enumerate(files):
        save(noise(4, 5, seed), tmp_path / name)
    pictures = folder(tmp_path, {"set": tmp_path})
    assert [picture.name for picture in pictures.train] == ["Z", "a", "a.b", "b", "c", "d", "e"]
    np.testing.assert_array_equal(pictures.train[1].pixels, noise(4, 5, files.index("a.bmp")))
    assert pictures.train[1].origin == str(tmp_path / "a.bmp")


def test_each_test_set_is_read_from_its_own_folder(tmp_path: Path) -> None:
    for seed, name in enumerate(["train", "one", "two"]):
        save(noise(4, 5, seed), tmp_path / name / f"{name}.png")
    pictures = folder(tmp_path / "train", {"Set_1": tmp_path / "one", "Set-2": tmp_path / "two"})
    assert [picture.name for picture in pictures.train] == ["train"]
    assert {name: [picture.name for picture in found] for name, found in pictures.test.items()} == {
        "Set_1": ["one"],
        "Set-2": ["two"],
    }


def test_other_files_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    save(noise(4, 5), tmp_path / "a.png")
    save(noise(4, 5), tmp_path / "deeper" / "b.png")
    for name in ("Thumbs.db", "notes.txt", "._a.png", ".hidden.png", "png"):
        (tmp_path / name).write_bytes(b"\0\1")
    assert [picture.name for picture in folder(tmp_path, {}).train] == ["a"]


def broken_image(path: Path) -> None:
    path.mkdir()
    (path / "broken.png").write_bytes(b"\x89PNG")


def image_folder(path: Path) -> None:
    (path / "image.png").mkdir(parents=True)


def same_stem(path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        save(noise(4, 5), path / name)


BAD_FOLDERS = [
    pytest.param(lambda path: None, "{path}: the folder does not exist", id="missing"),
    pytest.param(lambda path: path.write_text("text"), "{path}: is not a folder", id="file"),
    pytest.param(lambda path: path.symlink_to(path), "{path}: the folder cannot be listed: ", id="link to itself"),
    pytest.param(lambda path: path.mkdir(), "{path}: holds no image; ", id="empty"),
    pytest.param(broken_image, "{path}/broken.png: ", id="broken image"),
    pytest.param(image_folder, "{path}/image.png: is a folder", id="folder named like an image"),
    pytest.param(same_stem, "the same name before the ending: {path}/a.jpg, {path}/a.png", id="same stem"),
]


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(("make", "message"), BAD_FOLDERS)
def test_a_bad_folder_is_refused_with_its_path(
    tmp_path: Path, make: Callable[[Path], object], message: str, role: str
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    save(noise(4, 5), good / "a.png")
    make(bad)
    with pytest.raises(DataError) as error:
        folder(bad, {"set": good}) if role == "train" else folder(good, {"set": bad})
    assert message.format(path=bad) in str(error.value)


@pytest.mark.parametrize("name", ["", "Set 5", "Set/5", "..", "Sét5", "Set5\n"])
def test_a_test_set_is_named_by_letters_digits_hyphens_and_underscores(tmp_path: Path, name: str) -> None:
    save(noise(4, 5), tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path, {"Set5": tmp_path, name: tmp_path, "a.b": tmp_path})
    assert str(error.value).endswith(f"underscores: {name!r}, 'a.b'")


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_sha256_of_roles_names_shapes_and_pixels() -> None:
    train, test = picture("a", 2, 3, seed=1), picture("b", 1, 2, seed=2)
    fed = b'["train", "", "a", [2, 3, 3]]\n' + train.pixels.tobytes()
    fed += b'["test", "Set", "b", [1, 2, 3]]\n' + test.pixels.tobytes()
    assert fingerprint(Pictures((train,), {"Set": (test,)})) == hashlib.sha256(fed).hexdigest()


def test_the_fingerprint_does_not_depend_on_folder_or_file_format(tmp_path: Path) -> None:
    for seed, name in enumerate(["a", "a.b"]):
        save(noise(4, 5, seed), tmp_path / "here" / f"{name}.png")
        save(noise(4, 5, seed), tmp_path / "there" / f"{name}.bmp")
    here, there = tmp_path / "here", tmp_path / "there"
    assert fingerprint(folder(here, {"set": here})) == fingerprint(folder(there, {"set": there}))


def test_the_fingerprint_does_not_depend_on_the_order_of_the_test_sets() -> None:
    pictures = some_pictures()
    assert list(pictures.test) == ["SetB", "SetA"]
    assert fingerprint(pictures) == fingerprint(replace(pictures, test=dict(sorted(pictures.test.items()))))


def test_the_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    plain = picture("a", 6, 4)
    strided = replace(plain, pixels=np.asfortranarray(plain.pixels))
    assert fingerprint(Pictures((plain,), {})) == fingerprint(Pictures((strided,), {}))


def one_level_more(pixels: Pixels) -> Pixels:
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    return changed


FIRST, SECOND, *_ = some_pictures().train
THIRD, FOURTH = some_pictures().test["SetB"]
CHANGES = [
    pytest.param({"train": (replace(FIRST, pixels=one_level_more(FIRST.pixels)), SECOND)}, id="one level of one pixel"),
    pytest.param({"train": (replace(FIRST, pixels=FIRST.pixels.reshape(30, 24, 3)), SECOND)}, id="shape"),
    pytest.param({"train": (replace(FIRST, name="other"), SECOND)}, id="picture name"),
    pytest.param({"train": (SECOND, FIRST)}, id="order"),
    pytest.param({"train": (FIRST,)}, id="one less"),
    pytest.param({"train": (FIRST, SECOND, THIRD), "test": {"SetB": (FOURTH,)}}, id="role"),
    pytest.param({"test": {"SetC": (THIRD, FOURTH)}}, id="set name"),
    pytest.param({"test": {"SetA": (THIRD,), "SetB": (FOURTH,)}}, id="set of a picture"),
    pytest.param({"test": {"SetB": (replace(THIRD, pixels=one_level_more(THIRD.pixels)), FOURTH)}}, id="test pixel"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_data_apart_by(change: dict[str, object]) -> None:
    pictures = Pictures((FIRST, SECOND), {"SetB": (THIRD, FOURTH)})
    assert fingerprint(replace(pictures, **change)) != fingerprint(pictures)  # type: ignore[arg-type]


# ---- pairs -----------------------------------------------------------------------------------------------------------


def assert_same(first: PreparedData, second: PreparedData) -> None:
    assert (first.task_name, first.fingerprint, first.baseline) == (
        second.task_name,
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
        assert one.input.dtype == other.input.dtype == one.truth.dtype == other.truth.dtype == np.uint8
        np.testing.assert_array_equal(one.input, other.input)
        np.testing.assert_array_equal(one.truth, other.truth)


def test_every_picture_becomes_the_pair_of_the_task() -> None:
    pictures = some_pictures()
    data = prepare(pictures, X2, patch=8)
    assert data.task_name == "sr_x2"
    assert data.fingerprint == fingerprint(pictures)
    assert_same_pairs(data.train, tuple(Pair(found.name, *X2.pair(found.pixels)) for found in pictures.train))
    assert list(data.test) == ["SetB", "SetA"]
    for set_name, found_pictures in pictures.test.items():
        expected = tuple(Pair(found.name, *X2.pair(found.pixels)) for found in found_pictures)
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


# ---- the cache of pairs ----------------------------------------------------------------------------------------------


class ReadOnly(SuperResolution):
    """The same task, where making a pair shows that the cache was not used."""

    def pair(self, truth: Pixels) -> tuple[Pixels, Pixels]:
        raise AssertionError("the pair was made and not read from the cache")


def test_pairs_and_scores_are_read_from_the_cache(tmp_path: Path) -> None:
    made = prepare(some_pictures(), X2, patch=8, cache=tmp_path / "cache")
    assert_same(made, prepare(some_pictures(), X2, patch=8))
    assert_same(made, prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path / "cache"))


def test_a_picture_that_the_baseline_restores_perfectly_survives_the_cache(tmp_path: Path) -> None:
    flat = Picture("flat", np.full((20, 20, 3), 77, dtype=np.uint8), "flat")
    prepare(Pictures((), {"set": (flat,)}), X2, patch=8, cache=tmp_path)
    assert prepare(Pictures((), {"set": (flat,)}), ReadOnly(2), 8, tmp_path).baseline["set"]["flat"].psnr_db == math.inf


def test_the_cache_is_one_file_named_by_fingerprint_and_task(tmp_path: Path) -> None:
    data = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [Path(f"{data.fingerprint[:16]}-sr_x2") / "pairs.npz"]


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
    monkeypatch.setattr(datasets, "CACHE_FORMAT", datasets.CACHE_FORMAT + 1)
    with pytest.raises(AssertionError, match="not read from the cache"):
        prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path)


def flip_a_pixel(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def data_of_another(file: Path) -> None:
    others = Pictures((picture("other", seed=8),), {"SetA": (picture("other", seed=9),)})
    other = prepare(others, X2, patch=8, cache=file.parent / "other")
    os.replace(file.parent / "other" / f"{other.fingerprint[:16]}-sr_x2" / file.name, file)


def no_index(file: Path) -> None:
    np.savez(file, pixels=np.zeros(10, dtype=np.uint8))


DAMAGE = [
    pytest.param(lambda file: file.write_bytes(b""), id="empty"),
    pytest.param(lambda file: file.write_bytes(b"nonsense" * 100), id="nonsense"),
    pytest.param(cut_in_half, id="cut in half"),
    pytest.param(flip_a_pixel, id="one bit of a pixel"),
    pytest.param(data_of_another, id="data of another"),
    pytest.param(no_index, id="no index"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    made = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    damage(tmp_path / f"{made.fingerprint[:16]}-sr_x2" / "pairs.npz")
    assert_same(made, prepare(some_pictures(), X2, patch=8, cache=tmp_path))
    assert_same(made, prepare(some_pictures(), ReadOnly(2), patch=8, cache=tmp_path))


def test_a_reader_of_the_old_file_is_not_disturbed_when_it_is_rebuilt(tmp_path: Path) -> None:
    made = prepare(some_pictures(), X2, patch=8, cache=tmp_path)
    file = tmp_path / f"{made.fingerprint[:16]}-sr_x2" / "pairs.npz"
    file.write_bytes(b"damaged")
    with open(file, "rb") as reader:
        prepare(some_pictures(), X2, patch=8, cache=tmp_path)
        assert reader.read() == b"damaged"


def file_as_cache(cache: Path) -> None:
    cache.write_text("no folder")


def folder_as_file(cache: Path) -> None:
    (cache / f"{fingerprint(some_pictures())[:16]}-sr_x2" / "pairs.npz").mkdir(parents=True)


@pytest.mark.parametrize("obstruct", [file_as_cache, folder_as_file])
def test_a_cache_that_cannot_be_written_is_done_without_and_logged(
    tmp_path: Path, obstruct: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    obstruct(tmp_path / "cache")
    assert_same(prepare(some_pictures(), X2, 8, tmp_path / "cache"), prepare(some_pictures(), X2, 8))
    assert "cannot be kept in" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


@dataclass(frozen=True)
class InStep(SuperResolution):
    """The same task, where all who prepare it wait for each other before they write."""

    together: Barrier

    def score(self, output: Pixels, truth: Pixels) -> Score:
        self.together.wait()
        return super().score(output, truth)


def test_several_may_fill_the_cache_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = Pictures((picture("large", 600, 600),), some_pictures().test)
    task = InStep(2, Barrier(4, timeout=60))
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(prepare, pictures, task, 8, tmp_path) for _ in range(4)]
    expected = prepare(pictures, X2, patch=8)
    for data in (*(result.result() for result in results), prepare(pictures, ReadOnly(2), patch=8, cache=tmp_path)):
        assert_same(data, expected)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["pairs.npz"]
    assert caplog.text == ""


# ---- patches ---------------------------------------------------------------------------------------------------------

PATCH = 3


def map_of_places(index: int, height: int, width: int, scale: int) -> Pair:
    """Make a pair whose pixels say where they lie: row and column in the input, and which picture.

    The truth repeats each pixel ``scale`` times, and its last channel counts within such a block.
    """
    rows, columns = np.mgrid[:height, :width]
    input = np.stack([rows, columns, np.full_like(rows, index)], axis=-1).astype(np.uint8)
    truth = input.repeat(scale, axis=0).repeat(scale, axis=1)
    within = np.arange(scale * scale).reshape(scale, scale)
    truth[..., 2] = np.tile(within, (height, width))
    return Pair(f"map {index}", input, truth)


def eight_symmetries(square: Pixels) -> list[Pixels]:
    return [np.rot90(side, quarter) for side in (square, square[:, ::-1]) for quarter in range(4)]


def drawn(sampler: PatchSampler, step: int) -> list[tuple[Pixels, Pixels]]:
    """Draw a batch as bytes, channels last."""
    inputs, truths = ((values * 255).round().to(torch.uint8).permute(0, 2, 3, 1) for values in sampler.batch_at(step))
    return list(zip(inputs.numpy(), truths.numpy(), strict=True))


def maps(scale: int) -> list[Pair]:
    return [map_of_places(0, 5, 4, scale), map_of_places(1, 3, 6, scale), map_of_places(2, 9, 9, scale)]


def place_and_symmetry(input: Pixels, truth: Pixels, scale: int) -> tuple[int, int, int, int]:
    """Find (picture, top, left, symmetry) of a patch; fails unless input and truth both show that."""
    index, top, left = int(input[0, 0, 2]), int(input[..., 0].min()), int(input[..., 1].min())
    pair = maps(scale)[index]
    rows, columns = slice(top, top + PATCH), slice(left, left + PATCH)
    large_rows, large_columns = (slice(part.start * scale, part.stop * scale) for part in (rows, columns))
    views = eight_symmetries(pair.input[rows, columns])
    large_views = eight_symmetries(pair.truth[large_rows, large_columns])
    found = [number for number, view in enumerate(views) if np.array_equal(view, input)]
    assert len(found) == 1
    np.testing.assert_array_equal(truth, large_views[found[0]])
    return index, top, left, found[0]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_input_and_truth_show_the_same_place_in_the_same_symmetry(scale: int) -> None:
    sampler = PatchSampler(maps(scale), scale, PATCH, batch=100, seed=0)
    for input, truth in drawn(sampler, step=0):
        place_and_symmetry(input, truth, scale)


def test_pictures_places_and_symmetries_are_drawn_evenly() -> None:
    sampler = PatchSampler(maps(2), 2, PATCH, batch=4800, seed=0)
    found = [place_and_symmetry(input, truth, 2) for input, truth in drawn(sampler, step=0)]
    pictures = Counter(index for index, *_ in found)
    symmetries = Counter(symmetry for *_, symmetry in found)
    places = Counter((top, left) for index, top, left, _ in found if index == 2)
    assert sorted(pictures) == [0, 1, 2]
    assert min(pictures.values()) > 0.9 * 1600
    assert sorted(symmetries) == list(range(8))
    assert min(symmetries.values()) > 0.8 * 600
    assert sorted(places) == [(top, left) for top in range(7) for left in range(7)]
    assert max(places.values()) < 2.5 * 1600 / 49


@pytest.mark.parametrize("scale", [2, 4])
def test_a_batch_is_float32_with_channels_first(scale: int) -> None:
    pairs = prepare(some_pictures(), SuperResolution(scale), patch=5).train
    inputs, truths = PatchSampler(pairs, scale, patch=5, batch=7, seed=0).batch_at(0)
    assert inputs.shape == (7, 3, 5, 5)
    assert truths.shape == (7, 3, 5 * scale, 5 * scale)
    assert inputs.dtype == truths.dtype == torch.float32
    assert inputs.is_contiguous()
    assert truths.is_contiguous()


@pytest.mark.parametrize(("level", "expected"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_batch_holds_levels_as_fractions_of_white(level: int, expected: float) -> None:
    flat = np.full((8, 8, 3), level, dtype=np.uint8)
    sampler = PatchSampler([Pair("flat", flat, flat)], scale=1, patch=4, batch=2, seed=0)
    for values in sampler.batch_at(0):
        torch.testing.assert_close(values, torch.full((2, 3, 4, 4), expected))


def sampler_of_noise(seed: int) -> PatchSampler:
    return PatchSampler(prepare(some_pictures(), X2, patch=6).train, scale=2, patch=6, batch=4, seed=seed)


def same_batches(first: PatchSampler, second: PatchSampler, step: int, other_step: int) -> bool:
    pairs = zip(first.batch_at(step), second.batch_at(other_step), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_step_draws_the_same_batch_whatever_was_drawn_before() -> None:
    resumed, continued = sampler_of_noise(seed=3), sampler_of_noise(seed=3)
    for step in range(5):
        continued.batch_at(step)
    assert same_batches(resumed, continued, 5, 5)


def test_another_step_draws_another_batch() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=3), 5, 6)


def test_another_seed_draws_other_batches() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=4), 5, 5)


def test_seed_and_step_are_not_interchangeable() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=4), 4, 3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        pytest.param([], "no pairs", id="none"),
        pytest.param([map_of_places(0, 2, 9, 2)], r"smaller than a patch of 3 x 3", id="too low"),
        pytest.param([map_of_places(0, 9, 2, 2)], r"smaller than a patch of 3 x 3", id="too narrow"),
        pytest.param([map_of_places(0, 9, 9, 3)], r"is not 2 times the input", id="another scale"),
    ],
)
def test_a_sampler_refuses_pairs_that_hold_no_patch(pairs: list[Pair], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSampler(pairs, scale=2, patch=PATCH, batch=4, seed=0)
