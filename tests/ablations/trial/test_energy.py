"""The energy of a training, from counters that a test sets."""

from pathlib import Path

import pytest

from ablations.trial.energy import SECONDS_BETWEEN_LOOKS, EnergyMeter, counters

MOST = 1_000_000_000


class Machine:
    """A folder like the kernel's, with two processors and a part of one, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl-mmio:0"):
            self.count(name, 5_000_000)
            (root / name / "max_energy_range_uj").write_text(f"{MOST}\n")

    def count(self, name: str, microjoules: int) -> None:
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / "energy_uj").write_text(f"{microjoules}\n")

    def meter(self) -> EnergyMeter:
        return EnergyMeter(counters(self.root), clock=lambda: self.now)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_energy_is_the_sum_over_processors_since_the_start_without_their_parts(machine: Machine) -> None:
    meter = machine.meter()
    machine.count("intel-rapl:0", 7_500_000)
    machine.count("intel-rapl:1", 6_000_000)
    machine.count("intel-rapl:0:0", 9_000_000)
    assert meter.joules() == 3.5


def test_a_counter_that_wraps_around_is_corrected(machine: Machine) -> None:
    machine.count("intel-rapl:0", MOST - 1_000_000)
    meter = machine.meter()
    machine.count("intel-rapl:0", 2_000_000)
    assert meter.joules() == 3.0


def test_a_counter_that_wraps_around_twice_is_corrected_by_a_look_in_between(machine: Machine) -> None:
    meter = machine.meter()
    for _ in range(2):
        machine.count("intel-rapl:0", MOST)
        machine.now += SECONDS_BETWEEN_LOOKS
        meter.look()
        machine.count("intel-rapl:0", 5_000_000)
        machine.now += SECONDS_BETWEEN_LOOKS
        meter.look()
    assert meter.joules() == 2 * MOST / 1e6


def test_counters_are_not_read_too_often(machine: Machine) -> None:
    meter = machine.meter()
    (machine.root / "intel-rapl:0" / "energy_uj").unlink()
    machine.now = SECONDS_BETWEEN_LOOKS / 2
    meter.look()
    machine.count("intel-rapl:0", 6_000_000)
    assert meter.joules() == 1.0


def test_a_counter_that_cannot_be_read_ends_only_the_measurement(machine: Machine) -> None:
    meter = machine.meter()
    (machine.root / "intel-rapl:0" / "energy_uj").unlink()
    machine.now = SECONDS_BETWEEN_LOOKS
    meter.look()
    machine.count("intel-rapl:0", 6_000_000)
    assert meter.joules() is None


def test_without_counters_there_is_no_energy(tmp_path: Path) -> None:
    meter = EnergyMeter(counters(tmp_path / "nowhere"))
    meter.look()
    assert meter.joules() is None


def test_unless_all_counters_are_readable_none_is_used(machine: Machine) -> None:
    (machine.root / "intel-rapl:1" / "energy_uj").unlink()
    assert counters(machine.root) == []
