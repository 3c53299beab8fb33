"""Dry runs of the studies in ``conf/study`` and of the commands in the documentation, and how a study's file begins."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.harness.builders import save, soft_blobs
from tests.harness.support import REPOSITORY, Outcome, Workplace, call, composed

BUDGETS = ("gpu", "laptop", "paper", "smoke")
CELLS = {
    "residual_bn": 4,
    "components": 39,
    "chain": 4,
    "alignment": 6,
    "parts": 16,
    "surrogates": 5,
    "thresholds": 6,
    "depth": 8,
    "sr_methods": 22,
    "denoise_methods": 9,
    "jpeg_methods": 9,
    "networks": 5,
    "rescale": 8,
    "second_order": 3,
    "sr_methods_2026": 42,
    "start_distil": 10,
    "surrogate_window": 12,
}
"""How many cells each study has that the repository ships, with those of teachers; a search has rows instead."""

SHIPPED = (*CELLS, "search")
AFTER_THE_PAPER = {"rescale", "second_order", "sr_methods_2026", "start_distil", "surrogate_window"}
"""The studies of what the paper does not have."""

SIDE = 144
"""Pixels of a picture from which x4 can take a patch of 32 and denoising one of 64."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("train/first", "test/second")):
        save(soft_blobs(seed, SIDE, SIDE), folder / f"{name}.png")
    return folder


def dry_run(pictures: Path, *overrides: str) -> Outcome:
    data = ["data=folder", f"data.train={pictures}/train", f"data.test={{Tiny: {pictures}/test}}", "device=cpu"]
    return call(["-m", *data, f"outputs={pictures}/outputs", "hydra.sweeper.dry_run=true", *overrides], pictures)


def test_a_study_of_the_users_own_can_be_planned(pictures: Path) -> None:
    """Every file in ``conf/study`` that the repository does not ship; it does not need a comment, or a known number."""
    for path in sorted((REPOSITORY / "conf/study").glob("*.yaml")):
        if path.stem not in SHIPPED:
            outcome = dry_run(pictures, f"study={path.stem}", "budget=smoke")
            assert outcome.status == 0, f"{path}: {outcome.message}"


@pytest.mark.parametrize("study", CELLS)
def test_a_study_can_be_planned_with_its_cells(pictures: Path, study: str) -> None:
    outcome = dry_run(pictures, f"study={study}", "budget=smoke")
    assert outcome.status == 0, outcome.message
    # At the width of this budget, auto stands for none of the numbers that the study of the alignment lists.
    cells = CELLS[study] + (study == "alignment")
    # The networks have a study each.
    assert re.search(rf"study {study}(_srresnet)?: {cells} cells, {cells} trials", outcome.out)
    if "_methods" in study or study == "chain":
        assert "left out" not in outcome.out


@pytest.mark.parametrize("budget", ["gpu", "laptop", "paper"])
def test_a_larger_budget_has_three_replicates_of_the_same_cells(pictures: Path, budget: str) -> None:
    """Of all studies, only that of the alignment has cells that depend on the width, which budgets set."""
    outcome = dry_run(pictures, "study=alignment", f"budget={budget}")
    assert outcome.status == 0, outcome.message
    assert f"study alignment: {CELLS['alignment']} cells, {3 * CELLS['alignment']} trials" in outcome.out


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_search_has_the_same_rows_under_every_budget(pictures: Path, budget: str) -> None:
    outcome = dry_run(pictures, "study=search", f"budget={budget}")
    assert outcome.status == 0, outcome.message
    cells = 12 if budget == "smoke" else 60
    assert f"search over {3 * 4 * 3 * 2 * 2 * 2 * 2 * 3} rows, at most {cells} cells" in outcome.out


@pytest.mark.parametrize(
    ("study", "typed", "found"),
    [
        ("chain", "hydra.sweeper.replicates=2", "study chain: 4 cells, 8 trials"),
        ("search", "hydra.sweeper.trials=5", "at most 5 cells"),
    ],
)
def test_options_of_the_sweeper_override_the_budget(pictures: Path, study: str, typed: str, found: str) -> None:
    assert found in dry_run(pictures, f"study={study}", "budget=smoke", typed).out


