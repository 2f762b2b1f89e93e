"""The presets: recipes that flags override, by name."""

from dataclasses import replace
from typing import Literal

from pipeline.recipe import AdapterConfig, ChecksConfig, EvaluationConfig, Recipe
from pipeline.search_settings import SearchConfig
from stages.data.datasets import DataConfig
from stages.evaluation.judge import JudgeConfig
from stages.nets.architectures import ClassifierConfig
from stages.rap.objective import ObjectiveConfig
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.training.adapter import TrainConfig
from stages.training.schedule import ScheduleConfig


def digits() -> Recipe:
    """scikit-learn's 8x8 digits, L-inf 0.2, a frozen CNN: minutes on two CPU cores."""
    return Recipe(
        threat=ThreatModel(norm="Linf", radius=0.2),
        classifier=ClassifierConfig(architecture="cnn", epochs=20, learning_rate=0.1, batch=64),
        adapter=AdapterConfig(size="flat"),
        attack=AttackConfig(step_size=0.1),
        schedule=ScheduleConfig(rounds=600, batch=32, overlap_rounds=0),
        train=TrainConfig(
            learning_rate=7e-3,
            weight_perturbation=0.005,
            objective=ObjectiveConfig(consistency=5.0, consistency_share=0.5),
        ),
        judge=JudgeConfig(images=None, every=100),
        search=SearchConfig(trials=0),
        checkpoint_rounds=25,
    )


def mnist() -> Recipe:
    """MNIST, L-inf 0.3, the CNN of the PyTorch examples: the paper's Table 3; 10 to 24 minutes on two cores."""
    return Recipe(
        data=DataConfig(name="mnist", train_images=40000, holdout_images=500),
        threat=ThreatModel(norm="Linf", radius=0.3),
        classifier=ClassifierConfig(architecture="cnn", epochs=1, learning_rate=0.05, batch=32),
        adapter=AdapterConfig(size="flat-half"),
        attack=AttackConfig(steps=20, step_size=0.15, batch=64),
        schedule=ScheduleConfig(rounds=8000, cohort_images=32, batch=32, clean_rounds=200),
        train=TrainConfig(learning_rate=3e-3, objective=ObjectiveConfig(consistency=3.0, consistency_ramp=0.5)),
        judge=JudgeConfig(images=200, every=2000),
        search=SearchConfig(trials=0),
        checkpoint_rounds=100,
        evaluation=EvaluationConfig(images=100, chunk=50, batch=50),
    )


def cifar10(norm: Literal["Linf", "L2"], radius: float) -> Recipe:
    """CIFAR-10, WRN-28-10 behind a U-Net of 36M parameters: the paper's Tables 1 and 2, on GPUs."""
    return Recipe(
        data=DataConfig(name="cifar10", holdout_images=1000),
        threat=ThreatModel(norm=norm, radius=radius),
        classifier=ClassifierConfig(
            architecture="wrn-28-10",
            epochs=60,
            learning_rate=0.1,
            weight_decay=5e-4,
            augment=True,
            precision="bfloat16",
        ),
        adapter=AdapterConfig(size="36M"),
        attack=AttackConfig(steps=10, step_size=radius / 2, batch=512, precision="bfloat16"),
        schedule=ScheduleConfig(rounds=1200, cohort_images=256, round_cohorts=8, batch=256, max_lag_updates=48),
        train=TrainConfig(
            learning_rate=5e-4,
            weight_decay=5e-4,
            clip_norm=1.0,
            ema=0.999,
            precision="bfloat16",
            objective=ObjectiveConfig(reconstruction=0.0, kl=3.0),
        ),
        judge=JudgeConfig(images=512, every=20),
        search=SearchConfig(trials=8, rounds=120),
        evaluation=EvaluationConfig(images=512, chunk=128, batch=128),
        checks=ChecksConfig(others=0),  # another WRN-28-10 costs as much as the first
        augment=True,
    )


def cifar10_small() -> Recipe:
    """CIFAR-10, L-inf 8/255, ResNet-18 behind a U-Net of as many parameters and operations: for one GPU.

    The classifier is trained as fast ones are (airbench, Jordan 2024: large batches, one cycle, smoothed labels). A
    little reconstruction beside cross-entropy: KL on clean images would double the cost of an update.
    """
    return Recipe(
        data=DataConfig(name="cifar10", holdout_images=1000),
        threat=ThreatModel(norm="Linf", radius=8 / 255),
        classifier=ClassifierConfig(
            architecture="resnet18",
            epochs=30,
            learning_rate=0.4,
            batch=512,
            label_smoothing=0.1,
            augment=True,
            precision="bfloat16",
        ),
        adapter=AdapterConfig(size="11M"),
        attack=AttackConfig(step_size=4 / 255, batch=1024, precision="bfloat16"),
        schedule=ScheduleConfig(rounds=600, cohort_images=1024, round_cohorts=4, batch=256),
        train=TrainConfig(
            learning_rate=1e-3,
            warmup_updates=200,
            weight_decay=5e-4,
            clip_norm=1.0,
            ema=0.999,
            precision="bfloat16",
            objective=ObjectiveConfig(reconstruction=0.1),
        ),
        judge=JudgeConfig(images=512, every=50),
        search=SearchConfig(trials=0),
        evaluation=EvaluationConfig(images=512, chunk=256, batch=256),
        augment=True,
        checkpoint_rounds=25,
    )


def own() -> Recipe:
    """One's own images (--data), and with --model one's own classifier.

    The settings of ``mnist``, but for a step that is half of whatever radius is asked for (2.5 radius / T), and in a
    third of its updates, two a round, without the consistency term, whose weight is a matter of the data.
    """
    recipe = mnist()
    return replace(
        recipe,
        data=DataConfig(),
        threat=ThreatModel(norm="Linf", radius=8 / 255),
        classifier=replace(recipe.classifier, epochs=20),
        attack=AttackConfig(steps=5, batch=64),
        schedule=ScheduleConfig(rounds=1700, cohort_images=64, batch=32),
        train=replace(recipe.train, objective=ObjectiveConfig()),
        judge=replace(recipe.judge, every=200),
    )


PRESETS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10-small": cifar10_small,
    "cifar10-linf": lambda: cifar10("Linf", 8 / 255),
    "cifar10-l2": lambda: cifar10("L2", 0.5),
    "own": own,
}


def as_in_paper(recipe: Recipe) -> Recipe:
    """A recipe with the paper's own choices where the presets have better ones (tests/benchmarks/README.md).

    Attack to the adapter's own t, T = 20, a fresh trajectory of all T steps for every visit, t ~ U{1..T} with the
    adapter told t, and both terms of Alg. 3 with weight 1.
    """
    return replace(
        recipe,
        attack=replace(recipe.attack, steps=20, step_size=None, noise_scale=None, conditioning="state"),
        schedule=replace(
            recipe.schedule, visit_steps=20, life=1, overlap_rounds=0, last_states=0.0, clean_states=0.0, clean_rounds=0
        ),
        train=replace(
            recipe.train, conditioning="state", objective=ObjectiveConfig(), ema=0.0, weight_perturbation=0.0
        ),
        search=replace(recipe.search, trials=0),
    )
