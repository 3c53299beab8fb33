"""What a person calls the data of a trial: the names in the ``config.yaml`` that it leaves in its folder."""

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter

from analysis.study.schema import BaseName, Checked
from bbcu.files import read_text

BUNDLED = "bundled photographs"
"""The name of the pictures of ``data=embedded``, of those to train on and of those to test on."""

LARGEST_CONFIG = 64 * 2**10
"""The most bytes of a ``config.yaml``; one has less than 2,000 and the paths of its data."""

MOST_SETS = 1_000


@dataclasses.dataclass(frozen=True)
class DataNames:
    """The names of the pictures that a trial trains on, empty if it has none, and of its test sets."""

    train: str
    test: tuple[str, ...]


TrainName = BaseName | Literal[""]
TestNames = Annotated[list[BaseName], Field(max_length=MOST_SETS)]

_TRAIN_NAME: TypeAdapter[str] = TypeAdapter(TrainName)


class _Data(Checked):
    """The key ``data`` of a config, of which every value was read as text."""

    name: Literal["embedded", "folder"]
    train: str
    test: Annotated[dict[BaseName, object], Field(max_length=MOST_SETS)]


class _Config(Checked):
    data: _Data


def read_data_names(path: Path, *, trains: bool) -> DataNames | None:
    """Return the names of the data in a ``config.yaml``; None if they cannot be read.

    Of a training folder it is the base name, never the path; ``trains`` says whether the trial trains at all.
    """
    try:
        # The base loader reads every value as text: it makes no objects, no numbers of many digits, and merges nothing.
        content = yaml.load(read_text(path, LARGEST_CONFIG), Loader=yaml.BaseLoader)
        data = _Config.model_validate(content).data
        if data.name == "embedded":
            return DataNames(BUNDLED, (BUNDLED,))
        train = PurePosixPath(data.train).name if trains else ""
        return DataNames(_TRAIN_NAME.validate_python("" if train == ".." else train), tuple(data.test))
    # A parser of a third party: what is no YAML raises YAMLError, ValueError, OverflowError, RecursionError or others.
    except Exception:
        return None
