"""What makes networks and updates faster, each against the plain way: ratios of CPU time on one thread.

    python tests/benchmarks/speedups.py

Both ways compute the same, in turn, and the medians are compared (other programs only disturb the clock). Writes
results/speedups.json beside this file. What a GPU gains is measured by gpu.py.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.nets.cnn import CNN
from stages.nets.faster import faster_classifier
from stages.nets.resnet import ResNet18
from stages.nets.unet import UNET_SIZES, GroupNorm, SelfAttention, UNet
from stages.trajectories.archive import pack

RESULTS = Path(__file__).parent / "results" / "speedups.json"
Ways = tuple[Callable[[], object], Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=31, help="calls of each way")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {name: compare(*case(), turns=arguments.turns) for name, case in CASES.items()}
    found["freed memory that is kept"] = kept_memory(turns=arguments.turns)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    results = {"machine": machine, "load": os.getloadavg()[0], "turns": arguments.turns, "cases": found}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def compare(plain: Callable[[], object], faster: Callable[[], object], *, turns: int) -> dict[str, float]:
    """Median milliseconds of each way, called in turn, and how many times the plain one is of the other."""
    taken: tuple[list[float], list[float]] = [], []
    for turn in range(turns + 2):
        for way, times in zip((plain, faster), taken, strict=True):
            began = time.thread_time()
            way()
            if turn > 1:
                times.append(1e3 * (time.thread_time() - began))
    return told(*map(statistics.median, taken))


def told(before: float, after: float) -> dict[str, float]:
    result = {"plain, ms": round(before, 3), "faster, ms": round(after, 3), "times": round(before / after, 2)}
    print(json.dumps(result), flush=True)
    return result


def frozen_classifier() -> Ways:
    """A gradient of the images: BatchNorms folded into their convolutions, and channels last."""
    classifier, images = resnet(), torch.rand(64, 3, 32, 32)
    faster = faster_classifier(classifier, images[:8], frozen=True)
    return lambda: gradient(classifier, images), lambda: gradient(faster, images)


class ReLUFirst(CNN):
    """The CNN with ReLU before pooling, as its source has it."""

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.conv1(self.normalise(images)))
        features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)
        return self.fc2(functional.relu(self.fc1(features.flatten(1))))


def pooled_first() -> Ways:
    """A gradient of MNIST's images through the CNN, whose ReLU comes behind its pooling."""
    plain, faster = (network(1, 28, 10, (0.13,), (0.31,)).eval().requires_grad_(False) for network in (ReLUFirst, CNN))
    faster.load_state_dict(plain.state_dict())
    images = torch.rand(64, 1, 28, 28)
    plain, faster = (faster_classifier(network, images[:8], frozen=True) for network in (plain, faster))
    assert torch.equal(gradient(plain, images), gradient(faster, images))
    return lambda: gradient(plain, images), lambda: gradient(faster, images)


def trained_classifier() -> Ways:
    """An update's gradients, with channels last alone."""
    classifier, images = resnet(), torch.rand(64, 3, 32, 32)
    faster = faster_classifier(classifier, images[:8], frozen=False)
    networks = [network.train().requires_grad_(True) for network in (classifier, faster)]
    return lambda: networks[0](images).sum().backward(), lambda: networks[1](images).sum().backward()


def normalisation() -> Ways:
    """GroupNorm of bfloat16 features under autocast, with and without a detour through float32."""
    features = torch.rand(32, 64, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    plain, faster = nn.GroupNorm(8, 64), GroupNorm(64)

    def run(norm: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            norm(features).float().sum().backward()

    return lambda: run(plain), lambda: run(faster)


def attention() -> Ways:
    """Self-attention at 16x16, without and with the axis of heads that the fused kernel asks for."""
    layer, features = SelfAttention(64), torch.rand(16, 64, 16, 16)

    def plain() -> Tensor:
        query, key, value = (
            part.flatten(2).transpose(1, 2) for part in layer.project_in(layer.norm(features)).chunk(3, dim=1)
        )
        mixed = (query @ key.transpose(1, 2) / 64**0.5).softmax(2) @ value
        return features + layer.project_out(mixed.transpose(1, 2).reshape(features.shape))

    torch.testing.assert_close(plain(), layer(features), rtol=1e-4, atol=1e-4)
    return lambda: plain().sum().backward(), lambda: layer(features).sum().backward()


def optimizer() -> Ways:
    """A step of AdamW on the weights of a ResNet-18, tensor by tensor and fused."""

    def weights() -> list[nn.Parameter]:
        found = [nn.Parameter(weight.detach().clone()) for weight in resnet().parameters()]
        for weight in found:
            weight.grad = torch.rand_like(weight)
        return found

    return torch.optim.AdamW(weights(), foreach=False).step, torch.optim.AdamW(weights(), fused=True).step


def moving_average() -> Ways:
    """The moving average of those weights, tensor by tensor and together."""
    weights = [weight.detach() for weight in resnet().parameters()]
    average, other = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))

    def plain() -> None:
        for mine, weight in zip(average, weights, strict=True):
            mine.mul_(0.999).add_(weight, alpha=0.001)

    return plain, lambda: torch._foreach_lerp_(other, weights, 0.001)  # pyright: ignore[reportPrivateImportUsage]


