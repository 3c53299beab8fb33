"""Which pairs of cells a study gives a verdict on, and of which cells: a function of its plan or of its results.

The interventions that start or end at the reference cell, the steps of a chain or the methods beside BBCU, and the
pairs of cells that test a claim of the paper on PSNR are one family: their verdicts are corrected together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablations.space.claims import PSNR, Claim, pairs_to_test
from ablations.space.conditions import value_of
from ablations.space.factors import FACTORS
from ablations.space.interventions import (
    NOTHING,
    CellLevels,
    Change,
    Comparison,
    Intervention,
    Pair,
    between,
    comparisons,
    is_grid,
    steps,
)
from ablations.space.rows import chain
from ablations.space.settings import DATA, levels_as_text, one_line, setting_as_text, task_of, without_task
from ablations.space.study_cells import UNTRAINED, StudyCells, completed, published_methods
from bbcu.errors import ConfigError

CHAIN = "chain"  # the name of the design

METHOD = "method"  # the key of an intervention that replaces one published method by another


def family(cells: StudyCells) -> tuple[Pair, ...]:
    """Return the pairs of cells whose verdicts are corrected together, each once, whichever of the two comes first."""
    return corrected_together(tested_pairs(cells, compared(cells)), pairs_to_test(cells))


def corrected_together(tested: Iterable[Pair], claims: Iterable[tuple[Claim, Sequence[Pair]]]) -> tuple[Pair, ...]:
    """Return the pairs of comparisons, and the first pair of each claim on PSNR, each once."""
    on_psnr = [pairs[0] for claim, pairs in claims if pairs and claim.measure == PSNR]
    found: dict[frozenset[str], Pair] = {}
    for pair in (*tested, *on_psnr):
        found.setdefault(frozenset(pair), pair)
    return tuple(found.values())


# --- comparisons ------------------------------------------------------------------------------------------------------


def compared(cells: StudyCells) -> tuple[Comparison, ...]:
    """Return what the study compares: methods with BBCU, a chain's steps, or every intervention."""
    if not cells.levels:
        return ()
    if cells.published:
        base = cells.reference_cell
        return tuple(
            Comparison(replaced(cells.published[base], cells.published[cell]), ((base, cell),), (base, cell))
            for cell in cells.levels
            if cell != base
        )
    if found := steps_of(cells):
        first, *_, last = cells.levels
        return (*found, between(first, last, cells.levels))
    return comparisons(cells.levels, cells.reference_cell, cells.reference)


def replaced(before: str, after: str) -> Intervention:
    return Intervention((Change(METHOD, before, after),))


def steps_of(cells: StudyCells) -> tuple[Comparison, ...]:
    """Return the steps of a chain; none if the study was planned as something else, or if its cells are no chain."""
    planned = cells.design.get("name")
    if cells.published or planned not in (None, CHAIN) or not cells.levels or not follow_the_plan(cells):
        return ()
    found = steps(cells.levels, cells.reference_cell)
    # An earlier version did not record the design, and cells of another one may look like a chain.
    return () if found and planned is None and (is_nested(cells) or are_single_changes(cells)) else found


def follow_the_plan(cells: StudyCells) -> bool:
    """Tell whether the cells are steps of the chain that was planned, in its order; some may be missing.

    They are not if the study held other cells before, or had trained a later step first. A plan may list no steps.
    """
    planned = cells.design.get("options", {}).get("steps")
    if not isinstance(planned, list):
        return True
    try:
        rows = chain([step if isinstance(step, list) else str(step).split() for step in planned])
    except (ConfigError, AttributeError):  # no steps that this version plans, as in the archive of somebody else
        return True
    left = iter([dict(text.split("=", 1) for text in row) for row in rows])
    return all(any(is_at(own, row) for row in left) for own in cells.levels.values())


def is_at(cell: CellLevels, levels: Mapping[str, str]) -> bool:
    """Tell whether a cell has these levels of factors, as a user types them.

    What has no effect beside the other levels is recorded as if it had not been asked for: `align=1` beside BatchNorm.
    """
    return all(
        value_of(level) in (value_of(cell.asked[key]), value_of(cell.recorded[key]))
        for key, level in levels.items()
        if key in FACTORS and key in cell.asked
    )


