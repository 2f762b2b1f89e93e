"""The plan of a run: everything that can be refused before work starts is refused while it is made."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cluster.parcels import pack
from pipeline.artifacts import check_name, told, usable_root
from pipeline.defend.trials import first_trials
from pipeline.exits import ClaimedError, settings_called
from pipeline.flags import Command
from pipeline.inventory import TRAININGS, TRIALS
from pipeline.measure.evaluation import final_measurements
from pipeline.measure.subjects import inputs_of, known_data, load_base_classifier
from pipeline.recipe import Recipe
from stages.data.datasets import NAMES, ImageData, check_trainable
from stages.data.splits import Split
from stages.evaluation.contract import check_model
from stages.evaluation.lineup import Lineup, lineup
from stages.evaluation.measurement import Measurement
from stages.fingerprint import canonical, fingerprint
from stages.identity import UnnameableError, object_fingerprint
from stages.lease import Lease, TakenError, lease
from stages.models import ModelConfig
from stages.randomness import permutation
from stages.rap.losses import check_loss
from stages.rap.threat import check_radius
from stages.storage import Storage
from stages.training.cached import check_cached
from stages.training.journal import Journal
from stages.training.schedule import Schedule
from stages.training.setup import Setup
from stages.trajectories.shards import read_shard

DIGITS = ("digits", "mnist")
SAMPLE = 200  # images of the hold-out on which a classifier that was not trained here is checked


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with its data, and where its results go."""

    command: Command
    data: ImageData
    root: Storage
    name: str
    """Of the run, which lies below ROOT/runs."""
    key: str
    """`recipe_fingerprint` of what the run trains."""
    external: nn.Module | None
    """A classifier that came trained, already checked; None where it is trained here."""
    described: Mapping[str, Any]
    """The arguments by which `save_model` describes the classifier."""
    cached: tuple[str, ...]
    """Shards of another run on which the adapter is to be trained first."""

    @property
    def recipe(self) -> Recipe:
        return self.command.recipe

    @property
    def run(self) -> Storage:
        """The run's own objects."""
        return self.root.below(f"runs/{self.name}")

    @cached_property
    def autoattack(self) -> Lineup:
        """What of AutoAttack runs on the model."""
        return _autoattack(self.recipe, self.data)

    @cached_property
    def measurements(self) -> list[Measurement]:
        """The evaluation's attacks: AutoAttack's, and PGD."""
        return final_measurements(self.recipe.evaluation, self.recipe.threat, self.autoattack)

    @cached_property
    def classifier_split(self) -> Split:
        """The images that the base classifier is trained on: never the hold-out."""
        available, wanted = self.data.available, self.recipe.classifier.images
        if wanted is None or wanted >= len(available):
            return available
        return available.take(permutation(len(available), "classifier")[:wanted])

    @cached_property
    def classifier_fingerprint(self) -> str:
        """The base classifier's name: all that it is where it came with its weights, else what it is trained with."""
        if self.external is not None:
            return fingerprint("classifier", 2, model=object_fingerprint(self.external))
        return fingerprint(
            "classifier",
            1,
            config=self.recipe.classifier,
            data=self.classifier_split.fingerprint,
            seed=self.recipe.seed,
        )

    @cached_property
    def others(self) -> tuple["Plan", ...]:
        """The same from other seeds, whose classifiers checks 8 and 20 ask for; none where the classifier came with
        its weights."""
        recipe, count = self.recipe, self.recipe.checks.others if self.external is None else 0
        return tuple(
            replace(self, command=replace(self.command, recipe=replace(recipe, seed=recipe.seed + number)))
            for number in range(1, count + 1)
        )

    def with_recipe(self, recipe: Recipe) -> "Plan":
        """The same run with the recipe that its search chose."""
        return replace(self, command=replace(self.command, recipe=recipe))

    def setup(self, classifier: nn.Module) -> Setup:
        """The loop of the recipe as it stands, around a base classifier."""
        return Setup(
            config=self.recipe.loop(),
            train=self.data.train,
            holdout=self.data.holdout,
            classifier=classifier,
            classifier_fingerprint=self.classifier_fingerprint,
            root=self.root,
            name=f"runs/{self.name}",
            keep_versions=self.command.keep_versions,
        )


def make_plan(command: Command) -> Plan:
    """Read the data, build the classifier if it is given, and check that the recipe makes sense.

    Raises ValueError, in words for the user, for anything that would fail later.
    """
    recipe = command.recipe
    data = known_data(recipe.data, "--data.")
    _check_recipe(recipe, data)
    external, described, brought = None, {"classifier": recipe.classifier, "inputs": inputs_of(data)}, {}
    if recipe.model.is_given:
        external, described = _external_classifier(recipe, data)
        brought["model"] = object_fingerprint(external)
    if recipe.data.name not in NAMES:
        brought["data"] = data.available.fingerprint
    key = recipe_fingerprint(recipe, **brought)
    root = usable_root(command.root)
    name = command.name or f"{command.preset}-{key[:8]}"
    check_name(name, "the run is kept in ROOT/runs/NAME")
    if name in (TRIALS, *TRAININGS):
        raise ValueError(f"--name {name} is where the ledgers of {name} lie: choose another one")
    cached = tuple(shards_of(root, recipe.train.from_cache)) if recipe.train.from_cache else ()
    if cached:
        check_cached(read_shard(root, cached[0]), recipe.loop().attack, data.train)
    return Plan(
        command=command,
        data=data,
        root=root,
        name=name,
        key=key,
        external=external,
        described=described,
        cached=cached,
    )


