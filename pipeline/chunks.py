"""The work of one evaluation chunk, in the process that attacks it: attack, verify, commit.

Apart from what fans it out, since most chunks have a fresh process, which imports this module and little else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.pool import Ref
from pipeline.artifacts import Artifact, Store
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.attacks import Attack
from stages.evaluation.measurement import AttackConfig, attack_images, identity, kind_of
from stages.evaluation.pgd import PGDConfig
from stages.evaluation.verdict import ChunkVerdict, verify_chunk
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel

FORMAT = 3
BATCH = "the evaluation's batch (--evaluation.batch of a run, --chunk of an evaluation)"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images attacked together, by one attack within one ball, and where the receipt goes."""

    root: str
    model: str
    threat: ThreatModel
    attack: AttackConfig
    split: Split

    @property
    def kind(self) -> str:
        return kind_of(self.attack)

    @property
    def needs_fresh_process(self) -> bool:
        """Whether the attack may leave something behind in its process, as AutoAttack's counters; PGD here does not."""
        return not isinstance(self.attack, PGDConfig)

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
    work: tuple[tuple[str, str], Chunk, str, list[Ref[tuple[nn.Module, dict[str, Attack]]]]],
) -> Artifact:
    """Attack one chunk and commit what was found. Runs in a worker process."""
    _, chunk, device, (reference,) = work
    model, functions = reference.get()
    return commit_chunk(chunk, model.to(device), device=device, functions=functions)


def commit_chunk(chunk: Chunk, model: nn.Module, *, device: str, functions: Mapping[str, Attack]) -> Artifact:
    """The receipt of a chunk: read where it is there, else attacked, verified and committed."""
    function = functions.get(getattr(chunk.attack, "path", ""))

    def write(directory: Path) -> dict:
        images, labels = torch.from_numpy(chunk.split.images), torch.from_numpy(chunk.split.labels)
        with numerics.within_memory(BATCH, chunk.attack.batch):
            verdict = attack_images(
                chunk.attack, model, images, labels, chunk.split.rows, chunk.threat, function=function
            )
        check = verify_chunk(model, images, labels, verdict, chunk.threat)
        np.savez_compressed(
            directory / "verdict.npz",
            rows=chunk.split.rows,
            adversarial=verdict.adversarial,
            distance=verdict.distance,
            broken_by=np.array([by or "" for by in verdict.broken_by]),
        )
        return {
            "images": len(labels),
            "clean": int(verdict.clean.sum()),
            "robust": int(verdict.robust.sum()),
            "rows": chunk.split.rows.tolist(),
            "broken_by": list(verdict.broken_by),
            "flags": list(verdict.flags),
            "attack_seconds": verdict.seconds,
            "unverified": sorted({*check.outside_ball, *check.outside_range, *check.judged_otherwise}),
            "largest_distance": check.largest_distance,
        }

    with numerics.verdict(threads=1):
        return Store(Path(chunk.root)).make(
            chunk.kind,
            chunk.fingerprint,
            write,
            config={"attack": identity(chunk.attack), "threat": chunk.threat},
            inputs={"model": chunk.model, "images": chunk.split.fingerprint},
            device=device,
        )


def verdict_of(receipt: Artifact) -> ChunkVerdict:
    """The verdict that a receipt holds, with every adversarial image."""
    with np.load(receipt.path / "verdict.npz") as arrays:
        return ChunkVerdict(
            broken_by=tuple(receipt.metrics["broken_by"]),
            adversarial=arrays["adversarial"],
            distance=arrays["distance"],
            flags=tuple(receipt.metrics["flags"]),
            seconds=receipt.metrics["attack_seconds"],
        )
