"""The command: what a sweep trains and prints, what a dry run lists, and messages for wrong input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ablations.config import explain
from ablations.storage.attempts import State, history_of, present_state
from ablations.trial.execution import run_trial
from ablations.trial.identity import network_of
from bbcu.errors import BbcuError
from bbcu.model.cost import count
from tests.harness.builders import save
from tests.harness.paths import REPOSITORY
from tests.harness.support import STUDY, Outcome, Workplace, contents, ended, photograph, result_of

# --- sweeps -----------------------------------------------------------------------------------------------------------

FOUR = ("residual=true,false", "bn=pre,post")
FOUR_NAMES = {"bn=pre", "bn=post", "residual=false bn=pre", "residual=false bn=post"}


@pytest.fixture(scope="module")
def swept(new_workplace: Callable[[], Workplace]) -> tuple[Workplace, Outcome]:
    """A sweep over four cells, for tests that train no other."""
    workplace = new_workplace()
    return workplace, workplace.sweep(*FOUR)


def test_a_sweep_trains_and_records_every_combination(swept: tuple[Workplace, Outcome]) -> None:
    workplace, outcome = swept
    assert outcome.status == 0
    assert workplace.names() == FOUR_NAMES
    assert workplace.finished() == workplace.results()
    assert len(workplace.runs()) == 4
    assert "4 cells, 4 trials, 0 done already, 4 to train" in outcome.out


def test_a_sweep_lists_the_score_of_every_trial(swept: tuple[Workplace, Outcome]) -> None:
    workplace, outcome = swept
    for level in ("pre", "post"):
        score = result_of(workplace, f"bn={level}")["metrics"]["Tiny"]["psnr_db"]
        (row,) = [line for line in outcome.out.splitlines() if line.startswith(f"bn={level} ") and " done " in line]
        assert row.split() == [f"bn={level}", "0", "done", f"{score:.2f}", "dB"]


def test_the_same_sweep_again_trains_nothing_and_touches_nothing(swept: tuple[Workplace, Outcome]) -> None:
    workplace, _ = swept
    before = {folder.path: contents(folder.path) for folder in workplace.trials()}
    again = workplace.sweep(*FOUR)
    assert again.status == 0
    assert "nothing to train" in again.out
    assert {folder.path: contents(folder.path) for folder in workplace.trials()} == before
    assert len(workplace.runs()) == 4


def test_a_level_that_is_added_trains_only_the_new_cells(workplace: Workplace) -> None:
    workplace.sweep("bn=pre")
    before = {folder.path: contents(folder.path) for folder in workplace.trials()}
    more = workplace.sweep("bn=pre,post")
    assert "2 trials, 1 done already, 1 to train" in more.out
    assert workplace.names() == {"bn=pre", "bn=post"}
    assert {path: contents(path) for path in before} == before
    assert len(workplace.runs()) == 2


def test_replicates_are_the_cells_under_consecutive_seeds_from_the_given_one(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post", "hydra.sweeper.replicates=2", "seed=5")
    seeds = [(level, seed) for level in ("pre", "post") for seed in (5, 6)]
    expected = sorted((workplace.trial(f"bn={level}").cell.key, seed) for level, seed in seeds)
    assert workplace.finished() == workplace.results() == expected


def left_out(outcome: Outcome) -> list[str]:
    return [line for line in outcome.out.splitlines() if line.startswith("left out: ")]


def test_a_network_that_is_asked_for_twice_is_planned_once_and_named_with_the_reason(dry_workplace: Workplace) -> None:
    outcome = dry_workplace.sweep("residual=false", "act=inside,after", "hydra.sweeper.dry_run=true")
    (line,) = left_out(outcome)
    assert "the same network as residual=false (" in line
    assert "no residual: there is no add" in line
    assert "1 cells, 1 trials" in outcome.out


def test_a_network_without_tiles_fails_before_it_is_trained(workplace: Workplace) -> None:
    line = workplace.run("rescale=channel", "evaluation.tile=16").refusal
    assert line.endswith("evaluation.tile: a part of this network averages over the whole picture, so it has no tiles")
    (folder,) = workplace.trials()
    assert {path.name for path in folder.path.iterdir()} == {".lock", "state.json"}


def test_what_is_left_out_is_named_with_its_network(dry_workplace: Workplace) -> None:
    levels = ("binarize=[tail]", "residual=false", "rescale=none,both")
    outcome = dry_workplace.sweep(*levels, "network=edsr,rdn", "hydra.sweeper.dry_run=true")
    assert [line.partition(": impossible")[0].rpartition(" ")[2] for line in left_out(outcome)] == [
        "network.name=edsr",
        "network.name=rdn",
    ]
    assert "network.groups" not in outcome.out


def test_an_impossible_cell_is_left_out_and_recorded_with_its_reason_while_the_others_run(workplace: Workplace) -> None:
    outcome = workplace.sweep("act=after", "act_fn=hardtanh,relu")
    (line,) = left_out(outcome)
    assert "act_fn=hardtanh" in line
    assert "impossible: hardtanh after the add" in line
    assert workplace.names() == {"act=after act_fn=relu"}
    assert outcome.status == 0
    plan = json.loads((workplace.outputs / STUDY / "plan.json").read_text(encoding="utf-8"))
    (entry,) = plan["left_out"]
    assert entry["levels"]["act_fn"] == "hardtanh"
    assert entry["reason"].startswith("impossible: hardtanh after the add")
    assert [trial["name"] for trial in plan["trials"]] == ["act=after act_fn=relu"]


def test_paths_with_spaces_and_commas_reach_the_trials_of_a_sweep(workplace: Workplace) -> None:
    folder = workplace.folder / "my photos, x=1"
    shutil.copytree(workplace.folder / "train", folder)
    assert workplace.sweep(f"data.train='{folder}'").status == 0
    assert workplace.names() == {"reference"}


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_cell_with_its_cost(dry_workplace: Workplace) -> None:
    outcome = dry_workplace.sweep(*FOUR, "hydra.sweeper.dry_run=true")
    assert outcome.status == 0
    for overrides in (("bn=pre",), ("bn=post",), ("residual=false", "bn=pre"), ("residual=false", "bn=post")):
        trial = dry_workplace.trial(*overrides)
        cost = count(network_of(trial)).total
        (row,) = [line for line in outcome.out.splitlines() if line.startswith(trial.cell.key[:12])]
        assert row.split()[1:] == [*overrides, "0", "to", "train", f"{cost.ops_g:.2f}", f"{cost.params_k:.1f}"]


def test_a_dry_run_counts_at_the_price_of_a_binary_multiply_add(dry_workplace: Workplace) -> None:
    size = ("channels=64", "blocks=16")
    outcome = dry_workplace.sweep(*size, "cost.binary=1/8", "hydra.sweeper.dry_run=true")
    ops = count(network_of(dry_workplace.trial(*size))).total.ops_at(1 / 8)
    header, row, *_ = outcome.out.splitlines()
    assert "  OPs (G) at 1/8  " in header
    assert row.split()[-2] == f"{ops / 1e9:.2f}"


def test_a_dry_run_trains_and_records_nothing(dry_workplace: Workplace) -> None:
    database = dry_workplace.folder / "fresh.db"
    dry_workplace.sweep("bn=pre,post", "hydra.sweeper.dry_run=true", f"tracking.uri=sqlite:///{database}")
    assert not database.exists()
    assert not (dry_workplace.outputs / STUDY).exists()
    assert dry_workplace.is_untouched()


def test_a_dry_run_says_what_is_done_already(swept: tuple[Workplace, Outcome]) -> None:
    workplace, _ = swept
    assert "2 done already, 1 to train" in workplace.sweep("bn=pre,post,out", "hydra.sweeper.dry_run=true").out


def test_a_dry_run_of_a_single_trial_trains_nothing(dry_workplace: Workplace) -> None:
    dry_workplace.run("hydra.sweeper.dry_run=true")
    assert dry_workplace.is_untouched()


# --- a trial of a sweep that fails ------------------------------------------------------------------------------------

ONE_DIVERGES = ("train.lr=1e30,1e-3", "tracking.evaluations=1")
REASON = "the loss is nan at step 2 of 2"


@pytest.fixture(scope="module")
def diverged(new_workplace: Callable[[], Workplace]) -> tuple[Workplace, Outcome]:
    """A sweep whose first trial diverged."""
    workplace = new_workplace()
    return workplace, workplace.sweep(*ONE_DIVERGES)


def test_a_diverged_trial_leaves_its_reason_and_is_not_retried(diverged: tuple[Workplace, Outcome]) -> None:
    workplace, outcome = diverged
    failed, good = (workplace.folder_of(f"train.lr={rate}", ONE_DIVERGES[1]) for rate in ("1e30", "1e-3"))
    assert present_state(failed) == (State.FAILED, REASON)
    assert len(history_of(failed).attempts) == 1
    assert failed.result() is None
    assert good.result() is not None
    assert REASON in outcome.out
    (run,) = workplace.runs("FAILED")
    assert run.data.tags["reason"] == REASON


def test_a_sweep_with_a_failed_trial_ends_with_status_one_and_says_how_many_failed(
    diverged: tuple[Workplace, Outcome],
) -> None:
    _, outcome = diverged
    assert outcome.status == 1
    assert "1 of 2 trials have no result" in outcome.message.splitlines()[-1]
    assert "Traceback" not in outcome.text


def test_two_trials_that_differ_in_their_setting_have_different_names_in_the_summary(
    diverged: tuple[Workplace, Outcome],
) -> None:
    _, outcome = diverged
    (done,) = [line for line in outcome.out.splitlines() if " done " in line and " dB" in line]
    (failed,) = [line for line in outcome.out.splitlines() if " failed " in line]
    assert done.split(" done ")[0].strip() != failed.split(" failed ")[0].strip()


def test_only_a_failed_trial_is_tried_again(diverged: tuple[Workplace, Outcome]) -> None:
    workplace, _ = diverged
    good = workplace.folder_of("train.lr=1e-3").path
    before, failures = contents(good), len(workplace.runs("FAILED"))
    again = workplace.sweep(*ONE_DIVERGES)
    assert "2 trials, 1 done already, 1 to train" in again.out
    assert again.status == 1
    assert contents(good) == before
    assert (len(workplace.runs("FINISHED")), len(workplace.runs("FAILED"))) == (1, failures + 1)


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A workplace with every kind of unusable folder beside the pictures."""
    workplace = new_workplace()
    folder = workplace.folder
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a database, a folder or a picture\n" * 100, encoding="utf-8")
    save(photograph(0, 12), folder / "small" / "speck.png")
    whole = (folder / "train" / "first.png").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"not a picture")):
        (folder / name).mkdir()
        (folder / name / "broken.png").write_bytes(data)
    return workplace


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Overrides that cannot be run, and the words of the message; FOLDER stands for the workplace."""

    overrides: str
    names: tuple[str, ...]
    sweep: bool = False
    without: tuple[str, ...] = ()

    def overrides_in(self, workplace: Workplace) -> list[str]:
        return self.overrides.replace("FOLDER", str(workplace.folder)).split(" ") if self.overrides else []

    def outcome(self, workplace: Workplace) -> Outcome:
        """The whole command."""
        overrides = self.overrides_in(workplace)
        return workplace.sweep(*overrides) if self.sweep else workplace.run(*overrides, without=self.without)

    def refusal(self, workplace: Workplace) -> str:
        """What the command prints after its name, without the rest of the command, which takes Hydra long."""
        overrides = self.overrides_in(workplace)
        run = workplace.plan if self.sweep else lambda *given: run_trial(workplace.config(*given, without=self.without))
        with pytest.raises((BbcuError, HydraException, OmegaConfBaseException)) as refused:
            run(*overrides)
        return str(refused.value) if isinstance(refused.value, BbcuError) else explain(refused.value)


WRONG = {
    "level": Wrong("residual=maybe", ("residual=maybe", "true, false, block, scaled")),
    "level-in-a-sweep": Wrong("bn=pre,typo", ("bn=typo", "none, pre, post, branch, out"), sweep=True),
    "no-value": Wrong("residual", ("residual", "EQUAL")),
    "key": Wrong("bogus=1", ("'bogus'", "residual, bn, act")),
    "key-in-a-group": Wrong("train.bogus=1", ("'train.bogus'", "train.steps")),
    "key-that-is-added": Wrong("+bogus=1", ("bogus",)),
    "key-that-is-added-in-a-sweep": Wrong("+bogus=1,2", ("bogus",), sweep=True),
    "key-that-is-taken-away": Wrong("~residual", ("no value for residual",)),
    "key-of-the-sweeper": Wrong("hydra.sweeper.bogus=1", ("'hydra.sweeper.bogus'", "hydra.sweeper.replicates"), True),
    "not-a-number": Wrong("train.steps=abc", ("train.steps", "abc")),
    "number-out-of-range": Wrong("train.steps=0", ("train.steps=0", "at least 1")),
    "infinite-learning-rate": Wrong("train.lr=inf", ("train.lr=inf",)),
    "seed-beyond-what-a-generator-takes": Wrong(f"seed={10**23}", (f"seed={10**23}",)),
    "precision": Wrong("train.precision=fp16", ("train.precision=fp16", "fp32, bf16")),
    "threads": Wrong("threads=0", ("threads=0", "from 1 to 1024")),
    "option-of-train": Wrong("train=typo", ("train=typo", "valid: quick, released")),
    "launcher": Wrong("hydra/launcher=typo", ("hydra/launcher=typo", "valid:", "basic"), sweep=True),
    "several-values-without-m": Wrong("bn=pre,post", ("bn=pre,post", "-m")),
    "replicates-without-m": Wrong("hydra.sweeper.replicates=3", ("hydra.sweeper.replicates", "-m")),
    "no-replicate": Wrong("hydra.sweeper.replicates=0", ("hydra.sweeper.replicates=0", "at least 1"), sweep=True),
    "interval": Wrong("align=interval(1,2)", ("align", "interval"), sweep=True),
    "glob-that-matches-nothing": Wrong("bn=glob(*)", ("bn", "glob"), sweep=True),
    "swept-threads": Wrong("threads=1,2", ("threads",), sweep=True),
    "swept-outputs": Wrong("outputs=FOLDER/a,FOLDER/b", ("outputs",), sweep=True),
    "swept-study": Wrong("study.name=a,b", ("study.name", "a", "b"), sweep=True),
    "alignment-below-zero": Wrong("align=-1", ("align=-1", "auto, a positive number")),
    "alignment-that-is-not-a-number": Wrong("align=abc", ("align=abc", "auto, a positive number")),
    "impossible-cell": Wrong("act=after act_fn=hardtanh", ("hardtanh after the add",)),
    "only-impossible-cells": Wrong("act=after act_fn=hardtanh", ("hardtanh after the add",), sweep=True),
    "data-without-test": Wrong("", ("data.test",), without=("data.test",)),
    "missing-folder": Wrong("data.train=FOLDER/nowhere", ("FOLDER/nowhere", "does not exist")),
    "missing-folder-in-a-sweep": Wrong("data.train=FOLDER/train,FOLDER/nowhere", ("FOLDER/nowhere",), sweep=True),
    "empty-folder": Wrong("data.train=FOLDER/empty", ("FOLDER/empty", "no image")),
    "cut-picture": Wrong("data.train=FOLDER/cut", ("FOLDER/cut/broken.png", "truncated")),
    "text-named-png": Wrong("data.train=FOLDER/text", ("FOLDER/text/broken.png", "PNG")),
    "picture-smaller-than-a-patch": Wrong("data.train=FOLDER/small", ("FOLDER/small/speck.png", "12 x 12", "16 x 16")),
    "test-set-named-like-a-group-of-metrics": Wrong("data.test={train:FOLDER/test}", ("train",)),
    "data-without-training-pictures": Wrong("", ("no value for data.train", "data.train=DIR"), without=("data.train",)),
    "bicubic-in-denoising": Wrong("method=bicubic task=denoise", ("method=bicubic", "denoise", "method=identity")),
    "identity-in-super-resolution": Wrong("method=identity", ("method=identity", "sr_x2", "method=bicubic")),
    "strength-of-another-task": Wrong("task.sigma=25 task=sr_x2", ("task.sigma=25", "sr_x2")),
    "strength-out-of-range": Wrong("task=denoise task.sigma=300", ("task.sigma=300", "at most 255")),
    "strength-that-is-not-a-number": Wrong("task=denoise task.sigma=strong", ("task.sigma=strong", "a number")),
    "quality-out-of-range": Wrong("task=jpeg task.quality=0", ("task.quality=0", "1 to 100")),
    "network-that-does-not-enlarge": Wrong("task=sr_x2 network=dncnn", ("network=dncnn", "the task's scale is 2")),
    "range-with-its-ends-swapped": Wrong(
        "task=jpeg task.train_quality=[50,1]", ("task.train_quality=[50, 1]", "must be a range")
    ),
    "inputs": Wrong("data.inputs=found", ("data.inputs=found", "made, given")),
    "given-inputs-of-a-plain-folder": Wrong("data.inputs=given", ("FOLDER/train", "plain folder", "X2")),
    "given-inputs-of-denoising": Wrong("data.inputs=given task=denoise", ("data.inputs=given", "denoise", "made")),
    "given-inputs-of-the-photographs": Wrong(
        "data=embedded data.inputs=given",
        ("data.inputs=given", "data=embedded", "data=folder"),
        without=("data.train", "data.test"),
    ),
    "tile-below-zero": Wrong("evaluation.tile=-1", ("evaluation.tile=-1", "at least 0")),
    "swept-tile": Wrong("evaluation.tile=0,16", ("evaluation.tile",), sweep=True),
    "number-of-5000-digits": Wrong(f"seed={'9' * 5000}", ("seed", "at most 255 digits")),
    "rate-beyond-floating-point": Wrong(f"train.lr={'9' * 200}", ("train.lr=", "at most 1e+38")),
    "snapshots-at-nan": Wrong("tracking.snapshot_s=nan", ("tracking.snapshot_s=nan", "at least 0")),
    "channels-by-the-hundred-thousand": Wrong("channels=100000", ("channels=100000", "at most 4096")),
    "more-memory-than-there-is": Wrong("channels=4096 blocks=300", ("channels=4096", "GiB of memory")),
    "threads-by-the-million": Wrong("threads=1000000", ("threads=1000000", "from 1 to 1024")),
    "replicates-by-the-thousand-million": Wrong(
        f"hydra.sweeper.replicates={10**9}", ("hydra.sweeper.replicates=", "at most 200000"), sweep=True
    ),
    "seeds-beyond-the-last": Wrong(
        f"seed={2**63 - 1} hydra.sweeper.replicates=2", ("hydra.sweeper.replicates=2", "the last seed"), sweep=True
    ),
    "range-by-the-thousand-million": Wrong(f"seed=range(1,{10**9})", ("seed", "200000"), sweep=True),
    "range-without-end": Wrong("align=range(1,inf)", ("align", "finite ends"), sweep=True),
    "range-that-stands-still": Wrong("seed=range(1,9,0)", ("seed", "step that is not 0"), sweep=True),
    "rows-by-the-thousand-million": Wrong(
        "seed=range(1,1000) align=range(1,1000) blocks=range(1,1000)", ("997002999 combinations",), sweep=True
    ),
    "steps-that-are-numbers": Wrong(
        "hydra.sweeper.design=chain hydra.sweeper.steps=[1]", ("hydra.sweeper.steps: 1 is not",), sweep=True
    ),
    "search-for-an-unknown-objective": Wrong(
        "hydra.sweeper.design=search hydra.sweeper.trials=2 hydra.sweeper.objectives=[psnr_db,x] bn=pre,post "
        "hydra.sweeper.dry_run=true",
        ("hydra.sweeper.objectives", "unknown objective 'x'"),
        sweep=True,
    ),
    "price-above-one": Wrong("cost.binary=3/2", ("cost.binary=3/2: must be a fraction such as 1/64 or 1/8",)),
    "price-that-is-measured-by-nothing": Wrong(
        "cost.binary=measured", ("cost.binary=measured: needs measure.latency=true",)
    ),
    "price-that-is-swept": Wrong("cost.binary=1/64,1/8", ("cost.binary: says where or how to run",), sweep=True),
    "device-without-memory": Wrong("device=meta", ("device=meta", "auto, cpu, cuda")),
    "test-set-named-by-a-number": Wrong("data.test={14:FOLDER/test}", ("data.test", "14 is not", "Set14")),
    "study-with-a-long-name": Wrong(f"study.name={'n' * 260}", ("study.name", "1 to 100 letters")),
    "session-outside-the-outputs": Wrong("session=../../x", ("session", "'../../x'")),
    "outputs-with-a-control-character": Wrong("outputs='FOLDER/a\x01b'", ("outputs", "control characters")),
    "value-that-interpolates-itself": Wrong("residual=${residual}", ("residual", "Recursive interpolation")),
    "value-that-interpolates-nothing": Wrong("residual=${nope}", ("residual", "'nope' not found")),
    "metric-without-brackets": Wrong("evaluation.metrics=a.b", ("evaluation.metrics: must be a list in brackets",)),
    "part-that-is-not-binary": Wrong("binarize=[[body]]", ("binarize=", "any of head, body, up, tail")),
    "folder-of-hydra": Wrong("hydra.run.dir=/proc/x", ("/proc/x",)),
    "folder-of-hydra-in-a-sweep": Wrong("hydra.sweep.dir=/proc/x", ("hydra.sweep.dir=/proc/x",), sweep=True),
    "relative-path-of-a-part": Wrong("surrogate=..x", ("surrogate", "'..x'", "dotted path")),
    "network-that-is-not-one": Wrong("network.name=torch.nn.Linear", ("network.name=torch.nn.Linear", "out_features")),
    "list-within-lists": Wrong(f"residual={'[' * 400}{']' * 400}", ("RecursionError",)),
    "study-outside-the-outputs": Wrong("study.name=../x", ("study.name", "../x")),
    "database-in-no-folder": Wrong("tracking.uri=sqlite:////proc/x/mlflow.db", ("tracking.uri=", "/proc/x")),
    "file-that-is-not-a-database": Wrong("tracking.uri=sqlite:///FOLDER/file", ("tracking.uri=", "FOLDER/file")),
    "tracking-of-an-unknown-kind": Wrong("tracking.uri=foo://x", ("tracking.uri=foo://x", "sqlite")),
    "outputs-in-a-file": Wrong("outputs=FOLDER/file", ("FOLDER/file",)),
    "outputs-in-a-file-in-a-sweep": Wrong("outputs=FOLDER/file", ("FOLDER/file",), sweep=True),
}


WHOLE = {
    *("level", "level-in-a-sweep", "no-value", "key", "key-that-is-added-in-a-sweep", "key-of-the-sweeper"),
    *("not-a-number", "option-of-train", "launcher", "several-values-without-m", "replicates-without-m"),
    *("no-replicate", "impossible-cell", "data-without-test", "missing-folder-in-a-sweep", "text-named-png"),
    *("number-of-5000-digits", "replicates-by-the-thousand-million", "search-for-an-unknown-objective"),
    *("outputs-with-a-control-character", "value-that-interpolates-itself", "list-within-lists", "folder-of-hydra"),
    *("folder-of-hydra-in-a-sweep", "study-outside-the-outputs", "database-in-no-folder"),
    *(
        "tracking-of-an-unknown-kind",
        "file-that-is-not-a-database",
        "outputs-in-a-file",
        "outputs-in-a-file-in-a-sweep",
    ),
    *("outputs-in-a-file-in-a-sweep", "seeds-beyond-the-last", "steps-that-are-numbers"),
}
"""The inputs that are tried with the whole command: of each kind, and what Hydra or the command itself refuses."""


@pytest.mark.parametrize("name", [name for name in WRONG if name in WHOLE])
def test_wrong_input_gets_a_message_of_at_most_two_lines_and_nothing_runs(spoiled: Workplace, name: str) -> None:
    outcome = WRONG[name].outcome(spoiled)
    assert outcome.status != 0
    assert 1 <= len(outcome.message.splitlines()) <= 2
    for word in WRONG[name].names:
        assert word.replace("FOLDER", str(spoiled.folder)) in outcome.message
    assert "Traceback" not in outcome.text
    assert spoiled.is_untouched()


@pytest.mark.parametrize("name", [name for name in WRONG if name not in WHOLE])
def test_a_config_or_a_plan_that_is_wrong_is_refused_in_one_line_before_anything_runs(
    spoiled: Workplace, name: str
) -> None:
    (line,) = WRONG[name].refusal(spoiled).splitlines()
    for word in WRONG[name].names:
        assert word.replace("FOLDER", str(spoiled.folder)) in line
    assert spoiled.is_untouched()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("study: {name: [", "mine.yaml, line", id="a list that is not closed"),
        pytest.param("a: &a [*a]", "RecursionError", id="a list that contains itself"),
        pytest.param(f"residual: {'[' * 5000}{']' * 5000}", "RecursionError", id="lists within lists"),
        pytest.param(f"seed: {'9' * 5000}", "5000 digits", id="a number of 5000 digits"),
        pytest.param(f"train: {{lr: {'9' * 400}}}", "too large", id="a rate beyond floating point"),
        pytest.param("seed: !!python/object/apply:os.getpid []", "mine.yaml, line", id="a call of Python"),
        pytest.param("- a", "study/mine", id="a list of keys"),
    ],
)
def test_a_config_file_that_cannot_be_read_gets_one_line(dry_workplace: Workplace, text: str, message: str) -> None:
    folder = dry_workplace.folder / "conf" / "study"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    outcome = dry_workplace.run("study=mine", f"--config-dir={folder.parent}")
    assert message in outcome.refusal
    assert dry_workplace.is_untouched()


@pytest.mark.parametrize("name", ["a%41b?c#d quo'te\"", "$HOME ~ a\\${b}"])
def test_outputs_are_taken_literally(workplace: Workplace, name: str) -> None:
    text = name.replace("'", "\\'")
    assert workplace.sweep(f"outputs='{workplace.folder}/{text}'").status == 0
    (found,) = workplace.folder.glob("*/adhoc/*/seed0/result.json")
    assert found.parents[3].name == name.replace("\\$", "$")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", [Workplace.run, Workplace.sweep], ids=["trial", "sweep"])
def test_a_missing_device_gets_one_line_and_nothing_runs(
    dry_workplace: Workplace, command: Callable[..., Outcome]
) -> None:
    outcome = command(dry_workplace, "device=cuda")
    assert outcome.status != 0
    assert "device=cuda" in outcome.message
    assert len(outcome.message.splitlines()) == 1
    assert dry_workplace.is_untouched()


def test_a_shell_sees_status_one_and_one_line_for_a_wrong_input(dry_workplace: Workplace) -> None:
    with ended(dry_workplace.start_interpreter("-m", *dry_workplace.overrides("residual=true,maybe"))) as process:
        out, message = process.communicate(timeout=600)
    assert process.returncode == 1
    assert message == "run.py: residual=maybe: unknown level 'maybe'; valid: true, false, block, scaled\n"
    assert out == ""


PROBE = f"""
import runpy, sys
try:
    runpy.run_path({str(REPOSITORY / "run.py")!r}, run_name="__main__")
except SystemExit as leaving:
    print(leaving.code)
print(sorted({{"torch", "mlflow"}} & set(sys.modules)))
"""


def test_a_mistyped_level_is_refused_before_torch_and_mlflow_are_imported(dry_workplace: Workplace) -> None:
    command = [sys.executable, "-c", PROBE, *dry_workplace.overrides("residual=maybe")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=dry_workplace.folder)
    refusal, imported = done.stdout.splitlines()
    assert refusal == "run.py: residual=maybe: unknown level 'maybe'; valid: true, false, block, scaled"
    assert imported == "[]"
    assert dry_workplace.is_untouched()
