"""Several train workers: the same weights as one, to the last bits of a float32 sum."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import SCHEDULE, TRAIN, after, loop_config, published, setup_of
from torch import distributed, multiprocessing
from torch.nn import Parameter

from stages.training.distributed import any_worker, average, workers
from stages.training.rounds import Round, Serial, run_rounds, run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import read_shard

# SGD: AdamW divides by the root of the squared gradient, which makes much of rounding where that is near zero.
CONFIG = loop_config(
    schedule=replace(SCHEDULE, rounds=2, overlap_rounds=0),
    train=replace(TRAIN, optimizer="sgd", learning_rate=0.05, weight_perturbation=0.01, perturbed_share=1.0),
)


class Followed(Serial):
    """Rank 0 generates, and tells the other which shards to read."""

    def obtain(self, number: int, attacked: Future | None) -> Round | None:
        names: list[list[str]] = [[]]
        if distributed.get_rank() == 0:
            made = super().obtain(number, attacked)
            assert made is not None
            names = [[row.fingerprint for row in made.rows]]
        distributed.broadcast_object_list(names)
        if self.stopped():
            return None
        return Round.of(self.setup, number, [read_shard(self.setup.root, name) for name in names[0]])


def never() -> bool:
    return False


def start(rank: int, root: Path) -> None:
    """One of two train workers: the small agreements first, then the loop, stopped once and resumed."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    parameter, untouched = Parameter(torch.zeros(2)), Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([1.0, 4.0]) * (rank + 1)
    figures = average([parameter, untouched], {"loss": torch.tensor(2.0 * rank), "kl": torch.tensor(rank * torch.nan)})
    votes = [any_worker(flag) for flag in (False, rank == 1, True)]
    torch.save((workers(), parameter.grad, figures, votes), root / f"agreed-{rank}")
    setup = setup_of(root, CONFIG)
    for turn, stopped in enumerate((after(1) if rank == 1 else never, never)):
        run_rounds(setup, Followed(setup, stopped), report=lambda line: None)
        distributed.barrier()
        torch.save(len(setup.journal.lines()), root / f"lines-{turn}-{rank}")
        distributed.barrier()
    whole = setup_of(root / "whole", CONFIG)
    run_rounds(whole, Followed(whole, never), report=lambda line: None)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Setup:
    root = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(start, args=(root,), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return setup_of(root, CONFIG)


def weights_of(setup: Setup, number: int) -> dict[str, torch.Tensor]:
    version = setup.versions.find(number)
    assert version is not None
    return version.weights


def test_gradients_and_figures_are_averaged_and_one_vote_is_enough(two):
    for rank in range(2):
        seen, gradient, figures, votes = torch.load(two.root.local(f"agreed-{rank}"), weights_only=True)
        assert seen == (rank, 2)
        assert gradient.tolist() == [1.5, 6.0]
        assert figures["loss"] == 1
        assert figures["kl"].isnan()  # so all of them know of a loss that is no number on one
        assert votes == [False, True, True]


def test_two_train_workers_make_the_weights_of_one(two, tmp_path):
    one = setup_of(tmp_path, CONFIG)
    run_serially(one)
    assert set(published(two)) == set(published(one)) == {"0", "1", "2"}
    assert published(two)["0"] == published(one)["0"]
    first = weights_of(one, 0)
    for number in (1, 2):
        ours, theirs = weights_of(one, number), weights_of(two, number)
        moved = max(float((ours[name] - first[name]).abs().max()) for name in ours)
        apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
        assert apart < 1e-3 * moved
    ours, theirs = one.journal.lines(), two.journal.lines()
    assert [line["round"] for line in theirs] == [0, 1]
    assert theirs[0]["shards"] == ours[0]["shards"]


def test_a_stop_that_one_worker_sees_stops_both(two):
    lines = [torch.load(two.root.local(f"lines-0-{rank}"), weights_only=True) for rank in range(2)]
    assert lines == [1, 1]
    assert two.is_complete


def test_two_that_were_stopped_and_resumed_make_the_bytes_of_two_that_were_not(two):
    assert published(two) == published(setup_of(two.root.local("whole"), CONFIG))


def test_alone_nothing_is_exchanged():
    parameter = Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    figures = {"loss": torch.ones(())}
    assert average([parameter], figures) == figures
    assert workers() == (0, 1)
    assert parameter.grad.tolist() == [1, 1]
    assert any_worker(True)
    assert not any_worker(False)
