"""The backends that run a packed network, behind one interface.

``torch`` is the reference, ``native`` this package's kernel, ``openvino`` the library with a binary convolution. A
backend has two functions: ``missing()`` returns why it cannot run on this machine, in a few words, or None; and
``prepare(packed)`` returns what runs a packed network, from (batch, colours, height, width) of float32 to its output,
with as many threads as torch has now.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from bbcu.deploy.packed import DeployError, check_input, pack
from bbcu.errors import unknown
from bbcu.model.parts import binary_units

Runner = Callable[[Tensor], Tensor]

BACKENDS = {
    "torch": "bbcu.deploy.reference",
    "native": "bbcu.deploy.native",
    "openvino": "bbcu.deploy.openvino",
}
"""The modules that define each backend; they are imported on first use."""


def backend(name: str) -> ModuleType:
    """Return a backend's module; raises DeployError for an unknown name."""
    if name not in BACKENDS:
        raise DeployError(unknown("backend", name, BACKENDS))
    return importlib.import_module(BACKENDS[name])


def missing_for(name: str) -> str | None:
    """Return why the backend cannot run on this machine, or None."""
    reason: str | None = backend(name).missing()
    return reason


def runner(packed: nn.Module, name: str) -> Runner:
    """Return what runs ``packed`` on the backend; raises DeployError if it cannot run on this machine.

    What is returned raises DeployError for a picture of other channels than the network's, and computes in float32
    under autocast, too.
    """
    reason = missing_for(name)
    if reason is not None:
        raise DeployError(f"backend {name}: {reason}")
    prepared: Runner = backend(name).prepare(packed)

    def run(x: Tensor) -> Tensor:
        check_input(packed, x)
        with torch.autocast("cpu", enabled=False):
            output = prepared(x)
        return output

    return run


def exact_runner(network: nn.Module, device: torch.device) -> Runner | None:
    """Return what runs a float or packed network with the bits of torch and faster, or None if nothing does here."""
    if device.type != "cpu" or not binary_units(network):
        return None
    try:
        return runner(pack(network), "native")
    except DeployError:
        # Such as without a compiler.
        return None
