"""Segments for the tests: attacked by the real attack, or random ones that try the format's corners."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.fingerprint import canonical_json
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.trajectories.codec import Segments, encode
from stages.trajectories.shards import LedgerRow

SHAPE = (3, 5, 3)
"""Channels, height and width of the attacked images."""


class Net(nn.Module):
    """A classifier with dead pixels: some gradients are exactly zero, for black images all of them."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(pixels, 16, generator=generator))
        self.second = nn.Parameter(torch.randn(16, 4, generator=generator))
        self.first.data[::5] = 0

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.first).relu() @ self.second


@dataclass(frozen=True, eq=False)
class Attacked:
    segments: Segments
    images: Tensor
    states: Tensor

    @property
    def clean(self) -> Tensor:
        return self.segments.process.lattice.from_bytes(self.images)


def attacked(
    norm: str = "Linf",
    *,
    n: int = 6,
    steps: int = 4,
    start: str = "uniform",
    warm: bool = False,
    project: bool = True,
    derived: bool = True,
) -> Attacked:
    """Segments of the real attack; the first image is black, the second white."""
    radius = {"Linf": 0.2, "L2": 1.0}[norm]
    config = AttackConfig(steps=max(steps, 3), start=start, projection=project)  # pyright: ignore[reportArgumentType]
    threat = ThreatModel(norm=norm, radius=radius)  # pyright: ignore[reportArgumentType]
    process = config.process(threat)
    images = torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images[0], images[1] = 0, 255
    robust = RobustClassifier(None, Net(images[0].numel()), steps=process.steps, threat=threat)
    labels, index = torch.arange(n) % 4, torch.arange(n) * 7 + 2
    noise, seed, taken = draw_start(process, 2**63 + 11, index.numpy(), SHAPE), 2**63 + 11, torch.zeros_like(index)
    if warm:
        first = attack(robust, images, labels, process, noise, process.times(2))
        noise, taken = first.levels[-1] - process.lattice.from_bytes(images), taken + 2
    trajectory = attack(robust, images, labels, process, noise, process.times(steps, taken))
    segments = encode(
        trajectory,
        process.lattice.from_bytes(images),
        process=process,
        index=index,
        taken=taken,
        start_seed=seed if derived and not warm and norm == "Linf" and start == "uniform" else None,
    )
    return Attacked(segments, images, trajectory.levels)


def random_segments(
    seed: int, *, n: int, steps: int, shape: tuple[int, int, int], process: AttackProcess, warm: bool = False
) -> Segments:
    """Segments that no network would make: every sign is as likely as the next."""
    draw, pixels = np.random.default_rng(seed), int(np.prod(shape))
    index = torch.from_numpy(draw.integers(0, 2**40, n))
    taken = torch.full((n,), 3 if warm else 0, dtype=torch.int16)
    if process.norm == "L2":
        size = (steps + 1, n, pixels)
        delta = torch.from_numpy(draw.integers(-2, 3, size).astype(np.int16))
        return Segments(process=process, shape=shape, index=index, taken=taken, delta=delta)
    start = torch.from_numpy(draw.integers(-process.bound, process.bound + 1, (n, pixels)).astype(np.int16))
    return Segments(
        process=process,
        shape=shape,
        index=index,
        taken=taken,
        start=start if warm else None,
        start_seed=None if warm else int(draw.integers(0, 2**63)),
        signs=torch.from_numpy(draw.integers(-1, 2, (steps, n, pixels)).astype(np.int8)),
    )


def row_of(segments: Segments, **changes: object) -> LedgerRow:
    """A row that fits the segments, with numbers of no meaning."""
    k, values = segments.steps, {"fingerprint": f"{int(segments.index[0]):032x}", **changes}
    return LedgerRow(
        **{
            "parent": "",
            "run": "runs/example",
            "round": 3,
            "unit": 1,
            "cohort": 2,
            "visit": 0,
            "version": 2,
            "weights": "weights",
            "data": "data",
            "attack": canonical_json(segments.process),
            "first_index": int(segments.index.min()),
            "last_index": int(segments.index.max()),
            "n": len(segments),
            "k": k,
            "fresh": int((segments.taken == 0).sum()),
            "last_states": "checksum",
            "success": (0.25,) * k,
            "loss": (0.5,) * k,
            "zero_gradients": (0.0,) * k,
            "seconds": 0.125,
            "worker": "host:1",
            "created": "2026-01-01T00:00:00.000+00:00",
            **values,
        }  # pyright: ignore[reportArgumentType]
    )
