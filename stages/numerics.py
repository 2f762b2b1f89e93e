"""How numbers are computed: the one place for threads, reduced precision, cuDNN and determinism.

Training and generation compute as their recipe says (`Arithmetic`), and a *verdict* (the judge, an evaluation, its
verification, the checks) is made in full float32, whatever the process did before and whoever it belongs to. Both are
blocks, behind which PyTorch's settings are as they were: a notebook keeps its own.

>>> with Arithmetic(precision="tf32").applied():
...     torch.backends.cudnn.allow_tf32
True
>>> with verdict():
...     torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
(False, 'highest')
"""

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import torch

Value = TypeVar("Value")
Precision = Literal["float32", "tf32", "bfloat16"]

SAME = 1e-4
"""Share of a model's largest logit by which two answers to the same batch may differ and still be the same answer.

Under `verdict` they are the same bits, unless a kernel adds in random order. A random defence differs by far more.
"""
SAME_ALONE = 3e-2
"""The same for an image in a batch and alone, or among others.

Its sums run in another order there: in float32 the logits of a deep network differ by some 1e-5, in a model that
computes in bfloat16 itself by a percent. One that normalises over the batch differs by tens of percent.
"""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h

MOST_THREADS = 1024
"""Of a process, more than CPUs have cores. GNU's OpenMP ends one that asks for more threads than the system starts:
with 16,384 by a message of its own, with 100,000 by a segmentation fault (PyTorch on Linux; 4,096 worked)."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How the networks of a stage compute. It decides the last bits of a result or more, so it is part of a recipe."""

    precision: Precision = "float32"
    """Arithmetic of the networks. float32: all of it. tf32: products with 10-bit mantissas, on GPUs only. bfloat16: all
    but the output's sigmoid. Weights, losses and verdicts are float32 in any case."""
    threads: int = 1
    """CPU threads; the order of sums, and so the last bits, depends on them."""
    deterministic: bool = False
    """On GPUs, only algorithms that give the same bits each time, which are slower; PyTorch warns of what has none.
    CPUs need no such choice."""
    compiled: bool = False
    """Compile the networks with torch.compile: fewer and larger kernels, after a minute or more at the start of every
    process. Needs a C++ compiler on CPUs, Triton on GPUs."""

    def check_threads(self, name: str) -> None:
        """Raise ValueError, with the ``name`` of the config, for a number of threads that no process can have."""
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"{name}.threads is {self.threads}; it must be at least 1, and at most {MOST_THREADS:,}")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Compute like this inside of the block."""
        keep_freed_memory()
        with _restored():
            torch.set_num_threads(self.threads)
            _allow_tf32(self.precision == "tf32")
            torch.backends.cudnn.benchmark = not self.deterministic  # batches have few sizes, so each is timed once
            torch.backends.cudnn.deterministic = self.deterministic
            if self.deterministic:
                # Read when cuBLAS starts; without it PyTorch calls none of its products deterministic.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The block in which networks on a device run in bfloat16, where that is the precision."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


@contextmanager
def verdict(*, threads: int | None = None) -> Iterator[None]:
    """Full float32 and deterministic convolutions inside of the block; ``threads`` where bits are promised on CPUs.

    An autocast, or a mode without gradients, around it does not reach inside. cuDNN is not to time its algorithms:
    batches shrink with every image that is broken, and each size would be timed anew.
    """
    keep_freed_memory()
    with (
        _restored(),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        _allow_tf32(False)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        yield


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what this process frees (at most 1 GB), where it is glibc; it stays so behind a block.

    It gives large tensors back to the system at once, which hands every page of the next ones out again, zeroed: a
    fifth of the time of an adapter's gradients on MNIST (tests/benchmarks/speedups.py). A MALLOC_ variable or
    GLIBC_TUNABLES in the environment is somebody's choice, which stays.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that it takes
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_ARENA_MAX, 1)  # of other arenas, none is kept


class DeviceMemoryError(RuntimeError):
    """A device has no room for what a setting asks of it at once; the message names the setting."""


@contextmanager
def within_memory(setting: str, value: int) -> Iterator[None]:
    """Where a device runs out of memory inside of the block, say which setting to lower. Raises DeviceMemoryError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise DeviceMemoryError(
            f"the device has no room for {setting} = {value} ({str(error).splitlines()[0]}): lower it, and what it "
            "decides on begins anew, or leave the device to fewer processes, and the same command resumes from here; "
            "nothing committed is lost"
        ) from error


def _allow_tf32(allowed: bool) -> None:
    """Set both of PyTorch's interfaces to the same: it refuses to read the older one where they differ."""
    with _older_interface():
        torch.set_float32_matmul_precision("highest")  # on CPUs too, where "medium" means bfloat16
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    on_gpus, on_cpus = _newer_interface()
    for products in on_gpus:
        products.fp32_precision = "tf32" if allowed else "ieee"
    for products in on_cpus:
        products.fp32_precision = "ieee"


@contextmanager
def _restored() -> Iterator[None]:
    """PyTorch's settings behind the block are those before it."""
    threads = torch.get_num_threads()
    cudnn: Any = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    algorithms = _algorithms()
    matmul, convolutions = _readable(torch.get_float32_matmul_precision), _readable(lambda: cudnn.allow_tf32)
    newer = [(products, products.fp32_precision) for side in _newer_interface() for products in side]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        if _algorithms() != algorithms:  # the call imports PyTorch's compiler, which takes seconds
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        with _older_interface():
            if matmul is not None:
                torch.set_float32_matmul_precision(matmul)
            if convolutions is not None:
                cudnn.allow_tf32 = convolutions
        for products, precision in newer:
            products.fp32_precision = precision


def _algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _readable(setting: Callable[[], Value]) -> Value | None:
    """A setting of the older interface; None where the newer one was used so that PyTorch refuses to tell it."""
    with _older_interface(), suppress(RuntimeError):
        return setting()
    return None


@contextmanager
def _older_interface() -> Iterator[None]:
    """Some versions of PyTorch warn of it, once a process; it is the only one that all of them have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _newer_interface() -> tuple[list[Any], list[Any]]:
    """What has a precision of its own on GPUs, and on CPUs, from PyTorch 2.9 on."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return [], []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn], [
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
