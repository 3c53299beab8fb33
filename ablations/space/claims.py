"""The claims of the BBCU paper (ICLR 2023), and the pairs of a study's cells that test them.

A claim is a contrast between cells, with the direction that it predicts. It is tested on one pair: at the unit about
which the paper makes it if these cells are there, and else as near to it as they are. That is BBCU or, for BatchNorm
and alignment, the steps to it (V1 to V3), whose activation is after the add.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ablations.space.interventions import Pair
from ablations.space.settings import DEFAULTS
from ablations.space.study_cells import BBCU, StudyCells

PSNR = "PSNR"  # the measure of a claim about quality, in dB on each test set; any other measure is a probe

ABOVE_ONE = ">1"  # any residual alignment that is switched on


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: going from the cells with the levels ``before`` to those with ``after`` moves ``measure`` by ``sign``.

    Levels are those that a cell records, ``>1`` for any greater number; ``where`` holds for both sides. The paper's own
    unit for it is BBCU but for the levels of ``unit``. A claim on methods names them under ``method`` and compares them
    as published: they may differ in the keys of the setting that ``brings`` lists.
    """

    text: str
    measure: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    sign: int
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    brings: tuple[str, ...] = ()
    unit: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def on_methods(self) -> bool:
        return "method" in self.after

    @property
    def predicted(self) -> str:
        return f"{self.measure.replace('_', ' ')} {'rises' if self.sign > 0 else 'falls'}"

    @property
    def change(self) -> str:
        """The contrast in words: ``residual: false → true``."""
        names = dict.fromkeys([*self.before, *self.after])
        moved = ", ".join(f"{name}: {self.before.get(name, '')} → {self.after.get(name, '')}" for name in names)
        held = ", ".join(f"{name}={level}" for name, level in self.where.items())
        return f"{moved} at {held}" if held else moved


BARE = {"bn": "none", "align": "1"}
ALIGNED = {"bn": "none", "align": ABOVE_ONE}
NORMALISED = {"bn": "post", "align": "1"}
AFTER, INSIDE = {"act": "after"}, {"act": "inside"}
WITH_RESIDUAL, WITHOUT_RESIDUAL = {"residual": "true"}, {"residual": "false"}
CLOSES = "closes the gap between the ranges"
BN_CLOSES = f"BatchNorm after the convolution {CLOSES} of residual and branch"


def component_claim(claim: str, before: Mapping[str, str], after: Mapping[str, str], measure: str = PSNR) -> Claim:
    """The claim that BatchNorm or alignment, with a residual beside it, raises PSNR or lowers another measure."""
    return Claim(claim, measure, before, after, 1 if measure == PSNR else -1, WITH_RESIDUAL, unit=AFTER)


def part_claim(part: str, before: str, after: str) -> Claim:
    return Claim(f"Binarising the {part} costs PSNR", PSNR, {"binarize": before}, {"binarize": after}, -1)


def method_claim(name: str, method: str, *brings: str) -> Claim:
    claim = f"BBCU is better than {name}"
    return Claim(claim, PSNR, {"method": method}, {"method": BBCU}, +1, brings=brings)


CLAIMS: tuple[Claim, ...] = (
    Claim("The residual reduces what a unit loses of its output", "output_loss", WITHOUT_RESIDUAL, WITH_RESIDUAL, -1),
    Claim("The residual raises PSNR", PSNR, WITHOUT_RESIDUAL, WITH_RESIDUAL, +1),
    component_claim(BN_CLOSES, BARE, NORMALISED, "range_gap"),
    component_claim("BatchNorm after the convolution raises PSNR", BARE, NORMALISED),
    component_claim(f"Residual alignment {CLOSES}", BARE, ALIGNED, "range_gap"),
    component_claim(f"Residual alignment {CLOSES} better than BatchNorm", NORMALISED, ALIGNED, "range_gap"),
    component_claim("Residual alignment raises PSNR", BARE, ALIGNED),
    component_claim("Residual alignment is better than BatchNorm", NORMALISED, ALIGNED),
    Claim("The activation inside the residual is better than after the add", PSNR, AFTER, INSIDE, 1, WITH_RESIDUAL),
    part_claim("body", "[]", "[body]"),
    part_claim("upsampling", "[body]", "[body,up]"),
    part_claim("head", "[body]", "[head,body]"),
    part_claim("tail", "[body]", "[body,tail]"),
    method_claim("ReActNet", "reactnet"),
    method_claim("BTM", "btm", "network.initial", "network.standardise"),
    method_claim("IR-Net", "irnet"),
    method_claim("Bi-Real Net", "bireal"),
    method_claim("BNN", "bnn"),
    method_claim("the full-precision Lite network", "lite", "channels"),
)


