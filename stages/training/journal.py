"""What a run writes down while it trains: metrics.jsonl, the checkpoint, and the best weights so far.

All three are replaced by rename, and repeated rounds write what was there before.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from stages.evaluation.judge import Judgement
from stages.training.adapter import Learner
from stages.training.schedule import Schedule
from stages.training.versions import VersionMismatchError
from stages.trajectories.ledger import LedgerRow
from stages.weights import save_weights

# The alarms. Each names a way in which training on stored adversaries fails without its loss showing it.
STALE_RATIO = 3.0  # median loss on fresh adversaries over that on replayed ones; 1.2 to 2 in healthy runs
STALE_ROUNDS = 10  # of that many rounds, since a single one reaches 5 in healthy runs
ZERO_GRADIENTS = 0.3  # share of pixels without gradient: masked by saturation, so the attack is blind there


def round_line(
    schedule: Schedule,
    number: int,
    rows: list[LedgerRow],
    measured: list[dict[str, float]],
    waited: float,
    seconds: float,
    verdict: Judgement | None,
) -> dict:
    """The line of metrics.jsonl for a round; times in seconds, lag and age in updates."""
    ages = schedule.ages(number)
    attacked = sum(row.seconds for row in rows)
    fresh, stored = _mean(measured, "fresh"), _mean(measured, "stored")
    line = {
        "round": number,
        "version": schedule.version(number),
        "updates": (number + 1) * schedule.updates_per_round,
        **{name: _mean(measured, name) for name in measured[0] if name not in ("fresh", "stored")},
        "fresh_loss": fresh,
        "stored_loss": stored,
        "fresh_to_stored": fresh / stored if fresh is not None and stored else None,
        "lag": schedule.lag(number),
        "age": {str(q): float(np.quantile(ages, q)) for q in (0.0, 0.5, 0.9, 1.0)},
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
        line["judge"] = {"clean": verdict.clean.as_json(), "robust": verdict.robust.as_json()}
    return line


def alarms(line: dict, best: float | None) -> list[str]:
    """What is wrong with a round, in words; ``best`` is the judge's best robust accuracy before it."""
    found = []
    ratio = line["recent_fresh_to_stored"]
    if ratio is not None and ratio > STALE_RATIO:
        found.append(
            f"stale: over {STALE_ROUNDS} rounds the loss on fresh adversaries is {ratio:.1f} times that on replayed "
            "ones; lower schedule.passes or schedule.replay_rounds"
        )
    if line["zero_gradients"] > ZERO_GRADIENTS:
        found.append(
            f"zero gradients: {line['zero_gradients']:.0%} of the pixels have none, so the attack is blind there; "
            "look for saturation in the classifier or for bfloat16"
        )
    robust = line.get("judge", {}).get("robust")
    if robust and best is not None and robust["interval"][1] < best:
        found.append(
            f"collapse: the judge finds {robust['value']:.1%}, after {best:.1%} before; "
            "lower train.learning_rate, or look for label leaking if it is near 0"
        )
    return found


def recent_ratio(lines: list[dict]) -> float | None:
    """The median ratio of fresh to stored loss over the last rounds; None before there are enough of them."""
    known = [ratio for line in lines[-STALE_ROUNDS:] if (ratio := line["fresh_to_stored"]) is not None]
    return float(np.median(known)) if len(known) == STALE_ROUNDS else None


def best_robust(lines: list[dict], before: int) -> float | None:
    """The judge's best robust accuracy over the versions before one."""
    judged = [line["judge"]["robust"]["value"] for line in lines if "judge" in line and line["round"] + 1 < before]
    return max(judged, default=None)


class Journal:
    """The files of a run that change while it trains."""

    def __init__(self, run: Path) -> None:
        self.metrics, self.train = run / "metrics.jsonl", run / "train"
        self.train.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.best = self.train / "checkpoint.pt", self.train / "best.safetensors"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Write alone: waits until a train worker that was replaced, or orphaned by its driver, is gone."""
        with (self.train / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def resume(self, learner: Learner, device: str) -> int:
        """Bring a learner to the last checkpoint; returns the round to go on with, 0 without one."""
        if not self.checkpoint.exists():
            return 0
        saved = self._read_checkpoint(device)
        learner.load_state(saved["learner"])
        return int(saved["round"])

    @property
    def checkpointed(self) -> int:
        """The round that the checkpoint goes on with, 0 without one."""
        if not self.checkpoint.exists():
            return 0
        return int(self._read_checkpoint("cpu")["round"])

    def lines(self) -> list[dict]:
        """The lines of metrics.jsonl, in order of round; a line that was torn by a kill is left out."""
        if not self.metrics.exists():
            return []
        whole = [text for text in self.metrics.read_text().splitlines(keepends=True) if text.endswith("\n")]
        return [json.loads(text) for text in whole]

    def truncate(self, first: int) -> None:
        """Drop the lines of rounds that will be repeated."""
        kept = [line for line in self.lines() if line["round"] < first]
        _replace(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, line: dict, learner: Learner, verdict: Judgement | None, *, checkpoint: bool) -> None:
        """Record a round: its line with alarms, the best weights if these are, and a checkpoint where one is due."""
        earlier = self.lines()
        best = best_robust(earlier, before=line["round"] + 1)
        line["recent_fresh_to_stored"] = recent_ratio([*earlier, line])
        line["alarms"] = alarms(line, best)
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if verdict is not None and (best is None or verdict.robust.value > best):
            self._save_best(learner.shipped(), line["round"] + 1)
        if checkpoint:
            temporary = self.checkpoint.with_suffix(f".{os.getpid()}")
            torch.save({"round": line["round"] + 1, "learner": learner.state()}, temporary)
            temporary.replace(self.checkpoint)

    def best_weights(self) -> tuple[dict[str, Tensor], int]:
        """The weights that the judge liked best, and their version.

        Raises FileNotFoundError before any verdict, and VersionMismatchError where the file was damaged.
        """
        try:
            with safe_open(self.best, framework="pt") as file:
                version = int(file.metadata()["version"])
            return load_file(self.best), version
        except (SafetensorError, TypeError, KeyError) as error:  # of its bytes, or of a file without its version
            raise self._damaged(self.best, error) from error

    def _read_checkpoint(self, device: str) -> dict[str, Any]:
        try:
            return torch.load(self.checkpoint, map_location=device, weights_only=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # damaged bytes lead the reader into errors of a dozen types
            raise self._damaged(self.checkpoint, error) from error

    def _damaged(self, path: Path, error: Exception) -> VersionMismatchError:
        return VersionMismatchError(
            f"{path} is damaged ({path.stat().st_size:,} bytes; {type(error).__name__}): remove {self.train}, and the "
            "same command repeats this run's updates on the shards that are there"
        )

    def _save_best(self, weights: dict[str, Tensor], version: int) -> None:
        temporary = self.best.with_suffix(f".{os.getpid()}")
        save_weights(weights, temporary, {"version": str(version)})  # one entry: their order in the file is not fixed
        temporary.replace(self.best)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _mean(measured: list[dict[str, float]], name: str) -> float | None:
    values = [update[name] for update in measured if np.isfinite(update[name])]
    return float(np.mean(values)) if values else None
