"""What the factors of a design do: checked against textbooks, brute force and least squares."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.estimates import IncompleteDataError, combination
from analysis.statistics.factorial import (
    Cell,
    Factors,
    Responses,
    coefficient,
    fitted_weights,
    half_normal,
    lenth,
    terms,
    weights,
)

TWO = {"residual": ("true", "false"), "bn": ("none", "post")}
MIXED = {"residual": ("true", "false"), "bn": ("none", "pre", "post"), "threshold": ("true", "false")}

PILOT_PLANT = {
    ("160", "20", "A"): 60.0,
    ("180", "20", "A"): 72.0,
    ("160", "40", "A"): 54.0,
    ("180", "40", "A"): 68.0,
    ("160", "20", "B"): 52.0,
    ("180", "20", "B"): 83.0,
    ("160", "40", "B"): 45.0,
    ("180", "40", "B"): 80.0,
}
"""The yields of Box, Hunter and Hunter's pilot plant: temperature, concentration and catalyst."""

PLANT = {"temperature": ("160", "180"), "concentration": ("20", "40"), "catalyst": ("A", "B")}


def of_one_seed(factors: Factors, values: Mapping[Cell, float]) -> Responses:
    return Responses(factors, {cell: {0: value} for cell, value in values.items()})


def grid(factors: Factors, *without: Cell) -> dict[str, Cell]:
    """The cells of a design by a key, but for those that are missing."""
    return {" ".join(cell): cell for cell in itertools.product(*factors.values()) if cell not in without}


def by_least_squares(factors: Factors, cells: Mapping[str, Cell], scores: list[float], order: int) -> dict[str, float]:
    """The effects from numpy's least squares with sum-to-zero columns, by predicting the whole grid."""

    def row(cell: Cell) -> list[float]:
        blocks = []
        for level, levels in zip(cell, factors.values(), strict=True):
            place = levels.index(level)
            last = place == len(levels) - 1
            blocks.append([-1.0 if last else float(place == index) for index in range(len(levels) - 1)])
        columns = [1.0]
        for size in range(1, order + 1):
            for chosen in itertools.combinations(blocks, size):
                columns += [math.prod(parts) for parts in itertools.product(*chosen)]
        return columns

    solution = np.linalg.lstsq(np.array([row(cell) for cell in cells.values()]), np.array(scores))[0]
    predicted = np.array([row(cell) for cell in itertools.product(*factors.values())]) @ solution
    return {str(term): float(weights(factors, term) @ predicted) for term in terms(factors, order)}


