"""Contents of reports: one with everything, one with the least, one that means harm."""

import numpy as np

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check, Curve, Row, Table
from stages.rap.threat import ThreatModel
from stages.report import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures

HOSTILE = (
    "</svg></style><script>alert(1)</script> \"'&{{ 7 * 7 }} | [x](javascript:y) <img src=x onerror=z> $\\frac$ 😀\x00"
)


def least(**changes) -> Contents:
    """What an evaluator has of a model that was trained elsewhere."""
    given = {
        "title": "a model",
        "data": "digits",
        "threat": ThreatModel(norm="Linf", radius=0.2),
        "clean": Accuracy(126, 128),
        "robust_accuracy": Accuracy(54, 128),
        "worst_of": ("AutoAttack standard", "PGD-40"),
    }
    return Contents(**{**given, **changes})


def everything(**changes) -> Contents:
    """A report with every section."""
    given = {
        "description": "cnn, behind a U-Net of 103,473 parameters",
        "undefended_clean": Accuracy(127, 128),
        "undefended_robust_accuracy": Accuracy(4, 128),
        "attacks": (
            Attacked(name="PGD-40", robust=Accuracy(192, 360), undefended=Accuracy(34, 360)),
            Attacked(name="AutoAttack standard", robust=Accuracy(54, 128), undefended=Accuracy(4, 128)),
            Attacked(name="transfer", robust=Accuracy(120, 128)),
        ),
        "checks": checks(),
        "flags": ("square: 1 of 128 images were broken by Square alone",),
        "notes": ("The data are a degraded copy.",),
        "broken": (
            Broken(model="robust classifier", images=128, by={"apgd-ce": 66, "clean": 5, "apgd-t": 2, "square": 1}),
            Broken(model="undefended classifier", images=128, by={"clean": 2, "apgd-ce": 120, "apgd-t": 2}),
        ),
        "curves": curves(),
        "tables": (table(),),
        "classes": tuple(f"class {number}" for number in range(10)),
        "pictures": pictures(1, 8),
        "trajectories": (trajectory(1, 8, steps=10),),
        "training": training(),
        "shipped_version": 40,
        "alarms": ("collapse: the judge finds 14.4%, after 24.4% before",),
        "search": search(),
        "recipe": {"seed": 0, "attack": {"steps": 10, "step_size": None}, "train": {"objective": {"kl": 0.0}}},
        "lineage": tuple(
            LineageEntry(
                kind=kind,
                fingerprint=f"{number:032x}",
                commit="a7475f8ca5315cde8a057d58d5d620f997958824",
                created=f"2026-11-22T19:5{number}:00+00:00",
                device="AMD EPYC",
                seconds=1.5 * number,
                packages={"torch": "2.13.0", "numpy": "2.4.6"},
            )
            for number, kind in enumerate(["classifier", *["autoattack"] * 5])
        ),
        "seconds": {"classifier": 15.1, "training": 289.4, "evaluation": 3605.0},
    }
    return least(**{**given, **changes})


def checks() -> tuple[Check, ...]:
    says = "What the attack broke, it broke by following true gradients."
    found = [
        Check(number, f"check {number}", "pass", f"{number} of 64 images", images=64, says=says)
        for number in range(1, 19)
    ]
    evidence = {"by": [1, 2, 3], "ratio": float("nan"), "counts": np.arange(3)}
    return (
        *found,
        Check(19, "Square against white-box", "warn", "1 of 64", images=64, says="It found more.", evidence=evidence),
        Check(20, "binarization test", "not applicable", "no readout", images=0, says="It needs a readout."),
    )


def curves() -> tuple[Curve, ...]:
    def curve(name: str, x: str, places: list[float], slope: float) -> Curve:
        points = [(place, Accuracy(int(120 / (1 + slope * place)), 128)) for place in places]
        return Curve(name=name, x=x, points=tuple(points))

    radius = "radius (pixels in [0, 1])"
    return (
        curve("PGD-40, robust", radius, [0.0, 0.1, 0.2, 0.4, 1.0], 9),
        curve("PGD-40, alone", radius, [0.0, 0.1, 0.2, 0.4, 1.0], 90),
        curve("PGD", "attack steps", [1.0, 5.0, 20.0, 100.0], 0.01),
        curve("PGD-40", "t given to the adapter (steps)", [1.0, 5.0, 10.0], 0.1),
    )


def table() -> Table:
    return Table(
        name="Table 1",
        caption="CIFAR-10, L-inf 8/255, under AutoAttack.",
        columns=("clean", "AutoAttack", "extra data"),
        rows=(
            Row(name="this model", values=(Accuracy(126, 128), Accuracy(54, 128), "no")),
            Row(name="RAP, as claimed", values=(94.53, 73.24, "no"), setting="512 images", source="the paper"),
            Row(name="not measured", values=(None, 52.05, "no"), source="RobustBench"),
        ),
    )


