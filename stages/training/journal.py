"""What a run writes down while it trains: a line a round, checkpoints, and the best weights so far.

Below RUN: metrics/<first round>.jsonl, the lines of the rounds from one checkpoint to the next; train/checkpoint.json,
small, which names the state that it goes on with; and train/best/<version>.safetensors. Rounds that are repeated
write what was there before.
"""

import contextlib
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.evaluation.judge import Judgement
from stages.fingerprint import weights_fingerprint
from stages.storage import Storage
from stages.training.adapter import Learner
from stages.training.alarms import alarms
from stages.training.schedule import Schedule
from stages.training.versions import Version, VersionMismatchError
from stages.trajectories.shards import LedgerRow
from stages.weights import pack_weights, unpack_weights

CHECKPOINT = "train/checkpoint.json"
WRITTEN = ("round", "state", "sha256", "versions", "previous", "best")  # in it
BEST = "train/best"


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where a training begins, or goes on after its last checkpoint."""

    round: int = 0
    previous: dict[int, str] = field(default_factory=dict)
    """The last shard of each cohort that was visited."""
    versions: tuple[Version, ...] = ()
    """The weights that the rounds to come attack, as far as they are known."""
    published: dict[int, str] = field(default_factory=dict)
    """Fingerprints that were published after the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The judge's highest robust accuracy so far, 0..1, and the first version that reached it."""

    robust: float
    version: int


def round_line(
    schedule: Schedule,
    number: int,
    rows: list[LedgerRow],
    measured: list[dict[str, float]],
    *,
    waited: float,
    seconds: float,
    verdict: Judgement | None,
) -> dict:
    """The line of metrics for a round; times in seconds, lag in updates."""
    attacked = sum(row.seconds for row in rows)
    line = {
        "round": number,
        "version": schedule.version(number),
        "attacked": rows[0].weights,
        "updates": (number + 1) * schedule.updates_per_round,
        **{name: float(np.mean([float(update[name]) for update in measured])) for name in measured[0]},
        "lag": schedule.lag(number),
        "seconds": seconds,
        "waiting": waited / seconds,
        "attack_steps_per_second": sum(row.n * row.k for row in rows) / attacked if attacked else None,
        "attack_success": float(np.mean([row.success[-1] for row in rows])),
        "zero_gradients": float(np.mean([row.zero_gradients for row in rows])),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "shards": [row.fingerprint for row in rows],
        "bytes": sum(row.bytes for row in rows),
    }
    if verdict is not None:
        line["judge"] = verdict.as_json()
    return line


