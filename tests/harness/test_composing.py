"""What the tests let Hydra skip changes nothing."""

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from omegaconf import open_dict

from tests.harness import composing
from tests.harness.support import Workplace, composed


def test_a_config_is_composed_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("study=sr_methods", "hydra/launcher=joblib", "bn=pre")
    faster = composed(*overrides, with_hydra=True)
    assert faster.hydra.mode is None
    monkeypatch.delattr(ConfigStore, "__deepcopy__")
    assert composed(*overrides, with_hydra=True) == faster


def test_what_is_done_to_one_config_is_not_in_the_next() -> None:
    before = composed(with_hydra=True)
    changed = composed(with_hydra=True)
    with open_dict(changed):
        changed.train.lr, changed.hydra.job.name, changed.hydra.sweeper.replicates = 1000.0, "another", 77
    assert composed(with_hydra=True) == before


def test_a_sweep_may_be_asked_for_by_the_mode_of_hydra(
    dry_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("bn=pre,post", "hydra.sweeper.dry_run=true", "hydra.mode=MULTIRUN")
    outcome = dry_workplace.run(*overrides)
    assert "2 cells, 2 trials" in outcome.out
    monkeypatch.setattr(Hydra, "get_mode", composing.compose_for_mode)
    assert dry_workplace.run(*overrides) == outcome
