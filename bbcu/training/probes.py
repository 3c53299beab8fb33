r"""Measure what binarisation does inside a network, for each binary unit, on given pictures.

For each unit, with the input :math:`u` of its sign, which is what the threshold returns, and :math:`s =
\operatorname{sgn}(u)`:

``sign_loss``
    The information that the sign loses: the error of the best reconstruction :math:`a_c s + b_c` of :math:`u`, by least
    squares in each channel c, over the spread of :math:`u`:

    .. math:: \sqrt{\sum_c \sum (u - a_c s - b_c)^2 \,/\, \sum_c \sum (u - \bar u_c)^2}

    0 if a channel has only two values, 1 if all signs of a channel are equal, 0.603 for a normal distribution around
    zero. Scale and offset are free because the weights' scale and the shifts after the convolution can learn them; the
    denominator is the spread, so that a large mean does not count as information.
``entropy``
    The information in a sign in bits: the mean over the channels of the binary entropy of the share of +1.
``window``
    The share of :math:`|u| \le 1`, where the surrogates ``quadratic``, ``clip`` and ``ho`` let a gradient through.
``zeros``
    The share of :math:`u = 0`, whose sign is +1 by convention.
``output_loss``
    The information that the unit's output y loses: the same error for :math:`a_c y + b_c`, against the output of the
    unit without binarisation: :math:`u` in place of its signs, and the latent weights in place of the binary ones, with
    the same threshold, rescale, BatchNorm, activation and residual. The real convolution is scaled to the mean and the
    standard deviation of the binary one in each picture and channel, before a rescale: its scale is not information,
    and rescale, BatchNorm and activation need the range that they were trained on.
``flipped``
    The share of binary weights that have the other one of their two values than at the start; None without a start. For
    weights of two bits, the first bit.
``residual``, ``branch``, ``input``
    The range of values of the residual, times the learnt number of ``residual=scaled``, of the branch that is added to
    it, and of the unit's input: percentiles p1 to p99 and the standard deviation ``std``. The residual is None for a
    unit without one.
``branch_ratio``
    The standard deviation of the branch over that of the residual, or of the input if there is no residual.

A measurement is None if a user's unit does not have the module that it needs. Everything is measured in one pass, in
memory that does not depend on the pictures: sums in float64, and percentiles from a histogram, see :class:`Spread`.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.data.images import to_tensor
from bbcu.data.pairs import Pair
from bbcu.model.units import BinaryUnit
from bbcu.training.acceleration import deterministic_fp32

PER_CHANNEL = (0, 2, 3)
PER_PICTURE_AND_CHANNEL = (2, 3)

PERCENTS = (1, 25, 50, 75, 99)
MIN_EXPONENT, MAX_EXPONENT = -6, 6
BINS_PER_DECADE = 200
BINS_PER_SIDE = (MAX_EXPONENT - MIN_EXPONENT) * BINS_PER_DECADE

ROUNDING = 1e-12
"""A sum of squared deviations below this share of the sum of squares is rounding error, and counts as zero."""

DIGITS = 6


PROBED_SIDE = 96
"""The largest side, in input pixels, of what the probes measure: enough for shares and percentiles."""


def probed_inputs(tests: Mapping[str, Sequence[Pair]], most: int) -> Iterator[Tensor]:
    """Yield the middle of the inputs of the first ``most`` pictures of each test set, one picture a batch.

    Each is (1, channels, height, width) in [0, 1], with sides of at most ``PROBED_SIDE``.
    """
    for pairs in tests.values():
        for pair in pairs[:most]:
            top, left = (max(0, (size - PROBED_SIDE) // 2) for size in pair.input.shape[:2])
            yield to_tensor(pair.input[top : top + PROBED_SIDE, left : left + PROBED_SIDE])[None]


def probe(
    network: nn.Module, batches: Iterable[Tensor], start: Mapping[str, Tensor] | None, device: torch.device
) -> dict[str, Any]:
    """Measure every binary unit of ``network`` on ``device`` while it restores ``batches``, and leave it unchanged.

    Batches are (pictures, channels, height, width) in [0, 1], of any sizes. ``start`` is the network's
    ``state_dict()`` before training.
    Returns values that JSON can represent: the number of ``pictures``, and under ``units`` the measurements of each
    unit by the name of its module, in the order of ``binary_units``.
    """
    units = {name: module for name, module in network.named_modules() if isinstance(module, BinaryUnit)}
    probes = {name: UnitProbe(unit) for name, unit in units.items()}
    pictures = 0
    with torch.inference_mode(), deterministic_fp32(), evaluating(network), contextlib.ExitStack() as attached:
        for unit_probe in probes.values():
            attached.enter_context(unit_probe.attached())
        for batch in batches:
            network(batch.to(device))
            pictures += len(batch)
        flips = {name: _flipped(unit, start, f"{name}.weight") for name, unit in units.items()}
    measured = {name: {**unit_probe.measurements(), "flipped": flips[name]} for name, unit_probe in probes.items()}
    return {"pictures": pictures, "units": measured}


VISIBLE = 0.1 / 255
"""A tenth of a grey level on the scale of 0 to 1: a smaller deviation hardly ever changes a rounded output."""


def dead_body(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> str | None:
    """Return why the output of ``network`` is only its skip connection, or None if its layers contribute.

    The contribution is the output minus ``network.skip(x)``. If it is constant in each channel of every picture, except
    at the borders, which padding changes, the layers pass on no information about the picture. That happens without
    residuals, if signs become equal for all pixels. A user's network without ``skip`` is never reported. Batches are
    (pictures, channels, height, width) in [0, 1].
    """
    skip = getattr(network, "skip", None)
    if skip is None:
        return None
    largest = 0.0
    with torch.inference_mode(), deterministic_fp32(), evaluating(network):
        for batch in batches:
            pictures = batch.to(device)
            added = _middle(network(pictures) - skip(pictures))
            largest = max(largest, float(added.std(dim=(2, 3), correction=0).max()))
    if largest >= VISIBLE:
        return None
    return f"its output is the skip connection: what its layers add varies by {255 * largest:.2g} grey levels"


def _middle(x: Tensor) -> Tensor:
    """Return the middle half of (pictures, channels, height, width) in both directions."""
    top, left = (size // 4 for size in x.shape[-2:])
    return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left]


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each module afterwards."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _flipped(unit: BinaryUnit, start: Mapping[str, Tensor] | None, key: str) -> float | None:
    """Return the share of the unit's binary weights that have another value of the two than in ``start``."""
    if start is None:
        return None
    before, now = (unit.binariser.signs(weight.to(unit.weight)) for weight in (start[key], unit.weight))
    return rounded((before != now).double().mean())


