"""What the factors of a design do: checked against textbooks, brute force and least squares."""

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.effects.factors import analyse
from analysis.report.page import effects_of_order
from analysis.statistics.estimates import IncompleteDataError
from analysis.statistics.factorial import (
    Cell,
    Effects,
    Responses,
    complete,
    effects,
    fieller,
    fitted_effects,
    half_normal,
    lenth,
    restricted,
    shapley,
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


def of_one_seed(factors: Mapping[str, tuple[str, ...]], values: Mapping[Cell, float]) -> Responses:
    return Responses(factors, {cell: {0: value} for cell, value in values.items()})


def drawn(factors: Mapping[str, tuple[str, ...]], seeds: int = 3) -> Responses:
    """Irregular scores, with something that each seed does to all cells alike."""
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 1, seeds)
    return Responses(
        factors,
        {
            cell: dict(enumerate((34 + shared + generator.normal(0, 0.3, seeds)).tolist()))
            for cell in itertools.product(*factors.values())
        },
    )


def without(responses: Responses, *cells: Cell) -> Responses:
    return Responses(
        responses.factors, {cell: scores for cell, scores in responses.values.items() if cell not in cells}
    )


def by_name(found: Effects) -> dict[str, tuple[float, ...]]:
    return {str(effect.term): effect.by_seed for effect in found.effects}


class TestCompleteness:
    def test_a_seed_that_lacks_a_cell_is_dropped_and_named(self) -> None:
        full = drawn(TWO)
        values = {cell: dict(scores) for cell, scores in full.values.items()}
        del values["true", "post"][1]
        got = effects(Responses(TWO, values))
        assert (got.seeds, got.dropped) == ((0, 2), {1: (("true", "post"),)})
        kept = by_name(effects(full))["residual=false"]
        assert by_name(got)["residual=false"] == pytest.approx((kept[0], kept[2]))

    def test_a_missing_cell_is_refused_and_named(self) -> None:
        with pytest.raises(
            IncompleteDataError, match=r"no seed has all 4 cells .*; without any score: residual=false bn=none$"
        ):
            effects(without(drawn(TWO), ("false", "none")))

    def test_seeds_that_each_lack_another_cell_are_refused_and_named(self) -> None:
        values = {cell: dict(scores) for cell, scores in drawn(TWO, seeds=2).values.items()}
        del values["true", "none"][0], values["false", "post"][1]
        with pytest.raises(
            IncompleteDataError, match="seed 0 lacks residual=true bn=none; seed 1 lacks residual=false bn=post"
        ):
            effects(Responses(TWO, values))

    def test_of_many_missing_cells_the_first_are_named(self) -> None:
        full = drawn(MIXED)
        with pytest.raises(IncompleteDataError, match=r"threshold=false and 3 more$"):
            complete(without(full, *full.grid[:9]))

    def test_no_score_at_all_is_said(self) -> None:
        for estimated in (effects, fitted_effects, shapley):
            with pytest.raises(IncompleteDataError, match="there is no score at all"):
                estimated(Responses(TWO, {}))

    def test_a_training_that_diverged_is_not_dropped(self) -> None:
        values = {cell: dict(scores) for cell, scores in drawn(TWO).values.items()}
        values["true", "post"][1] = math.nan
        got = effects(Responses(TWO, values))
        assert got.seeds == (0, 1, 2)
        assert all(math.isnan(found.estimate.mean) for found in got.effects)


class TestEffects:
    def test_by_hand(self) -> None:
        """Without BN the residual is worth 2.0 dB, with it 0.5; removing it together with adding BN costs 1.0."""
        cells = {("true", "none"): 34.0, ("true", "post"): 33.5, ("false", "none"): 32.0, ("false", "post"): 33.0}
        got = by_name(effects(of_one_seed(TWO, cells)))
        assert got == {
            "residual=false": (((32.0 - 34.0) + (33.0 - 33.5)) / 2,),
            "bn=post": (((33.5 - 34.0) + (33.0 - 32.0)) / 2,),
            "residual=false x bn=post": ((33.0 - 33.5) - (32.0 - 34.0),),
        }

    def test_a_textbook(self) -> None:
        """Box, Hunter and Hunter print 23, -5 and 1.5, and halves of these interactions: 1.5, 10, 0 and 0.5."""
        got = by_name(effects(of_one_seed(PLANT, PILOT_PLANT), order=3))
        assert list(got.values()) == [
            (pytest.approx(value),) for value in (23.0, -5.0, 1.5, 2 * 1.5, 2 * 10.0, 2 * 0.0, 4 * 0.5)
        ]

    def test_what_a_seed_does_to_all_cells_cancels(self) -> None:
        full = drawn(MIXED)
        moved = Responses(
            MIXED,
            {
                cell: {seed: score + 100 * seed for seed, score in scores.items()}
                for cell, scores in full.values.items()
            },
        )
        for before, after in zip(effects(full).effects, effects(moved).effects, strict=True):
            assert after.by_seed == pytest.approx(before.by_seed)


