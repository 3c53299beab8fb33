"""Pictures from packages and folders, their fingerprint, and the cache of what they were decoded to."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage

from bbcu.data import sources
from bbcu.data.images import Pixels, downscale, read_rgb
from bbcu.data.sources import (
    INFO_FILE,
    ImageFile,
    ImageInfo,
    ImageInfoCache,
    InMemory,
    Photograph,
    Picture,
    Pictures,
    Source,
    embedded,
    fingerprint,
    folder,
    measure,
    with_checksum,
)
from bbcu.errors import DataError
from tests.harness.builders import NOBODY, in_another_process, noise, picture_of, save, some_pictures

# ---- photographs in packages -----------------------------------------------------------------------------------------


def test_the_embedded_photographs_are_six_to_train_on_and_three_to_test_on() -> None:
    pictures = embedded()
    names = ["china", "flower", "rocket", "grace_hopper", "motorcycle_left", "motorcycle_right"]
    assert [picture.name for picture in pictures.train] == names
    assert {name: [picture.name for picture in set_pictures] for name, set_pictures in pictures.test.items()} == {
        "embedded": ["astronaut", "chelsea", "coffee"]
    }


def test_a_jpeg_photograph_is_halved() -> None:
    whole = skimage_file("rocket.jpg").read()
    assert whole.shape == (427, 640, 3)
    np.testing.assert_array_equal(Photograph("skimage", "data/rocket.jpg").read(), downscale(whole[:426], 2))


def skimage_file(name: str) -> ImageFile:
    return ImageFile(Path(skimage.__file__).parent / "data" / name)


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
        Photograph(package, "data/nowhere.png").read()


def test_reading_the_photographs_does_not_import_their_packages() -> None:
    program = (
        "import sys; from bbcu.data.sources import embedded, fingerprint; fingerprint(embedded());"
        "print([name for name in ('skimage', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_each_test_set_is_read_from_its_own_folder(tmp_path: Path) -> None:
    for seed, name in enumerate(["train", "one", "two"]):
        save(noise(4, 5, seed), tmp_path / name / f"{name}.png")
    pictures = folder(tmp_path / "train", {"Set_1": tmp_path / "one", "Set-2": tmp_path / "two"})
    assert [picture.name for picture in pictures.train] == ["train"]
    assert {name: [picture.name for picture in found] for name, found in pictures.test.items()} == {
        "Set_1": ["one"],
        "Set-2": ["two"],
    }


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_bad_file_is_refused_with_its_path_when_it_is_read_and_not_before(tmp_path: Path, role: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    save(noise(4, 5), good / "a.png")
    bad.mkdir()
    (bad / "broken.png").write_bytes(b"\x89PNG")
    pictures = folder(bad, {"set": good}) if role == "train" else folder(None, {"set": bad})
    with pytest.raises(DataError, match=f"^{bad}/broken.png: "):
        fingerprint(pictures)


def test_given_inputs_are_found_beside_their_truths(tmp_path: Path) -> None:
    save(noise(4, 6), tmp_path / "HR" / "a.png")
    save(noise(2, 3, seed=1), tmp_path / "LR_bicubic" / "X2" / "ax2.png")
    (found,) = folder(None, {"set": tmp_path}, 2).test["set"]
    assert found.name == "a"
    assert found.input is not None
    np.testing.assert_array_equal(found.truth.read(), noise(4, 6))
    np.testing.assert_array_equal(found.input.read(), noise(2, 3, seed=1))


@pytest.mark.parametrize("name", ["", "Set 5", "Set/5", "..", "Sét5", "Set5\n"])
def test_a_test_set_is_named_by_letters_digits_hyphens_and_underscores(tmp_path: Path, name: str) -> None:
    save(noise(4, 5), tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path, {"Set5": tmp_path, name: tmp_path, "a.b": tmp_path})
    assert str(error.value).endswith(f"underscores: {name!r}, 'a.b'")


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def sha256(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def test_the_fingerprint_is_the_sha256_of_roles_names_sizes_and_the_sha256_of_pixels() -> None:
    train, test = noise(2, 3, seed=1), noise(1, 2, seed=2)
    fed = f'["train", "", "a", [2, 3, "{sha256(train)}"]]\n' + f'["test", "Set", "b", [1, 2, "{sha256(test)}"]]\n'
    pictures = Pictures((picture_of("a", train),), {"Set": (picture_of("b", test),)})
    assert fingerprint(pictures) == hashlib.sha256(fed.encode()).hexdigest()


def with_input(truth: Picture, pixels: Pixels) -> Picture:
    return replace(truth, input=InMemory(pixels, f"somewhere/{truth.name}x2.png"))


def test_a_given_input_is_part_of_the_fingerprint_behind_its_truth() -> None:
    truth, input = noise(4, 6, seed=1), noise(2, 3, seed=2)
    fed = f'["train", "", "a", [4, 6, "{sha256(truth)}"], [2, 3, "{sha256(input)}"]]\n'
    pictures = Pictures((with_input(picture_of("a", truth), input),), {})
    assert fingerprint(pictures) == hashlib.sha256(fed.encode()).hexdigest()


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
    plain = picture_of("a", noise(6, 4))
    strided = picture_of("a", np.asfortranarray(noise(6, 4)))
    assert fingerprint(Pictures((plain,), {})) == fingerprint(Pictures((strided,), {}))


def one_level_more(picture: Picture) -> Picture:
    changed = picture.truth.read().copy()
    changed[-1, -1, -1] ^= 1
    return picture_of(picture.name, changed)


FIRST, SECOND, *_ = some_pictures().train
THIRD, FOURTH = some_pictures().test["SetB"]
CHANGES = [
    pytest.param({"train": (one_level_more(FIRST), SECOND)}, id="one level of one pixel"),
    pytest.param({"train": (picture_of("first", FIRST.truth.read().reshape(30, 24, 3)), SECOND)}, id="shape"),
    pytest.param({"train": (replace(FIRST, name="other"), SECOND)}, id="picture name"),
    pytest.param({"train": (SECOND, FIRST)}, id="order"),
    pytest.param({"train": (FIRST,)}, id="one less"),
    pytest.param({"train": (FIRST, SECOND, THIRD), "test": {"SetB": (FOURTH,)}}, id="role"),
    pytest.param({"train": (with_input(FIRST, noise(12, 15)), SECOND)}, id="given input"),
    pytest.param({"test": {"SetC": (THIRD, FOURTH)}}, id="set name"),
    pytest.param({"test": {"SetA": (THIRD,), "SetB": (FOURTH,)}}, id="set of a picture"),
    pytest.param({"test": {"SetB": (one_level_more(THIRD), FOURTH)}}, id="test pixel"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_data_apart_by(change: dict[str, object]) -> None:
    pictures = Pictures((FIRST, SECOND), {"SetB": (THIRD, FOURTH)})
    assert fingerprint(replace(pictures, **change)) != fingerprint(pictures)  # type: ignore[arg-type]


# ---- the cache of image infos ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted(ImageFile):
    """An image file that notes every reading."""

    readings: list[Path] = field(default_factory=list, compare=False)

    def read(self) -> Pixels:
        self.readings.append(self.path)
        return super().read()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as settled at once, as no test can wait until one is."""
    monkeypatch.setattr(sources, "SETTLED_SECONDS", -60.0)