def rounded(value: Tensor | float) -> float | None:
    """Round to six significant digits; None if the number is not finite, which JSON cannot represent."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


# --- running statistics -----------------------------------------------------------------------------------------------


class Fit:
    """The least-squares fit of one stream y by another x, for each channel, from running sums."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add values of both streams, (pictures, channels, height, width)."""
        x, y = x.double(), y.double()
        ones = torch.full((x.shape[1],), float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
        products = (x, y, x * x, x * y, y * y)
        self.sums = self.sums + torch.stack([ones, *(product.sum(PER_CHANNEL) for product in products)])

    def loss(self) -> float | None:
        """Return the root of the share of y's spread that a x + b leaves; 0 if y is constant, None before any value."""
        if not isinstance(self.sums, Tensor):
            return None
        count, x, y, xx, xy, yy = self.sums
        spread_x, spread_y = (_or_zero(square - total**2 / count, square) for total, square in ((x, xx), (y, yy)))
        explained = torch.where(spread_x > 0, (xy - x * y / count) ** 2 / spread_x, 0.0).minimum(spread_y)
        if not spread_y.sum() > 0:
            return rounded(spread_y.sum())
        return rounded(((spread_y - explained).sum() / spread_y.sum()).sqrt())

    def mean_of_x(self) -> Tensor | None:
        """Return the mean of each channel of x."""
        return self.sums[1] / self.sums[0] if isinstance(self.sums, Tensor) else None


def _or_zero(spread: Tensor, squares: Tensor) -> Tensor:
    """Return ``spread``, or 0 if it is only rounding error in ``squares``."""
    return torch.where(spread <= ROUNDING * squares, 0.0, spread)


class Share:
    """The share of the values for which something holds."""

    def __init__(self) -> None:
        self.holding, self.all = 0, 0

    def add(self, holds: Tensor) -> None:
        self.holding += int(holds.sum())
        self.all += holds.numel()

    def value(self) -> float | None:
        return rounded(self.holding / self.all) if self.all else None


class Spread:
    """Percentiles and standard deviation of a stream.

    The percentiles come from a histogram with 200 bins for each decade of the magnitude, from 1e-6 to 1e6, on both
    sides of zero: they are off by at most 0.6 %, and 0 below 1e-6 and 1e6 above that. The percentile p is the smallest
    value that at least p % of all values do not exceed.
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.sums: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        wide = values.double()
        self.sums = self.sums + torch.stack([wide.sum(), (wide * wide).sum()])
        counts = torch.bincount(_bins(values), minlength=2 * BINS_PER_SIDE + 1)
        self.counts = counts if self.counts is None else self.counts + counts

    def deviation(self) -> float | None:
        """Return the standard deviation, not rounded; None before any value."""
        if self.counts is None or not isinstance(self.sums, Tensor):
            return None
        total, squares = self.sums
        return math.sqrt(_or_zero(squares - total**2 / self.counts.sum(), squares) / self.counts.sum())

    def measurements(self) -> dict[str, float | None] | None:
        """Return the percentiles and the standard deviation; None before any value."""
        deviation = self.deviation()
        if self.counts is None or deviation is None:
            return None
        ranks = torch.tensor([math.ceil(percent * int(self.counts.sum()) / 100) for percent in PERCENTS])
        places = torch.searchsorted(self.counts.cumsum(0).cpu(), ranks)
        percentiles = {
            f"p{percent}": rounded(_centre(int(place))) for percent, place in zip(PERCENTS, places, strict=True)
        }
        return {**percentiles, "std": rounded(deviation)}


def _bins(values: Tensor) -> Tensor:
    """Return the bin of each value, 0 to 2 * BINS_PER_SIDE; the middle one is for values near zero."""
    size = values.flatten().float().nan_to_num().abs()
    place = (size.clamp_min(10.0**MIN_EXPONENT).log10() - MIN_EXPONENT) * BINS_PER_DECADE
    place = 1 + place.floor().clamp(0, BINS_PER_SIDE - 1)
    place = torch.where(size < 10.0**MIN_EXPONENT, 0, place)
    return (BINS_PER_SIDE + place.copysign(values.flatten().float())).long()


def _centre(place: int) -> float:
    """Return the logarithmic middle of a bin."""
    offset = place - BINS_PER_SIDE
    if offset == 0:
        return 0.0
    size: float = 10 ** (MIN_EXPONENT + (abs(offset) - 0.5) / BINS_PER_DECADE)
    return math.copysign(size, offset)


# --- one unit ---------------------------------------------------------------------------------------------------------


class UnitProbe:
    """Measures one unit by hooks on its modules, and repeats each of its forward passes without binarisation.

    During the repetition the same hooks replace binary values by real ones.
    """

    def __init__(self, unit: BinaryUnit) -> None:
        self.unit = unit
        self.sign_fit, self.output_fit = Fit(), Fit()
        self.window, self.zeros = Share(), Share()
        self.residual, self.branch, self.input = Spread(), Spread(), Spread()
        self._seen: dict[str, Tensor] = {}
        self._replaced: set[str] | None = None
        self._place: tuple[Tensor | float, int] = 0.0, 0

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks to the unit, and remove them afterwards."""
        unit = self.unit
        handles = [
            unit.register_forward_pre_hook(self._begin),
            unit.surrogate.register_forward_hook(self._after_sign),
            unit.binariser.register_forward_hook(self._after_binariser),
            unit.bn_post.register_forward_hook(self._after_bn_post),
            # A unit of the user's own may have an activation and no BatchNorm after it.
            unit.activation.register_forward_hook(self._after_activation),
            unit.bn_branch.register_forward_hook(self._after_activation),
            unit.register_forward_hook(self._finish, with_kwargs=True),
        ]
        # The convolution's result has no module of its own to attach a hook to: a rescale follows it.
        convolve = unit.convolve
        unit.__dict__["convolve"] = lambda bits: self._after_convolution(convolve(bits))
        try:
            yield
        finally:
            del unit.__dict__["convolve"]
            for handle in handles:
                handle.remove()
            self._seen, self._place = {}, (0.0, 0)

    def measurements(self) -> dict[str, Any]:
        """Return all measurements of the unit but ``flipped``."""
        positive = self.sign_fit.mean_of_x()
        stream = self.residual if self.residual.counts is not None else self.input
        return {
            "sign_loss": self.sign_fit.loss(),
            "entropy": None if positive is None else rounded(_entropy((1 + positive) / 2).mean()),
            "window": self.window.value(),
            "zeros": self.zeros.value(),
            "output_loss": self.output_fit.loss(),
            "residual": self.residual.measurements(),
            "branch": self.branch.measurements(),
            "input": self.input.measurements(),
            "branch_ratio": _ratio(self.branch.deviation(), stream.deviation()),
        }

    def _begin(self, unit: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._seen = {}
        if self.unit.memory is not None:
            self._place = self.unit.memory.place

    def _after_sign(self, surrogate: nn.Module, args: tuple[Tensor, ...], bits: Tensor) -> Tensor | None:
        if self._replaced is not None:
            self._replaced.add("bits")
            return self._seen["u"]
        u = self._seen["u"] = args[0]
        self.sign_fit.add(bits, u)
        self.window.add(u.abs() <= 1)
        self.zeros.add(u == 0)
        return None

    def _after_binariser(self, binariser: nn.Module, args: tuple[Tensor, ...], binary: Tensor) -> Tensor | None:
        if self._replaced is not None:
            self._replaced.add("weight")
            return args[0]
        return None

    def _after_convolution(self, z: Tensor) -> Tensor:
        if self._replaced is not None:
            self._replaced.add("convolution")
            return _matched(z, self._seen["convolution"])
        self._seen["convolution"] = z
        return z

    def _after_bn_post(self, bn_post: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        if self._replaced is None:
            self._seen["z"] = z

    def _after_activation(self, activation: nn.Module, args: tuple[Tensor, ...], activated: Tensor) -> None:
        if self._replaced is None:
            self._seen["activated"] = activated

    def _finish(self, unit: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        x, residual = _arguments(*args, **kwargs)
        self.input.add(x)
        if (scaled := self.unit.scaled(residual)) is not None:
            self.residual.add(scaled)
        added_before_activation = residual is not None and self.unit.act == "after"
        branch = self._seen.get("z" if added_before_activation else "activated")
        if branch is not None:
            self.branch.add(branch)
        if {"u", "convolution"} <= self._seen.keys():
            reference, replaced = self._without_binarisation(args, kwargs)
            if replaced == {"bits", "weight", "convolution"}:
                self.output_fit.add(y, reference)

    def _without_binarisation(self, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Tensor, set[str]]:
        """Return the unit's output for the same arguments without binarisation, and the names of what was replaced."""
        memory = self.unit.memory
        after = None if memory is None else memory.place
        if memory is not None:
            memory.place = self._place
        replaced: set[str] = set()
        self._replaced = replaced
        try:
            # Calling the module would run the unit's own hooks again.
            return self.unit.forward(*args, **kwargs), replaced
        finally:
            self._replaced = None
            if memory is not None and after is not None:
                memory.place = after


def _arguments(x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the arguments of a unit, whether positional or by keyword."""
    return x, residual


def _matched(values: Tensor, model: Tensor) -> Tensor:
    """Shift and scale ``values`` to the mean and standard deviation of ``model`` in each picture and channel."""
    deviation, mean = torch.std_mean(values, PER_PICTURE_AND_CHANNEL, correction=0, keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(model, PER_PICTURE_AND_CHANNEL, correction=0, keepdim=True)
    scale = torch.where(deviation > 0, wanted_deviation / deviation, 0.0)
    return (values - mean) * scale + wanted_mean


def _entropy(share: Tensor) -> Tensor:
    """Return the binary entropy in bits of a probability."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / math.log(2)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else rounded(above / below)
