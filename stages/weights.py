"""Weights in a file that whoever may read the folder may read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of any new file there.

    Left to itself the library gives them to the file's owner alone, whom another node of a cluster may not be.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path, metadata)
    path.chmod(mode)
