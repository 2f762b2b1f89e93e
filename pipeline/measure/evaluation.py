"""Evaluation, fanned out in evaluation chunks: any named attack, each chunk with its receipt, each verified again.

A chunk leaves an artifact, so a killed evaluation repeats only what was running, and the same evaluation again attacks
nothing.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.parcels import Parcel, ParcelError, pack
from cluster.pool import run_tasks
from cluster.refs import put
from cluster.session import describe
from pipeline.artifacts import Artifact, Store
from pipeline.delivery import named
from pipeline.measure.chunks import SPOKEN, Chunk, attack_to_receipt
from pipeline.measure.outcome import Evaluation, merge
from pipeline.placement import Place
from pipeline.progress import Say, passing
from pipeline.recipe import EvaluationConfig
from stages import numerics, randomness
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.attacks import Attack
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.lineup import Lineup
from stages.evaluation.measurement import FunctionConfig, Measurement
from stages.evaluation.naming import model_identity
from stages.evaluation.pgd import PGDConfig
from stages.fingerprint import fingerprint
from stages.identity import UnnameableError
from stages.rap.threat import ThreatModel
from stages.storage import Storage

PGD_CHUNK = 500  # images of a chunk under an attack that costs a hundredth of AutoAttack
PROBES = 4  # images whose answers are part of a model's name


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation, in eval mode, with the fingerprint that names all of it."""

    model: nn.Module
    fingerprint: str
    doubt: str = ""
    """Why the model cannot be recognised, where that is so: the fingerprint is then a random one."""


def evaluate(
    subjects: Mapping[str, Subject],
    test: Split,
    measurements: Sequence[Measurement],
    *,
    root: Storage | Path,
    workers: Callable[[], Place],
    say: Say,
    functions: Mapping[str, Attack] | None = None,
) -> dict[str, dict[str, Evaluation]]:
    """Every model under every measurement: evaluations by name of the model, then of the measurement.

    Each measurement gets the first ``images`` test images of one fixed random order, all of them where there are
    fewer. ``functions`` are the attacks of FunctionConfigs, by path. ``say`` gets a line a chunk. Put the
    expensive measurements first, so that workers end together.
    """
    chunks = chunks_of(subjects, test, measurements, root=root)
    found = _Receipts(Store(root), chunks)
    if found.missing:
        # Before Ray starts, so that what cannot be sent to workers is refused without a wait.
        parcels, attacks = _packed(subjects), _packed_attacks(functions or {})
        place = workers()
        models, own = {name: put(parcel) for name, parcel in parcels.items()}, put(attacks)
        work = [
            (group, chunk, place.device, (models[group[0]], own))
            for group, members in chunks.items()
            for chunk in members
            if chunk.fingerprint in found.missing
        ]
        for line in _doubts(subjects, measurements):
            say(line)
        say(f"attacking test images in {len(work)} chunks")
        going = passing(say)
        found.begin(max(1, describe().room(cpus=place.cpus, gpus=place.gpus)))
        done = run_tasks(
            attack_to_receipt,
            work,
            cpus=place.cpus,
            gpus=place.gpus,
            fresh=lambda item: item[1].needs_fresh_process,
            say=going,
        )
        for (group, chunk, *_), receipt in done:
            say(found.take(group, chunk, receipt))
            going("attacking test images")  # what the chunk said last is over
    return {
        name: {measurement.name: found.merge((name, measurement.name)) for measurement in measurements}
        for name in subjects
    }


def _doubts(subjects: Mapping[str, Subject], measurements: Sequence[Measurement]) -> list[str]:
    """A line for each model and attack whose verdicts no other call will find."""
    doubts = {f"{SPOKEN.get(name, name)}": subject.doubt for name, subject in subjects.items()}
    attacks = [each.attack for each in measurements if isinstance(each.attack, FunctionConfig)]
    doubts |= {f"the attack {attack.path}": attack.doubt for attack in attacks}
    return [
        f"{what} is attacked again at every call, since it cannot be recognised: {doubt}"
        for what, doubt in doubts.items()
        if doubt
    ]


def _packed(subjects: Mapping[str, Subject]) -> dict[str, Parcel[nn.Module]]:
    try:
        return {name: named(subject.model, SPOKEN.get(name, name)) for name, subject in subjects.items()}
    except ParcelError as error:
        raise ParcelError(f"{error}. A quick screening attacks in this process, and takes it as it is") from error


def _packed_attacks(functions: Mapping[str, Attack]) -> Parcel[dict[str, Attack]]:
    for path, function in functions.items():
        pack(function, f"the attack {path}")
    return named(dict(functions), f"the attack {', '.join(functions)}")


def chunks_of(
    subjects: Mapping[str, Subject], test: Split, measurements: Sequence[Measurement], *, root: Storage | Path
) -> dict[tuple[str, str], list[Chunk]]:
    """The chunks of every model under every measurement, by the names of both."""
    return {
        (name, measurement.name): [
            Chunk(
                root=str(root),
                model=subject.fingerprint,
                threat=measurement.threat,
                attack=measurement.attack,
                split=part,
            )
            for part in parts(test, measurement)
        ]
        for measurement in measurements
        for name, subject in subjects.items()
    }


