"""Whatever a user types for any key: a config that can run, or one line; no path is called that is not a part.

The keys come from the schema, so a new one is covered by itself.
"""

import copy
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablations.config import SweeperConfig, check_bounds, explain, reading, refuse_long_numbers, register, schema, typed
from ablations.planning.compose import texts_of
from ablations.planning.stopping import looks_of
from ablations.space.conditions import parse
from ablations.space.designs import DESIGNS, rows_of
from ablations.trial.identity import check_network, check_runnable, setting_of, trial_of
from bbcu.errors import BbcuError, ConfigError
from bbcu.model.binarisers import binariser_of
from bbcu.model.registry import look_up
from bbcu.model.surrogates import Surrogate, surrogate_of
from tests.harness.builders import in_another_process
from tests.harness.support import composed

LONGEST_LINE = 1500
FEW_BLOCKS = 8
"""Larger networks take seconds to build."""


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.type):
            yield from keys_of(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


KEYS = tuple(keys_of(schema()))
OPTIONS = tuple(name for name in keys_of(SweeperConfig) if name != "_target_")

PARTS = ("a.b", "..x", "os._exit", "torch.nn.Identity")
WORDS = ("auto", "true", "none", *PARTS, "../x", "???", "${seed}", "${nope}", "${", "${bn}")
HUGE = "an integer of 7,200 digits, which Python does not print, and so hypothesis cannot draw"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**14),
    st.integers().map(lambda number: number * 10**300),
    st.just(HUGE),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(WORDS),
    st.integers(100, 5000).map(lambda length: "n" * length),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def drawn(value: Any) -> Any:
    """A value that was drawn, with the huge integer in its place."""
    if isinstance(value, list):
        return [drawn(inner) for inner in value]
    if isinstance(value, dict):
        return {name: drawn(inner) for name, inner in value.items()}
    return 16**6000 if value == HUGE else value


def one_line(error: Exception) -> str:
    """The line that the command prints for an error that it expects."""
    assert isinstance(error, BbcuError | HydraException | OmegaConfBaseException)
    line = str(error) if isinstance(error, BbcuError) else explain(error)
    assert line
    assert line.isprintable()
    assert len(line) < LONGEST_LINE
    return line


@pytest.fixture(scope="module")
def tiny() -> DictConfig:
    """The config of a tiny trial, as Hydra composes it."""
    return composed("channels=4", "blocks=1", "device=cpu", "train.precision=fp32")


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_a_config_that_can_run_or_one_line(
    tiny: DictConfig, tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    changed = copy.deepcopy(tiny)
    try:
        with reading():
            OmegaConf.update(changed, key, drawn(value), merge=False)
        # Folders are made in a folder of the test alone.
        config = dataclasses.replace(typed(changed), outputs=str(tmp_path_factory.getbasetemp()))
        check_runnable(config)
        trial = trial_of(config, setting_of(config, "0" * 64))
        if config.blocks <= FEW_BLOCKS:
            check_network(trial)
    except (BbcuError, HydraException, OmegaConfBaseException) as error:
        one_line(error)


def test_a_wrong_element_of_a_list_is_named() -> None:
    with pytest.raises(HydraException) as error:
        composed("hydra.sweeper.looks=[2,x]", with_hydra=True)
    line = one_line(error.value)
    assert line == "hydra.sweeper.looks[1]: Value 'x' of type 'str' could not be converted to Integer"


GIVEN = st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3)
SWEEPS = st.dictionaries(
    st.sampled_from(["bn", "residual", "act", "seed"]), st.lists(st.text(max_size=5), max_size=4), max_size=4
)


@given(st.sampled_from([*DESIGNS, "search", "x"]), SWEEPS, GIVEN)
def test_any_value_of_any_option_of_a_sweep_is_a_list_of_rows_or_one_line(
    design: str, sweep: dict[str, list[str]], given_options: dict[str, Any]
) -> None:
    try:
        with reading():
            config = OmegaConf.structured(SweeperConfig(design=design))
            for name, value in given_options.items():
                OmegaConf.update(config, name, drawn(value), merge=False)
            options = OmegaConf.to_object(config)
        assert isinstance(options, SweeperConfig)
        check_bounds(options, "hydra.sweeper.")
        for text in options.exclude:
            parse(text)
        looks_of(options)
        rows_of(options.design, sweep, options.design_options)
    except (BbcuError, HydraException, OmegaConfBaseException) as error:
        one_line(error)


TEXTS = st.one_of(
    st.text(alphabet="[]{}(),:='\"\\$~+ ab19.-_", max_size=40),
    st.text(max_size=20),
    st.builds("range({},{},{})".format, *[st.integers() | st.floats()] * 3),
    st.builds("shuffle(range({}))".format, st.integers()),
    st.sampled_from(["[", "{a:", "choice("]).map(lambda part: 300 * part),
    st.integers(1, 6000).map(lambda digits: "9" * digits),
)


@given(st.sampled_from([*KEYS, "+new", "~bn", "++bn", "hydra.sweeper.params.bn"]), TEXTS)
def test_any_text_on_the_command_line_is_read_or_refused_in_one_line(key: str, text: str) -> None:
    register()
    try:
        refuse_long_numbers([f"{key}={text}"])
        with reading():
            override = OverridesParser.create().parse_override(f"{key}={text}")
        if override.is_sweep_override() and override.is_discrete_sweep():
            texts_of(override)
    except (BbcuError, HydraException, OmegaConfBaseException) as error:
        one_line(error)


