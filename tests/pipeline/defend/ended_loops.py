"""The loop of the tests on a Ray of its own, in a process that prints each round, to be killed or stopped."""

import sys

from loops import longer, loop_workers, setups

from cluster.session import session
from pipeline.defend.loop import run_loop
from pipeline.exits import conduct
from pipeline.progress import Say

ROOT, ROUNDS = sys.argv[1:]


def looped(say: Say) -> str:
    """The whole loop."""
    setup = longer(setups()(ROOT), int(ROUNDS))
    with session(cpus=2):
        made = run_loop(setup, loop_workers(1), progress=lambda line: print(line["round"], flush=True))
    return f"{made} shards"


if __name__ == "__main__":
    sys.exit(conduct(looped, root=ROOT))