def final_measurements(config: EvaluationConfig, threat: ThreatModel, lineup: Lineup) -> list[Measurement]:
    """What ends a run: what runs of AutoAttack, and PGD (off the lattice on which training attacks run) on more images.

    Each is named as what it is, so that only AutoAttack's standard version is called that.
    """
    auto = AutoAttackConfig(version=config.version, attacks=config.attacks, batch=config.batch, seed=config.seed)
    measurements = [Measurement(name=lineup.name, attack=auto, threat=threat, images=config.images, chunk=config.chunk)]
    if threat.norm != "L1":  # in which there is no PGD here; AutoAttack's is made for it
        pgd = PGDConfig(steps=config.pgd_steps, seed=config.seed)
        measurements += [
            Measurement(name=pgd.name, attack=pgd, threat=threat, images=config.pgd_images, chunk=PGD_CHUNK)
        ]
    return measurements


def subject_of(model: nn.Module, images: np.ndarray) -> Subject:
    """A model in eval mode, with its name: `model_identity` on the first of some uint8 images, always the same ones."""
    try:
        with numerics.verdict(threads=1):
            known = model_identity(model, torch.from_numpy(images[:PROBES]))
    except UnnameableError as error:
        return Subject(model=model, fingerprint=secrets.token_hex(16), doubt=str(error))
    return Subject(model=model, fingerprint=fingerprint("evaluated model", 2, **known))


def parts(test: Split, measurement: Measurement) -> Iterator[Split]:
    """The chunks of a measurement in the fixed random order: more images add chunks and leave the full ones as
    they are."""
    order = in_order(test)[: measurement.images]
    for first in range(0, len(order), measurement.chunk):
        yield test.take(order[first : first + measurement.chunk])


def in_order(test: Split) -> np.ndarray:
    """The positions of the test images in the fixed random order of every evaluation."""
    return randomness.permutation(len(test), "evaluation")


class _Receipts:
    """The receipts of all chunks as they come in, and what can be said of the rest."""

    def __init__(self, store: Store, chunks: dict[tuple[str, str], list[Chunk]]) -> None:
        self.chunks = chunks
        everything = [chunk for group in chunks.values() for chunk in group]
        found = {chunk.fingerprint: store.get(chunk.kind, chunk.fingerprint) for chunk in everything}
        self.receipts: dict[str, Artifact] = {name: receipt for name, receipt in found.items() if receipt}
        self.missing = found.keys() - self.receipts.keys()
        self.waiting = [name for name in found if name in self.missing]
        self.began: dict[str, float] = {}
        self.at_once = 1

    def begin(self, at_once: int) -> None:
        """The missing chunks are under way, so many at once, in their order."""
        self.at_once = at_once
        for _ in range(at_once):
            self._begin_next()

    def take(self, group: tuple[str, str], chunk: Chunk, receipt: Artifact) -> str:
        """Enter a receipt; returns the line that says how far its group is, and what is left of all groups."""
        self.receipts[chunk.fingerprint] = receipt
        self._begin_next()
        robust, images = self._robust(group), sum(len(each.split) for each in self.chunks[group])
        name, attack = group
        return f"{attack} on {SPOKEN.get(name, name)}: {robust.images} of {images} images, {robust}; {self._left()}"

    def merge(self, group: tuple[str, str]) -> Evaluation:
        chunks = self.chunks[group]
        return merge(
            [self.receipts[chunk.fingerprint] for chunk in chunks],
            chunks[0].threat,
            attacked_now=sum(chunk.fingerprint in self.missing for chunk in chunks),
        )

    def _done(self, group: tuple[str, str]) -> list[Artifact]:
        chunks = self.chunks[group]
        return [self.receipts[chunk.fingerprint] for chunk in chunks if chunk.fingerprint in self.receipts]

    def _robust(self, group: tuple[str, str]) -> Accuracy:
        counts = [receipt.metrics for receipt in self._done(group)]
        return Accuracy(correct=sum(each["robust"] for each in counts), images=sum(each["images"] for each in counts))

    def _begin_next(self) -> None:
        if self.waiting:
            self.began[self.waiting.pop(0)] = time.perf_counter()

    def _left(self) -> str:
        """What is left: time where a group has an attacked chunk to go by, the number of chunks where it has none."""
        times, unknown, now = [], 0, time.perf_counter()
        for group, chunks in self.chunks.items():
            done = self._done(group)
            images = sum(receipt.metrics["images"] for receipt in done)
            spent = sum(receipt.manifest["provenance"]["seconds"] for receipt in done)
            left = [chunk for chunk in chunks if chunk.fingerprint not in self.receipts]
            if not images:
                unknown += len(left)
                continue
            for chunk in left:
                under_way = now - self.began.get(chunk.fingerprint, now)
                times.append(max(0.0, len(chunk.split) * spent / images - under_way))
        parts = [f"about {sum(times) / self.at_once:,.0f} s"] if times else []
        parts += [f"{unknown} {'chunk' if unknown == 1 else 'chunks'} of unknown time"] if unknown else []
        return f"{' and '.join(parts)} left" if parts else "all done"
