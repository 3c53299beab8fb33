"""The native kernel: bit for bit what torch computes, on every set of instructions that this CPU has."""

import itertools
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.compiled import NO_COMPILER, cpp_compiler
from bbcu.deploy import native
from bbcu.deploy.backends import runner
from bbcu.deploy.packed import DeployError, PackedUnit, pack
from bbcu.model.checkpoints import UnpairedBody
from bbcu.model.specs import UnitSpec
from bbcu.model.thresholds import Adaptive, Elastic
from bbcu.model.units import BinaryUnit, UnitShape
from tests.harness.builders import dncnn, drawn, srresnet
from tests.harness.deployed import newer_networks

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")

HAS = torch.cpu.get_capabilities()
HERE = [name for name in native.INSTRUCTIONS if all(map(HAS.get, native.NEEDED.get(name, ())))]
"""The sets of instructions that this CPU has."""

SHAPES = [  # in, out, batch, height, width
    *((32, 32, 1, height, width) for height, width in itertools.product((1, 2, 3, 8), (1, 4, 5, 7))),
    *((channels, channels, 1, 6, 9) for channels in (8, 24, 40, 64, 72, 96, 128, 160)),
    *((3, 64, 1, 5, 6), (1, 32, 2, 4, 4), (64, 3, 1, 5, 6), (64, 1, 2, 3, 3)),
    *((5, 7, 2, 3, 3), (33, 65, 1, 4, 5), (64, 32, 3, 2, 2), (64, 256, 1, 2, 11)),
]


