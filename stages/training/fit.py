"""Training in a notebook: an adapter in front of a classifier, without Ray, store or schedule.

As in the paper (Alg. 3, App. D) every batch is attacked on the spot, through the weights of that moment, and one
state of each trajectory is trained on. `python -m pipeline.run` gets further in the same time, since it uses an
attack more than once.

>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> from stages.data.datasets import DataConfig, load_data
>>> from stages.nets.classifiers import ClassifierConfig
>>> from stages.nets.cnn import CNN
>>> from stages.nets.unet import UNET_SIZES, UNet
>>> from stages.rap.threat import ThreatModel
>>> from stages.training.classifier import train_classifier
>>> digits = load_data(DataConfig(name="digits", train_images=256))
>>> classifier = CNN(1, digits.size, 10, digits.mean, digits.std)  # or any network of yours that is trained
>>> classifier.load_state_dict(
...     train_classifier(ClassifierConfig(epochs=2), digits.train, seed=0, build=lambda: classifier)
... )
classifier: epoch 1 of 2, ...
<All keys matched successfully>
>>> images, labels = torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)
>>> loader = DataLoader(TensorDataset(images, labels), batch_size=128, shuffle=True)
>>> adapter = UNet(UNET_SIZES["tiny"], channels=1)
>>> robust = fit(adapter, classifier, loader, threat=ThreatModel(norm="Linf", radius=0.2), epochs=1)
epoch 1 of 1: loss ...
>>> logits = robust(images[:8].float() / 255)
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from stages import randomness
from stages.rap import attack as attack_process
from stages.rap.attack import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner, TrainConfig
from stages.training.batches import TrainingBatch
from stages.training.setup import load_trained

ATTACK, TRAIN = AttackConfig(), TrainConfig()


def fit(
    adapter: nn.Module | None,
    classifier: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    threat: ThreatModel,
    attack: AttackConfig = ATTACK,
    train: TrainConfig = TRAIN,
    epochs: int,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> RobustClassifier:
    """The robust classifier, in eval mode on the device, after ``epochs`` passes over the loader.

    ``loader`` gives (images, labels): uint8 images [batch, channel, height, width], or floats in [0, 1] that are
    whole multiples of 1/255, which is what ToTensor makes of a picture. ``adapter(images, t)`` and ``classifier``
    are copied and stay as they are; to go on, pass the result's. Without an adapter, and with
    ``TrainConfig(what="classifier")``, this is adversarial training. ``progress`` gets a line an epoch.

    The loader's batches are attacked whole, and the number of threads is the caller's, whatever
    ``attack.batch``, ``threads`` and ``workers`` say. The starts and states depend on the seed alone.

    Raises ValueError for images off that grid, a loader that is empty or used up by its first pass, and settings
    that do not fit together; DivergedError when the loss becomes NaN or infinite.
    """
    process = attack.process(threat)
    robust = RobustClassifier(copy.deepcopy(adapter), copy.deepcopy(classifier), steps=process.steps, threat=threat).to(
        device
    )
    if adapter is None and train.what != "classifier":
        raise ValueError(f"there is no adapter for train.what = {train.what!r}: pass one, or train the classifier")
    learner = Learner(robust, train, total_updates=epochs * _length(loader), seed=seed)
    for epoch in range(epochs):
        for images, labels in loader:
            batch = attacked(
                robust, _pixels(images).to(device), labels.to(device).long(), process, key=(seed, learner.updates)
            )
            learner.update(batch)
        progress(f"epoch {epoch + 1} of {epochs}: {_summary(learner.measured())}")
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
    start = attack_process.draw_start(
        process, randomness.key_seed("start", *key), np.arange(len(images)), tuple(images.shape[1:])
    )
    trajectory = attack_process.attack(
        robust, images, labels, process, start.to(images.device), seed=randomness.key_seed("conditioning", *key)
    )
    drawn = randomness.integers(1, process.steps + 1, len(images), "state", *key)
    t = torch.from_numpy(drawn).to(images.device)
    levels = trajectory.levels[t, torch.arange(len(images), device=images.device)]
    return TrainingBatch(
        states=process.lattice.to_float(levels),
        clean=process.lattice.to_float(process.lattice.from_bytes(images)),
        labels=labels,
        t=t,
    )


def _pixels(images: Tensor) -> UInt8[Tensor, "batch channel height width"]:
    if images.dtype == torch.uint8:
        return images
    levels = 255 * images.double()
    whole = levels.round()
    # 1e-3 of a level is a hundred times the rounding of float32, and far below that of float16
    if not bool(((levels - whole).abs() < 1e-3).logical_and(whole == whole.clamp(0, 255)).all()):
        raise ValueError(
            f"the loader gave {images.dtype} images from {images.min():g} to {images.max():g} that are not all whole "
            "multiples of 1/255 in [0, 1], on which attacks start: leave normalisation to the classifier, and round "
            "after resizing, (255 * images).round() / 255"
        )
    return whole.to(torch.uint8)


def _length(loader: Iterable[Sequence[Tensor]]) -> int:
    """The batches of an epoch, by counting where the loader does not tell."""
    if isinstance(loader, Iterator):
        raise ValueError(  # noqa: TRY004 - a mistake of the caller's like the next
            "the loader is an iterator, used up after one epoch: pass a DataLoader or a list of batches"
        )
    length = length_hint(loader) or sum(1 for _ in loader)
    if not length:
        raise ValueError("the loader has no batches: pass one with at least one image")
    return length


def _summary(measured: list[dict[str, float]]) -> str:
    loss, cross_entropy = (np.mean([update[name] for update in measured]) for name in ("loss", "cross_entropy"))
    return f"loss {loss:.3f}, cross-entropy {cross_entropy:.3f}"