def one_pass() -> Ways:
    """The gradients of an adapter from 32 states of digits and their starts, in two passes and in one."""
    adapter, t = UNet(UNET_SIZES["flat"], 1), torch.full((32,), 10)
    states, starts = torch.rand(2, 32, 1, 8, 8)

    def plain() -> None:
        (adapter(states, t) - adapter(starts, t)).square().mean().backward()

    def faster() -> None:
        after, before = adapter(torch.cat([states, starts]), torch.cat([t, t])).split(32)
        (after - before).square().mean().backward()

    return plain, faster


def packing() -> Ways:
    """A visit of one step to 32 images of MNIST's size as a shard, with `zipfile` and zlib, and as shards are."""
    start = np.clip(np.random.default_rng(0).integers(-2295, 2295, (32, 784)), -1530, 1530).astype(np.int16)
    signs = np.random.default_rng(1).integers(0, 256, (32, 1, 98), np.uint8)
    arrays = {"start": start, "signs": signs, "nonzero": np.full_like(signs, 255)}
    packed = pack(arrays, {})
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chunks = {name: gzip.decompress(content) for name, content in members.items() if "/c/" in name}

    def plain() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, gzip.compress(chunks[name], 1) if name in chunks else content)
        body = buffer.getvalue()
        return body + hashlib.sha256(body).hexdigest().encode()

    assert len(packed) < len(plain())
    return plain, lambda: pack(arrays, {})


def kept_memory(*, turns: int) -> dict[str, float]:
    """The gradients of MNIST's adapter from 64 images, in processes that keep what they free, and in others."""
    taken: tuple[list[float], list[float]] = [], []
    default = {"MALLOC_ARENA_TEST": "8"}  # glibc's own value: it changes nothing, but is a choice, which stays
    for _ in range(5):
        for chosen, times in zip((default, {}), taken, strict=True):
            command = [sys.executable, "-c", GRADIENTS, str(turns)]
            done = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
    return told(*map(statistics.median, taken))


GRADIENTS = """
import statistics, sys, time
import torch
from stages.nets.unet import UNET_SIZES, UNet
from stages.numerics import Arithmetic

adapter, images, t, times = UNet(UNET_SIZES["tiny-half"], 1), torch.rand(64, 1, 28, 28), torch.full((64,), 20), []
with Arithmetic().applied():
    for _ in range(int(sys.argv[1]) + 2):
        began = time.thread_time()
        adapter(images, t).square().mean().backward()
        times.append(1e3 * (time.thread_time() - began))
print(statistics.median(times[2:]))
"""


def resnet() -> nn.Module:
    """The narrow ResNet-18, for one core."""
    return ResNet18(3, 10, mean=(0.5,) * 3, std=(0.25,) * 3, width=8).eval().requires_grad_(False)


def gradient(network: nn.Module, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_(True)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return torch.autograd.grad(functional.cross_entropy(network(images), labels), images)[0]


CASES: dict[str, Callable[[], Ways]] = {
    "a frozen classifier without BatchNorm, channels last": frozen_classifier,
    "pooling before ReLU": pooled_first,
    "a trained classifier, channels last": trained_classifier,
    "group normalisation in bfloat16": normalisation,
    "attention by the fused kernel": attention,
    "fused AdamW": optimizer,
    "the moving average of all weights together": moving_average,
    "states and their starts in one pass": one_pass,
    "a shard's gzip by ISA-L, and its ZIP": packing,
}

if __name__ == "__main__":
    main()
