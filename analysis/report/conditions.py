"""What a report says before its numbers: the question of the study, and the conditions under which it is answered."""

import dataclasses
import fractions
from collections.abc import Sequence

from ablations.space.family import is_chain
from ablations.space.study_cells import BBCU
from analysis.published.tables import TABLES
from analysis.report.markup import Markdown, code
from analysis.report.words import listed
from analysis.study.loading import NOT_RECORDED
from analysis.study.tasks import KEY_LENGTH, TaskResults, cell_levels, setting_of, varying

TASKS = {"denoise": "colour denoising", "jpeg": "JPEG artifact reduction"}
NETWORKS = {
    "srresnet": "SRResNet",
    "dncnn": "DnCNN",
    "edsr": "EDSR",
    "rcan": "RCAN",
    "rdn": "RDN",
    "drunet": "DRUNet",
    "unet": "U-Net",
}

MOST_PARTS = 20  # a share of more parts is rounded to one over a number

MOST_KEYS = 6
"""A question names at most so many keys."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of one task, in words; empty where they vary between cells or are not known.

    ``paper`` says what of the paper's own training this is, such as ``1/600 of its steps``.
    """

    network: str
    task: str
    trained_on: str
    steps: str
    paper: str


def question_of(parts: Sequence[TaskResults]) -> Markdown:
    """Return the question that a study asks, as far as its cells tell."""
    if any(results.is_search for results in parts):
        return Markdown("which cells give the most PSNR for their cost?")
    if any(results.methods for results in parts):
        ours = dict.fromkeys(
            results.methods[cell] for results in parts for cell in results.methods if is_bbcu(results, cell)
        )
        return Markdown("how do the published methods compare with {}?").format(" or ".join(ours) or "each other")
    if any(is_chain(results.study_cells) for results in parts):
        return Markdown("what does each step add to those before it?")
    keys = list(dict.fromkeys(key for results in parts for key in varied_keys(results)))
    if not keys:
        return Markdown("what does one cell reach?")
    named = [*map(code, keys[:MOST_KEYS]), *([f"{len(keys) - MOST_KEYS} other keys"] if len(keys) > MOST_KEYS else [])]
    return Markdown("what {} {} worth?").format("is" if len(keys) == 1 else "are", listed(named))


def is_bbcu(results: TaskResults, cell: str) -> bool:
    return cell in results.levels and bool((results.cells.loc[[cell], "method"] == BBCU).all())


def varied_keys(results: TaskResults) -> list[str]:
    """The keys that vary among the trained cells, or those that were planned if none is finished, as the user typed."""
    known = results.trained.values() or [cell_levels(row, results.factors) for _, row in results.trials.iterrows()]
    asked = [levels.asked for levels in known]
    return varying(asked, dict.fromkeys(key for levels in asked for key in levels))


def conditions_of(results: TaskResults) -> Conditions:
    setting = fixed_setting(results)
    name, size = NETWORKS.get(setting.get("network.name", ""), setting.get("network.name", "")), []
    for key, noun in (("channels", "channels"), ("blocks", "blocks")):
        if setting.get(key):
            size.append(f"{setting[key]} {noun if setting[key] != '1' else noun[:-1]}")
    other = f"x{results.task[4:]} super-resolution" if results.task.startswith("sr_x") else results.task
    data = setting.get("data", "")
    known = results.study.data_names.get(data)
    unknown = "several data sets" if "data" in results.setting else f"data {NOT_RECORDED}"
    fingerprint = f"data {data[:KEY_LENGTH]}" if data else unknown
    return Conditions(
        network=f"{name} of {' and '.join(size)}" if name and size else name,
        task=TASKS.get(results.task, other),
        trained_on=known.train if known else fingerprint,
        steps=setting.get("train.steps", ""),
        paper=paper_share(results, setting),
    )


def fixed_setting(results: TaskResults) -> dict[str, str]:
    """The keys of the setting that have one value in every trained cell; those that a method brings may vary."""
    rows = results.cells.loc[list(results.trained)].iterrows() if results.trained else ()
    trained = [setting_of(row) for _, row in rows]
    if not trained:
        return dict(results.setting)
    return {
        key: value
        for key, value in results.setting.items()
        if results.methods or {found.get(key) for found in trained} == {value}
    }


def paper_share(results: TaskResults, setting: dict[str, str]) -> str:
    """Say which share of the paper's training this is; empty where the paper has none for the task."""
    recipe = next((table.recipe for table in TABLES if results.task in table.tasks), None)
    if recipe is None:
        return ""
    found = []
    for key, noun in (("train.steps", "steps"), ("channels", "width"), ("blocks", "depth")):
        ours, theirs = setting.get(key, ""), recipe[key]
        if ours.isdigit() and int(ours) > 0:
            found.append(f"{share_in_words(int(ours), int(theirs))} of its {noun}")
    return listed(found) if found else ""


def share_in_words(ours: int, theirs: int) -> str:
    """Spell what part ours is of theirs: ``1/600``, ``4/9``, ``all``, ``2.5 times``."""
    if ours >= theirs:
        return "all" if ours == theirs else f"{ours / theirs:.3g} times"
    part = fractions.Fraction(ours, theirs)
    return f"1/{theirs / ours:,.0f}" if part.numerator == 1 or part.denominator >= MOST_PARTS else str(part)
