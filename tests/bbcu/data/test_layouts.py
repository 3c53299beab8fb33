"""The folder layouts that are recognised, the files that go together in them, and what is refused in words."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bbcu.data.layouts import IMAGE_ENDINGS, Located, Role, list_images, locate
from bbcu.errors import DataError
from tests.harness.builders import open_folder, without_root_rights


def make(root: Path, *names: str) -> None:
    """Make files with nothing in them: locating does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def shown(root: Path, found: tuple[Located, ...]) -> list[tuple[str, str, str | None]]:
    def below(path: Path | None) -> str | None:
        return None if path is None else path.relative_to(root).as_posix()

    return [(one.name, below(one.truth) or "", below(one.input)) for one in found]


def refusal(path: Path, scale: int | None = None, role: Role = "test") -> str:
    with pytest.raises(DataError) as error:
        locate(path, role, scale)
    message = str(error.value)
    assert message.isprintable()
    return message


# ---- each layout -----------------------------------------------------------------------------------------------------

BENCHMARK = ("HR/bird.png", "HR/baby.png", "LR_bicubic/X2/babyx2.png", "LR_bicubic/X2/birdx2.png")
DIV2K = (
    "DIV2K_train_HR/0001.png",
    "DIV2K_train_LR_bicubic/X2/0001x2.png",
    "DIV2K_valid_HR/0801.png",
    "DIV2K_valid_LR_bicubic/X2/0801x2.png",
)
CROPPED = ("GTmod12/baby.png", "LRbicx2/baby.png", "LRbicx4/baby.png")


@pytest.mark.parametrize(
    ("files", "role", "expected"),
    [
        pytest.param(
            BENCHMARK,
            "test",
            [("baby", "HR/baby.png", "LR_bicubic/X2/babyx2.png"), ("bird", "HR/bird.png", "LR_bicubic/X2/birdx2.png")],
            id="benchmark",
        ),
        pytest.param(
            ("HR/baby.png", "LR_bicubic/X2/baby.png"),
            "test",
            [("baby", "HR/baby.png", "LR_bicubic/X2/baby.png")],
            id="benchmark, inputs named like truths",
        ),
        pytest.param(
            DIV2K,
            "train",
            [("0001", "DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X2/0001x2.png")],
            id="DIV2K to train",
        ),
        pytest.param(
            DIV2K,
            "test",
            [("0801", "DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png")],
            id="DIV2K to test",
        ),
        pytest.param(CROPPED, "test", [("baby", "GTmod12/baby.png", "LRbicx2/baby.png")], id="cropped"),
        pytest.param(
            ("HR/a.png", "LR_bicubic/X2/ax2.BMP"),
            "test",
            [("a", "HR/a.png", "LR_bicubic/X2/ax2.BMP")],
            id="another image format",
        ),
    ],
)
def test_a_layout_gives_the_truths_with_their_inputs_or_alone(
    tmp_path: Path, files: tuple[str, ...], role: Role, expected: list[tuple[str, str, str]]
) -> None:
    make(tmp_path, *(name for name in files if "LR" not in name))
    assert shown(tmp_path, locate(tmp_path, role, None)) == [(name, truth, None) for name, truth, _ in expected]
    make(tmp_path, *files)
    assert shown(tmp_path, locate(tmp_path, role, 2)) == expected


def test_the_scale_chooses_the_folder_of_the_inputs(tmp_path: Path) -> None:
    make(tmp_path, *CROPPED)
    assert shown(tmp_path, locate(tmp_path, "test", 4)) == [("baby", "GTmod12/baby.png", "LRbicx4/baby.png")]


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(("part", "name"), [("train", "0001"), ("valid", "0801")])
def test_a_folder_of_div2k_may_be_named_itself_whatever_the_role(
    tmp_path: Path, role: Role, part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *DIV2K)
    expected = [(name, f"DIV2K_{part}_HR/{name}.png", f"DIV2K_{part}_LR_bicubic/X2/{name}x2.png")]
    assert shown(tmp_path, locate(tmp_path / f"DIV2K_{part}_HR", role, 2)) == expected
    monkeypatch.chdir(tmp_path / f"DIV2K_{part}_HR")
    assert shown(tmp_path, locate(Path("."), role, 2)) == expected


def test_the_first_layout_that_fits_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "plain.png")
    for files, truth in [(CROPPED, "GTmod12/baby.png"), (DIV2K, "DIV2K_valid_HR/0801.png"), (BENCHMARK, "HR/baby.png")]:
        make(tmp_path, *files)
        assert locate(tmp_path, "test", None)[0].truth == tmp_path / truth


def test_a_file_named_like_a_folder_of_truths_makes_no_layout(tmp_path: Path) -> None:
    make(tmp_path, "GTmod12", "HR", "a.png")
    assert shown(tmp_path, locate(tmp_path, "test", None)) == [("a", "a.png", None)]


# ---- truths and inputs -----------------------------------------------------------------------------------------------


