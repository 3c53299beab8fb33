"""What a trial would see of a folder, picture by picture, before any trial is started."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bbcu.data.layouts import Role
from bbcu.data.pairs import check_picture
from bbcu.data.sources import Catalogue, Facts, Picture, Pictures, find_pictures, fingerprint
from bbcu.data.tasks import Task
from bbcu.errors import DataError


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder.

    ``usable`` has the facts of the pictures that a trial could use, by name; ``refused`` the reason for each other one,
    which names its path. ``fingerprint`` identifies the pictures in their order, wherever they lie; None where one is
    refused, since a trial would stop there.
    """

    usable: Mapping[str, Facts]
    refused: tuple[str, ...]
    fingerprint: str | None

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many usable pictures there are of each (width, height)."""
        return Counter((facts.width, facts.height) for facts in self.usable.values())

    @property
    def repeated(self) -> list[list[str]]:
        """The names of pictures that are the same, pixel by pixel; harmless, but seldom meant."""
        names = defaultdict(list)
        for name, facts in self.usable.items():
            names[facts.digest, facts.height].append(name)
        return [same for same in names.values() if len(same) > 1]


def inspect(
    path: Path, role: Role, task: Task, patch: int, *, inputs: str | None = None, catalogue: Catalogue | None = None
) -> Inspection:
    """Look at every picture of a folder as a trial of ``task`` would, and go on where the trial would stop.

    ``patch`` is the side of a training patch in input pixels, ``inputs`` the folder of given inputs, as in "X2".
    Raises DataError where no picture can be found at all, or one cannot be told from another.
    """
    catalogue = catalogue or Catalogue(None)
    pictures = find_pictures(path, role, inputs)
    usable: dict[str, Facts] = {}
    refused = []
    for picture in pictures:
        try:
            usable[picture.name] = _facts(picture, role, task, patch, catalogue)
        except DataError as error:
            refused.append(str(error))
    identity = None if refused else fingerprint(Pictures(pictures, {}), catalogue)
    return Inspection(usable, tuple(refused), identity)


def _facts(picture: Picture, role: Role, task: Task, patch: int, catalogue: Catalogue) -> Facts:
    check_picture(picture, catalogue.facts, task, patch if role == "train" else None)
    return catalogue.facts(picture.truth)