@pytest.fixture
def file(tmp_path: Path, settled: None) -> Counted:
    """A settled file; bitmaps of one shape have one size, whatever they show."""
    save(noise(5, 7), tmp_path / "pictures" / "a.bmp")
    return Counted(tmp_path / "pictures" / "a.bmp")


def recorded(cache: Path, *sources: Source) -> list[ImageInfo]:
    """What a trial does: open the cache, ask, and save."""
    infos = ImageInfoCache(cache)
    found = [infos.info(source) for source in sources]
    infos.save()
    return found


def test_a_settled_file_is_decoded_once(file: Counted, tmp_path: Path) -> None:
    infos = ImageInfoCache(tmp_path / "cache")
    assert infos.info(file) == infos.info(file) == ImageInfo(5, 7, sha256(noise(5, 7)))
    infos.save()
    assert recorded(tmp_path / "cache", file) == [infos.info(file)]
    assert len(file.readings) == 1


@pytest.mark.parametrize("in_memory", [False, True], ids=["a file that has just changed", "pixels in memory"])
def test_what_can_change_unnoticed_is_measured_every_time(tmp_path: Path, in_memory: bool) -> None:
    save(noise(5, 7), tmp_path / "a.bmp")
    source = InMemory(noise(5, 7), "somewhere") if in_memory else ImageFile(tmp_path / "a.bmp")
    recorded(tmp_path, source)
    changed = noise(5, 7, seed=1)
    if isinstance(source, InMemory):
        source.pixels[:] = changed
    else:
        save(changed, source.path)
    assert recorded(tmp_path, source) == [measure(changed)]


