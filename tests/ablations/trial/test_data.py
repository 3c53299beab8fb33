"""Which pictures a config trains and tests on."""

import shutil

from ablations.trial.data import data_of, fingerprint_of_tests
from tests.harness.builders import save
from tests.harness.support import Workplace, photograph


def test_data_with_other_training_pictures_have_the_same_test_pictures(workplace: Workplace) -> None:
    few, other = workplace.folder / "few", workplace.folder / "other"
    shutil.copytree(workplace.folder / "train", few)
    (few / "first.png").unlink()
    shutil.copytree(workplace.folder / "test", other)
    save(photograph(7), other / "third.png")
    configs = [workplace.config(*given) for given in ((), (f"data.train={few}",), (f"data.test={{Tiny: {other}}}",))]
    assert len({data_of(config).fingerprint for config in configs}) == 3
    own, with_few, with_other = map(fingerprint_of_tests, configs)
    assert own == with_few != with_other


def test_what_trains_nothing_is_tested_on_the_same_pictures(workplace: Workplace) -> None:
    trained, untrained = workplace.config(), workplace.config("method=bicubic")
    assert fingerprint_of_tests(trained) == fingerprint_of_tests(untrained)
