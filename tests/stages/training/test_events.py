"""TensorBoard events, opened by a reader that shares nothing with what writes them but the protocol's own messages."""

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
from tiny_runs import after, setup_of

from stages.evaluation.accuracy import Accuracy
from stages.storage import Storage
from stages.training.events import Settled, events_of, write_trial
from stages.training.journal import Journal
from stages.training.rounds import run_serially
from stages.training.setup import Setup


def masked(data: bytes) -> int:
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(folder: Storage) -> Iterator[Event]:
    """All events below a folder, file by file in the order of their names, as TensorBoard reads them."""
    for name in folder.names():
        assert "tfevents" in name
        content, first = folder.get(name), True
        while content:
            header, checksum = content[:8], content[8:12]
            end = 12 + struct.unpack("<Q", header)[0]
            record = content[12:end]
            assert struct.unpack("<I", checksum)[0] == masked(header)
            assert struct.unpack("<I", content[end : end + 4])[0] == masked(record)
            event = Event.FromString(record)
            assert (event.file_version == "brain.Event:2") == first
            content, first = content[end + 4 :], False
            yield event


def scalars_in(folder: Storage) -> dict[tuple[str, int], float]:
    """The curves, each of whose points is there once."""
    found = [(value.tag, each.step, value.simple_value) for each in events_in(folder) for value in each.summary.value]
    found = [each for each in found if not each[0].startswith("_hparams_/")]
    assert max(Counter(each[:2] for each in found).values()) == 1
    return {(tag, step): value for tag, step, value in found}


def train(setup: Setup, rounds: int) -> Settled:
    """Some rounds of a loop whose driver then dies: what comes after a line of metrics happens no more."""
    events = events_of(setup.journal)
    run_serially(setup, stopped=after(rounds), report=events.follow)
    return events


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    setup = setup_of(tmp_path_factory.mktemp("root"))
    train(setup, 6).catch_up()
    return setup


def test_every_figure_of_every_round_is_a_point_of_a_curve(finished: Setup) -> None:
    found, lines = scalars_in(finished.run.below("tensorboard")), finished.journal.lines()
    assert len(lines) == 6
    for line in lines:
        for name in ("loss", "lag", "waiting", "attack_steps_per_second", "attack_success", "bytes"):
            assert found["training/" + name, line["round"] + 1] == pytest.approx(line[name])
    judged = {step: value for (tag, step), value in found.items() if tag == "judge/robust"}
    assert judged == {
        line["round"] + 1: pytest.approx(line["judge"]["robust"]["value"]) for line in lines if "judge" in line
    }
    assert not {tag for tag, _ in found if tag.endswith(("round", "checkpoint", "worker"))}


def test_times_go_on_as_the_rounds_did(finished: Setup) -> None:
    times = {each.step: each.wall_time for each in events_in(finished.run.below("tensorboard")) if each.step}
    lines = finished.journal.lines()
    assert times[2] - times[1] == pytest.approx(lines[1]["seconds"], abs=1e-6)
    assert times[4] - times[3] == pytest.approx(lines[3]["seconds"], abs=1e-6)


def test_a_run_that_resumes_writes_no_round_twice(finished: Setup, tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    train(setup, 3)  # a checkpoint after two rounds, and a line of the third
    assert {step for _, step in scalars_in(setup.run.below("tensorboard"))} <= {1, 2}
    train(setup, 1)
    train(setup, 9).catch_up()
    events_of(setup.journal).catch_up()
    assert scalars_in(setup.run.below("tensorboard")).keys() == scalars_in(finished.run.below("tensorboard")).keys()


def test_rounds_that_are_trained_anew_have_the_new_events_alone(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    train(setup, 4).catch_up()
    setup.run.put("tensorboard/notes.txt", b"of somebody else")
    setup.run.delete(["train/checkpoint.json"])
    assert events_of(setup.journal).since == 0
    assert setup.run.names("tensorboard") == ["notes.txt"]


def test_in_a_bucket_they_are_objects(finished: Setup) -> None:
    copy = Storage.at("memory://events").below("runs/run")
    for entry in finished.run.entries():
        copy.put(entry.key, finished.run.get(entry.key))
    copy.delete([f"tensorboard/{name}" for name in copy.names("tensorboard")])
    events_of(Journal(copy)).catch_up()
    assert scalars_in(copy.below("tensorboard")) == scalars_in(finished.run.below("tensorboard"))


def test_a_trial_shows_its_settings_its_curve_and_its_verdict_at_every_rung(finished: Setup, tmp_path: Path) -> None:
    folder, settings = Storage.at(tmp_path), {"attack.step-size": 0.1, "attack.start": "none", "train.ema": None}
    for since, rounds, right in ((0, 2, 10), (2, 6, 12)):
        found = Accuracy(correct=right, images=16).as_json()
        for _ in range(2):  # the second time, it is there
            write_trial(folder, finished.journal, settings, {"rounds": rounds, "robust": found, "clean": found}, since)
    found = scalars_in(folder)
    assert {step for tag, step in found if tag == "training/loss"} == {1, 2, 3, 4, 5, 6}
    assert {(step, value) for (tag, step), value in found.items() if tag == "verdict/robust"} == {
        (2, 10 / 16),
        (6, 0.75),
    }
    (told,) = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info.hparams
        for each in events_in(folder)
        for value in each.summary.value
        if value.tag == "_hparams_/session_start_info" and each.step == 2
    ]
    assert told["attack.step-size"].number_value == 0.1
    assert told["attack.start"].string_value == told["train.ema"].string_value == "none"