def by_least_squares(responses: Responses, seed: int, order: int) -> dict[str, float]:
    """The effects from numpy's least squares with sum-to-zero columns, by predicting the whole grid."""

    def row(cell: Cell) -> list[float]:
        blocks = []
        for level, levels in zip(cell, responses.factors.values(), strict=True):
            place = levels.index(level)
            last = place == len(levels) - 1
            blocks.append([-1.0 if last else float(place == index) for index in range(len(levels) - 1)])
        columns = [1.0]
        for size in range(1, order + 1):
            for chosen in itertools.combinations(blocks, size):
                columns += [math.prod(parts) for parts in itertools.product(*chosen)]
        return columns

    scored = [cell for cell in responses.grid if cell in responses.values]
    solution = np.linalg.lstsq(
        np.array([row(cell) for cell in scored]), np.array([responses.values[cell][seed] for cell in scored])
    )[0]
    predicted = np.array([row(cell) for cell in responses.grid]) @ solution
    return {str(term): float(weights(responses.factors, term) @ predicted) for term in terms(responses.factors, order)}


class TestFittedEffects:
    def test_on_a_complete_design_they_are_the_contrasts(self) -> None:
        full = drawn(MIXED)
        fitted, direct = by_name(fitted_effects(full)), by_name(effects(full))
        assert fitted.keys() == direct.keys()
        for name, values in direct.items():
            assert fitted[name] == pytest.approx(values)

    @pytest.mark.parametrize("order", [1, 2])
    def test_on_a_design_with_gaps_they_are_least_squares(self, order: int) -> None:
        gappy = without(drawn(MIXED), ("true", "pre", "false"))
        got = fitted_effects(gappy, order)
        expected = by_least_squares(gappy, 1, order)
        assert got.refused == ()
        assert {name: values[1] for name, values in by_name(got).items()} == pytest.approx(expected)
        assert got.method == (
            f"least squares on 11 of 12 cells, interactions of more than {order} factors taken to be 0"
        )

    def test_what_the_cells_do_not_determine_is_refused(self) -> None:
        """BN was never trained without the residual, so neither their interaction nor an average over it is known."""
        gappy = without(drawn(TWO), ("false", "post"))
        got = fitted_effects(gappy)
        assert got.effects == ()
        assert [str(term) for term in got.refused] == ["residual=false", "bn=post", "residual=false x bn=post"]
        assert fitted_effects(gappy, order=1).refused == ()

    def test_a_level_without_a_cell_is_refused_and_the_rest_is_not(self) -> None:
        full = drawn(MIXED)
        gappy = without(full, *(cell for cell in full.grid if cell[1] == "pre"))
        got = fitted_effects(gappy, order=1)
        assert [str(term) for term in got.refused] == ["bn=pre"]
        assert list(by_name(got)) == ["residual=false", "bn=post", "threshold=false"]

    def test_a_seed_that_lacks_a_cell_that_others_have_is_dropped(self) -> None:
        values = {cell: dict(scores) for cell, scores in drawn(MIXED).values.items()}
        del values["true", "pre", "false"], values["true", "none", "true"][2]
        got = fitted_effects(Responses(MIXED, values))
        assert (got.seeds, got.dropped) == ((0, 1), {2: (("true", "none", "true"),)})

    def test_no_seed_with_the_same_cells_is_an_error(self) -> None:
        values = {("true", "none"): {0: 34.0}, ("false", "none"): {1: 33.0}}
        with pytest.raises(IncompleteDataError, match="no seed has all 2 cells that some seed has; seed 0 lacks"):
            fitted_effects(Responses(TWO, values))

    @pytest.mark.parametrize(
        ("order", "lacking", "spare"),
        [pytest.param(2, [0.5], 1, id="three factors act together"), pytest.param(1, [1.5, 10, 0, 0.5], 4, id="main")],
    )
    def test_the_misfit_is_what_the_model_leaves(self, order: int, lacking: list[float], spare: int) -> None:
        """An effect of the textbook's scale that the model lacks puts each of the 8 cells off by half of it."""
        expected = math.sqrt(8 * sum((effect / 2) ** 2 for effect in lacking) / spare)
        assert fitted_effects(of_one_seed(PLANT, PILOT_PLANT), order).misfit == pytest.approx(expected)
        twice = Responses(PLANT, {cell: {0: value, 1: value + 3} for cell, value in PILOT_PLANT.items()})
        assert fitted_effects(twice, order).misfit == pytest.approx(expected)

    def test_a_model_without_a_spare_cell_has_no_misfit(self) -> None:
        assert math.isnan(fitted_effects(of_one_seed(PLANT, PILOT_PLANT), order=3).misfit)


