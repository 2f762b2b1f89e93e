"""The search over step size, T and noise scale: short serial loops on Tune, each judged on the hold-out.

A trial runs the loop of `stages.training.rounds` in its own process against the shared store, so its shards
are there for whoever asks for the same ones. Test data are out of reach: a setup holds none.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cluster.refs import Ref, put
from pipeline.artifacts import Store, scratch
from pipeline.placement import Workers
from pipeline.progress import Say
from pipeline.recipe import Recipe
from stages.fingerprint import canonical, fingerprint
from stages.randomness import permutation
from stages.rap.process import AttackConfig
from stages.rap.threat import Lattice, default_denominator
from stages.training.rounds import run_serially
from stages.training.setup import Setup

if TYPE_CHECKING:
    from cluster.tuner import TrialResult

RUNGS = 3  # judgements of a trial; after the first, ASHA ends those that are not among the better half


def candidates(recipe: Recipe) -> list[AttackConfig]:
    """The attacks that the search tries: the recipe's own, then a random sample of the grid, on the lattice.

    Steps never exceed the radius; settings that become equal on the lattice count once.
    """
    search, attack, radius = recipe.search, recipe.attack, recipe.threat.radius
    scales = search.noise_scales if attack.start != "none" else ()
    lattice, own = Lattice(attack.denominator or default_denominator(recipe.threat.norm)), resolved(attack, recipe)
    grid = list(
        dict.fromkeys(
            replace(
                own,
                steps=steps,
                step_size=own.step_size if step is None else lattice.snap(min(step * radius, radius)),
                noise_scale=own.noise_scale if scale is None else lattice.snap(scale * radius),
            )
            for steps, step, scale in itertools.product(
                search.steps or (attack.steps,), search.step_sizes or (None,), scales or (None,)
            )
        )
    )
    order = permutation(len(grid), recipe.seed, "search")
    return [own, *(grid[i] for i in order if grid[i] != own)][: search.trials]


def resolved(attack: AttackConfig, recipe: Recipe) -> AttackConfig:
    """The attack with every length as a number on the lattice."""
    process = attack.process(recipe.threat)
    noise = process.noise / process.denominator if process.noise else None
    return replace(attack, step_size=process.step / process.denominator, noise_scale=noise)


def search_fingerprint(setup: Setup, recipe: Recipe) -> str:
    """The name of the search's result."""
    return fingerprint(
        "search",
        1,
        model=setup.model,
        train=setup.train.fingerprint,
        holdout=setup.holdout.fingerprint,
        loop=recipe.loop(rounds=recipe.search.rounds),
        candidates=candidates(recipe),
    )


def search_attack(setup: Setup, recipe: Recipe, workers: Callable[[], Workers], say: Say) -> tuple[AttackConfig, dict]:
    """The attack whose short loop has the best robust accuracy, and the record of every trial.

    Without trials, the recipe's own.
    """
    own = resolved(recipe.attack, recipe)
    if recipe.search.trials == 0:
        return own, {"trials": []}
    tried, name = candidates(recipe), search_fingerprint(setup, recipe)
    artifact = Store(setup.root).get("search", name)
    if artifact is None:
        place = workers()
        fewer = (
            "" if len(tried) == recipe.search.trials else f" (all of the grid; {recipe.search.trials} were asked for)"
        )
        say(f"searching over {len(tried)} attacks{fewer}, {recipe.search.rounds} rounds each")
        artifact = Store(setup.root).make(
            "search",
            name,
            lambda directory: {"trials": _tune(setup, recipe, tried, name, place, say)},
            config=recipe.search,
            inputs={"train": setup.train.fingerprint, "holdout": setup.holdout.fingerprint},
        )
    trials = artifact.metrics["trials"]
    finished = [trial for trial in trials if trial["robust"] is not None]
    best = max(finished, key=lambda trial: (trial["rounds"], trial["robust"]["value"]))
    chosen = tried[best["trial"]]
    say(
        f"search: {describe(chosen)} with {best['robust']['value']:.1%} of {best['robust']['images']} "
        f"after {best['rounds']} rounds"
    )
    return chosen, {"trials": trials, "chosen": best["trial"]}


def _tune(setup: Setup, recipe: Recipe, tried: list[AttackConfig], name: str, place: Workers, say: Say) -> list[dict]:
    """Every trial as it stands in results: its attack, how far it came, and the judge's verdicts."""
    from cluster.tuner import search as tune  # takes seconds, and a worker that reads a plan searches nothing

    shared = put((setup, recipe, tried, place.device))
    results = tune(
        partial(_trial, [shared], name),
        {"trial": list(range(len(tried)))},
        trials=len(tried),
        metric="robust",
        rungs=RUNGS,
        cpus_per_trial=max(recipe.attack.threads, recipe.train.threads),
        gpus_per_trial=place.gpus,
        storage=scratch(setup.root, "search"),
        name=name,
        seed=recipe.seed,
        progress=partial(_announce, tried, say),
    )
    records = [_record(result, tried) for result in results]
    if all(record["robust"] is None for record in records):
        raise RuntimeError(f"no trial of the search finished; the first failed with: {records[0]['error']}")
    return records


def _trial(shared: list[Ref], name: str, config: dict, report: Callable[[dict], None]) -> None:
    """A short serial loop with one attack, reporting each verdict of the judge as a rung."""
    setup, recipe, tried, device = shared[0].get()
    rounds, number = recipe.search.rounds, config["trial"]
    loop = replace(recipe.loop(tried[number], rounds=rounds), checkpoint_rounds=max(1, rounds // RUNGS))
    run = f"search/{name}/trial-{number}"

    def rung(line: dict) -> None:
        if "judge" in line:
            done = line["round"] + 1
            verdict = line["judge"]["robust"]
            report(
                {"rung": max(1, done * RUNGS // rounds), "robust": verdict["value"], "judge": verdict, "rounds": done}
            )

    run_serially(
        replace(setup, config=loop, name=run, device=device, repeats=device == "cpu", keep_versions=False), report=rung
    )


def _announce(tried: list[AttackConfig], say: Say, config: dict, rung: dict | None) -> None:
    attack = describe(tried[config["trial"]])
    if rung is None:
        say(f"trial {config['trial']} ({attack}) failed")
    else:
        say(f"trial {config['trial']} ({attack}): judge {rung['robust']:.1%} after {rung['rounds']} rounds")


def describe(attack: AttackConfig) -> str:
    """The three parameters that are searched, in words."""
    return f"T = {attack.steps}, step size {attack.step_size or 0:g}, noise scale {attack.noise_scale or 0:g}"


def _record(result: "TrialResult", tried: list[AttackConfig]) -> dict:
    number = result.config["trial"]
    last = result.rungs[-1] if result.rungs else {}
    return {
        "trial": number,
        "attack": canonical(tried[number]),
        "rounds": last.get("rounds", 0),
        "robust": last.get("judge"),
        "rungs": [{"rounds": rung["rounds"], "robust": rung["robust"]} for rung in result.rungs],
        "error": result.error,
    }
