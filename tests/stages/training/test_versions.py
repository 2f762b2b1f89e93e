"""Weights versions: published whole or not at all, and never changed."""

import os

import pytest
import torch

from stages.fingerprint import weights_fingerprint
from stages.training.versions import VersionMismatchError, Versions

WEIGHTS = {"adapter.a": torch.arange(6.0).reshape(2, 3), "adapter.b": torch.tensor([1, 2])}
OTHER = {**WEIGHTS, "adapter.a": WEIGHTS["adapter.a"] + 1}


def test_a_published_version_comes_back(tmp_path):
    versions = Versions(tmp_path)
    assert versions.fingerprint(0) is None
    name = versions.publish(0, WEIGHTS)
    assert name == weights_fingerprint(WEIGHTS) == versions.fingerprint(0) == Versions(tmp_path).fingerprint(0)
    loaded = Versions(tmp_path).load(0)
    assert all(torch.equal(loaded[key], value) for key, value in WEIGHTS.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0"]


def test_publishing_the_same_again_changes_nothing(tmp_path):
    Versions(tmp_path).publish(3, WEIGHTS)
    inode = (tmp_path / "3").stat().st_ino
    Versions(tmp_path).publish(3, WEIGHTS)
    assert (tmp_path / "3").stat().st_ino == inode


def test_a_version_that_comes_out_differently_is_refused_and_kept(tmp_path):
    name = Versions(tmp_path).publish(3, WEIGHTS)
    with pytest.raises(VersionMismatchError, match=r"round 2 was repeated .* version 3 .* published as " + name):
        Versions(tmp_path).publish(3, OTHER)
    assert Versions(tmp_path).fingerprint(3) == name


def test_what_a_killed_writer_left_is_no_version(tmp_path):
    (tmp_path / f".2.{os.getpid()}").mkdir()
    (tmp_path / f".2.{os.getpid()}" / "weights.safetensors").write_bytes(b"torn")
    assert Versions(tmp_path).fingerprint(2) is None
    Versions(tmp_path).publish(2, WEIGHTS)
    assert Versions(tmp_path).load(2).keys() == WEIGHTS.keys()


def test_weights_may_be_read_by_whoever_reads_the_folder(tmp_path):
    (tmp_path / "new").touch()
    Versions(tmp_path).publish(0, WEIGHTS)
    assert (tmp_path / "0/weights.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("damage", ["flipped bit", "torn header", "truncated", "empty", "other weights"])
def test_a_changed_file_is_named(damage, tmp_path):
    versions = Versions(tmp_path)
    versions.publish(0, WEIGHTS)
    file = tmp_path / "0" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[-3] ^= 1
    elif damage == "torn header":
        content[2] ^= 255
    elif damage == "other weights":
        Versions(tmp_path / "other").publish(0, OTHER)
        content = bytearray((tmp_path / "other/0/weights.safetensors").read_bytes())
    else:
        content = content[: {"truncated": 40, "empty": 0}[damage]]
    file.write_bytes(bytes(content))
    with pytest.raises(VersionMismatchError, match=r"0/weights\.safetensors does not hold the weights"):
        versions.load(0)


def test_all_fingerprints_up_to_a_version_or_the_first_that_is_missing(tmp_path):
    versions = Versions(tmp_path)
    names = [versions.publish(number, weights) for number, weights in ((0, WEIGHTS), (1, OTHER))]
    assert versions.fingerprints(1) == names
    versions.publish(3, WEIGHTS)
    with pytest.raises(LookupError, match="version 2 is not published"):
        versions.fingerprints(3)
