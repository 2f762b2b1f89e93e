"""The work of one evaluation chunk: what it leaves, also where an attack fails in the middle of it."""

import io
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from pipeline.measure.chunks import Chunk, commit_chunk, load_verdict
from pipeline.measure.outcome import merge
from stages.data.datasets import DataConfig, load_data
from stages.data.splits import Split
from stages.evaluation import measurement
from stages.evaluation.autoattack import AutoAttackConfig, Version
from stages.evaluation.lineup import square_runs
from stages.evaluation.measurement import CHANGED, KINDS, function_attacks
from stages.evaluation.pgd import PGDConfig
from stages.evaluation.verdict import AttackError, ask
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.1)


@pytest.fixture(scope="module")
def test() -> Split:
    return load_data(DataConfig(name="digits")).test.take(np.arange(6))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attacks of the official code that return the images as they are, and the names of those that ran."""
    ran: list[str] = []
    assert square_runs(THREAT.norm, (1, 8, 8))  # which asks the code that is replaced here

    def standing(name: str):
        return lambda self, images, labels: ran.append(name) or images.clone()

    monkeypatch.setattr(APGDAttack, "perturb", standing("apgd-ce"))
    monkeypatch.setattr(APGDAttack_targeted, "perturb", standing("apgd-t"))
    monkeypatch.setattr(FABAttack_PT, "perturb", standing("fab-t"))
    monkeypatch.setattr(SquareAttack, "perturb", standing("square"))
    return ran


def chunk_of(root: Path, model: nn.Module, test: Split, config: AutoAttackConfig) -> Chunk:
    """The test images, labelled by the model itself, so that all of them are attacked."""
    with torch.no_grad():
        labels = model(torch.from_numpy(test.images).float() / 255).argmax(1).numpy()
    return Chunk(root=str(root), model="a model", threat=THREAT, attack=config, split=replace(test, labels=labels))


def commit(chunk: Chunk, model: nn.Module):
    return commit_chunk(chunk, model, device="cpu", functions={}, tell=lambda line: None)


def test_what_was_attacked_before_an_attack_failed_is_there_when_it_is_called_again(
    model: nn.Module, test: Split, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunk_of(tmp_path, model, test, AutoAttackConfig())
    with monkeypatch.context() as failing:
        failing.setattr(SquareAttack, "perturb", lambda *given: 1 / 0)
        with pytest.raises(AttackError, match="square failed on images of shape"):
            commit(chunk, model)
    assert quick == ["apgd-ce", "apgd-t", "fab-t"]
    assert len(list((tmp_path / "parts").iterdir())) == 3
    receipt = commit(chunk, model)
    assert quick == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(receipt.metrics["attack_seconds"]) == quick
    assert receipt.metrics["attack"]["name"] == "AutoAttack standard"
    assert not list(tmp_path.glob("parts/*"))
    assert commit(chunk, model).metrics == receipt.metrics
    assert len(quick) == 4


def test_the_version_custom_goes_on_with_what_the_standard_one_began(
    model: nn.Module, test: Split, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(FABAttack_PT, "perturb", lambda *given: 1 / 0)
        with pytest.raises(AttackError):
            commit(chunk_of(tmp_path, model, test, AutoAttackConfig()), model)
    custom = AutoAttackConfig(version="custom", attacks=("apgd-ce", "apgd-t", "square"))
    receipt = commit(chunk_of(tmp_path, model, test, custom), model)
    assert quick == ["apgd-ce", "apgd-t", "square"]
    assert receipt.metrics["attack"]["name"] == "APGD-CE, APGD-T, Square"
    for other in (replace(custom, seed=1), replace(custom, batch=2), AutoAttackConfig(version="plus")):
        quick.clear()
        commit(chunk_of(tmp_path, model, test, other), model)
        assert quick[0] == "apgd-ce"


def test_a_torn_part_is_attacked_again(
    model: nn.Module, test: Split, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunk_of(tmp_path, model, test, AutoAttackConfig())
    with monkeypatch.context() as failing:
        failing.setattr(FABAttack_PT, "perturb", lambda *given: 1 / 0)
        with pytest.raises(AttackError):
            commit(chunk, model)
    for part in (tmp_path / "parts").iterdir():
        part.write_bytes(part.read_bytes()[:-100])
    commit(chunk, model)
    assert quick == ["apgd-ce", "apgd-t", "apgd-ce", "apgd-t", "fab-t", "square"]


class Flipping(nn.Module):
    """A model that answers the opposite from its 31st call on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.model(images) * (1 if self.calls <= 30 else -1)