def is_nested(cells: StudyCells) -> bool:
    """Tell whether the cells are all combinations of their levels, with those left out as the same network."""
    every = {frozenset(levels.items()) for levels in (*(own.asked for own in cells.levels.values()), *cells.left_out)}
    return is_grid([dict(levels) for levels in every])


def are_single_changes(cells: StudyCells) -> bool:
    """Tell whether comparisons of a single key with the reference show every cell."""
    found = comparisons(cells.levels, cells.reference_cell, cells.reference)
    return {cell for each in found for cell in each.at_reference or ()} == cells.levels.keys()


def is_chain(cells: StudyCells) -> bool:
    """Tell whether the study is a chain, in which each cell is compared with the one before it."""
    return bool(steps_of(cells))


def in_words(comparison: Comparison, cells: StudyCells) -> str:
    """Name what changes: a method by its name, and what a chain adds up to as that."""
    first = comparison.intervention.changes[0]
    if first.key == METHOD:
        return first.after
    names = list(cells.levels)
    if comparison.pairs == ((names[0], names[-1]),) and is_chain(cells):
        return f"All steps together: {comparison.intervention.phrase}"
    return comparison.intervention.in_words


def change_between(before: str, after: str, cells: StudyCells) -> Comparison:
    """Return whatever changes from one cell to another, of published methods the method."""
    if cells.published:
        return Comparison(replaced(cells.published[before], cells.published[after]), ((before, after),), None)
    return between(before, after, cells.levels)


def tested_pairs(cells: StudyCells, found: Sequence[Comparison]) -> list[Pair]:
    """Return the pair of each comparison that gives its verdict: the one at the reference, or a step of a chain."""
    every = found if is_chain(cells) else [each for each in found if each.at_reference]
    return [each.pairs[0] for each in every]


# --- from a plan ------------------------------------------------------------------------------------------------------


def cells_of_plan(
    rows: Iterable[Mapping[str, Any]], design: Mapping[str, Any], tested: Mapping[str, str] = NOTHING
) -> list[StudyCells]:
    """Return the trained cells that a plan lists, for each task and set of test pictures, as its report has them.

    ``rows`` are the trials of ``plan.json``, and ``design`` is its design. Those that only teach are not compared.
    ``tested`` identifies the test pictures of
    data, given by their fingerprint: cells that were trained on different pictures are compared if they are tested on
    the same. Data that it does not have are taken to have test pictures of their own.
    """
    reference: dict[str, str] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row.get("only_teaches", False):
            continue
        reference |= _as_text(levels_as_text(row.get("reference", {})))
        first.setdefault(row["cell"], row)
    groups: dict[object, dict[str, Mapping[str, Any]]] = {}
    for cell, row in first.items():
        setting = _as_text(setting_as_text(row["setting"]))
        data = setting.get(DATA, "")
        key = (tuple(sorted(task_of(setting).items())), tested.get(data, data))
        groups.setdefault(key, {})[cell] = row
    every = [_planned_cells(group, reference, design) for group in groups.values()]
    return [cells for cells in every if cells.levels]


def _planned_cells(
    rows: Mapping[str, Mapping[str, Any]], reference: Mapping[str, str], design: Mapping[str, Any]
) -> StudyCells:
    methods = {cell: row.get("method", "") for cell, row in rows.items()}
    asked = {cell: _as_text(levels_as_text(row["levels"])) for cell, row in rows.items()}
    levels = {cell: _planned_levels(row) for cell, row in rows.items() if methods[cell] not in UNTRAINED}
    published = published_methods(methods, asked, reference)
    return StudyCells(completed(levels, reference), methods, reference, design, published)


def _planned_levels(row: Mapping[str, Any]) -> CellLevels:
    recorded, asked = (_as_text(levels_as_text(row[name])) for name in ("factors", "levels"))
    setting = without_task(_as_text(setting_as_text(row["setting"])))
    # A report has the keys of a setting in the order of their names.
    ordered = {key: setting[key] for key in sorted(setting)}
    return CellLevels({**recorded, **ordered}, {**asked, **ordered})


def _as_text(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: one_line(text) for name, text in texts.items() if text}
