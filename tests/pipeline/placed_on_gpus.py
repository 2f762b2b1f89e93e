"""Places loops on the logical GPUs of a Ray of its own, and waits until every actor has started.

Run as a program by test_placement.py: Ray counts GPUs without looking for any.
"""

import sys
from dataclasses import replace

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.pool import Pool
from cluster.session import describe, session
from pipeline.flags import WorkersConfig
from pipeline.placement import divide
from pipeline.presets import PRESETS


class Placed:
    """A generator that says which GPU it was given."""

    def gpu(self, number: int) -> str:
        return str(ray.get_gpu_ids())


def place(trainers: int) -> str:
    """Starts generators before the train workers' group, which is the worse order for whoever needs whole GPUs."""
    digits = PRESETS["digits"]()
    recipe = replace(
        digits,
        train=replace(digits.train, workers=trainers),
        schedule=replace(digits.schedule, round_cohorts=8),
    )
    loop = divide(describe(), WorkersConfig(), recipe).loop
    with Pool(
        Placed, size=loop.generators, cpus=loop.generator_cpus, gpus=loop.generator_gpus, max_in_flight=1, name="g"
    ) as pool:
        dict(pool.map("gpu", range(4 * loop.generators)))
        group = placement_group([{"CPU": loop.trainer_cpus, "GPU": loop.trainer_gpus}] * trainers)
        ready = group.wait(60)
        remove_placement_group(group)
    return f"{loop.generators} generators, {trainers} train workers: {'placed' if ready else 'waits'}"


if __name__ == "__main__":
    gpus = int(sys.argv[1])
    ray.init(address="local", num_cpus=4, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    with session():
        for trainers in map(int, sys.argv[2:]):
            print(place(trainers), flush=True)
