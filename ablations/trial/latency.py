"""The latency of a trained network, measured from its checkpoint once its result is written.

So a failure while measuring costs no training, and a trial that finished without a latency gets one in the same way.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ablations.config import Config
from ablations.storage.folder import TrialFolder
from ablations.trial.identity import Trial, network_of, trains
from bbcu.machine import processor

NUMBERS = ("latency_ms", "twin_ms", "latency_ratio", "packed_kb")
"""The keys that ``cost`` gets: milliseconds of the network and of its full-precision twin, their ratio, and kB.

A network of a user's own class has no twin, and perhaps no packed file.
"""


def lacks_latency(result: Mapping[str, Any], config: Config) -> bool:
    """Return whether a latency was asked for that a result lacks; a method that trains nothing has none."""
    return config.measure.latency and trains(config) and "latency" not in result["provenance"]


def measured(trial: Trial, folder: TrialFolder, on_run: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Measure the network in a trial's checkpoint on the CPU; return what ``cost``, ``timing`` and ``provenance`` get.

    ``on_run`` is called before each run. ``missing`` in ``provenance`` says why a network has no twin. Raises
    DamagedFile for a checkpoint that the result was not written with, and DeployError for a network that no engine
    runs rightly.
    """
    import torch

    from bbcu.deploy.latency import measure_cell

    began = time.perf_counter()
    folder.check_checkpoint()
    network = network_of(trial)
    network.load_state_dict(torch.load(folder.checkpoint_path, map_location="cpu", weights_only=True))
    found = measure_cell(network, on_run=on_run)
    height, width = found.size
    how = {"backend": found.backend, "twin": found.twin, "size": f"{width} x {height}", "cpu": processor()}
    return {
        "cost": known({name: getattr(found, name) for name in NUMBERS}),
        "timing": {"measure_s": round(time.perf_counter() - began, 3)},
        "provenance": {"latency": known({**how, "missing": found.missing})},
    }


def known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that are not None, numbers with six decimals."""
    rounded = {name: round(fact, 6) if isinstance(fact, float) else fact for name, fact in facts.items()}
    return {name: fact for name, fact in rounded.items() if fact is not None}