def shards_of(root: Storage, name: str) -> list[str]:
    """The fingerprints of the shards that another run trained on, in order of round.

    Raises ValueError where there is no such run below ROOT, or it has committed nothing.
    """
    known = root.names("runs")
    if name not in known:
        raise ValueError(
            f"--train.from-cache {name}: no such run below {root.location('runs')}; there are: "
            f"{', '.join(known) or 'none'}"
        )
    shards = [shard for line in Journal(root.below(f"runs/{name}")).read() for shard in line["shards"]]
    if not shards:
        raise ValueError(f"--train.from-cache {name}: the run has trained on no shard yet; let it finish a round")
    return shards


def _check_recipe(recipe: Recipe, data: ImageData) -> None:
    _autoattack(recipe, data)
    check_trainable(data)
    _check_loop(recipe, data)
    for trial in first_trials(recipe) if recipe.search.trials else ():
        try:
            _check_loop(trial.recipe, data)
            trial.recipe.trial_loop()
        except ValueError as error:
            raise ValueError(f"trial {trial.number} of the search ({trial}): {error}") from None
    with settings_called({"the radius": "threat.radius"}):
        check_radius(recipe.threat, math.prod(data.shape))
    if recipe.classifier.augment and recipe.data.name in DIGITS:
        raise ValueError("classifier.augment flips images, which changes digits: leave it out")


def _check_loop(recipe: Recipe, data: ImageData) -> None:
    """What can be wrong with a training on these data."""
    loop = recipe.loop()
    Schedule(loop.schedule, images=len(data.train), seed=recipe.seed)
    if loop.schedule.batch % loop.train.workers:
        raise ValueError(
            f"schedule.batch {loop.schedule.batch} cannot be divided among train.workers {loop.train.workers}; "
            "choose a multiple"
        )
    (height, width), patch = data.size, recipe.adapter.unet().patch
    if height % patch or width % patch:
        raise ValueError(
            f"adapter.size {recipe.adapter.size} folds patches of {patch}, which {height} x {width} pixels do not fit"
        )
    check_loss(recipe.attack.loss, classes=len(data.classes))
    if recipe.augment and recipe.data.name in DIGITS:
        raise ValueError("augment flips images, which changes digits: leave it out")


def _autoattack(recipe: Recipe, data: ImageData) -> Lineup:
    """What of AutoAttack runs on a model for these data. Raises ValueError where what was asked for cannot."""
    config = recipe.evaluation
    return lineup(config.version, config.attacks, recipe.threat.norm, classes=len(data.classes), shape=data.shape)


def _external_classifier(recipe: Recipe, data: ImageData) -> tuple[nn.Module, dict[str, Any]]:
    with torch.random.fork_rng([]):
        classifier, described = load_base_classifier(recipe.model, recipe.classifier, data)
    images, labels = torch.from_numpy(data.holdout.images[:SAMPLE]), torch.from_numpy(data.holdout.labels[:SAMPLE])
    check_model(classifier, images, labels, classes=len(data.classes), threat=recipe.threat)
    try:
        object_fingerprint(classifier)
    except UnnameableError as error:
        raise ValueError(
            f"--model {recipe.model.name} is a model that another call cannot recognise, which a run must, to resume: "
            f"{error}. Keep what a forward pass needs in tensors, numbers and text"
        ) from error
    pack(classifier, f"--model {recipe.model.name}")
    return classifier, described


def recipe_fingerprint(recipe: Recipe, **brought: str) -> str:
    """The hash of what a run trains; of a model or data that were ``brought``, by what they are and not where they
    lie."""
    data = recipe.data.identity if "data" in brought else recipe.data
    model = ModelConfig() if "model" in brought else recipe.model
    return fingerprint("recipe", 2, recipe=_trained(replace(recipe, data=data, model=model)), **brought)


def _trained(recipe: Recipe) -> dict[str, object]:
    """The recipe in JSON as far as it decides what is trained: not where data lie, nor how the model is examined."""
    data = replace(recipe.data, root=None, download=False)
    return {
        name: canonical(value)
        for name, value in vars(replace(recipe, data=data)).items()
        if name not in ("evaluation", "checks")
    }


@contextmanager
def claimed(plan: Plan) -> Iterator[Lease]:
    """Own the run while the block goes on: one owner a run, and one recipe.

    Yields the lease, which ends with this process. Raises ClaimedError where another process holds it, or where the run
    was begun with another recipe.
    """
    with ExitStack() as stack:
        try:
            held = stack.enter_context(lease(plan.run, "lock"))
        except TakenError as error:
            raise ClaimedError(f"{error}, or give this run another --name") from None
        _keep_recipe(plan)
        yield held


def _keep_recipe(plan: Plan) -> None:
    """Write the recipe down, or compare it with the one that is there."""
    kept = {"fingerprint": plan.key, "preset": plan.command.preset}
    found = told(plan.run, "recipe.json")
    if not {"fingerprint", "recipe"} <= found.keys():
        if Journal(plan.run).checkpointed:
            raise ClaimedError(
                f"{plan.run.location('recipe.json')} is gone or damaged, so nobody knows with which recipe the run was "
                "begun: restore it, or use another --name (committed shards are shared all the same)"
            )
        plan.run.put("recipe.json", json.dumps({**kept, "recipe": _trained(plan.recipe)}, indent=1).encode())
        return
    if found["fingerprint"] != kept["fingerprint"]:
        changed = _changed(found["recipe"], _trained(plan.recipe))
        raise ClaimedError(
            f"{plan.run} was begun with another recipe ({'; '.join(changed[:5]) or 'of another version'}); use "
            "another --name for this one (committed shards are shared all the same), or the same flags as before"
        )


def _changed(before: object, now: object, name: str = "") -> list[str]:
    """The fields in which two recipes in JSON differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [text for key in keys for text in _changed(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if before == now else [f"{name} {before!r} there, {now!r} here"]
