"""The studies in ``conf/study``: how many cells each has under every budget, and the comment that each begins with."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ablations.config import register
from tests.harness.builders import save, soft_blobs
from tests.harness.support import REPOSITORY, Outcome, call

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
}
"""How many cells each study has that the repository ships; a search has rows instead."""

SHIPPED = (*CELLS, "search")
ONE_CELL_MORE = ("alignment", "smoke")
"""At the width of this budget, auto stands for none of the numbers that the study lists."""

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


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("study", CELLS)
def test_a_study_has_the_same_cells_under_every_budget(pictures: Path, study: str, budget: str) -> None:
    outcome = dry_run(pictures, f"study={study}", f"budget={budget}")
    assert outcome.status == 0, outcome.message
    cells = CELLS[study] + ((study, budget) == ONE_CELL_MORE)
    replicates = 1 if budget == "smoke" else 3
    assert f"study {study}: {cells} cells, {replicates * cells} trials" in outcome.out
    if "_methods" in study or study == "chain":
        assert "left out" not in outcome.out


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
    for start in ("The paper (BBCU, ICLR 2023):", "Expect:", "Time:", f"python run.py -m study={study}"):
        assert any(line.startswith(start) for line in comment), start
    assert f"python -m analysis {study}" in comment


def composed(*overrides: str) -> dict[str, object]:
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("config", list(overrides))
    return {**OmegaConf.to_container(config.train), "channels": config.channels, "blocks": config.blocks}


def test_the_default_budget_changes_nothing() -> None:
    quick = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf/train/quick.yaml"))
    assert composed() == composed("budget=laptop") == {**quick, "channels": 32, "blocks": 4}


@pytest.mark.parametrize(
    ("task", "recipe", "blocks"), [("sr_x2", "released", 16), ("denoise", "released_denoising", 9)]
)
def test_the_budget_of_the_paper_is_its_published_recipe(task: str, recipe: str, blocks: int) -> None:
    published = composed(f"task={task}", f"train={recipe}", "channels=64", f"blocks={blocks}")
    assert composed("budget=paper", f"task={task}") == published


@pytest.mark.parametrize("budget", ["smoke", "gpu", "paper"])
def test_the_command_line_overrides_a_budget(budget: str) -> None:
    typed = composed(f"budget={budget}", "train=released", "train.batch=3", "channels=5", "blocks=2")
    assert typed == {**composed("train=released"), "batch": 3, "channels": 5, "blocks": 2}


def test_a_method_keeps_its_width_under_every_budget() -> None:
    assert {composed("method=lite", f"budget={budget}")["channels"] for budget in BUDGETS} == {12}
