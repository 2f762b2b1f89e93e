"""What lies below a root, and which runs, searches and evaluations need it.

Of the shards, of which there may be millions, only 16 bytes each are held.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain

from pipeline.artifacts import BEGUN, Store, told
from pipeline.exits import DAMAGE
from stages.storage import Entry, Storage
from stages.training.journal import Journal
from stages.training.versions import Versions
from stages.trajectories import shards
from stages.trajectories.ledger import FOLDER, Ledger
from stages.trajectories.shards import read_shard

TRAININGS = {"ablations": "ablation", "classifiers": "classifier"}
"""What ROOT/<folder>/<fingerprint> holds is to go on from, until the artifact of that kind and fingerprint is there."""
TRIALS = "trials"
"""What ROOT/trials/<fingerprint> holds is to go on from, until the searches that name it are finished."""
SUFFIX = shards.shard_key("").rpartition("/")[2]
REBUILT = ".rebuilt"  # where a ledger is until it is whole; no run is called that


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A run, a search or an evaluation."""

    folder: str
    """Where it lies below the root: runs/<name>, searches/<name> or evaluations/<name>."""
    finished: bool
    """Whether its results are written; only then is known which artifacts it needs."""
    artifacts: frozenset[str]
    """Of these kinds and fingerprints, below ROOT/store."""
    robust_accuracy: str
    preset: str = ""
    trained: int = 0
    """Rounds trained, of `rounds`."""
    rounds: int = 0
    trials: frozenset[str] | None = frozenset()
    """Where a search's trials lie below the root; None where it cannot say."""
    source: str = ""
    """The folder of the run whose shards this one's first weights are trained on (--train.from-cache)."""


class Inventory:
    """What lies below a root."""

    def __init__(self, root: Storage) -> None:
        self.root = root

    @cached_property
    def kept(self) -> dict[str, Folder]:
        """Runs, then searches, then evaluations, by folder."""
        runs = [_run(self.root, name) for name in self.root.names("runs")]
        evaluations = [_evaluation(self.root, name) for name in self.root.names("evaluations")]
        return {each.folder: each for each in [*runs, *self.searches, *evaluations]}

    @cached_property
    def searches(self) -> list[Folder]:
        return [_search(self.root, name) for name in self.root.names("searches")]

    @property
    def runs(self) -> list[str]:
        """The folders of runs."""
        return [folder for folder in self.kept if folder.startswith("runs/")]

    @property
    def owned(self) -> list[str]:
        """The folders that have one owner while work goes on in them: of runs and searches."""
        return [folder for folder in self.kept if folder.startswith(("runs/", "searches/"))]

    def ledger(self, folder: str) -> Ledger:
        """The ledger of a run or a training."""
        return Ledger(self.root, folder.removeprefix("runs/"))

    def shards(self) -> Iterator[tuple[str, Entry]]:
        """Every shard, by fingerprint."""
        for entry in self.root.entries(shards.FOLDER):
            if entry.key.endswith(SUFFIX):  # nothing else there is ours
                yield entry.key.rpartition("/")[2].removesuffix(SUFFIX), entry

    @cached_property
    def artifacts(self) -> dict[str, list[Entry]]:
        """The files of every artifact, by "kind/fingerprint"."""
        return _grouped(self.root.entries("store"), slice(1, 3))

    @cached_property
    def trainings(self) -> dict[str, list[Entry]]:
        """What searches, trainings of checks and classifiers left to go on from, by "folder/fingerprint"."""
        return _grouped(chain.from_iterable(map(self.root.entries, [TRIALS, *TRAININGS])), slice(0, 2))

    def is_done(self, training: str, dropped: Collection[str] = ()) -> bool:
        """Whether what a training was for is there, or nobody wants it who is not dropped."""
        folder, _, name = training.partition("/")
        if folder == TRIALS:
            searches = (each for key, each in self.kept.items() if key not in dropped and not each.finished)
            return not any(each.trials is None or training in each.trials for each in searches)
        files = self.artifacts.get(f"{TRAININGS[folder]}/{name}", [])
        return any(each.key.endswith("/manifest.json") for each in files)

    def shards_of(self, folder: str, rounds: int | None = None) -> Iterator[str]:
        """The shards on which a run, or a training, has trained, in its first rounds or in all."""
        for line in Journal(self.root.below(folder)).read():
            if rounds is None or line["round"] < rounds:
                yield from line["shards"]

    def needed_shards(self, dropped: Iterable[str] = ()) -> set[bytes]:
        """Shards of runs, and of trainings that are to go on; not those of the dropped folders alone."""
        dropped = set(dropped)
        places = [folder for folder in self.kept if folder not in dropped]
        for training, entries in self.trainings.items():
            if not self.is_done(training, dropped):  # the check's trainings have a journal each
                places += sorted({each.key.partition("/metrics/")[0] for each in entries if "/metrics/" in each.key})
        return {bytes.fromhex(name) for place in places for name in self.shards_of(place)}

    def needed_artifacts(self, dropped: Iterable[str] = ()) -> set[str] | None:
        """Artifacts behind the figures of runs and evaluations; None where some run is yet to say which it needs."""
        kept = [each for folder, each in self.kept.items() if folder not in set(dropped)]
        return set().union(*(each.artifacts for each in kept)) if all(each.finished for each in kept) else None

    def unneeded(self, *, dropped: Iterable[str] = (), older: timedelta = timedelta(0)) -> Iterator[Entry]:
        """What no kept run or evaluation needs and is older than that, and the dropped ones themselves."""
        dropped, limit = set(dropped), datetime.now(UTC) - older
        shards, artifacts = self.needed_shards(dropped), self.needed_artifacts(dropped)
        unneeded = (entry for name, entry in self.shards() if bytes.fromhex(name) not in shards)
        receipts = [] if artifacts is None else [name for name in self.artifacts if name not in artifacts]
        left = [training for training in self.trainings if self.is_done(training, dropped)]
        yield from (
            each
            for each in chain(
                unneeded,
                *(self.artifacts[name] for name in receipts),
                *(chain(self.trainings[name], self._ledger_files(name)) for name in left),
            )
            if each.modified < limit
        )
        for folder in dropped:
            yield from self.root.entries(folder)
            yield from self._ledger_files(folder)

    def looked_at(self) -> Iterator[tuple[str, str]]:
        """Everything whose bytes can be checked: where it is, and what is wrong there, "" for nothing."""
        there: set[bytes] = set()
        for name, entry in self.shards():
            there.add(bytes.fromhex(name))
            yield from _looked(entry.key, lambda name=name: read_shard(self.root, name))
        store = Store(self.root)
        for name in self.artifacts:
            yield from _looked(f"store/{name}", lambda name=name: store.get(*name.split("/")))
        for folder in self.runs:
            missing: list[str] = []

            def look(folder: str = folder, missing: list[str] = missing) -> None:
                missing += (name for name in self.shards_of(folder) if bytes.fromhex(name) not in there)

            yield from _looked(f"{folder}/metrics", look)
            for name in missing:
                yield from _looked(f"{folder}, shard {name}", lambda name=name: read_shard(self.root, name))
            yield from self._looked_at_run(folder)

    def _looked_at_run(self, folder: str) -> Iterator[tuple[str, str]]:
        run = self.root.below(folder)
        versions = Versions(run)
        yield from _looked(f"{folder}/train", Journal(run).check)
        for number in versions.numbers():
            yield from _looked(f"{folder}/versions/{number}", lambda number=number: versions.find(number))
        ledger = self.ledger(folder)
        yield from _looked(f"{FOLDER}/{ledger.run}", lambda: list(ledger.query(columns=["round"])))

    def rebuild_ledger(self, folder: str) -> int:
        """Write a run's ledger again from its shards; the number of rounds in it. Where one cannot be read, which
        raises ShardError, the ledger stays as it is."""
        journal, ledger = Journal(self.root.below(folder)), self.ledger(folder)
        rebuilt = Ledger(self.root, f"{REBUILT}/{ledger.run}")
        rebuilt.clear()
        rebuilt.complete(journal.checkpointed, journal.read)
        ledger.replace(rebuilt)
        return ledger.rounds

    def _ledger_files(self, folder: str) -> Iterator[Entry]:
        return self.root.entries(f"{FOLDER}/{self.ledger(folder).run}")


