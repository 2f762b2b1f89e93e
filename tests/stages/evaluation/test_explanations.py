import pytest

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.checks.explanations import (
    Ablations,
    SelectionFacts,
    VanillaTraining,
    check_ablations,
    check_selection,
    check_vanilla_training,
)


def of(correct: int) -> Accuracy:
    return Accuracy(correct=correct, images=200)


@pytest.mark.parametrize(("denoising", "verdict"), [(10, "pass"), (90, "warn"), (100, "fail"), (120, "fail")])
def test_an_ablation_that_costs_nothing_fails(denoising, verdict):
    check = check_ablations(
        Ablations(attack="PGD-20", budget=0.1, defence=of(100), undefended=of(0), denoising_only=of(denoising))
    )
    assert check.verdict == verdict
    assert "10 % of the budget" in check.figure
    assert "Not trained: untrained adapter, adversarial training" in check.says


def test_where_nothing_withstands_anything_there_is_nothing_to_explain():
    nothing = {"attack": "PGD-20", "budget": 0.1, "defence": of(0)}
    checks = [
        check_ablations(Ablations(**nothing, undefended=of(0), denoising_only=of(0))),
        check_vanilla_training(VanillaTraining(**nothing, vanilla=of(0))),
    ]
    assert [check.verdict for check in checks] == ["not applicable", "not applicable"]
    assert all("raise checks.budget" in check.says for check in checks)
    assert check_vanilla_training(VanillaTraining(**nothing, vanilla=of(1))).verdict == "fail"


def test_adversarial_training_may_be_better():
    ablations = Ablations(attack="PGD-20", budget=1.0, defence=of(100), undefended=of(0), adversarial_training=of(150))
    assert check_ablations(ablations).verdict == "pass"
    assert "full budget" in check_ablations(ablations).figure


@pytest.mark.parametrize(("vanilla", "verdict"), [(60, "pass"), (90, "warn"), (100, "fail")])
def test_training_on_vanilla_adversaries_must_be_worse(vanilla, verdict):
    facts = VanillaTraining(attack="PGD-20", budget=0.1, defence=of(100), vanilla=of(vanilla))
    assert check_vanilla_training(facts).verdict == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "pass"),
        ({"external_weights": True}, "warn"),
        ({"shared_images": 1}, "fail"),
        ({"selection": "train"}, "fail"),
        ({"selection": "test", "external_weights": True}, "fail"),
    ],
)
def test_a_selection_on_images_that_were_trained_on_or_are_reported_fails(changed, verdict):
    facts = {"selection": "hold-out", "trained": ("train", "classifier"), "test": "test", "shared_images": 0}
    assert check_selection(SelectionFacts(**facts | {"images": 160} | changed)).verdict == verdict


@pytest.mark.parametrize("check", [check_ablations, check_vanilla_training, check_selection])
def test_what_was_not_measured_is_not_judged(check):
    assert check(None).verdict == "not applicable"


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5])
def test_a_budget_is_a_share(budget):
    with pytest.raises(ValueError, match="it is a share of the real one"):
        Ablations(attack="PGD-20", budget=budget, defence=of(1))
    with pytest.raises(ValueError, match="it is a share of the real one"):
        VanillaTraining(attack="PGD-20", budget=budget, defence=of(1), vanilla=of(1))
