"""What the page in HTML knows beyond the Markdown that it is made of."""

import dataclasses
from collections.abc import Mapping

from analysis.report.pictures import Strip


@dataclasses.dataclass(frozen=True)
class Details:
    """Facts about the rows and pictures of a page, which Markdown has no place for.

    ``cells`` has the levels of each cell, by the target of the links to its runs, such as ``runs-0123456789ab``: a row
    that links there, or is that target, is about this cell. ``strips`` has the pictures of each strip, by the name of
    the file that shows it. ``experiment`` is the address at which a tracking server shows the study, empty if none
    does: only there may a page lead beyond itself.
    """

    cells: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    strips: Mapping[str, Strip] = dataclasses.field(default_factory=dict)
    experiment: str = ""
