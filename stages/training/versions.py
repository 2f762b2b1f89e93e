"""Weights versions: v_r, the trained weights before round r, published whole or not at all.

RUN/versions/<r>/weights.safetensors and manifest.json, renamed into place together. Once published, a
version never changes: whoever makes it again must make the same bytes. Manifests stay, since units are named by
them; weights that no round can ask for any more may be removed.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.fingerprint import file_sha256, weights_fingerprint
from stages.weights import save_weights


class VersionMismatchError(RuntimeError):
    """A version that was made again and came out differently, or whose file is not what was published."""


class Versions:
    """The published versions of a run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[int, str] = {}

    def fingerprint(self, number: int) -> str | None:
        """The fingerprint of a version's weights, or None while it is not published."""
        if number not in self._known:
            try:
                manifest = json.loads((self.directory / str(number) / "manifest.json").read_text())
            except FileNotFoundError:
                return None
            self._known[number] = manifest["fingerprint"]
        return self._known[number]

    def fingerprints(self, last: int) -> list[str]:
        """The fingerprints of v_0 .. v_last; raises LookupError where one is not published."""
        found = [self.fingerprint(number) for number in range(last + 1)]
        if None in found:
            raise LookupError(f"version {found.index(None)} is not published in {self.directory}")
        return [fingerprint for fingerprint in found if fingerprint]

    def publish(self, number: int, weights: dict[str, Tensor]) -> str:
        """Publish v_number and return its fingerprint.

        Raises VersionMismatchError where it is published with other weights, which happens when an interrupted
        round is repeated on another type of CPU or with another number of threads.
        """
        fingerprint = weights_fingerprint(weights)
        published = self.fingerprint(number)
        if published is not None:
            if published != fingerprint:
                raise VersionMismatchError(
                    f"round {number - 1} was repeated and gave weights {fingerprint}, but version {number} in "
                    f"{self.directory} was published as {published}. Resume on the same type of CPU or GPU with the "
                    "same number of threads and the same package versions, or start anew under another --name"
                )
            return fingerprint
        temporary = self.directory / f".{number}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        path = temporary / "weights.safetensors"
        save_weights(weights, path)
        manifest = {
            "version": number,
            "fingerprint": fingerprint,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        temporary.rename(self.directory / str(number))
        return fingerprint

    def holds(self, number: int) -> bool:
        """Whether the weights of a version are there."""
        return (self.directory / str(number) / "weights.safetensors").exists()

    def prune(self, first: int) -> None:
        """Remove the weights of all versions before one; their manifests stay."""
        for number in range(first - 1, -1, -1):
            if not self.holds(number):  # the rest was removed before
                return
            (self.directory / str(number) / "weights.safetensors").unlink()

    def load(self, number: int) -> dict[str, Tensor]:
        """The weights of a published version. Raises VersionMismatchError where the file was changed."""
        path = self.directory / str(number) / "weights.safetensors"
        if self.fingerprint(number) is not None and not self.holds(number):
            raise VersionMismatchError(
                f"{path} is not there: its round lies before the replay window, and old weights are removed unless a "
                "run is called with --keep-versions"
            )
        try:
            weights = load_file(path)
        except SafetensorError:
            weights = {}
        if weights_fingerprint(weights) != self.fingerprint(number):
            raise VersionMismatchError(
                f"{path} does not hold the weights {self.fingerprint(number)} that were published: the file was "
                "changed. Restore it, or start anew under another --name"
            )
        return weights
