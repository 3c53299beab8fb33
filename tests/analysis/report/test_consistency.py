"""A report keeps its form and never contradicts itself, whatever the study.

Each study here is made so that something is special about it. Every page goes through the same checks
(tests/harness/pages.py); what is special has a test of its own in the other files.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.plans import write_plan
from analysis.report.page import compose
from analysis.study.loading import StudyResults, load_folder
from tests.harness.pages import broken, contradictions
from tests.harness.paths import REPOSITORY
from tests.harness.ruled import Levels, Method, cell, ruled
from tests.harness.studies import (
    Ours,
    Trial,
    components_study,
    counted,
    full_trial,
    in_memory,
    methods_study,
    plan_of,
    read_back,
    timed,
    trial,
)

MOST_LINES = 40  # of what a page says before its first heading

NOISE = (0.0, 0.03, -0.02, 0.01, -0.04)
"""What a seed adds to the score of a cell, in dB."""

EXAMPLES = sorted(path.parent for path in (REPOSITORY / "reports" / "examples").glob("*/report.md"))


def seeded(levels: Mapping[str, Any], psnr_db: float, seeds: int = 3, sets: Sequence[str] = ("Set5",)) -> list[Trial]:
    """Trials of one cell; every test set is 1 dB above the one before, and each seed differs a little."""
    return [
        dataclasses.replace(
            trial(seed, **levels),
            psnr_db={name: psnr_db + place + NOISE[(seed + place) % len(NOISE)] for place, name in enumerate(sets)},
        )
        for seed in range(seeds)
    ]


Cells = Sequence[tuple[dict[str, Any], float]]
"""Levels of cells that are not those of the reference, and the mean score of each cell in dB."""


def residual_and_bn(sets: Sequence[str] = ("Set5",), seeds: int = 3) -> list[Trial]:
    """A reference, a cell that is surely worse, one that is surely better, and one that is undecided."""
    cells: Cells = [({}, 30.0), ({"residual": False}, 29.0), ({"bn": "post"}, 31.0), ({"bn": "pre"}, 30.03)]
    return [each for levels, psnr in cells for each in seeded(levels, psnr, seeds, sets)]


def with_scores(levels: Mapping[str, Any], scores: Iterable[float]) -> list[Trial]:
    return [trial(seed, score, **levels) for seed, score in enumerate(scores)]


def components(folder: Path) -> StudyResults:
    finished, left_out = components_study(range(3))
    return in_memory(finished, left_out=left_out)


def one_seed(folder: Path) -> StudyResults:
    return in_memory(residual_and_bn(seeds=1))


def four_sets(folder: Path) -> StudyResults:
    return in_memory(residual_and_bn(("B100", "Set5", "Set14", "Urban100")))


def many_interventions(folder: Path) -> StudyResults:
    cells: Cells = [({}, 30.0), *(({"align": place}, 30.0 - 0.05 * place) for place in range(2, 22))]
    return in_memory([each for levels, psnr in cells for each in seeded(levels, psnr)])


def chain(folder: Path) -> StudyResults:
    cells: Cells = [
        ({"bn": "none", "align": 1, "residual": False}, 29.0),
        ({"bn": "none", "align": 1}, 30.0),
        ({"bn": "post"}, 30.3),
        ({}, 30.31),
    ]
    finished = [each for levels, psnr in cells for each in seeded(levels, psnr)]
    return in_memory(finished, design={"name": "chain"})


def nothing_at_the_reference(folder: Path) -> StudyResults:
    """Two cells differ in one key, and neither is the reference cell."""
    cells: Cells = [({}, 30.0), ({"residual": False, "bn": "post"}, 29.0), ({"residual": False, "bn": "pre"}, 29.5)]
    return in_memory([each for levels, psnr in cells for each in seeded(levels, psnr)])


def some_collapsed(folder: Path) -> StudyResults:
    """Of three cells one, some and all seeds collapsed; the last cell is decided all the same."""
    return in_memory(
        [
            *with_scores({}, (30.0, 30.1, 29.9)),
            *with_scores({"bn": "post"}, (29.8, 20.0, 29.9)),
            *with_scores({"bn": "pre"}, (20.0, 20.3, 29.9)),
            *with_scores({"residual": False}, (20.0, 20.1, 19.9)),
        ]
    )


def collapsed_reference(folder: Path) -> StudyResults:
    """One seed of the reference collapsed, in a design with other contexts."""
    cells = {(True, "none"): (30.0, 20.0, 30.1), (True, "post"): (30.5, 30.6, 30.4)}
    cells |= {(False, "none"): (29.0, 29.1, 28.9), (False, "post"): (29.9, 30.0, 30.1)}
    found = [
        each
        for (residual, bn), scores in cells.items()
        for each in with_scores({"residual": residual, "bn": bn}, scores)
    ]
    return in_memory(found)


def dead_reference(folder: Path) -> StudyResults:
    return in_memory([*with_scores({}, (20.0, 20.1, 20.2)), *seeded({"bn": "post"}, 31.0)])


def nothing_learned(folder: Path) -> StudyResults:
    cells: Sequence[dict[str, Any]] = ({}, {"residual": False}, {"bn": "post"})
    return in_memory([each for levels in cells for each in with_scores(levels, (20.0, 20.1, 20.2))])


def methods_of_two_tasks(folder: Path) -> StudyResults:
    methods = {"bbcu": 35.0, "reactnet": 34.5, "irnet": 34.9, "bicubic": 33.9752}
    denoising = {"bbcu": 27.0, "reactnet": 26.5, "btm": 27.02}
    return methods_study(
        folder,
        [
            Ours(name, psnr + (NOISE[seed] if name != "bicubic" else 0.0), seed, task)
            for task, found in (("sr_x4", methods), ("denoise", denoising))
            for name, psnr in found.items()
            for seed in range(3)
        ],
    )


def seven_groups_of_test_pictures(folder: Path) -> StudyResults:
    """Cells that cannot be compared over groups, of which the first has many interventions."""
    cells: Cells = [({}, 30.0), *(({"align": place}, 30.0 - 0.04 * place) for place in range(2, 13))]
    cells = [*cells, ({"residual": False}, 29.0), ({"residual": False, "align": 10}, 29.9)]
    return in_memory(
        [
            dataclasses.replace(each, others={"data": f"{group}" * 64}, baseline_db=23.0 + group)
            for group in range(7)
            for levels, psnr in (cells if group == 0 else [cells[0], cells[9], *cells[-2:]])
            for each in seeded(levels, psnr)
        ]
    )


def parts(folder: Path) -> StudyResults:
    levels = [list(found) for size in range(3) for found in itertools.combinations(("head", "body", "up"), size)]
    cells = [full_trial(seed, binarize=names) for names in levels for seed in range(3)]
    return in_memory(
        [
            dataclasses.replace(each, psnr_db={"Set5": 32.0 - 0.4 * len(each.levels["binarize"]) + NOISE[each.seed]})
            for each in cells
        ]
    )


def search(folder: Path) -> StudyResults:
    """Widths and depths as a search tries them, ranked by the clock: no two differ in one key from the reference."""
    found = []
    for place, (channels, blocks) in enumerate(((8, 1), (16, 2), (12, 4), (24, 1), (32, 3))):
        each = trial(0, 30.0 + 0.3 * place)
        size = {"channels": channels, "blocks": blocks}
        each = counted(dataclasses.replace(each, others=size, params_k=channels * 2.0), 0.1, channels * blocks / 10)
        found.append(timed(each, 0.3 - 0.05 * place, 100.0 * channels * blocks))
    return dataclasses.replace(in_memory(found, design={"name": "search"}), price="measured")


def fraction(folder: Path) -> StudyResults:
    """Half of all combinations of four components, of which no two differ in one alone."""
    names = {"residual": (True, False), "bn": ("none", "post"), "act": ("inside", "after"), "threshold": (True, False)}
    rows = [row for row in itertools.product((0, 1), repeat=len(names)) if sum(row) % 2 == 0]
    levels = [{name: names[name][place] for name, place in zip(names, row, strict=True)} for row in rows]
    return in_memory([full_trial(seed, **each) for each in levels for seed in range(3)])


def two_level_factorial_of_one_seed(folder: Path) -> StudyResults:
    levels = itertools.product((True, False), ("none", "post"), ("auto", 10))
    return in_memory(
        [
            trial(0, 30.0 - (not residual) + 0.01 * place, residual=residual, bn=bn, align=align)
            for place, (residual, bn, align) in enumerate(levels)
        ]
    )


def unfinished(folder: Path) -> StudyResults:
    """Some trials never ran, one ran outside of the plan, and two versions of the code took part."""
    finished = [
        dataclasses.replace(each, origin={"code": "ab"[each.seed % 2] * 16, "dirty": False})
        for each in residual_and_bn()
    ]
    left_out = {"levels": dict(trial(bn="out").levels), "setting": trial().setting, "reason": "no add to stand after"}
    stray = dataclasses.replace(trial(0, 40.0, residual="block"), others={"channels": 64})
    return read_back(
        folder,
        finished[:-1],
        planned=[finished[-1], *seeded({"align": 10}, 0.0)],
        left_out=[left_out],
        unplanned=[stray],
    )


def nothing_finished(folder: Path) -> StudyResults:
    write_plan(folder, "components", plan_of(residual_and_bn()))
    return load_folder(folder / "components")


def two_kinds_of_training_data(folder: Path) -> StudyResults:
    other = [dataclasses.replace(each, others={"data": "f" * 64}) for each in seeded({}, 29.0)]
    return in_memory([*seeded({}, 30.0), *other])


def two_test_sets_of_which_one_data_lacks(folder: Path) -> StudyResults:
    """Two groups of cells that cannot be compared, as they were scored on other pictures."""
    other = [
        dataclasses.replace(each, others={"data": "f" * 64}, baseline_db=25.0)
        for each in (*seeded({}, 29.0), *seeded({"bn": "pre"}, 29.5))
    ]
    return in_memory([*residual_and_bn(), *other])


def ruled_full(folder: Path) -> StudyResults:
    """A stopping rule over a complete design, with earlier results; cells fail and collapse at some looks."""
    levels = [{"residual": residual, "bn": bn} for residual in (True, False) for bn in ("none", "post")]
    cells = [cell(31.0 - (not own["residual"]) + 0.06 * (own["bn"] == "post"), **own) for own in levels]
    cells += [Levels({"bn": "pre"}, {"Set5": 31.0}, failed=(3,), collapsed=(6,)), cell(31.02, align=10)]
    return ruled(cells, "full", earlier=2)


def ruled_chain_half_way(folder: Path) -> StudyResults:
    """Chain of which the last step is open, and which lacks trials."""
    steps = [({"bn": "none", "align": 1, "residual": False}, 29.0), ({"align": 1}, 30.0), ({"bn": "post"}, 30.02)]
    return ruled([*(cell(psnr, **levels) for levels, psnr in steps), cell(30.03)], "chain", most=14)


def ruled_methods_of_two_tasks(folder: Path) -> StudyResults:
    methods = {"sr_x4": {"bbcu": 35.0, "reactnet": 34.5, "irnet": 34.97}, "denoise": {"bbcu": 27.0, "btm": 27.02}}
    return ruled([Method(name, psnr, task) for task, own in methods.items() for name, psnr in own.items()], "rows")


def ruled_two_test_sets(folder: Path) -> StudyResults:
    """Verdicts that fall at different looks on two test sets, a cell that never has a result, and a dead one."""
    worth = {"none": (31.0, 31.0), "post": (33.0, 31.0)}
    cells = [Levels({"bn": bn}, dict(zip(("Set5", "Set14"), psnr, strict=True))) for bn, psnr in worth.items()]
    never, down = tuple(range(6)), {"Set5": 20.0, "Set14": 20.0}
    return ruled(
        [*cells, Levels({"bn": "pre"}, down, failed=never), Levels({"residual": False}, down, collapsed=never)]
    )


def ruled_before_its_first_look(folder: Path) -> StudyResults:
    return ruled([cell(31.0), cell(29.0, residual=False), cell(31.0, bn="pre")], most=7)


def measured_parts(folder: Path) -> StudyResults:
    """Parts whose savings are real, smaller than counted, none and a loss, measured in two places; one has no time."""
    cells = {
        (): (8.0, 0.0, 1.0),
        ("body",): (4.0, 4.0, 0.55),
        ("body", "up"): (0.5, 7.5, 0.12),
        ("head", "body"): (3.9, 4.1, 0.551),
        ("body", "tail"): (3.5, 4.5, 0.6),
        ("up",): (4.0, 4.0, 0.0),
    }
    found = []
    for seed, (names, (full, binary, ratio)) in itertools.product(range(5), cells.items()):
        each = counted(full_trial(seed, binarize=list(names)), full, binary)
        each = dataclasses.replace(each, psnr_db={"Set5": 32.0 - 0.4 * len(names) + NOISE[seed]})
        if ratio:
            # The last two seeds were measured on another processor, on which the tail saves time.
            other = {"cpu": "an old core"} if seed > 2 else {}
            there = 0.4 if other and "tail" in names else ratio
            found.append(timed(each, there * (1 + 0.1 * NOISE[seed]), **other))
        else:
            found.append(dataclasses.replace(each, origin={"latency": {"missing": "a unit of the user's own"}}))
    return in_memory(found)


def measured_methods(folder: Path) -> StudyResults:
    """Methods of two layouts, of which the narrow one is cheaper at 1/8, at that price."""
    methods = {
        "bbcu": (17.3, 68.0, 0.26, 1800.0, 35.0),
        "full_precision": (85.3, 0.0, 1.01, 1800.0, 36.0),
        "lite": (3.08, 0.0, 0.98, 80.0, 34.8),
        "reactnet": (17.3, 68.0, 0.262, 1800.0, 34.9),
        "bicubic": (0.0, 0.0, 0.0, 0.0, 33.9752),
    }
    trials = []
    for seed, (name, (full, binary, ratio, twin_ms, psnr)) in itertools.product(range(3), methods.items()):
        each = counted(Ours(name, psnr + (NOISE[seed] if ratio else 0.0), seed, sets=("Set5",)), full, binary)
        trials.append(timed(each, ratio * (1 + 0.1 * NOISE[seed]), twin_ms) if ratio else each)
    return dataclasses.replace(methods_study(folder, trials), price="1/8")


STUDIES: tuple[Callable[[Path], StudyResults], ...] = (
    components,
    one_seed,
    four_sets,
    many_interventions,
    chain,
    nothing_at_the_reference,
    some_collapsed,
    collapsed_reference,
    dead_reference,
    nothing_learned,
    methods_of_two_tasks,
    seven_groups_of_test_pictures,
    parts,
    search,
    fraction,
    two_level_factorial_of_one_seed,
    unfinished,
    nothing_finished,
    two_kinds_of_training_data,
    two_test_sets_of_which_one_data_lacks,
    ruled_full,
    ruled_chain_half_way,
    ruled_methods_of_two_tasks,
    ruled_two_test_sets,
    ruled_before_its_first_look,
    measured_parts,
    measured_methods,
)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_a_page_keeps_its_form_and_says_nothing_that_it_denies(
    study: Callable[[Path], StudyResults], tmp_path: Path
) -> None:
    check(compose(study(tmp_path)))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_a_committed_page_keeps_its_form_and_says_nothing_that_it_denies(folder: Path) -> None:
    check({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".csv", ".png", ".svg")})


def check(files: Mapping[str, bytes]) -> None:
    assert broken(files) == []
    assert contradictions(files) == []
    opening = files["report.md"].decode().partition("\n## ")[0]
    assert len(opening.splitlines()) <= MOST_LINES
