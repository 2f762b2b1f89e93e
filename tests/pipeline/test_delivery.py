"""What users hand in, on its way to the workers: sent whatever it is made of, or refused before Ray starts."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import evaluated_models
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cluster.parcels import ParcelError
from pipeline.defend.plan import make_plan
from pipeline.evaluate import EvaluateSettings, evaluate_model, main
from pipeline.flags import WorkersConfig, parse
from pipeline.measure.measuring import Asked, find
from pipeline.run import main as run
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

    monkeypatch.setattr("pipeline.measure.measuring.session", session)


@pytest.mark.parametrize("build", [parametrized, scripted])
def test_models_that_pickle_refuses_are_attacked_by_workers(
    build: Callable[[], nn.Module], ray_session: object, tmp_path: Path
) -> None:
    test = load_data(DataConfig(name="digits")).test
    measurement = Measurement(name="pgd", attack=PGD, threat=THREAT, images=20, chunk=20)
    asked = Asked(models={"model": build()}, data="digits", test=test, measurements=[measurement])
    found = find(asked, root=tmp_path, workers=WorkersConfig(), say=print).evaluations["model"]["pgd"]
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
    settings = EvaluateSettings(quick=True, images=64, root=tmp_path)
    found = evaluate_model(locked(), data="digits", norm="Linf", radius=0.1, settings=settings)
    assert found.screening is not None
    assert 0 < found.robust_accuracy.value < 1


def test_an_attack_that_cannot_be_sent_is_refused_before_ray_starts(no_ray: None, tmp_path: Path) -> None:
    settings = EvaluateSettings(attacks=[closing_over(threading.Lock())], root=tmp_path)
    with pytest.raises(ParcelError, match=r"the attack .*closing_over.* cannot be sent .*: lock: TypeError"):
        evaluate_model(evaluated_models.build().eval(), data="digits", norm="Linf", radius=0.1, settings=settings)


def test_a_classifier_that_cannot_be_sent_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated_models, "locked", locked, raising=False)
    flags = ["--model", "evaluated_models:locked", "--root", str(tmp_path)]
    with pytest.raises(
        ParcelError, match="evaluated_models:locked cannot be sent to worker processes: lock: TypeError"
    ):
        make_plan(parse(flags))


@pytest.mark.parametrize("change", ["a global", "a method"])
def test_a_worker_to_which_a_model_is_another_one_attacks_nothing(
    change: str, ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A global or a method that was set after the import is not there where the module is imported anew."""
    model = evaluated_models.Scaled().eval()
    if change == "a global":
        monkeypatch.setattr(evaluated_models, "SCALE", 0.5)
    else:
        monkeypatch.setattr(evaluated_models.Scaled, "scaled", lambda self, images: images / 2)
    settings = EvaluateSettings(images=8, checks=None, root=tmp_path)
    with pytest.raises(
        ParcelError, match=r"the model is another one in a worker process on .*, which imports its code"
    ):
        evaluate_model(model, data="digits", norm="Linf", radius=0.1, settings=settings)
    assert not list(tmp_path.glob("store/*/*"))


def test_a_worker_to_which_an_attack_is_another_one_counts_nothing(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated_models, "STEP", 0.0)
    with pytest.raises(ParcelError, match=r"the attack evaluated_models:flip_the_signs is another one in a worker"):
        evaluate_model(
            evaluated_models.build().eval(),
            data="digits",
            norm="Linf",
            radius=0.1,
            settings=EvaluateSettings(
                images=8, attacks=["evaluated_models:flip_the_signs"], checks=None, root=tmp_path
            ),
        )
    assert not list(tmp_path.glob("store/*/*"))


def test_a_classifier_that_sets_globals_when_it_is_made_is_refused_before_a_run(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluated_models, "SCALE", 1.0)  # and back, behind the factory
    flags = ["--model", "evaluated_models:half", "--root", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        run(flags)
    assert "error: the classifier is another one in a worker process" in capsys.readouterr().err
    assert not list(tmp_path.glob("trajectories/*"))


def test_a_model_of_the_main_module_is_the_same_in_a_worker(tmp_path: Path) -> None:
    """Its code, and the globals that this looks up, go along."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.0 0.0 % [0.0, 32.4] of 8\n"


MAIN = """
import sys
import torch
from torch import nn
from pipeline.evaluate import EvaluateSettings, evaluate_model

SIGN = 1.0

def step(values):
    return SIGN * values

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        weights = torch.tensor([[1.0] * 4, [-1.0] * 4])
        self.linear.load_state_dict({"weight": weights, "bias": torch.tensor([2.0, -2.0])})
        self.change = lambda images: step(images)
    def forward(self, images):
        return self.linear(self.change(images).flatten(1))

SIGN = -1.0
images = torch.tensor([[0.0] * 4, [1.0] * 4] * 4).reshape(8, 1, 2, 2)
model = Model().eval()
labels = model(images).argmax(1)

def attack(model, images, labels, threat):
    return (images + SIGN * (2 * images - 1) * threat.radius).clamp(0, 1)

settings = EvaluateSettings(
    attacks=[attack], version="custom", autoattack=["apgd-ce"], checks=None, root=sys.argv[1]
)
found = evaluate_model(
    model, data=(images, labels), norm="Linf", radius=0.6, settings=settings, say=lambda line: None
)
print(found.evaluations["model"]["__main__:attack"].robust.value, found.robust_accuracy)
"""
