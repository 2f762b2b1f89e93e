"""Updates of the rivals that are not the pipeline's own (`stages.training.adapter.Learner`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from stages.rap.objective import objective
from stages.rap.robust import RobustClassifier
from stages.training.adapter import Learner, TrainConfig
from stages.training.batches import TrainingBatch


class Consistent(Learner):
    """FGSM-PGI's update: the attack's own graph stays, so that the logits at its start cost no pass of their own."""

    def __init__(
        self, robust: RobustClassifier, config: TrainConfig, *, total_updates: int, seed: int, smoothing: float
    ) -> None:
        super().__init__(robust, config, total_updates=total_updates, seed=seed)
        self.smoothing = smoothing

    def begin(
        self, states: Float[Tensor, "image channel height width"], labels: Int64[Tensor, " image"]
    ) -> Float[Tensor, "image channel height width"]:
        """The gradient of the attack at its start, whose logits are kept for the update.

        Where weights are perturbed, its backward pass finds where to, and the start is kept for a pass of its own.
        """
        states = states.requires_grad_(True)
        t = torch.full_like(labels, self.robust.steps)
        self._first = self.robust.classify(self.robust.restore(states, t)).float()
        loss = functional.cross_entropy(self._first, labels, reduction="sum")
        if self.perturbs():
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._starts = states.detach()
            assert states.grad is not None
            return states.grad
        return torch.autograd.grad(loss, states, retain_graph=True)[0]

    def _against(self, batch: TrainingBatch) -> None:
        """The gradients that `begin` left."""

    @contextmanager
    def _training_mode(self, device: torch.device) -> Iterator[None]:
        """None: dropout differs between the two passes, and with the term for it nothing is learnt."""
        yield

    def _gradients(self, batch: TrainingBatch) -> dict[str, Tensor]:
        if self.perturbs():
            return super()._gradients(replace(batch, starts=self._starts))
        restored = self.robust.restore(batch.states, torch.full_like(batch.t, self.robust.steps))
        logits = self.robust.classify(restored).float()
        loss, terms = objective(
            self.objective(),
            restored=restored,
            clean=batch.clean,
            logits=logits,
            labels=batch.labels,
            start_logits=self._first,
        )
        if self.smoothing:
            smoothed = functional.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
            loss = loss + smoothed - functional.cross_entropy(logits, batch.labels)  # for the one in it, of weight 1
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return {"loss": loss.detach(), **terms}
