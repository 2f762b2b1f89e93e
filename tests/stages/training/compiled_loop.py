"""A program that runs a loop as it is and with compiled networks, into ROOT/plain and ROOT/compiled.

The backend runs what was traced, operation by operation: it takes no compiler and gives equal bits. It runs in a
process of its own, since what checks shapes in tests cannot be traced.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tiny_runs import SCHEDULE, loop_config, setup_of

from stages.training.rounds import run_serially

if __name__ == "__main__":
    root, norm = sys.argv[1:]
    torch.compile = partial(torch.compile, backend="eager")
    config = loop_config(norm, schedule=replace(SCHEDULE, rounds=2))
    train, attack = replace(config.train, compiled=True), replace(config.attack, compiled=True)
    for name, each in (("plain", config), ("compiled", replace(config, train=train, attack=attack))):
        setup = setup_of(Path(root) / name, each)
        run_serially(setup)
        networks = setup.build_faster(each.attack).children()
        assert {network._compiled_call_impl is not None for network in networks} == {name == "compiled"}
