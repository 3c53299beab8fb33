"""The names of a study's data, from the configs that its trials leave behind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from ablations.storage.folder import TrialFolder
from analysis.study.data_names import BUNDLED, LARGEST_CONFIG, DataNames, read_data_names
from analysis.study.loading import load, load_folder
from tests.harness.studies import Trial, trial, write_folder, write_study

FOLDER = """
channels: 32
data:
  name: folder
  train: /home/somebody/data/DIV2K/
  test:
    Set5: /home/somebody/data/Set5
    '2024': ../pictures
  inputs: made
"""

NAMES = DataNames("DIV2K", ("Set5", "2024"))

EMBEDDED = "data: {name: embedded, train: '', test: {}, inputs: made}\n"


def config_of(outputs: Path, each: Trial) -> Path:
    return TrialFolder(outputs, "components", each.cell, each.seed).config_path


def read(folder: Path, text: str, *, trains: bool = True) -> DataNames | None:
    path = folder / "config.yaml"
    path.write_text(text)
    return read_data_names(path, trains=trains)


def test_folders_are_named_by_their_base_names_and_test_sets_as_the_user_did(tmp_path: Path) -> None:
    assert read(tmp_path, FOLDER) == NAMES


def test_the_bundled_photographs_are_called_that(tmp_path: Path) -> None:
    assert read(tmp_path, EMBEDDED) == DataNames(BUNDLED, (BUNDLED,))


def test_what_trains_nothing_has_no_training_data(tmp_path: Path) -> None:
    assert read(tmp_path, FOLDER, trains=False) == DataNames("", ("Set5", "2024"))


@pytest.mark.parametrize("path", [".", "..", "/", "../.."])
def test_a_folder_without_a_name_of_its_own_has_none(tmp_path: Path, path: str) -> None:
    assert read(tmp_path, FOLDER.replace("/home/somebody/data/DIV2K/", path)) == DataNames("", ("Set5", "2024"))


DAMAGED = {
    "empty": "",
    "no YAML": "data: [",
    "a list": "[]",
    "no data": "channels: 32\n",
    "data of another kind": FOLDER.replace("name: folder", "name: web"),
    "no test sets": "data: {name: folder, train: x}\n",
    "test sets that are a list": "data: {name: folder, train: x, test: [Set5]}\n",
    "a test set that is a path": FOLDER.replace("Set5:", "/etc/Set5:"),
    "a test set with control characters": FOLDER.replace("Set5:", '"\\e[2J":'),
    "a folder with control characters": FOLDER.replace("/home/somebody/data/DIV2K/", '"\\e[2J"'),
    "a folder with a long name": FOLDER.replace("DIV2K", "x" * 300),
    "an object of Python": FOLDER.replace("/home/somebody/data/DIV2K/", "!!python/object/apply:os.getcwd []"),
    "a character that is none": FOLDER.replace("/home/somebody/data/DIV2K/", '"\\UFFFFFFFF"'),
    "deep": "[" * 10_000,
    "large": FOLDER + "#" * LARGEST_CONFIG,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_config_that_no_trial_writes_gives_no_names(tmp_path: Path, case: str) -> None:
    assert read(tmp_path, DAMAGED[case]) is None


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_bytes(b"\xff"), str],
    ids=["a FIFO", "a folder", "a device", "no text", "nothing"],
)
def test_what_is_no_config_gives_no_names(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "config.yaml")
    assert read_data_names(tmp_path / "config.yaml", trains=True) is None


def test_aliases_that_multiply_take_no_memory(tmp_path: Path) -> None:
    layers = "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}], k{n}: 0}}\n" for n in range(1, 40))
    assert read(tmp_path, f"m0: &m0 {{k: 0}}\n{layers}{FOLDER}") == NAMES


@hypothesis.given(content=st.binary(max_size=100) | st.text(max_size=100).map(lambda text: (FOLDER + text).encode()))
def test_any_bytes_are_names_or_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    names = read_data_names(path, trains=True)
    assert names is None or all(name.isprintable() and "/" not in name for name in (names.train, *names.test))


# ---- in a study ------------------------------------------------------------------------------------------------------


def other_data(seed: int, **levels: object) -> Trial:
    return Trial({**trial(seed, **levels).levels}, seed, {"Set5": 30.0}, others={"data": "d" * 64})


def test_a_study_names_each_of_its_data_sets(tmp_path: Path) -> None:
    first, second = trial(0), other_data(0)
    write_folder(tmp_path, [first, second])
    config_of(tmp_path, first).write_text(EMBEDDED)
    config_of(tmp_path, second).write_text(FOLDER)
    assert load_folder(tmp_path / "components").data_names == {
        first.setting["data"]: DataNames(BUNDLED, (BUNDLED,)),
        "d" * 64: NAMES,
    }


def test_where_the_config_of_one_trial_is_damaged_that_of_the_next_has_the_names(tmp_path: Path) -> None:
    trials = [trial(0), trial(1), trial(2)]
    write_folder(tmp_path, trials)
    for each, text in zip(trials[1:], ("data: [", FOLDER), strict=True):
        config_of(tmp_path, each).write_text(text)
    assert load_folder(tmp_path / "components").data_names == {trial().setting["data"]: NAMES}


def test_a_study_without_configs_names_no_data(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial(0)])
    assert load_folder(tmp_path / "components").data_names == {}


def test_the_names_survive_in_mlflow(tracking_uri: str, tmp_path: Path) -> None:
    done = trial(0)
    config = config_of(tmp_path, done)
    config.parent.mkdir(parents=True)
    config.write_text(FOLDER)
    write_study(tracking_uri, tmp_path, [done])
    shutil.rmtree(tmp_path / "components")
    assert load(tracking_uri, "components", tmp_path).data_names == {done.setting["data"]: NAMES}