def test_a_plain_folder_has_no_inputs(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    message = refusal(tmp_path, 2)
    assert message.startswith(f"{tmp_path}: is a plain folder of images, without inputs at X2; ")
    for layout in ("LR_bicubic/X2", "DIV2K_train_LR_bicubic/X2", "LRbicx2"):
        assert layout in message


def test_a_missing_half_of_div2k_is_named(tmp_path: Path) -> None:
    make(tmp_path, "DIV2K_train_HR/0001.png")
    assert refusal(tmp_path, None, "test") == f"{tmp_path}/DIV2K_valid_HR: the folder does not exist"


INPUTS = "LR_bicubic/X2"


@pytest.mark.parametrize(
    ("more", "file", "lacks", "wanted"),
    [
        (["HR/head.png"], "HR/head.png", "input", f"{INPUTS}/headx2.png"),
        ([f"{INPUTS}/headx2.png"], f"{INPUTS}/headx2.png", "truth", "HR/head.png"),
        (["HR/head.png", f"{INPUTS}/head.png"], "HR/head.png", "input", f"{INPUTS}/headx2.png"),
    ],
    ids=["a truth", "an input", "an input named in another way than the rest"],
)
def test_a_file_without_its_partner_is_named_with_the_file_looked_for(
    tmp_path: Path, more: list[str], file: str, lacks: str, wanted: str
) -> None:
    make(tmp_path, *BENCHMARK, *more)
    assert refusal(tmp_path, 2) == f"{tmp_path}/{file}: has no {lacks}; looked for {tmp_path}/{wanted}"


@pytest.mark.parametrize("ending", ["", "x2"], ids=["plain", "with the scale"])
def test_the_name_of_a_picture_may_itself_end_like_a_scale(tmp_path: Path, ending: str) -> None:
    make(tmp_path, *(f"HR/{name}.png" for name in ("cat", "catx2")))
    make(tmp_path, *(f"LR_bicubic/X2/{name}{ending}.png" for name in ("cat", "catx2")))
    assert [(one.name, one.input.stem) for one in locate(tmp_path, "test", 2) if one.input] == [
        ("cat", f"cat{ending}"),
        ("catx2", f"catx2{ending}"),
    ]


# ---- one folder ------------------------------------------------------------------------------------------------------


def test_images_are_told_by_their_ending_in_any_case_and_sorted_by_stem(tmp_path: Path) -> None:
    names = ["b.PNG", "a.b.png", "a.bmp", "c.tif", "d.TIFF", "Z.JPG", "e.jpeg"]
    assert {Path(name).suffix.lower() for name in names} == set(IMAGE_ENDINGS)
    make(tmp_path, *names)
    assert [one.name for one in locate(tmp_path, "train", None)] == ["Z", "a", "a.b", "b", "c", "d", "e"]


def test_other_files_hidden_files_and_subfolders_are_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "Thumbs.db", "notes.txt", "._a.png", ".hidden.png", "png", "deeper/b.png")
    assert [one.name for one in locate(tmp_path, "train", None)] == ["a"]


BAD_FOLDERS = [
    pytest.param(lambda path: None, "{path}: the folder does not exist", id="missing"),
    pytest.param(lambda path: path.write_text("text"), "{path}: is not a folder", id="file"),
    pytest.param(lambda path: path.symlink_to(path), "{path}: the folder cannot be listed: ", id="link to itself"),
    pytest.param(lambda path: path.mkdir(), "{path}: has no images; an image ends in .png, ", id="empty"),
    pytest.param(
        lambda path: make(path, "a.png", "a.jpg", "b.png"),
        "images with the same name before the ending: {path}/a.jpg, {path}/a.png",
        id="same stem",
    ),
]


@pytest.mark.parametrize(("break_folder", "message"), BAD_FOLDERS)
@pytest.mark.parametrize(
    ("holds_inputs", "scale"), [(False, None), (False, 2), (True, 2)], ids=["truths", "truths with inputs", "inputs"]
)
def test_a_bad_folder_is_refused_with_its_path(
    tmp_path: Path, break_folder: Callable[[Path], object], message: str, holds_inputs: bool, scale: int | None
) -> None:
    make(tmp_path, "HR/a.png")
    place = tmp_path / "LR_bicubic" / "X2"
    place.parent.mkdir()
    break_folder(place)
    assert refusal(tmp_path if holds_inputs else place, scale).startswith(message.format(path=place))


def test_a_folder_that_may_not_be_read_is_refused_with_its_path() -> None:
    with open_folder() as place:
        make(place, "a.png")
        place.chmod(0)
        with without_root_rights():
            message = refusal(place)
        assert message == f"{place}: the folder cannot be listed: Permission denied"


def test_a_name_that_is_not_utf8_and_no_image_is_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.txt"), "xb"):
        pass
    assert [file.name for file in list_images(tmp_path)] == ["a.png"]


def test_a_folder_with_a_line_break_in_its_name_is_named_on_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "two\nlines") == f"{tmp_path}/two\\nlines: the folder does not exist"
