"""What an evaluation may be called, and claim: only AutoAttack's standard version is AutoAttack standard."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.measure.outcome import Evaluation
from pipeline.tell.report_contents import field_tables, notes_on
from pipeline.tell.results import Results, write_results
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.claim import ClaimConfig
from stages.evaluation.lineup import Version, lineup
from stages.evaluation.pgd import PGDConfig
from stages.evaluation.screening import Screening
from stages.rap.threat import Norm, ThreatModel
from stages.storage import Storage

CIFAR = ThreatModel(norm="Linf", radius=8 / 255)
IMAGE = (3, 32, 32)


def evaluation(attack: dict, threat: ThreatModel = CIFAR, *, flags: tuple[str, ...] = ()) -> Evaluation:
    """Ten images, of which nine are classified correctly and five remain robust."""
    return Evaluation(
        attack=attack,
        threat=threat,
        rows=np.arange(10),
        verdicts=("clean", *["apgd-ce"] * 4, *[None] * 5),
        flags=flags,
        unverified=0,
        attacked_now=1,
        seconds=1.0,
        receipts=(),
    )


def autoattack(
    *custom: str, version: Version = "standard", classes: int = 10, norm: Norm = "Linf", shape=IMAGE
) -> dict:
    """What the receipts of an evaluation by AutoAttack say of it."""
    found = lineup("custom" if custom else version, custom, norm, classes=classes, shape=shape)
    return {"kind": "autoattack", **found.as_json(), "seed": 0, "batch": 64}


def findings(auto: dict, *, data: str = "CIFAR-10", threat: ThreatModel = CIFAR) -> Results:
    found = {auto["name"]: evaluation(auto, threat)}
    if threat.norm != "L1":
        pgd = PGDConfig(steps=40)
        found[pgd.name] = evaluation({"kind": "pgd", "name": pgd.name}, threat)
    return Results(data=data, test="", evaluations={"model": found}, fingerprints={"model": ""}, seconds=0.0)


NAMED = {
    "standard": (autoattack(), "AutoAttack standard"),
    "standard in L1": (autoattack(norm="L1"), "AutoAttack standard"),
    "plus": (autoattack(version="plus"), "AutoAttack plus"),
    "rand": (autoattack(version="rand"), "AutoAttack rand"),
    "custom": (autoattack("apgd-ce"), "APGD-CE"),
    "the attacks of the standard version": (
        autoattack("apgd-ce", "apgd-t", "fab-t", "square"),
        "APGD-CE, APGD-T, FAB-T, Square",
    ),
    "custom in L1": (autoattack("apgd-ce", "apgd-t", norm="L1"), "APGD-CE (5 restarts), APGD-T (5 targets)"),
    "nine classes": (autoattack(classes=9), "APGD-CE, APGD-T (8 targets), FAB-T (8 targets), Square"),
    "three classes": (autoattack(classes=3), "APGD-CE, APGD-DLR, FAB-T (2 targets), Square"),
    "two classes": (autoattack(classes=2), "APGD-CE, FAB, Square"),
    "two classes, plus": (autoattack(classes=2, version="plus"), "APGD-CE (5 restarts), FAB (5 restarts), Square"),
    "two classes, rand": (autoattack(classes=2, version="rand"), "APGD-CE (20 samples)"),
    "a size without Square": (autoattack(norm="L2", shape=(3, 12, 12)), "APGD-CE, APGD-T, FAB-T"),
    "that size in Linf": (autoattack(shape=(3, 12, 12)), "AutoAttack standard"),
}


@pytest.mark.parametrize("case", NAMED)
def test_an_evaluation_is_called_what_it_is(case: str) -> None:
    auto, name = NAMED[case]
    assert auto["name"] == name
    assert auto["standard"] == (name == "AutoAttack standard")
    lines = str(findings(auto, threat=ThreatModel(norm="L2", radius=0.5))).splitlines()
    assert any(line.startswith(f"{name}  ") for line in lines)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 4, 8), (1, 13, 13), (2, 24, 30)])
@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_square_is_left_out_where_its_code_fails(shape: tuple[int, int, int], norm: Norm) -> None:
    fails = shape != (1, 13, 13)
    assert ("square" not in autoattack(norm=norm, shape=shape)["attacks"]) == fails
    assert "square" in autoattack(norm="Linf", shape=shape)["attacks"]
    if fails:
        with pytest.raises(ValueError, match="Square cannot run on 10 classes and images of"):
            autoattack("apgd-ce", "square", norm=norm, shape=shape)


UNCLAIMED = {
    "custom": (
        findings(autoattack("apgd-ce", "apgd-t", "fab-t", "square")),
        "takes AutoAttack standard: APGD-CE, APGD-T",
    ),
    "plus": (findings(autoattack(version="plus")), "AutoAttack plus was run"),
    "rand": (findings(autoattack(version="rand")), "AutoAttack rand was run"),
    "few classes": (findings(autoattack(classes=4)), "APGD-T (3 targets)"),
    "digits": (findings(autoattack(), data="digits"), "no leaderboard for digits within Linf 8/255"),
    "own images": (findings(autoattack(), data="own images"), "no leaderboard for own images"),
    "a copy through JPEG": (findings(autoattack(), data="CIFAR-10 (JPEG q75)"), "CIFAR-10 (JPEG q75) within"),
    "another radius": (findings(autoattack(), threat=ThreatModel(radius=0.05)), "CIFAR-10 within Linf 0.05"),
    "L1": (findings(autoattack(norm="L1"), threat=ThreatModel(norm="L1", radius=12.0)), "CIFAR-10 within L1 12"),
}


@pytest.mark.parametrize("case", UNCLAIMED)
def test_nothing_but_the_benchmark_is_claimed_and_an_older_claim_does_not_stay(case: str, tmp_path: Path) -> None:
    found, reason = UNCLAIMED[case]
    (tmp_path / "claim.json").write_text("{}")
    assert found.claim(ClaimConfig()) is None
    assert set(write_results(found, Storage.at(tmp_path), claim=ClaimConfig())) == {"results"}
    assert not (tmp_path / "claim.json").exists()
    assert "no RobustBench claim" in str(found)
    assert reason in str(found)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, each in results["models"]["model"]["measurements"].items():
        assert each["attack"]["name"] == name


def test_the_standard_version_on_the_benchmark_is_claimed(tmp_path: Path) -> None:
    found = findings(autoattack(norm="L2"), threat=ThreatModel(norm="L2", radius=0.5))
    assert "no RobustBench claim" not in str(found)
    assert set(write_results(found, Storage.at(tmp_path), claim=ClaimConfig(name="RAP"))) == {"results", "claim"}
    claim = json.loads((tmp_path / "claim.json").read_text())
    assert (claim["name"], claim["dataset"], claim["eps"]) == ("RAP", "cifar10", "0.5")
    assert (claim["autoattack_acc"], claim["unreliable"]) == ("50.00", True)  # ten images of 10,000


def test_only_the_standard_version_stands_beside_published_figures() -> None:
    def tables(auto: dict, data: str = "CIFAR-10") -> dict[str, list[str]]:
        made = field_tables(data, CIFAR, evaluation(auto), "WRN-28-10")
        return {table.name: [row.name for row in table.rows] for table in made}

    standard = tables(autoattack())
    assert set(standard) == {"Table 1", "CIFAR-10, L-inf 8/255: the field"}
    assert all(rows[-1] == "ours" for rows in standard.values())
    assert tables(autoattack("apgd-ce")) == tables(autoattack(version="plus")) == tables(autoattack(classes=4)) == {}
    # of a degraded copy, the paper's own rows may stay, and the field's do not
    assert tables(autoattack(), "CIFAR-10 (JPEG q75)") == {"Table 1": ["RAP (the paper)", "ours"]}
    assert "APGD-CE is not AutoAttack standard" in str(notes_on("digits", evaluation(autoattack("apgd-ce"))))
    assert len(notes_on("digits", evaluation(autoattack()))) == 1


def test_warnings_are_told_in_an_evaluation_and_in_a_screening() -> None:
    flagged = evaluation(autoattack("apgd-ce", "apgd-t"), flags=("apgd-ce: 45 images came back as NaN",))
    found = replace(findings(autoattack()), evaluations={"model": {"screening": flagged}})
    screened = replace(found, screening=Screening(clean=Accuracy(9, 10), robust=Accuracy(5, 10), ended="images"))
    assert "the model: apgd-ce: 45 images" in str(found)
    assert "the model: apgd-ce: 45 images" in str(screened)
    assert "screening by APGD-CE, APGD-T within Linf 8/255" in str(screened)
    assert screened.claim(ClaimConfig()) is None
