"""The simulated studies: what they promise, and that the page shows what the command finds."""

import csv
import functools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.estimates import (
    combination,
    detectable_errors,
    seeds_for_difference,
    seeds_for_equivalence,
    verdicts,
)
from analysis.statistics.expectation import normal
from analysis.statistics.simulation import (
    BEYOND,
    COMPONENTS,
    CONTRASTS,
    CORRELATIONS,
    END,
    EVERY,
    FAMILIES,
    MANY,
    METHODS,
    NOISES,
    SEED_COUNTS,
    SEEN_DB,
    SPREADS,
    START,
    STUDIES,
    Conditions,
    Family,
    as_seen,
    covering,
    family_outcomes,
    half_normals,
    is_different,
    levels_of_looks,
    main,
    published_levels,
    replaced,
    simulated,
    to_reference,
    uneven,
)
from tests.harness.paths import DOCS

PAGE = DOCS / "statistics.md"

COVERAGE = "Coverage of the 95 % intervals"
NO_EFFECT = "False verdicts without an effect"
OTHER_METHODS = "The same by other methods"
HARD = "False verdicts where all ablated cells spread three times as much as the reference"
AT_THE_MARGIN = "False `equivalent` if every true difference is the margin"
POWER = "Power of Welch's test beside the paired one"
HALF_NORMAL = "Half-normal plot without an effect"

PUBLISHED = "One level for all looks, as others give it"
NO_EFFECT_BY_RULE = "False `better` or `worse` by the rule"
AT_THE_MARGIN_BY_RULE = "False `equivalent` by the rule if every true difference is the margin"
HARD_BY_RULE = (
    "False `better` or `worse` by the rule where all ablated cells spread three times as much as the reference"
)
COVERAGE_BY_RULE = "Coverage of the repeated 95 % intervals at the look of the verdict"
POWER_BY_RULE = "Power of the rule beside a fixed plan with 12 seeds"
EXCESS_BY_RULE = "By how much an estimate exceeds the truth at the look of its verdict"
TRAININGS_BY_RULE = "Trainings for the effects and spreads of `components`"

Rates = dict[tuple[str, ...], list[list[float]]]


@functools.cache
def shown() -> dict[str, Rates]:
    """The tables of the page in per cent, by title and the labels of a row."""
    text = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    return {section.split("\n", 1)[0]: rates_of(section) for section in text.split("### ")[1:]}


def rates_of(section: str) -> Rates:
    header, *body = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    labels = body[0].count("---")
    assert len(header) == len(body[0])
    return {
        tuple(line[:labels]): [[float(rate) for rate in column.split(" to ")] for column in line[labels:]]
        for line in body[1:]
    }


def highest(table: Rates, *labels: str) -> float:
    """The highest rate in the rows with these labels."""
    found = [columns for row, columns in table.items() if set(labels) <= set(row)]
    assert found
    return max(rate for columns in found for rates in columns for rate in rates)


def test_the_page_shows_what_the_command_finds() -> None:
    """A part that is computed fast; the rest comes from the same functions and the same seed."""
    command = "python -m analysis.statistics.simulation --write docs/statistics.md"
    page = PAGE.read_text(encoding="utf-8")
    assert all(make(STUDIES).text in page for make in (half_normals, levels_of_looks, published_levels)), command
    conditions = Conditions(NOISES["normal"], as_seen)
    scores = conditions.drawn(2, seeds=3, studies=STUDIES)
    lowest, upper = shown()[COVERAGE]["difference of two cells", "as seen", "0"][1]
    assert lowest <= round(100 * covering((-1.0, 1.0), scores), 1) <= upper, command
    (by_rule,) = Family(1, conditions).share(STUDIES, is_different, 0.0, EVERY)
    assert shown()[NO_EFFECT_BY_RULE]["1 comparison", "as seen", "Welch, r = 0"][0] == [round(100 * by_rule, 1)], (
        command
    )


def test_the_page_has_every_table_and_row() -> None:
    tables = {table.title: {row.labels for row in table.rows} for table in simulated(studies=20)}
    assert tables == {title: set(rows) for title, rows in shown().items()}
    assert f"{STUDIES:,} studies for every number" in PAGE.read_text(encoding="utf-8")
    assert len(tables[COVERAGE]) == len(CONTRASTS) * len(SPREADS) * len(CORRELATIONS)
    assert len(tables[NO_EFFECT]) == len(FAMILIES) * len(SPREADS) * len(CORRELATIONS)
    assert len(tables[NO_EFFECT_BY_RULE]) == len(tables[AT_THE_MARGIN_BY_RULE]) == len(MANY) * 2 * len(METHODS)


def test_intervals_cover_in_93_percent_or_more() -> None:
    assert min(min(rates) for columns in shown()[COVERAGE].values() for rates in columns) >= 93


