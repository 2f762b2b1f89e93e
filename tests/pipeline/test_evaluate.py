"""Any model under any attack: fanned out as the official code says, resumed, compared."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluated_models
import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from pipeline.evaluate import EvaluateSettings, evaluate_model, main
from pipeline.flags import WorkersConfig
from pipeline.measure.evaluation import parts
from pipeline.measure.findings import Findings
from pipeline.measure.measuring import Asked, find, own_measurements
from pipeline.measure.outcome import worst_of
from pipeline.recipe import EvaluationConfig
from pipeline.tell.results import Results
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.accuracy import to_float
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.measurement import Measurement, function_attacks
from stages.evaluation.pgd import PGDConfig
from stages.rap.threat import ThreatModel

pytestmark = pytest.mark.ray

THREAT = ThreatModel(norm="Linf", radius=0.1)
APGD = AutoAttackConfig(version="custom", attacks=("apgd-ce",), batch=6, seed=1)
AUTO = Measurement(name="autoattack", attack=APGD, threat=THREAT, images=18, chunk=6)
PGD = Measurement(name="pgd", attack=PGDConfig(steps=5), threat=THREAT, images=20, chunk=20)


def evaluated(model: nn.Module, test: Split, root: Path, *measurements: Measurement, attacks=(), say=print) -> Findings:
    given = function_attacks(attacks)
    own = own_measurements(given, THREAT, EvaluationConfig(images=18, chunk=18))
    asked = Asked(
        models={"model": model}, data="digits", test=test, measurements=[*measurements, *own], functions=given
    )
    return find(asked, root=root, workers=WorkersConfig(), say=say)


@pytest.fixture(scope="module")
def finished(model: nn.Module, test: Split, ray_session: object, tmp_path_factory: pytest.TempPathFactory):
    """An evaluation on two workers, its root, and the lines that it said."""
    root, lines = tmp_path_factory.mktemp("finished"), []
    attacks = ("evaluated_models:leave_the_ball", evaluated_models.flip_the_signs)
    return evaluated(model, test, root, AUTO, PGD, attacks=attacks, say=lines.append), root, lines


def test_two_workers_find_what_the_official_code_finds_chunk_by_chunk_in_one_process(finished, model, test) -> None:
    found = finished[0].evaluations["model"]["autoattack"]
    official = AutoAttack(model, norm="Linf", eps=THREAT.radius, seed=1, version="standard")
    official.attacks_to_run = ["apgd-ce"]
    robust, rows = [], []
    with numerics.verdict(threads=1):
        for part, receipt in zip(parts(test, AUTO), found.receipts, strict=True):
            images, labels = to_float(torch.from_numpy(part.images)), torch.from_numpy(part.labels)
            adversarial, predicted = official.run_standard_evaluation(images, labels, batch_size=6)
            robust += (predicted == labels).tolist()
            rows += part.rows.tolist()
            kept = np.load(Path(receipt) / "verdict.npz")
            assert np.array_equal(kept["adversarial"], adversarial.numpy())
    assert found.robust_mask.tolist() == robust
    assert found.rows.tolist() == rows
    assert 0 < sum(robust) < 18


def test_the_headline_is_the_worst_of_all_and_counts_only_what_was_verified(finished) -> None:
    found = finished[0].evaluations["model"]
    outside, step = found["evaluated_models:leave_the_ball"], found["evaluated_models:flip_the_signs"]
    assert np.array_equal(outside.robust_mask, outside.clean_mask)
    assert not np.array_equal(step.robust_mask, step.clean_mask)
    worst = finished[0].worst_cases()[THREAT]
    masks = [dict(zip(each.rows.tolist(), each.robust_mask.tolist(), strict=True)) for each in found.values()]
    assert sorted(worst.rows) == sorted(found["autoattack"].rows)
    assert worst.robust_mask.tolist() == [all(mask[row] for mask in masks) for row in worst.rows.tolist()]
    assert worst.unverified == outside.unverified == outside.clean_mask.sum()
    assert found["autoattack"].unverified == step.unverified == 0
    said = f"leave_the_ball: {outside.unverified} images came back as NaN, outside of the ball or of [0, 1]"
    assert any(said in flag for flag in worst.flags)
    assert "the model: evaluated_models:leave_the_ball" in str(Results.of(finished[0]))
    with pytest.raises(ValueError, match="no worst case"):
        worst_of([])


def test_progress_says_images_accuracy_and_time_left(finished) -> None:
    lines = [line for line in finished[2] if re.match(r"autoattack on the model: \d+ of", line)]
    assert [line.split(": ")[1].split(" images")[0] for line in lines] == ["6 of 18", "12 of 18", "18 of 18"]
    left = [line.rpartition("; ")[2] for line in finished[2] if " images, " in line]
    assert all(re.fullmatch(r"(about [\d,]+ s)?( and )?(\d chunks? of unknown time)? left", line) for line in left[:-1])
    assert left[-1] == "all done"
    assert "unknown" in left[0]  # of the attacks that have not begun
    assert "about" in left[0]


def test_more_images_attack_only_what_is_new_and_the_same_again_nothing(finished, model, test) -> None:
    more = Measurement(name="autoattack", attack=APGD, threat=THREAT, images=24, chunk=6)
    again = evaluated(model, test, finished[1], more, PGD)
    assert again.evaluations["model"]["autoattack"].attacked_now == 1
    assert again.evaluations["model"]["pgd"].attacked_now == 0
    before = finished[0].evaluations["model"]["autoattack"]
    assert again.evaluations["model"]["autoattack"].verdicts[:18] == before.verdicts


class Switched(nn.Sequential):
    """Answers otherwise where an image is off the 8-bit grid, and a switch is on."""

    on = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        off = ((255 * input - (255 * input).round()).abs() > 1e-3).flatten(1).any(1, keepdim=True)
        return super().forward(input) * (1 - 2 * off.float() * self.on)


def test_models_that_differ_off_the_grid_alone_share_no_verdict(model, test, ray_session, tmp_path) -> None:
    found = {}
    for on in (False, True):
        switched = Switched(*model).eval()
        switched.on = on
        found[on] = evaluated(switched, test, tmp_path, PGD)
    again = evaluated(switched, test, tmp_path, PGD)
    first, second = (found[on].evaluations["model"]["pgd"] for on in (False, True))
    assert (first.attacked_now, second.attacked_now) == (1, 1)
    assert again.evaluations["model"]["pgd"].attacked_now == 0
    assert first.robust_mask.tolist() != second.robust_mask.tolist()


def test_what_cannot_be_recognised_is_attacked_again_and_said_so(model, test, ray_session, tmp_path) -> None:
    streamed, lines = nn.Sequential(*model).eval(), []
    streamed.register_buffer("layout", torch.zeros(2, 2).to_sparse(), persistent=False)
    for _ in range(2):
        found = evaluated(streamed, test, tmp_path, PGD, say=lines.append)
        assert found.evaluations["model"]["pgd"].attacked_now == 1
    assert any("the model is attacked again at every call, since it cannot be recognised: " in line for line in lines)


def make_attack(steps: int):
    def attack(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
        return evaluated_models.flip_the_signs(model, images, labels, threat) if steps else images

    return attack


def test_attacks_from_one_factory_are_two_rows_with_receipts_of_their_own(model, test, ray_session, tmp_path) -> None:
    attacks = [make_attack(0), make_attack(40)]
    found = evaluated(model, test, tmp_path, attacks=attacks).evaluations["model"]
    assert len(found) == 2
    nothing, breaking = found.values()
    assert nothing.robust_mask.tolist() == nothing.clean_mask.tolist()
    assert breaking.robust.value < nothing.robust.value
    alone = evaluated(model, test, tmp_path, attacks=[make_attack(40)]).evaluations["model"]
    assert [each.robust for each in alone.values()] == [breaking.robust]
    with pytest.raises(ValueError, match="is given twice"):
        evaluated(model, test, tmp_path, attacks=[make_attack(0), make_attack(0)])


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import evaluated_models
from pathlib import Path
from test_evaluate import AUTO, evaluated
from stages.data.datasets import DataConfig, load_data
test = load_data(DataConfig(name="digits")).test
evaluated(evaluated_models.build().eval(), test, Path(sys.argv[1]), AUTO, say=lambda line: print(line, flush=True))
"""


