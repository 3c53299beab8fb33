"""``python -m bbcu.evaluate``: the scores of a trained cell are those of its result, and of what else it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bbcu
from bbcu.data.downloads import DOWNLOADS
from bbcu.data.sources import find_pictures
from bbcu.data.tasks import ArtifactReduction, Denoising, Score, SuperResolution, make_task
from bbcu.deploy.file import save as save_packed
from bbcu.deploy.packed import pack
from bbcu.deploy.scoring import PUBLISHED, SetScores, document, score_sets, table, task_of
from bbcu.deploy.sources import trained
from bbcu.evaluate import main
from bbcu.model.checkpoints import to_released_state
from bbcu.model.parts import NetworkSpec
from tests.harness.builders import dncnn, perturbed, save, soft_blobs, srresnet
from tests.harness.deployed import facts_of, trial_folder
from tests.harness.support import Workplace

LEVELS = ("task=denoise", "network=dncnn", "task.sigma=[15,25]", "evaluation.self_ensemble=true")


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The status, the output and the error of a command."""
    capsys.readouterr()
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def released(path: Path, network: torch.nn.Module) -> str:
    torch.save(to_released_state(network), path)
    return str(path)


# --- trained cells ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell(new_workplace: Callable[[], Workplace]) -> tuple[Path, Path]:
    """The folder of a trained cell, and that of the pictures that it was tested on."""
    workplace = new_workplace()
    assert workplace.run(*LEVELS).status == 0
    (trial,) = workplace.outputs.glob("adhoc/*/seed0")
    return trial.parent, workplace.folder / "test"


def test_the_scores_of_a_cell_on_its_own_set_are_those_of_its_result(
    cell: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pictures = cell
    result = json.loads((folder / "seed0" / "result.json").read_text())
    status, out, error = outcome(capsys, str(folder), f"Tiny={pictures}", "--json")
    assert (status, error) == (0, "")
    found = json.loads(out)
    assert {name: found[name] for name in ("metrics", "baseline")} == {
        name: result[name] for name in ("metrics", "baseline")
    }
    assert found["task"] == result["setting"]["task"]


def test_without_a_set_those_of_the_trial_are_looked_for(
    cell: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = outcome(capsys, str(cell[0]))
    assert status == 2
    assert error.startswith("bbcu.evaluate: unknown set 'Tiny'; valid: embedded, ")
    assert error.endswith("; or give Tiny=DIR\n")


def test_a_result_without_scores_needs_the_names_of_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(NetworkSpec(2, 8, 1))
    facts["setting"]["evaluation"] = facts["metrics"] = ["not", "a", "table"]
    trial_folder(tmp_path / "seed0", srresnet(), facts)
    status, _, error = outcome(capsys, str(tmp_path))
    assert (status, error) == (1, f"bbcu.evaluate: {tmp_path / 'seed0'}: its result has no scores; name the sets\n")
    save(soft_blobs(0, 24, 24), tmp_path / "own" / "one.png")
    assert outcome(capsys, str(tmp_path), f"own={tmp_path / 'own'}")[0] == 0


# --- which task -------------------------------------------------------------------------------------------------------

DENOISING, JPEG = (make_task({"name": name, **strengths}) for name, strengths in PUBLISHED.items())


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (srresnet(3), {}, SuperResolution(3)),
        (dncnn(), {}, DENOISING),
        (dncnn(colours=1), {}, JPEG),
        (dncnn(), {"strengths": {"sigma": [25]}}, Denoising((25.0,), (0.0, 75.0))),
        (dncnn(colours=1), {"strengths": {"quality": [10]}}, ArtifactReduction((10,), (1, 50))),
        (dncnn(), {"name": "denoise"}, DENOISING),
    ],
    ids=["scale", "colour", "gray", "sigma", "quality", "named"],
)
def test_the_task_of_a_checkpoint_is_that_which_its_network_implies(
    network: torch.nn.Module, options: dict[str, Any], expected: object, tmp_path: Path
) -> None:
    for path in (released(tmp_path / "net.pth", network), str(tmp_path / "net.packed")):
        save_packed(pack(network), tmp_path / "net.packed")
        assert task_of(trained(path), **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sr_x3"}, "task sr_x3: .*net.pth enlarges colour pictures by 2; its task: sr_x2"),
        ({"name": "jpeg"}, "task jpeg: .*net.pth enlarges colour pictures by 2"),
        ({"name": "derain"}, "unknown task 'derain'"),
        ({"strengths": {"sigma": [5]}}, "the task sr_x2 has no such key"),
    ],
    ids=["scale", "size", "unknown", "strength"],
)
def test_a_task_of_another_network_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = trained(released(tmp_path / "net.pth", srresnet()))
    with pytest.raises(bbcu.ConfigError, match=message):
        task_of(source, **options)


