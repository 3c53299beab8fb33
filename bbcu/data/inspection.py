"""Check a folder before any trial: which pictures a trial would use, and which it would refuse."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bbcu.data.layouts import Role
from bbcu.data.pairs import check_picture
from bbcu.data.sources import ImageInfo, ImageInfoCache, Pictures, find_pictures, fingerprint
from bbcu.data.tasks import Task
from bbcu.errors import DataError


@dataclass(frozen=True)
class Inspection:
    """The usable pictures of a folder by name, and for each other one the reason, which names its path.

    ``fingerprint`` identifies the pictures in their order; None if one is refused, since a trial would stop there.
    """

    usable: Mapping[str, ImageInfo]
    refused: tuple[str, ...]
    fingerprint: str | None

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many usable pictures have each (width, height)."""
        return Counter((info.width, info.height) for info in self.usable.values())

    @property
    def duplicates(self) -> list[list[str]]:
        """The names of pictures with equal pixels; harmless, but seldom intended."""
        names = defaultdict(list)
        for name, info in self.usable.items():
            names[info.digest, info.height].append(name)
        return [same for same in names.values() if len(same) > 1]


def inspect(
    path: Path, role: Role, task: Task, patch: int, *, scale: int | None = None, cache: ImageInfoCache | None = None
) -> Inspection:
    """Check every picture of a folder as a trial of ``task`` would, and continue where the trial would stop.

    ``patch`` is the side of a training patch in input pixels, ``scale`` that of the user's inputs, if they are used.
    Raises DataError if there are no pictures, or if their names are ambiguous.
    """
    cache = cache or ImageInfoCache(None)
    pictures = find_pictures(path, role, scale)
    usable: dict[str, ImageInfo] = {}
    refused = []
    for picture in pictures:
        try:
            check_picture(picture, cache.info, task, patch if role == "train" else None)
            usable[picture.name] = cache.info(picture.truth)
        except DataError as error:
            refused.append(str(error))
    identity = None if refused else fingerprint(Pictures(pictures, {}), cache)
    return Inspection(usable, tuple(refused), identity)
