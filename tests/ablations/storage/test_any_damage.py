"""Any damage to any file of a study: every reader knows the same facts as before, or the file is named."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from ablations.storage.attempts import State, begin_attempt, end_attempt, history_of, present_state
from ablations.storage.files import DamagedFile, write_sealed
from ablations.storage.folder import TrialFolder, trial_folders
from ablations.storage.lease import lease_path, leases
from ablations.storage.plans import plan_path, read_plan
from ablations.storage.pruning import open_request, request_path
from ablations.storage.snapshots import Snapshots
from ablations.storage.status import StatusReader, record_of
from ablations.trial.changes import EarlierPictures
from analysis.study.loading import load_folder
from tests.ablations.storage.helpers import put_lease
from tests.harness.studies import trial, write_folder

STUDY = "components"


@dataclasses.dataclass(frozen=True, repr=False)
class Facts:
    """What the commands know of a study, and the files that they name as damaged."""

    by_trial: Mapping[tuple[str, int], Any]
    study: Mapping[str, Any]
    named: frozenset[str]


class Known:
    """Collects facts; a damaged file that is named is none."""

    def __init__(self) -> None:
        self.named: set[str] = set()

    def of(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except DamagedFile as error:
            self.named.add(error.path.name)
            return None


def facts_of(outputs: Path) -> Facts:
    """Read a study as status, sync, reports and sweeps read it."""
    known = Known()
    status = StatusReader(outputs, STUDY).read()
    record = json.loads(json.dumps(record_of(status)))
    if status.damage is not None:
        known.named.add(status.damage.path.name)
    report = known.of(lambda: load_folder(outputs / STUDY))
    EarlierPictures(outputs, STUDY)
    by_trial: dict[tuple[str, int], Any] = {}
    for row in record["trials"]:
        if row["damaged"]:
            known.named.add(Path(row["damaged"]).name)
        row["log"] = row["damaged"] = None
        by_trial[row["cell"], row["seed"]] = {"status": row}
    for folder in trial_folders(outputs, STUDY):
        facts = by_trial[folder.cell, folder.seed]
        facts["result"] = known.of(folder.checked_result)
        facts["curve"] = known.of(folder.curve)
        facts["state"] = present_state(folder)
        history = history_of(folder)
        facts["attempts"] = history.attempts
        if history.damage is not None:
            known.named.add(history.damage.path.name)
        request = open_request(folder)
        facts["request"] = None if request is None else (request.step, request.psnr_db)
    if report is not None:
        for _, row in report.trials.iterrows():
            by_trial[row["cell"], row["seed"]]["report"] = {name: str(value) for name, value in row.items()}
        for identity, curve in report.curves.groupby(["cell", "seed"]):
            by_trial[identity]["report curve"] = curve[["step", "metric", "value"]].to_csv(index=False)
    study = {
        "counts": record["counts"],
        "excluded": record["excluded"],
        "plan": known.of(lambda: read_plan(outputs, STUDY)),
        "leases": leases(outputs, STUDY),
    }
    return Facts(by_trial, study, frozenset(known.named))


@dataclasses.dataclass(frozen=True, repr=False)
class Subject:
    """A study with every kind of file, and its facts before any damage."""

    outputs: Path
    facts: Facts
    files: Mapping[str, Path]
    without: Mapping[str, Facts]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two finished trials; a third that runs and asks the pruner, and a fourth that has failed."""
    outputs = tmp_path_factory.mktemp("damage")
    write_folder(outputs, [trial(0), trial(0, bn="post")], planned=[trial(1)])
    first, _ = trial_folders(outputs, STUDY)
    running, failed = (TrialFolder(outputs, STUDY, first.cell, seed) for seed in (5, 6))
    begin_attempt(running)
    write_sealed(lease_path(running), dataclasses.asdict(put_lease(running)))
    write_sealed(request_path(running), {"step": 1, "psnr_db": 30.0})
    begin_attempt(failed)
    end_attempt(failed, State.FAILED, "out of memory")
    files = {
        "result.json": first.result_path,
        "curve.csv": first.curve_path,
        "plan.json": plan_path(outputs, STUDY),
        "state.json": failed.state_path,
        "lease": lease_path(running),
        "request": request_path(running),
    }
    facts = facts_of(outputs)
    assert facts.named == frozenset()
    assert facts.study["leases"] != []
    assert {known.get("request") for known in facts.by_trial.values()} == {None, (1, 30.0)}
    without = {}
    for name in VOLATILE:
        with replaced(files[name], None):
            without[name] = facts_of(outputs)
    return Subject(outputs, facts, files, without)


