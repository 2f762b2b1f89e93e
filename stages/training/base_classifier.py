"""Plain training of the base classifier on clean images: what the project then makes robust."""

import io
import math
import time
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from stages.data.augmentation import augment, draw_augmentation
from stages.data.splits import Split
from stages.nets.architectures import ClassifierConfig
from stages.nets.faster import compile_networks, faster_classifier
from stages.numerics import within_memory
from stages.randomness import key_seed, permutation
from stages.storage import Storage
from stages.training.diverged import DivergedError

CHECKPOINT = "checkpoint.pt"


def train_classifier(
    config: ClassifierConfig,
    split: Split,
    *,
    seed: int,
    build: Callable[[], nn.Module],
    device: str = "cpu",
    checkpoint: Storage | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """The float32 state dict, on the CPU, of the classifier that ``build`` makes, trained on the split.

    SGD with Nesterov momentum over one cycle of the learning rate. On one CPU type the bits depend on config,
    split, build and seed alone, and the caller's random numbers and settings are left as they were. ``progress``
    gets a line an epoch. Where ``checkpoint`` names a place, the state is kept there after every epoch, and a training
    that finds it goes on from there to the same bits; it belongs to this training alone, and whoever asked for it
    removes it.

    Raises DivergedError when the loss becomes NaN or infinite, and DeviceMemoryError where a batch has no room.
    """
    devices = [device] if device.startswith("cuda") else []
    with config.applied(), torch.random.fork_rng(devices):
        torch.manual_seed(key_seed(seed, "classifier"))
        classifier = build().to(device).float()
        images = torch.tensor(split.images, device=device)
        classifier = faster_classifier(classifier.eval(), images[:8].float() / 255, frozen=False)
        if config.compiled:
            compile_networks([classifier], device)
        with within_memory("classifier.batch", config.batch):
            _fit(classifier, config, split, images=images, seed=seed, checkpoint=checkpoint, progress=progress)
            settle_batch_norm(classifier, images, batch=config.batch)
    return {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}


@torch.no_grad()
def settle_batch_norm(
    classifier: nn.Module, images: UInt8[Tensor, "image channel height width"], *, batch: int
) -> None:
    """Set every BatchNorm's running statistics to the mean over these images; leaves the classifier in eval mode.

    The running averages of training remember the last tens of updates only: of a small data set that is most
    of the training, and eval mode would answer with statistics of weights long gone.
    """
    classifier.eval()
    norms = [
        module
        for module in classifier.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the plain mean over batches
        norm.train()
    for part in images.tensor_split(max(1, len(images) // batch)) if norms else ():
        classifier(part.float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    classifier.eval()


def _fit(
    classifier: nn.Module,
    config: ClassifierConfig,
    split: Split,
    *,
    images: UInt8[Tensor, "image channel height width"],
    seed: int,
    checkpoint: Storage | None,
    progress: Callable[[str], None],
) -> None:
    """Train in place; ``images`` are the split's, on the classifier's device."""
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=config.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        fused=True,
    )
    first = _resume(checkpoint, classifier, optimizer, images.device) if checkpoint else 0
    updates = config.epochs * _updates_an_epoch(config, split)
    update, began = first * _updates_an_epoch(config, split), time.perf_counter()
    classifier.train()
    for epoch in range(first, config.epochs):
        figures = []
        for batch, labels in _batches(config, split, images, seed=seed, epoch=epoch):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _one_cycle((update + 0.5) / updates)
            figures.append(_update(config, classifier, optimizer, batch.float() / 255, labels))
            update += 1
        loss, accuracy = torch.stack(figures).mean(0).tolist()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the classifier's loss is {loss} in epoch {epoch + 1}: lower classifier.learning_rate "
                f"(now {config.learning_rate})"
            )
        progress(
            f"classifier: epoch {epoch + 1} of {config.epochs}, loss {loss:.4f}, "
            f"accuracy while training {accuracy:.1%}, {time.perf_counter() - began:.0f} s"
        )
        if checkpoint:
            _save(checkpoint, classifier, optimizer, images.device, epochs=epoch + 1)


def _save(
    place: Storage, classifier: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, epochs: int
) -> None:
    """Replace the checkpoint with all that the next epoch depends on."""
    state = {
        "epochs": epochs,
        "classifier": classifier.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),  # of dropout
        "random on the GPU": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    content = io.BytesIO()
    torch.save(state, content)
    place.put(CHECKPOINT, content.getvalue())


def _resume(place: Storage, classifier: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Bring a training to its checkpoint; returns the epochs that are done, 0 without one."""
    content = place.find(CHECKPOINT)
    if content is None:
        return 0
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    classifier.load_state_dict(state["classifier"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random on the GPU"], device)
    return int(state["epochs"])


def _update(
    config: ClassifierConfig,
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
) -> Float[Tensor, "2"]:
    """One step of the optimizer; the loss and the share of right answers before it, not waited for."""
    with config.autocast(images.device):
        logits = classifier(images)
    loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).float().mean()])


def _updates_an_epoch(config: ClassifierConfig, split: Split) -> int:
    return max(1, len(split) // config.batch)


def _batches(
    config: ClassifierConfig,
    split: Split,
    images: UInt8[Tensor, "image channel height width"],
    *,
    seed: int,
    epoch: int,
) -> Iterator[tuple[UInt8[Tensor, "batch channel height width"], Int64[Tensor, " batch"]]]:
    """Images and labels of each update, on the device of ``images``, to which an epoch's plan goes in one piece.

    A remainder waits for the next epoch's order: BatchNorm's statistics of three images would be noise.
    """
    order = permutation(len(split), seed, "classifier", "order", epoch)[
        : _updates_an_epoch(config, split) * config.batch
    ]
    positions, labels = (torch.from_numpy(values).to(images.device) for values in (order, split.labels[order]))
    drawn = torch.from_numpy(draw_augmentation(split.rows[order], seed, "classifier", epoch)).to(images.device)
    for part in torch.arange(len(order), device=images.device).split(config.batch):
        batch = images[positions[part]]
        yield augment(batch, drawn[part]) if config.augment else batch, labels[part]


def _one_cycle(progress: float) -> float:
    """The learning rate as a share of its peak: up over the first fifth of the updates, down to 0 at the end."""
    return min(progress / 0.2, (1 - progress) / 0.8)