def test_intervals_are_not_too_wide_for_spreads_as_seen_and_seeds_that_share_nothing() -> None:
    rows = [columns for labels, columns in shown()[COVERAGE].items() if labels[1:] == ("as seen", "0")]
    assert len(rows) == len(CONTRASTS)
    assert max(max(rates) for columns in rows for rates in columns) <= 97


def test_verdicts_err_in_at_most_5_percent_for_symmetric_noise() -> None:
    """With 20,000 studies a rate of 5 % comes out within 0.4 points."""
    for columns in shown()[NO_EFFECT].values():
        assert all(rate <= 5.4 for rates in columns[: len(SEED_COUNTS)] for rate in rates)
    assert highest(shown()[AT_THE_MARGIN]) <= 5.4
    assert highest(shown()[HALF_NORMAL]) <= 5.0


def test_the_page_says_how_often_verdicts_err_at_most_where_noise_is_skewed() -> None:
    skewed = max(rate for columns in shown()[NO_EFFECT].values() for rates in columns[-4:] for rate in rates)
    said = f"at most {skewed:.1f} % under skewed noise with spreads as seen"
    assert said in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_the_page_says_how_often_verdicts_err_where_they_err_too_often() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    normal_, skewed, extreme = (highest(shown()[HARD], noise) for noise in ("normal", "skewed", "extreme"))
    assert f"up to {normal_:.0f} % for normal noise, {skewed:.0f} % for skewed and {extreme:.0f} % for extreme" in text


def test_the_simulation_can_see_a_wrong_method() -> None:
    for method in ("without a correction", "with one pooled variance"):
        assert min(rate for rates in shown()[OTHER_METHODS][(method,)] for rate in rates) > 15


def test_pairing_loses_power_where_seeds_share_nothing_and_gains_where_they_share_most() -> None:
    for welch, _, correlated, paired, _, paired_correlated in shown()[POWER].values():
        if welch[0] < 99 and welch[0] > 15:
            assert welch[0] > paired[0]
        assert paired_correlated[0] >= correlated[0]


def test_the_verdicts_that_are_simulated_are_those_that_reports_get() -> None:
    scores = Conditions(normal).drawn(6, seeds=4, studies=25)
    scores = 0.3 * scores + np.linspace(0, 0.1, 6)[:, None]
    said = family_outcomes(to_reference(scores))
    assert set(said.ravel().tolist()) == {"better", "equivalent", "undecided"}
    for study, outcomes in zip(scores.tolist(), said.tolist(), strict=True):
        cells = {str(cell): dict(enumerate(values)) for cell, values in enumerate(study)}
        found = [combination({str(cell): 1.0, "0": -1.0}, cells) for cell in range(1, 6)]
        assert [str(verdict.outcome) for verdict in verdicts(found)] == outcomes


def test_the_power_of_the_page_is_that_of_the_noncentral_t() -> None:
    """Of the paired test without correlation: differences spread by s * sqrt(2)."""
    for (seeds, effect, comparisons), columns in shown()[POWER].items():
        n, shift = int(seeds), float(effect.split()[0]) * (int(seeds) / 2) ** 0.5
        critical = stats.t.isf(0.025 / int(comparisons), n - 1)
        assert columns[3][0] == pytest.approx(100 * stats.nct.sf(critical, n - 1, shift), abs=1.5)


# --- studies with a stopping rule -------------------------------------------------------------------------------------


def said(sentence: str) -> bool:
    return sentence in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_the_exact_law_comes_to_the_constants_of_others() -> None:
    assert all(rates == [pytest.approx([5.0], abs=0.11)] for rates in shown()[PUBLISHED].values())


def test_verdicts_by_the_rule_err_in_at_most_5_percent_for_normal_noise() -> None:
    """With 20,000 studies a rate of 5 % comes out within 0.4 points."""
    for title in (NO_EFFECT_BY_RULE, AT_THE_MARGIN_BY_RULE):
        assert max(columns[0][0] for columns in shown()[title].values()) <= 5.4


def test_verdicts_by_the_rule_err_in_at_most_6_percent_for_other_noise_but_where_the_page_says() -> None:
    beyond = {}
    for title in (NO_EFFECT_BY_RULE, AT_THE_MARGIN_BY_RULE):
        for labels, columns in shown()[title].items():
            if (rate := max(rate for rates in columns for rate in rates)) > 6:
                beyond[labels] = rate
    ((labels, rate),) = beyond.items()
    assert labels == ("20 comparisons", "as seen", "Welch, r = 0")
    assert said(f"in {rate:.1f} % of the families of twenty comparisons under skewed noise with spreads as seen")


