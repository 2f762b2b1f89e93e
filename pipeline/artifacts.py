"""Artifacts: what a stage makes, under the fingerprint of what determines it, whole or not at all.

ROOT/store/<kind>/<fingerprint>/ holds an artifact's files and its manifest.json, which is written last. Nothing marks
"started": what has no manifest is not there.
"""

import getpass
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

from stages.fingerprint import canonical
from stages.storage import Storage
from stages.storage_errors import StorageError

JOB_COPY = "working_dir_files"  # the folder of Ray's in which `ray job submit --working-dir` unpacks its copy
BEGUN = "evaluating"
"""In the folder of a run or an evaluation from before its first attack until its results are written: until then, older
results that are there do not name all receipts that it needs."""
LONGEST_NAME = 255  # bytes, of file systems
PACKAGES = ("torch", "ray", "numpy", "zarr", "pyautoattack")


class ArtifactError(RuntimeError):
    """An artifact whose files are not those of its manifest."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact."""

    storage: Storage
    """Its files."""
    manifest: dict

    @property
    def path(self) -> str:
        """Where it lies."""
        return str(self.storage)

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def metrics(self) -> dict:
        return self.manifest["metrics"]

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises ArtifactError where they are not those that were written."""
        content, expected = self.storage.find(name), self.manifest["outputs"][name]
        found = "no such file" if content is None else _listed(content)
        if content is None or found != expected:
            raise ArtifactError(_damage(self.storage, name, str(found), str(expected)))
        return content


def usable_root(named: str | Path, setting: str = "--root") -> Storage:
    """The storage of a root, which need not be there yet; ``setting`` is what whoever asks calls it.

    Raises StorageError where it cannot be written.
    """
    if not isinstance(named, str | Path) or not str(named).strip():
        raise StorageError(f"{setting} is {named!r}: name a directory, or a URL")
    try:
        root = Storage.at(named)
        if root.is_local and in_job_copy(Path(root.root)):
            raise StorageError(  # noqa: TRY301 - with the setting's name, as the others
                f"{named} lies in the copy of its working directory in which a job runs, and which Ray removes: give "
                "an absolute path on storage that every node sees, or a URL"
            )
        root.check()
    except StorageError as error:
        raise StorageError(f"{setting} {error}") from None
    return root


def check_name(name: str, kept: str, called: str = "--name") -> None:
    """Refuse, with where it is ``kept``, a --name that is no name of a directory everywhere. Raises ValueError."""
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or name != name.strip():
        raise ValueError(f"{called} {name!r} must be a plain name, without slashes, lines or spaces around it: {kept}")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"{called} has {len(name.encode())} bytes; at most {LONGEST_NAME} are a directory's: {kept}")


def in_job_copy(path: Path) -> bool:
    """Whether a path, if only because it is relative, lies where `ray job submit --working-dir` unpacks its copy."""
    return JOB_COPY in path.resolve().parts


def scratch(storage: Storage, name: str) -> Path:
    """A directory for the files of a library that knows nothing of ours: there, or for a bucket on this machine."""
    if storage.is_local:
        return storage.local(name)
    place = hashlib.sha256(storage.location(name).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"rap-{getpass.getuser()}" / place


class Store:
    """The artifacts below ROOT/store, shared by runs and searches."""

    def __init__(self, root: Storage | str | Path) -> None:
        self.storage = Storage.at(root).below("store")

    def get(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, checked against its manifest, or None where it was never completed.

        Raises ArtifactError where a file is missing or not what was written.
        """
        files = self.storage.below(f"{kind}/{fingerprint}")
        content = files.find("manifest.json")
        if content is None:
            return None
        try:
            manifest = json.loads(content)
            artifact, names = Artifact(files, manifest), list(manifest["outputs"])
            if manifest["sha256"] != _own_sum(manifest):
                raise ValueError("other content than its own sha256 says")  # noqa: TRY301 - one answer to all
        except (ValueError, KeyError, TypeError) as error:  # no JSON, or that of something else
            raise ArtifactError(
                _damage(files, "manifest.json", repr(error), "the manifest that was written")
            ) from error
        for name in names:
            artifact.read(name)
        return artifact

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

        Killed at any moment, this leaves no manifest under the artifact's name; made twice at once, the first stays.
        """
        existing = self.get(kind, fingerprint)
        if existing is not None:
            return existing
        files, began = self.storage.below(f"{kind}/{fingerprint}"), time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="rap-") as made:
            metrics = write(Path(made))
            outputs = {
                file.relative_to(made).as_posix(): file.read_bytes()
                for file in sorted(Path(made).rglob("*"))
                if file.is_file()
            }
        manifest = {
            "name": f"{kind}/{fingerprint}",
            "version": 1,
            "kind": kind,
            "fingerprint": fingerprint,
            "config": canonical(config),
            "inputs": dict(inputs),
            "outputs": {name: _listed(content) for name, content in outputs.items()},
            "metrics": metrics,
            "provenance": provenance(device, time.perf_counter() - began),
        }
        manifest = json.loads(json.dumps(manifest))  # as it will be read
        manifest["sha256"] = _own_sum(manifest)
        first = self.get(kind, fingerprint)
        if first is not None:  # another was faster; its files may not be ours to the bit
            return first
        for name, content in outputs.items():
            files.put(name, content)
        files.put("manifest.json", json.dumps(manifest, indent=1).encode())
        return Artifact(files, manifest)


def told(storage: Storage, name: str) -> dict:
    """What a JSON object of a run, a search or an evaluation says; nothing where it is not there, or cut short, as by a
    power cut."""
    try:
        found = json.loads(storage.find(name) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def manifest_at(place: str) -> dict:
    """The manifest of an artifact, by where it lies."""
    return json.loads(Storage.at(place).get("manifest.json"))


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


def _own_sum(manifest: dict) -> str:
    """sha256 of a manifest but for this sum itself."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _listed(content: bytes) -> dict[str, object]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _damage(files: Storage, name: str, found: str, expected: str) -> str:
    return (
        f"{files}: {name}: found {found}, expected {expected}; the artifact is damaged and was not used. "
        f"Remove {files} and run the same command again to make it anew"
    )
