"""The simulated studies: what they promise, and that the page shows what the command finds."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.estimates import seeds_for_difference, seeds_for_equivalence, smallest_sign_flip_p, verdicts
from analysis.statistics.simulation import (
    BEYOND,
    END,
    ERRORS_PER_COVERAGE,
    NOISES,
    SEED_COUNTS,
    SINGLE_PER_ERRORS,
    START,
    STUDIES,
    Family,
    Table,
    family_outcomes,
    main,
    page,
    replaced,
    simulated,
)
from tests.harness.paths import DOCS

PAGE = DOCS / "statistics.md"

NO_EFFECT = "False verdicts without an effect"
AT_THE_MARGIN = "False `equivalent` if every true difference is the margin"

SINGLE_STUDIES = SINGLE_PER_ERRORS * ERRORS_PER_COVERAGE * STUDIES

UNCORRECTED = "20 comparisons, had they not been corrected"


@pytest.fixture(scope="module")
def tables() -> tuple[Table, ...]:
    return simulated(STUDIES)


def named(tables: tuple[Table, ...], title: str) -> Table:
    (found,) = (table for table in tables if table.title == title)
    return found


def surely_above_five_percent(rate: float, studies: int) -> bool:
    """Whether a simulated error rate cannot be the luck of a true 5 %, even among the hundred that are looked at."""
    return bool(stats.binomtest(round(rate * studies), studies, 0.05, alternative="greater").pvalue < 1e-4)


def test_the_page_shows_what_the_command_finds(tables: tuple[Table, ...]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == page(tables, STUDIES), "python -m analysis.statistics.simulation --write docs/statistics.md"


def test_intervals_cover_in_93_to_97_percent_of_2000_studies(tables: tuple[Table, ...]) -> None:
    rows = named(tables, "Coverage of the 95 % intervals").rows
    assert STUDIES == 2000
    assert {(row.what, row.noise) for row in rows} == {
        (what, noise)
        for what in (
            "difference of two cells",
            "main effect",
            "interaction of two factors",
            "Shapley gain in dB",
            "Shapley share of the gain",
        )
        for noise in NOISES
    }
    for row in rows:
        assert len(row.rates) == len(SEED_COUNTS)
        assert all(0.93 <= rate <= 0.97 for rate in row.rates), row


@pytest.mark.parametrize(
    ("title", "rows"),
    [
        pytest.param(NO_EFFECT, 16, id="false better or worse"),
        pytest.param(AT_THE_MARGIN, 9, id="false equivalent"),
        pytest.param("Half-normal plot without an effect", 3, id="half-normal"),
    ],
)
def test_verdicts_err_in_at_most_5_percent(tables: tuple[Table, ...], title: str, rows: int) -> None:
    found = [row for row in named(tables, title).rows if row.what != UNCORRECTED]
    assert len(found) == rows
    for row in found:
        assert not any(surely_above_five_percent(rate, row.studies) for rate in row.rates), row
        assert row.studies >= ERRORS_PER_COVERAGE * STUDIES


def test_a_single_comparison_errs_in_5_percent_to_a_tenth_of_a_point(tables: tuple[Table, ...]) -> None:
    """It is exact under normal noise, so its rate is the one that chance could show above 5 %."""
    for title in (NO_EFFECT, AT_THE_MARGIN):
        rows = [row for row in named(tables, title).rows if row.studies == SINGLE_STUDIES]
        assert len(rows) >= 3
        assert all(round(100 * rate, 1) <= 5.1 for row in rows for rate in row.rates), title


def test_the_simulation_can_see_a_wrong_method(tables: tuple[Table, ...]) -> None:
    """Twenty comparisons without a correction err often, and extreme noise breaks the interval: both must show."""
    (uncorrected,) = (row for row in named(tables, NO_EFFECT).rows if row.what == UNCORRECTED)
    assert all(surely_above_five_percent(rate, uncorrected.studies) and rate > 0.4 for rate in uncorrected.rates)
    extreme = named(tables, "Coverage under extreme noise").rows[0]
    assert (extreme.what, extreme.noise) == ("difference of two cells", "extreme")
    assert min(extreme.rates) < 0.93


def test_an_error_is_an_error_only_where_the_page_says_so(tables: tuple[Table, ...]) -> None:
    """The page warns of up to 10 % for skewed and uneven noise, and of a third of the studies for extreme noise."""
    rows = named(tables, "False verdicts under uneven and skewed noise").rows
    worst = {noise: max(max(row.rates) for row in rows if row.noise == noise) for noise in ("skewed", "extreme")}
    assert 0.05 < worst["skewed"] < 0.105
    assert 0.3 < worst["extreme"] < 0.4


def test_the_verdicts_that_are_simulated_are_those_that_reports_get() -> None:
    drawn = Family(5, "normal", difference=0.03, spread=0.03).drawn(4, studies=25)
    said = family_outcomes(drawn)
    assert set(said.ravel().tolist()) == {"better", "worse", "equivalent", "undecided"} - {"worse"}
    for study, outcomes in zip(drawn.tolist(), said.tolist(), strict=True):
        assert [str(verdict.outcome) for verdict in verdicts(study)] == outcomes


@pytest.mark.parametrize("name", [*NOISES, *BEYOND])
def test_noise_has_mean_0_and_variance_1(name: str) -> None:
    drawn = {**NOISES, **BEYOND}[name](np.random.default_rng(0), (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("uneven", "reference", "others"), [(False, 1.0, 1.0), (True, 0.5, 1.5)])
def test_a_family_has_the_difference_and_spread_that_it_names(uneven: bool, reference: float, others: float) -> None:
    """Differences have variance (reference^2 + others^2) * s^2, of which they share the part of the reference."""
    drawn = Family(2, "normal", difference=0.05, spread=0.02, uneven=uneven).drawn(5, studies=40_000)
    first, second = drawn[:, 0].ravel(), drawn[:, 1].ravel()
    variance = reference**2 + others**2
    assert drawn.shape == (40_000, 2, 5)
    assert first.mean() == pytest.approx(0.05, abs=1e-3)
    assert first.var() == pytest.approx(variance * 0.02**2, rel=0.02)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(reference**2 / variance, abs=0.02)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no marker", id="none"),
        pytest.param(f"{START}\n", id="no end"),
        pytest.param(f"{END}\n{START}\n", id="end first"),
        pytest.param(f"{START}\n{END}\n{START}\n{END}\n", id="twice"),
    ],
)
def test_a_page_without_a_place_for_the_tables_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="the page needs one line"):
        replaced(text, "new")


def test_the_command_writes_the_same_every_time_between_the_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    main(["--studies", "20", "--write", str(path)])
    assert capsys.readouterr().out == ""
    main(["--studies", "20"])
    printed = capsys.readouterr().out.strip()
    assert "20 simulated studies for every coverage and 100 for every error rate" in printed
    assert path.read_text(encoding="utf-8") == f"# Title\n\n{START}\n\n{printed}\n\n{END}\nafter\n"


def test_a_missing_page_and_no_study_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"analysis\.statistics\.simulation: .*absent\.md: .*No such file"):
        main(["--studies", "2", "--write", str(tmp_path / "absent.md")])
    with pytest.raises(SystemExit):
        main(["--studies", "0"])
    assert "--studies takes a number above 0" in capsys.readouterr().err


def test_the_page_says_what_seeds_allow() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for seeds in (2, 3, 4, 5, 6, 8, 10):
        seen, equivalent = (stats.t.ppf(share, seeds - 1) / seeds**0.5 for share in (0.975, 0.95))
        assert f"| {seeds} | {seen:.2f} | {equivalent:.2f} | {smallest_sign_flip_p(seeds):.3g} |\n" in text


def test_the_page_says_how_many_seeds_decide() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for sd in (0.02, 0.04, 0.08, 0.15):
        needed = [seeds_for_difference(sd, effect) for effect in (0.05, 0.1, 0.2, 0.5)]
        needed += [seeds_for_equivalence(sd, 0.05, effect) for effect in (0.0, 0.02)]
        assert f"| {sd:.2f} | {' | '.join(str(seeds) for seeds in needed)} |\n" in text
