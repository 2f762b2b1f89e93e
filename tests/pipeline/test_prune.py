"""Pruning deletes what nobody needs, and nothing that is needed is lost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from loops import loop_config, published
from stored_runs import RECIPE, finish, objects, store

from pipeline.artifacts import BEGUN
from pipeline.store import main
from stages.lease import lease
from stages.storage import Storage
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import shard_key


def test_pruning_deletes_what_nobody_needs_and_no_more(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = objects(setup), published(setup)
    setup.root.put(shard_key("0" * 32), b"of a round that was never trained on")
    for name in ("store/ablation/a/manifest.json", "ablations/a/part/train/state-3.pt", "ledger/ablations/a/part/0-2"):
        setup.root.put(name, b"{}")
    for name in ("trials/a/train/state-3.pt", "ledger/trials/a/0-2"):  # which no search names
        setup.root.put(name, b"{}")
    setup.root.put("ablations/b/part/train/state-3.pt", b"to go on from")
    leftovers = objects(setup) - before - {"ablations/b/part/train/state-3.pt"} | {"store/ablation/a/manifest.json"}
    spare = {key for key in before if key.startswith("store/pgd/spare")}
    assert store(setup, "prune", "--yes") == 0
    assert "0 objects of 0 B were deleted; what is younger than 24 hours is kept" in capsys.readouterr().out
    assert objects(setup) >= before | leftovers
    assert store(setup, "prune", "--older-hours", "0") == 0
    assert objects(setup) >= before | leftovers
    assert f"{len(leftovers | spare)} objects" in capsys.readouterr().out
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == (before - spare) | {"ablations/b/part/train/state-3.pt"}
    assert store(setup, "verify") == 0
    assert run_serially(setup) == 0
    assert published(setup) == weights


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_trial_goes_on_from_stays_until_its_search_is_finished(
    finished: bool, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, verdict = "trials/a/train/state-3.pt", "store/verdict/b/manifest.json"
    noted = {"finished": finished, "trials": [{"trial": 0, "folder": "trials/a"}], "artifacts": ["verdict/b"]}
    setup.root.put("searches/s/search.json", json.dumps(noted).encode())
    for name in (trial, verdict):
        setup.root.put(name, b"{}")
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert setup.root.exists(trial) is not finished
    assert setup.root.exists(verdict)
    assert store(setup, "ls") == 0
    assert "searches/s" in capsys.readouterr().out
    assert store(setup, "prune", "--older-hours", "0", "--yes", "--drop", "searches/s") == 0
    assert not [key for key in objects(setup) if key.startswith(("trials", "searches", "store/verdict"))]


def test_receipts_stay_while_a_run_has_yet_to_say_which_it_needs(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.run.delete(["results.json"])
    before = objects(setup)
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == before
    assert "since these are not finished: runs/run" in capsys.readouterr().out


def test_receipts_stay_while_an_evaluation_that_has_results_is_extended(setup: Setup) -> None:
    setup.run.put(BEGUN, b"")
    before = objects(setup)
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == before


@pytest.mark.parametrize("found", [b'{"finished": false, "tri', None], ids=["torn", "gone"])
def test_a_search_that_cannot_say_which_trials_are_its_own_keeps_them_all(found: bytes | None, setup: Setup) -> None:
    setup.root.put("searches/s/recipe.json", b"{}")
    if found:
        setup.root.put("searches/s/search.json", found)
    setup.root.put("trials/a/train/state-3.pt", b"to go on from")
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert setup.root.exists("trials/a/train/state-3.pt")


def test_a_run_from_whose_shards_another_was_begun_is_not_dropped_alone(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    borrowed = {"preset": "digits", "recipe": {**RECIPE, "train": {"from_cache": "run"}}}
    setup.root.put("runs/borrower/recipe.json", json.dumps(borrowed).encode())
    before = objects(setup)
    with pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--drop", "runs/run", "--yes", "--older-hours", "0")
    assert "--drop runs/run: runs/borrower was begun from its shards" in capsys.readouterr().err
    assert objects(setup) == before
    assert store(setup, "prune", "--drop", "runs/run", "runs/borrower", "--yes", "--older-hours", "0") == 0
    assert not [key for key in objects(setup) if key.startswith("runs/")]


def test_of_a_dropped_run_stays_what_another_needs(setup: Setup) -> None:
    second = replace(setup, name="runs/second", config=replace(loop_config(1), seed=1))
    run_serially(second)
    shared = replace(setup, name="runs/shared")
    run_serially(shared)
    for each in (second, shared):
        finish(each, ["pgd/mine"])
    own = {shard for line in second.journal.lines() for shard in line["shards"]}
    assert store(setup, "prune", "--drop", "runs/run", "runs/second", "--yes", "--older-hours", "0") == 0
    left = objects(setup)
    assert not any(key.startswith(("runs/run/", "runs/second/", "ledger/run/", "ledger/second/")) for key in left)
    assert {shard_key(shard) for line in shared.journal.lines() for shard in line["shards"]} <= left
    assert not {shard_key(shard) for shard in own} & left
    assert store(setup, "verify") == 0


@pytest.mark.parametrize("hours", ["-1", "1e12", "nan"])
def test_an_age_that_makes_no_sense_is_refused(hours: str, setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--older-hours", hours)
    assert "--older-hours" in capsys.readouterr().err


def test_nothing_is_pruned_while_a_run_is_at_work(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects(setup)
    with lease(setup.run, "lock"), pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--older-hours", "0", "--yes")
    assert "what a run at work needs is not known" in capsys.readouterr().err
    assert objects(setup) == before


def test_a_bucket_is_tidied_up_like_a_directory(setup: Setup, s3_bucket: str, tmp_path: Path) -> None:
    there = Storage.at(f"{s3_bucket}/{tmp_path.name}")
    for key in objects(setup):
        there.put(key, setup.root.get(key))
    there.put(shard_key("0" * 32), b"of a round that was never trained on")
    assert main([str(there), "prune", "--older-hours", "0", "--yes"]) == 0
    assert main([str(there), "verify"]) == 0
    assert {each.key for each in there.entries()} == {
        key for key in objects(setup) if not key.startswith("store/pgd/spare")
    }