@pytest.fixture(params=HERE)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.CHOICE, request.param)
    return str(request.param)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(network: nn.Module) -> nn.Module:
    """Give everything but the weights values as after a training: negative slopes and factors, thresholds that meet."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.3, 3, generator=generator)
        elif value.is_floating_point() and not (name.endswith("weight") and value.dim() == 4):
            # Multiples of 1/4, as the inputs below, so that many values lie exactly at a threshold.
            value.copy_(torch.randn(value.shape, generator=generator).mul(4).round() / 4)
    return network.eval()


def unit_of(
    in_channels: int, out_channels: int, shape: dict[str, int] | None = None, *, bias: bool = False, **levels: object
) -> BinaryUnit:
    given = UnitShape(in_channels, out_channels, bias=bias, first=True, **shape or {})  # type: ignore[arg-type]
    unit = BinaryUnit(given, UnitSpec.of(levels))
    unit.initial_weight(unit.weight, unit.weight, torch.Generator().manual_seed(0))
    trained(unit)
    if isinstance(unit.threshold, Elastic | Adaptive):
        unit.threshold.width.data.fill_(0.3)
    if unit.spec.weight == "l1":
        with torch.no_grad():
            unit.weight[out_channels // 2] = 0  # a filter of zeros
    return unit


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def quarters(*shape: int) -> Tensor:
    return last(drawn(*shape).mul(4).round() / 4)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_a_unit_has_the_bits_of_torch(shape: tuple[int, ...], instructions: str) -> None:
    in_channels, out_channels, *size = shape
    unit = unit_of(in_channels, out_channels)
    x, residual = quarters(size[0], in_channels, *size[1:]), last(drawn(size[0], out_channels, *size[1:], seed=1))
    with torch.inference_mode():
        found, expected = native.NativeUnit(PackedUnit.of(unit))(x, residual), unit(x, residual)
    assert torch.equal(found, expected)


def described(levels: dict[str, object]) -> str:
    return ",".join(f"{factor}={level}" for factor, level in levels.items())


LEVELS = [
    *({"bn": bn} for bn in ("pre", "post", "out")),
    *({"act": act} for act in ("after", "none")),
    *({"act_fn": name, "act": act} for name in ("prelu", "relu", "hardtanh") for act in ("inside", "after")),
    *({"weight": weight} for weight in ("plain", "irnet", "l1mag", "sign", "reste", "recu")),
    *({"threshold": name, "bn": bn} for name in ("affine", "elastic") for bn in ("none", "pre")),
    {"threshold": "elastic", "bias": True, "weight": "recu"},
    {"act_fn": "leaky", "act": "after"},
    {"residual": "scaled"},
    {"residual": "scaled", "act": "after"},
    {"act": "first", "act_fn": "leaky", "bn": "post"},
    {"threshold": False},
    {"threshold": False, "bn": "pre"},
    {"bn": "post", "act": "after", "weight": "plain"},
    {"bias": True},
    {"bias": True, "weight": "plain", "bn": "out"},
]


@pytest.mark.parametrize("levels", LEVELS, ids=described)
@pytest.mark.parametrize("has_residual", [True, False])
def test_every_level_has_the_bits_of_torch(levels: dict[str, object], has_residual: bool, instructions: str) -> None:
    bias = bool(levels.get("bias", False))
    unit = unit_of(32, 40, bias=bias, **{key: value for key, value in levels.items() if key != "bias"})
    x, residual = quarters(1, 32, 6, 7), quarters(1, 40, 6, 7) if has_residual else None
    with torch.inference_mode():
        found, expected = native.NativeUnit(PackedUnit.of(unit))(x, residual), unit(x, residual)
        plain = unit_of(32, 40, bias=not bias)(x, residual)
    assert torch.equal(found, expected)
    assert not torch.equal(expected, plain)


IN_TORCH = [
    *({"threshold": name} for name in ("adaptive", "dynamic")),
    *({"rescale": name} for name in ("spatial", "channel", "both", "doubled", "squeeze", "statistics", "box")),
    {"threshold": "dynamic", "rescale": "both"},
    *({"weight": weight} for weight in ("srb", "adabin")),
    {"weight": "adabin", "threshold": "adaptive", "act_fn": "maxout"},
    {"bn": "branch", "act_fn": "relu"},
    *(
        {"kernel": kernel, "stride": stride, "groups": groups}
        for kernel, stride, groups in [(1, 1, 1), (3, 2, 1), (3, 1, 4)]
    ),
]


@pytest.mark.parametrize("levels", IN_TORCH, ids=described)
def test_what_the_kernel_cannot_run_has_the_bits_of_torch_too(levels: dict[str, Any]) -> None:
    shape = {name: levels[name] for name in levels if name in ("kernel", "stride", "groups")}
    unit = unit_of(32, 32, shape, **{name: level for name, level in levels.items() if name not in shape})
    with pytest.raises(DeployError, match=r"^(threshold|rescale|a filter's weights|bn=branch|the kernel)"):
        native.NativeUnit(PackedUnit.of(unit))
    network = native.native(pack(nn.Sequential(unit, unit_of(32, 32))))
    assert [type(part) for part in network] == [PackedUnit, native.NativeUnit]
    with torch.inference_mode():
        assert torch.equal(network(quarters(1, 32, 6, 7)), nn.Sequential(unit, unit_of(32, 32))(quarters(1, 32, 6, 7)))


PARTS = [part for n in range(5) for part in itertools.combinations(("head", "body", "up", "tail"), n)]


def networks() -> list[tuple[str, nn.Module]]:
    wide = {"channels": 32, "align": 65.0}
    found = [
        *(
            (f"x{scale} {','.join(parts)}", srresnet(scale, binarize=parts, **wide))
            for scale in (2,)
            for parts in PARTS
        ),
        *((f"x{scale}", srresnet(scale, binarize=("body", "up"), **wide)) for scale in (3, 4)),
        *(
            (f"residual {kind}", srresnet(unit=UnitSpec(residual=kind), blocks=2, channels=32))
            for kind in (False, "block")
        ),
        ("no residual, M", srresnet(unit=UnitSpec(residual=False), channels=32, binarize=("body", "up"))),
        ("no body", srresnet(blocks=0, binarize=("body", "up"), **wide)),
        ("bam", srresnet(blocks=2, channels=32, accumulate=True)),
        ("btm", srresnet(channels=32, standardise=True)),
        ("colour", dncnn(32, align=65.0)),
        ("gray", dncnn(32, colours=1, binarize=("head", "body", "tail"))),
    ]
    unpaired = dncnn(32, colours=1, blocks=2)
    unpaired.body = UnpairedBody(unpaired.spec, bias=True)
    return [*found, ("an odd number of units", unpaired), *newer_networks().items()]


NETWORKS = networks()


@pytest.mark.parametrize("network", [network for _, network in NETWORKS], ids=[name for name, _ in NETWORKS])
def test_a_network_has_the_bits_of_torch(network: nn.Module) -> None:
    network = trained(network)
    x = torch.rand(2, network.spec.colours, 9, 11, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(last(x))
    run = runner(pack(network), "native")
    assert torch.equal(run(x), expected)
    assert torch.equal(run(x), expected)


def test_threads_and_images_do_not_change_the_bits(two_threads: None) -> None:
    unit = native.NativeUnit(PackedUnit.of(unit_of(32, 32)))
    x = quarters(3, 32, 37, 5)
    many = unit(x, x)
    torch.set_num_threads(1)
    assert torch.equal(many, unit(x, x))
    assert torch.equal(many[1:2], unit(last(x[1:2]), last(x[1:2])))


def test_types_that_torch_prefers_do_not_change_the_bits() -> None:
    packed = pack(srresnet(channels=32, blocks=1))
    x = torch.rand(1, 3, 6, 7)
    native_run, expected = runner(packed, "native"), runner(packed, "torch")(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(native_run(x), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(native_run(x), expected)
        with pytest.raises(DeployError, match="torch's default type is float64"):
            runner(packed, "native")
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_that_is_not_ours_keeps_its_input() -> None:
    body = srresnet(channels=32, blocks=2).body
    x = quarters(1, 32, 5, 5)
    kept = x.clone()
    native.NativeBody(pack(body))(x)
    assert torch.equal(x, kept)


def _forked(unit: native.NativeUnit, x: Tensor) -> bytes:
    return bytes(unit(x, x).numpy().tobytes())


def test_a_forked_process_has_threads_of_its_own(two_threads: None) -> None:
    unit = native.NativeUnit(PackedUnit.of(unit_of(32, 32)))
    x = quarters(1, 32, 64, 4)
    expected = _forked(unit, x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_forked, [(unit, x)] * 4, chunksize=1) == [expected] * 4


# --- thresholds and BatchNorm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [torch.zeros(1, 9, 2, 2), torch.zeros(1, 8, 2, 2).half()], ids=["channels", "type"])
def test_what_a_unit_cannot_read_is_refused(x: Tensor) -> None:
    unit = native.NativeUnit(PackedUnit.of(unit_of(8, 8)))
    with pytest.raises(DeployError, match="a unit of 8 channels cannot take"):
        unit(x)


@pytest.mark.parametrize("bn", ["pre", "none"])
def test_a_sign_changes_at_its_threshold(bn: str) -> None:
    unit = PackedUnit.of(unit_of(16, 32, bn=bn))
    if bn == "pre":
        unit.bn_pre.weight.data[:2] = 0
    threshold, flip = native.limits_of(unit)
    bits = [bool(flip[c // 8] >> (c % 8) & 1) for c in range(16)]
    for x in (threshold, torch.nextafter(threshold, torch.tensor(-torch.inf)), threshold + 1, threshold - 1):
        with torch.inference_mode():
            signs = unit.bits(x.nan_to_num(posinf=1e30, neginf=-1e30).reshape(1, 16, 1, 1)).flatten()
        clamped = x.nan_to_num(posinf=1e30, neginf=-1e30)
        found = [(c >= t) != f for c, t, f in zip(clamped.tolist(), threshold.tolist(), bits, strict=True)]
        assert found == (signs > 0).tolist()
    assert len(set(bits)) == (2 if bn == "pre" else 1)


def test_batch_norm_is_read_off_its_outputs() -> None:
    norm = trained(nn.BatchNorm2d(19))
    factor, shift, fused = native.affine_of(norm)
    x = drawn(500, 19) * 30
    with torch.inference_mode():
        expected = norm(x.reshape(500, 19, 1, 1)).reshape(500, 19)
    once = (x.double() * factor.double() + shift.double()).float()
    assert torch.equal(once if fused else x * factor + shift, expected)


# --- the convolutions of trainings and tails --------------------------------------------------------------------------


def test_a_batch_norm_with_a_tiny_shift_rounds_once() -> None:
    norm = nn.BatchNorm2d(64).eval()
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(0))
    nn.init.constant_(norm.bias, 1e-20)  # decides how the product rounds where it lies between two floats
    factor, shift, is_fused = native.affine_of(norm)
    x = last(drawn(1, 64, 4, 4))
    parts = factor.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)
    assert torch.equal(native.fused(x, *parts) if is_fused else x * parts[0] + parts[1], norm(x))
    tie = torch.tensor([1 + 2**-12]), torch.tensor([1 + 2**-12]), torch.tensor([1e-20])
    assert native.fused(*tie).item() == 1 + 2**-11 + 2**-23


@pytest.mark.parametrize("shape", [(2, 64, 64, 7, 5), (1, 3, 33, 4, 9), (1, 100, 32, 1, 1)])
def test_sums_of_signs_are_exact(shape: tuple[int, ...], instructions: str) -> None:
    batch, in_channels, out_channels, height, width = shape
    signs, weight = drawn(batch, in_channels, height, width).sign(), drawn(out_channels, in_channels, 3, 3).sign()
    sums = torch.ops.bbcu.packed_conv2d(signs.to(torch.int8), weight.to(torch.int8))
    assert torch.equal(sums, F.conv2d(signs, weight, padding=1))
    assert sums.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [64, 100, 160, 1024])
@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_are_exact_where_all_signs_differ_or_none(channels: int, sign: int, instructions: str) -> None:
    signs, weight = torch.full((1, channels, 3, 5), float(sign)), torch.ones(32, channels, 3, 3)
    sums = native.sign_sums(signs.to(torch.int8), weight.to(torch.int8))
    assert torch.equal(sums, F.conv2d(signs, weight, padding=1))


def test_the_operation_is_one_for_the_compiler() -> None:
    signs, weight = drawn(1, 8, 5, 4).sign().to(torch.int8), drawn(32, 8, 3, 3).sign().to(torch.int8)
    found = torch.library.opcheck(native.packed_conv2d, (signs, weight))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("size", [(48, 50), (3, 4)], ids=["large", "small"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_tail_has_the_bits_of_torch(colours: int, size: tuple[int, int], bias: bool, instructions: str) -> None:
    tail = nn.Conv2d(20, colours, 3, padding=1, bias=bias)
    narrow = native.NarrowConvolution(tail)
    with torch.inference_mode():
        for seed in range(3):
            x = last(drawn(2, 20, *size, seed=seed))
            assert torch.equal(narrow(x), tail(x))
            assert torch.allclose(narrow._by_kernel(x), tail(x), atol=1e-5)


def test_a_tail_of_other_bits_is_left_to_torch() -> None:
    tail = nn.Conv2d(8, 3, 3, padding=1)
    narrow = native.NarrowConvolution(tail)
    narrow.weight += 1e-4
    x = last(drawn(1, 8, 20, 20))
    with torch.inference_mode():
        assert torch.equal(narrow(x), tail(x))
        assert torch.equal(narrow(x), tail(x))
    assert list(narrow.is_same.values()) == [False]


def test_a_black_picture_does_not_decide_for_the_next() -> None:
    tail = nn.Conv2d(8, 3, 3, padding=1)
    narrow = native.NarrowConvolution(tail)
    narrow.weight += 1e-4
    x = last(drawn(1, 8, 20, 20))
    with torch.inference_mode():
        narrow(torch.zeros_like(x))
        assert torch.equal(narrow(x), tail(x))


def test_more_channels_than_the_kernel_counts_are_refused() -> None:
    with pytest.raises(DeployError, match=r"^the kernel counts in 16 bits, which 7282 input channels exceed$"):
        native.NativeUnit(PackedUnit.of(unit_of(7282, 1)))


def test_only_a_plain_narrow_convolution_is_replaced() -> None:
    fits = native.NarrowConvolution.fits
    assert fits(nn.Conv2d(8, 3, 3, padding=1))
    others = ({"stride": 2}, {"padding": 0}, {"dilation": 2}, {"padding_mode": "reflect"})
    assert not any(fits(nn.Conv2d(8, 3, 3, **{"padding": 1, **other})) for other in others)
    assert not fits(nn.Conv2d(9, 3, 3, padding=1, groups=3))
    assert not fits(nn.Conv2d(8, 2, 3, padding=1))


# --- building it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    native.library.cache_clear()
    native._missing.cache_clear()


def _build(_: int) -> str:
    return str(native._built(b'extern "C" int answer() { return 42; }', ("-fPIC", "-shared"), "test"))


def test_processes_that_need_it_at_once_build_it_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compiler = empty_cache / "calls", empty_cache / "compiler"
    compiler.write_text(f'#!/bin/sh\necho call >> {calls}\nexec {cpp_compiler()} "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    with multiprocessing.get_context("fork").Pool(8) as pool:
        paths = pool.map(_build, range(8), chunksize=1)
    assert len(set(paths)) == 1
    assert calls.read_text() == "call\n"


def test_without_a_compiler_it_says_so(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    native._missing.cache_clear()
    monkeypatch.setenv("CXX", str(empty_cache / "none"))
    assert native.missing() == NO_COMPILER
    with pytest.raises(DeployError, match=r"^backend native: no C\+\+ compiler found"):
        runner(pack(srresnet(channels=32)), "native")


def test_what_the_compiler_refuses_is_one_line(empty_cache: Path) -> None:
    with pytest.raises(DeployError, match=r"^\S+ cannot compile the kernel: [^\n]*error[^\n]*$"):
        native._built(b"not C++", (), "test")


def test_a_cache_that_others_can_write_to_is_not_used(empty_cache: Path) -> None:
    folder = empty_cache / "bbcu" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    built = Path(_build(0))
    assert not built.is_relative_to(empty_cache)
    assert stat.S_IMODE(os.stat(built.parent).st_mode) == 0o700


def test_unknown_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE, "mmx")
    assert native.missing() == "BBCU_INSTRUCTIONS=mmx: must be one of avx512, avx2, plain"


def test_instructions_that_the_cpu_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True})
    monkeypatch.setenv(native.CHOICE, "avx512")
    assert native.missing() == "BBCU_INSTRUCTIONS=avx512: this CPU does not have them, only avx2, plain"