def test_a_killed_evaluation_repeats_at_most_one_chunk_a_worker_and_ends_the_same(
    finished, tmp_path, model, test
) -> None:
    script = SCRIPT.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if "of 18 images" in line:
                driver.kill()
                break
    assert driver.returncode == -signal.SIGKILL
    kept = {path.parent.name for path in tmp_path.glob("store/autoattack/*/manifest.json")}
    assert 1 <= len(kept) <= 3
    resumed = evaluated(model, test, tmp_path, AUTO)
    found, expected = (each.evaluations["model"]["autoattack"] for each in (resumed, finished[0]))
    assert found.attacked_now <= 3 - len(kept)
    assert found.verdicts == expected.verdicts
    for one, other in zip(found.receipts, expected.receipts, strict=True):
        assert Path(one).name == Path(other).name


def test_a_quick_screening_needs_no_ray_and_resumes(model: nn.Module, tmp_path: Path) -> None:
    settings = EvaluateSettings(quick=True, images=128, root=tmp_path)
    found = evaluate_model(model, data="digits", norm="Linf", radius=0.1, settings=settings)
    assert found.screening is not None
    assert found.screening.ended == "images"
    assert "screening by APGD-CE, APGD-T within Linf 0.1: at most" in str(found)
    low, high = found.screening.interval
    assert low < found.robust_accuracy.value < high
    told: dict[str, Any] = found.as_json()
    interval = [low, high]  # everywhere the one that holds however the screening was ended
    assert told["robust_accuracy"]["interval"] == told["screening"]["robust"]["interval"] == interval
    model_told = told["models"]["model"]
    assert model_told["measurements"]["screening"]["robust"]["interval"] == interval
    assert [each["robust"]["interval"] for each in model_told["worst_cases"]] == [interval]
    again = evaluate_model(model, data="digits", norm="Linf", radius=0.1, settings=settings)
    assert again.evaluations["model"]["screening"].attacked_now == 0


