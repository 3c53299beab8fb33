"""What a view says about the comparisons of a study with a stopping rule, and how ``status`` reads them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.storage.attempts import State
from ablations.storage.status import StudyStatus

if TYPE_CHECKING:
    from ablations.decide.decisions import Decisions
    from ablations.decide.progress import ComparisonReader, ComparisonStatus


def summary_line(decisions: "Decisions") -> str:
    """Return how much is decided: ``comparisons: 5 decided, 3 open; next look at 6 of 12 seeds``."""
    counts = ", ".join(f"{number} {progress}" for progress, number in decisions.counts.items())
    look = decisions.next_look
    return f"comparisons: {counts}" + (f"; next look at {look} of {decisions.rule.last_look} seeds" if look else "")


def comparison_line(decisions: "Decisions", comparison: "ComparisonStatus") -> str:
    """Return a comparison and its verdicts: ``Without the residual: worse on Set5, Set14 after 4 seeds``.

    Test sets are not named while it is open on all of them.
    """
    sets: dict[tuple[str, int], list[str]] = {}
    for name, found in comparison.on.items():
        sets.setdefault((comparison.outcome(name), found.look), []).append(name)
    verdicts = [f"{what} on {', '.join(names)}{after(look)}" for (what, look), names in sets.items()]
    if comparison.is_open and len(sets) <= 1:
        verdicts = [f"open{after(comparison.look)}"]
    return f"{decisions.title(comparison)}: {'; '.join(verdicts)}"


def closing_line(decisions: "Decisions", comparison: "ComparisonStatus") -> str:
    """Return what a comparison that gets no more seeds has come to: ``decided: Without the residual: worse on ...``."""
    is_decided = comparison.progress == "decided"
    return f"{'decided' if is_decided else 'closed'}: {comparison_line(decisions, comparison)}"


def after(look: int) -> str:
    return f" after {look} seeds" if look else ""


def comparison_records(decisions: "Decisions") -> list[dict[str, Any]]:
    """Return the comparisons as plain data for JSON; a number that is not known becomes None."""
    return [
        {
            "comparison": decisions.title(comparison),
            "task": comparison.task,
            "before": comparison.pair[0],
            "after": comparison.pair[1],
            "progress": str(comparison.progress),
            "seeds": comparison.seeds,
            "test_sets": {
                name: {
                    "progress": str(found.progress),
                    "look": found.look,
                    "verdict": str(found.verdict.outcome),
                    "difference_db": known(found.verdict.estimate.mean),
                    "low_db": known(found.verdict.estimate.low),
                    "high_db": known(found.verdict.estimate.high),
                    "reason": found.verdict.reason,
                }
                for name, found in comparison.on.items()
            },
        }
        for comparison in decisions.comparisons
    ]


def known(number: float) -> float | None:
    return number if math.isfinite(number) else None


class DecisionReader:
    """Reads what a study has decided; repeated reads judge again only if a trial has ended since."""

    def __init__(self, outputs: Path, study: str) -> None:
        self._outputs, self._study = outputs, study
        self._reader: ComparisonReader | None = None
        self._basis: Sequence[object] = ()
        self._decisions: Decisions | None = None

    def of(self, status: StudyStatus) -> "Decisions | None":
        """Return what the study has decided, as of a status that was read just now; None without a stopping rule."""
        if status.rule is None:
            return None
        # They bring scipy along, which takes a second to import, so ``status`` of another study does without.
        from ablations.decide.decisions import Decisions
        from ablations.decide.progress import ComparisonReader

        ended = [trial for trial in status.trials if trial.state in (State.FINISHED, State.FAILED)]
        basis = status.rule, [(trial.folder, trial.state, trial.since) for trial in ended]
        if self._decisions is None or basis != self._basis:
            self._reader = self._reader or ComparisonReader(self._outputs, self._study)
            self._decisions, self._basis = Decisions(status.rule, self._reader.read()), basis
        return self._decisions
