"""Print what a sweep will do, the results of a search, and the verdicts of a sweep that trains what is undecided."""

from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ablations.planning.plan import Plan
from ablations.space.factors import SHOWN
from ablations.space.price import PAPER, price_of
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from ablations.storage.plans import name_in_plan, trial_names
from ablations.trial.identity import Trial, baseline_label, meta_network, trains
from bbcu.errors import printable
from bbcu.model.methods import BASELINE
from bbcu.terminal import say

if TYPE_CHECKING:
    from ablations.decide.decisions import Decisions
    from bbcu.model.cost import Cost

DONE, TO_LOG, TO_MEASURE, TO_SCORE, TO_TRAIN = "done", "to log", "to measure", "to score", "to train"
"""The work that remains for a planned trial."""


def names_in(plan: Plan) -> dict[Identity, str]:
    """Return the name of each trial of a plan, as ``python -m ablations status`` prints it."""
    return trial_names(
        (
            entry.identity,
            name_in_plan(entry.trial.name, only_teaches=entry.only_teaches),
            entry.trial.cell.setting,
        )
        for entry in plan.trials
    )


def print_counts(plan: Plan, states: Mapping[Identity, str]) -> None:
    """Print how many cells and trials there are, and how many are left to train."""
    to_train = sum(states[entry.identity] == TO_TRAIN for entry in plan.trials)
    to_measure = sum(states[entry.identity] == TO_MEASURE for entry in plan.trials)
    to_score = sum(states[entry.identity] == TO_SCORE for entry in plan.trials)
    done = len(plan.trials) - to_train
    cells = len({entry.identity[0] for entry in plan.trials})
    what = f"{to_train} to train" if to_train else "nothing to train"
    if to_measure:
        what += f", the latency of {to_measure} to measure"
    if to_score:
        what += f", the metrics of {to_score} to score"
    say(f"study {plan.study}: {cells} cells, {len(plan.trials)} trials, {done} done already, {what}")
    if teachers := len(plan.trials) - len(plan.listed):
        say(f"{teachers} of these trials only teach others, and are compared with nothing")


def print_left_out(plan: Plan) -> None:
    """Print each combination that is not trained, with what tells its setting from the others, and the reason."""
    rows = [(f"left out {number}", entry) for number, entry in enumerate(plan.left_out)]
    left_out = (((row, 0), entry.name, entry.setting) for row, entry in rows)
    trials = ((entry.identity, entry.trial.name, entry.trial.cell.setting) for entry in plan.trials)
    names = trial_names((*left_out, *trials))
    for row, entry in rows:
        say(f"left out: {names[row, 0]}: {entry.reason}")


def print_design(plan: Plan) -> None:
    """Print the limitations of the design, and conditions that may be mistyped because they excluded nothing."""
    for note in plan.design["notes"]:
        say(f"design {plan.design['name']}: {note}")
    for condition in plan.unused_conditions:
        say(f'hydra.sweeper.exclude: "{condition}" left nothing out')


def print_dry_run(plan: Plan, states: Mapping[Identity, str]) -> None:
    """Print the trials of a plan with their cost, at the price of a binary multiply-add that the config sets."""
    from bbcu.model.cost import printed_g

    given = plan.trials[0].config.cost.binary
    price = price_of(given) or Fraction(PAPER)
    ops = "OPs (G)" if price == Fraction(PAPER) else f"OPs (G) at {given}"
    costs: dict[Hashable, Cost] = {}
    names = names_in(plan)
    rows = []
    for entry in plan.trials:
        if entry.structure not in costs:
            costs[entry.structure] = cost_of(entry.trial)
        cost = costs[entry.structure]
        key, seed = entry.identity
        facts = [key[:SHOWN], names[entry.identity], str(seed), states[entry.identity]]
        rows.append([*facts, printed_g(cost.ops_at(float(price))), f"{cost.params_k:.1f}"])
    print_table(["cell", "levels", "seed", "state", ops, "params (K)"], rows)
    print_left_out(plan)
    print_design(plan)
    print_counts(plan, states)


def cost_of(trial: Trial) -> "Cost":
    from bbcu.model.cost import Cost, count

    if trial.cell.setting["network"]["name"] == BASELINE:
        return Cost(0, 0)
    return count(meta_network(trial)).total


def baseline_line(result: Mapping[str, Any]) -> str:
    """Return the scores of the baseline on each test set of a result as one line."""
    scores = result["baseline"].items()
    sets = (f"{name} {score['psnr_db']:.2f} dB / {score['ssim']:.4f}" for name, score in scores)
    return f"{result['task']}, {baseline_label(result)}: {', '.join(sets)}"


# --- sweeps with a stopping rule --------------------------------------------------------------------------------------


def print_rule(plan: Plan, rule: StoppingRule, earlier: int) -> None:
    """Print how much a stopping rule may ask for; ``earlier`` is the number of results that count in no verdict."""
    cells = {entry.identity[0] for entry in plan.trials}
    compared = {cell for family in rule.families for pair in family for cell in pair}
    compared |= {entry.trial.teacher for entry in plan.trials if entry.identity[0] in compared and entry.trial.teacher}
    most = len(cells) * rule.first_look + len(compared) * (rule.last_look - rule.first_look)
    comparisons = sum(map(len, rule.families))
    of = "1 comparison" if comparisons == 1 else f"{comparisons} comparisons"
    say(f"until=decided: {of}, looks at {rule.looks_in_words} seeds, at most {most} trials")
    if earlier:
        results = "1 result" if earlier == 1 else f"{earlier} results"
        say(
            f"study {plan.study}: {results} from before the rule count{'s' * (earlier == 1)} in no verdict; "
            f"its seeds begin at {rule.first_seed}"
        )


def print_comparisons(decisions: "Decisions") -> None:
    """Print what has become of every comparison on each test set, and at which look."""
    sets = sorted({name for found in decisions.comparisons for name in found.on})
    rows = [
        [decisions.title(found), *(found.conclusion(name) for name in sets), str(found.seeds)]
        for found in decisions.comparisons
    ]
    print_table(["comparison", *sets, "seeds"], rows)


def print_spent(plan: Plan, rule: StoppingRule) -> None:
    """Print how many trainings there were, and how many a fixed number of seeds would have taken."""
    trained = [entry for entry in plan.trials if trains(entry.config)]
    every = len({entry.identity[0] for entry in trained}) * rule.last_look
    say(f"{len(trained)} trainings; {rule.last_look} seeds for every cell would have been {every}")


# --- searches and tables ----------------------------------------------------------------------------------------------


def print_search(report: Mapping[str, Any]) -> None:
    """Print the best cell of a search, or its Pareto front."""
    records = report["front"] if "front" in report else [report["best"]] if report["best"] else []
    rows = [
        [
            " ".join(text for text in record["row"] if text.partition("=")[0] in report["keys"]),
            *(f"{record['values'][name]:.4g}" for name in report["objectives"]),
        ]
        for record in records
    ]
    price = report["cost"]["binary"]
    columns = [f"{name} at {price}" if name == "ops_g" and price != PAPER else name for name in report["objectives"]]
    print_table(["front" if "front" in report else "best cell", *columns], rows)
    say("the best of many noisy scores is biased upwards: retrain these cells under new seeds before reporting them")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; rich would take seconds for the ten thousand rows of a dry run."""
    table = [list(map(printable, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    say("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table))
