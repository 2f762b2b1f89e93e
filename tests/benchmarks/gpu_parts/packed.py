"""CIFAR-10 and packages in one folder that is small enough to be carried, unpacked where there is no network.

An image is kept as a JPEG and what that lost. Of images that went through JPEG before, little is lost. The original
loses more: where that has no room it is left out, and everything that is measured on such images says so.
"""

import hashlib
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np

JPEGS, REST, ABOUT = "cifar10-jpegs.xz", "cifar10-rest.xz", "cifar10.json"
QUALITY = 75
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def unpack_packages(folder: Path, scratch: Path) -> Path:
    """A folder to import from, with the contents of the wheels."""
    site = scratch / "site"
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return site


def pack_cifar10(folder: Path, images: np.ndarray, labels: np.ndarray, *, name: str, room: int) -> str:
    """Pack images [image, channel, height, width] and their labels, the test images last; returns what to call them."""
    pixels = images.transpose(0, 2, 3, 1)
    jpegs = [_to_jpeg(image) for image in pixels]
    rest = np.stack([image.astype(np.int16) - _from_jpeg(jpeg) for image, jpeg in zip(pixels, jpegs, strict=True)])
    packed = lzma.compress(b"".join(len(jpeg).to_bytes(4, "little") + jpeg for jpeg in jpegs))
    differences = lzma.compress(rest.astype(np.int8).tobytes())
    whole = bool(abs(rest).max() < 128) and len(packed) + len(differences) < room
    (folder / JPEGS).write_bytes(packed)
    if whole:
        (folder / REST).write_bytes(differences)
    about = {
        "name": name if whole else f"{name} (packed as JPEG q{QUALITY})",
        "labels": labels.tolist(),
        "sha256": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest() if whole else None,
    }
    (folder / ABOUT).write_text(json.dumps(about))
    return about["name"]


def unpack_cifar10(folder: Path, root: Path) -> str:
    """Write what was packed in CIFAR-10's binary layout below a root; returns what to call it.

    Raises ValueError where images that were packed to the bit come out otherwise, as from another JPEG decoder.
    """
    about = json.loads((folder / ABOUT).read_text())
    raw, at, images = memoryview(lzma.decompress((folder / JPEGS).read_bytes())), 0, []
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        images.append(_from_jpeg(bytes(raw[at + 4 : at + 4 + size])))
        at += 4 + size
    pixels = np.stack(images)
    if (rest := folder / REST).exists():
        pixels += np.frombuffer(lzma.decompress(rest.read_bytes()), np.int8).reshape(pixels.shape)
    pixels = pixels.astype(np.uint8)
    if about["sha256"] and hashlib.sha256(pixels.data).hexdigest() != about["sha256"]:
        raise ValueError("CIFAR-10 did not come out as it was packed: use the Pillow that --prepare collected")
    labels = np.array(about["labels"], np.uint8)
    records = np.concatenate([labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)], 1)
    (root / "cifar-10-batches-bin").mkdir(parents=True, exist_ok=True)
    for name, part in zip(BATCHES, np.split(records, len(BATCHES)), strict=True):
        (root / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(part.tobytes())
    return about["name"]


def _to_jpeg(image: np.ndarray) -> bytes:
    """A JPEG of an image [height, width, channel]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _from_jpeg(jpeg: bytes) -> np.ndarray:
    """The pixels of a JPEG, as int16, so that differences can be taken."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(np.int16)