def test_the_page_says_how_often_the_rule_errs_where_spreads_are_uneven() -> None:
    normal_, skewed, extreme = (
        max(columns[0][0] for labels, columns in shown()[HARD_BY_RULE].items() if noise in labels)
        for noise in ("normal", "skewed", "extreme")
    )
    assert said(f"by the rule up to {normal_:.0f}, {skewed:.0f} and {extreme:.0f} %")


def test_repeated_intervals_cover_in_94_percent_or_more() -> None:
    assert min(min(rates) for columns in shown()[COVERAGE_BY_RULE].values() for rates in columns) >= 94


def test_the_rule_loses_at_most_2_points_of_power() -> None:
    columns = list(zip(*shown()[POWER_BY_RULE].values(), strict=True))
    welch, few, paired = (max(rate for (rate,) in columns[place]) for place in (2, 3, 6))
    assert max(welch, few, paired) <= 2
    assert said(f"at most {welch:.1f} points of power beside 12 seeds for every cell, paired at most {paired:.1f}")
    assert said(f"with looks at 3, 5, 8 and 12 at most {few:.1f}")


def test_the_page_says_how_far_an_estimate_exceeds_the_truth_at_its_look() -> None:
    every, *_ = zip(*shown()[EXCESS_BY_RULE].values(), strict=True)
    assert said(f"by at most {max(rate for (rate,) in every):.0f} % of the standard deviation of a cell")


def test_components_takes_at_most_60_percent_of_the_trainings_as_a_whole() -> None:
    shares = {labels: columns[0][0] for labels, columns in shown()[TRAININGS_BY_RULE].items() if "every seed" in labels}
    whole, alone = shares.values()
    assert whole <= 60
    assert said(f"{whole:.0f} % of the trainings of the fixed plan, and one at a time {alone:.0f} %")


def test_effects_and_spreads_are_those_of_a_study_of_39_cells() -> None:
    """The file has the cells of ``study=components`` at the default budget, each under three seeds."""
    with Path(__file__).with_name("spreads.csv").open(encoding="utf-8", newline="") as file:
        cells = [(float(row["psnr_mean_db"]), float(row["psnr_sd_db"])) for row in csv.DictReader(file)]
    assert {(round(mean, 3), round(spread, 3)) for mean, spread in cells} >= set(COMPONENTS.values())
    spreads = sorted(round(spread, 3) for _, spread in cells)
    assert len(spreads) == 39
    assert sorted({*spreads[::4], spreads[-1]}) == list(SEEN_DB)


# --- the scores of simulated studies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BEYOND)
def test_noise_has_mean_0_and_variance_1(name: str) -> None:
    drawn = BEYOND[name](np.random.default_rng(0), (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_scores_have_the_spread_and_correlation_that_they_name(correlation: float) -> None:
    drawn = Conditions(normal, uneven, correlation).drawn(2, seeds=2, studies=40_000)
    first, second = drawn[:, 0].ravel(), drawn[:, 1].ravel()
    assert (first.std(), second.std()) == pytest.approx((0.05, 0.15), rel=0.02)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(correlation, abs=0.02)


def test_spreads_as_seen_are_drawn_from_these() -> None:
    assert set(as_seen(np.random.default_rng(0), (100, 2)).ravel().tolist()) == set(SEEN_DB)


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
    assert "20 studies for every number" in printed
    assert path.read_text(encoding="utf-8") == f"# Title\n\n{START}\n\n{printed}\n\n{END}\nafter\n"


def test_a_missing_page_and_no_study_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"analysis\.statistics\.simulation: .*absent\.md: .*No such file"):
        main(["--studies", "2", "--write", str(tmp_path / "absent.md")])
    with pytest.raises(SystemExit):
        main(["--studies", "0"])
    assert "--studies takes a number above 0" in capsys.readouterr().err


def test_the_page_says_what_seeds_can_show() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for seeds in (2, 3, 4, 5, 6, 8, 10):
        error, freedom = (2 / seeds) ** 0.5, 2 * (seeds - 1)
        reaches = [stats.t.ppf(share, freedom) for share in (0.975, 0.95)]
        reaches += [detectable_errors(freedom, alpha) for alpha in (0.05, 0.05 / 20)]
        assert f"| {seeds} | {' | '.join(f'{error * reach:.2f}' for reach in reaches)} |\n" in text


def test_the_page_says_how_many_seeds_to_plan() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for sd in (0.02, 0.04, 0.08, 0.15):
        needed = [seeds_for_difference(sd, effect) for effect in (0.05, 0.1, 0.2, 0.5)]
        needed += [seeds_for_equivalence(sd, 0.05, effect) for effect in (0.0, 0.02)]
        assert f"| {sd:.2f} | {' | '.join(str(seeds) for seeds in needed)} |\n" in text
