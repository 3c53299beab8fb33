"""The cells of a study that are compared with each other: what each one is, and from which one effects are measured."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablations.space.factors import FACTORS
from ablations.space.interventions import CellLevels, Cells, reference_cell
from ablations.space.settings import DEFAULTS
from bbcu.model.methods import BASELINE, METHODS

BBCU, LITE = "bbcu", "lite"

MEDIUM = "bbcu binarize=[body,up]"
"""BBCU-M, which is recorded as custom, because it is BBCU with one level changed."""

UNTRAINED = tuple(name for name, method in METHODS.items() if method.network.get("name") == BASELINE)
"""The methods that train nothing."""

TITLES = {name: method.title for name, method in METHODS.items() if method.title}
"""What papers call the methods that are in none of the BBCU paper's tables."""

REIMPLEMENTED = frozenset(name for name, method in METHODS.items() if method.label)
"""The methods whose authors' code is not known."""

OWN_METHODS = frozenset({BBCU, MEDIUM, LITE, "full_precision", *UNTRAINED})
"""The methods that a study of BBCU's own parts may hold; only another one makes it a comparison of methods."""


@dataclass(frozen=True)
class StudyCells:
    """The trained cells of one task of a study, in its order, which are scored on the same test pictures.

    ``methods`` has the method that each cell records, ``reference`` the text of the reference level of each factor, and
    ``design`` the design as ``plan.json`` has it, empty if it is not known. ``published`` names the method of each cell
    if the study compares published methods, and is empty otherwise. ``left_out`` has the levels and the setting of each
    combination that was left out; they count only where the design is not known.
    """

    levels: Cells
    methods: Mapping[str, str]
    reference: Mapping[str, str]
    design: Mapping[str, Any]
    published: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[Mapping[str, str], ...] = ()

    @functools.cached_property
    def reference_cell(self) -> str:
        """The cell that effects are measured from: the one with most levels at the reference.

        Among methods it is BBCU, or the first if BBCU is missing. Raises ValueError if there is no cell.
        """
        if self.published:
            return next((cell for cell in self.levels if self.methods[cell] == BBCU), next(iter(self.levels)))
        return reference_cell(self.levels, self.reference)

    @property
    def factors(self) -> frozenset[str]:
        """The keys of levels that are factors, here or where the study was trained."""
        return frozenset((*FACTORS, *self.reference))


def completed(cells: Cells, reference: Mapping[str, str]) -> dict[str, CellLevels]:
    """The cells with the keys that some of them have and that others are too old to have recorded.

    A trial from before there was a factor, or a key of the setting, has what networks did then: the factor's reference,
    or the key's default.
    """
    known = {**{name: str(value) for name, value in DEFAULTS.items()}, **reference}
    present = {key for cell in cells.values() for key, level in cell.recorded.items() if level}
    then = {key: level for key, level in known.items() if key in present}

    def filled(levels: Mapping[str, str]) -> Mapping[str, str]:
        missing = {key: level for key, level in then.items() if not levels.get(key)}
        whole = {**levels, **missing}
        # Factors first, then the other keys by name, as the other cells have them.
        names = sorted(whole, key=lambda key: (key not in reference, "" if key in reference else key))
        return {name: whole[name] for name in names} if missing else levels

    return {name: CellLevels(filled(cell.recorded), filled(cell.asked)) for name, cell in cells.items()}


def published_methods(
    methods: Mapping[str, str], levels: Mapping[str, Mapping[str, str]], reference: Mapping[str, str]
) -> dict[str, str]:
    """Return the published method of each cell if these cells compare methods, otherwise an empty dict.

    They do if each cell is a different published method, and at least one is neither BBCU nor a variant of it.
    ``levels`` has the levels of factors of each cell as the user gave them.
    """
    found = {cell: published_method(method, levels[cell], reference) for cell, method in methods.items()}
    names = set(found.values())
    is_comparison = 2 <= len(found) == len(names) and names <= {*METHODS, MEDIUM} and not names <= OWN_METHODS
    return found if is_comparison else {}


def published_method(method: str, levels: Mapping[str, str], reference: Mapping[str, str]) -> str:
    """Return the method of a cell as the paper's tables are keyed: the one that it records, or :data:`MEDIUM`."""
    moved = {name: level for name, level in levels.items() if level != reference.get(name)}
    if method not in OWN_METHODS and set(moved) <= {"binarize"}:
        return f"{BBCU} binarize={moved['binarize']}" if moved else BBCU
    return method
