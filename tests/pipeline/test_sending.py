"""What users hand in, on its way to the workers: sent whatever it is made of, or refused before Ray starts."""

import threading
from collections.abc import Callable
from pathlib import Path

import evaluated_models
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cluster.parcels import ParcelError
from pipeline.command import WorkersConfig, parse
from pipeline.evaluate import evaluate_model, main
from pipeline.measuring import find
from pipeline.plan import make_plan
from stages.data.datasets import DataConfig, load_data
from stages.evaluation.measurement import Measurement
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.rap.threat import ThreatModel

# Of all of TorchScript.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")]

THREAT = ThreatModel(norm="Linf", radius=0.1)
PGD = PGDConfig(steps=3)


def parametrized() -> nn.Module:
    model = evaluated_models.build().eval()
    parametrizations.weight_norm(model.get_submodule("1"))
    return model


def scripted() -> nn.Module:
    return torch.jit.script(evaluated_models.build().eval())  # pyright: ignore[reportReturnType]


def locked() -> nn.Module:
    model = evaluated_models.build().eval()
    vars(model)["lock"] = threading.Lock()
    return model


def closing_over(lock: object) -> Callable[..., Tensor]:
    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        return images if lock else images.flip(0)

    return attack


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(**_: object) -> None:
        pytest.fail("Ray was about to start")

    monkeypatch.setattr("pipeline.measuring.session", session)


@pytest.mark.parametrize("build", [parametrized, scripted])
def test_models_that_pickle_refuses_are_attacked_by_workers(
    build: Callable[[], nn.Module], ray_session: object, tmp_path: Path
) -> None:
    test = load_data(DataConfig(name="digits")).test
    measurement = Measurement(name="pgd", attack=PGD, threat=THREAT, images=20, chunk=20)
    found = find(
        {"model": build()},
        test,
        [measurement],
        [],
        None,
        root=tmp_path,
        workers=WorkersConfig(),
        data="digits",
        say=print,
    ).evaluations["model"]["pgd"]
    part = test.take(test.positions(found.rows))
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    expected = pgd_mask(build(), images, labels, THREAT, config=PGD, rows=part.rows)
    assert found.robust_mask.tolist() == expected.tolist()
    assert 0 < expected.sum() < 20


def test_a_model_that_cannot_be_sent_is_refused_before_ray_starts(
    no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated_models, "locked", locked, raising=False)
    ball = ["--norm", "Linf", "--radius", "0.1", "--root", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "evaluated_models:locked", *ball])
    said = capsys.readouterr().err
    assert said.startswith("error: the model cannot be sent to worker processes: lock: TypeError: cannot pickle")
    assert "A quick screening attacks in this process" in said


def test_a_model_that_cannot_be_sent_is_screened(no_ray: None, tmp_path: Path) -> None:
    found = evaluate_model(locked(), data="digits", norm="Linf", radius=0.1, quick=True, images=64, root=tmp_path)
    assert found.screening is not None
    assert 0 < found.headline.value < 1


def test_an_attack_that_cannot_be_sent_is_refused_before_ray_starts(no_ray: None, tmp_path: Path) -> None:
    attack = closing_over(threading.Lock())
    with pytest.raises(ParcelError, match=r"the attack .*closing_over.* cannot be sent .*: lock: TypeError"):
        evaluate_model(
            evaluated_models.build().eval(), data="digits", norm="Linf", radius=0.1, attacks=[attack], root=tmp_path
        )


def test_a_classifier_that_cannot_be_sent_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated_models, "locked", locked, raising=False)
    flags = ["--classifier.factory", "evaluated_models:locked", "--classifier.epochs", "0", "--root", str(tmp_path)]
    with pytest.raises(
        ParcelError, match="evaluated_models:locked cannot be sent to worker processes: lock: TypeError"
    ):
        make_plan(parse(flags))
