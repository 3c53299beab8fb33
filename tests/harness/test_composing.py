"""What the tests let Hydra skip changes nothing."""

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, open_dict

from ablations.config import register
from tests.harness import composing
from tests.harness.paths import REPOSITORY
from tests.harness.support import Workplace


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def test_a_config_is_composed_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("study=sr_methods", "hydra/launcher=joblib", "bn=pre")
    faster = composed(*overrides)
    assert faster.hydra.mode is None
    monkeypatch.delattr(ConfigStore, "__deepcopy__")
    assert composed(*overrides) == faster


def test_what_is_done_to_one_config_is_not_in_the_next() -> None:
    before = composed()
    changed = composed()
    with open_dict(changed):
        changed.train.lr, changed.hydra.job.name, changed.hydra.sweeper.replicates = 1000.0, "another", 77
    assert composed() == before


def test_a_sweep_may_be_asked_for_by_the_mode_of_hydra(
    dry_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("bn=pre,post", "hydra.sweeper.dry_run=true", "hydra.mode=MULTIRUN")
    outcome = dry_workplace.run(*overrides)
    assert "2 cells, 2 trials" in outcome.out
    monkeypatch.setattr(Hydra, "get_mode", composing.compose_for_mode)
    assert dry_workplace.run(*overrides) == outcome
