"""How times are taken, summarised and written; what is timed is checked first. No test measures a real time."""

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbcu import machine
from bbcu.deploy import latency, onnx
from bbcu.deploy.__main__ import main
from bbcu.deploy.latency import (
    WAYS,
    Case,
    Contender,
    Latency,
    Ready,
    Spread,
    difference,
    in_short,
    interleaved,
    latency_of,
    measure,
    measure_cell,
    prepare,
    rotated,
    table,
    usual_contenders,
)
from bbcu.deploy.packed import DeployError
from bbcu.model.networks import SRResNet
from tests.harness.builders import srresnet

HEIGHT, WIDTH = 9, 12


def silent(line: str) -> None:
    """Progress that nobody reads."""


class Own(nn.Module):
    """A network of a user's own, which has no twin and no packed file."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(x)
        return out


@pytest.fixture(scope="module")
def network() -> SRResNet:
    """A BBCU-M."""
    return srresnet(channels=32, blocks=1, align=65.0, binarize=("body", "up"))


@pytest.fixture(scope="module")
def case(network: SRResNet) -> Case:
    return Case(network, HEIGHT, WIDTH)


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_each_contender_is_first_and_last_equally_often() -> None:
    orders = [rotated("abc", number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def times(*differences: tuple[int, int]) -> Callable[[], tuple[int, int]]:
    """A clock that stands still between runs, each of which takes so much CPU time and wall time, in ms."""

    def readings() -> Iterator[tuple[int, int]]:
        cpu = wall = 10**9
        for more_cpu, more_wall in differences:
            yield cpu, wall
            cpu, wall = cpu + 10**6 * more_cpu, wall + 10**6 * more_wall
            yield cpu, wall

    return readings().__next__


def test_contenders_take_turns_and_each_time_belongs_to_its_contender() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    rounds = []
    samples = interleaved(
        runs,
        3,
        before=lambda: order.append("-"),
        after_round=lambda number, so_far: rounds.append((number, len(so_far["b"]))),
        now=times((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12)),
    )
    assert "".join(order) == "-a-b-b-a-a-b"
    assert samples == {"a": [(1, 2), (7, 8), (9, 10)], "b": [(3, 4), (5, 6), (11, 12)]}
    assert rounds == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_run_is_timed(enabled: bool) -> None:
    seen = []
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        interleaved({"a": lambda: seen.append(gc.isenabled())}, 2)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False, False]


# --- what the times mean ----------------------------------------------------------------------------------------------


def ready(*names: str) -> dict[str, Ready]:
    identity = nn.Identity()
    return {name: Ready(Contender(identity, f"engine of {name}", identity), 0.25, 0.0) for name in names}


SAMPLES = {
    "twin": [(100.0, 110.0), (80.0, 90.0), (300.0, 400.0)],
    "native": [(10.0, 11.0), (20.0, 44.0), (9.0, 10.0)],
}


def summary(threads: int = 1, missing: dict[str, str] | None = None, **changed: Any) -> Latency:
    samples = {**SAMPLES, **changed}
    return latency_of(samples, ready(*samples), missing or {}, size=(180, 320), threads=threads)


def test_one_thread_is_compared_by_the_medians_of_cpu_time() -> None:
    found = summary()
    assert found.contenders["native"].cpu_ms == Spread(min=9.0, median=10.0, max=20.0)
    assert found.contenders["native"].wall_ms == Spread(min=10.0, median=11.0, max=44.0)
    assert found.by == "cpu_ms"
    assert found.contenders["native"].ratio_to_twin == 10.0 / 100.0
    assert found.contenders["twin"].ratio_to_twin == 1.0


def test_several_threads_are_compared_by_the_medians_of_wall_time() -> None:
    found = summary(threads=2)
    assert found.by == "wall_ms"
    assert found.contenders["native"].ratio_to_twin == 11.0 / 110.0


def test_without_a_twin_there_is_no_ratio() -> None:
    found = latency_of({"native": SAMPLES["native"]}, ready("native"), {"twin": "why"}, size=(180, 320), threads=1)
    assert found.contenders["native"].ratio_to_twin is None
    assert found.missing == {"twin": "why"}
    assert in_short(found) == "native 10.0 ms"


def test_a_machine_is_busy_if_one_thread_waits_for_the_processor() -> None:
    assert not summary().busy
    waited = [(10.0, 12.1), (10.0, 13.0), (10.0, 12.5)]
    assert summary(torch=waited).busy
    assert not summary(threads=2, torch=waited).busy


def test_a_table_says_what_is_compared_and_what_is_missing() -> None:
    lines = table(summary(missing={"openvino": "not installed"}), 3)
    assert lines[0] == "320 x 180 pixels, 1 thread: medians of 3 rounds; speed: times as fast as the twin, by CPU time"
    row = "native engine of native 10.0 (9.0 to 20.0) 11.0 (10.0 to 44.0) 10.00"
    assert lines[3].split() == row.split()
    assert lines[4:] == ["  openvino: not measured: not installed"]
    assert "2 threads" in table(summary(threads=2), 3)[0]
    assert "by wall time" in table(summary(threads=2), 3)[0]
    assert "busy" in table(summary(torch=[(10.0, 13.0)]), 3)[-1]


# --- what is timed is right -------------------------------------------------------------------------------------------


def test_a_difference_is_relative_to_what_the_layers_add() -> None:
    skip, added = torch.full((1, 1, 2, 2), 100.0), torch.tensor([[[[3.0, -3.0], [3.0, -3.0]]]])
    error = torch.tensor([[[[0.3, 0.3], [0.3, -0.3]]]])
    assert difference(skip + added + error, skip + added, skip) == pytest.approx(0.1, rel=1e-4)


def test_the_rounding_of_layers_that_add_next_to_nothing_is_no_difference() -> None:
    """The twin of a network x4 adds 3e-5 with its initial values, and rounds by 1e-7."""
    skip, error = torch.rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), 1e-7)
    assert difference(skip + 3e-5 + error, skip + 3e-5, skip) < 1e-3
    assert difference(skip + 3e-5 + 20 * error, skip + 3e-5, skip) > 1e-3


def changed(by: float, *, is_exact: bool) -> latency.Way:
    """A contender whose output is the network's, with so much of what the layers add added once more."""

    def way(case: Case) -> Contender:
        expected, skip = case.expected(case.network)
        return Contender(lambda x: expected + by * (expected - skip), "a test", case.network, is_exact)

    return way


