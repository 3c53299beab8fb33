"""The folder layouts that are recognised, the files that go together in them, and what is refused in words."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bbcu.data.layouts import IMAGE_ENDINGS, Located, Role, list_images, locate
from bbcu.errors import DataError
from tests.harness.builders import without_root_rights


def make(root: Path, *names: str) -> None:
    """Make files with nothing in them: locating does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def shown(root: Path, found: tuple[Located, ...]) -> list[tuple[str, str, str | None]]:
    return [
        (
            one.name,
            one.truth.relative_to(root).as_posix(),
            None if one.input is None else one.input.relative_to(root).as_posix(),
        )
        for one in found
    ]


def refusal(path: Path, inputs: str | None = None, role: Role = "test") -> str:
    with pytest.raises(DataError) as error:
        locate(path, role, inputs)
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

LAYOUTS = [
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
]


@pytest.mark.parametrize(("files", "role", "expected"), LAYOUTS)
def test_a_layout_gives_the_truths_with_their_inputs(
    tmp_path: Path, files: tuple[str, ...], role: Role, expected: list[tuple[str, str, str]]
) -> None:
    make(tmp_path, *files)
    assert shown(tmp_path, locate(tmp_path, role, "X2")) == expected


@pytest.mark.parametrize(("files", "role", "expected"), LAYOUTS)
def test_without_inputs_a_layout_gives_the_truths_alone(
    tmp_path: Path, files: tuple[str, ...], role: Role, expected: list[tuple[str, str, str]]
) -> None:
    make(tmp_path, *(name for name in files if "LR" not in name))
    assert shown(tmp_path, locate(tmp_path, role, None)) == [(name, truth, None) for name, truth, _ in expected]


def test_the_scale_chooses_the_folder_of_the_inputs(tmp_path: Path) -> None:
    make(tmp_path, *CROPPED)
    assert shown(tmp_path, locate(tmp_path, "test", "X4")) == [("baby", "GTmod12/baby.png", "LRbicx4/baby.png")]


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(("part", "name"), [("train", "0001"), ("valid", "0801")])
def test_a_folder_of_div2k_may_be_named_itself_whatever_the_role(
    tmp_path: Path, role: Role, part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *DIV2K)
    expected = [(name, f"DIV2K_{part}_HR/{name}.png", f"DIV2K_{part}_LR_bicubic/X2/{name}x2.png")]
    assert shown(tmp_path, locate(tmp_path / f"DIV2K_{part}_HR", role, "X2")) == expected
    monkeypatch.chdir(tmp_path / f"DIV2K_{part}_HR")
    assert shown(tmp_path, locate(Path("."), role, "X2")) == expected


def test_a_plain_folder_is_not_searched_deeper(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "deeper/b.png")
    assert shown(tmp_path, locate(tmp_path, "train", None)) == [("a", "a.png", None)]


def test_the_first_layout_that_fits_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "plain.png")
    for files, truth in [(CROPPED, "GTmod12/baby.png"), (DIV2K, "DIV2K_valid_HR/0801.png"), (BENCHMARK, "HR/baby.png")]:
        make(tmp_path, *files)
        assert locate(tmp_path, "test", None)[0].truth == tmp_path / truth


def test_a_file_named_like_a_cropped_folder_makes_no_layout(tmp_path: Path) -> None:
    make(tmp_path, "GTmod12", "a.png")
    assert shown(tmp_path, locate(tmp_path, "test", None)) == [("a", "a.png", None)]


@pytest.mark.parametrize(
    ("folders", "inputs", "chosen"),
    [
        pytest.param(["GTmod12"], None, "GTmod12", id="the only one"),
        pytest.param(["GTmod3"], None, "GTmod3", id="the only one, of another multiple"),
        pytest.param(["GTmod2", "GTmod12"], None, "GTmod12", id="12 where no scale is known"),
        pytest.param(["GTmod2", "GTmod12"], "X2", "GTmod2", id="the scale's own"),
        pytest.param(["GTmod2", "GTmod12"], "X3", "GTmod12", id="12 before another multiple"),
        pytest.param(["GTmod4", "GTmod8"], "X2", "GTmod4", id="the smallest that the scale divides"),
    ],
)
def test_of_several_cropped_folders_the_one_that_suits_the_scale_is_taken(
    tmp_path: Path, folders: list[str], inputs: str | None, chosen: str
) -> None:
    make(tmp_path, *(f"{folder}/baby.png" for folder in folders), "LRbicx2/baby.png", "LRbicx3/baby.png")
    assert locate(tmp_path, "test", inputs)[0].truth == tmp_path / chosen / "baby.png"


@pytest.mark.parametrize(
    ("inputs", "purpose"), [(None, "as truths"), ("X5", "as truths at scale 5")], ids=["no scale", "none fits"]
)
def test_cropped_folders_of_which_none_is_meant_are_all_named(tmp_path: Path, inputs: str | None, purpose: str) -> None:
    make(tmp_path, "GTmod2/baby.png", "GTmod3/baby.png")
    message = refusal(tmp_path, inputs)
    assert message == f"{tmp_path}: it is not clear which of its folders to use {purpose}: GTmod2, GTmod3"


# ---- truths and inputs -----------------------------------------------------------------------------------------------