class TestFittedWeights:
    def test_by_hand(self) -> None:
        """On all cells of two factors they are averages over the other factor, and the difference of differences."""
        got = fitted_weights(TWO, grid(TWO))
        assert got.refused == ()
        assert {str(term): found for term, found in got.weights.items()} == {
            "residual=false": pytest.approx(
                {"true none": -0.5, "true post": -0.5, "false none": 0.5, "false post": 0.5}
            ),
            "bn=post": pytest.approx({"true none": -0.5, "true post": 0.5, "false none": -0.5, "false post": 0.5}),
            "residual=false x bn=post": pytest.approx(
                {"true none": 1.0, "true post": -1.0, "false none": -1.0, "false post": 1.0}
            ),
        }

    def test_a_textbook(self) -> None:
        """Box, Hunter and Hunter print 23, -5 and 1.5, and halves of these interactions: 1.5, 10, 0 and 0.5."""
        got = fitted_weights(PLANT, grid(PLANT), order=3)
        scores = {" ".join(cell): {0: value} for cell, value in PILOT_PLANT.items()}
        effects = [combination(found, scores).mean for found in got.weights.values()]
        assert effects == pytest.approx([23.0, -5.0, 1.5, 2 * 1.5, 2 * 10.0, 2 * 0.0, 4 * 0.5], abs=1e-9)

    @pytest.mark.parametrize("order", [1, 2])
    def test_on_a_design_with_gaps_they_are_least_squares(self, order: int) -> None:
        cells = grid(MIXED, ("true", "pre", "false"))
        scores = np.random.default_rng(0).normal(34, 0.3, len(cells)).round(6).tolist()
        got = fitted_weights(MIXED, cells, order)
        effects = {
            str(term): math.fsum(found.get(key, 0.0) * score for key, score in zip(cells, scores, strict=True))
            for term, found in got.weights.items()
        }
        assert got.refused == ()
        assert effects == pytest.approx(by_least_squares(MIXED, cells, scores, order))
        assert got.method == (
            f"least squares on 11 of 12 cells, interactions of more than {order} factors taken to be 0"
        )

    def test_a_half_fraction_gives_main_effects(self) -> None:
        """Four of eight cells, the third factor aliased with the interaction of the other two."""
        three = {name: ("on", "off") for name in ("residual", "bn", "act")}
        cells = {key: cell for key, cell in grid(three).items() if cell.count("off") % 2 == 0}
        got = fitted_weights(three, cells, order=1)
        assert [str(term) for term in got.weights] == ["residual=off", "bn=off", "act=off"]
        assert all(sorted(found.values()) == pytest.approx([-0.5, -0.5, 0.5, 0.5]) for found in got.weights.values())
        assert fitted_weights(three, cells, order=2).weights == {}

    def test_every_cell_has_a_variance_of_its_own_in_an_effect(self) -> None:
        """The standard error of a difference of two averages of two cells: four variances, each a quarter."""
        cells = grid(TWO)
        scores = {
            key: dict(enumerate(np.random.default_rng(place).normal(34, 0.1 * (place + 1), 3).round(6).tolist()))
            for place, key in enumerate(cells)
        }
        (found, *_) = fitted_weights(TWO, cells).weights.values()
        expected = math.sqrt(sum(np.var(list(each.values()), ddof=1) / 3 / 4 for each in scores.values()))
        assert combination(found, scores).error == pytest.approx(expected)

    def test_what_the_cells_do_not_determine_is_refused(self) -> None:
        """BN was never trained without the residual, so neither their interaction nor an average over it is known."""
        cells = grid(TWO, ("false", "post"))
        got = fitted_weights(TWO, cells)
        assert got.weights == {}
        assert [str(term) for term in got.refused] == ["residual=false", "bn=post", "residual=false x bn=post"]
        assert fitted_weights(TWO, cells, order=1).refused == ()

    def test_a_level_without_a_cell_is_refused_and_the_rest_is_not(self) -> None:
        cells = {key: cell for key, cell in grid(MIXED).items() if cell[1] != "pre"}
        got = fitted_weights(MIXED, cells, order=1)
        assert [str(term) for term in got.refused] == ["bn=pre"]
        assert [str(term) for term in got.weights] == ["residual=false", "bn=post", "threshold=false"]

    def test_no_cell_determines_nothing(self) -> None:
        assert fitted_weights(TWO, {}).weights == {}

    def test_a_term_is_the_contrast_of_the_whole_grid(self) -> None:
        columns = terms(MIXED, 3)
        cells = [set(zip(MIXED, cell, strict=True)) for cell in itertools.product(*MIXED.values())]
        for term, column in itertools.product(columns, columns):
            there = [float(cell.issuperset(column.moved)) for cell in cells]
            assert coefficient(MIXED, term, column) == pytest.approx(float(weights(MIXED, term) @ there))


