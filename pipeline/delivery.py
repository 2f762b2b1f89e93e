"""What a user handed in, on its way to workers: with its name, so that none works on what computes something else.

A worker imports modules anew, and knows nothing of what was set in this process alone: a global of a module, a method
that was replaced, a file that was edited since. All of these are in a name (`stages.identity`).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import nn

from cluster.parcels import Parcel, pack
from cluster.pool import run_tasks
from cluster.refs import put
from pipeline.placement import Place
from stages.identity import UnnameableError, object_fingerprint
from stages.training.setup import Setup

Value = TypeVar("Value")


def named(value: Value, what: str, *, code_of: Callable[[Value], object] | None = None) -> Parcel[Value]:
    """A parcel that is refused by a worker in which the value, or the part of it that ``code_of`` gives, has another
    name than here. Raises ParcelError for what cannot be sent."""
    return pack(value, what, name=partial(_name, code_of))


def named_setup(setup: Setup) -> Parcel[Setup]:
    """A training's setup; its code is that of the classifier."""
    return named(setup, "the training's setup", code_of=_classifier)


def check_arrival(classifier: nn.Module | None, place: Place) -> None:
    """Raise ParcelError where a worker finds a user's classifier to be another one, before any work with it."""
    if classifier is not None:
        sent = [put(named(classifier, "the classifier"))]
        list(run_tasks(_arrive, [sent], cpus=place.cpus, gpus=place.gpus, fresh=False))


def _arrive(sent: list) -> None:
    sent[0].get()


def _classifier(setup: Setup) -> nn.Module:
    return setup.classifier


def _name(code_of: Callable | None, value: object) -> str:
    """The name of what is the user's; none for what cannot be named, whose sameness nothing could show."""
    try:
        return object_fingerprint(code_of(value) if code_of else value)
    except UnnameableError:
        return ""
