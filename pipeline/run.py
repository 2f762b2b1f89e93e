"""python -m pipeline.run: the whole experiment, stage by stage, on one page.

The same command again resumes: finished stages are not repeated, committed shards are not
generated again, and what is complete starts no Ray.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial

from pipeline.defend.borrowed import weights_from_cache
from pipeline.defend.classifiers import classifiers_of
from pipeline.defend.dry_run import describe_costs
from pipeline.defend.loop import run_loop
from pipeline.defend.plan import Plan, claimed, make_plan
from pipeline.defend.trained import examine_trained, shipped_model, subjects_of
from pipeline.defend.trials import search_attack
from pipeline.delivery import check_arrival
from pipeline.exits import conduct, fail
from pipeline.flags import parse
from pipeline.measure.checks import Checked, headline
from pipeline.measure.evaluation import evaluate
from pipeline.measure.outcome import Evaluation, worst_of
from pipeline.placement import Session, own_device
from pipeline.progress import Passing, Say, passing
from pipeline.tell.report_contents import run_contents
from pipeline.tell.results import Totals, shard_summary, table, work_seconds, write_results
from stages.evaluation.accuracy import on_device
from stages.fingerprint import canonical
from stages.lease import Lease
from stages.rap.attack import AttackConfig
from stages.rap.robust import RobustClassifier
from stages.report import write_report
from stages.shipped import save_model
from stages.training.setup import Setup


def run(plan: Plan, say: Say) -> dict:
    """Every stage of a plan, from what is there to the end; returns the results that results.json holds."""
    recipe, seconds, cached = plan.recipe, {}, None
    timed = partial(stage, seconds, passing(say))
    with ExitStack() as stack:
        held = stack.enter_context(claimed(plan))
        workers = Session(plan.command.workers, recipe, stack, first=partial(check_arrival, plan.external))

        with timed("classifier"):
            (classifier, holdout_accuracy), *others = classifiers_of([plan, *plan.others], workers, say)
            say(f"classifier: {holdout_accuracy:.1%} on the hold-out")

        setup = plan.setup(classifier)
        with timed("search"):
            attack, search = search_attack(setup, recipe, workers, say)
            setup = replace(setup, config=recipe.loop(attack))

        with timed("training"):
            if plan.cached:
                weights, cached = weights_from_cache(setup, list(plan.cached), workers, say)
                setup = replace(setup, initial=weights)
            made_now = 0
            if not setup.is_complete:
                place = workers()
                if done := setup.journal.checkpointed:
                    say(f"going on with round {done + 1} of {recipe.schedule.rounds}, after the last checkpoint")
                here = replace(setup, device=place.device, repeats=place.device == "cpu")
                made_now = run_loop(here, place.loop, progress=follow(setup, say, held))
            setup.ledger.complete(recipe.schedule.rounds, setup.journal.read)
            robust, shipped = shipped_model(setup)

        subjects = subjects_of(plan, robust, classifier)
        with timed("evaluation"):
            found = evaluate(
                subjects,
                plan.data.test,
                plan.measurements,
                root=plan.root,
                workers=workers,
                say=say,
            )
        auto = found["robust"][plan.autoattack.name]
        save(plan, robust, shipped, auto)
        say(f"model: {plan.run.location('model')}")
        with timed("checks"):
            modules = [other for other, _ in others]
            checked = examine_trained(plan, setup, subjects, modules, auto=auto, workers=workers, say=say)
    results = collect(plan, setup, attack, robust, shipped, search, cached, found, checked, made_now, seconds)
    with timed("report"):
        device = own_device(plan.command.workers)
        models = (on_device(robust, device), on_device(classifier, device))
        contents = run_contents(plan, setup, models, found, checked, results)
        with plan.run.folder("report") as folder:
            page = write_report(contents, folder).page.name
    results["artifacts"] = sorted(f"{each.kind}/{each.fingerprint}" for each in contents.lineage)
    results["paths"]["report"] = plan.run.location(f"report/{page}")
    results["seconds_now"]["report"] = round(seconds["report"], 1)
    return results


def save(plan: Plan, robust: RobustClassifier, shipped: dict, auto: Evaluation) -> None:
    """Save the model with what is known of it, before the checks, which may take longer than all the rest."""
    with plan.run.folder("model") as folder:
        save_model(
            folder,
            robust,
            classifier=plan.recipe.classifier,
            inputs=plan.network,
            notes={"data": plan.data.name, "shipped": shipped, "evaluation": {auto.name: auto.robust.as_json()}},
        )


def follow(setup: Setup, say: Say, held: Lease) -> Callable[[dict], None]:
    """Says every judged round and every alarm as its line of metrics appears; ends a run that is not held any more."""
    rounds, going = setup.config.schedule.rounds, passing(say)

    def tell(line: dict) -> None:
        held.check()
        done = line["round"] + 1
        going(f"training: round {done} of {rounds}, loss {line['loss']:.3f}", done / rounds)
        if "set_aside" in line:
            say(
                f"{line['set_aside']} rounds after the last checkpoint were set aside: this device does not repeat them"
            )
        if "judge" in line:
            robust = line["judge"]["robust"]
            say(
                f"round {line['round'] + 1}/{rounds}: loss {line['loss']:.3f}, judge {robust['value']:.1%} of "
                f"{robust['images']}, {line['attack_steps_per_second'] or 0:,.0f} attack steps/s a generator, "
                f"lag {line['lag']}"
            )
        for alarm in line["alarms"]:
            say(f"ALARM in round {line['round'] + 1}: {alarm}")

    return tell


def collect(
    plan: Plan,
    setup: Setup,
    attack: AttackConfig,
    robust: RobustClassifier,
    shipped: dict,
    search: dict,
    cached: dict | None,
    found: dict[str, dict[str, Evaluation]],
    checked: Checked,
    made_now: int,
    seconds: dict[str, float],
) -> dict:
    """What results.json holds."""
    recipe, totals, lines = plan.recipe, Totals.of(setup.ledger), setup.journal.lines()
    auto, pgd = plan.measurements
    verdicts = {
        name: {
            "clean": evaluations[pgd.name].clean.as_json(),
            "attacks": {key: each.robust.as_json() for key, each in evaluations.items()},
            "headline": worst_of(list(evaluations.values())).robust.as_json(),
            "broken_by": evaluations[auto.name].broken_by,
            "flags": list(worst_of(list(evaluations.values())).flags),
            "unverified": sum(each.unverified for each in evaluations.values()),
        }
        for name, evaluations in found.items()
    }
    verdicts["robust"]["headline"] = headline(list(found["robust"].values()), checked).as_json()
    return {
        "run": plan.run.name,
        "data": plan.data.name,
        "threat": canonical(recipe.threat),
        "classifier": {"architecture": recipe.classifier.factory or recipe.classifier.architecture},
        "adapter_parameters": sum(weight.numel() for weight in robust.adapter.parameters()) if robust.adapter else 0,
        "attack": canonical(attack),
        "search": search,
        "from_cache": cached,
        "shipped": shipped,
        **verdicts,
        "attacks": {name: dict(each.attack) for name, each in found["robust"].items()},
        "chunks_attacked_now": sum(
            each.attacked_now for evaluations in found.values() for each in evaluations.values()
        ),
        "checks": [asdict(check) for check in checked.checks],
        "checks_done_now": checked.done_now,
        "alarms": [alarm for line in lines for alarm in line["alarms"]],
        "set_aside": sum(line.get("set_aside", 0) for line in lines),
        "trajectories": shard_summary(plan, totals, made_now),
        "seconds": work_seconds(plan, setup, totals, found, checked),
        "seconds_now": {name: round(value, 1) for name, value in seconds.items()},
        "paths": {
            "run": str(plan.run),
            "model": plan.run.location("model"),
            "results": plan.run.location("results.json"),
            "metrics": plan.run.location("metrics"),
            "store": plan.root.location("store"),
        },
        "recipe": canonical(recipe),
    }


@contextmanager
def stage(seconds: dict[str, float], going: Passing, name: str) -> Iterator[None]:
    """Says that the block is going on, and adds how long it took, under a name."""
    going(name)
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code, as `conduct` says."""
    command = parse(sys.argv[1:] if argv is None else argv)
    try:
        plan = make_plan(command)
    except ValueError as error:
        fail(str(error))
    if command.dry_run:
        return conduct(lambda say: describe_costs(plan), root=command.root)

    def work(say: Say) -> str:
        say(f"{plan.data.name}: {len(plan.data.train)} training images; run {plan.run}")
        results = run(plan, say)
        write_results(plan.run, "results.json", results)
        return f"\n{table(results)}"

    return conduct(work, root=command.root)


if __name__ == "__main__":
    sys.exit(main())
