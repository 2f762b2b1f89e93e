"""Weights versions: named by their bytes, and never changed."""

import pytest
import torch

from stages.fingerprint import weights_fingerprint
from stages.storage import Storage
from stages.training.versions import Version, VersionMismatchError, Versions

WEIGHTS = {"adapter.a": torch.arange(6.0).reshape(2, 3), "adapter.b": torch.tensor([1, 2])}
OTHER = {**WEIGHTS, "adapter.a": WEIGHTS["adapter.a"] + 1}


def test_a_kept_version_comes_back(tmp_path):
    versions = Versions(Storage.at(tmp_path))
    assert versions.find(0) is None
    versions.keep(Version.of(0, WEIGHTS))
    found = versions.find(0)
    assert found is not None
    assert found.fingerprint == weights_fingerprint(WEIGHTS)
    assert all(torch.equal(found.weights[key], value) for key, value in WEIGHTS.items())


def test_the_same_weights_make_the_same_file(tmp_path):
    for folder in ("one", "two"):
        Versions(Storage.at(tmp_path / folder)).keep(Version.of(3, dict(reversed(WEIGHTS.items()))))
    assert (tmp_path / "one/versions/3.safetensors").read_bytes() == (
        tmp_path / "two/versions/3.safetensors"
    ).read_bytes()


def test_a_version_that_comes_out_differently_is_refused(tmp_path):
    before, again = Version.of(3, WEIGHTS), Version.of(3, OTHER)
    before.check(None)
    before.check(before.fingerprint)
    with pytest.raises(
        VersionMismatchError, match=r"round 2 was repeated .* version 3 was published as " + before.fingerprint
    ):
        again.check(before.fingerprint)


@pytest.mark.parametrize("damage", ["flipped bit", "torn header", "truncated", "empty"])
def test_a_changed_file_is_named(damage, tmp_path):
    versions = Versions(Storage.at(tmp_path))
    versions.keep(Version.of(0, WEIGHTS))
    file = tmp_path / "versions" / "0.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[-3] ^= 1
    elif damage == "torn header":
        content[2] ^= 255
    else:
        content = content[: {"truncated": 40, "empty": 0}[damage]]
    file.write_bytes(bytes(content))
    with pytest.raises(VersionMismatchError, match=r"0\.safetensors does not hold the weights"):
        versions.find(0)
