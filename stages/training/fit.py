"""Training in a notebook: an adapter in front of a classifier, without Ray, store or schedule.

As in the paper (Alg. 3, App. D) every batch is attacked on the spot, through the weights of that moment, and one
state of each trajectory is trained on. `python -m pipeline.run` gets further in the same time, since it uses an
attack more than once.

>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> from stages.data.datasets import DataConfig, load_data
>>> from stages.nets.architectures import ClassifierConfig
>>> from stages.nets.cnn import CNN
>>> from stages.nets.unet import UNET_SIZES, UNet
>>> from stages.rap.threat import ThreatModel
>>> from stages.training.base_classifier import train_classifier
>>> digits = load_data(DataConfig(name="digits", train_images=256))
>>> classifier = CNN(1, digits.size, 10, digits.mean, digits.std)  # or any network of yours that is trained
>>> classifier.load_state_dict(
...     train_classifier(ClassifierConfig(epochs=20), digits.train, seed=0, build=lambda: classifier)
... )
classifier: epoch 1 of 20, ...
<All keys matched successfully>
>>> images, labels = torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)
>>> loader = DataLoader(TensorDataset(images, labels), batch_size=128, shuffle=True)
>>> adapter = UNet(UNET_SIZES["tiny"], channels=1)
>>> threat, settings = ThreatModel(norm="Linf", radius=0.2), FitSettings(epochs=1)
>>> robust = fit(adapter, classifier, loader, threat=threat, settings=settings)
epoch 1 of 1: loss ...
>>> logits = robust(images[:8].float() / 255)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from stages import randomness
from stages.data.images import check_labels
from stages.evaluation.accuracy import device_of, to_float
from stages.evaluation.contract import check_model, check_module, check_values, classes_of
from stages.nets.copies import copied
from stages.rap import attack as attack_process
from stages.rap import norms
from stages.rap.losses import LossName, check_loss
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel, check_radius
from stages.settings import check_listener, checked
from stages.training import loaders
from stages.training.adapter import Learner, TrainConfig
from stages.training.adapter_contract import check_adapter
from stages.training.batches import TrainingBatch
from stages.training.setup import load_trained

SAMPLE = 200  # images of the first batch by which the classifier is checked


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How `fit` trains, and where."""

    epochs: int
    """Passes over the loader."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    """Of each batch. Whole batches are attacked, whatever its ``batch`` and ``workers`` say."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """With what="classifier" the classifier is trained: adversarial training."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N for one of several GPUs. The number of threads is the caller's."""
    seed: int = 0
    """The starts and the states that are trained on depend on it alone."""

    def __post_init__(self) -> None:
        for name, hint in (("epochs", int), ("attack", AttackConfig), ("train", TrainConfig), ("seed", int)):
            object.__setattr__(self, name, checked(getattr(self, name), hint, name))
        for name, least in (("epochs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.train.from_cache is not None:
            raise ValueError(
                f"train.from_cache is {self.train.from_cache!r}, but nothing is read from a store here: leave it out, "
                "or use python -m pipeline.run"
            )
        for name, config in (("attack", self.attack), ("train", self.train)):
            if config.compiled or config.deterministic or config.precision == "tf32":
                raise ValueError(
                    f"{name} asks for tf32, compiled or deterministic; here PyTorch's settings are the caller's: leave "
                    "it out, and set them yourself or use python -m pipeline.run"
                )
        _check_device(self.device)


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    adapter: nn.Module | None,
    classifier: nn.Module,
    loader: Iterable[Sequence[Tensor | np.ndarray]],
    *,
    threat: ThreatModel,
    settings: FitSettings,
    progress: Callable[[str], None] = print,
) -> RobustClassifier:
    """The robust classifier, in eval mode on the device, after the epochs.

    ``loader`` gives (images, labels), tensors or arrays: uint8 images [batch, channel, height, width], or floats in
    [0, 1] that are whole multiples of 1/255, which is what ToTensor makes of a picture. ``adapter(images, t)`` and
    ``classifier`` are copied and stay as they are; to go on, pass the result's. There may be no adapter where the
    classifier is trained. ``progress`` gets a line an epoch.

    Raises ValueError, before the first update, for a classifier that breaks the model contract
    (`stages.evaluation.contract`), an adapter that breaks its own (`stages.training.adapter_contract`), a loader that
    is empty or used up by its first pass, and settings that do not fit together; for a batch that is none or whose
    images have another shape, and for a pass of more or fewer batches than the learning rate was planned for, when it
    comes. DivergedError when the loss becomes NaN or infinite.
    """
    checked(threat, ThreatModel, "threat")
    checked(settings, FitSettings, "settings")
    attack, train, seed = settings.attack, settings.train, settings.seed
    check_listener(progress, "progress")
    if adapter is None and train.what != "classifier":
        raise ValueError(f"there is no adapter for train.what = {train.what!r}: pass one, or train the classifier")
    process, batches = attack.process(threat), loaders.length(loader)
    robust = _robust(adapter, classifier, process.steps, threat).to(settings.device).eval()
    images, labels = loaders.first(loader, batches)
    classes = _check(robust, images, labels, loss=attack.loss, is_frozen=train.what == "adapter")
    shape = images.shape[1:]
    learner = Learner(robust, train, total_updates=settings.epochs * batches, seed=seed)
    for epoch in range(settings.epochs):
        for images, labels in loaders.one_pass(loader, batches, epoch, classes=classes, shape=shape):
            batch = attacked(
                robust, images.to(settings.device), labels.to(settings.device), process, key=(seed, learner.updates)
            )
            learner.update(batch)
        progress(f"epoch {epoch + 1} of {settings.epochs}: {_summary(learner.measured())}")
    return load_trained(robust, learner.shipped()).requires_grad_(False)


def attacked(
    robust: RobustClassifier,
    images: UInt8[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
    process: AttackProcess,
    *,
    key: tuple[int, ...],
) -> TrainingBatch:
    """A state x_t of each image's trajectory against the robust classifier, t ~ U{1..T} (Alg. 3, lines 2 to 5)."""
    start = norms.draw_start(
        process, randomness.key_seed("start", *key), np.arange(len(images)), tuple(images.shape[1:])
    )
    times = process.times(process.steps, torch.zeros_like(labels), randomness.key_seed("conditioning", *key))
    trajectory = attack_process.attack(robust, images, labels, process, start.to(images.device), times)
    drawn = randomness.integers(1, process.steps + 1, len(images), "state", *key)
    t = torch.from_numpy(drawn).to(images.device)
    levels = trajectory.levels[t, torch.arange(len(images), device=images.device)]
    return TrainingBatch(
        states=process.lattice.to_float(levels),
        clean=process.lattice.to_float(process.lattice.from_bytes(images)),
        labels=labels,
        t=t,
        starts=process.lattice.to_float(trajectory.levels[0]),
    )


def _check_device(device: object) -> None:
    """Raise ValueError unless this machine has the device, and it is one that training is tested on."""
    try:
        found = torch.device(device)  # pyright: ignore[reportArgumentType] - or one of these errors
    except (TypeError, RuntimeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; allowed are cpu, cuda, and cuda:N for one of several GPUs")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(found)!r}, but PyTorch finds {torch.cuda.device_count() or 'no'} GPU on this machine: use "
            "another, or cpu"
        )


def _robust(adapter: object, classifier: object, steps: int, threat: ThreatModel) -> RobustClassifier:
    """Copies of both, as one. Raises ValueError for what is no network."""
    if adapter is not None and not isinstance(adapter, nn.Module):
        raise ValueError(
            f"the adapter is a {type(adapter).__name__}; expected a torch.nn.Module that takes (images, t)"
        )
    if not isinstance(classifier, nn.Module):
        check_module(classifier)
    for part, called in ((adapter, "the adapter"), (classifier, "the model")):
        if isinstance(part, nn.Module):
            check_values(part, called)
    parts = copied(adapter, "the adapter"), copied(classifier, "the classifier")  # pyright: ignore[reportArgumentType]
    return RobustClassifier(*parts, steps=steps, threat=threat)


def _check(
    robust: RobustClassifier,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    *,
    loss: LossName,
    is_frozen: bool,
) -> int:
    """Refuse what nothing could be learnt from, by some images; the number of classes.

    A classifier that is trained here may know nothing yet: only a frozen one is held to its accuracy.
    """
    check_module(robust.classifier)
    check_radius(robust.threat, images[0].numel())
    images, labels = images[:SAMPLE], labels[:SAMPLE]
    classes = classes_of(robust.classifier, images) or max(2, int(labels.max()) + 1)
    check_labels(labels, classes=classes)
    check_loss(loss, classes=classes)
    known = labels if is_frozen else None
    check_model(robust.classifier, images, known, classes=classes, threat=robust.threat)
    if robust.adapter is not None:
        few = to_float(images[:2]).to(device_of(robust.adapter))
        check_adapter(robust.adapter, few, torch.full((len(few),), robust.steps, device=few.device))
    return classes


def _summary(measured: list[dict[str, float]]) -> str:
    loss, cross_entropy = (np.mean([update[name] for update in measured]) for name in ("loss", "cross_entropy"))
    return f"loss {loss:.3f}, cross-entropy {cross_entropy:.3f}"
