"""The GPU benchmark runs where there is no GPU, and packs what it takes along without loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_parts.packed import ABOUT, BATCHES, pack_cifar10, unpack_cifar10

SCRIPT = Path(__file__).with_name("gpu.py")
LACKING = ("pyarrow", "ray", "zarr", "sklearn", "pooch", "rich", "tyro", "foolbox", "matplotlib", "pandas", "jinja2")
"""Packages of this project that a machine with PyTorch and what --prepare collects need not have."""


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_without_the_packages_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    for name in LACKING:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not here')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--tiny", "--seconds", "1000", "--budget", "1", "--out", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(file.read_text())
    checks = found["right"]["checks"]
    assert {name: each["right"] for name, each in checks.items()} == dict.fromkeys(checks, True)
    assert found["fast"]["pairs"]["ResNet-18, U-Net 11M"]["bfloat16"]["update"]["images_per_second"] > 0
    assert found["robust"]["autoattack"]["complete"]
    assert found["robust"]["judge"]["robust"]["images"] == 16
    assert ended.stdout.splitlines()[-1] == str(file)


@pytest.mark.parametrize(("room", "name"), [(2**20, "CIFAR-10"), (0, "CIFAR-10 (packed as JPEG q75)")])
def test_images_come_out_as_they_were_packed_or_say_that_they_do_not(tmp_path: Path, room: int, name: str) -> None:
    images = np.random.default_rng(0).integers(0, 120, (60, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(60) % 10
    assert pack_cifar10(tmp_path, images, labels, name="CIFAR-10", room=room) == name
    assert unpack_cifar10(tmp_path, tmp_path) == name
    content = b"".join((tmp_path / "cifar-10-batches-bin" / f"{batch}.bin").read_bytes() for batch in BATCHES)
    records = np.frombuffer(content, np.uint8).reshape(60, -1)
    assert records[:, 0].tolist() == labels.tolist()
    assert np.array_equal(records[:, 1:], images.reshape(60, -1)) == (room > 0)


def test_images_that_another_decoder_reads_otherwise_are_refused(tmp_path: Path) -> None:
    images = np.zeros((6, 3, 32, 32), np.uint8)
    pack_cifar10(tmp_path, images, np.zeros(6, np.int64), name="CIFAR-10", room=2**20)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "sha256": "0" * 64}))
    with pytest.raises(ValueError, match="use the Pillow that --prepare collected"):
        unpack_cifar10(tmp_path, tmp_path)