def pictures(channels: int, size: int, images: int = 3) -> Pictures:
    noise = np.random.default_rng(0)
    clean = noise.random((images, channels, size, size), dtype=np.float32)
    change = np.float32(0.2) * noise.choice(np.array([-1, 0, 1], np.float32), clean.shape)
    labels = np.arange(images) % 10
    return Pictures(
        attack="PGD-40",
        clean=clean,
        adversarial=np.clip(clean + change, 0, 1),
        labels=labels,
        clean_predictions=labels,
        adversarial_predictions=(labels + 1) % 10,
        restored=clean,
        restored_predictions=labels,
        restored_clean=clean,
        restored_clean_predictions=labels,
    )


def trajectory(channels: int, size: int, steps: int) -> TrajectoryPictures:
    noise = np.random.default_rng(1)
    clean = noise.random((channels, size, size), dtype=np.float32)
    states = np.clip(clean + noise.uniform(-0.2, 0.2, (steps + 1, *clean.shape)).astype(np.float32), 0, 1)
    return TrajectoryPictures(
        name="PGD-10 against the robust classifier",
        clean=clean,
        label=2,
        states=states,
        predictions=np.where(np.arange(steps + 1) < 6, 2, 1),
        restored=states[::-1],
    )


def training(rounds: int = 50) -> tuple[dict, ...]:
    """Lines as of metrics.jsonl, with the gaps that they have."""
    lines = []
    for number in range(rounds):
        line: dict = {
            "round": number,
            "version": number,
            "updates": 6 * (number + 1),
            "loss": 1 / (number + 1),
            "cross_entropy": 0.9 / (number + 1),
            "reconstruction": float("nan") if number == 3 else 0.1,
            "fresh_to_stored": None if number == 0 else 1.2,
            "lag": 8,
            "age": {"0.0": 0.0, "0.5": 3.0, "0.9": 9.0, "1.0": float(number)},
            "waiting": 0.1,
            "attack_success": 0.5,
            "zero_gradients": 0.0,
        }
        if number % 13 == 0:
            found = Accuracy(number, 100)
            line["judge"] = {"clean": Accuracy(99, 100).as_json(), "robust": found.as_json()}
        lines.append(line)
    return tuple(lines)


def search() -> dict:
    def trial(number: int, steps: int, noise: float | None, correct: int | None) -> dict:
        robust = None if correct is None else Accuracy(correct, 160).as_json()
        rungs = [] if correct is None else [{"rounds": 4, "robust": 0.1}, {"rounds": 8, "robust": correct / 160}]
        settings = {"attack.steps": steps, "attack.noise_scale": noise, "attack.loss": "cross-entropy"}
        error = "out of memory" if correct is None else None
        clean = robust and Accuracy(150, 160).as_json()
        found = {"clean": clean, "robust": robust, "rungs": rungs, "error": error}
        return {"trial": number, "settings": settings, "rounds": 8, **found}

    return {"trials": [trial(0, 10, 0.2, 27), trial(1, 20, None, 17), trial(2, 5, 0.1, None)], "chosen": 0}


def hostile() -> Contents:
    """Everything that is text tries to break out of where it stands."""
    check = Check(1, HOSTILE, "warn", HOSTILE, images=1, says=HOSTILE, evidence={HOSTILE: HOSTILE})
    row = Row(name=HOSTILE, values=(HOSTILE,), setting=HOSTILE, source=HOSTILE)
    settings = {"attack.steps": 1, HOSTILE: HOSTILE}
    robust = Accuracy(1, 2).as_json()
    trials = [
        {
            "trial": HOSTILE,
            "settings": {**settings, "attack.loss": loss},
            "robust": robust,
            "rungs": [{"rounds": 1, "robust": 0.5}],
        }
        for loss in (HOSTILE, "other")
    ]
    return everything(
        title=HOSTILE,
        data=HOSTILE,
        description=HOSTILE,
        worst_of=(HOSTILE,),
        attacks=(Attacked(name=HOSTILE, robust=Accuracy(1, 2)),),
        checks=(check,),
        flags=(HOSTILE,),
        notes=(HOSTILE,),
        alarms=(HOSTILE,),
        broken=(Broken(model=HOSTILE, images=2, by={HOSTILE: 1}),),
        curves=(Curve(name=HOSTILE, x=HOSTILE, points=((0.0, Accuracy(1, 2)),)),),
        tables=(Table(name=HOSTILE, caption=HOSTILE, columns=(HOSTILE,), rows=(row,)),),
        classes=(HOSTILE,) * 10,
        search={"trials": trials, "chosen": HOSTILE},
        recipe={HOSTILE: {HOSTILE: HOSTILE}},
        lineage=(LineageEntry(kind=HOSTILE, fingerprint=HOSTILE, commit=HOSTILE, packages={HOSTILE: HOSTILE}),),
        seconds={HOSTILE: 1.0},
    )