class TestHalfNormal:
    def test_a_textbook(self) -> None:
        """The median size 1.5 makes 2.25; 10 and 23 exceed 2.5 times that; of 0, 0.5, 1.5, 1.5 and 5 the median is 1.5.

        Lenth's table for 7 effects: 3.764 for the margin of error and 9.008 for the simultaneous one.
        """
        got = half_normal(of_one_seed(PLANT, PILOT_PLANT))
        assert got.pse == pytest.approx(1.5 * 1.5)
        assert got.margin == pytest.approx(3.764 * 2.25, rel=1e-3)
        assert got.simultaneous_margin == pytest.approx(9.008 * 2.25, rel=1e-3)
        assert [point.effect for point in got.points] == pytest.approx([0.0, 0.5, 1.5, 1.5, -5.0, 10.0, 23.0])
        assert [point.factors for point in got.points if point.stands_out] == [("temperature",)]
        assert got.points[1].factors == ("temperature", "concentration", "catalyst")
        quantiles = [stats.halfnorm.ppf((index + 0.5) / 7) for index in range(7)]
        assert [point.quantile for point in got.points] == pytest.approx(quantiles)

    @pytest.mark.parametrize(("count", "each", "together"), [(15, 2.571, 5.219), (31, 2.218, 4.218)])
    def test_margins_are_those_of_lenths_table(self, count: int, each: float, together: float) -> None:
        pse, margin, simultaneous = lenth(np.arange(1.0, count + 1))
        assert (margin / pse, simultaneous / pse) == pytest.approx((each, together), rel=1e-3)

    def test_the_second_median_leaves_out_what_exceeds_the_first_by_two_and_a_half_of_it(self) -> None:
        """The median 4 makes 6, and 2.5 * 6 = 15 leaves out 20 and 40; the median of 1, 2, 3, 4 and 12 is 3."""
        pse, _, _ = lenth(np.array([1.0, -2.0, 3.0, -4.0, 12.0, -20.0, 40.0]))
        assert float(pse) == 1.5 * 3

    def test_seeds_are_averaged(self) -> None:
        values = {cell: {0: value - off, 1: value + off} for off, (cell, value) in enumerate(PILOT_PLANT.items())}
        got = half_normal(Responses(PLANT, values))
        assert [point.effect for point in got.points] == pytest.approx([0.0, 0.5, 1.5, 1.5, -5.0, 10.0, 23.0])

    def test_all_effects_have_the_same_variance(self) -> None:
        """The sum of squared weights is 4 / cells for each, which an interaction of two factors has only halved."""
        for term in terms(PLANT, 3):
            halved = weights(PLANT, term) / 2 ** (len(term.moved) - 1)
            assert np.sum(halved**2) == pytest.approx(4 / 8)

    def test_only_seeds_that_have_all_cells_count(self) -> None:
        values = {cell: {0: value} for cell, value in PILOT_PLANT.items()}
        first = next(iter(values))
        more = {cell: {**scores, 1: 99.0} if cell != first else scores for cell, scores in values.items()}
        assert half_normal(Responses(PLANT, more)) == half_normal(Responses(PLANT, values))

    def test_a_missing_cell_is_refused_and_named(self) -> None:
        values = {cell: {0: value} for cell, value in PILOT_PLANT.items() if cell != ("180", "20", "B")}
        with pytest.raises(
            IncompleteDataError,
            match=r"no seed has all 8 cells; without any score: temperature=180 concentration=20 catalyst=B$",
        ):
            half_normal(Responses(PLANT, values))

    def test_of_many_missing_cells_the_first_are_named(self) -> None:
        with pytest.raises(IncompleteDataError, match=r"catalyst=B and 2 more$"):
            half_normal(Responses(PLANT, {}))

    def test_seeds_that_each_lack_another_cell_are_refused(self) -> None:
        values = {cell: {place % 2: value} for place, (cell, value) in enumerate(PILOT_PLANT.items())}
        with pytest.raises(IncompleteDataError, match="no seed has all 8 cells, though each has a score"):
            half_normal(Responses(PLANT, values))

    def test_a_training_that_diverged_is_not_left_out(self) -> None:
        with pytest.raises(IncompleteDataError, match="a score is not a finite number"):
            half_normal(of_one_seed(PLANT, {**PILOT_PLANT, ("160", "20", "A"): math.nan}))

    def test_two_factors_are_too_few(self) -> None:
        with pytest.raises(ValueError, match="needs 3 factors, not 2"):
            half_normal(of_one_seed(TWO, dict.fromkeys(itertools.product(*TWO.values()), 34.0)))

    def test_more_than_two_levels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="factor 'bn' has 3 levels, not 2"):
            half_normal(of_one_seed(MIXED, {}))
