"""The settings under which a process computes: inside of a block as it says, and behind it as they were."""

import doctest
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from stages import numerics
from stages.numerics import Arithmetic, DeviceMemoryError, verdict, within_memory

BACKENDS: Any = torch.backends


def settings() -> dict[str, object]:
    """Everything that `stages.numerics` touches; None where PyTorch refuses to tell."""
    backends, found = BACKENDS, {}
    for name, read in {
        "matmul": torch.get_float32_matmul_precision,
        "cuDNN": lambda: backends.cudnn.allow_tf32,
        "newer": lambda: [products.fp32_precision for side in numerics._newer_interface() for products in side],
        "benchmark": lambda: (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "algorithms": torch.are_deterministic_algorithms_enabled,
        "threads": torch.get_num_threads,
        "autocast": lambda: torch.is_autocast_enabled("cpu"),
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = None
    return found


def nothing() -> None:
    """The settings as PyTorch has them."""


def lower_products() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.benchmark = True


def newer_interface() -> None:
    if not hasattr(BACKENDS.cudnn, "conv"):
        pytest.skip("PyTorch before 2.9 has one interface only")
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.cudnn.conv.fp32_precision = "tf32"


def mixed_interfaces() -> None:
    newer_interface()
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def _as_it_was():
    with numerics._restored():
        yield


@pytest.mark.parametrize("users", [nothing, lower_products, newer_interface, mixed_interfaces])
@pytest.mark.parametrize(
    "block",
    [
        lambda: verdict(threads=2),
        lambda: Arithmetic(precision="tf32", threads=2).applied(),
        lambda: Arithmetic(deterministic=True).applied(),
    ],
    ids=["verdict", "tf32", "deterministic"],
)
def test_the_users_settings_are_theirs_again_behind_a_block(users, block):
    users()
    before = settings()
    with block():
        assert settings() != before
    # what nobody could read before may well be readable now
    assert all(settings()[name] == value for name, value in before.items() if value is not None)


@pytest.mark.parametrize("users", [nothing, lower_products, newer_interface, mixed_interfaces])
def test_a_verdict_is_made_in_full_float32_whatever_the_process_had(users):
    users()
    with torch.autocast("cpu", torch.bfloat16), Arithmetic(precision="tf32").applied(), verdict(threads=1):
        found = settings()
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    assert found == {
        "matmul": "highest",
        "cuDNN": False,
        "newer": ["ieee"] * len(found["newer"]),  # pyright: ignore[reportArgumentType]
        "benchmark": (False, True),
        "algorithms": False,
        "threads": 1,
        "autocast": False,
    }


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tf32_is_allowed_where_it_is_asked_for_only(precision, tf32):
    with Arithmetic(precision=precision).applied():
        assert (BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32) == (tf32, tf32)


def test_bfloat16_is_for_networks_inside_its_block():
    weights, images = torch.ones(2, 2), torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Arithmetic(precision=precision).autocast(images.device):  # pyright: ignore[reportArgumentType]
            assert (images @ weights).dtype == dtype


def test_deterministic_algorithms_are_those_of_pytorch_and_of_cublas(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with Arithmetic(deterministic=True).applied():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (False, True)
        assert numerics.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with Arithmetic().applied():
        assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (True, False)


def test_settings_are_restored_behind_an_error():
    before = settings()
    with pytest.raises(ValueError, match="wrong"), verdict(threads=2):
        raise ValueError("wrong")
    assert settings() == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_a_device_without_room_names_the_setting_to_lower(error):
    said = r"no room for attack\.batch = 512 \(.*allocate.*\): lower it"
    with pytest.raises(DeviceMemoryError, match=said), within_memory("attack.batch", 512):
        raise error


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), within_memory("attack.batch", 512):
        raise RuntimeError("shapes differ")


def test_the_modules_example_runs():
    assert doctest.testmod(numerics).failed == 0


FREED = """
import resource
import torch
from stages.numerics import Arithmetic

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with Arithmetic().applied():
    before, new = faults(), 0
    for _ in range(60):
        torch.ones(2**21).add(1)  # 8 MB, twice: 4 pages of 2 MB each, or 2,048 of 4 KB
        new, before = new + (faults() - before >= 4), faults()
    print(new)
"""


@pytest.mark.parametrize(("chosen", "is_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_unless_somebody_has_chosen_otherwise(chosen, is_kept):
    """With it, the pages of the next tensor are there already; a small block kept in their midst costs one more."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("mallopt is glibc's")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FREED]
    done = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=True)
    times_of_60 = int(done.stdout)
    assert times_of_60 < 10 if is_kept else times_of_60 > 50