@pytest.mark.parametrize("study", SHIPPED)
def test_a_shipped_study_begins_with_its_question_and_what_to_expect(study: str) -> None:
    head = (REPOSITORY / f"conf/study/{study}.yaml").read_text().partition("\nstudy:")[0].splitlines()
    comment = [line.removeprefix("#").strip() for line in head if line.startswith("#")]
    assert comment[1].endswith("?") or comment[2].endswith("?")
    for start in ("Expect:", "Time:", f"python run.py -m study={study}", f"python -m analysis {study}"):
        assert any(line.startswith(start) for line in comment), start
    assert any(line.startswith("The paper (BBCU, ICLR 2023)") for line in comment) == (study not in AFTER_THE_PAPER)


def training_of(*overrides: str) -> dict[str, object]:
    config = composed(*overrides)
    return {**OmegaConf.to_container(config.train), "channels": config.channels, "blocks": config.blocks}


def test_the_default_budget_changes_nothing() -> None:
    quick = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf/train/quick.yaml"))
    assert training_of() == training_of("budget=laptop") == {**quick, "channels": 32, "blocks": 4}


@pytest.mark.parametrize(
    ("task", "network", "recipe", "channels", "blocks"),
    [
        ("sr_x2", "srresnet", "released", 64, 16),
        ("denoise", "dncnn", "released_denoising", 64, 9),
        ("denoise", "drunet", "released_denoising", 64, 4),
        ("jpeg", "unet", "released_denoising", 24, 1),
    ],
)
def test_the_budget_of_the_paper_is_its_published_recipe(
    task: str, network: str, recipe: str, channels: int, blocks: int
) -> None:
    chosen = [f"task={task}", f"network={network}"]
    published = training_of(*chosen, f"train={recipe}", f"channels={channels}", f"blocks={blocks}")
    assert training_of("budget=paper", *chosen) == published
    large = training_of("budget=gpu", *chosen)
    assert (large["channels"], large["blocks"]) == (channels, blocks)


@pytest.mark.parametrize("budget", ["smoke", "gpu", "paper"])
def test_the_command_line_overrides_a_budget(budget: str) -> None:
    typed = training_of(f"budget={budget}", "train=released", "train.batch=3", "channels=5", "blocks=2")
    assert typed == {**training_of("train=released"), "batch": 3, "channels": 5, "blocks": 2}


def test_a_method_keeps_its_width_under_every_budget() -> None:
    assert {training_of("method=lite", f"budget={budget}")["channels"] for budget in BUDGETS} == {12}


# --- commands of the documentation ------------------------------------------------------------------------------------

COMMANDS = [
    line.strip()
    for page in ("designs", "launchers")
    for line in (REPOSITORY / "docs" / f"{page}.md").read_text().splitlines()
    if line.startswith("    python run.py")
]
PLACES = ("outputs", "tracking.uri")
"""The keys that name a machine or a folder of the reader."""


def test_the_pages_have_a_command_for_every_design_and_launcher() -> None:
    text = "\n".join(COMMANDS)
    designs = set(re.findall(r"hydra.sweeper.design=(\w+)", text))
    assert designs == {"one_at_a_time", "leave_one_out", "chain", "fractional", "random"}
    assert set(re.findall(r"hydra/launcher=(\w+)", text)) == {"joblib", "submitit_local", "submitit_slurm", "ray"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_can_be_planned(command: str, dry_workplace: Workplace) -> None:
    _, program, multirun, *overrides = shlex.split(command)
    assert (program, multirun) == ("run.py", "-m")
    for launcher in re.findall(r"hydra/launcher=([a-z]+)", command):
        if not importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher"):
            pytest.skip(f"hydra-{launcher}-launcher is missing")
    kept = [text for text in overrides if text.partition("=")[0] not in PLACES]
    outcome = dry_workplace.sweep(*kept, "hydra.sweeper.dry_run=true")
    assert outcome.status == 0, outcome.message
    assert re.search("^[0-9a-f]{12}  ", outcome.out, re.MULTILINE)
    assert "dry run: nothing was trained or recorded" in outcome.out
