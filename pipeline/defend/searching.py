"""The search: trials up to a rung, a decision from the verdicts alone, and on with what it keeps.

Nothing is decided by what arrives first, and all that is known lies in the store as an artifact a trial and rung. So
one worker and eight, undisturbed and killed, choose the same; the same call again trains nothing, and one for more
trials keeps those that are there.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from cluster.refs import Ref, put
from pipeline.artifacts import Artifact, scratch
from pipeline.defend.plan import Plan
from pipeline.defend.shared_work import SharedWork, shared_work
from pipeline.defend.trials import Trial, find_verdict, first_trials, make_verdict, next_trials
from pipeline.exits import ClaimedError, SearchError
from pipeline.fields import flag
from pipeline.placement import Workers
from pipeline.progress import Say, log_in, passing
from pipeline.recipe import Recipe
from stages.evaluation.comparison import Comparison
from stages.fingerprint import fingerprint
from stages.lease import TakenError, lease
from stages.search.halving import Decision, TrialVerdict, decide, ranked, tied_with_best
from stages.storage import Storage
from stages.training.events import FOLDER as EVENTS
from stages.training.events import write_trial
from stages.training.setup import Setup

SEARCH = "search.json"  # of a search's folder
OWN = 0  # the recipe as it stands, which goes on to the end, so that the result says what the search gained


@dataclass(frozen=True, kw_only=True, eq=False)
class Rung:
    """What the judge said of the trials that got to a rung, and what followed."""

    rounds: int
    receipts: Mapping[int, Artifact]
    decision: Decision

    @cached_property
    def verdicts(self) -> dict[int, TrialVerdict]:
        return {number: TrialVerdict.of(receipt.metrics) for number, receipt in self.receipts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """A search that came to its end."""

    trials: Sequence[Trial]
    rungs: Sequence[Rung]
    chosen: int
    """The best of the last rung."""
    classifier: str
    """The fingerprint of what is defended."""
    ties: tuple[int, ...]
    """Of the last rung, those that the judge's images do not tell apart from it."""
    shared: SharedWork | None
    """None where it is not known any more."""

    @property
    def recipe(self) -> Recipe:
        return self.trials[self.chosen].recipe

    @property
    def receipts(self) -> list[Artifact]:
        return [receipt for rung in self.rungs for receipt in rung.receipts.values()]

    @property
    def gained(self) -> Comparison | None:
        """The chosen trial against the recipe as it stands, on the same images; None where that is the chosen one, or
        failed."""
        verdicts = self.rungs[-1].verdicts
        if self.chosen == OWN or OWN not in verdicts or verdicts[OWN].error:
            return None
        return Comparison.of(verdicts[self.chosen].remains, verdicts[OWN].remains)


def search_fingerprint(setup: Setup, recipe: Recipe) -> str:
    """What a search is called, however many trials it is asked for."""
    return fingerprint(
        "search",
        2,
        model=setup.model,
        train=setup.train.fingerprint,
        holdout=setup.holdout.fingerprint,
        loop=recipe.trial_loop(),
        config=replace(recipe.search, trials=0),
    )


def search_folder(plan: Plan, setup: Setup) -> Storage:
    """Where what a search leaves for people lies: the same for whoever searches the same."""
    name = f"{plan.command.preset}-{search_fingerprint(setup, plan.recipe)[:8]}"
    return plan.root.below(f"searches/{name}")


def search(setup: Setup, recipe: Recipe, workers: Callable[[], Workers], say: Say, *, folder: Storage) -> Searched:
    """All trials of the recipe's search, to the end. ``workers`` are asked for where there is something to train; then
    search.json in the folder says which trials there are.

    Raises ClaimedError where another process is at the same search, and SearchError where trials keep dying, or all of
    them fail.
    """
    try:
        with lease(folder, "lock") as held:
            log_in(folder, say)  # of a search alone: a run has a log of its own
            searched = _Search(setup, recipe, workers, say, folder).run()
            held.check()
            return searched
    except TakenError as error:
        raise ClaimedError(f"{error}: let that search end, or stop it") from None


