"""Measure the overhead of a trial: its config, folder, lease, snapshots and MLflow run.

    python -m benchmarks.overhead                    # 40 trials one after the other, and 40 by two workers
    python -m benchmarks.overhead --launchers basic --trials 100

A sweep of tiny trials is run. The time from the beginning of a trial to the beginning of the next one of its process is
the whole; ``result.json`` says how much of it training, evaluation and probes took. The rest is the overhead. The first
trial of each process, which imports and warms up, does not count.
"""

import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    LAUNCHERS,
    TINY,
    noise_pictures,
    parse_arguments,
    parser_of,
    print_times,
    run_command,
    write_figures,
)

OWN_WORK = ("train_s", "evaluate_s", "probe_s")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--trials", type=int, default=40, help="of each launcher (%(default)s)")
    options = parse_arguments(parser, arguments)
    figures = {}
    for launcher in options.launchers:
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            pictures = noise_pictures(Path(name) / "pictures")
            sweep = ("-m", "train.steps=50", f"hydra.sweeper.replicates={options.trials}", *LAUNCHERS[launcher])
            run_command([*sweep, *TINY, *pictures], Path(name))
            figures[launcher] = measured(Path(name))
        print(launcher)
        print_times(figures[launcher], "s")
    write_figures(options.json, figures)


def measured(folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each trial, of its own work, and of the rest; drop the first and last of each process."""
    by_process: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for path in folder.glob("outputs/*/*/seed*"):
        (attempt,) = json.loads((path / "state.json").read_text(encoding="utf-8"))["attempts"]
        timing = json.loads((path / "result.json").read_text(encoding="utf-8"))["timing"]
        by_process[attempt["pid"]].append((attempt["began"], sum(timing[part] for part in OWN_WORK)))
    pairs = [pair for trials in by_process.values() for pair in itertools.pairwise(sorted(trials)[1:])]
    whole = [after[0] - before[0] for before, after in pairs]
    own = [before[1] for before, _ in pairs]
    rest = [seconds - spent for seconds, spent in zip(whole, own, strict=True)]
    return {"in all": whole, "own work": own, "overhead": rest}


if __name__ == "__main__":
    main()