# --- sets -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a checkpoint, a fetched set, and inputs of its own beside another."""
    monkeypatch.chdir(tmp_path)
    released(tmp_path / "net.pth", perturbed(srresnet()))
    fetched = tmp_path / "data" / DOWNLOADS["benchmark"].folder / "Set5" / "HR"
    for folder in (fetched, tmp_path / "own" / "HR"):
        save(soft_blobs(0, 30, 26), folder / "baby.png")
    save(soft_blobs(1, 15, 13), tmp_path / "own" / "LR_bicubic" / "X2" / "babyx2.png")
    return tmp_path


def test_a_fetched_set_is_found_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = outcome(capsys, "net.pth", "Set5", "own=own")
    assert (status, error) == (0, "")
    title, head, *rows = out.splitlines()
    assert title == "net.pth, sr_x2"
    assert head.split() == ["set", "pictures", "PSNR", "(dB)", "SSIM", "bicubic", "SSIM", "gain", "(dB)", "SSIM"]
    assert [row.split()[:2] for row in rows] == [["Set5", "1"], ["own", "1"]]
    assert rows[0].split()[2:] == rows[1].split()[2:]


def test_the_users_own_inputs_are_taken_if_they_are_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, made, _ = outcome(capsys, "net.pth", "own=own", "--json")
    _, given, _ = outcome(capsys, "net.pth", "own=own", "--json", "--inputs", "given")
    assert json.loads(made)["metrics"] != json.loads(given)["metrics"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["net.pth", "Set14"], 1, "data/benchmark/Set14: does not exist; python -m bbcu.data fetch Set14 fetches it"),
        (["net.pth", "Set15"], 2, "unknown set 'Set15' (did you mean Set5?); valid: embedded, "),
        (["net.pth", "own=missing"], 1, "missing: the folder does not exist"),
        (["net.pth", "o.w=own"], 1, "test set names may hold only letters"),
        (["net.pth", "own=own", "own=own"], 2, "own: the set is given twice"),
        (["net.pth", "embedded", "embedded"], 2, "embedded: the set is given twice"),
        (["net.pth", "embedded", "--inputs", "given"], 2, "embedded: has no inputs of its own"),
        (["net.pth", "own=own", "--sigma", "3"], 2, "task.sigma=[3]: the task sr_x2 has no such key"),
        (["own"], 1, "own: not the folder of a finished trial or cell"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], status: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, error = outcome(capsys, *arguments)
    assert (found, out) == (status, "")
    assert error.startswith(f"bbcu.evaluate: {message}")
    assert error.count("\n") == 1


def test_given_inputs_of_a_task_that_makes_its_own_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    denoiser = released(place / "denoiser.pth", dncnn())
    _, _, error = outcome(capsys, denoiser, "own=own", "--inputs", "given")
    assert "denoise makes its inputs from the pictures" in error


def test_every_strength_is_a_set_of_its_own(place: Path) -> None:
    pictures = bbcu.data.sources.Pictures((), {"own": find_pictures(place / "own", "test")})
    scores = score_sets(perturbed(dncnn()), pictures, Denoising((15.0, 50.0), (0.0, 75.0)))
    assert list(scores) == ["own-sigma15", "own-sigma50"]
    weak, strong = (one.baseline["baby"].psnr_db for one in scores.values())
    assert weak > strong


def test_a_perfect_score_is_null_in_json_and_inf_in_the_table() -> None:
    scores = {"A": SetScores({"x": Score(float("inf"), 1.0)}, {"x": Score(30.0, 0.5)})}
    found = document("net", SuperResolution(2), scores)
    assert found["metrics"]["A"] == {"psnr_db": None, "ssim": 1.0, "images": {"x": {"psnr_db": None, "ssim": 1.0}}}
    assert table("net", SuperResolution(2), scores).splitlines()[2].split() == [
        *("A", "1", "inf", "1.0000", "30.00", "0.5000", "+inf", "+0.5000"),
    ]
    equal = SetScores(scores["A"].network, scores["A"].network)
    assert table("net", SuperResolution(2), {"A": equal}).splitlines()[2].split()[-2:] == ["+0.00", "+0.0000"]