def _grouped(entries: Iterable[Entry], parts: slice) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for each in entries:
        found.setdefault("/".join(each.key.split("/")[parts]), []).append(each)
    return found


def _looked(place: str, look: Callable[[], object]) -> Iterator[tuple[str, str]]:
    try:
        look()
    except DAMAGE as error:
        yield place, str(error)
    else:
        yield place, ""


def _run(root: Storage, name: str) -> Folder:
    run = root.below(f"runs/{name}")
    recipe, results = told(run, "recipe.json"), told(run, "results.json")
    trained = recipe.get("recipe", {})
    return Folder(
        folder=f"runs/{name}",
        finished=bool(results) and not run.exists(BEGUN),
        artifacts=frozenset(results.get("artifacts", ())),
        robust_accuracy=_percent(results["robust_accuracy"]) if results else "",
        preset=recipe.get("preset", ""),
        trained=Journal(run).checkpointed,
        rounds=trained["schedule"]["rounds"] if trained else 0,
        source=f"runs/{source}" if (source := trained.get("train", {}).get("from_cache")) else "",
    )


def _search(root: Storage, name: str) -> Folder:
    found = told(root.below(f"searches/{name}"), "search.json")
    trials, chosen = found.get("trials", ()), found.get("chosen")
    best = f"trial {chosen}: {_percent(trials[chosen]['robust'])} on the hold-out; " if chosen is not None else ""
    return Folder(
        folder=f"searches/{name}",
        finished=found.get("finished", False),
        artifacts=frozenset(found.get("artifacts", ())),
        robust_accuracy=f"{best}{len(trials)} trials" if found.get("finished") else f"{len(trials)} trials, begun",
        trials=frozenset(each["folder"] for each in trials if "folder" in each) if found else None,
    )


def _evaluation(root: Storage, name: str) -> Folder:
    evaluation = root.below(f"evaluations/{name}")
    results = told(evaluation, "results.json")
    bound = "screening, at most " if results.get("screening") else ""
    return Folder(
        folder=f"evaluations/{name}",
        finished=bool(results) and not evaluation.exists(BEGUN),
        artifacts=frozenset(results.get("artifacts", ())),
        robust_accuracy=f"{bound}{_percent(results['robust_accuracy'])}" if results.get("robust_accuracy") else "",
    )


def _percent(accuracy: dict) -> str:
    return f"{100 * accuracy['value']:.1f} % of {accuracy['images']} images remain robust"
