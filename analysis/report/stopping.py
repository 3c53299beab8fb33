"""What a report says of a stopping rule: what it was, when its verdicts fell, and what was spent on them."""

import dataclasses
import functools
from collections.abc import Sequence

import pandas as pd

from ablations.space.stopping_rule import StoppingRule
from ablations.space.study_cells import UNTRAINED
from analysis.effects.family import DECIDED, Conclusion, Measured
from analysis.effects.ruled import RuledFamily
from analysis.report.chapter import Chapter
from analysis.report.markup import Markdown
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.tasks import ENDED


@dataclasses.dataclass(frozen=True)
class Stopping:
    """The stopping rule of a study, and what its tasks have made of it.

    ``trials`` are the planned trials of the study. Trainings count from when the rule was fixed; an untrained baseline
    is none.
    """

    rule: StoppingRule
    trials: pd.DataFrame
    chapters: Sequence[Chapter]

    @functools.cached_property
    def _trained(self) -> pd.DataFrame:
        seeds = self.rule.seeds(self.rule.last_look)
        return self.trials[self.trials["seed"].isin(seeds) & ~self.trials["method"].isin(UNTRAINED)]

    @property
    def spent(self) -> int:
        """How many trainings have ended, with a result or without one."""
        return int(self._trained["state"].isin(ENDED).sum())

    @property
    def fixed(self) -> int:
        """How many trainings the seeds of the last look would be for every cell."""
        return self.rule.last_look * int(self._trained["cell"].nunique())

    @property
    def earlier(self) -> int:
        """How many results are of no seed of the rule: they were there before it was fixed."""
        outside = ~self.trials["seed"].isin(self.rule.seeds(self.rule.last_look))
        return int((outside & (self.trials["state"] == "finished")).sum())

    @functools.cached_property
    def _measured(self) -> list[list[Measured]]:
        """Every comparison of the rule, on each test set of its task."""
        return [
            [chapter.family.measured(name, pair) for name in chapter.results.sets]
            for chapter in self.chapters
            if isinstance(chapter.family, RuledFamily)
            for pair in chapter.family.pairs
        ]

    @property
    def comparisons(self) -> int:
        return len(self._measured)

    @property
    def open(self) -> int:
        """How many comparisons are open on some test set; all are before the first result."""
        return sum(not on or any(each.conclusion is Conclusion.OPEN for each in on) for on in self._measured)

    @property
    def without_result(self) -> int:
        """How many comparisons were closed on some test set because a cell had no result."""
        return sum(any(each.conclusion is Conclusion.NO_RESULT for each in on) for on in self._measured)

    @property
    def lines(self) -> int:
        """How many lines of the opening are about the rule, with those of its conclusions that no other study has."""
        return 6 if self.open or self.without_result else 2

    @property
    def fallen(self) -> Markdown | None:
        """After how many seeds the verdicts fell; None if none has fallen."""
        looks = {each.look for on in self._measured for each in on if each.conclusion in DECIDED}
        ends = sorted(look for look in looks if look is not None)
        return Markdown(" to ".join(map(str, dict.fromkeys((ends[0], ends[-1]))))) if ends else None

    @property
    def looks(self) -> Markdown:
        """The looks in words: ``3, 5, 8 seeds``, or ``every number of seeds from 3 to 8``."""
        words = self.rule.looks_in_words
        return Markdown(f"every number of seeds from {words}" if self.rule.looks_at_every_seed else f"{words} seeds")

    @property
    def options(self) -> str:
        """The options with which the study's command goes on."""
        rule = self.rule
        found = [
            "hydra.sweeper.until=decided",
            f"hydra.sweeper.replicates={rule.first_look}",
            f"hydra.sweeper.most_replicates={rule.last_look}",
        ]
        if not rule.looks_at_every_seed:
            found.append(f"hydra.sweeper.looks=[{','.join(map(str, rule.looks))}]")
        if rule.margin_db != MARGIN_DB:
            found.append(f"hydra.sweeper.margin_db={rule.margin_db:g}")
        return " ".join(found)
