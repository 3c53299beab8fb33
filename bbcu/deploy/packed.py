"""Packed networks: the networks of :mod:`bbcu.model` with one bit for each binary weight.

A packed network is a module of the same class as the float network, in which each binary unit is a
:class:`PackedUnit`. Everything else is as it was, so a packed network computes the same, bit for bit; this is the
reference that faster backends (:mod:`bbcu.deploy.backends`) are checked against.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import BbcuError
from bbcu.model.binarisers import PER_FILTER, AdaBin, SecondOrder, mean_magnitude
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import sign
from bbcu.model.units import BinaryUnit, UnitShape

BITS_PER_BYTE = 8


class DeployError(BbcuError):
    """A network that cannot be packed, saved, exported or run, or a packed file that cannot be read."""


@dataclass(frozen=True)
class WeightForm:
    """What a packed unit has besides the signs of its weights.

    ``has_scale`` is whether each filter has a scale, ``planes`` the number of bits of a weight, each with a scale, and
    ``has_offset`` whether a number is added to the weights of each filter.
    """

    has_scale: bool = True
    planes: int = 1
    has_offset: bool = False

    def __post_init__(self) -> None:
        if self.planes not in (1, 2) or not (self.has_scale or (self.planes == 1 and not self.has_offset)):
            raise DeployError("weights have one or two bits, and a scale if they have two or an offset")

    @property
    def is_scaled_after(self) -> bool:
        """Whether signs are convolved, and the sums multiplied by the scale; else the weights have their scales."""
        return self.planes == 1 and not self.has_offset


class PackedUnit(BinaryUnit):
    """A binary unit for inference, with the signs of its weights in ``weight_bits`` and their magnitude in ``scale``.

    ``weight_bits`` is (out_channels, kernel, kernel, bytes) of uint8 with a byte for eight of the input channels of a
    group: bit ``c % 8`` of byte ``c // 8`` is 1 if the weight of channel ``c`` is positive, 0 if it is negative or
    there is no such channel. ``scale`` is (out_channels,) of float32, or None if the weights are plain signs; a filter
    of zeros has scale 0.

    The weights are ``scale * signs``. Those of ``srb`` are ``scale * signs + second_scale * second_signs``, with a
    second bit in ``second_bits``, and those of ``adabin`` are ``scale * signs + offset``. Both are convolved in
    floating point, as in training.

    Threshold, rescale, bias, BatchNorm and activation are those of the float unit. It cannot be trained.
    """

    weight_bits: Tensor
    scale: Tensor | None
    second_bits: Tensor | None
    second_scale: Tensor | None
    offset: Tensor | None

    def __init__(self, shape: UnitShape, spec: UnitSpec, form: WeightForm) -> None:
        super().__init__(shape, for_inference(spec))
        del self.weight, self.binariser
        self.form = form
        bytes_ = -(-(shape.in_channels // shape.groups) // BITS_PER_BYTE)
        bits = torch.zeros(shape.out_channels, shape.kernel, shape.kernel, bytes_, dtype=torch.uint8)
        numbers, has_second = torch.ones(shape.out_channels), form.planes == 2
        self.register_buffer("weight_bits", bits)
        self.register_buffer("scale", numbers if form.has_scale else None)
        self.register_buffer("second_bits", bits.clone() if has_second else None)
        self.register_buffer("second_scale", numbers.clone() if has_second else None)
        self.register_buffer("offset", numbers.clone() if form.has_offset else None)

    @classmethod
    def of(cls, unit: BinaryUnit) -> "PackedUnit":
        """Pack a unit; raises DeployError with the reason if :func:`why_not_packed` gives one."""
        reason = why_not_packed(unit)
        if reason is not None:
            raise DeployError(reason)
        weights = parts_of(unit)
        packed = cls(shape_of(unit), unit.spec, weights.form)
        # What a surrogate and a binariser have learnt is for training, or in the weights.
        dropped = ("weight", "surrogate.", "binariser.")
        state = {name: value for name, value in unit.state_dict().items() if not name.startswith(dropped)}
        packed.load_state_dict({**state, **weights.state})
        packed.set_memory(unit.memory)
        return packed.eval()

    def signs(self) -> Tensor:
        """Return the signs of the weights, ones and minus ones: (out_channels, channels of a group, kernel, kernel)."""
        return self._unpacked(self.weight_bits)

    def weights(self) -> Tensor:
        """Return the weights with their scales and offsets, in the same shape."""
        if self.scale is None:
            return self.signs()
        weights = per_filter(self.scale) * self.signs()
        if self.second_bits is not None and self.second_scale is not None:
            weights = weights + per_filter(self.second_scale) * self._unpacked(self.second_bits)
        return weights if self.offset is None else weights + per_filter(self.offset)

    def _unpacked(self, bits: Tensor) -> Tensor:
        return unpack_signs(bits, self.in_channels // self.groups)

    def convolved_weights(self) -> Tensor:
        """Return what is convolved with: signs if the sums are multiplied by the scale, else the weights."""
        return self.signs() if self.form.is_scaled_after else self.weights()

    def sums(self, values: Tensor, *, is_signed: bool) -> Tensor:
        z = self.convolution(values, self.convolved_weights())
        if self.scale is None or not self.form.is_scaled_after:
            return z
        return z * self.scale.reshape(1, -1, 1, 1)

    def wide(self, x: Tensor) -> Tensor:
        """Return ``x``: it runs without autocast."""
        return x

    def set_progress(self, progress: float) -> None:
        """Do nothing: it is not trained."""

    def after_step(self) -> None:
        """Do nothing: it is not trained."""


def per_filter(numbers: Tensor) -> Tensor:
    """Return one number for each filter, (out_channels,), so that they multiply weights."""
    return numbers.reshape(-1, 1, 1, 1)


def shape_of(unit: BinaryUnit) -> UnitShape:
    """Return the shape of a unit, with the initial values of another."""
    # Only with act=first does it matter whether the unit is the first of its pair, and then it is what its act says.
    is_first = unit.spec.act == "first" and unit.act == "after"
    return UnitShape(
        unit.in_channels,
        unit.out_channels,
        bias=unit.bias is not None,
        kernel=unit.kernel,
        stride=unit.stride,
        groups=unit.groups,
        first=is_first,
    )


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
    if not (unit.binary_signs and unit.binary_weights):
        return "its training starts in full precision, and is not binary yet"
    if parts_of(unit).is_wrong:
        return f"weight={unit.spec.weight}: a filter's weights are not one number with two signs"
    return None


@dataclass(frozen=True)
class WeightParts:
    """The parts of a unit's binary weights: the tensors of a packed unit by their names.

    ``is_wrong`` is whether the weights are not the sum of these parts.
    """

    form: WeightForm
    state: Mapping[str, Tensor]
    is_wrong: bool


@torch.no_grad()
def parts_of(unit: BinaryUnit) -> WeightParts:
    """Take a unit's binary weights apart. A filter whose weights are all zero has positive signs and scale 0."""
    binary, scale = unit.binariser(unit.weight), unit.binariser.scale(unit.weight)
    if type(unit.binariser) is SecondOrder:
        first = mean_magnitude(unit.weight)
        of_first = first * sign(unit.weight)
        second = mean_magnitude(unit.weight - of_first)
        of_second = sign(unit.weight - of_first)
        state = {"weight_bits": pack_signs(unit.weight >= 0), "scale": first.flatten()}
        state |= {"second_bits": pack_signs(of_second > 0), "second_scale": second.flatten()}
        return WeightParts(WeightForm(planes=2), state, not torch.equal(of_first + second * of_second, binary))
    if type(unit.binariser) is AdaBin:
        mean = unit.weight.mean(PER_FILTER, keepdim=True)
        deviation = unit.weight.std(PER_FILTER, correction=0, keepdim=True)
        signs = sign((unit.weight - mean) / deviation)
        state = {"weight_bits": pack_signs(signs > 0), "scale": deviation.flatten(), "offset": mean.flatten()}
        return WeightParts(WeightForm(has_offset=True), state, not torch.equal(deviation * signs + mean, binary))
    if scale is None:
        is_wrong = not bool((binary.abs() == 1).all())
        return WeightParts(WeightForm(has_scale=False), {"weight_bits": pack_signs(binary > 0)}, is_wrong)
    zero = (binary == 0).all(dim=(1, 2, 3), keepdim=True)
    signs = torch.where(zero, torch.ones_like(binary), binary / scale)
    scales = torch.where(zero, torch.zeros_like(scale), scale).flatten()
    state = {"weight_bits": pack_signs(signs > 0), "scale": scales}
    return WeightParts(WeightForm(), state, not bool((signs.abs() == 1).all()))


def pack_signs(positive: Tensor) -> Tensor:
    """Pack where weights (out, in, height, width) are positive, to (out, height, width, bytes) of uint8."""
    positive = positive.permute(0, 2, 3, 1).to(torch.uint8)
    padded = F.pad(positive, (0, -positive.shape[-1] % BITS_PER_BYTE))
    places = 2 ** torch.arange(BITS_PER_BYTE, dtype=torch.uint8)
    return (padded.reshape(*padded.shape[:-1], -1, BITS_PER_BYTE) * places).sum(-1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, in_channels: int) -> Tensor:
    """Return ones and minus ones, (out, in, height, width), from what :func:`pack_signs` returns."""
    places = torch.arange(BITS_PER_BYTE, dtype=torch.uint8)
    positive = (bits.unsqueeze(-1) >> places & 1).flatten(-2)[..., :in_channels]
    return (positive.float() * 2 - 1).permute(0, 3, 1, 2).contiguous()


def count_binary_weights(network: nn.Module) -> int:
    """Return the number of weights that take one bit each in a packed network; a weight of two bits counts as two."""
    return sum(unit.form.planes * unit.signs().numel() for unit in packed_units(network))


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
