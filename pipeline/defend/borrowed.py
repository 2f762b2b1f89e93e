"""`--train.from-cache RUN`: first weights from another run's committed shards, as an artifact with its caveat."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from cluster.pool import run_tasks
from cluster.refs import Ref, put
from pipeline.artifacts import Artifact, Store
from pipeline.delivery import named_setup
from pipeline.placement import Workers
from pipeline.progress import Say, passing
from stages.fingerprint import canonical, fingerprint
from stages.training.cached import train_on_cache
from stages.training.setup import Setup
from stages.weights import save_weights, unpack_weights


def weights_from_cache(
    setup: Setup, shards: list[str], workers: Callable[[], Workers], say: Say
) -> tuple[dict[str, Tensor], dict]:
    """The weights trained on foreign shards, and what is to be said about them (the artifact's metrics)."""
    passes, name = setup.config.train.cache_passes, cached_fingerprint(setup, shards)
    artifact = Store(setup.root).get("cached-training", name)
    if artifact is None:
        place = workers()
        say(f"training on {len(shards)} committed shards of another run, {passes} passes")
        ((_, artifact),) = run_tasks(
            _train,
            [(put(named_setup(setup)), name, shards, place.device)],
            cpus=max(place.cpus, setup.config.train.threads),
            gpus=place.gpus,
            fresh=False,
            say=passing(say),
        )
    say(artifact.metrics["note"])
    return unpack_weights(artifact.read("weights.safetensors"))[0], artifact.metrics


def cached_fingerprint(setup: Setup, shards: list[str]) -> str:
    """The name of the weights that training on these shards gives."""
    return fingerprint(
        "cached training",
        1,
        model=setup.model,
        train=setup.config.train,
        batch=setup.config.schedule.batch,
        shards=shards,
        seed=setup.config.seed,
    )


def _train(work: tuple[Ref[Setup], str, list[str], str], tell: Callable[[str], None]) -> Artifact:
    reference, name, shards, device = work
    setup = reference.get()

    def write(directory: Path) -> dict:
        result = train_on_cache(setup, shards, passes=setup.config.train.cache_passes, progress=tell)
        save_weights(result.weights, directory / "weights.safetensors")
        note = (
            f"the cached adversaries attacked {result.foreign_weights} foreign weights versions: on the stored ones "
            f"the model is right on {result.stored}, under a fresh attack on the hold-out on {result.fresh.robust}, "
            f"{100 * result.disagreement:.0f} points less"
        )
        return {
            "note": note,
            "updates": result.updates,
            "foreign_weights": result.foreign_weights,
            "stored": result.stored.as_json(),
            "fresh": result.fresh.robust.as_json(),
            "disagreement": result.disagreement,
        }

    return Store(setup.root).make(
        "cached-training",
        name,
        write,
        config=canonical(setup.config.train),
        inputs={"model": setup.model},
        device=device,
    )
