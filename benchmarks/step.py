"""Compare the training step with references, in interleaved rounds of one run: ``python -m benchmarks.step``.

    eager    the units written out op by op in fp32, as the released code computes them
    fp       the full-precision twin, in bf16 if the hardware has it, not compiled
    fp_fast  the twin compiled: the speed of the hardware without binarisation
    gemm     the twin's multiply-adds, forward and backward, at the rate of one large matrix product, in bf16 too

``--ways`` compares our own accelerations instead: precision, compiled units, sign convolutions on a CPU, and steps that
are replayed as a CUDA graph on a GPU. ``--methods`` compares every method, every level, the first phase of each start
and each distillation with BBCU. ``--units`` compares every level in two units alone, in fp32: the network around them
is the same for all, and hides what a level costs.

Another busy job can slow a step of several threads tenfold, and that of one only as far as it takes the core; discard
a run with a large spread.
"""

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ablations.space.factors import FACTORS
from bbcu.compiled import use_cache
from bbcu.machine import retain_freed_memory
from bbcu.model.initialisation import initialise
from bbcu.model.methods import METHODS
from bbcu.model.networks import build
from bbcu.model.parts import Body, NetworkSpec, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import (
    CudaGraphStep,
    compile_units,
    convolve_signs,
    deterministic_fp32,
    has_bf16,
    missing_for_signs,
    plan_for,
    side_stream,
)
from bbcu.training.distillation import Distillation, outputs_of
from bbcu.training.loop import ADAM_BETAS, adam, resolve_device
from bbcu.training.settings import TrainSettings
from benchmarks.common import (
    REPOSITORY,
    interleaved,
    milliseconds,
    parse_arguments,
    parser_of,
    print_times,
    write_figures,
)
from benchmarks.references import Twin, WrittenOut, matrix_product_seconds, multiply_adds, rebuilt

BATCH, PATCH, ALIGN = 16, 32, 130.0
WARM_UP = {"cpu": 2, "cuda": 5}
"""Steps before the first that counts; a replayed step is recorded at its fourth."""

NETWORKS: dict[str, tuple[str, NetworkSpec]] = {
    "bbcu-l": ("srresnet", NetworkSpec(2, 64, 16, align=ALIGN)),
    "bbcu-m": ("srresnet", NetworkSpec(2, 64, 16, align=ALIGN, binarize=("body", "up"))),
    "dncnn": ("dncnn", NetworkSpec(1, 64, 9, align=ALIGN)),
}


UNIT_FACTORS = [field.name for field in dataclasses.fields(UnitSpec) if field.name in FACTORS]


SETTINGS = TrainSettings(2, BATCH, PATCH, 1e-4, "constant", "auto", True, True)
"""Two steps, so that a training may start in full precision."""