def test_a_plain_folder_has_no_inputs(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    message = refusal(tmp_path, "X2")
    assert message.startswith(f"{tmp_path}: is a plain folder of images, without inputs at X2; ")
    for layout in ("LR_bicubic/X2", "DIV2K_train_LR_bicubic/X2", "LRbicx2"):
        assert layout in message


@pytest.mark.parametrize("inputs", ["", "x2", "2", "X0", "X02", "../X2", "X2\n", "LRbicx2"])
def test_inputs_are_named_by_the_folder_of_a_scale(tmp_path: Path, inputs: str) -> None:
    make(tmp_path, *BENCHMARK)
    assert refusal(tmp_path, inputs) == f"inputs {inputs!r}: is not the folder of a scale, such as X2"


def test_a_missing_half_of_div2k_is_named(tmp_path: Path) -> None:
    make(tmp_path, "DIV2K_train_HR/0001.png")
    assert refusal(tmp_path, None, "test") == f"{tmp_path}/DIV2K_valid_HR: the folder does not exist"


def test_a_truth_without_its_input_is_named_with_the_file_looked_for(tmp_path: Path) -> None:
    make(tmp_path, *BENCHMARK, "HR/head.png")
    inputs = tmp_path / "LR_bicubic" / "X2"
    assert refusal(tmp_path, "X2") == f"{tmp_path}/HR/head.png: has no input; looked for {inputs}/headx2.png"


def test_an_input_without_its_truth_is_named_with_the_file_looked_for(tmp_path: Path) -> None:
    make(tmp_path, *BENCHMARK, "LR_bicubic/X2/headx2.png")
    file = tmp_path / "LR_bicubic" / "X2" / "headx2.png"
    assert refusal(tmp_path, "X2") == f"{file}: has no truth; looked for {tmp_path}/HR/head.png"


def test_a_folder_does_not_mix_names_with_and_without_the_scale(tmp_path: Path) -> None:
    make(tmp_path, *BENCHMARK, "HR/head.png", "LR_bicubic/X2/head.png")
    inputs = tmp_path / "LR_bicubic" / "X2"
    assert refusal(tmp_path, "X2") == f"{tmp_path}/HR/head.png: has no input; looked for {inputs}/headx2.png"


@pytest.mark.parametrize("ending", ["", "x2"], ids=["plain", "with the scale"])
def test_the_name_of_a_picture_may_itself_end_like_a_scale(tmp_path: Path, ending: str) -> None:
    make(tmp_path, *(f"HR/{name}.png" for name in ("cat", "catx2")))
    make(tmp_path, *(f"LR_bicubic/X2/{name}{ending}.png" for name in ("cat", "catx2")))
    assert [(one.name, one.input.stem) for one in locate(tmp_path, "test", "X2") if one.input] == [
        ("cat", f"cat{ending}"),
        ("catx2", f"catx2{ending}"),
    ]


def test_an_input_may_be_of_another_image_format_than_its_truth(tmp_path: Path) -> None:
    make(tmp_path, "HR/a.png", "LR_bicubic/X2/ax2.BMP")
    assert shown(tmp_path, locate(tmp_path, "test", "X2")) == [("a", "HR/a.png", "LR_bicubic/X2/ax2.BMP")]


# ---- one folder ------------------------------------------------------------------------------------------------------


def test_images_are_told_by_their_ending_in_any_case_and_sorted_by_stem(tmp_path: Path) -> None:
    names = ["b.PNG", "a.b.png", "a.bmp", "c.tif", "d.TIFF", "Z.JPG", "e.jpeg"]
    assert {Path(name).suffix.lower() for name in names} == set(IMAGE_ENDINGS)
    make(tmp_path, *names)
    assert [one.name for one in locate(tmp_path, "train", None)] == ["Z", "a", "a.b", "b", "c", "d", "e"]


def test_other_files_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "Thumbs.db", "notes.txt", "._a.png", ".hidden.png", "png")
    assert [one.name for one in locate(tmp_path, "train", None)] == ["a"]


def test_a_folder_named_like_an_image_is_left_to_the_reading_to_refuse(tmp_path: Path) -> None:
    make(tmp_path, "a.png/inside.txt")
    assert shown(tmp_path, locate(tmp_path, "train", None)) == [("a", "a.png", None)]


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
@pytest.mark.parametrize("inputs", [None, "X2"])
def test_a_bad_folder_is_refused_with_its_path(
    tmp_path: Path, break_folder: Callable[[Path], object], message: str, inputs: str | None
) -> None:
    bad = tmp_path / "bad"
    break_folder(bad)
    assert refusal(bad, inputs).startswith(message.format(path=bad))


@pytest.mark.parametrize(("break_folder", "message"), BAD_FOLDERS)
def test_a_bad_folder_of_inputs_is_refused_with_its_path(
    tmp_path: Path, break_folder: Callable[[Path], object], message: str
) -> None:
    make(tmp_path, "HR/a.png")
    bad = tmp_path / "LR_bicubic" / "X2"
    bad.parent.mkdir()
    break_folder(bad)
    assert refusal(tmp_path, "X2").startswith(message.format(path=bad))


def test_a_folder_that_may_not_be_read_is_refused_with_its_path() -> None:
    with TemporaryDirectory() as name:
        make(Path(name), "HR/a.png")
        Path(name).chmod(0)
        with without_root_rights():
            message = refusal(Path(name))
        assert message == f"{name}: the folder cannot be listed: Permission denied"


def test_a_name_that_is_not_utf8_is_refused_in_words_that_can_be_printed(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "xb"):
        pass
    message = refusal(tmp_path)
    assert message == f"{tmp_path}/\\udcff.png: the name of the file is not UTF-8; rename it"
    assert message.encode()


def test_a_name_that_is_not_utf8_and_no_image_is_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.txt"), "xb"):
        pass
    assert [file.name for file in list_images(tmp_path)] == ["a.png"]


def test_a_folder_with_a_line_break_in_its_name_is_named_on_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "two\nlines") == f"{tmp_path}/two\\nlines: the folder does not exist"
