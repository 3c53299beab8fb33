"""Show a study's report in MLflow: its files as a run, its opening and its verdicts as descriptions."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ablations.storage.folder import Identity
from ablations.tracking.client import client_of, experiment_id, one_line_errors, search_runs
from ablations.tracking.described import describe_runs, describe_study
from analysis.report.chapter import Chapter
from analysis.report.markup import Markdown, joined
from analysis.report.words import why

KIND = "report"
"""The name of the MLflow run that shows a study's report, and the value of its tag ``kind``."""

MOST_VERDICTS = 8
"""The most verdicts in the description of a run; the reference cell is in every one."""


@dataclasses.dataclass(frozen=True)
class Said:
    """What a report says, for the descriptions in MLflow, in Markdown.

    ``opening`` is of the study, ``verdicts`` of each cell by its key; ``collapsed`` has every finished trial, with the
    evidence that it collapsed, empty if it did not.
    """

    opening: str
    verdicts: Mapping[str, Sequence[str]]
    collapsed: Mapping[Identity, str]


def said_by(page: str, chapters: Iterable[Chapter]) -> Said:
    """Return what a report says, from its page in Markdown and its chapters."""
    verdicts: dict[str, list[str]] = {}
    collapsed: dict[Identity, str] = {}
    several = [chapter for chapter in chapters if chapter.cells]
    for chapter in several:
        task = f"{chapter.results.title}, " if len(several) > 1 else ""
        for cell, told in verdicts_of(chapter).items():
            verdicts.setdefault(cell, []).extend(f"{task}{line}" for line in told)
        results = chapter.results.finished
        found = chapter.results.collapsed
        identities = zip(results["cell"].tolist(), results["seed"].tolist(), strict=True)
        collapsed |= {identity: found.get(identity, "") for identity in identities}
    return Said(opening_in(page), verdicts, collapsed)


def verdicts_of(chapter: Chapter) -> dict[str, list[str]]:
    """Return the lines with the verdicts on each cell: what leads to it, then what leads away from it."""
    reached: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    for row in chapter.rows:
        told = [
            Markdown("**{}** on {} ({})").format(str(found.conclusion), name, why(found))
            for name, found in row.by_set.items()
            if found.conclusion is not None
        ]
        before, after = row.pair
        for cell, lines, form in ((after, reached, "{}: {}"), (before, left, "from this cell: {}: {}")):
            if told:
                lines.setdefault(cell, []).append(str(Markdown(form).format(row.label, joined(told, "; "))))
    cells = dict.fromkeys([*reached, *left])
    return {cell: shortened([*reached.get(cell, []), *left.get(cell, [])]) for cell in cells}


def shortened(lines: Sequence[str]) -> list[str]:
    more = [f"and {len(lines) - MOST_VERDICTS} other verdicts"] if len(lines) > MOST_VERDICTS else []
    return [*lines[:MOST_VERDICTS], *more]


def opening_in(page: str) -> str:
    """Return the opening of a page without its pictures and links to files, which MLflow cannot show in a description.

    The title is set in bold, since a description stands below a title already.
    """
    opening = page.partition("\n## ")[0].replace("# ", "", 1).strip()
    title, _, rest = opening.partition("\n")
    shown = re.sub(r"^!?\[[^\n]*\]\([\w.-]+\)$\n*", "", rest, flags=re.MULTILINE).strip()
    return f"**{title}**\n\n{shown}"


def log_report(tracking_uri: str, study: str, paths: Mapping[str, Path], said: Said | None = None) -> str:
    """Log a report to MLflow as the artifacts of one run named ``report``, and return that run's id.

    ``paths`` maps names there to files. The run of an earlier report is deleted. The run has no cell, so nothing
    mistakes it for a trial. What the report says becomes the descriptions of the study and of its trials' runs. Raises
    TrackingError if MLflow cannot be reached.
    """
    with one_line_errors(tracking_uri):
        client, experiment = client_of(tracking_uri), experiment_id(tracking_uri, study)
        runs = search_runs(tracking_uri, experiment)
        run = client.create_run(experiment, run_name=KIND, tags={"kind": KIND, "study": study})
        for name, path in paths.items():
            client.log_artifact(run.info.run_id, str(path), str(Path(name).parent) if "/" in name else None)
        client.set_terminated(run.info.run_id, "FINISHED")
        for old in runs:
            if old.data.tags.get("kind") == KIND:
                client.delete_run(old.info.run_id)
        if said is not None:
            describe_study(client, experiment, said.opening)
            describe_runs(client, runs, said.verdicts, said.collapsed)
    return str(run.info.run_id)
