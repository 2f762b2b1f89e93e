"""The work of one evaluation chunk, in the process that attacks it: attack, verify, commit.

Apart from what fans it out: the process of a chunk imports this module and little else.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from cluster.refs import Ref
from pipeline.artifacts import Artifact, Store
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.attacks import Attack
from stages.evaluation.measurement import FunctionConfig, MeasuredAttack, attack_images, described, identity, kind_of
from stages.evaluation.verdict import ChunkVerdict
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel
from stages.storage import Storage

FORMAT = 4
SPOKEN = {"robust": "the robust classifier", "undefended": "the undefended classifier", "model": "the model"}
BATCH = "the evaluation's batch (--evaluation.batch of a run, --chunk of an evaluation, chunk of evaluate_model)"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images attacked together, by one attack within one ball, and where the receipt goes."""

    root: str
    model: str
    threat: ThreatModel
    attack: MeasuredAttack
    split: Split

    @property
    def kind(self) -> str:
        return kind_of(self.attack)

    @property
    def needs_fresh_process(self) -> bool:
        """Whether the attack may leave anything behind in its process, as code of one's own may."""
        return isinstance(self.attack, FunctionConfig)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            self.kind,
            FORMAT,
            model=self.model,
            images=self.split.fingerprint,
            threat=self.threat,
            attack=identity(self.attack),
        )

    def __repr__(self) -> str:
        return f"{self.kind} chunk {self.fingerprint} of {len(self.split)} images"


def attack_to_receipt(
    work: tuple[tuple[str, str], Chunk, str, tuple[Ref[nn.Module], Ref[dict[str, Attack]]]],
    tell: Callable[[str], None],
) -> Artifact:
    """Attack one chunk and commit what was found; ``tell`` gets what is going on. Runs in a worker process."""
    (name, attack), chunk, device, (model, functions) = work
    doing = f"{attack} on {SPOKEN.get(name, name)}"
    tell(f"{doing}: {len(chunk.split)} images")
    return commit_chunk(
        chunk,
        model.get().to(device),
        device=device,
        functions=functions.get(),
        tell=lambda line: tell(f"{doing}: {line}"),
    )


def commit_chunk(
    chunk: Chunk, model: nn.Module, *, device: str, functions: Mapping[str, Attack], tell: Callable[[str], None]
) -> Artifact:
    """The receipt of a chunk: read where it is there, else attacked, verified and committed."""
    function, parts = functions.get(getattr(chunk.attack, "path", "")), Parts(chunk)

    def write(directory: Path) -> dict:
        with numerics.within_memory(BATCH, chunk.attack.batch):
            verdict = attack_images(
                chunk.attack,
                model,
                chunk.split,
                chunk.threat,
                function=function,
                kept=parts,
                progress=tell,
            )
        save_verdict(directory / "verdict.npz", verdict, rows=chunk.split.rows)
        return {
            "attack": described(chunk.attack, model, torch.from_numpy(chunk.split.images), chunk.threat),
            "images": len(chunk.split.rows),
            "clean": int(verdict.clean.sum()),
            "robust": int(verdict.robust.sum()),
            "rows": chunk.split.rows.tolist(),
            "broken_by": list(verdict.broken_by),
            "flags": list(verdict.flags),
            "attack_seconds": verdict.seconds,
            "refused": dict(verdict.refused),
            "largest_distance": float(verdict.distance.max()),
        }

    with numerics.verdict(threads=1):
        receipt = Store(chunk.root).make(
            chunk.kind,
            chunk.fingerprint,
            write,
            config={"attack": identity(chunk.attack), "threat": chunk.threat},
            inputs={"model": chunk.model, "images": chunk.split.fingerprint},
            device=device,
        )
    parts.remove()
    return receipt


class Parts:
    """What AutoAttack's first attacks found on a chunk, kept until the chunk has its receipt.

    An attack that fails, or is killed, takes nothing with it that came before. What is kept is named by the attacks
    that found it, so that the version custom goes on with what the standard one began.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._storage = Storage.at(chunk.root).below("parts")
        self._met: set[tuple[str, ...]] = set()

    def get(self, attacks: tuple[str, ...]) -> ChunkVerdict | None:
        """What these attacks found, one after the other; None where they did not all run."""
        self._met |= {attacks[: count + 1] for count in range(len(attacks))}  # what came before is there as well
        content = self._storage.find(self._key(attacks))
        try:
            return None if content is None else load_verdict(io.BytesIO(content))
        except (OSError, ValueError, KeyError, BadZipFile):  # what was torn by a power cut is found again
            return None

    def __setitem__(self, attacks: tuple[str, ...], verdict: ChunkVerdict) -> None:
        self._met.add(attacks)
        content = io.BytesIO()
        save_verdict(content, verdict, rows=self._chunk.split.rows)
        self._storage.put(self._key(attacks), content.getvalue())

    def remove(self) -> None:
        """All of them, once the receipt is there."""
        self._storage.delete([self._key(attacks) for attacks in self._met])

    def _key(self, attacks: tuple[str, ...]) -> str:
        known = identity(self._chunk.attack)
        settings = "standard" if known["version"] == "custom" else known["version"]
        name = fingerprint(
            "autoattack part",
            FORMAT,
            model=self._chunk.model,
            images=self._chunk.split.fingerprint,
            threat=self._chunk.threat,
            attack={**known, "version": settings, "attacks": list(attacks)},
        )
        return f"{name}.npz"


def save_verdict(file: Path | BinaryIO, verdict: ChunkVerdict, *, rows: np.ndarray) -> None:
    """A verdict as a NumPy archive, its adversaries as float32 without loss."""
    said = {"flags": list(verdict.flags), "seconds": verdict.seconds, "refused": dict(verdict.refused)}
    np.savez_compressed(
        file,
        rows=rows,
        adversarial=verdict.adversarial,
        distance=verdict.distance,
        broken_by=np.array([by or "" for by in verdict.broken_by]),
        said=np.array(json.dumps(said)),
    )


def load_verdict(file: Path | BinaryIO) -> ChunkVerdict:
    """What `save_verdict` wrote."""
    with np.load(file) as arrays:
        said = json.loads(str(arrays["said"]))
        return ChunkVerdict(
            broken_by=tuple(by or None for by in arrays["broken_by"].tolist()),
            adversarial=arrays["adversarial"],
            distance=arrays["distance"],
            flags=tuple(said["flags"]),
            seconds=said["seconds"],
            refused=said["refused"],
        )
