"""The config's own messages: each names the key that is wrong and says what to type instead."""

import pytest

from tests.harness.support import Workplace


@pytest.mark.parametrize(
    ("overrides", "without", "message"),
    [
        pytest.param(
            ("data.train=DIR",),
            ("data", "data.test"),
            "data.train=DIR has no effect on the photographs of data=embedded; add data=folder",
            id="a folder to train on without data=folder",
        ),
        pytest.param(
            ("data.test={Set5: DIR}",),
            ("data", "data.train"),
            "has no effect on the photographs of data=embedded; add data=folder",
            id="a test set without data=folder",
        ),
        pytest.param(
            (),
            ("data.test",),
            "data.test is required with data=folder: name at least one test set, as in data.test='{Set5: DIR}'",
            id="a folder without a test set",
        ),
        pytest.param(
            ("surrogate=bbcu.model.binarisers.L1",),
            (),
            "surrogate=bbcu.model.binarisers.L1: must be a subclass of Surrogate",
            id="a binariser as a surrogate",
        ),
        pytest.param(
            ("network.unit=bbcu.model.surrogates.Clip",),
            (),
            "network.unit=bbcu.model.surrogates.Clip: must be a subclass of BinaryUnit",
            id="a surrogate as a unit",
        ),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(
    overrides: tuple[str, ...], without: tuple[str, ...], message: str, workplace: Workplace
) -> None:
    outcome = workplace.run(*overrides, without=without)
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert line.startswith("run.py: ")
    assert message in line
    assert workplace.is_untouched()
