"""`python -m tests.benchmarks NAME [--flags]`: what measures, by name.

A name is that of a file here, such as time-to-robustness; `python tests/benchmarks/time_to_robustness.py` is the same.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    names = sorted(path.stem.replace("_", "-") for path in HERE.glob("[a-z]*.py") if not path.stem.startswith("test_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m tests.benchmarks NAME [--flags]; NAME is one of {', '.join(names)}")
    sys.path.insert(0, str(HERE))  # they import each other by name
    name = sys.argv.pop(1)
    runpy.run_path(str(HERE / f"{name.replace('-', '_')}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
