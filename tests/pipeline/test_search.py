"""The search as a user runs it: in a job on a head that dies, and again; what it leaves is what a run takes."""

import contextlib
import csv
import io
import json
import random
import re
import secrets
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import TINY, flags_of
from heads import is_open, running_head

from pipeline.flags import parse
from pipeline.recipe_files import read_recipe
from pipeline.search import main

SEARCH = {name: value for name, value in TINY.items() if not name.startswith("search")} | {
    "search.rounds": 4,
    "search.first-rounds": 2,
    "search.images": 32,
    "search.space": "train.learning-rate=1e-3..1e-2:log",
}


def table_of(root: Path) -> list[dict]:
    (path,) = root.glob("searches/digits-*/trials.csv")
    times = ("seconds", "bytes")  # a shard says how long it took, in as many digits as that has
    with path.open() as file:
        return [{name: value for name, value in row.items() if name not in times} for row in csv.DictReader(file)]


def told(printed: str) -> list[str]:
    """The lines that say how far a search is."""
    return re.findall(r"^\[.*\] (?:search|trial)\b.*$", printed, re.MULTILINE)


@pytest.fixture(scope="module")
def trials(kills: int) -> list[str]:
    """How many, and for how long: where it is killed often, several are on their way whenever that is."""
    return ["--trials=8", "--search.rounds=60", "--search.first-rounds=20"] if kills > 1 else ["--trials=2"]


@pytest.fixture(scope="module")
def undisturbed(ray_session: object, trials: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root, printed = tmp_path_factory.mktemp("search"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*flags_of(SEARCH), "--root", str(root), *trials, "--workers.trials=1"]) == 0
    return root, printed.getvalue()


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_leaves_a_table_and_a_recipe_that_a_run_takes(undisturbed: tuple[Path, str]) -> None:
    root, printed = undisturbed
    rows = table_of(root)
    (parquet,) = root.glob("searches/digits-*/trials.parquet")
    assert [row["trial"] for row in pq.read_table(parquet).to_pylist()] == [int(row["trial"]) for row in rows]
    (chosen,) = [row for row in rows if row["decision"] == "chosen"]
    best = next(root.glob("searches/digits-*/best.json"))
    preset, recipe = read_recipe(str(best))
    assert preset == "digits"
    assert recipe.train.learning_rate == float(chosen["train.learning-rate"])
    assert recipe.search.trials == 0
    assert f"python -m pipeline.run --recipe {best}" in printed
    assert parse(["--recipe", str(best)]).recipe == recipe
    assert f"report        {best.with_name('report.html')}" in printed
    assert not (root / "runs").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_whose_head_or_driver_dies_ends_the_same_elsewhere(
    kills: int, trials: list[str], ray_session: object, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    token = secrets.token_hex(32)
    flags = flags_of({name: value for name, value in SEARCH.items() if name != "workers.cpus"})
    lines = range(1, len(told(undisturbed[1])) - 1)  # after each of which it can be killed
    for number, line in enumerate(random.Random(kills).sample(lines, kills)):
        root = tmp_path / f"root-{line}"
        with running_head(tmp_path / "log", token) as head:
            assert not is_open(f"{head.address}/api/jobs/")
            with head.submitted(f"killed-{line}", "pipeline.search", *flags, "--root", str(root), *trials) as job:
                said = (each for each in job.stdout or () if told(each))
                assert next(islice(said, line - 1, None), None), "it ended before"
                if number % 2:
                    head.kill_driver("pipeline.search")
                else:
                    head.kill()
        assert not list(root.glob("searches/*/best.json"))
        main([*flags_of(SEARCH), "--root", str(root), *trials])
        assert table_of(root) == table_of(undisturbed[0])
        noted = json.loads(next(root.glob("searches/*/search.json")).read_text())
        assert noted["finished"]
        assert len(noted["trials"]) == int(trials[0].partition("=")[2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials=0"], "a search needs at least 1"),
        (["--trials=2", "--search.space", "attack.steps=0,5"], "attack.steps (T) is 0"),
    ],
)
def test_a_search_of_nothing_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--root", str(tmp_path / "root")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
