"""Compilation and mixed precision: what is decided, and that what is trained stays the same."""

import contextlib
import copy
import dataclasses
import getpass
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbcu.compiled import cpp_compiler, use_cache
from bbcu.errors import ConfigError
from bbcu.model import int8
from bbcu.model.initialisation import initialise
from bbcu.model.parts import Body, NetworkSpec, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import Surrogate
from bbcu.model.units import BinaryUnit, UnitShape
from bbcu.training.acceleration import (
    compile_units,
    convolve_signs,
    missing_for_compilation,
    missing_for_signs,
    plan_for,
    resolve_compile,
    resolve_cuda_graph,
    resolve_precision,
    resolve_signs,
    seconds_saved,
    user_classes,
)
from bbcu.training.settings import TrainSettings
from tests.harness.builders import dncnn, drawn, srresnet
from tests.harness.paths import REPOSITORY

CPU = torch.device("cpu")
SETTINGS = TrainSettings(steps=10, batch=1, patch=8, lr=1e-3, schedule="constant", precision="fp32")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


class Triangle(Surrogate):
    """A user's own surrogate."""

    def derivative(self, u: Tensor) -> Tensor:
        return (1 - u.abs()).clamp_min(0)


class Printing(Surrogate):
    """One that no compiler can take in whole."""

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def forward(self, u: Tensor) -> Tensor:
        if float(u.detach().sum()) == float("inf"):
            raise AssertionError
        return super().forward(u)


# --- what is decided --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "hardware", "resolved"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
    ids=str,
)
def test_auto_is_bf16_only_if_the_hardware_has_it(
    wanted: str, hardware: bool, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": hardware, "avx2": True})
    assert resolve_precision(wanted, CPU)[0] == resolved


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wanted", "units", "saved", "trainings", "missing", "compiles", "reason"),
    [
        ("auto", 32, 5000.0, 1, None, True, "it saves about 5000 s"),
        ("auto", 32, 8.0, 1, None, False, "too short: it would save about 8.0 s, and cost 15 s"),
        ("auto", 32, 8.0, 3, None, True, "it saves about 8 s in each of 3 trainings that share the code"),
        ("auto", 32, 5.0, 3, None, False, "it would save about 5.0 s in each of 3 that share the code, and cost 18 s"),
        ("auto", 32, 1.4, 10**4, None, False, "too short"),  # 1.5 s to get the code from the cache
        ("auto", 32, None, 100, None, False, "not known"),
        ("auto", 32, 5000.0, 1, "no C++ compiler", False, r"no C\+\+ compiler"),
        (True, 32, 0.1, 1, None, True, "as requested"),
        (True, 32, None, 1, None, True, "as requested"),
        (True, 32, 5000.0, 1, "triton is not installed", False, "triton"),
        (True, 0, 5000.0, 1, None, False, "no binary units"),
        (False, 32, 5000.0, 100, None, False, "as requested"),
    ],
)
def test_compilation_has_to_be_possible_and_to_pay_for_all_who_share_it(
    wanted: bool | str,
    units: int,
    saved: float | None,
    trainings: int,
    missing: str | None,
    compiles: bool,
    reason: str,
) -> None:
    decided, why = resolve_compile(wanted, units, saved, trainings, missing)
    assert decided == compiles
    assert re.search(reason, why)


def test_compilation_has_to_pay_for_the_code_of_each_phase() -> None:
    assert resolve_compile("auto", 32, 20.0, 1, None, phases=1)[0]
    assert resolve_compile("auto", 32, 20.0, 1, None, phases=2) == (
        False,
        "the training is too short: it would save about 20.0 s, and cost 30 s",
    )


def test_threads_share_the_time_that_compilation_saves_on_a_cpu() -> None:
    with threads(1):
        alone = seconds_saved(10**9, CPU)
    with threads(2):
        shared = seconds_saved(10**9, CPU)
    assert (alone, shared) == (pytest.approx(7), pytest.approx(3.5))
    assert seconds_saved(10**12, torch.device("cuda")) == pytest.approx(130)
    assert seconds_saved(10**12, torch.device("meta")) is None


