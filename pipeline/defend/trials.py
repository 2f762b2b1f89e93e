"""The trials of a search: what each of them tries, and how one is trained up to a rung, where the judge has its say.

A trial runs the loop of `stages.training.rounds` in its own process, below ROOT/trials, against the shared store: it
goes on from its own checkpoint, and whoever asks for the same shards finds them. Test data are out of reach: a setup
holds none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from pipeline.artifacts import Artifact, Store
from pipeline.axes import own_settings, read_space, snapped
from pipeline.fields import flag, replaced
from pipeline.recipe import Recipe
from stages.evaluation.accuracy import Accuracy
from stages.fingerprint import fingerprint
from stages.numerics import DeviceMemoryError
from stages.randomness import key_seed
from stages.search.space import Settings, gridded, sampled
from stages.search.tpe import check_optuna, suggested
from stages.training.diverged import DivergedError
from stages.training.rounds import run_serially
from stages.training.setup import Setup

KIND = "verdict"
"""Of the artifacts that hold what the judge said of a trial at a rung."""
LONGEST = 80  # characters of a trial's name, which is that of a folder as well


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Some settings in place of the recipe's own."""

    number: int
    """0 is the recipe as it stands."""
    settings: Settings
    recipe: Recipe

    def __str__(self) -> str:
        """The settings in words."""
        return ", ".join(f"{flag(name)} {_text(value)}" for name, value in self.settings.items())

    @property
    def name(self) -> str:
        """A readable name for folders and tools."""
        parts = (f"{name.rpartition('.')[2]}={_text(value)}" for name, value in self.settings.items())
        return re.sub(r"[^\w=.,+-]", "_", f"{self.number:03}-{','.join(parts)}")[:LONGEST]

    def setup(self, setup: Setup) -> Setup:
        """The trial's own loop in place of a run's."""
        config = self.recipe.trial_loop()
        own = replace(setup, config=config, initial=None, keep_versions=False)
        inputs = {"train": setup.train.fingerprint, "holdout": setup.holdout.fingerprint}
        return replace(own, name=f"trials/{fingerprint('trial', 1, model=own.model, loop=config, **inputs)}")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def first_trials(recipe: Recipe) -> list[Trial]:
    """The trials that are known before any verdict: all of them, but with tpe those of the first batch.

    The first is the recipe's own. Raises ValueError for a space that makes no sense.
    """
    config, space = recipe.search, read_space(recipe, recipe.search.space)
    if config.algorithm == "tpe":
        check_optuna()
    drawn = gridded if config.algorithm == "grid" else sampled
    count = min(config.trials, config.batch) if config.algorithm == "tpe" else config.trials
    own = own_settings(recipe, space)
    return _new(recipe, chain([own], drawn(space, seed=recipe.seed)), count, [])


def next_trials(recipe: Recipe, trials: Sequence[Trial], robust: Sequence[float]) -> list[Trial]:
    """The batch that TPE asks for after the verdicts on all trials before; at random where it asks for one again.

    Empty once there are as many as the recipe asks for, or no others.
    """
    config, space = recipe.search, read_space(recipe, recipe.search.space)
    count = min(config.batch, config.trials - len(trials))
    if config.algorithm != "tpe" or count <= 0:
        return []
    told = [(trial.settings, value) for trial, value in zip(trials, robust, strict=True)]
    asked = suggested(space, told, seed=key_seed(recipe.seed, "tpe", len(trials)) % 2**32)
    found = list(trials)
    for settings in islice(asked, count):
        found += _new(recipe, chain([settings], sampled(space, seed=recipe.seed)), 1, found)
    return found[len(trials) :]


def _new(recipe: Recipe, settings: Iterator[Settings], count: int, known: Sequence[Trial]) -> list[Trial]:
    """The first so many of the settings that are not known, on the lattice."""
    seen, found = {tuple(trial.settings.values()) for trial in known}, []
    for each in settings:
        own = snapped(recipe, each)
        if len(found) < count and tuple(own.values()) not in seen:
            seen.add(tuple(own.values()))
            number = len(known) + len(found)
            found.append(Trial(number=number, settings=own, recipe=replaced(recipe, own)))
        if len(found) == count:
            break
    return found


def verdict_name(setup: Setup, rounds: int) -> str:
    """The fingerprint of the verdict on a trial's loop after some rounds."""
    return fingerprint(KIND, 1, trial=setup.name, rounds=rounds)


def find_verdict(setup: Setup, rounds: int) -> Artifact | None:
    """What the judge said of a trial's loop after some rounds; None where it was not asked yet."""
    return Store(setup.root).get(KIND, verdict_name(setup, rounds))


def make_verdict(setup: Setup, rounds: int) -> Artifact:
    """The same, for which the loop goes on from where it stands where that is needed.

    A trial whose loss becomes NaN, or that needs more memory than the device has, failed for good: that is its verdict.
    """

    def write(_: Path) -> dict:
        try:
            judged = _judged(setup, rounds)
        except (DivergedError, DeviceMemoryError) as error:
            judged = _failed(setup, str(error))
        lines = [line for line in setup.journal.read() if line["round"] < rounds]
        return {"rounds": rounds, **judged, "cost": _cost(setup, lines)}

    inputs = {"train": setup.train.fingerprint, "holdout": setup.holdout.fingerprint}
    config = {"trial": setup.name, "rounds": rounds, "loop": setup.config}
    name = verdict_name(setup, rounds)
    return Store(setup.root).make(KIND, name, write, config=config, inputs=inputs, device=setup.device)


def _judged(setup: Setup, rounds: int) -> dict:
    """The judge's verdict after so many rounds, as it stands in the metrics."""
    done = setup.journal.checkpointed

    def follow(line: dict) -> None:
        nonlocal done
        done = line["round"] + 1

    if done < rounds:
        run_serially(setup, stopped=lambda: done >= rounds, report=follow)
    return next(setup.journal.read(rounds - 1))["judge"]


def _failed(setup: Setup, error: str) -> dict:
    images = min(setup.config.judge.images or len(setup.holdout), len(setup.holdout))
    none = Accuracy(correct=0, images=images).as_json()
    return {"clean": none, "robust": none, "remains": bytes(-(-images // 8)).hex(), "error": error}


def _cost(setup: Setup, lines: Sequence[dict]) -> dict[str, float]:
    """What the rounds took: attack steps, updates, and seconds of its process, but for attempts that were killed."""
    schedule, share = setup.schedule, len(lines) / setup.config.schedule.rounds
    return {
        "attack_steps": round(share * schedule.attack_steps),
        "updates": len(lines) * schedule.updates_per_round,
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "shards": sum(len(line["shards"]) for line in lines),
        "bytes": sum(line["bytes"] for line in lines),
    }
