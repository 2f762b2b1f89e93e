"""Artifacts: what a stage makes, under the fingerprint of what determines it, whole or not at all.

ROOT/store/<kind>/<fingerprint>/ holds an artifact's files and its manifest.json, which is written last;
the directory is renamed into place. Nothing marks "started": what has no manifest is not there.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

from stages.fingerprint import canonical, file_sha256

JOB_COPY = "working_dir_files"  # the folder of Ray's in which `ray job submit --working-dir` unpacks its copy
PACKAGES = ("torch", "ray", "numpy", "zarr", "pyautoattack")


class ArtifactError(RuntimeError):
    """An artifact whose files are not those of its manifest."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: dict

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def metrics(self) -> dict:
        return self.manifest["metrics"]


def usable_root(named: str | Path) -> Path:
    """The absolute path of a root, which need not be there yet. Raises ValueError where it cannot be written."""
    given = Path(named).expanduser()
    if not given.is_absolute() and JOB_COPY in Path.cwd().parts:
        raise ValueError(
            f"--root {given} is relative, and a job with a working directory runs in a copy that Ray removes: "
            "give an absolute path on storage that every node sees"
        )
    root = given.absolute()
    found = next(each for each in (root, *root.parents) if each.exists())
    if not found.is_dir():
        raise ValueError(f"--root {root}: {found} is a file; name a directory, which is made when it is not there")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"--root {root} cannot be written: {found} does not allow it; name another directory")
    return root


class Store:
    """The artifacts below ROOT/store, shared by runs and searches."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "store"

    def get(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, checked against its manifest, or None where it was never completed.

        Raises ArtifactError where a file is missing or not what was written.
        """
        path = self.directory / kind / fingerprint
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ArtifactError(_damage(path, "manifest.json", str(error), "the manifest that was written")) from error
        for name, expected in manifest["outputs"].items():
            file = path / name
            found = {"bytes": file.stat().st_size, "sha256": file_sha256(file)} if file.exists() else "no such file"
            if found != expected:
                raise ArtifactError(_damage(path, name, str(found), str(expected)))
        return Artifact(path, manifest)

    def make(
        self,
        kind: str,
        fingerprint: str,
        write: Callable[[Path], dict],
        *,
        config: object,
        inputs: Mapping[str, str],
        device: str = "cpu",
    ) -> Artifact:
        """The artifact, made by ``write(directory) -> metrics`` where it is not there yet.

        Killed at any moment, this leaves nothing under the artifact's name; made twice at once, the first stays.
        """
        existing = self.get(kind, fingerprint)
        if existing is not None:
            return existing
        target = self.directory / kind / fingerprint
        temporary = target.with_name(f".{fingerprint}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        began = time.perf_counter()
        try:
            metrics = write(temporary)
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            manifest = {
                "name": f"{kind}/{fingerprint}",
                "version": 1,
                "kind": kind,
                "fingerprint": fingerprint,
                "config": canonical(config),
                "inputs": dict(inputs),
                "outputs": {
                    str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                    for file in files
                },
                "metrics": metrics,
                "provenance": provenance(device, time.perf_counter() - began),
            }
            _write_durably(temporary / "manifest.json", json.dumps(manifest, indent=1))
            if not target.exists():
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Artifact(target, manifest)


def provenance(device: str, seconds: float) -> dict:
    """Where, when and by what something was made."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
    }


@lru_cache
def _commit() -> str | None:
    """The commit of the source tree that runs, "+changes" where it differs from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes.stdout else "")


@lru_cache
def _processor() -> str:
    """The processor's name, since results are equal to the bit on one type of CPU only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _damage(path: Path, name: str, found: str, expected: str) -> str:
    return (
        f"{path}: {name}: found {found}, expected {expected}; the artifact is damaged and was not used. "
        f"Remove the directory {path} and run the same command again to make it anew"
    )
