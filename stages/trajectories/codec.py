"""How attacked states become bytes and come back: exact integers on the lattice, nothing is rounded.

A segment is x_0 .. x_k of one example. Of an Linf segment only the sign of each step's gradient is kept, as
two bit planes a step; of an L2 segment how much each step differs from the one before it.

>>> signs = torch.tensor([[[1, 0, -1]], [[1, 1, -1]]], dtype=torch.int8)
>>> planes = pack_signs(signs)
>>> [plane.tolist() for plane in planes]
[[[[1], [2]]], [[[5], [2]]]]
>>> torch.equal(unpack_signs(*planes, pixels=3), signs)
True
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int8, Int16, Int64, UInt8
from torch import Tensor

from stages import randomness
from stages.rap.attack import Trajectory
from stages.rap.norms import advance_linf
from stages.rap.process import AttackProcess

# Pixels replayed together: 2**19 levels are 1 MB, so that a block with its limits and signs stays in cache,
# and each tensor operation is still long against its overhead of microseconds.
BLOCK_PIXELS = 2**19


@dataclass(frozen=True, eq=False)
class Segments:
    """n segments of k steps, decoded from one shard or bound for one.

    State j of a segment is x_{taken + j}. Raises ValueError when the parts do not belong together.
    """

    process: AttackProcess
    """The attack that made the segments."""
    shape: tuple[int, int, int]
    """Channel, height and width of the images."""
    index: Int64[Tensor, " batch"]
    """Row of each example in the data set."""
    taken: Int16[Tensor, " batch"]
    """Steps that each start has had: 0 for a fresh start."""
    augmentation: Int16[Tensor, "batch 3"] | None = None
    """Shift down, shift right (pixels) and flip (0 or 1) of each image, where the data are augmented."""
    start: Int16[Tensor, "batch pixel"] | None = None
    """Linf: x_0 minus x in levels."""
    start_seed: int | None = None
    """Linf, instead of `start`: the seed of `randomness.start_levels`, for uniform fresh starts."""
    signs: Int8[Tensor, "step batch pixel"] | None = None
    """Linf: the sign of each step's gradient, in {-1, 0, 1}."""
    delta: Int16[Tensor, "state batch pixel"] | None = None
    """L2: x_0 minus x, then each state minus the one before it, in levels."""
    success: Bool[Tensor, "step batch"] | None = None
    """Whether the attacked weights misclassified each state that was attacked, x_0 .. x_{k-1}."""

    def __post_init__(self) -> None:
        if self.process.norm == "L2":
            if self.delta is None or self.signs is not None or not self.start is self.start_seed is None:
                raise ValueError("L2 segments are their differences: give delta, and no signs, start or start_seed")
        elif self.signs is None or self.delta is not None or (self.start is None) == (self.start_seed is None):
            raise ValueError("Linf segments are signs and a start: give signs, no delta, and start or start_seed")
        if self.start_seed is not None and (self.process.start != "uniform" or bool(self.taken.any())):
            raise ValueError(
                f"only fresh uniform starts come back from a seed; these are {self.process.start} and have had "
                f"up to {int(self.taken.max())} steps: give start instead of start_seed"
            )
        pixels = self._moves.shape[2]
        if len(self) == 0 or self.steps < 1 or pixels != int(np.prod(self.shape)):
            raise ValueError(
                f"{len(self)} segments of {self.steps} steps over {pixels} pixels for images of shape "
                f"{self.shape}: at least one segment, one step, and channel x height x width pixels are needed"
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def steps(self) -> int:
        """k, the number of steps of each segment."""
        return len(self._moves)

    @property
    def _moves(self) -> Tensor:
        if self.delta is not None:
            return self.delta[1:]
        assert self.signs is not None  # one of both is there: __post_init__
        return self.signs

    @cached_property
    def _offset(self) -> Int16[Tensor, "batch pixel"]:
        """x_0 minus x, before clamping where it comes from a seed; kept, because hashing costs more than decoding."""
        if self.delta is not None:
            return self.delta[0]
        if self.start is not None:
            return self.start
        assert self.start_seed is not None
        rows, pixels = self.index.cpu().numpy(), self._moves.shape[2]
        levels = randomness.start_levels(self.start_seed, rows, pixels, self.process.noise)
        return torch.from_numpy(levels).to(self._moves.device)

    def states(
        self, clean: Int16[Tensor, "batch channel height width"]
    ) -> Int16[Tensor, "state batch channel height width"]:
        """All states x_0 .. x_k; ``clean`` are the levels of the clean (augmented) images."""
        return torch.stack(list(self._walk(clean))).reshape(-1, *clean.shape)

    def last_states(
        self, clean: Int16[Tensor, "batch channel height width"]
    ) -> Int16[Tensor, "batch channel height width"]:
        """State k of every segment."""
        return deque(self._walk(clean), maxlen=1)[0].reshape(clean.shape)

    def _walk(self, clean: Int16[Tensor, "batch channel height width"]) -> Iterator[Int16[Tensor, "batch pixel"]]:
        """x_0 .. x_k of all segments, one after the other."""
        flat = clean.flatten(1)
        limits = self.process.limits(flat)
        levels = (flat + self._offset).clamp_(*limits)
        yield levels
        for move in self._moves:
            levels = self._advance(levels, move, limits)
            yield levels

    def states_at(
        self,
        clean: Int16[Tensor, "sample channel height width"],
        t: Int64[Tensor, " sample"],
        rows: Int64[Tensor, " sample"] | None = None,
    ) -> Int16[Tensor, "sample channel height width"]:
        """State t[i], in 0 .. k, of each segment, or of the segments at positions ``rows`` (which may repeat).

        ``clean`` holds the clean images' levels in the same order as ``t``.
        """
        rows = torch.arange(len(self), device=t.device) if rows is None else rows
        if not 0 <= int(t.min()) <= int(t.max()) <= self.steps:
            raise ValueError(
                f"states {int(t.min())} to {int(t.max())} were asked for; the segments have 0 to {self.steps}"
            )
        flat, states = clean.flatten(1), torch.empty_like(clean).flatten(1)
        for block in t.argsort(descending=True).split(max(1, BLOCK_PIXELS // flat.shape[1])):
            states.index_copy_(0, block, self._replay(flat.index_select(0, block), t[block], rows[block]))
        return states.reshape(clean.shape)

    def _replay(
        self, clean: Int16[Tensor, "sample pixel"], t: Int64[Tensor, " sample"], rows: Int64[Tensor, " sample"]
    ) -> Int16[Tensor, "sample pixel"]:
        """State t of each row; t descends, so the rows that still move are always the first ones."""
        low, high = self.process.limits(clean)
        levels = (clean + self._offset.index_select(0, rows)).clamp_(low, high)
        # moving[j] rows take step j; index_select copies rows, where indexing would copy element by element
        moving = (t[:, None] > torch.arange(int(t[0]), device=t.device)).sum(0).tolist()
        for count, move in zip(moving, self._moves, strict=False):
            chosen = move.index_select(0, rows[:count])
            levels[:count] = self._advance(levels[:count], chosen, (low[:count], high[:count]))
        return levels

    def _advance(
        self,
        levels: Int16[Tensor, "sample pixel"],
        move: Int8[Tensor, "sample pixel"] | Int16[Tensor, "sample pixel"],
        limits: tuple[Tensor, Tensor],
    ) -> Int16[Tensor, "sample pixel"]:
        if self.process.norm == "Linf":
            return advance_linf(levels, move, self.process.step, *limits)
        return levels + move


def encode(
    trajectory: Trajectory,
    clean: Int16[Tensor, "batch channel height width"],
    *,
    process: AttackProcess,
    index: Int64[Tensor, " batch"],
    taken: Int64[Tensor, " batch"] | Int16[Tensor, " batch"],
    augmentation: Int16[Tensor, "batch 3"] | None = None,
    start_seed: int | None = None,
) -> Segments:
    """The segments of attacked states; with ``start_seed`` the start is left out, to be derived again."""
    levels = trajectory.levels.flatten(2)
    flat = clean.flatten(1)
    linf = process.norm == "Linf"
    return Segments(
        process=process,
        shape=(clean.shape[1], clean.shape[2], clean.shape[3]),
        index=index.cpu(),
        taken=taken.to("cpu", torch.int16),
        augmentation=augmentation,
        start=(levels[0] - flat).cpu() if linf and start_seed is None else None,
        start_seed=start_seed,
        signs=trajectory.signs.flatten(2).cpu() if trajectory.signs is not None else None,
        delta=None if linf else torch.cat([levels[:1] - flat, levels[1:] - levels[:-1]]).cpu(),
        success=trajectory.success.cpu(),
    )


def pack_signs(
    signs: Int8[Tensor, "step batch pixel"],
) -> tuple[UInt8[np.ndarray, "batch step byte"], UInt8[np.ndarray, "batch step byte"]]:
    """Two bit planes a step, "positive" and "not zero", each XORed with the plane of the step before."""
    values = signs.numpy()
    return _pack_planes(values > 0), _pack_planes(values != 0)


def _pack_planes(bits: np.ndarray) -> UInt8[np.ndarray, "batch step byte"]:
    planes = np.packbits(bits, axis=2, bitorder="little")
    planes[1:] ^= planes[:-1].copy()
    return np.ascontiguousarray(planes.transpose(1, 0, 2))


def unpack_signs(
    positive: UInt8[np.ndarray, "batch step byte"],
    nonzero: UInt8[np.ndarray, "batch step byte"],
    *,
    pixels: int,
) -> Int8[Tensor, "step batch pixel"]:
    """The signs that `pack_signs` packed."""
    signs = _unpack_planes(positive, pixels)
    signs += signs
    signs -= 1
    signs *= _unpack_planes(nonzero, pixels)
    return torch.from_numpy(signs)


def _unpack_planes(planes: UInt8[np.ndarray, "batch step byte"], pixels: int) -> np.ndarray:
    plain = np.bitwise_xor.accumulate(planes.transpose(1, 0, 2), axis=0)
    return np.unpackbits(np.ascontiguousarray(plain), axis=2, count=pixels, bitorder="little").view(np.int8)


def pack_delta(delta: Int16[Tensor, "state batch pixel"]) -> UInt8[np.ndarray, "batch bit byte"]:
    """Bit planes of the differences of differences: of an L2 attack, which mostly goes on as before, the smallest.

    Zigzag (0, -1, 1, -2 become 0, 1, 2, 3) frees small numbers of their sign bits; plane j holds bit j of an example's
    numbers, state by state, and as many planes are kept as the largest number has bits, at least one.
    Every number fits: two levels differ by 16320 at most, two steps by 32640.
    """
    change = delta.numpy().copy()
    change[2:] -= delta.numpy()[1:-1]
    folded = ((change.view(np.uint16) << 1) ^ (change >> 15).view(np.uint16)).transpose(1, 0, 2)
    flat = np.ascontiguousarray(folded).reshape(len(folded), -1)
    planes = [
        np.packbits(flat >> bit & 1, axis=1, bitorder="little") for bit in range(int(flat.max()).bit_length() or 1)
    ]
    return np.stack(planes, axis=1)


def unpack_delta(
    planes: UInt8[np.ndarray, "batch bit byte"], *, states: int, pixels: int
) -> Int16[Tensor, "state batch pixel"]:
    """The differences that `pack_delta` packed."""
    folded = np.zeros((len(planes), states * pixels), np.uint16)
    for bit in range(planes.shape[1]):
        found = np.unpackbits(planes[:, bit], axis=1, count=states * pixels, bitorder="little")
        folded |= found.astype(np.uint16) << bit
    delta = np.ascontiguousarray(
        ((folded >> 1) ^ -(folded & 1)).view(np.int16).reshape(-1, states, pixels).transpose(1, 0, 2)
    )
    for step in range(2, states):  # np.cumsum over the first axis is several times slower
        delta[step] += delta[step - 1]
    return torch.from_numpy(delta)
