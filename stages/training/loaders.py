"""Batches as a user's loader gives them, counted and checked; or the reason why not."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from stages.data.images import paired

PASSES = "pass a DataLoader or a list of batches (images, labels), which gives as many at every pass"


def length(loader: Iterable[object]) -> int:
    """The batches of a pass, by counting where the loader does not tell. Raises ValueError for what is no loader."""
    if isinstance(loader, Iterator):
        raise ValueError(f"the loader is an iterator, used up after one epoch: {PASSES}")  # noqa: TRY004 - the caller's
    try:
        batches = len(loader)  # pyright: ignore[reportArgumentType] - or one of these errors
    except (TypeError, ValueError, NotImplementedError):
        batches = sum(1 for _ in _started(loader))
    if not batches:
        raise ValueError("the loader has no batches: pass one with at least one image")
    return batches


def first(
    loader: Iterable[object], expected: int
) -> tuple[UInt8[Tensor, "batch channel height width"], Int64[Tensor, " batch"]]:
    """The loader's first batch. Raises ValueError where counting its batches has used it up."""
    for given in _started(loader):
        return _batch(given, 0, classes=None)
    raise ValueError(
        f"the loader of {expected} batches gives none: it lasts one pass, or its length is wrong; {PASSES}"
    )


def one_pass(
    loader: Iterable[object], expected: int, epoch: int, *, classes: int, shape: torch.Size
) -> Iterator[tuple[UInt8[Tensor, "batch channel height width"], Int64[Tensor, " batch"]]]:
    """The batches of a pass over the loader.

    Raises ValueError where there are more or fewer than expected, by which the learning rate was planned, and for a
    batch that is none or whose images have another shape [channel, height, width].
    """
    number = 0
    for number, given in enumerate(loader, 1):
        if number > expected:
            raise ValueError(
                f"the loader gives more than {expected} batches in epoch {epoch + 1}, by which number the learning "
                f"rate was planned: {PASSES}"
            )
        images, labels = _batch(given, number - 1, classes=classes)
        if images.shape[1:] != shape:
            raise ValueError(
                f"batch {number - 1} of the loader has images of shape {list(images.shape[1:])}, the first had "
                f"{list(shape)}: give all images the same channels and size"
            )
        yield images, labels
    if number < expected:
        raise ValueError(
            f"the loader gave {number} batches in epoch {epoch + 1} instead of {expected}, by which number the "
            f"learning rate was planned: {PASSES}"
        )


def _started(loader: Iterable[object]) -> Iterator[object]:
    try:
        return iter(loader)
    except TypeError as error:
        raise ValueError(f"the loader is {loader!r}, which has no batches ({error}): {PASSES}") from error


def _batch(
    given: object, number: int, *, classes: int | None
) -> tuple[UInt8[Tensor, "batch channel height width"], Int64[Tensor, " batch"]]:
    """A batch of the loader. Raises ValueError, with its number, for what is none."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        found = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
        if isinstance(given, Mapping):
            found += f" with {', '.join(map(str, given))}"
        raise ValueError(
            f"batch {number} of the loader is {found}; expected (images, labels): give the DataLoader a collate_fn, or "
            "a Dataset, that returns these two"
        )
    try:
        images, labels = paired(*given, classes=classes)
    except ValueError as error:
        raise ValueError(f"batch {number} of the loader: {error}") from error
    # no gradient passes what was made in inference mode; a copy is another
    return images.clone(), labels.clone()
