"""python -m pipeline.run: the whole experiment, stage by stage, on one page.

The same command again resumes: finished stages are not repeated, committed shards are not generated again, and what is
complete starts no Ray.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from torch import nn

from pipeline.artifacts import BEGUN
from pipeline.defend.borrowed import weights_from_cache
from pipeline.defend.classifiers import classifiers_of
from pipeline.defend.dry_run import describe_costs
from pipeline.defend.loop import run_loop
from pipeline.defend.plan import Plan, claimed, make_plan
from pipeline.defend.searching import search, search_folder
from pipeline.defend.trained import Trained, examine_trained, selected_model, subjects_of
from pipeline.delivery import check_arrival
from pipeline.exits import conduct, refusing
from pipeline.flags import parse
from pipeline.measure.evaluation import evaluate
from pipeline.measure.findings import Findings
from pipeline.measure.outcome import Evaluation
from pipeline.placement import Session, own_device
from pipeline.progress import Passing, Say, log_in, passing
from pipeline.recipe_files import recipe_json
from pipeline.tell.report_contents import contents_of, gallery
from pipeline.tell.results import Results, ending, write_results
from pipeline.tell.run_facts import RunFacts
from pipeline.tell.search_files import write_search
from pipeline.tell.trial_table import search_text
from pipeline.tracking import Shown, TrackedRun, flattened
from stages.evaluation.accuracy import on_device
from stages.lease import Lease
from stages.report import Contents
from stages.shipped import save_model
from stages.training.alarms import kind_of_alarm
from stages.training.setup import Setup


def run(plan: Plan, say: Say) -> tuple[Results, Contents]:
    """Every stage of a plan, from what is there to the end: its results, and what its report says."""
    recipe, seconds, began = plan.recipe, {}, time.perf_counter()
    going = passing(say)
    timed = partial(stage, seconds, going)
    with ExitStack() as stack:
        held = stack.enter_context(claimed(plan))
        log_in(plan.run, say)
        workers = Session(plan.command.workers, recipe, stack, first=partial(check_arrival, plan.external))

        with timed("classifier"):
            (classifier, holdout_accuracy), *others = classifiers_of([plan, *plan.others], workers, say)
            say(f"classifier: {holdout_accuracy:.1%} on the hold-out")

        searched = None
        if recipe.search.trials:
            with timed("search"):
                setup = plan.setup(classifier)
                folder = search_folder(plan, setup)
                searched = search(setup, recipe, workers, say, folder=folder)
                say(search_text(searched))
                write_search(searched, folder, preset=plan.command.preset)
                plan = plan.with_recipe(searched.recipe)

        setup = plan.setup(classifier)
        with timed("training"):
            from_cache, generated_now = None, 0
            if plan.cached:
                weights, from_cache = weights_from_cache(setup, list(plan.cached), workers, say)
                setup = replace(setup, initial=weights)
            shown = stack.enter_context(shown_by(plan, setup, say))
            if not setup.is_complete:
                place = workers()
                if done := setup.journal.checkpointed:
                    say(f"resuming with round {done + 1} of {recipe.schedule.rounds}, after the last checkpoint")
                here = replace(setup, device=place.device, repeats=place.device == "cpu")
                generated_now = run_loop(here, place.loop, progress=follow(setup, say, held, shown))
            shown.catch_up()
            setup.ledger.complete(recipe.schedule.rounds, setup.journal.read)
            robust, selected = selected_model(setup)

        subjects, test = subjects_of(plan, robust, classifier), plan.data.test
        plan.run.put(BEGUN, b"")
        with timed("evaluation"):
            found = evaluate(subjects, test, plan.measurements, root=plan.root, workers=workers, say=say)
        auto = found["robust"][plan.autoattack.name]
        trained = Trained(
            setup=setup,
            robust=robust,
            selected=selected,
            searched=searched,
            from_cache=from_cache,
            generated_now=generated_now,
        )
        save(plan, trained, auto)
        say(f"model: {plan.run.location('model')}")
        with timed("checks"):
            modules = [other for other, _ in others]
            checked = examine_trained(plan, setup, subjects, modules, auto=auto, workers=workers, say=say)
        findings = Findings(
            data=plan.data.name,
            test=test.fingerprint,
            evaluations=found,
            fingerprints={name: subject.fingerprint for name, subject in subjects.items()},
            seconds=time.perf_counter() - began,
            checked=checked,
        )
        shown.conclude({"robust accuracy": findings.robust_accuracy.value, "clean": findings.clean().value})
    going("report")
    results, contents = tell(plan, trained, classifier, findings)
    assert results.run is not None
    return replace(results, run=replace(results.run, seconds_now=seconds)), contents


def tell(plan: Plan, trained: Trained, classifier: nn.Module, found: Findings) -> tuple[Results, Contents]:
    """The results of a run, and what its report says."""
    device, facts = own_device(plan.command.workers), RunFacts.of(plan, trained, found)
    robust, undefended = on_device(trained.robust, device), on_device(classifier, device)
    results = Results.of(found, run=facts)
    contents = contents_of(
        results,
        gallery(robust, undefended, plan.data.test, trained.setup.config.attack),
        title=plan.name,
        classes=plan.data.classes,
        description=facts.description,
        classifier=facts.classifier,
    )
    return results, contents


def shown_by(plan: Plan, setup: Setup, say: Say) -> Shown:
    """Where the training's figures are shown."""
    tool, settings = plan.command.track, flattened(recipe_json(plan.recipe, plan.command.preset))
    return Shown(setup.journal, TrackedRun(tool, plan.run, plan.name, settings, say) if tool else None)


def save(plan: Plan, trained: Trained, auto: Evaluation) -> None:
    """Save the model with what is known of it, before the checks, which may take longer than all the rest."""
    with plan.run.folder("model") as folder:
        save_model(
            folder,
            trained.robust,
            **plan.described,
            notes={
                "data": plan.data.name,
                "selected": trained.selected,
                "evaluation": {auto.name: auto.robust.as_json()},
            },
        )


def follow(setup: Setup, say: Say, held: Lease, shown: Shown) -> Callable[[dict], None]:
    """Says every judged round and every alarm as its line of metrics appears, and one that goes on as often as the
    judge is asked; ends a run that is not held any more."""
    rounds, every, going = setup.config.schedule.rounds, setup.config.judge.every, passing(say)
    told: dict[str, int] = {}  # the round in which an alarm of each kind was said last

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
                f"round {done}/{rounds}: loss {line['loss']:.3f}, judge {robust['value']:.1%} of "
                f"{robust['images']}, {line['attack_steps_per_second'] or 0:,.0f} attack steps/s a generator, "
                f"lag {line['lag']}"
            )
        for alarm in line["alarms"]:
            kind = kind_of_alarm(alarm)
            if done - told.get(kind, -every) >= every:
                told[kind] = done
                say(f"ALARM in round {done}: {alarm}")
        shown.follow(line)

    return tell


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
    with refusing():
        plan = make_plan(command)
    if command.dry_run:
        return conduct(lambda say: describe_costs(plan), root=command.root)

    def work(say: Say) -> str:
        say(f"{plan.data.name}: {len(plan.data.train)} training images; run {plan.run}")
        found, contents = run(plan, say)
        return ending(found, {"model": plan.run.location("model")} | write_results(found, plan.run, contents=contents))

    return conduct(work, root=command.root, log_level=command.log_level)


if __name__ == "__main__":
    sys.exit(main())
