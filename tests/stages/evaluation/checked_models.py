"""A linear model of the digits, that model changed, and the contract's answer to it."""

from known_models import Wrapped, load_images, train_linear
from torch import nn

from stages.evaluation.contract import check_model
from stages.rap.threat import ThreatModel

IMAGES, LABELS = load_images(10, 200)
MODEL = train_linear(IMAGES, LABELS, 10)
THREAT = ThreatModel(norm="Linf", radius=0.1)


def check(model, count: int = 60, *, threat: ThreatModel = THREAT, random: bool = False) -> None:
    check_model(model, IMAGES[:count], LABELS[:count], classes=10, threat=threat, random=random)


def before(change) -> nn.Module:
    """The model behind a change of its images."""
    return Wrapped(MODEL, before=change).eval()


def after(change) -> nn.Module:
    """The model with another answer."""
    return Wrapped(MODEL, after=change).eval()