@pytest.mark.parametrize(
    ("by", "is_exact", "message"),
    [
        (1e-6, True, r"wrong: [0-9,]+ of 1,296 values are not those of the float network"),
        (0.06, False, r"wrong: its output differs from the float network's by 0.06; at most 0.05 may be"),
        (float("nan"), False, "wrong: its output differs from the float network's by nan"),
    ],
)
def test_a_wrong_output_is_refused(case: Case, by: float, is_exact: bool, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        prepare(case, {"wrong": changed(by, is_exact=is_exact)}, silent)


def test_an_output_of_another_size_is_refused(case: Case) -> None:
    way = lambda case: Contender(lambda x: x, "a test", case.network)  # noqa: E731
    with pytest.raises(DeployError, match=r"wrong: its output is \(1, 3, 9, 12\), not \(1, 3, 18, 24\)"):
        prepare(case, {"wrong": way}, silent)


def test_full_precision_may_differ_by_rounding_only() -> None:
    full = Case(srresnet(binarize=()), HEIGHT, WIDTH)
    assert prepare(full, {"near": changed(1e-5, is_exact=False)}, silent)[0]["near"].difference < 1e-4
    with pytest.raises(DeployError, match=r"at most 0\.001 may be"):
        prepare(full, {"far": changed(0.01, is_exact=False)}, silent)


def test_a_contender_that_cannot_run_is_missing_with_its_reason(case: Case) -> None:
    def fails(case: Case) -> Contender:
        raise RuntimeError("no such engine\nand much more")

    def fails_later(case: Case) -> Contender:
        return Contender(fails, "a test", case.network)  # type: ignore[arg-type]

    lines: list[str] = []
    ready, missing = prepare(case, {"a": fails, "b": fails_later, "torch": WAYS["torch"]}, lines.append)
    assert missing == {"a": "no such engine", "b": "no such engine"}
    assert list(ready) == ["torch"]
    assert "a: not measured: no such engine" in lines


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CXX", "no-such-compiler", "no C++ compiler found"),
        ("TORCHINDUCTOR_CACHE_DIR", "/no/such/folder", "TORCHINDUCTOR_CACHE_DIR: /no/such/folder: No such file"),
    ],
)
def test_nothing_is_compiled_without_a_compiler_or_a_folder_of_ones_own(
    case: Case, variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable != "CXX":
        monkeypatch.setenv("CXX", "sh")
    monkeypatch.setenv(variable, value)
    ready, missing = prepare(case, {"torch_compiled": WAYS["torch_compiled"]}, silent)
    assert not ready
    assert missing["torch_compiled"].startswith(reason)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_a_network_is_measured_with_the_number_of_threads_that_torch_has(network: SRResNet) -> None:
    found = measure(network, size=(HEIGHT, WIDTH), contenders=("twin_torch", "torch", "native"), repeats=2)
    assert (found.width, found.height, found.threads) == (WIDTH, HEIGHT, torch.get_num_threads())
    assert found.missing.keys() <= {"native"}
    timing = found.contenders["torch"]
    assert 0 < timing.cpu_ms.min <= timing.cpu_ms.median <= timing.cpu_ms.max
    assert 0 < timing.wall_ms.min <= timing.wall_ms.median <= timing.wall_ms.max


def test_without_binary_units_the_network_runs_in_the_engine_of_its_twin(network: SRResNet) -> None:
    full = srresnet(binarize=())
    assert "onnxruntime" in usual_contenders(full)
    assert "onnxruntime" not in usual_contenders(network)
    found = measure(full, size=(HEIGHT, WIDTH), contenders=("torch", "native", "openvino"), repeats=1)
    reason = "the network has no binary units"
    assert found.missing == {"native": reason, "openvino": reason}


def test_every_engine_that_is_installed_agrees_with_torch(case: Case) -> None:
    names = [name for name in usual_contenders(case.network) if name != "torch_compiled"]
    ready, missing = prepare(case, {name: WAYS[name] for name in names}, silent)
    assert ready.keys() | missing.keys() == set(names)
    assert all(each.difference < 0.01 for each in ready.values())


FLOAT_ENGINE = "torch" if onnx.missing() else "onnxruntime"


def test_a_cell_is_compared_with_its_twin(network: SRResNet) -> None:
    before, calls = torch.get_num_threads(), []
    found = measure_cell(network, size=(HEIGHT, WIDTH), repeats=2, on_run=lambda: calls.append(1))
    assert torch.get_num_threads() == before
    assert found.twin_ms is not None
    assert found.latency_ratio == found.latency_ms / found.twin_ms
    assert found.size == (HEIGHT, WIDTH)
    assert found.missing is None
    assert found.twin == FLOAT_ENGINE
    assert found.backend in ("native", "torch")
    # Once before each of the two is prepared, and once before each of their two runs.
    assert len(calls) >= 6
    assert found.packed_kb is not None
    weights = sum(parameter.numel() for parameter in network.parameters()) / 1000
    # A bit to four bytes a weight; the header takes a few thousand bytes.
    assert weights / 8 < found.packed_kb < 4 * weights


def test_a_network_of_the_users_own_has_no_twin_unless_one_is_given() -> None:
    found = measure_cell(Own(), size=(HEIGHT, WIDTH), repeats=1)
    assert (found.twin_ms, found.latency_ratio, found.packed_kb, found.twin) == (None, None, None, None)
    assert (found.latency_ms > 0, found.backend) == (True, FLOAT_ENGINE)
    assert found.missing is not None
    assert "Own is a network of your own" in found.missing
    given = Own()
    assert torch.equal(Case(Own(), HEIGHT, WIDTH, given).twin.convolution.weight, given.convolution.weight)


# --- the command ------------------------------------------------------------------------------------------------------

TINY = ("time", "bbcu", "channels=8", "blocks=1", "--size", f"{WIDTH}x{HEIGHT}", "--threads", "1", "--repeats", "2")


def test_the_json_file_has_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    assert main([*TINY, "--contenders", "twin,torch,openvino", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert (document["format"], document["version"]) == ("bbcu-latency", 1)
    assert document["cell"] == "bbcu channels=8 blocks=1"
    assert document["cpu"]["name"] == machine.processor()
    assert document["packages"].keys() == {"torch", "onnxruntime", "openvino"}
    (one,) = document["measurements"]
    assert (one["width"], one["height"], one["threads"], one["by"]) == (WIDTH, HEIGHT, 1, "cpu_ms")
    assert one["contenders"].keys() | one["missing"].keys() == {"twin", "torch", "openvino"}
    for timing in one["contenders"].values():
        assert timing["cpu_ms"].keys() == timing["wall_ms"].keys() == {"min", "median", "max"}
        assert timing["ratio_to_twin"] == timing["cpu_ms"]["median"] / one["contenders"]["twin"]["cpu_ms"]["median"]
    printed = capsys.readouterr()
    assert "12 x 9 pixels, 1 thread: medians of 2 rounds" in printed.out
    assert "round 1 of 2: " in printed.err


def test_every_size_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--contenders", "torch", "--size", "10x8"]) == 0
    printed = capsys.readouterr().out
    assert "12 x 9 pixels" in printed
    assert "10 x 8 pixels" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0x5"], "'0x5' must be WIDTHxHEIGHT, as 320x180, each from 1 to 4096"),
        (["--size", "320"], "'320' must be WIDTHxHEIGHT, as 320x180, each from 1 to 4096"),
        (["--threads", "1,9999"], "'9999' must be a number from 1 to"),
        (["--threads", ""], "'' must be a number from 1 to"),
        (["--contenders", "nativ"], "unknown contender 'nativ' (did you mean native?)"),
        (["--repeats", "0"], "'0' must be a whole number above 0"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["time", "bbcu", *arguments])
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_folder_is_no_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"bbcu.deploy: --json {tmp_path}: a folder\n"


def test_threads_are_counted_once() -> None:
    cores = machine.cores()
    assert latency.threads_in("1,all,1") == tuple(dict.fromkeys((1, cores)))
    with pytest.raises(argparse.ArgumentTypeError):
        latency.threads_in("none")
