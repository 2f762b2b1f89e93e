"""The CIFAR-10 preset on real images, at a size for tests."""

import os
from pathlib import Path

import pytest
import torch
from commands import BRIEFLY, TINY, flags_of, results_of, run_here

from stages.shipped import load_model

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.skipif(
    "RAP_DATA_ROOT" not in os.environ, reason="RAP_DATA_ROOT is not set: it names the folder of CIFAR-10"
)
def test_real_cifar10_goes_through_every_stage(ray_session: object, tmp_path: Path) -> None:
    small = {
        **TINY,
        "data.train-images": 128,
        "data.holdout-images": 200,
        "classifier.architecture": "cnn",
        "classifier.images": 2000,
        "classifier.epochs": 1,
        "classifier.learning-rate": 0.05,
        "classifier.batch": 64,
        "classifier.precision": "float32",  # as those below: CPUs emulate the preset's
        "adapter.size": "tiny-half",
        "attack.precision": "float32",
        "attack.batch": 64,
        "train.precision": "float32",
        "schedule.rounds": 3,
        "search.trials": 0,
    }
    run_here(tmp_path, "cifar10-linf", *flags_of(small), *BRIEFLY)
    results = results_of(tmp_path, "cifar10-linf-*")
    assert results["data"] == "CIFAR-10 (JPEG q75)"
    assert results["run"]["trajectories"]["generated_now"] == 6
    assert results["models"]["robust"]["worst_cases"][0]["unverified"] == 0
    assert results["models"]["undefended"]["clean"]["value"] > 0.1
    model = load_model(results["run"]["paths"]["model"])
    assert model.purify(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