VOLATILE = ("lease", "request")
"""Files on which no result depends: a damaged one is ignored, as if it were not there."""


@contextlib.contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Replace a file, or remove it, within the ``with`` block; its date stays."""
    before, moment = path.read_bytes(), path.stat().st_mtime_ns
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
        os.utime(path, ns=(moment, moment))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(moment, moment))


JSON_VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.sampled_from([10**400, 1e308, "", "a" * 64, "finished", "../x", "\x1b[2J"])
    | strategies.text(max_size=8),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=8), inner),
    max_leaves=5,
)


@strategies.composite
def edits(draw: strategies.DrawFn, content: bytes) -> bytes:
    """The bytes after one edit: flipped, cut, inserted, replaced or taken out."""
    start = draw(strategies.integers(0, len(content)))
    end = draw(strategies.integers(start, min(len(content), start + 400)))
    kind = draw(strategies.sampled_from(["flip", "cut", "insert", "replace", "digit", "remove", "repeat"]))
    if kind == "flip" and start < len(content):
        flipped = content[start] ^ (1 << draw(strategies.integers(0, 7)))
        return content[:start] + bytes([flipped]) + content[start + 1 :]
    if kind == "digit":
        digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
        place = draw(strategies.sampled_from(digits or [0]))
        return content[:place] + str(draw(strategies.integers(0, 9))).encode() + content[place + 1 :]
    if kind == "cut":
        return content[:start]
    if kind == "repeat":
        return content[:end] + content[start:]
    new = b"" if kind == "remove" else draw(strategies.binary(max_size=20))
    return content[:start] + new + content[start if kind == "insert" else end :]


@strategies.composite
def values_put(draw: strategies.DrawFn, content: bytes) -> bytes:
    """A JSON file in which one value is any other value, or is gone, or has another key."""
    try:
        tree = json.loads(content)
    except ValueError:
        return json.dumps(draw(JSON_VALUES)).encode()
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, below in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(below, (dict, list)):
                walk(below)

    walk(tree)
    node, key = draw(strategies.sampled_from(places))
    how = draw(strategies.sampled_from(["replace", "remove", "rename", "whole"]))
    if how == "whole":
        return json.dumps(draw(JSON_VALUES)).encode()
    before = node.pop(key)
    if how == "replace":
        node.insert(key, draw(JSON_VALUES)) if isinstance(node, list) else node.update({key: draw(JSON_VALUES)})
    elif how == "rename" and isinstance(node, dict):
        node[draw(strategies.text(max_size=8))] = before
    return json.dumps(tree, ensure_ascii=draw(strategies.booleans())).encode(errors="surrogatepass")


@pytest.mark.parametrize("name", ["result.json", "curve.csv", "plan.json", "state.json", *VOLATILE])
@hypothesis.given(data=strategies.data())
def test_any_damage_leaves_the_facts_as_they_were_or_is_named(
    subject: Subject, name: str, data: strategies.DataObject
) -> None:
    path, before = subject.files[name], subject.facts
    content = data.draw(edits(path.read_bytes()) | values_put(path.read_bytes()))
    with replaced(path, content):
        facts = facts_of(subject.outputs)
    if name in VOLATILE:
        assert not differences(facts, before) or not differences(facts, subject.without[name])
    elif name not in facts.named:
        assert differences(facts, before) == []
    elif name == "plan.json":
        assert facts.study["counts"]["planned"] is None
        results = {identity: known["result"] for identity, known in before.by_trial.items() if "result" in known}
        assert {identity: known["result"] for identity, known in facts.by_trial.items()} == results
    else:
        own = (path.parent.parent.name, int(path.parent.name.removeprefix("seed")))
        assert facts.by_trial[own]["status"]["state"] == State.INTERRUPTED
        assert facts.by_trial[own]["status"]["reason"].startswith(f"its {name} is damaged: ")
        assert set(differences(facts, before)) <= {own, "counts"}


def differences(facts: Facts, before: Facts) -> list[Any]:
    """The trials and the facts of the study that are not known as before."""
    pairs = ((facts.by_trial, before.by_trial), (facts.study, before.study))
    return [key for one, other in pairs for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


@hypothesis.given(data=strategies.data())
def test_any_damage_to_a_snapshot_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: strategies.DataObject
) -> None:
    snapshots = Snapshots(tmp_path_factory.mktemp("snapshots"), {"seed": 0})
    snapshots.save(1, {"training": {"step": 1}})
    (path,) = snapshots._folder.glob("*.pt")
    before = path.read_bytes()
    content = data.draw(edits(before))
    path.write_bytes(content)
    assert snapshots.newest() == ({"training": {"step": 1}} if content == before else None)