def info_and_readings(cache: Path, path: Path) -> tuple[ImageInfo, int]:
    file = Counted(path)
    return ImageInfoCache(cache).info(file), len(file.readings)


def test_another_process_takes_the_infos_from_the_cache(file: Counted, tmp_path: Path) -> None:
    (info,) = recorded(tmp_path / "cache", file)
    assert in_another_process(info_and_readings, tmp_path / "cache", file.path) == (info, 0)


def test_without_a_folder_every_file_is_read_every_time(file: Counted) -> None:
    assert ImageInfoCache(None).info(file) == ImageInfoCache(None).info(file)
    assert len(file.readings) == 2


def of_another_size(path: Path) -> None:
    save(noise(6, 7, seed=1), path)


def written_at_another_time(path: Path) -> None:
    save(noise(5, 7, seed=1), path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def with_its_time_set_back(path: Path) -> None:
    before = path.stat()
    save(noise(5, 7, seed=1), path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system ticks in milliseconds
        os.utime(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_another_file(path: Path) -> None:
    before = path.stat()
    save(noise(5, 7, seed=1), path.with_name("other.bmp"))
    os.utime(path.with_name("other.bmp"), ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(path.with_name("other.bmp"), path)


@pytest.mark.parametrize(
    "change", [of_another_size, written_at_another_time, with_its_time_set_back, replaced_by_another_file]
)
def test_a_changed_file_is_read_again(file: Counted, tmp_path: Path, change: Callable[[Path], None]) -> None:
    recorded(tmp_path / "cache", file)
    change(file.path)
    assert recorded(tmp_path / "cache", file) == [measure(read_rgb(file.path))]
    assert len(file.readings) == 2


def test_a_file_settles_two_seconds_after_its_last_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(noise(5, 7), tmp_path / "a.bmp")
    status = (tmp_path / "a.bmp").stat()
    changed = max(status.st_mtime, status.st_ctime)
    for seconds, settles in ((1.9, False), (2.1, True)):
        monkeypatch.setattr(time, "time", lambda now=changed + seconds: now)
        assert (ImageFile(tmp_path / "a.bmp").stamp is not None) == settles


def test_a_photograph_is_not_taken_for_its_half(settled: None, tmp_path: Path) -> None:
    rocket = Photograph("skimage", "data/rocket.jpg")
    half, whole = recorded(tmp_path, rocket, skimage_file("rocket.jpg"))
    assert (half.height, whole.height) == (213, 427)
    assert recorded(tmp_path, rocket) == [half]


def write_checked(file: Path, text: str) -> None:
    file.write_text(f"{zlib.crc32(text.encode())}\n{text}")


def each_entry(file: Path, change: Callable[[list[Any]], object]) -> dict[str, object]:
    return {place: change(entry) for place, entry in json.loads(file.read_text().partition("\n")[2]).items()}


CACHE_DAMAGE = [
    pytest.param(lambda file: file.write_bytes(b""), id="empty"),
    pytest.param(lambda file: file.write_bytes(b"\xff\0nonsense"), id="nonsense"),
    pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-9]), id="cut"),
    pytest.param(lambda file: file.write_text("[1, 2]"), id="a list"),
    pytest.param(lambda file: file.write_text("[" * 100_000), id="nested without end"),
    pytest.param(lambda file: write_checked(file, "[" * 100_000), id="nested without end, with its checksum"),
    pytest.param(lambda file: write_checked(file, "9" * 5000), id="a number without end, with its checksum"),
    *(
        pytest.param(
            lambda file, found=found: file.write_text(with_checksum(found(file))), id=f"{name}, with its checksum"
        )
        for name, found in {
            "a list": lambda file: [1, 2],
            "no entry": lambda file: each_entry(file, lambda entry: 3),
            "a short entry": lambda file: each_entry(file, lambda entry: entry[:-1]),
            "a width below zero": lambda file: each_entry(file, lambda entry: [*entry[:2], -7, entry[3]]),
            "a digest that is none": lambda file: each_entry(file, lambda entry: [*entry[:3], "\x1b[31m"]),
        }.items()
    ),
    pytest.param(lambda file: (file.unlink(), os.mkfifo(file)), id="a pipe"),
    pytest.param(lambda file: file.write_text(file.read_text().replace(", 7, ", ", 8, ")), id="a digit of a width"),
]


@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_a_damaged_cache_is_ignored_and_mended(file: Counted, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    expected = recorded(tmp_path / "cache", file)
    damage(tmp_path / "cache" / INFO_FILE)
    assert recorded(tmp_path / "cache", file) == expected
    assert recorded(tmp_path / "cache", file) == expected
    assert len(file.readings) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize(
    ("mode", "is_used"),
    [
        pytest.param(0o755, False, id="in a folder of this user"),
        pytest.param(0o775, True, id="in a folder that is shared with a group"),
        pytest.param(0o777, False, id="in a folder that everyone can write to"),
    ],
)
def test_the_cache_of_another_user_is_used_only_where_it_is_shared(
    file: Counted, tmp_path: Path, mode: int, is_used: bool
) -> None:
    expected = recorded(tmp_path / "cache", file)
    planted = each_entry(tmp_path / "cache" / INFO_FILE, lambda entry: [*entry[:3], "0" * 64])
    (tmp_path / "cache" / INFO_FILE).write_text(with_checksum(planted))
    os.chown(tmp_path / "cache" / INFO_FILE, NOBODY, NOBODY)
    (tmp_path / "cache").chmod(mode)
    assert (recorded(tmp_path / "cache", file) != expected) == is_used


@pytest.mark.parametrize(
    "obstruct",
    [lambda cache: cache.write_text("no folder"), lambda cache: (cache / INFO_FILE).mkdir(parents=True)],
    ids=["a file for the folder", "a folder for the file"],
)
def test_a_cache_that_cannot_be_written_is_not_used(
    file: Counted, tmp_path: Path, obstruct: Callable[[Path], object]
) -> None:
    obstruct(tmp_path / "cache")
    for _ in range(2):
        assert recorded(tmp_path / "cache", file) == [ImageInfo(5, 7, sha256(noise(5, 7)))]
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_who_write_at_the_same_time_keep_what_both_have_read(tmp_path: Path, settled: None) -> None:
    one, other = Counted(tmp_path / "one.bmp"), Counted(tmp_path / "other.bmp")
    for seed, source in enumerate((one, other)):
        save(noise(5, 7, seed), source.path)
    first, second = ImageInfoCache(tmp_path), ImageInfoCache(tmp_path)
    expected = [first.info(one), second.info(other)]
    first.save()
    second.save()
    assert recorded(tmp_path, one, other) == expected
    assert (len(one.readings), len(other.readings)) == (1, 1)
