"""A store of a million shards: how long it takes to write, query, resume and prune, and in how much memory.

    python tests/benchmarks/million_shards.py [--shards 1000000]

Shards of one digit each, through the code that writes them: `write_shard`, the recorder's ledger, the journal's lines
and checkpoints. The bytes of a shard are packed once for each of 1,000 and then written under other names, since it is
the number that counts here. Two runs: 99 % of the shards are one's, the other's are pruned. Each question is asked in a
process of its own, whose peak memory is given (PyTorch alone takes most of it). Local disk, one thread; writes
results/million_shards.json beside this file.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from loop_cost import setup_of

from pipeline.inventory import Inventory
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.storage import Storage
from stages.training.setup import Setup
from stages.trajectories.codec import encode
from stages.trajectories.recorder import Recorder
from stages.trajectories.shards import LedgerRow, Shard, pack_shard, write_shard

RESULTS = Path(__file__).parent / "results" / "million_shards.json"
UNITS = 16  # of a round
CHECKPOINT = 100  # rounds
LOOKED_UP = 200


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=1_000_000)
    rounds = parser.parse_args().shards // UNITS
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as root:
        found: dict[str, object] = {"shards": rounds * UNITS}
        for name, ask in {"write": write, "look up": look_up, "resume": resume, "prune": prune}.items():
            found[name] = in_a_process(ask, root, rounds)
            print(name, json.dumps(found[name]), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


def in_a_process(ask: Callable[[str, int], dict], root: str, rounds: int) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (ask, root, rounds))


def _measured(ask: Callable[[str, int], dict], root: str, rounds: int) -> dict:
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = ask(root, rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {**found, "seconds": round(time.perf_counter() - began, 1), "peak memory, MB": round(peak)}


def runs_of(root: str, rounds: int) -> list[Setup]:
    """The large run and the small one."""
    setup = setup_of("digits", rounds, root)
    small = replace(setup, name="runs/small")
    return [setup, replace(small, config=replace(setup.config, schedule=replace(setup.config.schedule, rounds=rounds)))]


def write(root: str, rounds: int) -> dict:
    large, small = runs_of(root, rounds)
    content, row = example(large)
    _write(large, range(rounds // 100, rounds), content, row)
    _write(small, range(rounds // 100), content, row)
    return {"a second": round(rounds * UNITS / time.process_time())}


def _write(setup: Setup, numbers: range, content: bytes, row: LedgerRow) -> None:
    recorder, journal, learner = Recorder(setup.ledger), setup.journal, setup.learner()
    recorder.begin(0, journal.read)
    setup.run.put("recipe.json", json.dumps({"recipe": {"schedule": {"rounds": len(numbers)}}}).encode())
    previous: dict[int, str] = {}
    for number, key in enumerate(numbers):
        names = [hashlib.sha256(b"%d/%d" % (key, unit)).hexdigest()[:32] for unit in range(UNITS)]
        for name in names:
            write_shard(setup.root, name, content)
        rows = [replace(row, fingerprint=name, round=number, unit=unit) for unit, name in enumerate(names)]
        recorder.enter(rows)
        previous |= dict(enumerate(names))
        line = {"round": number, "version": number, "attacked": "", "shards": names, "weights": ""}
        line["checkpoint"] = (number + 1) % CHECKPOINT == 0 or number + 1 == len(numbers)
        journal.write(line)
        if line["checkpoint"]:
            journal.write_checkpoint(number + 1, learner.state(), [], previous, None)
        recorder.follow(line)


def example(setup: Setup) -> tuple[bytes, LedgerRow]:
    """A shard of one digit, and its row."""
    images, labels = (torch.from_numpy(each[:1]) for each in (setup.train.images, setup.train.labels))
    process, rows = setup.config.attack, setup.train.rows[:1]
    start = draw_start(process, 0, rows, tuple(images.shape[1:]))
    made = attack(setup.build(), images, labels, process, start, process.times(1))
    segments = encode(
        made,
        process.lattice.from_bytes(images),
        process=process,
        index=torch.from_numpy(rows),
        taken=torch.zeros(1, dtype=torch.int64),
        start_seed=0,
    )
    row = LedgerRow(
        **{"fingerprint": "", "parent": "", "run": "large", "round": 0, "unit": 0, "cohort": 0, "visit": 0},  # pyright: ignore
        **{"version": 0, "weights": "w" * 32, "data": "d" * 32, "attack": "{}", "first_index": 0, "last_index": 0},
        **{"n": 1, "k": 1, "fresh": 1, "last_states": "s" * 32, "success": (0.0,), "loss": (1.0,)},
        **{"zero_gradients": (0.0,), "seconds": 0.1, "worker": "host:1", "created": "2026-01-01T00:00:00+00:00"},
    )
    return pack_shard(Shard(row, segments)), row


def look_up(root: str, rounds: int) -> dict:
    """The rows of a round, and those of a cohort in the last rounds."""
    ledger, times = runs_of(root, rounds)[0].ledger, []
    for number in np.random.default_rng(0).integers(0, ledger.rounds, LOOKED_UP).tolist():
        began = time.perf_counter()
        assert len(ledger.rows(range(number, number + 1))) == UNITS
        times.append(time.perf_counter() - began)
    counted = sum(batch.num_rows for batch in ledger.query(where=pc.field("unit") == 3, columns=["round"]))
    assert counted == ledger.rounds
    return {
        "a round, ms": round(1e3 * statistics.median(times), 1),
        "slowest of 200, ms": round(1e3 * max(times), 1),
        "files": len(ledger.storage.names()),
    }


def resume(root: str, rounds: int) -> dict:
    """All that a loop does before its next round."""
    setup = runs_of(root, rounds)[0]
    learner = setup.learner()
    began = time.perf_counter()
    start = setup.journal.resume(learner, "cpu")
    Recorder(setup.ledger).begin(start.round, setup.journal.read)
    return {"until the next round, s": round(time.perf_counter() - began, 2), "round": start.round}


def prune(root: str, rounds: int) -> dict:
    """Drop the small run."""
    inventory = Inventory(Storage.at(root))
    entries = list(inventory.unneeded(dropped=["runs/small"], older=timedelta(0)))
    inventory.root.delete(each.key for each in entries)
    assert sum(each.key.startswith("trajectories/") for each in entries) == rounds // 100 * UNITS
    return {"objects": len(entries)}


if __name__ == "__main__":
    main()