class Contestant:
    """A network with its optimiser and one fixed batch of pictures with ``channels`` channels."""

    def __init__(
        self,
        network: nn.Module,
        scale: int,
        device: torch.device,
        *,
        bf16: bool,
        channels_last: bool = True,
        channels: int = 3,
        batch: int = BATCH,
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self.call: Callable[[torch.Tensor], torch.Tensor] = self.network
        self.device, self.bf16 = device, bf16
        generator = torch.Generator().manual_seed(0)
        draw = torch.rand(batch, channels, PATCH, PATCH, generator=generator)
        self.inputs = draw.to(device).contiguous(memory_format=layout)
        self.targets = torch.rand(batch, channels, PATCH * scale, PATCH * scale, generator=generator).to(device)
        self.optimiser = torch.optim.Adam(network.parameters(), 1e-4, betas=ADAM_BETAS)
        self.distillation = Distillation(network, None, SETTINGS, device)
        self.train: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self._train
        self.rules: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def use_our_optimiser(self) -> None:
        """Use our optimiser, and our rules for cuDNN; the references have torch's."""
        self.optimiser = adam(self.network, 1e-4, self.device)
        self.rules = deterministic_fp32

    def replay(self) -> None:
        self.train = CudaGraphStep(self._train)

    def step(self) -> None:
        """Train one step and wait for its end."""
        with self.rules():
            self.train(self.inputs, self.targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _train(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.optimiser.zero_grad()
        with self._autocast(), outputs_of(self.distillation.blocks) as blocks:
            outputs = self.call(inputs).float()
        loss = F.l1_loss(outputs, targets)
        of_teacher = self.distillation.loss(inputs, outputs, blocks, self._autocast())
        (loss + self.distillation.factor * of_teacher).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)


def ours(
    network: str,
    spec: NetworkSpec,
    device: torch.device,
    *,
    precision: str = "auto",
    compiled: bool = True,
    signs: str = "auto",
    replayed: bool = True,
    start: str = "scratch",
    distil: str = "none",
) -> Contestant:
    """Return our step in the first phase of a start, by default with every acceleration that the device supports."""
    built = build(network, spec, 0)
    int8, native = ("auto" if signs == "auto" else signs == way for way in ("int8", "native"))
    ways: dict[str, Any] = {"compile": compiled, "cuda_graph": replayed, "int8": int8, "native": native}
    settings = dataclasses.replace(SETTINGS, precision=precision, start=start, distil=distil, **ways)
    teacher = None if distil == "none" else build(network, dataclasses.replace(spec, binarize=()), 1)
    plan, phase = plan_for(built, device, settings), settings.phases[0]
    convolve_signs(built, plan.signs)
    for unit in binary_units(built):
        unit.binary_signs, unit.binary_weights = phase.binary_signs, phase.binary_weights
    contestant = Contestant(built, spec.scale, device, bf16=plan.precision == "bf16")
    contestant.distillation = Distillation(built, teacher, settings, device)
    if plan.compiles:
        compile_units(built, contestant.distillation.blocks)
    contestant.use_our_optimiser()
    if plan.replays:
        contestant.replay()
    return contestant


def two_units(spec: NetworkSpec, device: torch.device, *, compiled: bool, batch: int) -> Contestant:
    """Return the step of two units alone, whose input needs a gradient."""
    body = Body(spec)
    initialise(body, 0)
    if compiled:
        compile_units(body)
    contestant = Contestant(body, 1, device, bf16=False, channels=spec.channels, batch=batch)
    contestant.inputs.requires_grad_()
    contestant.use_our_optimiser()
    return contestant


def references(network: str, spec: NetworkSpec, device: torch.device) -> dict[str, Contestant]:
    bf16 = has_bf16(device)
    contestants = {
        "fp": Contestant(rebuilt(network, spec, Twin), spec.scale, device, bf16=bf16),
        "eager": Contestant(rebuilt(network, spec, WrittenOut), spec.scale, device, bf16=False, channels_last=False),
        "fp_fast": Contestant(rebuilt(network, spec, Twin), spec.scale, device, bf16=bf16),
    }
    fast = contestants["fp_fast"]
    fast.call = torch.compile(fast.network)
    return contestants


def cells() -> dict[str, tuple[str, NetworkSpec]]:
    """BBCU-L with each method's factors, and with each single level that is not the reference."""
    chosen: dict[str, tuple[str, NetworkSpec]] = {}
    for name, method in METHODS.items():
        levels = method.all_levels
        if levels["binarize"]:
            align = ALIGN if levels["align"] == "auto" else levels["align"]
            unit = UnitSpec(**{factor: levels[factor] for factor in UNIT_FACTORS})
            chosen[name] = ("srresnet", NetworkSpec(2, 64, 16, unit=unit, align=align, **method.network))
    for factor in UNIT_FACTORS:
        for level in FACTORS[factor].levels:
            if level != FACTORS[factor].reference:
                changed: dict[str, Any] = {factor: level}
                unit = UnitSpec(**changed)
                chosen[f"{factor}={level}"] = ("srresnet", NetworkSpec(2, 64, 16, unit=unit, align=ALIGN))
    return chosen


def clock_for(device: torch.device) -> Callable[[], float]:
    """Return the clock for steps among themselves: that of the processor, which other jobs do not advance, if it can.

    It counts the work of all threads, and none of a GPU's.
    """
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def measured(
    contestants: dict[str, Contestant],
    rounds: int,
    steps: int,
    reference: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the milliseconds of each contestant's steps; print ratios to the reference, or the first, as they come."""
    first = next(iter(contestants))
    base = reference or first
    warm: dict[str, float] = {}
    for name, contestant in contestants.items():
        print(f"  {name}: ", end="", flush=True)
        begin = time.perf_counter()
        for _ in range(WARM_UP[contestant.device.type]):
            contestant.step()
        started = time.perf_counter() - begin
        warm[name] = milliseconds(contestant.step, clock)
        ratio = f"x{warm[name] / warm[first]:.2f} of {first}"
        print(f"warm after {started:.1f} s, then {warm[name]:.1f} ms a step, {ratio}", flush=True)

    def report(number: int, times: Mapping[str, Sequence[float]]) -> None:
        medians = {name: statistics.median(each) for name, each in times.items()}
        ratios = ", ".join(f"{name} x{median / medians[base]:.2f}" for name, median in medians.items())
        print(f"  round {number} of {rounds}: {ratios}", flush=True)

    return interleaved(
        {name: contestant.step for name, contestant in contestants.items()}, rounds, steps, report, clock
    )


def compare_networks(names: list[str], device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Compare each network with its references by ratios of medians."""
    report: dict[str, Any] = {}
    for name in names:
        network, spec = NETWORKS[name]
        print(name, flush=True)
        # The twin is compiled as a whole, which takes minutes on a slow CPU: it comes last.
        others = references(network, spec, device)
        contestants = {"eager": others.pop("eager"), "ours": ours(network, spec, device), **others}
        twin = contestants["fp_fast"]
        operations = 3 * multiply_adds(twin.network, twin.inputs)
        times = measured(contestants, rounds, steps, "ours")
        times["gemm"] = [1e3 * matrix_product_seconds(operations, device) for _ in range(3)]
        print_times(times, reference="ours")
        medians = {contestant: statistics.median(each) for contestant, each in times.items()}
        ratios = {
            "eager / ours": medians["eager"] / medians["ours"],
            "ours / fp_fast": medians["ours"] / medians["fp_fast"],
            "ours / gemm": medians["ours"] / medians["gemm"],
        }
        print("  " + "   ".join(f"{ratio} {value:.2f}" for ratio, value in ratios.items()), flush=True)
        report[name] = {"ms": times, "ratios": ratios}
    return report


def named(*parts: str) -> str:
    """Return the name of a way that has these parts, without the empty ones."""
    return ", ".join(filter(None, parts))


def compare_ways(names: list[str], device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Compare our accelerations of each network by ratios to none of them."""
    precisions = ("fp32", "bf16") if has_bf16(device) else ("fp32",)
    replays = (False, True) if device.type == "cuda" else (False,)
    ways = ["float", *(way for way in ("int8", "native") if device.type == "cpu" and not missing_for_signs(way))]
    report: dict[str, Any] = {}
    for name in names:
        network, spec = NETWORKS[name]
        print(f"{name}, our ways", flush=True)
        contestants = {
            named(precision, "compiled" * compiled, "" if signs == "float" else signs, "replayed" * replayed): ours(
                network, spec, device, precision=precision, compiled=compiled, signs=signs, replayed=replayed
            )
            for compiled, precision, signs, replayed in itertools.product((False, True), precisions, ways, replays)
            if (precision, signs) != ("bf16", "native")
        }
        report[name] = measured(contestants, rounds, steps)
        print_times(report[name], reference="fp32")
    return report


def compare_methods(device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Compare every method and level by ratios to BBCU."""
    print("methods and levels", flush=True)
    contestants = {name: ours(network, spec, device) for name, (network, spec) in cells().items()}
    network, spec = NETWORKS["bbcu-l"]
    contestants |= {f"start={start}": ours(network, spec, device, start=start) for start in ("full", "two_step")}
    contestants |= {f"distil={kind}": ours(network, spec, device, distil=kind) for kind in ("output", "attention")}
    times = measured(contestants, rounds, steps, clock=clock_for(device))
    print_times(times, reference="bbcu")
    return times


def compare_units(
    device: torch.device, rounds: int, steps: int, *, compiled: bool, channels: int, batch: int
) -> dict[str, Any]:
    """Compare every level in two units alone by ratios to the reference."""
    print(f"two units, {'compiled' if compiled else 'not compiled'}", flush=True)
    specs = {name: spec.unit for name, (_, spec) in cells().items() if name == "bbcu" or name not in METHODS}
    contestants = {
        name: two_units(NetworkSpec(2, channels, 1, unit=unit), device, compiled=compiled, batch=batch)
        for name, unit in specs.items()
    }
    times = measured(contestants, rounds, steps, clock=clock_for(device))
    print_times(times, reference="bbcu")
    return times


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which to compare, with commas between them")
    parser.add_argument("--methods", action="store_true", help="compare methods and levels instead of networks")
    parser.add_argument("--units", action="store_true", help="compare levels in two units alone")
    parser.add_argument("--eager", action="store_true", help="with --units: do not compile them")
    parser.add_argument("--channels", type=int, default=64, help="with --units: their width")
    parser.add_argument("--batch", type=int, default=BATCH, help="with --units: patches in a step")
    parser.add_argument("--ways", action="store_true", help="compare our ways to run a step instead of references")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each in a round")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s); on a busy machine, several are slow")
    parser.add_argument("--device", default="auto")
    options = parse_arguments(parser, None)
    names = options.networks.split(",")
    wrong = [name for name in names if name not in NETWORKS]
    if wrong:
        parser.error(f"--networks: {wrong[0]} is not one of {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    use_cache(REPOSITORY / "outputs" / ".cache" / "compiled")
    torch.manual_seed(0)
    retain_freed_memory()
    device = resolve_device(options.device)
    with side_stream(device):
        if options.units:
            sizes = {"channels": options.channels, "batch": options.batch}
            report = compare_units(device, options.rounds, options.steps, compiled=not options.eager, **sizes)
        elif options.methods:
            report = compare_methods(device, options.rounds, options.steps)
        else:
            compare = compare_ways if options.ways else compare_networks
            report = compare(names, device, options.rounds, options.steps)
    write_figures(options.json, report)


if __name__ == "__main__":
    main()
