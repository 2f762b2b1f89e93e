"""10,000 colour pictures of 224 pixels: how long it takes to read and to screen them, and in how much memory.

    python tests/benchmarks/large_images.py [--images 10000]

JPEG files of 250 x 250 pixels in ten folders, resized and cropped to 224 x 224, a fifth of them the test images. Read
by `load_data`, and by `python -m pipeline.evaluate --quick --images 2` of a model that costs nothing; each in a
process of its own, whose peak memory is given beside that after the imports. Writes results/large_images.json beside
this file.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from pipeline.evaluate import main as evaluate
from stages.data.datasets import DataConfig, load_data

RESULTS = Path(__file__).parent / "results" / "large_images.json"
CLASSES, SIDE, CROPPED = 10, 250, 224


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    found: dict[str, object] = {"images": count, "MB of their pixels": round(count * 3 * CROPPED**2 / 1e6)}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        write_pictures(Path(folder) / "pictures", count)
        for name, ask in {"read": read, "screen": screen}.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name] = pool.apply(_measured, (ask, Path(folder)))
            print(name, json.dumps(found[name]), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


def write_pictures(folder: Path, count: int) -> None:
    """Pictures of random blobs, as bright as their class."""
    random = np.random.default_rng(0)
    for number in range(count):
        label = number % CLASSES
        place = folder / f"class-{label}"
        place.mkdir(parents=True, exist_ok=True)
        blobs = random.integers(20 * label, 20 * label + 60, (16, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(blobs).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        picture.save(place / f"{number:06d}.jpg", quality=85)


class ByBrightness(nn.Module):
    """Tells those classes apart by the mean of all pixels."""

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image class"]:
        expected = (20 * torch.arange(CLASSES) + 29.5) / 255
        return -100 * (images.mean((1, 2, 3))[:, None] - expected) ** 2


def _measured(ask: Callable[[Path], None], folder: Path) -> dict:
    torch.set_num_threads(1)
    before, began, used = _peak(), time.perf_counter(), time.process_time()
    ask(folder)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "CPU seconds": round(time.process_time() - used, 1),
        "peak memory, MB": _peak(),
        "after imports, MB": before,
    }


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def read(folder: Path) -> None:
    load_data(DataConfig(name=f"imagefolder:{folder / 'pictures'}", image_size=(CROPPED,)))


def screen(folder: Path) -> None:
    flags = f"--data.image-size {CROPPED} --norm Linf --eps 8/255 --quick --images 2 --screening.seconds 1"
    place = ["--data", f"imagefolder:{folder / 'pictures'}", "--root", str(folder / "root")]
    if evaluate(["--model", "large_images:ByBrightness", *place, *flags.split()]):
        raise RuntimeError("the screening failed; what it printed above says why")


if __name__ == "__main__":
    main()
