"""What a bare machine lacks, collected into one folder that can be carried there: wheels, and CIFAR-10 packed small."""

import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .packed import pack_cifar10

LIMIT = 64 * 2**20  # bytes; what tools for borrowed machines carry
THERE = ("torch", "numpy", "scipy")
PARTS = ("bench", "right", "fast", "robustness", "packed")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def prepare(folder: Path, *, python: str, there: Iterable[str]) -> None:
    """Collect into a folder; says what is in it, and warns where it is more than can be carried."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(closure(needed()) - closure([*THERE, *there]))
    for name in names:
        download(name, folder, python)
    for wheel in folder.glob("*.whl"):
        slim(wheel)
    print(f"{len(names)} packages for Python {python}: {', '.join(names)}")
    print(f"packed {pack(folder)}")
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {total / 2**20:.1f} MiB")
    if total > LIMIT:
        print(f"that is more than {LIMIT // 2**20} MiB: leave out what the machine has, with --there NAME ...")


def needed() -> set[str]:
    """The distributions that the parts of this benchmark import, and Pillow, which reads the packed images."""
    program = (
        "import importlib, json, sys; "
        f"[importlib.import_module('gpu_parts.' + part) for part in {PARTS!r}]; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    here = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parents[1])!r}]; {program}"],
        check=True,
        capture_output=True,
        text=True,
    )
    owners = importlib.metadata.packages_distributions()
    found = {plain(name) for module in json.loads(ended.stdout) for name in owners.get(module, ())}
    return (found | {"pillow"}) - {"rap-pipeline"}  # which travels as its checkout


def closure(names: Iterable[str]) -> set[str]:
    """Distributions with all that they require, as far as it is installed here; extras are left out."""
    found: set[str] = set()
    waiting = [plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform or Python
            continue
        found.add(name)
        waiting += [plain(re.split(r"[^\w.-]", each)[0]) for each in requires if "extra ==" not in each]
    return found


def plain(name: str) -> str:
    """A distribution's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download(name: str, folder: Path, python: str) -> None:
    """The wheel of the installed version for Linux on x86-64."""
    wanted = f"{name}=={importlib.metadata.version(name)}"
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    ended = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{wanted} has no wheel for Python {python}, or no index can be reached: {ended.stderr.strip()}")


def slim(wheel: Path) -> None:
    """Leave out the weights of networks that some packages bring as examples (pyautoattack: 42 MB)."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith((".pt", ".h5"))}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def pack(folder: Path) -> str:
    """CIFAR-10, as far as there is room beside the wheels; returns what to call it."""
    from stages.data.datasets import DataConfig, read_source

    source = read_source(DataConfig(name="cifar10"))
    images = np.concatenate([source.train.images, source.test.images])
    labels = np.concatenate([source.train.labels, source.test.labels])
    room = LIMIT - sum(file.stat().st_size for file in folder.glob("*.whl"))
    return pack_cifar10(folder, images, labels, name=source.name, room=room)