def pairs_to_test(cells: StudyCells) -> list[tuple[Claim, list[Pair]]]:
    """Return each claim with the pairs of cells that test it, the nearest to the paper's own unit first."""
    return [(claim, pairs_of(claim, cells)) for claim in CLAIMS]


def pairs_of(claim: Claim, cells: StudyCells) -> list[Pair]:
    """The pairs of cells at the levels of a claim that differ in nothing else, by distance from BBCU.

    If no two differ in nothing else that is recorded, what the user gave is compared, such as ``align=auto``.

    Methods make one pair or none: with two widths of one method it is unknown which one the claim is about.
    """
    before, after = (side(claim, cells, wanted) for wanted in (claim.before, claim.after))
    if claim.on_methods:
        found = alike(cells, before, after, {*claim.brings, *cells.factors})
        return found if len(found) == 1 else []
    free = {*claim.before, *claim.after}
    found = alike(cells, before, after, free) or alike(cells, before, after, free, asked=True)
    places = {pair: place for place, pair in enumerate(found)}
    return sorted(found, key=lambda pair: (distance(cells, claim, pair), places[pair]))


def alike(
    cells: StudyCells, before: Sequence[str], after: Sequence[str], free: set[str], *, asked: bool = False
) -> list[Pair]:
    """The pairs that agree in every key but the free ones, by what is recorded or by what the user asked for."""

    def rest(cell: str) -> tuple[tuple[str, str], ...]:
        levels = cells.levels[cell]
        known = levels.asked if asked else levels.recorded
        return tuple(sorted((key, value) for key, value in known.items() if key not in free))

    partners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for cell in after:
        partners.setdefault(rest(cell), []).append(cell)
    return [(cell, partner) for cell in before for partner in partners.get(rest(cell), [])]


OWN_NETWORK = {key: str(value) for key, value in DEFAULTS.items() if key.startswith("network.")}
"""How the paper's network is made, beside the levels of the factors."""


def away(cells: StudyCells, claim: Claim, pair: Pair) -> dict[str, str]:
    """The levels, common to a pair, in which it differs from the paper's own unit."""
    if claim.on_methods:
        return {}
    named = {*claim.before, *claim.after, *claim.where}
    asked = cells.levels[pair[1]].asked
    return {
        key: asked[key]
        for key, level in {**cells.reference, **OWN_NETWORK, **claim.unit}.items()
        if key not in named and asked.get(key, level) != level
    }


def distance(cells: StudyCells, claim: Claim, pair: Pair) -> tuple[int, int]:
    """How many levels a pair is away from the paper's unit, and how many keys from the reference cell of the study."""
    own, reference = (cells.levels[cell].recorded for cell in (pair[1], cells.reference_cell))
    return len(away(cells, claim, pair)), sum(own.get(key) != value for key, value in reference.items())


def side(claim: Claim, cells: StudyCells, wanted: Mapping[str, str]) -> list[str]:
    """The cells with the levels of one side of a claim."""
    found = []
    for cell, levels in cells.levels.items():
        own = {**levels.recorded, "method": cells.methods[cell]}
        if all(is_level(own.get(name, ""), level) for name, level in {**claim.where, **wanted}.items()):
            found.append(cell)
    return found


def is_level(recorded: str, wanted: str) -> bool:
    """Whether a recorded level, as text, is the wanted one; numbers are compared as numbers."""
    if recorded == wanted:
        return True
    try:
        number = float(recorded)
        return number > 1 if wanted == ABOVE_ONE else number == float(wanted)
    except ValueError:
        return False
