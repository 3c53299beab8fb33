"""The convolution of signs with signs in bytes: whole numbers added exactly, at several times the rate of floats.

A binary unit's convolution adds ones and minus ones. A CPU with VNNI multiplies bytes at twice the rate of bf16 and
four times that of fp32, and its sums are the very numbers that the floating-point convolution gives. The kernels are
oneDNN's, as torch's quantised networks use them.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
"""What the kernels give their sums in."""

ZERO = 1
"""The byte that stands for zero, and for padding: oneDNN takes unsigned inputs, so a sign is stored as 0 or 2."""


@torch.library.custom_op("bbcu::convolve_bytes", mutates_args=())
def convolve_bytes(signs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Convolve with zero padding that keeps the size.

    ``signs`` (batch, in, height, width) and ``weight`` (out, in, height, width), of odd sides, are int8; the result,
    (batch, out, height, width), holds whole numbers in ``dtype`` and lies channels last.
    """
    padding = [side // 2 for side in weight.shape[2:]]
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)  # of the whole weight
    kernels = torch.ops.onednn
    packed = kernels.qconv_prepack(weight, scale, 1.0, ZERO, [1, 1], padding, [1, 1], 1, signs.shape)
    sums: Tensor = kernels.qconv2d_pointwise(
        (signs + ZERO).view(torch.uint8),
        1.0,
        ZERO,
        packed,
        scale,
        zero,
        None,
        [1, 1],
        padding,
        [1, 1],
        1,
        1.0,
        0,
        dtype,
        "none",
        [],
        "",
    )
    return sums


@convolve_bytes.register_fake
def _(signs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    batch, _, height, width = signs.shape
    shape = (batch, len(weight), height, width)
    return torch.empty(shape, dtype=dtype, device=signs.device, memory_format=torch.channels_last)


class ConvolvedSigns(torch.autograd.Function):
    """The convolution in bytes forward, and in floating point backward, where gradients are no whole numbers."""

    @staticmethod
    def forward(ctx: Any, signs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        signs, weight = signs.to(torch.int8), weight.to(torch.int8)
        ctx.save_for_backward(signs, weight)
        sums: Tensor = convolve_bytes(signs, weight, dtype)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        signs, weight = ctx.saved_tensors
        padding = [side // 2 for side in weight.shape[2:]]
        of_signs, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient,
            signs.to(gradient.dtype),
            weight.to(gradient.dtype),
            None,
            [1, 1],
            padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        return of_signs, of_weight, None


def convolve_signs(signs: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(signs, weight)`` of ones and minus ones, padded so that the size stays, in bytes.

    It gives what ``F.conv2d`` gives, under autocast too, and the same gradients. Sums in other types than ``DTYPES``,
    and other devices than a CPU, are left to ``F.conv2d``.
    """
    lowered = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if lowered else signs.dtype
    if signs.device.type != "cpu" or dtype not in DTYPES:
        return F.conv2d(signs, weight, padding="same")
    sums: Tensor = ConvolvedSigns.apply(signs, weight, dtype)  # type: ignore[no-untyped-call]
    return sums


@functools.cache
def missing_for_bytes(device: torch.device) -> str | None:
    """What ``device`` or torch lacks to convolve in bytes, in words; None where it does and the result is right."""
    if device.type != "cpu":
        return "only a CPU does"
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "this cpu has no VNNI"
    generator = torch.Generator().manual_seed(0)
    signs, weight = (torch.randn(shape, generator=generator).sign() for shape in ((2, 16, 5, 6), (8, 16, 3, 3)))
    expected = F.conv2d(signs, weight, padding=1)
    try:
        found = convolve_signs(signs, weight)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        return f"torch cannot here: {str(error).strip().splitlines()[0]}"
    return None if torch.equal(found, expected) else "torch's convolution of bytes is wrong here"
