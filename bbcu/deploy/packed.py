"""Packed networks: the networks of :mod:`bbcu.model` with one bit for each binary weight.

A packed network is a module of the same class as the float network, in which each binary unit is a
:class:`PackedUnit`. Everything else is as it was, so a packed network computes the same, bit for bit; this is the
reference that faster backends (:mod:`bbcu.deploy.backends`) are checked against.
"""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import BbcuError
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.units import KERNEL, BinaryUnit, UnitShape

BITS_PER_BYTE = 8


class DeployError(BbcuError):
    """A network that cannot be packed, saved, exported or run, or a packed file that cannot be read."""


class PackedUnit(BinaryUnit):
    """A binary unit for inference, with the signs of its weights in ``weight_bits`` and their magnitude in ``scale``.

    ``weight_bits`` is (out_channels, 3, 3, bytes) of uint8 with ceil(in_channels / 8) bytes: bit ``c % 8`` of byte
    ``c // 8`` is 1 if the weight of input channel ``c`` is positive, 0 if it is negative or there is no such channel.
    ``scale`` is (out_channels,) of float32, or None if the weights are plain signs; a filter of zeros has scale 0.
    Threshold, bias, BatchNorm and activation are those of the float unit. It cannot be trained.
    """

    weight_bits: Tensor
    scale: Tensor | None

    def __init__(self, shape: UnitShape, spec: UnitSpec, *, has_scale: bool) -> None:
        super().__init__(shape, for_inference(spec))
        del self.weight, self.binariser
        size = (shape.out_channels, KERNEL, KERNEL, -(-shape.in_channels // BITS_PER_BYTE))
        self.register_buffer("weight_bits", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(shape.out_channels) if has_scale else None)

    @classmethod
    def of(cls, unit: BinaryUnit) -> "PackedUnit":
        """Pack a unit; raises DeployError with the reason if :func:`why_not_packed` gives one."""
        reason = why_not_packed(unit)
        if reason is not None:
            raise DeployError(reason)
        signs, scale = signs_and_scale(unit)
        shape = UnitShape(unit.in_channels, unit.out_channels, bias=unit.bias is not None)
        packed = cls(shape, unit.spec, has_scale=scale is not None)
        state = {name: value for name, value in unit.state_dict().items() if name != "weight"}
        state["weight_bits"] = pack_signs(signs)
        if scale is not None:
            state["scale"] = scale
        packed.load_state_dict(state)
        packed.set_memory(unit.memory)
        return packed.eval()

    def signs(self) -> Tensor:
        """Return the weights without their scale, ones and minus ones: (out_channels, in_channels, 3, 3)."""
        return unpack_signs(self.weight_bits, self.in_channels)

    def convolve(self, bits: Tensor) -> Tensor:
        z = F.conv2d(bits, self.signs(), padding=KERNEL // 2)
        if self.scale is not None:
            z = z * self.scale.reshape(1, -1, 1, 1)
        return z if self.bias is None else z + self.bias.reshape(1, -1, 1, 1)

    def set_progress(self, progress: float) -> None:
        """Do nothing: it is not trained."""

    def after_step(self) -> None:
        """Do nothing: it is not trained."""


def for_inference(spec: UnitSpec) -> UnitSpec:
    """Return the spec with the reference in place of the levels that matter in training only, or are in the bits.

    So nothing of a user's own, named by its dotted path, is imported for a packed unit.
    """
    reference = UnitSpec()
    return dataclasses.replace(spec, surrogate=reference.surrogate, weight=reference.weight, extra={})


# --- packing ----------------------------------------------------------------------------------------------------------


def pack(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` on the CPU, in evaluation mode, with every binary unit packed that can be.

    The others stay as they are and run in floating point; :func:`unpacked` lists them.
    """
    packed = copy.deepcopy(network).cpu().float().eval()
    for name, unit in named_units(packed):
        if why_not_packed(unit) is None:
            packed.set_submodule(name, PackedUnit.of(unit))
    return packed


def named_units(network: nn.Module) -> list[tuple[str, BinaryUnit]]:
    """Return every binary unit with its name."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, BinaryUnit)]


def unpacked(network: nn.Module) -> dict[str, str]:
    """Return the units of a packed network that are not packed, by their name, with the reason."""
    return {
        name: why_not_packed(unit) or "it is not packed yet, see bbcu.pack"
        for name, unit in named_units(network)
        if not isinstance(unit, PackedUnit)
    }


def why_not_packed(unit: BinaryUnit) -> str | None:
    """Return why ``unit`` cannot be packed, or None if it can."""
    kind = type(unit)
    if kind is not BinaryUnit:
        return f"{kind.__module__}.{kind.__qualname__} may compute something else than a BinaryUnit"
    signs, _ = signs_and_scale(unit)
    if not bool((signs.abs() == 1).all()):
        return f"weight={unit.spec.weight}: a filter's weights are not one number with two signs"
    return None


def signs_and_scale(unit: BinaryUnit) -> tuple[Tensor, Tensor | None]:
    """Return the signs of a unit's binary weights, and their magnitude, (out_channels,) or None.

    A filter whose weights are all zero has positive signs and scale 0.
    """
    with torch.no_grad():
        binary, scale = unit.binariser(unit.weight), unit.binariser.scale(unit.weight)
        if scale is None:
            return binary, None
        zero = (binary == 0).all(dim=(1, 2, 3), keepdim=True)
        signs = torch.where(zero, torch.ones_like(binary), binary / scale)
        return signs, torch.where(zero, torch.zeros_like(scale), scale).flatten()


def pack_signs(signs: Tensor) -> Tensor:
    """Pack ones and minus ones, (out, in, 3, 3), to (out, 3, 3, bytes) as in :class:`PackedUnit`."""
    positive = (signs > 0).permute(0, 2, 3, 1).to(torch.uint8)
    padded = F.pad(positive, (0, -positive.shape[-1] % BITS_PER_BYTE))
    places = 2 ** torch.arange(BITS_PER_BYTE, dtype=torch.uint8)
    return (padded.reshape(*padded.shape[:-1], -1, BITS_PER_BYTE) * places).sum(-1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, in_channels: int) -> Tensor:
    """Undo :func:`pack_signs`."""
    places = torch.arange(BITS_PER_BYTE, dtype=torch.uint8)
    positive = (bits.unsqueeze(-1) >> places & 1).flatten(-2)[..., :in_channels]
    return (positive.float() * 2 - 1).permute(0, 3, 1, 2).contiguous()


def count_binary_weights(network: nn.Module) -> int:
    """Return the number of weights that take one bit each in a packed network."""
    return sum(unit.out_channels * unit.in_channels * KERNEL**2 for unit in packed_units(network))


def packed_units(network: nn.Module) -> list[PackedUnit]:
    """Return the packed units of a network, in the order of its parts."""
    return [unit for unit in binary_units(network) if isinstance(unit, PackedUnit)]


def check_input(network: nn.Module, x: Tensor) -> None:
    """Raise DeployError unless ``x`` is (batch, colours, height, width) of float32 with the network's colours.

    Which a network of a user's own takes is known only if it has a ``spec``.
    """
    if x.dim() != 4 or x.dtype != torch.float32:
        kind = str(x.dtype).removeprefix("torch.")
        raise DeployError(
            f"a picture must be (batch, colours, height, width) of float32, not {tuple(x.shape)} of {kind}"
        )
    colours = getattr(getattr(network, "spec", None), "colours", x.shape[1])
    if x.shape[1] != colours:
        raise DeployError(f"the network restores pictures of {colours} channels, and this one has {x.shape[1]}")
