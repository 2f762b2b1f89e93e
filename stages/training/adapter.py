"""What is trained to be robust: the adapter (the paper), the classifier (adversarial training), or both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.numerics import Arithmetic
from stages.randomness import key_seed
from stages.rap.objective import ObjectiveConfig, objective
from stages.rap.robust import RobustClassifier
from stages.settings import check_settings
from stages.training.batches import TrainingBatch
from stages.training.distributed import average, workers
from stages.training.diverged import DivergedError
from stages.training.perturbation import moved_along_gradients


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Arithmetic):
    """How the adapter learns from stored trajectories (Alg. 3)."""

    what: Literal["adapter", "classifier", "both"] = "adapter"
    """What is trained: the adapter in front of the frozen classifier, the classifier alone (adversarial training,
    the usual baseline), or both."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    conditioning: Literal["deployed", "state"] = "deployed"
    """The t that the adapter is given in training: the deployed T, or the state's own as in the paper."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9."""
    learning_rate: float = 2e-3
    """Peak learning rate; it rises over the warm-up and falls as half a cosine to 2 % of the peak."""
    warmup_updates: int = 50
    """Updates of the warm-up."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_norm: float = 0.0
    """Bound on the norm of an update's gradient; 0: none."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, which then is judged and shipped; 0: none."""
    weight_perturbation: float = 0.0
    """Adversarial weight perturbation (AWP, Wu et al. 2020): the loss is that of weights which were moved against it
    first, each matrix or kernel by this share of its norm; 0: none."""
    perturbed_share: float = 0.5
    """Share of the updates, the last ones, that are made so; each of them costs one more pass of the networks."""
    workers: int = 1
    """Train workers, each with a slice of every batch; as with threads, part of the result."""
    from_cache: str | None = None
    """Name of another run below the same root: start from an adapter trained on its committed shards."""
    cache_passes: int = 2
    """Passes over those shards."""

    def __post_init__(self) -> None:
        check_settings(self, "train")
        self.check_threads("train")
        if not self.learning_rate > 0:
            raise ValueError(f"train.learning_rate is {self.learning_rate:g}; it must be greater than 0")
        for name in ("ema", "weight_perturbation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name):g}; it must lie in [0, 1)")
        if not 0 < self.perturbed_share <= 1:
            raise ValueError(
                f"train.perturbed_share is {self.perturbed_share:g}; it is a share in (0, 1] (for no such updates, set "
                "train.weight_perturbation to 0)"
            )
        for name, least in (
            ("warmup_updates", 0),
            ("workers", 1),
            ("cache_passes", 1),
            ("weight_decay", 0),
            ("clip_norm", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least {least}")


class Learner:
    """The trained weights with their optimizer and moving average; ``updates`` counts what was done."""

    def __init__(self, robust: RobustClassifier, config: TrainConfig, *, total_updates: int, seed: int) -> None:
        self.robust, self.config, self.seed = robust, config, seed
        self.total_updates, self.updates = total_updates, 0
        robust.eval().requires_grad_(False)
        self.parts: dict[str, nn.Module] = {}
        if config.what in ("adapter", "both") and robust.adapter is not None:
            self.parts["adapter"] = robust.adapter
        if config.what in ("classifier", "both"):
            self.parts["classifier"] = robust.classifier
        self.parameters = [
            parameter for part in self.parts.values() for parameter in part.requires_grad_(True).parameters()
        ]
        self._weights = {
            f"{part}.{name}": value for part, net in self.parts.items() for name, value in net.state_dict().items()
        }
        self.optimizer = _optimizer(config, self.parameters)
        self._unread: list[dict[str, Tensor]] = []
        self._measured: list[dict[str, float]] = []
        self.average = self._copy() if config.ema else None

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, by name, as they are at this moment (not copied).

        Raises DivergedError as `measured` does, so that nothing of such a training is judged or published.
        """
        self._read()
        return dict(self._weights)

    def shipped(self) -> dict[str, Tensor]:
        """The weights that are judged, evaluated and shipped: the moving average where there is one."""
        weights = self.weights()
        return weights if self.average is None else self.average

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over weights, as `weights` returns them, and start the moving average from them."""
        for part, net in self.parts.items():
            mine = {
                name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")
            }
            net.load_state_dict(mine)
        self.average = self._copy() if self.config.ema else None

    def update(self, batch: TrainingBatch) -> None:
        """One update on a batch. Nothing in it waits for the device: what it measures lies there until it is asked for.

        Where the loss or the gradient is NaN or infinite, the weights stay as they are, and `measured` raises.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        if self.perturbs():
            self._against(batch)
            average(self.parameters, {})
            with moved_along_gradients(self.parameters, self.config.weight_perturbation):
                figures = self._gradients(batch)
        else:
            figures = self._gradients(batch)
        self._step(figures)

    def _gradients(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Leave the gradients of the loss with the weights, means over the workers; return the loss and its terms."""
        device = batch.states.device
        with self._training_mode(device), self.config.autocast(device):
            deployed = torch.full_like(batch.t, self.robust.steps)
            states, t = batch.states, batch.t if self.config.conditioning == "state" else deployed
            if self.config.objective.needs_starts and batch.starts is not None:  # one pass of both is cheaper than two
                some = max(1, round(self.config.objective.consistency_share * len(states)))  # their order is random
                states, t = torch.cat([states, batch.starts[:some]]), torch.cat([t, deployed[:some]])
            restored = self.robust.restore(states, t)
            logits = self.robust.classify(restored).float()
            clean_logits = self._deployed_logits(batch.clean) if self.config.objective.kl else None
        count = len(batch.states)
        loss, terms = objective(
            self.objective(),
            restored=restored[:count].float(),
            clean=batch.clean,
            logits=logits[:count],
            labels=batch.labels,
            clean_logits=clean_logits,
            start_logits=logits[count:] if len(logits) > count else None,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return average(self.parameters, {"loss": loss.detach(), **terms})

    def _against(self, batch: TrainingBatch) -> None:
        """Leave the gradients of the deployed model's cross-entropy with the weights."""
        with self.config.autocast(batch.states.device):
            logits = self._deployed_logits(batch.states.detach())  # which may ask for gradients of their own
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, batch.labels).backward()

    def _step(self, figures: dict[str, Tensor]) -> None:
        """Move the weights along their gradients, unless something in them or in the loss is no number."""
        norm = nn.utils.get_total_norm([weight.grad for weight in self.parameters if weight.grad is not None])
        if self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        # What a loss scaler tells a fused optimizer after an overflow: weights and moments stay where it is 1.
        setattr(self.optimizer, "found_inf", 1 - (norm + figures["loss"]).isfinite().float())  # noqa: B010 - PyTorch's
        self.optimizer.step()
        self.updates += 1
        self._follow()
        self._unread.append({**figures, "gradient_norm": norm})

    def measured(self) -> list[dict[str, float]]:
        """What each update since the last call measured, read from the device all at once.

        The loss, its terms, and the gradient's norm before clipping.

        Raises DivergedError where the loss or the gradient of one of them was NaN or infinite.
        """
        self._read()
        measured, self._measured = self._measured, []
        return measured

    def _read(self) -> None:
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        rows = torch.stack([figure for figures in unread for figure in figures.values()]).reshape(len(unread), -1)
        for behind, row in enumerate(rows.tolist(), 1 - len(unread)):
            figures = dict(zip(unread[0], row, strict=True))
            if not np.isfinite(figures["loss"] + figures["gradient_norm"]):
                raise DivergedError(
                    f"in update {self.updates + behind} the loss was {figures['loss']:g} and the norm of its gradient "
                    f"{figures['gradient_norm']:g}, and the weights were left as they were: lower train.learning_rate "
                    f"(now {self.config.learning_rate:g}) or set train.clip_norm"
                )
            self._measured.append(figures)

    def learning_rate(self) -> float:
        """The learning rate of the next update: linear warm-up, then half a cosine down to 2 % of the peak."""
        warm = min(1.0, (self.updates + 1) / max(1, self.config.warmup_updates))
        done = min(1.0, self.updates / max(1, self.total_updates))
        return self.config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done))))

    def objective(self) -> ObjectiveConfig:
        """The objective of the next update."""
        return self.config.objective.at((self.updates + 1) / max(1, self.total_updates))

    def perturbs(self) -> bool:
        """Whether the weights are moved against the next update."""
        return self.config.weight_perturbation > 0 and (
            self.updates >= (1 - self.config.perturbed_share) * self.total_updates
        )

    def state(self) -> dict[str, object]:
        """All that the next update depends on."""
        return {
            "updates": self.updates,
            "weights": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def load_state(self, state: dict) -> None:
        """Go on from a `state`."""
        self.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.average = state["updates"], state["average"]

    def _deployed_logits(self, states: Tensor) -> Tensor:
        """As the robust classifier answers."""
        deployed = torch.full((len(states),), self.robust.steps, device=states.device)
        return self.robust.classify(self.robust.restore(states, deployed)).float()

    @contextmanager
    def _training_mode(self, device: torch.device) -> Iterator[None]:
        """Dropout and batch norm of a classifier that is trained, with the update's (and worker's) own random numbers.

        A frozen classifier stays in eval mode, and the adapter has neither.
        """
        if "classifier" not in self.parts:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(key_seed(self.seed, "dropout", self.updates, workers()[0]))
            self.robust.classifier.train()
            try:
                yield
            finally:
                self.robust.classifier.eval()

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._weights.items()}

    def _follow(self) -> None:
        if self.average is None:
            return
        decay = min(self.config.ema, self.updates / (self.updates + 10))  # the first weights are soon forgotten
        floating = [name for name, value in self._weights.items() if value.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.average[name] for name in floating], [self._weights[name] for name in floating], 1 - decay
        )
        for name in self._weights.keys() - set(floating):
            self.average[name].copy_(self._weights[name])


def _optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
