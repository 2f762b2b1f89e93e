"""The robust classifier: the frozen classifier behind the adapter; what is attacked, evaluated and shipped."""

import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages.rap.reverse import attack_again, reverse_process, reverse_times
from stages.rap.threat import ThreatModel


class StraightThroughClamp(torch.autograd.Function):
    """Clamp to [0, 1] whose backward pass is the identity, so that saturation hides no gradient."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class RobustClassifier(nn.Module):
    """Images [batch, channel, height, width] in [0, 1] to logits [batch, class]; deterministic.

    ``adapter(x, t)`` returns its estimate of the clean image; without an adapter (adversarial training of
    the classifier alone) the image goes straight to the classifier, which normalises inside.
    ``straight_through`` lets gradients pass the clamp after the adapter; the forward pass is the same.
    With ``reverse_steps`` above 1 the forward pass attacks its own restored images again (an adaptive
    test-time defence: evaluate it as one), within the ``threat`` that it was trained against, in steps of
    ``step_size`` pixels of [0, 1], by default 2.5 radius / T and never more than the radius.

    Raises ValueError for a step size of 0 or less or larger than the ball, and for several reverse steps in L1.
    """

    def __init__(
        self,
        adapter: nn.Module | None,
        classifier: nn.Module,
        *,
        steps: int,
        threat: ThreatModel,
        straight_through: bool = True,
        reverse_steps: int = 1,
        step_size: float | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.classifier = classifier
        self.steps = steps
        self.threat = threat
        self.straight_through = straight_through
        self.step_size = min(2.5 * threat.radius / steps, threat.radius) if step_size is None else step_size
        if not 0 < self.step_size <= threat.radius:
            raise ValueError(
                f"step_size is {step_size}; it must be greater than 0 pixels of [0, 1] and at most the radius, "
                f"{threat.radius:g}, or None"
            )
        self.times = self._times(reverse_steps)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        return self.classify(self.purify(images))

    def purify(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """The restored images, in [0, 1]: the reverse process (Alg. 2) from the deployed T."""
        return reverse_process(self._restore_at, self._attack_again, images, self.times)

    def restore(
        self, images: Float[Tensor, "batch channel height width"], t: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """The adapter's estimate of the clean images from states x_t, clamped to [0, 1]."""
        if self.adapter is None:
            return images
        restored = self.adapter(images, t)
        if self.straight_through:
            return StraightThroughClamp.apply(restored)  # pyright: ignore[reportReturnType]
        return restored.clamp(0, 1)

    def with_reverse_steps(self, reverse_steps: int) -> "RobustClassifier":
        """The same networks with another number of steps of the reverse process (Alg. 2), from 1 to T."""
        other = copy.copy(self)
        other.times = self._times(reverse_steps)
        return other

    def with_classifier(self, classifier: nn.Module) -> "RobustClassifier":
        """The same adapter in front of another classifier (the paper's Table 6)."""
        other = copy.copy(self)
        other._modules = {**self._modules, "classifier": classifier}
        return other

    def classify(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """The classifier's logits, without the adapter."""
        return self.classifier(images)

    def _times(self, reverse_steps: int) -> list[int]:
        if reverse_steps > 1 and self.threat.norm == "L1":
            raise ValueError("several reverse steps attack in Linf or L2, and the threat model is in L1: use 1")
        return reverse_times(reverse_steps, self.steps)

    def _restore_at(self, images: Tensor, t: int) -> Tensor:
        return self.restore(images, torch.full((len(images),), t, dtype=torch.int64, device=images.device))

    def _attack_again(self, restored: Tensor, steps: int) -> Tensor:
        predicted = self.classify(restored).argmax(1)
        return attack_again(
            lambda images: self.classify(self._restore_at(images, self.steps)),
            restored,
            predicted,
            steps=steps,
            step_size=self.step_size,
            threat=self.threat,
        )
