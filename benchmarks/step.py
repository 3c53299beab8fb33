"""The training step beside its references, in interleaved rounds of one run: ``python -m benchmarks.step``.

    eager    the units written out op by op in fp32, as the released code computes them
    fp_bf16  the full-precision twin in bf16, not compiled
    fp_fast  the twin compiled: what the hardware gives without binarisation
    gemm     the twin's multiply-adds, forward and backward, at the rate of one large bf16 matrix product

``--ways`` compares our own ways to run a step instead, with what each brings: precision, compiled units, on a CPU signs
that are convolved in bytes and, on a GPU, steps that are replayed as a CUDA graph.

A job beside it can slow a step of several threads tenfold; the spread shows it, and such a run is worth nothing.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bbcu.model.int8 import missing_for_int8
from bbcu.model.methods import METHODS
from bbcu.model.networks import NetworkSpec, build
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import (
    CudaGraphStep,
    compile_units,
    deterministic_fp32,
    enable_int8,
    has_bf16,
    plan_for,
    retain_freed_memory,
    side_stream,
)
from bbcu.training.loop import ADAM_BETAS, adam, resolve_device
from bbcu.training.settings import TrainSettings
from benchmarks.references import Twin, WrittenOut, matrix_product_seconds, multiply_adds, rebuilt

BATCH, PATCH, ALIGN = 16, 32, 130.0
WARM_UP = 5
"""Steps before the first that counts; a replayed step is recorded at its fourth."""

NETWORKS: dict[str, tuple[str, NetworkSpec]] = {
    "bbcu-l": ("srresnet", NetworkSpec(2, 64, 16, align=ALIGN)),
    "bbcu-m": ("srresnet", NetworkSpec(2, 64, 16, align=ALIGN, binarize=("body", "up"))),
    "dncnn": ("dncnn", NetworkSpec(1, 64, 9, align=ALIGN)),
}

LEVELS: dict[str, tuple[Any, ...]] = {
    "residual": (True, False, "block"),
    "bn": ("none", "pre", "post", "out"),
    "act": ("inside", "after", "none"),
    "act_fn": ("rprelu", "prelu", "relu", "hardtanh"),
    "threshold": (True, False),
    "surrogate": ("quadratic", "clip", "identity", "ede", "ho"),
    "weight": ("l1", "l1mag", "plain", "irnet"),
}


class Contestant:
    """A network with its optimiser and one fixed batch."""

    def __init__(self, network: nn.Module, scale: int, device: torch.device, *, bf16: bool, channels_last: bool = True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self.call: Callable[[torch.Tensor], torch.Tensor] = self.network
        self.device, self.bf16 = device, bf16
        generator = torch.Generator().manual_seed(0)
        draw = torch.rand(BATCH, 3, PATCH, PATCH, generator=generator)
        self.inputs = draw.to(device).contiguous(memory_format=layout)
        self.targets = torch.rand(BATCH, 3, PATCH * scale, PATCH * scale, generator=generator).to(device)
        self.optimiser = torch.optim.Adam(network.parameters(), 1e-4, betas=ADAM_BETAS)
        self.train: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self._train
        self.rules: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def train_as_we_do(self) -> None:
        """Use our optimiser, and our rules for what cuDNN may do; the references have torch's."""
        self.optimiser = adam(self.network, 1e-4, self.device)
        self.rules = deterministic_fp32

    def replay(self) -> None:
        self.train = CudaGraphStep(self._train)

    def step(self) -> float:
        """Train one step; its milliseconds."""
        start = time.perf_counter()
        with self.rules():
            self.train(self.inputs, self.targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * (time.perf_counter() - start)

    def _train(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            outputs = self.call(inputs)
        loss = F.l1_loss(outputs.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()


def ours(
    network: str,
    spec: NetworkSpec,
    device: torch.device,
    *,
    precision: str = "auto",
    compiled: bool = True,
    int8: bool | str = "auto",
    replayed: bool = True,
) -> Contestant:
    """Our step, by default in the fastest way there is; only a CPU convolves in bytes, only a GPU replays."""
    built = build(network, spec, 0)
    settings = TrainSettings(1, BATCH, PATCH, 1e-4, "constant", precision, compiled, replayed, int8)
    plan = plan_for(built, device, settings)
    if plan.in_bytes:
        enable_int8(built)
    if plan.compiles:
        compile_units(built)
    contestant = Contestant(built, spec.scale, device, bf16=plan.precision == "bf16")
    contestant.train_as_we_do()
    if plan.replays:
        contestant.replay()
    return contestant


def references(network: str, spec: NetworkSpec, device: torch.device) -> dict[str, Contestant]:
    contestants = {
        "eager": Contestant(rebuilt(network, spec, WrittenOut), spec.scale, device, bf16=False, channels_last=False)
    }
    for name in ("fp_bf16", "fp_fast"):
        contestants[name] = Contestant(rebuilt(network, spec, Twin), spec.scale, device, bf16=True)
    fast = contestants["fp_fast"]
    fast.call = torch.compile(fast.network)
    return contestants


def cells() -> dict[str, tuple[str, NetworkSpec]]:
    """BBCU-L with each method's factors, and with each level of each factor of its own."""
    chosen: dict[str, tuple[str, NetworkSpec]] = {}
    factors = list(LEVELS)
    for name, method in METHODS.items():
        levels = method.all_levels
        if levels["binarize"]:
            align = ALIGN if levels["align"] == "auto" else levels["align"]
            unit = UnitSpec(**{factor: levels[factor] for factor in factors})
            chosen[name] = ("srresnet", NetworkSpec(2, 64, 16, unit=unit, align=align, **method.network))
    for factor, levels_of_factor in LEVELS.items():
        for level in levels_of_factor:
            if level != getattr(UnitSpec(), factor):
                unit = UnitSpec(**{factor: level})
                chosen[f"{factor}={level}"] = ("srresnet", NetworkSpec(2, 64, 16, unit=unit, align=ALIGN))
    return chosen


def measured(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum in milliseconds of every contestant, in rounds that take turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    started = {}
    for name, contestant in contestants.items():
        begin = time.perf_counter()
        for _ in range(WARM_UP):
            contestant.step()
        started[name] = time.perf_counter() - begin
    for _ in range(rounds):
        for name, contestant in contestants.items():
            contestant.step()
            times[name] += [contestant.step() for _ in range(steps)]
    return {
        name: {"min": min(each), "median": statistics.median(each), "max": max(each), "start_s": started[name]}
        for name, each in times.items()
    }


def line(name: str, row: dict[str, float], unit: float) -> str:
    return (
        f"{name:22s} {row['median']:8.1f} ms  ({row['min']:.1f} to {row['max']:.1f})  "
        f"x{row['median'] / unit:.2f}  {1e3 / row['median']:.1f} steps/s  start {row['start_s']:.1f} s"
    )


def compare_networks(names: list[str], device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Each network beside its references; ratios of medians."""
    report: dict[str, Any] = {}
    for name in names:
        network, spec = NETWORKS[name]
        contestants = {"ours": ours(network, spec, device), **references(network, spec, device)}
        twin = contestants["fp_fast"]
        operations = 3 * multiply_adds(twin.network, twin.inputs)
        rows = measured(contestants, rounds, steps)
        gemm = 1e3 * min(matrix_product_seconds(operations, device) for _ in range(3))
        mine = rows["ours"]["median"]
        ratios = {
            "eager / ours": rows["eager"]["median"] / mine,
            "ours / fp_fast": mine / rows["fp_fast"]["median"],
            "ours / gemm": mine / gemm,
        }
        print(f"{name}, relative to ours")
        for contestant, row in rows.items():
            print("  " + line(contestant, row, mine))
        print(f"  {'gemm':22s} {gemm:8.1f} ms")
        print("  " + "   ".join(f"{ratio} {value:.2f}" for ratio, value in ratios.items()), flush=True)
        report[name] = {"rows": rows, "gemm_ms": gemm, "ratios": ratios}
    return report


def compare_ways(names: list[str], device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Each network in each of our ways to run a step; ratios to the plainest."""
    precisions = ("fp32", "bf16") if has_bf16(device) else ("fp32",)
    replays = (False, True) if device.type == "cuda" else (False,)
    integers = (False, True) if missing_for_int8(device) is None else (False,)
    report: dict[str, Any] = {}
    for name in names:
        network, spec = NETWORKS[name]
        contestants = {
            ", ".join([precision, *("compiled",) * compiled, *("int8",) * int8, *("replayed",) * replayed]): ours(
                network, spec, device, precision=precision, compiled=compiled, int8=int8, replayed=replayed
            )
            for precision, compiled, int8, replayed in itertools.product(precisions, (False, True), integers, replays)
        }
        rows = measured(contestants, rounds, steps)
        print(f"{name}, our ways, relative to fp32")
        for way, row in rows.items():
            print("  " + line(way, row, rows["fp32"]["median"]))
        report[name] = {"rows": rows}
    return report


def compare_methods(device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Every method and level; ratios to the fastest median."""
    contestants = {name: ours(network, spec, device) for name, (network, spec) in cells().items()}
    rows = measured(contestants, rounds, steps)
    fastest = min(row["median"] for row in rows.values())
    print("methods and levels, relative to the fastest")
    for name, row in rows.items():
        print("  " + line(name, row, fastest))
    return {"rows": rows, "fastest_ms": fastest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which to compare, with commas between them")
    parser.add_argument("--methods", action="store_true", help="compare methods and levels instead of networks")
    parser.add_argument("--ways", action="store_true", help="compare our ways to run a step instead of references")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    arguments = parser.parse_args()
    names = arguments.networks.split(",")
    wrong = [name for name in names if name not in NETWORKS]
    if wrong:
        parser.error(f"--networks: {wrong[0]} is none of {', '.join(NETWORKS)}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    retain_freed_memory()
    device = resolve_device(arguments.device)
    with side_stream(device):
        if arguments.methods:
            report = compare_methods(device, arguments.rounds, arguments.steps)
        else:
            compare = compare_ways if arguments.ways else compare_networks
            report = compare(names, device, arguments.rounds, arguments.steps)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
