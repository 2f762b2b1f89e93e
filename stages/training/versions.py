"""Weights versions: v_r, the trained weights before round r, named by the hash of their bytes.

A checkpoint holds those that the next rounds attack; with --keep-versions every one stays, in RUN/versions.
"""

from dataclasses import dataclass

from torch import Tensor

from stages.fingerprint import weights_fingerprint
from stages.storage import Storage
from stages.weights import pack_weights, unpack_weights


class VersionMismatchError(RuntimeError):
    """Weights that were made again and came out differently, or whose file is not what was written."""


@dataclass(frozen=True, eq=False)
class Version:
    """The weights before a round, on the CPU."""

    number: int
    fingerprint: str
    weights: dict[str, Tensor]

    @staticmethod
    def of(number: int, weights: dict[str, Tensor]) -> "Version":
        """A version with its name, of weights without gradients."""
        local = {name: value.cpu() for name, value in weights.items()}
        return Version(number, weights_fingerprint(local), local)

    def check(self, published: str | None) -> None:
        """Raise VersionMismatchError where the round before was repeated and published something else before."""
        if published not in (None, self.fingerprint):
            raise VersionMismatchError(
                f"round {self.number - 1} was repeated and gave weights {self.fingerprint}, but version {self.number} "
                f"was published as {published}. Resume on the same type of CPU with the same number of threads and the "
                "same package versions, or start anew under another --name"
            )


class Versions:
    """The kept versions of a run."""

    def __init__(self, run: Storage) -> None:
        self.storage = run.below("versions")

    def keep(self, version: Version) -> None:
        """Write a version."""
        self.storage.put(_key(version.number), pack_weights(version.weights, {"fingerprint": version.fingerprint}))

    def numbers(self) -> list[int]:
        """The versions that are there, in order."""
        names = (name.removesuffix(".safetensors") for name in self.storage.names() if name.endswith(".safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())

    def find(self, number: int) -> Version | None:
        """A version, None where it was not kept. Raises VersionMismatchError where its file was changed."""
        content = self.storage.find(_key(number))
        return None if content is None else checked_version(number, content, self.storage.location(_key(number)))


def checked_version(number: int, content: bytes, place: str) -> Version:
    """The version in a file of weights with their fingerprint. Raises VersionMismatchError where it was changed."""
    try:
        weights, metadata = unpack_weights(content)
    except ValueError:
        weights, metadata = {}, {}
    version = Version.of(number, weights)
    if metadata.get("fingerprint") != version.fingerprint:
        raise VersionMismatchError(
            f"{place} does not hold the weights {metadata.get('fingerprint')} that were written: the file was changed. "
            "Restore it, or start anew under another --name"
        )
    return version


def _key(number: int) -> str:
    return f"{number}.safetensors"