@needs_compiler
def test_a_plan_counts_the_trainings_that_share_the_code() -> None:
    """At the default size, 32 channels and 4 blocks, as the first study trains it: three seeds, one thread."""
    network = srresnet(channels=32, blocks=4)
    settings = dataclasses.replace(SETTINGS, steps=500, batch=16, patch=24)
    with threads(1):
        plans = [plan_for(network, CPU, dataclasses.replace(settings, trainings=count)) for count in (1, 3)]
        twice = plan_for(network, CPU, dataclasses.replace(settings, trainings=3, start="two_step"))
    assert [plan.compiles for plan in plans] == [False, True]
    assert not twice.compiles
    assert "units compiled: it saves about 8 s in each of 3 trainings that share the code" in plans[1].reasons


# --- how signs are convolved ------------------------------------------------------------------------------------------

AVX2 = {"avx2": True}
VNNI = {"avx2": True, "avx512_vnni": True}
AMX = {**VNNI, "amx_bf16": True}


@pytest.mark.parametrize(
    ("wanted", "cpu", "missing", "signs", "reason"),
    [
        ({}, VNNI, {}, "int8", "exact, and this cpu multiplies int8 several times as fast as floats"),
        ({}, {"avx2": True, "avx_vnni": True}, {}, "int8", "several times"),
        ({}, AMX, {}, "int8", "several times"),
        ({"precision": "bf16"}, VNNI, {}, "int8", "several times"),
        ({"precision": "bf16"}, AMX, {}, "float", "AMX"),
        ({"int8": True, "precision": "bf16"}, AMX, {}, "int8", "as requested"),
        ({"int8": False}, VNNI, {}, "float", "as requested"),
        ({"native": True}, VNNI, {}, "native", "as requested"),
        ({}, VNNI, {"int8": "no int8"}, "float", "no int8"),
        ({}, AVX2, {}, "native", "exact, and this cpu has no VNNI, without which one bit is faster than eight"),
        ({}, AVX2, {"native": "no compiler"}, "int8", "faster than floats on a cpu without VNNI too; no compiler"),
        ({}, AVX2, {"native": "no compiler", "int8": "no int8"}, "float", "no compiler; no int8"),
        ({"native": False}, AVX2, {}, "int8", "exact"),
        ({"int8": False}, AVX2, {}, "native", "exact"),
        ({"int8": False, "native": False}, AVX2, {}, "float", "as requested"),
        ({"int8": True}, AVX2, {}, "int8", "as requested"),
        ({"int8": True}, AVX2, {"int8": "no int8"}, "float", "no int8"),
        ({"native": True}, AVX2, {"native": "no compiler"}, "float", "no compiler"),
        ({}, {}, {}, "float", "no AVX2"),
        ({"native": True}, {}, {}, "native", "as requested"),
    ],
)
def test_signs_are_convolved_in_the_way_that_is_known_to_be_fastest(
    wanted: dict[str, Any],
    cpu: dict[str, bool],
    missing: dict[str, str],
    signs: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    settings = dataclasses.replace(SETTINGS, **wanted)
    found, why = resolve_signs(settings, settings.precision, 32, [], missing.get)
    assert found == signs
    assert reason in why


@pytest.mark.parametrize(
    ("wanted", "units", "own_parts", "decision"),
    [
        ({}, 32, ["Ternary"], ("float", "Ternary may return other signs than 1 and -1; train.int8=true if not")),
        ({"int8": True}, 32, ["Ternary"], ("int8", "as requested")),
        ({"int8": True}, 0, [], ("float", "no binary units")),
    ],
)
def test_signs_of_the_users_own_are_convolved_in_floats_unless_int8_is_requested(
    wanted: dict[str, Any], units: int, own_parts: list[str], decision: tuple[str, str]
) -> None:
    settings = dataclasses.replace(SETTINGS, **wanted)
    assert resolve_signs(settings, "fp32", units, own_parts, lambda way: None) == decision


@pytest.mark.parametrize(
    ("precision", "own_parts", "reason"),
    [("bf16", [], "the precision is bf16"), ("fp32", ["Ternary"], "has no zero, and Ternary may return one")],
)
def test_the_native_kernel_takes_two_signs_and_adds_up_in_fp32(
    precision: str, own_parts: list[str], reason: str
) -> None:
    assert reason in str(missing_for_signs("native", precision, own_parts))


def test_a_convolution_is_computed_in_one_way() -> None:
    with pytest.raises(ConfigError, match=r"train\.int8=true train\.native=true: "):
        dataclasses.replace(SETTINGS, int8=True, native=True)


def test_another_device_than_a_cpu_convolves_in_floating_point() -> None:
    gpu = torch.device("cuda")
    assert int8.missing_for_int8(gpu) == "int8 convolutions need a CPU"
    assert plan_for(srresnet(), gpu, dataclasses.replace(SETTINGS, int8=True)).signs == "float"
    network = srresnet().to("meta")
    for way in ("int8", "native"):
        convolve_signs(network, way)
        assert network(torch.empty(1, 3, 4, 4, device="meta")).shape == (1, 3, 8, 8)


def unsupported(signs: Tensor, weight: Tensor) -> Tensor:
    raise NotImplementedError("no such engine\nwith a long explanation")


def wrong(signs: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(signs, weight, padding=1) + 1


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        pytest.param(unsupported, "torch has no int8 convolution for it: no such engine", id="unsupported"),
        pytest.param(wrong, "torch's int8 convolution returns wrong numbers", id="wrong"),
    ],
)
def test_a_torch_that_cannot_or_is_wrong_is_not_used(
    convolution: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8.missing_for_int8.cache_clear()
    monkeypatch.setattr(int8, "sign_conv2d", convolution)
    try:
        assert int8.missing_for_int8(CPU) == reason
    finally:
        int8.missing_for_int8.cache_clear()


# --- the whole plan ---------------------------------------------------------------------------------------------------


def test_a_plan_has_a_line_for_each_decision() -> None:
    plan = plan_for(srresnet(), CPU, dataclasses.replace(SETTINGS, compile=False, int8=False, native=False))
    assert plan.reasons == (
        "precision fp32: as requested",
        "units not compiled: as requested",
        "binary convolutions in floating point: as requested",
    )


def test_a_missing_compiler_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert cpp_compiler() is None
    assert missing_for_compilation(CPU) == "no C++ compiler found (g++, clang++ or CXX)"
    assert not plan_for(srresnet(), CPU, dataclasses.replace(SETTINGS, compile=True)).compiles


@pytest.mark.parametrize(
    ("wanted", "device", "own_parts", "steps", "replays", "reason"),
    [
        ("auto", "cuda", [], 500, True, "many small launches"),
        ("auto", "cuda", [], 5, False, "training is too short"),
        ("auto", "cuda", ["Triangle"], 500, False, "Triangle may change outside of tensors"),
        (True, "cuda", ["Triangle"], 5, True, "as requested"),
        (False, "cuda", [], 500, False, "as requested"),
        (True, "cpu", [], 500, False, "only a CUDA device"),
    ],
)
def test_steps_are_replayed_if_nothing_can_change_outside_of_tensors(
    wanted: bool | str, device: str, own_parts: list[str], steps: int, replays: bool, reason: str
) -> None:
    decided, why = resolve_cuda_graph(wanted, torch.device(device), own_parts, steps)
    assert decided == replays
    assert reason in why


def test_user_classes_are_those_that_are_neither_ours_nor_torchs() -> None:
    assert user_classes(srresnet(unit=UnitSpec(bn="post", act_fn="relu"))) == []
    assert user_classes(srresnet(unit=UnitSpec(surrogate=f"{__name__}.Triangle"))) == ["Triangle"]


@pytest.fixture
def unset_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache is configured, and the home of the user is empty."""
    for variable in CACHES:
        monkeypatch.setenv(variable, "restored afterwards")
        monkeypatch.delenv(variable)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


INSTRUCTIONS = torch.backends.cpu.get_cpu_capability().lower()


def test_a_cache_that_is_set_stays(unset_caches: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    use_cache(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "mine" / "triton")
    assert missing_for_compilation(CPU) is None


def test_the_cache_belongs_to_the_user_alone_whatever_the_umask(unset_caches: None, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        use_cache(tmp_path / "compiled")
    finally:
        os.umask(before)
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    (tmp_path / "compiled").chmod(0o755)
    assert cache.stat().st_mode & 0o777 == cache.parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_of_outputs_that_others_can_write_to_is_in_the_home(unset_caches: None, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    outputs.chmod(0o2775)
    use_cache(outputs / ".cache" / "compiled")
    home = tmp_path / "home" / ".cache" / "bbcu" / "compiled" / INSTRUCTIONS
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home)
    assert missing_for_compilation(CPU) is None


@needs_compiler
@pytest.mark.parametrize("variable", CACHES)
def test_nothing_is_compiled_in_a_cache_that_others_can_write_to(
    variable: str, unset_caches: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted").chmod(0o777)
    monkeypatch.setenv(variable, str(tmp_path / "planted"))
    use_cache(tmp_path / "compiled")
    plan = plan_for(srresnet(), CPU, dataclasses.replace(SETTINGS, compile=True))
    if variable == "TORCHINDUCTOR_CACHE_DIR":
        assert not plan.compiles
        reason = f"TORCHINDUCTOR_CACHE_DIR: other users can write to {tmp_path / 'planted'}"
        assert plan.reasons[1] == f"units not compiled: {reason}"
    else:
        # Only a GPU runs what is there.
        assert plan.compiles


@needs_compiler
def test_nothing_is_compiled_before_a_cache_is_chosen(unset_caches: None) -> None:
    assert not plan_for(srresnet(), CPU, dataclasses.replace(SETTINGS, compile=True)).compiles


@needs_compiler
def test_no_safe_place_for_a_cache_is_a_reason_not_to_compile(unset_caches: None, tmp_path: Path) -> None:
    for folder in (tmp_path / "outputs", tmp_path / "home"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    use_cache(tmp_path / "outputs")
    assert missing_for_compilation(CPU) == f"TORCHINDUCTOR_CACHE_DIR: other users can write to {tmp_path / 'outputs'}"


USE_CACHE = """
import os, pathlib, sys
from bbcu.compiled import use_cache
use_cache(pathlib.Path(sys.argv[1]))
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


def test_machines_with_other_vector_instructions_do_not_share_compiled_code(unset_caches: None, tmp_path: Path) -> None:
    # torch lets the environment lower what the processor can do, before it is imported.
    command = [sys.executable, "-c", USE_CACHE, str(tmp_path)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert process.stdout.strip() == str(tmp_path / str(os.getuid()) / "default")
    use_cache(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / str(os.getuid()) / INSTRUCTIONS)


# --- the same training ------------------------------------------------------------------------------------------------


def gradients(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output in training and the gradient of every parameter."""
    network.zero_grad()
    output = network.train()(x)
    functional.mse_loss(output, drawn(*output.shape, seed=1).to(output.dtype)).backward()
    return output.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


REFERENCE = UnitSpec()
OTHERS = (
    UnitSpec(bn="post", act="after", act_fn="hardtanh", surrogate="ede", weight="irnet"),
    UnitSpec(bn="out", act_fn="maxout", surrogate=f"{__name__}.Triangle", weight="l1mag", threshold=False),
)
CASES = {"units of the reference": (REFERENCE, REFERENCE), "a body with a memory that compiles as one": OTHERS}
"""The levels of a body's two units. Equal ones share their code, so each case is one compilation."""


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A body of one of the cases, and the same one compiled; in double precision, so that both round alike."""
    specs = CASES[name]
    eager = Body(NetworkSpec(2, 4, 1, unit=specs[0], accumulate=specs[0] != specs[1]))
    eager.units[1] = BinaryUnit(UnitShape(4, 4), specs[1])
    eager.units[1].set_memory(eager.memory)
    initialise(eager, 0)
    eager.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = copy.deepcopy(eager)
    compile_units(compiled)
    for body in (eager, compiled):
        for unit in binary_units(body):
            unit.set_progress(0.3)
    return eager, compiled


def batch() -> Tensor:
    """An input that needs a gradient, as that of every unit but a network's first layer does."""
    return drawn(2, 4, 6, 6).double().contiguous(memory_format=torch.channels_last).requires_grad_()


COMPILE = """
import pathlib, sys, torch
from bbcu.compiled import use_cache
use_cache(pathlib.Path(sys.argv[1]))
from tests.bbcu.training import test_acceleration as tests
torch.set_num_threads(1)
tests.gradients(tests.pair(next(iter(tests.CASES)))[1], tests.batch())
"""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What a process has compiled into an empty cache, and what it has written to its log and its temporary folder."""

    cache: Path
    log: str
    temporary: Path


@pytest.fixture(scope="module")
def compilation(tmp_path_factory: pytest.TempPathFactory) -> Compilation:
    """The compilation of the first case where torch cannot even look for a precompiled header, and would fail."""
    folder, temporary = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("temporary")
    (temporary / f"torchinductor_{getpass.getuser()}").write_text("planted")
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    command = [sys.executable, "-c", COMPILE, str(folder)]
    environment |= {"TMPDIR": str(temporary)}
    process = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True)
    (cache,) = folder.glob("*/*")
    return Compilation(cache, process.stderr, temporary)


@pytest.mark.slow
@needs_compiler
def test_torch_neither_reads_nor_writes_the_folder_whose_name_anybody_can_guess(compilation: Compilation) -> None:
    assert "eager" not in compilation.log
    assert list(compilation.cache.rglob("*.so"))
    assert [path.name for path in compilation.temporary.iterdir()] == [f"torchinductor_{getpass.getuser()}"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compiled_training_equals_eager_training(
    name: str, compilation: Compilation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision and the layout of training, so that both round alike.

    A sum of signs times a scale is often zero but for its rounding, and there a PReLU has two slopes to choose from.
    """
    monkeypatch.setenv(CACHES[0], str(compilation.cache))
    eager, compiled = pair(name)
    (output, expected), (other, found) = gradients(eager, batch()), gradients(compiled, batch())
    torch.testing.assert_close(other, output, rtol=1e-10, atol=1e-12)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(
            found[parameter], gradient, rtol=1e-8, atol=1e-12, msg=lambda text, name=parameter: f"{name}: {text}"
        )


@needs_compiler
def test_compiling_leaves_the_state_the_evaluation_and_copies_unchanged() -> None:
    eager = srresnet(unit=UnitSpec(bn="post"))
    compiled = copy.deepcopy(eager)
    compile_units(compiled)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    x = drawn(1, 3, 8, 8)
    assert torch.equal(compiled.eval()(x), eager.eval()(x))
    copied = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(compiled.eval()(x), eager.eval()(x))
    assert not torch.equal(copied.eval()(x), eager.eval()(x))


@needs_compiler
def test_a_unit_that_does_not_compile_stays_eager_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    eager = srresnet(unit=UnitSpec(surrogate=f"{__name__}.Printing"))
    compiled = copy.deepcopy(eager)
    compile_units(compiled)
    with caplog.at_level(logging.WARNING, logger="bbcu.training.acceleration"):
        output, _ = gradients(compiled, drawn(1, 3, 8, 8))
    assert torch.equal(output, gradients(eager, drawn(1, 3, 8, 8))[0])
    assert [record for record in caplog.records if "do not compile" in record.message]


def test_the_stream_of_a_network_in_mixed_precision_starts_in_full() -> None:
    for network in (srresnet(), dncnn()):
        seen: list[torch.dtype] = []
        unit = binary_units(network)[0]
        unit.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            network(drawn(1, 3, 8, 8))
        assert seen == [torch.float32]


def test_mixed_precision_trains() -> None:
    network, x, target = srresnet(align=16.25), drawn(2, 3, 8, 8), drawn(2, 3, 16, 16, seed=1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x)
        loss = functional.l1_loss(output.float(), target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
