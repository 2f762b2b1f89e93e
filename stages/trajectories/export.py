"""Stored trajectories in formats that need no reader of ours: a Zarr group, an NPZ file, or PNGs with a table.

Each holds, for every segment: ``image`` and ``state`` (float32 in [0, 1], bit for bit what the model was given; PNGs
are rounded to 8 bits), ``label``, ``row`` (of the data set), and what the ledger says of its shard: ``round`` and
``unit``, ``cohort`` and its ``visit``, ``version`` (of the attacked weights).
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from PIL import Image

from stages.trajectories.dataset import TrajectoryDataset

TOGETHER = 1024  # segments that are decoded and written at once
LEDGER = ("round", "unit", "cohort", "visit", "version")

Rows = dict[str, np.ndarray]
Write = Callable[[int, Rows], None]


def export(data: TrajectoryDataset, place: Path, *, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write a data set's items to ``place``, by its name: NAME.zarr, NAME.npz, or a folder of PNGs with table.parquet.

    What is there appears whole or not at all. ``progress`` gets the number of items that are written. Raises ValueError
    where there is something already, nothing to write, or the images fit no PNG.
    """
    if place.exists():
        raise ValueError(f"{place} is there already: name something new, or remove it")
    if not len(data):
        raise ValueError("no segment fits: ask for other rounds, classes or states")
    write = {".zarr": _zarr, ".npz": _npz}.get(place.suffix.lower(), _png)
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        finished = write(data, partial, progress)
        finished.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _batches(data: TrajectoryDataset, progress: Callable[[int], None]) -> Iterator[tuple[slice, Rows]]:
    columns = {name: data.shards[name].to_numpy() for name in LEDGER}
    for first in range(0, len(data), TOGETHER):
        items = range(first, min(first + TOGETHER, len(data)))
        found, shards = data.__getitems__(items), data.shard_of(items)
        yield (
            slice(items.start, items.stop),
            {
                "image": np.stack([each.image.numpy() for each in found]),
                "state": np.stack([each.state.numpy() for each in found]),
                "label": np.array([each.label for each in found]),
                "row": np.array([each.row for each in found]),
                **{name: values[shards] for name, values in columns.items()},
            },
        )
        progress(items.stop)


def _zarr(data: TrajectoryDataset, folder: Path, progress: Callable[[int], None]) -> Path:
    group, arrays = zarr.create_group(folder / "group"), {}
    for part, rows in _batches(data, progress):
        for name, values in rows.items():
            if name not in arrays:
                shape, chunks = (len(data), *values.shape[1:]), (TOGETHER, *values.shape[1:])
                arrays[name] = group.create_array(name, shape=shape, chunks=chunks, dtype=values.dtype)
            arrays[name][part] = values
    return folder / "group"


def _npz(data: TrajectoryDataset, folder: Path, progress: Callable[[int], None]) -> Path:
    """Through files of their own, since all of it may not fit into memory."""
    arrays: dict[str, np.ndarray] = {}
    for part, rows in _batches(data, progress):
        for name, values in rows.items():
            if name not in arrays:
                file, shape = folder / f"{name}.npy", (len(data), *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=values.dtype, shape=shape)
            arrays[name][part] = values
    names = list(arrays)
    arrays.clear()  # which writes them out
    with zipfile.ZipFile(folder / "all.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / f"{name}.npy", f"{name}.npy")
    return folder / "all.npz"


def _png(data: TrajectoryDataset, folder: Path, progress: Callable[[int], None]) -> Path:
    shape = tuple(data[0].state.shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"states of shape {shape} make no PNG: ask for one state of images of 1 or 3 channels, or zarr"
        )
    whole = folder / "whole"
    for kind in ("image", "state"):
        (whole / kind).mkdir(parents=True)
    with pq.ParquetWriter(whole / "table.parquet", _TABLE) as table:
        for part, rows in _batches(data, progress):
            files = [f"{number:07}.png" for number in range(part.start, part.stop)]
            for kind in ("image", "state"):
                for file, pixels in zip(files, _bytes(rows[kind]), strict=True):
                    Image.fromarray(pixels).save(whole / kind / file)
            columns = {name: rows[name] for name in ("label", "row", *LEDGER)}
            table.write_table(pa.table({"file": files, **columns}, schema=_TABLE))
    return whole


_TABLE = pa.schema([("file", pa.string()), *((name, pa.int64()) for name in ("label", "row", *LEDGER))])


def _bytes(images: np.ndarray) -> np.ndarray:
    """Images [n, C, H, W] in [0, 1] as Pillow takes them: [n, H, W] or [n, H, W, 3] of 8 bits."""
    pixels = np.rint(images * 255).astype(np.uint8)
    return pixels[:, 0] if images.shape[1] == 1 else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
