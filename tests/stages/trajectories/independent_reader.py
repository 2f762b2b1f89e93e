"""A reader of shards from stages/trajectories/README.md alone: NumPy, `zipfile` and `zlib`, no Zarr library."""

import io
import json
import zipfile
import zlib

import numpy as np

MASK = 2**64 - 1


def splitmix64(value: int) -> int:
    """One output of splitmix64 (Steele, Lea & Flood, 2014), in Python's integers."""
    mixed = (value + 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def read_arrays(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """All arrays of an archive, and the group's attributes."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    arrays = {}
    for name in archive.namelist():
        if name.endswith("/zarr.json"):
            document, array = json.loads(archive.read(name)), name.removesuffix("/zarr.json")
            chunks = sorted(
                (int(key.split("/")[2]), key) for key in archive.namelist() if key.startswith(f"{array}/c/")
            )
            content = b"".join(zlib.decompress(archive.read(key), 31) for _, key in chunks)
            shape, kind = document["shape"], np.dtype(document["data_type"]).newbyteorder("<")
            arrays[array] = np.frombuffer(content, kind)[: int(np.prod(shape))].reshape(shape)
    return arrays, json.loads(archive.read("zarr.json"))["attributes"]


def read_states(content: bytes, images: np.ndarray) -> np.ndarray:
    """Float32 states [n, k + 1, C, H, W] of a shard; ``images`` are the clean uint8 images [n, C, H, W]."""
    arrays, attributes = read_arrays(content)
    process, n, k = attributes["process"], attributes["segments"], attributes["steps"]
    clean = images.reshape(n, -1).astype(np.int64) * (process["denominator"] // 255)
    if process["norm"] == "L2":
        levels = add_up(join_bits(arrays["delta"], (n, k + 1, clean.shape[1])), clean)
    else:
        levels = replay(arrays, attributes, clean)
    states = levels.astype(np.float32) / np.float32(process["denominator"])
    return states.reshape(n, k + 1, *attributes["shape"])


def join_bits(planes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Numbers from planes [n, bit, byte] of their bits."""
    count = shape[1] * shape[2]
    numbers = sum(bits(planes[:, bit], count) << bit for bit in range(planes.shape[1]))
    return np.asarray(numbers).reshape(shape)


def add_up(folded: np.ndarray, clean: np.ndarray) -> np.ndarray:
    change = (folded >> 1) ^ -(folded & 1)
    x, step = clean + change[:, 0], np.zeros_like(clean)
    states = [x]
    for j in range(1, change.shape[1]):
        step = step + change[:, j]
        x = x + step
        states.append(x)
    return np.stack(states, axis=1)


def replay(arrays: dict[str, np.ndarray], attributes: dict, clean: np.ndarray) -> np.ndarray:
    process, pixels = attributes["process"], clean.shape[1]
    low, high = np.zeros_like(clean), np.full_like(clean, process["denominator"])
    if process["project"]:
        low = np.maximum(low, clean - process["bound"])
        high = np.minimum(high, clean + process["bound"])
    if attributes["start"]["stored"]:
        start = arrays["start"].astype(np.int64)
    else:
        start = derive_start(attributes, arrays["index"], pixels)
    x = np.minimum(np.maximum(clean + start, low), high)
    s = z = np.zeros_like(arrays["signs"][:, 0])
    states = [x]
    for step in range(attributes["steps"]):
        s, z = s ^ arrays["signs"][:, step], z ^ arrays["nonzero"][:, step]
        move = process["step"] * (2 * bits(s, pixels) - 1) * bits(z, pixels)
        x = np.minimum(np.maximum(x + move, low), high)
        states.append(x)
    return np.stack(states, axis=1)


def bits(plane: np.ndarray, pixels: int) -> np.ndarray:
    """Bit j % 8 of byte j // 8, for each pixel j."""
    position = np.arange(pixels)
    return (plane[:, position // 8].astype(np.int64) >> (position % 8)) & 1


def derive_start(attributes: dict, index: np.ndarray, pixels: int) -> np.ndarray:
    seed, noise = int(attributes["start"]["seed"]), attributes["process"]["noise"]
    start = np.empty((len(index), pixels), np.int64)
    for position, row in enumerate(index.tolist()):
        stream = splitmix64((seed + row) & MASK)
        for pixel in range(pixels):
            start[position, pixel] = splitmix64((stream + pixel) & MASK) % (2 * noise + 1) - noise
    return start