@pytest.fixture
def small() -> list[str]:
    """Flags of a small evaluation."""
    return [
        *("--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--version", "custom"),
        *("--attacks", "apgd-ce", "--images", "12", "--chunk", "12", "--pgd-steps", "2"),
        *("--checks.images", "4", "--checks.steps", "4", "--checks.short-steps", "2", "--checks.queries", "10"),
    ]


def test_the_command_prints_and_writes_what_it_found_and_compares(
    small: list[str], ray_session: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    assert main([*small, *root, "--name", "one", "--claim.name", "A linear model"]) == 0
    results = json.loads((tmp_path / "evaluations/one/results.json").read_text())
    assert [check["number"] for check in results["checks"]] == list(range(1, 21))
    assert results["robust_accuracy"]["correct"] <= results["models"]["model"]["worst_cases"][0]["robust"]["correct"]
    assert {check["verdict"] for check in results["checks"] if check["number"] in (17, 18, 19)} == {"not applicable"}
    page = (tmp_path / "evaluations/one/report/index.html").read_text()
    assert f"{100 * results['robust_accuracy']['value']:.1f} %" in page
    assert "robust accuracy (per-image worst case)" in capsys.readouterr().out
    results = json.loads((tmp_path / "evaluations/one/results.json").read_text())
    (worst,) = results["models"]["model"]["worst_cases"]
    assert len(worst["images"]["rows"]) == worst["robust"]["images"] == 12
    assert not (tmp_path / "evaluations/one/claim.json").exists()
    assert list(results["models"]["model"]["measurements"]) == ["APGD-CE", "PGD-2"]
    assert results["models"]["model"]["measurements"]["APGD-CE"]["attack"]["attacks"] == {
        "apgd-ce": {"iterations": 100, "restarts": 1}
    }
    assert main([*small, *root, "--name", "two", "--compare", str(tmp_path / "evaluations/one")]) == 0
    compared = json.loads((tmp_path / "evaluations/two/results.json").read_text())["comparison"]
    assert (compared["images"], compared["difference"], compared["p_value"]) == (12, 0, 1)