class _Search:
    """A search on its way."""

    def __init__(self, setup: Setup, recipe: Recipe, workers: Callable[[], Workers], say: Say, folder: Storage) -> None:
        self.setup, self.recipe, self.workers, self.say, self.folder = setup, recipe, workers, say, folder
        self.trials = first_trials(recipe)
        self.rungs: list[Rung] = []

    def run(self) -> Searched:
        first, *later = self.recipe.rungs.all
        self._extend(first)
        if len(self.trials) < self.recipe.search.trials:
            asked = self.recipe.search.trials
            self.say(f"search: the space has {len(self.trials)} settings; {asked} trials were asked for")
        alive: Iterable[int] = range(len(self.trials))
        for rounds in (first, *later):
            alive = self._rung(rounds, alive).decision.going_on
        last = self.rungs[-1].verdicts
        return Searched(
            trials=self.trials,
            rungs=self.rungs,
            chosen=ranked(last)[0],
            ties=tied_with_best(last),
            classifier=self.setup.classifier_fingerprint,
            shared=self._shared(),
        )

    def _shared(self) -> SharedWork | None:
        last = {number: receipt for rung in self.rungs for number, receipt in rung.receipts.items()}
        trials = [(self.trials[number].setup(self.setup).name, receipt) for number, receipt in sorted(last.items())]
        return shared_work(self.setup.root, self.folder.name, trials)

    def _extend(self, rounds: int) -> None:
        """Ask for further trials, a batch at a time, each after the verdicts of the first rung on those before."""
        while len(self.trials) < self.recipe.search.trials:
            found = self._judged(rounds, range(len(self.trials)))
            robust = [found[number].metrics["robust"]["value"] for number in range(len(self.trials))]
            more = next_trials(self.recipe, self.trials, robust)
            if not more:
                return
            self.trials += more

    def _rung(self, rounds: int, numbers: Iterable[int]) -> Rung:
        receipts = self._judged(rounds, numbers)
        verdicts = {number: TrialVerdict.of(receipt.metrics) for number, receipt in receipts.items()}
        decision = decide(verdicts, factor=self.recipe.search.factor, always=(OWN,))
        rung = Rung(rounds=rounds, receipts=receipts, decision=decision)
        self._show(rung)
        self.rungs.append(rung)
        if not decision.kept:
            number = decision.failed[0]
            raise SearchError(
                f"all {len(verdicts)} trials of the search failed by round {rounds}; trial {number} "
                f"({self.trials[number]}) with: {verdicts[number].error}"
            )
        if rounds != self.recipe.rungs.rounds:
            self.say(f"search, after {rounds} rounds: {describe(decision)}")
        return rung

    def _show(self, rung: Rung) -> None:
        """Events for TensorBoard, a run a trial."""
        since = self.rungs[-1].rounds if self.rungs else 0
        for number, receipt in rung.receipts.items():
            trial = self.trials[number]
            settings = {flag(name): value for name, value in trial.settings.items()}
            shown = self.folder.below(f"{EVENTS}/{trial.name}")
            write_trial(shown, trial.setup(self.setup).journal, settings, receipt.metrics, since)

    def _judged(self, rounds: int, numbers: Iterable[int]) -> dict[int, Artifact]:
        """The verdicts on some trials after so many rounds; trials that have none yet are trained."""
        setups = {number: self.trials[number].setup(self.setup) for number in numbers}
        found = {number: find_verdict(setup, rounds) for number, setup in setups.items()}
        if missing := [number for number, verdict in found.items() if verdict is None]:
            self._train(missing, setups, rounds)
            found |= {number: find_verdict(setups[number], rounds) for number in missing}
        return {number: verdict for number, verdict in found.items() if verdict is not None}

    def _train(self, numbers: Sequence[int], setups: Mapping[int, Setup], rounds: int) -> None:
        from cluster.tuner import run_trials  # takes seconds, and a worker that reads a plan searches nothing

        place = self.workers()
        self._note(rounds)
        names = {self.trials[number].name: number for number in numbers}
        self.say(f"search: {len(names)} of {len(setups)} trials to round {rounds}")
        passing(self.say)(f"search: {len(names)} trials to round {rounds}")
        device = {"device": place.device, "repeats": place.device == "cpu"}
        shared = put({name: replace(setups[number], **device) for name, number in names.items()})

        def ended(name: str, error: str | None) -> None:
            self._tell(names[name], setups[names[name]], rounds, error)

        failed = run_trials(
            partial(_trial, [shared], rounds),
            {name: name for name in names},
            cpus=max(max(each.config.attack.threads, each.config.train.threads) for each in setups.values()),
            gpus=place.trial_gpus,
            concurrent=place.trials,
            logs=scratch(self.setup.root, "tune"),
            ended=ended,
        )
        if failed:
            name, error = next(iter(failed.items()))
            raise SearchError(
                f"{len(failed)} of {len(names)} trials kept failing before round {rounds}, the first, {name}, with: "
                f"{error}; what the others found is kept, and the same command tries these again"
            )

    def _note(self, rounds: int) -> None:
        """Write down which trials there are, and how far they are to get, for whoever looks on."""
        found = {
            "finished": False,
            "rungs": self.recipe.rungs.all,
            "rung": rounds,
            "asked": self.recipe.search.trials,
            "trials": [
                {"trial": each.number, "name": each.name, "folder": each.setup(self.setup).name} for each in self.trials
            ],
        }
        self.folder.put(SEARCH, json.dumps(found, indent=1).encode())

    def _tell(self, number: int, setup: Setup, rounds: int, error: str | None) -> None:
        trial = self.trials[number]
        verdict = find_verdict(setup, rounds) if error is None else None
        error = error or (verdict.metrics.get("error") if verdict else "it left no verdict")
        if verdict is None or error:
            self.say(f"trial {number} ({trial}) failed: {error}")
            return
        robust = verdict.metrics["robust"]
        self.say(f"trial {number} ({trial}): judge {robust['value']:.1%} of {robust['images']} after {rounds} rounds")


def _trial(shared: list[Ref[dict[str, Setup]]], rounds: int, name: str) -> None:
    """What a trial's process does."""
    make_verdict(shared[0].get()[name], rounds)


def describe(decision: Decision) -> str:
    """A decision in words.

    >>> describe(Decision(kept=(2, 0), ties=(1,), stopped=(3,), failed=()))
    'trials 2, 0 go on; 1 ties with them and goes on; 3 stopped'
    """

    def listed(numbers: Sequence[int]) -> str:
        return ", ".join(map(str, numbers))

    one = len(decision.ties) == 1
    parts = [
        f"trial{'s' * (len(decision.kept) > 1)} {listed(decision.kept)} go{'es' * (len(decision.kept) == 1)} on",
        f"{listed(decision.ties)} {'ties' if one else 'tie'} with them and {'goes' if one else 'go'} on",
        f"{listed(decision.stopped)} stopped",
        f"{listed(decision.failed)} failed",
    ]
    known = (decision.kept, decision.ties, decision.stopped, decision.failed)
    return "; ".join(part for part, numbers in zip(parts, known, strict=True) if numbers)