@given(st.text(max_size=60) | st.text(alphabet="()[],=!<>'\"\\ notandri9.e_", max_size=80))
def test_any_condition_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        condition = parse(text)
    except ConfigError as error:
        one_line(error)
    else:
        assert parse(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("(" * 100_000 + "bn=pre", "nested deeper than 50", id="parentheses"),
        pytest.param("bn in " + "[" * 100_000, "nested deeper than 50", id="lists"),
        pytest.param(f"bn={'x' * 2**20}", "unknown level", id="a level of a megabyte"),
        pytest.param(f"{'x' * 2**20}=1", "unknown key", id="a key of a megabyte"),
        pytest.param(f"align>{'9' * 5000}", "> compares numbers", id="a number of 5000 digits"),
        pytest.param("bn=" + "'" + "\\" * 2**20, "a quote that is not closed", id="a quote of a megabyte"),
    ],
)
def test_a_condition_of_any_length_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse(text)
    one_line(refused.value)


# --- dotted paths -----------------------------------------------------------------------------------------------------

MODULES = ("builtins", "os", "sys", "shutil", "subprocess", "torch", "torch.nn", "torch.nn.functional", "numpy", "bbcu")
PATHS = sorted(f"{module}.{name}" for module in MODULES for name in dir(importlib.import_module(module)))


def test_no_attribute_of_these_modules_is_called_or_taken_for_a_surrogate() -> None:
    refused = []
    for path in PATHS:
        try:
            assert issubclass(look_up("surrogate", path, {}, Surrogate), Surrogate), path
        except ConfigError as error:
            refused.append(one_line(error))
    assert len(refused) > 2000


@pytest.mark.parametrize("path", ["sys.exit", "os._exit", "os.abort", "builtins.exec", "antigravity.x", "this.s"])
@pytest.mark.parametrize(
    "make", [surrogate_of, functools.partial(binariser_of, filters=4)], ids=["surrogate", "weight"]
)
def test_a_function_of_the_standard_library_is_not_called(make: Any, path: str) -> None:
    assert "is a module of Python's standard library" in in_another_process(message_of, make, path)


def message_of(make: Any, path: str) -> str:
    with pytest.raises(ConfigError) as refused:
        make(path)
    return str(refused.value)


OWN = {
    "raises": "raise ZeroDivisionError('at import')\n",
    "leaves": "import sys\nsys.exit(0)\n",
    "parts": (
        "import sys\n"
        "from bbcu import BinaryUnit, Surrogate, Binariser\n"
        "from torch import nn\n"
        "class Raising(Surrogate):\n"
        "    def __init__(self): raise ValueError('in\\nthe constructor')\n"
        "class Leaving(Surrogate):\n"
        "    def __init__(self): sys.exit(0)\n"
        "class Other(Surrogate):\n"
        "    def __new__(cls): return 5\n"
        "class NoForward(Binariser): pass\n"
        "class Same(nn.Module):\n"
        "    def __init__(self, spec): super().__init__(); self.layer = nn.Conv2d(3, 3, 1)\n"
        "    def forward(self, x): return self.layer(x)\n"
        "class Unit(BinaryUnit):\n"
        "    def __init__(self, shape, spec): raise KeyError('gone')\n"
        "def function(): raise AssertionError('called')\n"
    ),
}


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in OWN.items():
        (tmp_path / f"own_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("surrogate", "own_raises.X", "cannot be imported: ZeroDivisionError: at import"),
        ("surrogate", "own_leaves.X", "cannot be imported: SystemExit: 0"),
        ("surrogate", "own_parts.Raising", "surrogate=own_parts.Raising: ValueError: in"),
        ("surrogate", "own_parts.Leaving", "surrogate=own_parts.Leaving: SystemExit: 0"),
        ("surrogate", "own_parts.Other", "surrogate=own_parts.Other: creates a int, not a Surrogate"),
        ("surrogate", "own_parts.function", "must be a subclass of Surrogate, and function is not a class"),
        ("weight", "own_parts.NoForward", "weight=own_parts.NoForward: NotImplementedError"),
        ("network.unit", "own_parts.Unit", "network.unit=own_parts.Unit: KeyError: 'gone'"),
        ("network.name", "own_parts.function", "must be a subclass of Module, and function is not a class"),
        ("network.name", "own_parts.Same", "network.name=own_parts.Same: its output for 32 x 32 pixels must be"),
        ("network.name", "torch.nn.Identity", "network.name=torch.nn.Identity: it has no parameters to train"),
        ("network.name", "torch.nn.Linear", "network.name=torch.nn.Linear: TypeError"),
    ],
)
def test_a_part_of_the_users_that_fails_is_named_before_anything_is_trained(
    tiny: DictConfig, key: str, path: str, message: str
) -> None:
    changed = copy.deepcopy(tiny)
    OmegaConf.update(changed, key, path)
    config = typed(changed)
    with pytest.raises(ConfigError) as refused:
        check_network(trial_of(config, setting_of(config, "0" * 64)))
    assert message in one_line(refused.value)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_the_identity_of_a_task_fits_into_the_name_of_a_folder(tiny: DictConfig) -> None:
    changed = copy.deepcopy(tiny)
    OmegaConf.update(changed, "task", {"name": "denoise", "sigma": [1 / n for n in range(1, 30)], "train_sigma": 5})
    with pytest.raises(ConfigError, match="at most 200 characters together"):
        check_runnable(typed(changed))
