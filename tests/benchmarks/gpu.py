"""What a GPU does with this project: one process, without Ray and without a network, in less than ten minutes.

    python tests/benchmarks/gpu.py --prepare DEST --python 3.12     # with a network: collects what a bare machine lacks
    python tests/benchmarks/gpu.py --prepared DEST --out OUT        # there, with PyTorch, NumPy and SciPy alone

Is it *right* (the GPU against the CPU)? How *fast* (attack steps and updates a second, against a bare loop and the
card's peak)? How *robust* does the preset cifar10-small become in so many seconds (the product's own loop, then the
judge and AutoAttack)? And, where asked for: how robust the *classifier* when it is trained adversarially as long, and
what torch.compile gives (*compiled*). Each part keeps to its own time and is written down as it ends, so that an early
end loses one part only. With --tiny all of it runs on a CPU, on made-up images, to see that it runs.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

ROOT = Path(__file__).parents[2]
SECONDS = {"right": 60.0, "fast": 90.0}
"""Time of the parts that measure; one that trains has the rest."""


def main() -> None:
    arguments = parse()
    sys.path.insert(0, str(ROOT))
    if arguments.prepare:
        from gpu_parts.prepare import prepare

        prepare(arguments.prepare, python=arguments.python, there=arguments.there)
        return
    scratch = Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        run(arguments, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def parse() -> argparse.Namespace:
    summary, *_ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parts = ["right", "fast", "robust", "classifier", "compiled"]
    parser.add_argument("--what", nargs="+", choices=parts, default=parts[:3], help="parts to run, in this order")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=550.0, help="time for all parts together")
    parser.add_argument("--budget", type=float, default=300.0, help="most seconds of adversarial training")
    parser.add_argument("--tiny", action="store_true", help="small networks and made-up images, on a CPU")
    parser.add_argument("--device", default="cuda", help="what computes; cpu with --tiny")
    parser.add_argument("--prepared", type=Path, metavar="DEST", help="what --prepare collected, to run with")
    parser.add_argument("--prepare", type=Path, metavar="DEST", help="collect packages and data there, and end")
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="version there")
    parser.add_argument("--there", nargs="*", default=[], metavar="NAME", help="more packages that are there anyway")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.device, arguments.budget = "cpu", min(arguments.budget, 5.0)
    return arguments


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    """The parts, one after the other; what fails is written down, and the next one goes on."""
    ends = time.perf_counter() + arguments.seconds
    if arguments.prepared:
        from gpu_parts.packed import unpack_packages

        sys.path.insert(1, str(unpack_packages(arguments.prepared, scratch)))
    from gpu_parts.bench import Bench, describe

    bench = Bench(
        device=arguments.device,
        tiny=arguments.tiny,
        scratch=scratch,
        prepared=arguments.prepared,
        budget=arguments.budget,
    )
    results: dict[str, Any] = {"command": sys.argv, "date": datetime.now(UTC).isoformat(), **describe(bench.device)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"gpu-{results['card'].replace(' ', '-').lower()}-{results['date'][:10]}.json"

    for name in arguments.what:

        def keep(found: dict[str, Any], name: str = name) -> None:
            results[name] = found
            file.write_text(json.dumps(results, indent=1) + "\n")

        began = time.perf_counter()
        deadline = min(ends, began + (SECONDS.get(name) or arguments.seconds))
        print(f"\n== {name}, at most {deadline - began:.0f} s", flush=True)
        found = attempt(part(name), bench, deadline, keep)
        keep({**results.get(name, {}), **found, "seconds": round(time.perf_counter() - began, 1)})
    print("\n" + "\n".join(line for name in arguments.what for line in results[name].get("table", [f"{name}: failed"])))
    print(f"\n{file}")
    if any("error" in results[name] for name in arguments.what):
        sys.exit(1)


def part(name: str) -> Callable[..., dict[str, Any]]:
    """A part by name, imported only now: what is missing for one of them is missing for it alone."""
    if name == "right":
        from gpu_parts.right import right

        return right
    if name == "fast":
        from gpu_parts.fast import WAYS, fast

        return partial(fast, ways=WAYS)
    if name == "compiled":
        from gpu_parts.fast import COMPILED, fast

        return partial(fast, ways=COMPILED)
    from gpu_parts.robustness import robust

    return partial(robust, what="classifier" if name == "classifier" else "adapter")


def attempt(
    work: Callable[..., dict[str, Any]], bench: "Bench", deadline: float, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What a part found, or how it failed."""
    try:
        return work(bench, deadline, keep)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc().splitlines()}


if __name__ == "__main__":
    main()
