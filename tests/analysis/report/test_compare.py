"""Two studies side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.folder import TrialFolder
from analysis.__main__ import main
from analysis.report.archive import recording, write_archive
from analysis.report.compare import compare, study_at
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.loading import StudyResults, load_folder
from bbcu.errors import ConfigError
from tests.harness.ruled import cell, ruled
from tests.harness.studies import Trial, in_memory, result_of, trial, write_study


def study(folder: Path, trials: Sequence[Trial], **provenance: Any) -> StudyResults:
    """A study on disk alone, as trials leave it."""
    for each in trials:
        place = TrialFolder(folder, "components", each.cell, each.seed)
        place.path.mkdir(parents=True)
        result = result_of(each)
        place.write_result({**result, "provenance": {**result["provenance"], "dirty": False, **provenance}})
    return load_folder(folder / "components")


@dataclasses.dataclass(frozen=True)
class OnOtherData(Trial):
    """A trial that differs from another in its data alone."""

    @property
    def setting(self) -> dict[str, Any]:
        return {**super().setting, "data": "f" * 64}


def some(gain: float = 0.0, seeds: int = 3, steps: int = 20, **levels: Any) -> list[Trial]:
    """A cell whose scores spread by 0.1 dB, or by a little more with a gain."""
    return [
        trial(seed, 30.0 + 0.1 * seed + gain + 0.002 * seed * (gain != 0), steps, **levels) for seed in range(seeds)
    ]


def row_with(page: str, text: str) -> str:
    (row,) = [line for line in page.splitlines() if line.startswith("|") and text in line]
    return row


def page_of(tmp_path: Path, first: Sequence[Trial], second: Sequence[Trial], **provenance: Any) -> str:
    sides = study(tmp_path / "a", first), study(tmp_path / "b", second, **provenance)
    return compare(*sides, ("a", "b"))


def test_shared_cells_are_compared_by_their_means_with_interval_and_verdict(tmp_path: Path) -> None:
    page = page_of(tmp_path, some(seeds=5), some(0.5, seeds=5))
    better = row_with(page, "| Set5 |")
    assert "| 0, 1, 2, 3, 4 | +0.504 [+0.271, +0.737] | better: " in better
    assert "p = 0.00" in better
    assert "seed by seed" not in page


def test_cells_with_the_same_scores_are_said_to_be_the_same_and_tested_by_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, [*some(), *some(bn="post")], [*some(0.5), *some(bn="post", seeds=5)])
    assert "| 0, 1, 2 / 0, 1, 2, 3, 4 | 0 | the same score under each of the 3 seeds of both |" in row_with(
        page, "`bn=post`"
    )
    assert "comparisons" not in row_with(page, "`bn=none`")
    one = page_of(tmp_path / "one", [trial(0)], [trial(0)])
    assert "the same score under the one seed of both" in one
    assert "undecided" not in one


def test_the_order_of_the_cells_is_compared_where_three_are_in_both(tmp_path: Path) -> None:
    first = [*some(), *some(0.5, bn="post"), *some(1.0, residual=False)]
    second = [*some(steps=40), *some(1.5, bn="post", steps=40), *some(1.0, residual=False, steps=40)]
    assert "- Set5: +0.50, over 3 cells." in page_of(tmp_path / "three", first, second)
    assert "rank correlation" not in page_of(tmp_path / "two", first[:6], second[:6])
    elsewhere = [dataclasses.replace(each, psnr_db={"Set14": 30.0}) for each in second[6:]]
    assert "rank correlation" not in page_of(tmp_path / "one without a score", first, [*second[:6], *elsewhere])


def test_cells_are_named_by_what_varies_in_either_study(tmp_path: Path) -> None:
    page = page_of(tmp_path, [*some(), *some(bn="post")], [*some(0.5, steps=40), *some(0.5, bn="post", steps=40)])
    assert "2 cells agree in everything but `train.steps`" in page
    assert row_with(page, "| `bn=none` | Set5 |")
    assert row_with(page, "| `bn=post` | Set5 |")


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        pytest.param(some(seeds=3), some(0.5, seeds=2), "| 0, 1, 2 / 0, 1 | +0.451", id="every seed counts"),
        pytest.param(
            some(seeds=1), some(0.5, seeds=1), "| 0 | +0.500 [one seed] | undecided: +0.500 dB, one", id="one"
        ),
        pytest.param([trial(0)], [trial(1)], "| 0 / 1 | +0.000 [one seed] | undecided: +0.000 dB, one seed", id="none"),
    ],
)
def test_few_seeds_allow_no_verdict(tmp_path: Path, first: list[Trial], second: list[Trial], shown: str) -> None:
    assert shown in page_of(tmp_path, first, second)


def test_cells_in_one_study_are_listed(tmp_path: Path) -> None:
    page = page_of(tmp_path, [*some(), *some(bn="pre")], some())
    assert "Only in `a`, 1:" in page
    assert "bn=pre" in row_with(page.partition("Only in `a`")[2].partition("Only in `b`")[0], "pre")
    assert "Only in `b`: none." in page


def test_a_cell_in_one_is_named_by_all_that_varies() -> None:
    """Its own name says its factors alone, and would be that of a cell in both."""
    wide = [dataclasses.replace(each, others={"channels": 64}) for each in some(0.0)]
    page = compare(in_memory([*some(0.0), *wide]), in_memory(some(0.0)), ("a", "b"))
    only = page.partition("Only in `a`")[2].partition("Only in `b`")[0]
    assert only.count("channels=64") == len({each.cell for each in wide})


def test_other_data_are_named_and_cells_are_matched_by_the_rest(tmp_path: Path) -> None:
    other = [OnOtherData(t.levels, t.seed, t.psnr_db, t.steps) for t in some(0.5)]
    page = page_of(tmp_path, some(), other)
    assert "1 cell agrees in everything but `data`" in page
    assert "**The two used different data**" in page
    assert "+0.502" in page
    assert f"| `data` | {trial().setting['data']} | {'f' * 64} |" in page


def test_what_one_study_does_not_know_has_its_default_there() -> None:
    def since(trials: Sequence[Trial], level: str, groups: int = 10) -> list[Trial]:
        """The trials as they are since there are a factor `rescale` and a key of the network, 10 by default."""
        return [
            dataclasses.replace(
                each,
                levels={**each.levels, "rescale": level},
                reference={**each.reference, "rescale": "none"},
                others={"network": {"name": "srresnet", "groups": groups}},
            )
            for each in trials
        ]

    later = some(0.5, steps=40)
    newer = [*since(later, "none"), *since(later, "channel"), *since(later, "none", groups=4)]
    for first, second, gain in ((some(), newer, "+0.502"), (newer, some(), "-0.502")):
        page = compare(in_memory(first), in_memory(second), ("a", "b"))
        assert "1 cell agrees in everything but `train.steps`" in page
        assert gain in page


def test_a_study_may_have_cells_from_before_a_key_and_after_it() -> None:
    grouped = [dataclasses.replace(each, others={"network": {"name": "srresnet", "groups": 4}}) for each in some()]
    page = compare(in_memory([*some(), *grouped]), in_memory(some(0.5, steps=40)), ("a", "b"))
    assert "1 cell agrees in everything but `train.steps`." in page


def test_studies_on_other_test_sets_share_cells_and_no_score() -> None:
    other = [dataclasses.replace(each, psnr_db={"Set14": 28.0}) for each in some()]
    page = compare(in_memory(some()), in_memory(other), ("a", "b"))
    assert "1 cell has the same key in both" in page
    assert "No test set is in both." in page


def test_code_and_packages_that_differ_are_named(tmp_path: Path) -> None:
    changed: Mapping[str, Any] = {"git": "f" * 40, "packages": {"torch": "2.14.0", "numpy": "2.4.6"}}
    page = page_of(tmp_path, some(), some(), **changed)
    assert f"| `git` | 0123456789abcdef | {'f' * 40} |" in page
    assert "| `packages.torch` | 2.13.0 | 2.14.0 |" in page
    assert "packages.numpy" not in page


def test_of_a_study_with_a_stopping_rule_the_first_look_alone_is_compared() -> None:
    cells = [cell(31.0), cell(29.0, residual=False), cell(31.0, bn="pre")]
    plain = in_memory([each.trial(seed) for each in cells for seed in range(10, 14)])
    page = compare(ruled(cells, earlier=1), plain, ("a", "b"))
    assert (
        "`a` was trained by a stopping rule. Only the 3 seeds of its first look, from seed 1 on, are compared" in page
    )
    assert "9 results are not used." in page
    assert "| 1, 2, 3 / 10, 11, 12, 13 |" in row_with(page, "`residual=true bn=none`")


def test_a_study_can_be_named_or_a_folder_or_an_archive(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path / "outputs", some())
    results = load_folder(tmp_path / "outputs" / "components")
    write_archive(*recording(results), MARGIN_DB, tmp_path / "kept")
    places = ["components", f"{tmp_path}/outputs/components", f"{tmp_path}/kept", f"{tmp_path}/kept/results.zip"]
    for place in places:
        with study_at(place, tracking_uri, tmp_path / "outputs") as found:
            assert list(found.trials["metric/Set5/psnr_db"]) == [30.0, 30.1, 30.2]
            assert found.factors == ("residual", "bn", "align")


def test_the_command_prints_the_page(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tracking_uri, tmp_path / "outputs", some())
    places = ["--tracking-uri", tracking_uri, "--outputs", f"{tmp_path}/outputs"]
    main(["compare", "components", f"{tmp_path}/outputs/components", *places, "--margin", "0.6"])
    page = capsys.readouterr().out
    assert "1 cell has the same key in both" in page
    assert "surely smaller than 0.6 dB" in page
    assert page.endswith("None is recorded: the same settings, data, code and packages.\n")


def test_a_folder_without_a_study_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="neither the folder of a study"),
        study_at(f"{tmp_path}/none", "sqlite:///none.db", tmp_path),
    ):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no trial"), study_at(f"{tmp_path}/empty", "sqlite:///none.db", tmp_path):
        pass
    with pytest.raises(SystemExit, match=r"^analysis: "):
        main(["compare", f"{tmp_path}/none", f"{tmp_path}/none"])
