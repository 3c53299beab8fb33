"""Modules of other authors: the arrays that their released code gave, and states that do not fit.

Each file of ``golden/newer`` is named after its kind. It holds the state before the pass, the input and the target, and
what the authors' module computed from them in float64: the output, the loss ``mean|output - target|``, all gradients,
and where evaluation differs from training the output of evaluation with the same state.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bbcu
from bbcu.errors import ConfigError
from bbcu.model.authors import KINDS
from bbcu.model.authors.state import AuthorsModule

FOLDER = Path(__file__).parent / "golden" / "newer"
LOSSES = "distillation"
"""The file of the losses of a teacher, which hold no module."""
FILES = sorted(file for file in FOLDER.glob("*.npz") if file.stem != LOSSES)
CLOSE = 1e-5
"""The largest difference, as a share of the largest value of an array."""


def named(arrays: Any, prefix: str) -> dict[str, Any]:
    """The arrays whose names begin so, under the rest of the name."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def module_of(kind: str, arrays: Any) -> AuthorsModule:
    state = {name: value.astype(np.float64) for name, value in named(arrays, "state.").items()}
    module: AuthorsModule = bbcu.from_authors_state(kind, state, **named(arrays, "const."))
    return module


def assert_close(found: Tensor, expected: Any, what: str, share: float = CLOSE) -> None:
    difference = np.abs(found.detach().numpy() - expected).max()
    assert difference <= share * np.abs(expected).max(), what


def test_every_kind_has_its_arrays() -> None:
    assert [file.stem for file in FILES] == sorted(KINDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_module_has_the_output_the_loss_and_the_gradients_of_its_authors(file: Path) -> None:
    arrays = np.load(file)
    module = module_of(file.stem, arrays)
    x = torch.from_numpy(arrays["input"]).double().requires_grad_()
    output = module(x)
    loss = (output - torch.from_numpy(arrays["target"])).abs().mean()
    loss.backward()
    assert output.dtype == torch.float64
    assert_close(output, arrays["output"], "output")
    assert_close(loss, arrays["loss"], "loss")
    values = {"input": x, **module.state}
    found = {name: value.grad for name, value in values.items() if value.grad is not None}
    expected = named(arrays, "grad.")
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape, name
        assert_close(found[name], gradient, f"gradient of {name}")


@pytest.mark.parametrize("file", [file for file in FILES if "output_eval" in np.load(file)], ids=lambda file: file.stem)
def test_a_module_evaluates_as_that_of_its_authors(file: Path) -> None:
    arrays = np.load(file)
    module = module_of(file.stem, arrays).eval()
    assert_close(module(torch.from_numpy(arrays["input"]).double()), arrays["output_eval"], "output")


def test_a_u_net_of_brve_has_the_published_alignment_unless_another_is_given() -> None:
    arrays = np.load(FOLDER / "brve_unet.npz")
    module = bbcu.from_authors_state("brve_unet", named(arrays, "state."))
    assert_close(module(torch.from_numpy(arrays["input"]).double()), arrays["output"], "output")


# --- states -----------------------------------------------------------------------------------------------------------


def block(**constants: Any) -> tuple[AuthorsModule, Tensor]:
    """A pair of E2FIF as a state of float32 arrays, and its input in float64."""
    arrays = np.load(FOLDER / "e2fif_block.npz")
    module: AuthorsModule = bbcu.from_authors_state("e2fif_block", named(arrays, "state."), **constants)
    return module, torch.from_numpy(arrays["input"]).double()


def test_the_state_has_the_authors_names_and_shapes_and_is_saved_under_them() -> None:
    module, _ = block(seed=3)
    arrays = named(np.load(FOLDER / "e2fif_block.npz"), "state.")
    assert module.training
    assert {name: tuple(value.shape) for name, value in module.state.items()} == {
        name: value.shape for name, value in arrays.items()
    }
    assert module.state_dict().keys() == module.state.keys()
    assert all(np.array_equal(module.state[name].detach(), value) for name, value in arrays.items())


def test_a_state_of_single_precision_computes_in_that_of_the_input_and_keeps_its_statistics() -> None:
    arrays = np.load(FOLDER / "e2fif_block.npz")
    module, x = block()
    assert_close(module(x), arrays["output"], "output")
    mean = module.state["conv1.1.running_mean"]
    assert mean.dtype == torch.float32
    assert not np.array_equal(mean, arrays["state.conv1.1.running_mean"])
    assert module(x.float()).dtype == torch.float32


def test_the_module_inside_has_the_present_values() -> None:
    module, x = block()
    with torch.no_grad():
        module.state["conv1.0.weight"].neg_()
    module.eval()
    torch.testing.assert_close(module.module.double()(x), module(x))


@pytest.mark.parametrize(
    ("kind", "change", "constants", "message"),
    [
        ("srb_units", {}, {}, r"unknown kind 'srb_units' \(did you mean srb_unit\?\)"),
        ("srb_unit", {}, {"scale": 2}, "unknown constant of srb_unit 'scale'.* valid: seed"),
        ("srb_unit", {"weight": None}, {}, "srb_unit: the state and the constants have no weight"),
        ("rbnn_conv", {}, {"k": 2.0}, "rbnn_conv: the state and the constants have no t"),
        ("bisr_unit", {"move0.k": None}, {}, "bisr_unit: the state has no move0.k"),
        ("srb_unit", {"bias": np.zeros(8)}, {}, "srb_unit: the state has bias, which this kind does not have"),
        ("bisr_unit", {"move0.k": np.ones(3)}, {}, r"move0.k has the shape \(3,\), which does not fit \(1, 8, 1, 1\)"),
        ("bimacosr_conv", {}, {"rank": 3.0}, "the state has the rank 2, not 3"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line(
    kind: str, change: dict[str, Any], constants: dict[str, float], message: str
) -> None:
    file = FOLDER / f"{kind}.npz"
    state = {**(named(np.load(file), "state.") if file.exists() else {}), **change}
    with pytest.raises(ConfigError, match=message) as refused:
        bbcu.from_authors_state(kind, {name: value for name, value in state.items() if value is not None}, **constants)
    assert "\n" not in str(refused.value)
