"""Where things are computed; PyTorch's meta device stands for a GPU, which has no numbers here."""

import pytest
from torch import nn

from cluster.session import PlacementError
from pipeline import placement
from pipeline.flags import WorkersConfig
from pipeline.placement import demanded_device, own_device
from stages.evaluation.accuracy import device_of, on_device


@pytest.mark.parametrize(
    ("there", "wanted", "device"),
    [(True, "auto", "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda"), (False, "auto", "cpu")],
)
def test_this_process_computes_on_its_own_gpu_where_it_may(there, wanted, device, monkeypatch) -> None:
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: there)
    assert own_device(WorkersConfig(device=wanted)) == demanded_device(WorkersConfig(device=wanted)) == device


def test_a_gpu_that_this_machine_lacks_is_refused_where_the_work_is_done_here(monkeypatch) -> None:
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: False)
    config = WorkersConfig(device="cuda")
    assert own_device(config) == "cpu"  # pictures are made on the head of a cluster, whose workers have the GPUs
    with pytest.raises(PlacementError, match="PyTorch finds no GPU on this machine: use auto or cpu"):
        demanded_device(config)


def test_a_model_is_moved_as_a_copy_and_only_where_it_must() -> None:
    model = nn.Linear(2, 2)
    moved = on_device(model, "meta")
    assert device_of(moved).type == "meta"
    assert device_of(model).type == "cpu"
    assert on_device(model, "cpu") is model
    assert on_device(moved, "meta") is moved