class Journal:
    """The objects of a run that change while it trains."""

    def __init__(self, run: Storage) -> None:
        self.run = run
        self._first, self._piece = 0, []
        self.best: Best | None = None

    @property
    def checkpointed(self) -> int:
        """The round that the checkpoint goes on with, 0 without one."""
        return self._checkpoint()["round"]

    def lines(self, since: int = 0) -> list[dict]:
        """The lines of all rounds from one on, in order."""
        return list(self.read(since))

    def read(self, since: int = 0) -> Iterator[dict]:
        """The same a piece at a time, since there may be millions.

        Raises VersionMismatchError where a line of a round before the checkpoint is gone, or a piece is damaged.
        """
        settled, next_round = self.checkpointed, since  # before the pieces, of which there are soon more
        pieces = self.run.names("metrics")
        begun = [name for name in pieces if name <= _piece(since).rpartition("/")[2]]
        for name in pieces[max(0, len(begun) - 1) :]:
            for line in self._lines(name):
                if line["round"] < since:
                    continue
                if next_round < settled and line["round"] != next_round:
                    raise self._lost(next_round)
                next_round = line["round"] + 1
                yield line
        if next_round < settled:
            raise self._lost(next_round)

    def resume(self, learner: Learner, device: str) -> Start:
        """Bring a learner to the last checkpoint; returns where to go on.

        Raises VersionMismatchError for a damaged checkpoint.
        """
        found = self._checkpoint()
        self._first, self._piece = found["round"], []
        self.best = Best(**found["best"]) if found["best"] else None
        repeated = self._repeated()
        published = {line["round"] + 1: line["weights"] for line in repeated}
        published |= {line["version"]: line["attacked"] for line in repeated}
        if not found["round"]:
            return Start(published=published)
        saved = torch.load(io.BytesIO(self._state(found)), map_location=device, weights_only=True)
        learner.load_state(saved["learner"])
        versions = tuple(
            Version(int(number), name, saved["versions"][number]) for number, name in found["versions"].items()
        )
        previous = {int(cohort): shard for cohort, shard in found["previous"].items()}
        return Start(round=found["round"], previous=previous, versions=versions, published=published)

    def _repeated(self) -> list[dict]:
        """The lines of the rounds after the checkpoint, as far as they can be read: they are about to be written anew,
        and only tell whether the same is published again."""
        try:
            return self.lines(self._first)
        except VersionMismatchError:
            return []

    def enter(self, line: dict) -> bool:
        """Add what follows from the rounds before to a line; whether its verdict is the best so far, or as good: of
        equals the later weights are the better choice, since they were trained on with smaller steps."""
        line["alarms"] = alarms(line, self.best.robust if self.best else None)
        robust = line.get("judge", {}).get("robust")
        if robust is None or (self.best is not None and robust["value"] < self.best.robust):
            return False
        self.best = Best(robust=robust["value"], version=line["round"] + 1)
        return True

    def write(self, line: dict) -> None:
        """Write a line down, behind those since the last checkpoint."""
        self._piece.append(json.dumps(line) + "\n")
        self.run.put(_piece(self._first), "".join(self._piece).encode())

    def write_best(self, weights: dict[str, Tensor], version: int) -> None:
        """Keep the weights of a version as the best so far."""
        self.run.put(_best(version), pack_weights(weights, {"fingerprint": weights_fingerprint(weights)}))

    def write_checkpoint(
        self,
        number: int,
        learner: dict[str, object],
        versions: list[Version],
        previous: dict[int, str],
        best: Best | None,
    ) -> None:
        """Write all that the rounds from ``number`` on depend on; they will begin a new piece of lines. ``best`` is the
        best verdict by then; weights that it beats are removed."""
        before, content = self._checkpoint(), io.BytesIO()
        saved = {str(version.number): version.weights for version in versions}
        torch.save({"learner": learner, "versions": saved}, content)
        state = f"train/state-{number}.pt"
        self.run.put(state, content.getvalue())
        found = {
            "round": number,
            "state": state,
            "sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
            "versions": {str(version.number): version.fingerprint for version in versions},
            "previous": {str(cohort): shard for cohort, shard in previous.items()},
            "best": best and asdict(best),
        }
        self.run.put(CHECKPOINT, json.dumps(found).encode())
        self._first, self._piece = number, []
        kept = [int(name.removesuffix(".safetensors")) for name in self.run.names(BEST)]
        beaten = [_best(each) for each in kept if best and each < best.version]  # later ones may be there already
        superseded = [before["state"]] if before["state"] not in (None, state) else []
        self.run.delete([*superseded, *beaten])

    def best_weights(self) -> tuple[dict[str, Tensor], int]:
        """The weights with the best robust accuracy on the hold-out up to the last checkpoint, and their version.

        Raises LookupError before any verdict, and VersionMismatchError where the file was damaged.
        """
        best = self._checkpoint()["best"]
        version = best["version"] if best else 0
        content = self.run.find(_best(version))
        if content is None and best:
            raise self._damaged(_best(version))
        if content is None:
            raise LookupError(f"{self.run.location(_best(version))} is not there: nothing was judged yet")
        try:
            weights, metadata = unpack_weights(content)
        except ValueError as error:
            raise self._damaged(_best(version)) from error
        if metadata.get("fingerprint") != weights_fingerprint(weights):
            raise self._damaged(_best(version))
        return weights, version

    def _checkpoint(self) -> dict:
        content = self.run.find(CHECKPOINT)
        if content is None:
            return {"round": 0, "state": None, "best": None}
        try:
            found = json.loads(content)
        except ValueError as error:
            raise self._damaged(CHECKPOINT) from error
        if not isinstance(found, dict) or not set(WRITTEN) <= found.keys():
            raise self._damaged(CHECKPOINT)
        return found

    def check(self) -> None:
        """Raise VersionMismatchError where the checkpoint or the best weights are not what was written."""
        found = self._checkpoint()
        if found["state"]:
            self._state(found)
        with contextlib.suppress(LookupError):
            self.best_weights()

    def _state(self, found: dict) -> bytes:
        content = self.run.find(found["state"]) or b""
        if hashlib.sha256(content).hexdigest() != found["sha256"]:
            raise self._damaged(found["state"])
        return content

    def _damaged(self, key: str, what: str = "is damaged") -> VersionMismatchError:
        place, train = self.run.location(key), self.run.location("train")
        return VersionMismatchError(
            f"{place} {what}: remove {train}, and the same command repeats this run's updates on the shards that "
            "are there"
        )

    def _lost(self, number: int) -> VersionMismatchError:
        return self._damaged("metrics", f"has no line of round {number}, which was trained")

    def _lines(self, name: str) -> list[dict]:
        try:
            return [json.loads(text) for text in self.run.get(f"metrics/{name}").splitlines()]
        except ValueError as error:
            raise self._damaged(f"metrics/{name}") from error


def _piece(first: int) -> str:
    return f"metrics/{first:07}.jsonl"  # so that their names sort as their rounds


def _best(version: int) -> str:
    return f"{BEST}/{version}.safetensors"