class TestRestricted:
    def test_only_the_chosen_levels_are_left_and_the_first_is_the_reference(self) -> None:
        full = drawn(MIXED)
        part = restricted(full, {"bn": ("post", "none")})
        assert part.factors == {**MIXED, "bn": ("post", "none")}
        assert part.values == {cell: scores for cell, scores in full.values.items() if cell[1] != "pre"}


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

    def test_two_factors_are_too_few(self) -> None:
        with pytest.raises(ValueError, match="needs 3 factors, not 2"):
            half_normal(drawn(TWO))


FOUR = {name: ("on", "off") for name in ("residual", "threshold", "rprelu", "align")}


class TestShapley:
    def test_by_hand(self) -> None:
        """Alone the residual adds 1.0 dB and the BN-free path 0.2, together 2.0: the 0.8 that they share is halved."""
        cells = {("true", "none"): 34.0, ("true", "post"): 33.0, ("false", "none"): 32.2, ("false", "post"): 32.0}
        got = shapley(of_one_seed(TWO, cells))
        assert [share.by_seed for share in got.shares] == [(pytest.approx(1.4),), (pytest.approx(0.6),)]
        assert got.total.mean == 2.0
        assert [share.fraction.mean for share in got.shares] == [pytest.approx(0.7), pytest.approx(0.3)]

    def test_a_share_is_the_average_over_all_orders_of_adding_components(self) -> None:
        full, names = drawn(FOUR, seeds=2), list(FOUR)
        sums = np.zeros((4, 2))
        for order in itertools.permutations(range(4)):
            cell = ["off"] * 4
            for component in order:
                before = np.array(list(full.values[tuple(cell)].values()))
                cell[component] = "on"
                sums[component] += np.array(list(full.values[tuple(cell)].values())) - before
        for share, expected, name in zip(shapley(full).shares, sums / math.factorial(4), names, strict=True):
            assert share.factor == name
            assert share.by_seed == pytest.approx(expected.tolist())


@pytest.mark.parametrize("analysis", [half_normal, shapley])
def test_more_than_two_levels_are_refused(analysis: Callable[[Responses], object]) -> None:
    with pytest.raises(ValueError, match=r"factor 'bn' has 3 levels; choose two of them with restricted\(\)"):
        analysis(drawn(MIXED))


class TestFractions:
    GAINS, TOTAL = np.array([0.8, 1.1, 0.9, 1.3]), np.array([2.0, 2.3, 1.9, 2.6])

    def test_the_limits_are_where_students_test_turns(self) -> None:
        low, high = fieller(self.GAINS, self.TOTAL)

        def excess(ratio: float) -> float:
            return float(stats.ttest_1samp(self.GAINS - ratio * self.TOTAL, 0).pvalue) - 0.05

        centre = self.GAINS.mean() / self.TOTAL.mean()
        assert float(low) == pytest.approx(optimize.brentq(excess, centre - 0.3, centre))
        assert float(high) == pytest.approx(optimize.brentq(excess, centre, centre + 0.3))

    def test_a_gain_that_may_be_nothing_has_no_fractions(self) -> None:
        values = {("on",): {0: 34.0, 1: 34.5, 2: 33.2}, ("off",): {0: 33.8, 1: 34.6, 2: 33.1}}
        (share,) = shapley(Responses({"residual": ("on", "off")}, values)).shares
        assert share.gain.low < 0 < share.gain.high
        assert math.isnan(share.fraction.low)
        assert math.isnan(share.fraction.high)

    def test_the_only_component_has_all_of_the_gain(self) -> None:
        values = {("on",): {0: 34.0, 1: 34.1}, ("off",): {0: 33.0, 1: 33.11}}
        (share,) = shapley(Responses({"residual": ("on", "off")}, values)).shares
        assert (share.fraction.mean, share.fraction.low, share.fraction.high) == pytest.approx((1.0, 1.0, 1.0))
        assert share.fraction.p == share.gain.p


def test_where_no_effect_of_a_factor_alone_is_determined_there_is_no_table_of_them() -> None:
    """A threshold that was only ever taken away alone leaves one interaction, and no average over it."""
    three = {**TWO, "threshold": ("true", "false")}
    full = drawn(three)
    gappy = without(full, *(cell for cell in full.grid if cell[2] == "false" and cell[:2] != ("true", "none")))
    found = analyse(gappy, 0.05)
    assert found.effects is not None
    assert [str(effect.term) for effect in found.effects.effects] == ["residual=false x bn=post"]
    assert effects_of_order(found, 1) == []
    assert [str(effect.term) for effect, _ in effects_of_order(found, 2)] == ["residual=false x bn=post"]
