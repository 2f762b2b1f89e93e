"""The serial loop at its edges: what it is set up with, its shortest runs, and errors that end it."""

import pickle
from dataclasses import replace

import pytest
import torch
from tiny_runs import CONFIGS, SCHEDULE, THREATS, after, loop_config, published, setup_of

from stages.rap.process import AttackConfig
from stages.storage import Storage
from stages.training.rounds import run_serially
from stages.training.setup import Setup, load_trained


def test_a_stop_before_the_first_round_publishes_the_first_weights_only(tmp_path):
    setup = setup_of(tmp_path)
    run_serially(setup, stopped=after(0))
    assert set(published(setup)) == {"0"}
    assert setup.journal.lines() == []


def test_a_setup_is_sent_without_the_schedule_that_was_begun(tmp_path):
    """Arrays arrive read-only, as from Ray's object store."""
    setup = setup_of(tmp_path, CONFIGS["adapter, overlap 1"])
    first = setup.schedule.batches(0)[0]
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(setup, protocol=5, buffer_callback=buffers.append)
    arrived: Setup = pickle.loads(sent, buffers=[bytes(buffer) for buffer in buffers])
    assert (arrived.schedule.batches(0)[0].places == first.places).all()
    assert arrived.schedule.visits(7) == setup.schedule.visits(7)


def test_no_rounds_keep_the_first_weights_as_the_best(tmp_path):
    setup = setup_of(tmp_path, loop_config(schedule=replace(SCHEDULE, rounds=0)))
    assert not setup.is_complete
    run_serially(setup)
    assert setup.is_complete
    weights, version = setup.journal.best_weights()
    assert version == 0
    assert all(torch.equal(weights[name], value) for name, value in setup.learner().weights().items())


def test_each_round_is_reported(tmp_path):
    seen: list[int] = []
    setup = setup_of(tmp_path, loop_config(schedule=replace(SCHEDULE, rounds=2)))
    run_serially(setup, report=lambda line: seen.append(line["round"]))
    assert seen == [0, 1]


def test_an_error_of_what_is_written_behind_ends_the_run(tmp_path, monkeypatch):
    def full(storage: Storage, key: str, content: bytes) -> None:
        if key.startswith("metrics"):
            raise OSError(28, "No space left on device")
        put(storage, key, content)

    put = Storage.put
    monkeypatch.setattr(Storage, "put", full)
    with pytest.raises(OSError, match="No space left"):
        run_serially(setup_of(tmp_path))


def test_setting_up_takes_no_random_numbers_and_leaves_the_classifier_alone(tmp_path):
    state = torch.get_rng_state()
    setup = setup_of(tmp_path, CONFIGS["both, every visit from noise"])
    built = setup.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert built.classifier is not setup.classifier
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), setup.build().parameters(), strict=True))


def test_weights_of_another_robust_classifier_are_refused(tmp_path):
    other = setup_of(tmp_path).learner().weights()
    with pytest.raises(ValueError, match=r"it has no 'adapter\.[a-z.0-9_]+' \(\d+ such names\)"):
        load_trained(setup_of(tmp_path, CONFIGS["classifier alone"]).build(), other)


def test_a_full_attack_length_of_one_step_runs(tmp_path):
    attack = AttackConfig(steps=1, batch=16).process(THREATS["Linf"])
    setup = setup_of(tmp_path, loop_config(attack=attack, schedule=replace(SCHEDULE, rounds=2, visit_steps=1)))
    run_serially(setup)
    assert setup.is_complete