@pytest.mark.parametrize(
    "attack", [AutoAttackConfig(version="custom", attacks=("apgd-ce",)), PGDConfig(steps=40)], ids=["AutoAttack", "PGD"]
)
def test_a_model_whose_answers_change_while_it_is_attacked_has_no_verdict(
    attack: AutoAttackConfig | PGDConfig, model: nn.Module, test: Split, tmp_path: Path
) -> None:
    small = ThreatModel(
        norm="Linf", radius=1e-3
    )  # in which the model itself is robust, so that it is attacked to the end
    chunk = replace(chunk_of(tmp_path, model, test, AutoAttackConfig()), attack=attack, threat=small)
    with pytest.raises(AttackError, match=rf"{KINDS[type(attack)]}, \d of 6 images: {CHANGED[:60]}"):
        commit(chunk, Flipping(model).eval())
    assert CHANGED not in commit(chunk, model).metrics["flags"]


def test_an_answer_that_rounding_may_have_changed_is_flagged(
    model: nn.Module, test: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*given: Any, **settings: Any) -> np.ndarray:
        wrong = ask(*given, **settings)
        return wrong ^ (np.arange(len(wrong)) == 0)

    monkeypatch.setattr(measurement, "ask", asked)
    receipt = commit(replace(chunk_of(tmp_path, model, test, AutoAttackConfig()), attack=PGDConfig(steps=1)), model)
    assert CHANGED in receipt.metrics["flags"]
    assert CHANGED in merge([receipt], THREAT, attacked_now=1).flags


@pytest.mark.parametrize(("version", "refused"), [("standard", True), ("rand", False)])
def test_a_model_that_is_attacked_as_randomised_may_answer_otherwise(
    version: Version, refused: bool, model: nn.Module, test: Split, tmp_path: Path, quick: list[str]
) -> None:
    flipping = Flipping(model).eval()
    flipping.calls = 27  # so that it changes once it has been asked for the images as they are
    with pytest.raises(AttackError, match="6 images: the model answers") if refused else nullcontext():
        commit(chunk_of(tmp_path, model, test, AutoAttackConfig(version=version)), flipping)
    assert flipping.calls > 30


def leave(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    return images * torch.nan


def test_a_receipt_counts_what_was_refused_and_its_verdict_comes_back(
    model: nn.Module, test: Split, tmp_path: Path
) -> None:
    ((config, attack),) = function_attacks([leave])
    chunk = replace(chunk_of(tmp_path, model, test, AutoAttackConfig()), attack=config)
    receipt = commit_chunk(chunk, model, device="cpu", functions={config.path: attack}, tell=lambda line: None)
    assert receipt.metrics["refused"] == {config.path: 6}
    assert receipt.metrics["robust"] == 6
    verdict = load_verdict(io.BytesIO(receipt.read("verdict.npz")))
    assert verdict.broken_by == (None,) * 6
    assert verdict.refused == {config.path: 6}
    merged = merge([receipt, receipt], THREAT, attacked_now=0)
    assert merged.unverified == 12
    assert merged.flags == (
        f"{config.path}: 12 images came back as NaN, outside of the ball or of [0, 1], or classified correctly when "
        "the model was asked again; they count as not broken by it",
    )
