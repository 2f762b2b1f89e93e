"""The loop where a device computes: what is waited for, what has no room, and networks that are compiled."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import SCHEDULE, loop_config, published, setup_of, shards_of

from stages.evaluation.judge import JudgeConfig
from stages.numerics import DeviceMemoryError
from stages.storage import Storage
from stages.training import rounds
from stages.training.adapter import Learner
from stages.training.batches import TrainingBatch
from stages.training.rounds import run_serially
from stages.trajectories import generate
from stages.trajectories.ledger import Ledger


def test_an_update_for_which_the_device_has_no_room_names_its_setting_and_the_run_goes_on(tmp_path, monkeypatch):
    update = Learner.update

    def crowded(learner: Learner, batch: TrainingBatch) -> None:
        if learner.updates > 8:  # in the fifth round, after the first two checkpoints
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        update(learner, batch)

    monkeypatch.setattr(Learner, "update", crowded)
    with pytest.raises(DeviceMemoryError, match=r"no room for schedule\.batch = 16 .* the same command resumes"):
        run_serially(setup_of(tmp_path))
    monkeypatch.undo()
    run_serially(setup := setup_of(tmp_path))
    assert setup.is_complete


def test_a_unit_is_attacked_while_another_is_written(tmp_path, monkeypatch):
    begun, second, attack, put = [], threading.Event(), generate._attack, Storage.put

    def watched(*arguments: Any) -> Any:
        begun.append(None)
        if len(begun) > 1:
            second.set()
        return attack(*arguments)

    def patient(storage: Storage, key: str, content: bytes) -> None:
        if key.startswith("trajectories/"):
            assert second.wait(timeout=100)
        put(storage, key, content)

    monkeypatch.setattr(generate, "_attack", watched)
    monkeypatch.setattr(Storage, "put", patient)
    assert run_serially(setup_of(tmp_path, loop_config(schedule=replace(SCHEDULE, rounds=1)))) == 2


def test_the_end_of_a_round_waits_for_nothing(tmp_path, monkeypatch, waiting):
    end, asked = rounds._Rounds._end_round, []

    def watched(*arguments: Any) -> None:
        with waiting() as device:
            end(*arguments)
        asked.append(device.asked)

    monkeypatch.setattr(rounds._Rounds, "_end_round", watched)
    run_serially(setup_of(tmp_path, loop_config(judge=JudgeConfig(images=16, every=100))))
    assert asked[:-1] == [[]] * 5
    assert asked[-1]  # the judge's verdict on the last round is waited for


def test_without_an_index_the_same_is_published_and_no_ledger_written(tmp_path):
    for name in ("indexed", "plain"):
        run_serially(setup_of(tmp_path / name), indexed=name == "indexed")
    assert published(setup_of(tmp_path / "indexed")) == published(setup_of(tmp_path / "plain"))
    assert Ledger(setup_of(tmp_path / "indexed").root, "run").rounds == 6
    assert not setup_of(tmp_path / "plain").root.names("ledger")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_compiled_networks_publish_the_same_and_stay_on_the_lattice(norm, tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("compiled_loop.py")), str(tmp_path), norm]
    subprocess.run(program, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    assert published(setup_of(tmp_path / "plain")) == published(setup_of(tmp_path / "compiled"))
    plain, compiled = (list(shards_of(setup_of(tmp_path / name)).values()) for name in ("plain", "compiled"))
    assert len(plain) == len(compiled) == 4
    for arrays in compiled:  # under other names, as their recipe is another
        assert any(all(map(np.array_equal, arrays, others)) for others in plain)


def test_networks_that_cannot_be_compiled_are_refused_before_anything_is_attacked(tmp_path, monkeypatch):
    def missing(function: object) -> object:
        raise RuntimeError("Cannot find a working triton installation.\nMore information follows")

    monkeypatch.setattr(torch, "compile", missing)
    config = loop_config()
    setup = setup_of(tmp_path, replace(config, attack=replace(config.attack, compiled=True)))
    with pytest.raises(ValueError, match=r"cannot compile for cpu here .*working triton.*: install a C\+\+ compiler"):
        run_serially(setup)
    assert not setup.root.names("trajectories")
